//! `events`: what happens to containers and images.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use crate::api::{self, events_response::Message};
use crate::cli::template::Template;
use crate::cli::{Outcome, OutputFormat};
use crate::client::Client;
use crate::point_in_time::{rfc3339, time};
use crate::terminal;

#[derive(Args)]
pub(super) struct EventsArgs {
    /// From this point on: a time (2026-01-31T12:00:00Z), seconds since 1970, or so long ago (10m). Now where absent.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<u64>,
    /// Up to this point, then end.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<u64>,
    /// Only these: container=, event=, image=, label=, runtime= or type= and a value. May be repeated.
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// Print each by a template, as in '{{.event}} {{.name}}', or as `json`.
    #[arg(long, value_name = "TEMPLATE", conflicts_with = "output")]
    format: Option<String>,
    /// How to print. JSON is one document a line.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, args: EventsArgs) -> Outcome {
    let (is_json, template) = match args.format.as_deref() {
        Some("json") => (true, None),
        Some(text) => (false, Some(Template::parse(text)?)),
        None => (args.output == OutputFormat::Json, None),
    };
    let request = api::EventsRequest {
        since_us: args.since.map(|time| time / 1000),
        until_us: args.until.map(|time| time / 1000),
        filters: args.filters,
    };
    let mut events = client.worker.events(request).await?.into_inner();
    while let Some(api::EventsResponse { message }) = events.message().await? {
        match message {
            Some(Message::Event(event)) => match &template {
                Some(template) => terminal::line(&template.fill(&json(&event))?)?,
                None if is_json => terminal::line(&json(&event).to_string())?,
                None => terminal::line(&line(&event))?,
            },
            Some(Message::Lost(lost)) if is_json => terminal::line(&json!({ "lost": lost }).to_string())?,
            Some(Message::Lost(lost)) => {
                terminal::warning(&format!("{lost} events were lost: they came faster than they were read"));
            }
            None => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(event: &api::Event) -> Value {
    let attributes: std::collections::BTreeMap<_, _> = event.attributes.iter().collect();
    json!({
        "at_us": event.at_us,
        "time": rfc3339(event.at_us),
        "type": event.r#type,
        "event": event.action,
        "id": event.id,
        "name": event.name,
        "image": event.image,
        "runtime": event.runtime,
        "attributes": attributes,
        "labels": event.labels.iter().collect::<std::collections::BTreeMap<_, _>>(),
    })
}

fn line(event: &api::Event) -> String {
    let mut attributes: Vec<_> =
        event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    attributes.extend(
        [("image", &event.image), ("name", &event.name), ("runtime", &event.runtime)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={value}")),
    );
    attributes.sort();
    // What a program is called and told is its user's choice.
    let text = format!(
        "{} {} {} {} ({})",
        rfc3339(event.at_us),
        event.r#type,
        event.action,
        event.id,
        attributes.join(", ")
    );
    text.chars()
        .flat_map(|c| c.is_control().then(|| c.escape_default()).map_or_else(|| vec![c], Iterator::collect))
        .collect()
}
