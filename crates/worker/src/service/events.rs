//! What happens to containers and images, as it happens.
//!
//! A container's own life is seen through its supervisor, by one observer for each that runs; what is done to it from
//! outside is told by the request that does it. Events are kept in memory alone: a worker that was replaced begins anew.
//!
//! ```text
//! observers, requests ──▶ history (the last 1000) and a ring of 1000 ──▶ clients
//!                                                     └ one that is too slow loses the oldest, and is told how many
//! ```

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use beta9_supervisor::{ContainerDirectory, Record, Until};
use beta9_types::{ContainerId, ContainerState, ExitReason};
use tokio::sync::broadcast;

use crate::api;
use crate::error::{Error, ErrorKind, Result};
use crate::service::follow::Follower;
use crate::service::{Worker, now_us};

/// Events that are remembered for whoever asks for the past, and that may wait for a client.
const KEPT: usize = 1000;
/// What an event is about.
const CONTAINER: &str = "container";
const IMAGE: &str = "image";

/// The events of one worker.
pub(super) struct Events {
    sender: broadcast::Sender<Arc<api::Event>>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    history: VecDeque<Arc<api::Event>>,
    observed: HashSet<ContainerId>,
}

impl Default for Events {
    fn default() -> Self {
        Self::keeping(KEPT)
    }
}

impl Events {
    fn keeping(count: usize) -> Self {
        Self { sender: broadcast::channel(count).0, books: Mutex::default() }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, event: api::Event) {
        let event = Arc::new(event);
        let mut books = self.books();
        if books.history.len() == KEPT {
            books.history.pop_front();
        }
        books.history.push_back(Arc::clone(&event));
        // Without a client nobody hears it, and that is fine. Sent with the books open, so that none is heard twice.
        let _ = self.sender.send(event);
    }

    fn subscribe(
        &self,
        since_us: Option<u64>,
    ) -> (Vec<Arc<api::Event>>, broadcast::Receiver<Arc<api::Event>>) {
        let books = self.books();
        let wanted = |event: &&Arc<api::Event>| since_us.is_some_and(|since| event.at_us >= since);
        (books.history.iter().filter(wanted).cloned().collect(), self.sender.subscribe())
    }
}

impl Worker {
    /// Tells what was done to a container. Nobody hears it where no worker serves.
    pub(super) fn tell(&self, record: &Record, action: &str, attributes: &[(&str, String)]) {
        if let Some(events) = &self.events {
            events.tell(event(record, action, attributes));
        }
    }

    /// Tells what was done to an image.
    pub(super) fn tell_of_image(&self, action: &str, image: &str, attributes: &[(&str, String)]) {
        if let Some(events) = &self.events {
            events.tell(api::Event {
                at_us: now_us(),
                r#type: IMAGE.to_owned(),
                action: action.to_owned(),
                id: image.to_owned(),
                image: image.to_owned(),
                attributes: owned(attributes),
                ..api::Event::default()
            });
        }
    }

    /// Whether anybody can be told anything.
    pub(super) fn has_events(&self) -> bool {
        self.events.is_some()
    }

    /// Tells of a container's life until it is over.
    pub(super) fn observe(&self, directory: &ContainerDirectory, record: &Record) {
        let Some(events) = &self.events else { return };
        if events.books().observed.insert(record.id.clone()) {
            tokio::spawn(observe(Arc::clone(events), directory.clone(), record.clone()));
        }
    }

    /// The events that a client asks for.
    pub(super) fn events(&self, request: api::EventsRequest) -> Result<Subscription> {
        let filter = Filter::parse(&request.filters)?;
        let Some(events) = &self.events else {
            let text = "events are told by a worker that serves: start one with `beta9-worker serve`";
            return Err(Error::new(ErrorKind::Precondition, text));
        };
        let (past, live) = events.subscribe(request.since_us);
        Ok(Subscription { past: past.into(), live, filter, until_us: request.until_us })
    }
}

fn event(record: &Record, action: &str, attributes: &[(&str, String)]) -> api::Event {
    api::Event {
        at_us: now_us(),
        r#type: CONTAINER.to_owned(),
        action: action.to_owned(),
        id: record.id.to_string(),
        name: record.request.name.clone().map(String::from).unwrap_or_default(),
        image: record.request.image.to_string(),
        runtime: record.runtime.to_string(),
        attributes: owned(attributes),
        labels: record.labels.clone().into_iter().collect(),
    }
}

