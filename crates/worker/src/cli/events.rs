//! `events`: what happens to containers.

use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use crate::api::{self, events_response::Message};
use crate::cli::when::{When, rfc3339};
use crate::cli::{Outcome, OutputFormat};
use crate::client::Client;
use crate::terminal;

#[derive(Args)]
pub(super) struct EventsArgs {
    /// From this point on: a time (2026-01-31T12:00:00Z), seconds since 1970, or so long ago (10m). Now where absent.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<When>,
    /// Up to this point, then end.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<When>,
    /// Only these: container=, event=, image= or runtime= and a value. May be repeated.
    #[arg(short, long = "filter", value_name = "KEY=VALUE")]
    filters: Vec<String>,
    /// How to print. JSON is one document a line.
    #[arg(long, value_enum, default_value = "table")]
    output: OutputFormat,
}

pub(super) async fn run(client: &mut Client, args: EventsArgs) -> Outcome {
    let request = api::EventsRequest {
        since_us: args.since.map(When::micros),
        until_us: args.until.map(When::micros),
        filters: args.filters,
    };
    let mut events = client.worker.events(request).await?.into_inner();
    while let Some(api::EventsResponse { message }) = events.message().await? {
        match (message, args.output) {
            (Some(Message::Event(event)), OutputFormat::Json) => terminal::line(&json(&event))?,
            (Some(Message::Event(event)), OutputFormat::Table) => terminal::line(&line(&event))?,
            (Some(Message::Lost(lost)), OutputFormat::Json) => {
                terminal::line(&json!({ "lost": lost }).to_string())?;
            }
            (Some(Message::Lost(lost)), OutputFormat::Table) => {
                terminal::warning(&format!("{lost} events were lost: they came faster than they were read"));
            }
            (None, _) => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn json(event: &api::Event) -> String {
    let attributes: std::collections::BTreeMap<_, _> = event.attributes.iter().collect();
    json!({
        "at_us": event.at_us,
        "time": rfc3339(event.at_us),
        "event": event.action,
        "id": event.id,
        "name": event.name,
        "image": event.image,
        "runtime": event.runtime,
        "attributes": attributes,
    })
    .to_string()
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
    format!("{} container {} {} ({})", rfc3339(event.at_us), event.action, event.id, attributes.join(", "))
}
