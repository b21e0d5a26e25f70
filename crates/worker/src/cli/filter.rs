//! `ps --filter`: docker's conditions on containers.

use crate::api;
use crate::cli::Failure;

/// One `NAME=VALUE`.
pub(super) struct Filter {
    name: &'static str,
    value: String,
}

impl Filter {
    const KNOWN: [&'static str; 10] =
        ["id", "name", "label", "status", "exited", "ancestor", "runtime", "pool", "before", "since"];

    /// Reads `NAME=VALUE`.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let known = Self::KNOWN.iter().find(|known| **known == name && !value.is_empty());
        let name = known.ok_or_else(|| {
            Failure::new(format!(
                "invalid filter {text:?}: use NAME=VALUE with one of {}",
                Self::KNOWN.join(", ")
            ))
        })?;
        let states = ["created", "starting", "running", "paused", "restarting", "exited"];
        if *name == "status" && !states.contains(&value) {
            let text = format!("invalid filter {text:?}: use status= with one of {}", states.join(", "));
            return Err(Failure::new(text));
        }
        if *name == "exited" && value.parse::<u8>().is_err() {
            return Err(Failure::new(format!(
                "invalid filter {text:?}: use exited= with a code from 0 to 255"
            )));
        }
        Ok(Self { name, value: value.to_owned() })
    }

    /// Whether it is about containers that do not run.
    pub(super) fn wants_all(&self) -> bool {
        self.name == "exited" || (self.name == "status" && self.value != "running" && self.value != "paused")
    }
}

/// docker's rule: of one name any, of several names every one. `label` alone needs every one of its own.
pub(super) fn keep(
    filters: &[Filter],
    containers: Vec<api::Container>,
) -> Result<Vec<api::Container>, Failure> {
    let created = |filter: &Filter| -> Result<u64, Failure> {
        let found =
            containers.iter().find(|one| one.id.starts_with(&filter.value) || one.name == filter.value);
        found.map(|one| one.created_us).ok_or_else(|| {
            Failure::new(format!("no such container: {:?}; see `beta9-worker ps -a`", filter.value))
        })
    };
    let mut before = None;
    let mut since = None;
    for filter in filters {
        match filter.name {
            "before" => before = Some(created(filter)?),
            "since" => since = Some(created(filter)?),
            _ => {}
        }
    }
    let fits = |one: &api::Container| {
        let matches = |filter: &Filter| match filter.name {
            "id" => one.id.starts_with(&filter.value),
            "name" => one.name.contains(filter.value.trim_start_matches('/')),
            "status" => one.status == filter.value,
            "exited" => one.exit.as_ref().is_some_and(|exit| exit.code.to_string() == filter.value),
            "ancestor" => {
                one.image == filter.value
                    || one.image.rsplit_once(':').is_some_and(|(name, _)| name == filter.value)
                    || one.image_digest.contains(&filter.value)
            }
            "runtime" => one.runtime == filter.value,
            "pool" => one.pool == filter.value,
            "label" => match filter.value.split_once('=') {
                Some((name, value)) => one.labels.get(name).is_some_and(|known| known == value),
                None => one.labels.contains_key(&filter.value),
            },
            _ => true,
        };
        let any_of = |name: &str| {
            let mut of_name = filters.iter().filter(|filter| filter.name == name).peekable();
            of_name.peek().is_none() || of_name.any(matches)
        };
        Filter::KNOWN.iter().filter(|name| **name != "label").all(|name| any_of(name))
            && filters.iter().filter(|filter| filter.name == "label").all(matches)
            && before.is_none_or(|time| one.created_us < time)
            && since.is_none_or(|time| one.created_us > time)
    };
    Ok(containers.iter().filter(|one| fits(one)).cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(filters: &[&str]) -> Vec<String> {
        let one = |id: &str, status: &str, created_us: u64, label: &str| api::Container {
            id: id.to_owned(),
            name: format!("name-{id}"),
            image: "busybox:latest".to_owned(),
            status: status.to_owned(),
            created_us,
            labels: [("role".to_owned(), label.to_owned())].into(),
            ..api::Container::default()
        };
        let all =
            vec![one("a1", "running", 1, "web"), one("b2", "exited", 2, "db"), one("c3", "exited", 3, "web")];
        let filters: Vec<_> = filters.iter().map(|text| Filter::parse(text).ok().unwrap()).collect();
        keep(&filters, all).ok().unwrap().into_iter().map(|one| one.id).collect()
    }

    #[test]
    fn one_name_is_any_and_several_are_all() {
        assert_eq!(kept(&["status=running", "status=exited"]), ["a1", "b2", "c3"]);
        assert_eq!(kept(&["status=exited", "label=role=web"]), ["c3"]);
        assert_eq!(kept(&["label=role", "name=b2"]), ["b2"]);
        assert_eq!(kept(&["before=c3", "since=a1"]), ["b2"]);
        assert_eq!(kept(&["ancestor=busybox"]).len(), 3);
        assert!(kept(&["id=zz"]).is_empty());
    }

    #[test]
    fn unknown_filters_are_refused() {
        for bad in ["", "status", "status=", "status=dead", "exited=x", "health=starting", "volume=x"] {
            assert!(Filter::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
