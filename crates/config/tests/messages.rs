//! The fixed messages, byte for byte, through the formatter that the worker uses.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::sync::{Arc, Mutex};

use beta9_config::{Config, Selection, Step, messages};
use beta9_logging::{Format, Lines};
use beta9_types::RuntimeKind;
use tracing_subscriber::layer::SubscriberExt;

#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn capture(format: Format, log: impl FnOnce()) -> String {
    let captured = Captured::default();
    let writer = captured.clone();
    let subscriber = tracing_subscriber::registry().with(Lines::new(format, move || writer.clone()));
    tracing::subscriber::with_default(subscriber, log);
    let bytes = captured.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

const NO_KVM: &str =
    "/dev/kvm cannot be opened: permission denied; add the worker's user to the group \"kvm\"";

/// What a start logs for the first pool of a file, on a machine where only `working` works.
fn start(text: &str, working: &[RuntimeKind]) -> Selection {
    let config = Config::parse(text, "/etc/beta9.yaml", |_| None).unwrap();
    let pool = &config.pools()[0];
    let mut selection = Selection::begin(pool);
    messages::initializing(&pool.name, pool.runtime);
    while let Some(kind) = selection.next() {
        let result = if working.contains(&kind) { Ok(()) } else { Err(NO_KVM.to_owned()) };
        match selection.record(result) {
            Step::Ready(kind) => messages::initialized(kind, &pool.settings),
            step => messages::failed(&selection, step),
        }
    }
    selection
}

#[test]
fn firecracker_works() {
    let log = capture(Format::Text, || {
        start("worker: {pools: {default: {container_runtime: firecracker}}}", &[RuntimeKind::Firecracker]);
    });
    assert_eq!(
        log,
        "[INFO] initializing container runtime for worker pool pool=default runtime=firecracker\n\
         [INFO] Firecracker runtime initialized successfully bin=firecracker root=/var/lib/beta9/microvm \
         kernel=/var/lib/beta9/vmlinux cpus=1 mem_mib=512\n"
    );
}

#[test]
fn firecracker_does_not_work() {
    let log = capture(Format::Text, || {
        start("worker: {pools: {default: {container_runtime: firecracker}}}", &[RuntimeKind::Runc]);
    });
    assert_eq!(
        log,
        "[INFO] initializing container runtime for worker pool pool=default runtime=firecracker\n\
         [WARN] failed to create firecracker runtime, falling back to runc error=\"/dev/kvm cannot be opened: \
         permission denied; add the worker's user to the group \\\"kvm\\\"\"\n\
         [INFO] runc runtime initialized successfully bin=runc\n"
    );
}

#[test]
fn nothing_works() {
    let text = "worker: {pools: {vm: {container_runtime: microvm, runtime_fallback: [gvisor]}}}";
    let log = capture(Format::Text, || {
        let selection = start(text, &[]);
        assert_eq!(selection.used(), None);
    });
    let error = "error=\"/dev/kvm cannot be opened: permission denied; add the worker's user to the group \\\"kvm\\\"\"";
    assert_eq!(
        log,
        format!(
            "[INFO] initializing container runtime for worker pool pool=vm runtime=microvm\n\
             [WARN] failed to create firecracker runtime, trying qemu {error}\n\
             [WARN] failed to create qemu runtime, falling back to gvisor {error}\n\
             [ERROR] failed to create gvisor runtime, pool is not ready pool=vm {error}\n"
        )
    );
}

#[test]
fn every_runtime_says_what_it_runs_with() {
    let log = capture(Format::Text, || {
        for kind in RuntimeKind::ALL {
            start(&format!("worker: {{pools: {{default: {{container_runtime: {kind}}}}}}}"), &[kind]);
        }
    });
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("successfully")).collect();
    assert_eq!(
        lines,
        [
            "[INFO] runc runtime initialized successfully bin=runc",
            "[INFO] gVisor runtime initialized successfully bin=runsc root=/run/gvisor platform=systrap",
            "[INFO] Firecracker runtime initialized successfully bin=firecracker root=/var/lib/beta9/microvm \
             kernel=/var/lib/beta9/vmlinux cpus=1 mem_mib=512",
            "[INFO] QEMU runtime initialized successfully bin=qemu-system-x86_64 root=/var/lib/beta9/microvm \
             kernel=/var/lib/beta9/vmlinux cpus=1 mem_mib=512 accel=auto",
        ]
    );
}

#[test]
fn json_lines_have_the_same_fields() {
    let log = capture(Format::Json, || {
        start("worker: {pools: {default: {container_runtime: firecracker}}}", &[RuntimeKind::Firecracker]);
        start("worker: {pools: {default: {container_runtime: firecracker}}}", &[RuntimeKind::Runc]);
    });
    let without_time: Vec<String> = log
        .lines()
        .map(|line| {
            let rest = line.strip_prefix("{\"time\":\"").unwrap();
            let (time, rest) = rest.split_once("\",").unwrap();
            assert!(time.ends_with('Z') && time.contains('T'), "{time}");
            format!("{{{rest}")
        })
        .collect();
    assert_eq!(
        without_time[..4],
        [
            r#"{"level":"INFO","message":"initializing container runtime for worker pool","pool":"default","runtime":"firecracker"}"#,
            r#"{"level":"INFO","message":"Firecracker runtime initialized successfully","bin":"firecracker","root":"/var/lib/beta9/microvm","kernel":"/var/lib/beta9/vmlinux","cpus":1,"mem_mib":512}"#,
            r#"{"level":"INFO","message":"initializing container runtime for worker pool","pool":"default","runtime":"firecracker"}"#,
            r#"{"level":"WARN","message":"failed to create firecracker runtime, falling back to runc","error":"/dev/kvm cannot be opened: permission denied; add the worker's user to the group \"kvm\""}"#,
        ]
    );
}
