//! What reaches the writer, byte for byte.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::{Arc, Mutex};

use beta9_logging::{Format, Lines};
use tracing_subscriber::layer::SubscriberExt;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<Vec<u8>>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The writes that `log` caused, one element each.
fn capture(format: Format, log: impl FnOnce()) -> Vec<String> {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::registry().with(Lines::new(format, move || writer.clone()));
    tracing::subscriber::with_default(subscriber, log);
    let writes = captured.0.lock().unwrap().clone();
    writes.into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
}

#[derive(Debug, thiserror::Error)]
#[error("start the engine")]
struct Outer(#[source] io::Error);

fn two_events() {
    tracing::info!(pool = "default", cpus = 2_u8, share = 0.5, debug = false, "a message");
    let error = Outer(io::Error::other("no such \"device\""));
    tracing::error!(error = &error as &dyn std::error::Error, runtime = %"qemu", list = ?["a", "b"], "it failed");
}

#[test]
fn text_is_one_write_per_line() {
    assert_eq!(
        capture(Format::Text, two_events),
        [
            "[INFO] a message pool=default cpus=2 share=0.5 debug=false\n",
            "[ERROR] it failed error=\"start the engine: no such \\\"device\\\"\" runtime=qemu list=\"[\\\"a\\\", \\\"b\\\"]\"\n",
        ]
    );
}

#[test]
fn json_has_the_same_fields_after_time_level_and_message() {
    let lines = capture(Format::Json, two_events);
    let (time, rest) = lines[0].split_at("{\"time\":\"2026-01-02T03:04:05.000000Z\"".len());
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert_eq!(shape, "{\"time\":\"0000-00-00T00:00:00.000000Z\"");
    assert_eq!(
        rest,
        ",\"level\":\"INFO\",\"message\":\"a message\",\"pool\":\"default\",\"cpus\":2,\"share\":0.5,\"debug\":false}\n"
    );
    let value: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(value["error"], "start the engine: no such \"device\"");
}

#[test]
fn spans_add_what_the_event_does_not_say_itself() {
    let lines = capture(Format::Text, || {
        let outer = tracing::info_span!(
            "container",
            container = "c1",
            runtime = "runc",
            exit = tracing::field::Empty
        );
        let _outer = outer.enter();
        outer.record("exit", 3);
        let _inner = tracing::info_span!("exec", exec = "e1", runtime = "inner").entered();
        tracing::warn!(exec = "own", "odd");
    });
    assert_eq!(lines, ["[WARN] odd exec=own runtime=inner container=c1 exit=3\n"]);
}
