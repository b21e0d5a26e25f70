//! The guest as a whole: boots, serves the host's requests, and ends the machine.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use beta9_sys::reaper::Reaper;
use beta9_types::ContainerId;
use beta9_wire::{FromGuest, GuestMoment, StartFailure, ToGuest};

use crate::container::{self, Event, ExecOrder, Order};
use crate::control::{self, Reports, Requests};
use crate::failure::Failure;
use crate::modules::Modules;
use crate::timeline::Point;
use crate::{boot, operate, report};
use beta9_types::chain;

/// Requests that may wait for one container. A host that sends more before they are handled loses them.
const MAX_WAITING: usize = 1024;
/// How long what is left may take when the machine ends.
const LAST_DEADLINE: Duration = Duration::from_secs(5);

/// What every container's thread needs.
pub(crate) struct Machine {
    /// To the host.
    pub(crate) reports: Reports,
    /// The owner of all children.
    pub(crate) reaper: Reaper,
    /// What the kernel can still load.
    pub(crate) modules: Modules,
    containers: Mutex<HashMap<ContainerId, SyncSender<Event>>>,
    /// Signalled when a container is gone.
    gone: Condvar,
}

/// Is PID 1. Does not return.
pub(crate) fn run() -> ! {
    let began = Point::now();
    std::panic::set_hook(Box::new(|panic| report::fatal(&panic.to_string().replace('\n', " "))));
    let modules = boot::boot().unwrap_or_else(|failure| report::fatal(&failure.message));
    let reaper = Reaper::start().unwrap_or_else(|error| report::fatal(&format!("start the reaper: {error}")));
    let (sandbox, requests, reports) = control::dial().unwrap_or_else(|message| report::fatal(&message));
    let marks = vec![Point::START.mark(GuestMoment::Kernel), began.mark(GuestMoment::Init)];
    reports.send(&FromGuest::Reached { container: sandbox, marks });
    let machine =
        Arc::new(Machine { reports, reaper, modules, containers: Mutex::default(), gone: Condvar::new() });
    let lost = serve(&machine, requests);
    machine.end(lost.as_deref())
}

/// Serves requests until the host shuts the machine down; `Some` says why the host is gone instead.
fn serve(machine: &Arc<Machine>, mut requests: Requests) -> Option<String> {
    loop {
        match requests.next() {
            Ok(ToGuest::Create { container, root, spec }) => {
                machine.create(Order { container, root, spec });
            }
            Ok(ToGuest::Start { container }) => machine.pass(&container, Event::Start),
            Ok(ToGuest::Signal { container, signal, all }) => {
                let target = if all { container::Target::All } else { container::Target::Main };
                machine.pass(&container, Event::Signal { signal, target });
            }
            Ok(ToGuest::ExitAck { container }) => machine.pass(&container, Event::ExitAck),
            Ok(ToGuest::Operate { container, number, operation }) => {
                operate::begin(machine, container, number, operation);
            }
            Ok(ToGuest::Exec { container, exec, process }) => {
                machine.pass(&container, Event::Exec(ExecOrder { exec, process }));
            }
            Ok(ToGuest::SignalExec { container, exec, signal }) => {
                machine.pass(&container, Event::SignalExec(exec, signal));
            }
            Ok(ToGuest::Resize { container, exec, size }) => {
                machine.pass(&container, Event::Resize(exec, size));
            }
            Ok(ToGuest::Renew { unix_ns, entropy }) => control::renew(unix_ns, entropy),
            Ok(ToGuest::Shutdown) => return None,
            Ok(ToGuest::Welcome { .. }) => return Some("a second welcome".to_owned()),
            Err(error) => return Some(chain(&error)),
        }
    }
}

impl Machine {
    fn create(self: &Arc<Self>, order: Order) {
        let id = order.container.clone();
        let (sender, events) = sync_channel(MAX_WAITING);
        match self.containers().entry(id.clone()) {
            // The host cannot mean the one that there is. An answer is better than silence all the same.
            Entry::Occupied(_) => {
                return self.fail(&id, StartFailure::Setup, format!("container {id} exists already"));
            }
            Entry::Vacant(place) => place.insert(sender.clone()),
        };
        let machine = Arc::clone(self);
        let thread = std::thread::Builder::new().name("container".to_owned()).spawn(move || {
            let id = order.container.clone();
            let owned = container::own(&machine, order, &events, &sender);
            machine.containers().remove(&id);
            machine.gone.notify_all();
            // Only now may the host use the name again.
            if let Err(failure) = owned {
                machine.fail(&id, failure.kind, failure.message);
            }
        });
        if let Err(error) = thread {
            self.containers().remove(&id);
            self.fail(&id, StartFailure::Setup, format!("start a thread: {error}"));
        }
    }

    fn pass(&self, id: &ContainerId, event: Event) {
        let Some(sender) = self.containers().get(id).cloned() else { return self.reject(id, event) };
        match sender.try_send(event) {
            Ok(()) => {}
            Err(TrySendError::Full(event)) => {
                report::warn(&format!("too many requests for {id}"));
                if matches!(event, Event::Exec(_)) {
                    self.reject(id, event);
                }
            }
            Err(TrySendError::Disconnected(event)) => self.reject(id, event),
        }
    }

    /// Answers what cannot be passed on, where an answer is waited for.
    fn reject(&self, id: &ContainerId, event: Event) {
        match event {
            Event::Start => {
                self.fail(id, StartFailure::Setup, "there is no such container to start".to_owned());
            }
            Event::Exec(order) => {
                let failure = Failure::refused("the container takes no more processes now");
                container::fail_exec(self, id.clone(), order.exec, failure);
            }
            // A signal or an acknowledgement can cross an exit on its way.
            _ => {}
        }
    }

    /// Reports that a container could not be created or started.
    pub(crate) fn fail(&self, container: &ContainerId, failure: StartFailure, message: String) {
        self.reports.send(&FromGuest::Failed { container: container.clone(), failure, message });
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, SyncSender<Event>>> {
        // A panic ends the machine, so nobody sees a half-changed table.
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Ends every container and the machine.
    fn end(&self, lost: Option<&str>) -> ! {
        // A file server that does not answer must not keep the machine alive.
        let _ = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(LAST_DEADLINE);
            report::restart()
        });
        let _ = fs::write("/sys/fs/cgroup/beta9/cgroup.kill", "1");
        let containers = self.containers();
        for sender in containers.values() {
            // One that has no room for it, or does not get to it, is cut short by the deadline.
            let _ = sender.try_send(Event::Discard);
        }
        let all_gone = self.gone.wait_timeout_while(containers, LAST_DEADLINE, |left| !left.is_empty());
        drop(all_gone);
        rustix::fs::sync();
        // From here on the host loses nothing by ending the machine itself.
        self.reports.close();
        match lost {
            Some(why) => report::fatal(&format!("the host is gone: {why}")),
            None => report::restart(),
        }
    }
}