fn owned(attributes: &[(&str, String)]) -> HashMap<String, String> {
    attributes.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

async fn observe(events: Arc<Events>, directory: ContainerDirectory, record: Record) {
    let mut follower = Follower::new(directory, Until::Over);
    let mut before = ContainerState::Created;
    // An error means that the record went away with its container.
    while let Ok(Some(update)) = follower.next().await {
        let state = update.state.state;
        for (action, attributes) in between(&before, &state) {
            let attributes: Vec<_> = attributes.iter().map(|(name, value)| (*name, value.clone())).collect();
            events.tell(event(&record, action, &attributes));
        }
        before = state;
    }
    events.books().observed.remove(&record.id);
    if record.request.auto_remove {
        events.tell(event(&record, "destroy", &[]));
    }
}

type Told = (&'static str, BTreeMap<&'static str, String>);

/// What happened between two states. A watcher sees the latest state, so some in between may be missing.
fn between(before: &ContainerState, now: &ContainerState) -> Vec<Told> {
    use ContainerState::{Exited, Paused, Restarting, Running};
    let is_up = |state: &ContainerState| state.pid().is_some();
    let plain = |action| (action, BTreeMap::new());
    match (before, now) {
        (Running { .. }, Paused { .. }) => vec![plain("pause")],
        (Paused { .. }, Running { .. }) => vec![plain("unpause")],
        (before, Running { .. }) if !is_up(before) => vec![plain("start")],
        (before, Paused { .. }) if !is_up(before) => vec![plain("start"), plain("pause")],
        (Exited(_) | Restarting(_), Exited(_) | Restarting(_)) => Vec::new(),
        (before, Exited(exit) | Restarting(exit)) => {
            let mut told = Vec::new();
            if !is_up(before) && exit.reason != ExitReason::StartFailed {
                told.push(plain("start"));
            }
            if matches!(exit.reason, ExitReason::Oom | ExitReason::VmmOom) {
                told.push(plain("oom"));
            }
            let reason = exit.reason.as_str().to_owned();
            told.push(("die", BTreeMap::from([("exit_code", exit.code.to_string()), ("reason", reason)])));
            told
        }
        _ => Vec::new(),
    }
}

/// One client's events.
pub(super) struct Subscription {
    past: VecDeque<Arc<api::Event>>,
    live: broadcast::Receiver<Arc<api::Event>>,
    filter: Filter,
    until_us: Option<u64>,
}

impl Subscription {
    /// The next event, or how many were lost; `None` at the end.
    pub(super) async fn next(&mut self) -> Option<api::events_response::Message> {
        use api::events_response::Message;
        loop {
            let event = match self.past.pop_front() {
                Some(event) => event,
                None => match self.live().await? {
                    Ok(event) => event,
                    Err(lost) => return Some(Message::Lost(lost)),
                },
            };
            if self.until_us.is_some_and(|until| event.at_us > until) {
                return None;
            }
            if self.filter.admits(&event) {
                return Some(Message::Event((*event).clone()));
            }
        }
    }

    async fn live(&mut self) -> Option<std::result::Result<Arc<api::Event>, u64>> {
        let end = async {
            match self.until_us {
                Some(until) => {
                    let left = until.saturating_sub(now_us());
                    tokio::time::sleep(std::time::Duration::from_micros(left)).await;
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            received = self.live.recv() => match received {
                Ok(event) => Some(Ok(event)),
                Err(broadcast::error::RecvError::Lagged(lost)) => Some(Err(lost)),
                Err(broadcast::error::RecvError::Closed) => None,
            },
            () = end => None,
        }
    }
}

/// Which events a client wants. Values of one key are alternatives, but every label is wanted; every key that is there must
/// fit.
#[derive(Debug, Default)]
struct Filter {
    wanted: BTreeMap<&'static str, Vec<String>>,
}

impl Filter {
    const KEYS: [&str; 6] = ["container", "event", "image", "label", "runtime", "type"];

    fn parse(filters: &[String]) -> Result<Self> {
        let mut filter = Self::default();
        for text in filters {
            let invalid =
                |rule: &str| Error::new(ErrorKind::Invalid, format!("invalid filter {text:?}: use {rule}"));
            let known = text.split_once('=').and_then(|(key, value)| {
                let key = Self::KEYS.into_iter().find(|known| *known == key)?;
                Some((key, value)).filter(|(_, value)| !value.is_empty())
            });
            match known {
                Some(("type", value)) if value != CONTAINER && value != IMAGE => {
                    return Err(invalid("type=container or type=image"));
                }
                Some((key, value)) => filter.wanted.entry(key).or_default().push(value.to_owned()),
                None => {
                    return Err(invalid("container=, event=, image=, label=, runtime= or type= and a value"));
                }
            }
        }
        Ok(filter)
    }

    fn admits(&self, event: &api::Event) -> bool {
        let fits = |key: &str, value: &str| match key {
            "container" => event.r#type == CONTAINER && (event.name == value || event.id.starts_with(value)),
            "event" => event.action == value,
            "image" => event.image == value || without_tag(&event.image) == value,
            "label" => match value.split_once('=') {
                Some((name, value)) => event.labels.get(name).is_some_and(|known| known == value),
                None => event.labels.contains_key(value),
            },
            "type" => event.r#type == value,
            _ => event.runtime == value,
        };
        self.wanted.iter().all(|(key, values)| {
            if *key == "label" {
                values.iter().all(|value| fits(key, value))
            } else {
                values.iter().any(|value| fits(key, value))
            }
        })
    }
}

/// An image's name without its tag. The colon of a registry's port comes before a slash.
fn without_tag(image: &str) -> &str {
    match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    }
}

#[cfg(test)]
mod tests {
    use beta9_types::Exit;

    use super::*;

    fn numbered(number: u64) -> api::Event {
        api::Event {
            at_us: number,
            action: "start".to_owned(),
            id: "abc".to_owned(),
            r#type: CONTAINER.to_owned(),
            image: "registry.example:5000/team/app:1.2".to_owned(),
            labels: [("role".to_owned(), "web".to_owned())].into(),
            ..api::Event::default()
        }
    }

    #[tokio::test]
    async fn a_slow_client_is_told_what_it_lost() {
        use api::events_response::Message;
        let events = Events::keeping(4);
        let (past, live) = events.subscribe(Some(0));
        assert!(past.is_empty());
        for number in 0..10 {
            events.tell(numbered(number));
        }
        let filter = Filter::default();
        let mut client = Subscription { past: VecDeque::new(), live, filter, until_us: Some(9) };
        assert!(matches!(client.next().await, Some(Message::Lost(6))));
        for number in 6..10 {
            assert!(matches!(client.next().await, Some(Message::Event(event)) if event.at_us == number));
        }
        assert!(client.next().await.is_none());
        assert_eq!(events.subscribe(Some(8)).0.len(), 2);
        assert_eq!(events.subscribe(None).0.len(), 0);
    }

    #[test]
    fn filters_of_one_key_are_alternatives() {
        let filter =
            |texts: &[&str]| Filter::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert!(filter(&["event=start", "event=die", "container=ab"]).unwrap().admits(&numbered(1)));
        assert!(!filter(&["event=die"]).unwrap().admits(&numbered(1)));
        assert!(!filter(&["event=start", "runtime=runc"]).unwrap().admits(&numbered(1)));
        assert!(
            filter(&["type=container", "image=registry.example:5000/team/app"]).unwrap().admits(&numbered(1))
        );
        assert!(!filter(&["type=image"]).unwrap().admits(&numbered(1)));
        assert!(filter(&["label=role", "label=role=web"]).unwrap().admits(&numbered(1)));
        assert!(!filter(&["label=role", "label=role=db"]).unwrap().admits(&numbered(1)));
        for bad in ["", "event", "event=", "colour=blue", "type=network"] {
            assert!(filter(&[bad]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_change_of_state_is_told_in_dockers_words() {
        let (running, paused) = (ContainerState::Running { pid: 1 }, ContainerState::Paused { pid: 1 });
        let words = |before: &ContainerState, now: &ContainerState| {
            between(before, now).iter().map(|(action, _)| *action).collect::<Vec<_>>()
        };
        let oom = ContainerState::Exited(Exit::oom());
        assert_eq!(words(&ContainerState::Starting, &running), ["start"]);
        assert_eq!(words(&running, &paused), ["pause"]);
        assert_eq!(words(&paused, &running), ["unpause"]);
        assert_eq!(words(&running, &oom), ["oom", "die"]);
        assert_eq!(words(&oom, &oom), [""; 0]);
        // One that was over before anybody looked.
        assert_eq!(
            words(&ContainerState::Starting, &ContainerState::Exited(Exit::exited(0))),
            ["start", "die"]
        );
        let failed = ContainerState::Exited(Exit::start_failed(127, "no such file"));
        assert_eq!(words(&ContainerState::Starting, &failed), ["die"]);
    }
}
