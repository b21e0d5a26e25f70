use std::io::Write;

use tracing::span::{Attributes, Id, Record};
use tracing::{Event as TracingEvent, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

use crate::event::Event;
use crate::{Format, json, text};

/// The layer that writes events as lines.
#[derive(Debug)]
pub struct Lines<W> {
    format: Format,
    writer: W,
}

impl<W> Lines<W> {
    /// Lines of this format, each written with one call to what `writer` makes.
    pub fn new(format: Format, writer: W) -> Self {
        Self { format, writer }
    }
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Event::default();
        attributes.record(&mut fields);
        span.extensions_mut().insert(fields);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(fields) = span.extensions_mut().get_mut::<Event>() {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &TracingEvent<'_>, context: Context<'_, S>) {
        let mut record = Event::default();
        event.record(&mut record);
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(fields) = span.extensions().get::<Event>() {
                record.inherit(fields);
            }
        }
        let level = *event.metadata().level();
        let line = match self.format {
            Format::Text => text::line(level, &record),
            Format::Json => json::line(&now(), level, &record),
        };
        // There is nobody to tell when the place for telling is gone.
        let _ = self.writer.make_writer_for(event.metadata()).write_all(line.as_bytes());
    }
}

fn now() -> String {
    let mut time = String::new();
    // Formatting into memory does not fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    time
}
