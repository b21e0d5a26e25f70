//! Processes beside the main one: whose bytes are whose, who waits for whom, and what a guest must not say of them.

use std::sync::mpsc;

use beta9_types::ExecId;
use proptest::prelude::*;

use super::*;

fn exec_id(number: usize) -> ExecId {
    ExecId::parse(&format!("exec-{number}")).unwrap()
}

fn exec(number: usize, stdio: ContainerStdio) -> Exec {
    Exec { id: exec_id(number), process: create(self::stdio().0).spec.process, stdio }
}

impl Guest {
    fn hear_exec(&mut self) -> ExecId {
        match self.hear() {
            ToGuest::Exec { exec, .. } => exec,
            other => panic!("expected an exec, not {other:?}"),
        }
    }

    fn exec_started(&mut self, exec: &ExecId) {
        self.say(&FromGuest::ExecStarted { container: id(), exec: exec.clone() });
    }

    fn exec_exited(&mut self, exec: &ExecId, code: u8, bytes: [u64; 2]) {
        let [stdout_bytes, stderr_bytes] = bytes;
        let exit = GuestExit { code, signal: 0, oom: false, stdout_bytes, stderr_bytes };
        self.say(&FromGuest::ExecExited { container: id(), exec: exec.clone(), exit });
    }

    fn exec_stream(&self, exec: &ExecId, stream: StreamKind) -> UnixStream {
        let mut connection = connect(&self.path, STREAM_PORT);
        let open = StreamOpen { container: id(), exec: Some(exec.clone()), stream };
        write_message(&mut connection, &open).unwrap();
        connection
    }
}

/// Sends `data` in pieces of these sizes, over and over, and waits for the acknowledgement.
fn send(mut to: UnixStream, data: &[u8], sizes: &[usize]) {
    let (mut rest, mut scratch) = (data, Vec::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (piece, after) = rest.split_at((*size).min(rest.len()));
        write_data(&mut to, piece, &mut scratch).unwrap();
        rest = after;
    }
    write_message(&mut to, &StreamControl::End { total: data.len() as u64 }).unwrap();
    let Frame::Message(body) = read_frame(&mut to).unwrap() else { panic!("data on an output") };
    assert_eq!(decode::<StreamControl>("stream", &body).unwrap(), StreamControl::EndAck);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// One execution's output, the sizes of its pieces, and those of its reader.
#[derive(Debug, Clone)]
struct Flow {
    length: usize,
    pieces: Vec<usize>,
    reads: usize,
}

fn flow() -> impl Strategy<Value = Flow> {
    let sizes = prop::collection::vec(1usize..=beta9_wire::MAX_DATA, 1..5);
    (0usize..400_000, sizes, 1usize..100_000).prop_map(|(length, pieces, reads)| Flow {
        length,
        pieces,
        reads,
    })
}

fn bytes(number: usize, length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + number * 7 + index / 251) as u8).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// However the bytes are cut, each stream arrives whole; and one that nobody reads, with more than every buffer on
    /// its way holds, keeps neither another nor the control connection waiting.
    #[test]
    fn streams_do_not_wait_for_each_other(flows in prop::collection::vec(flow(), 1..5)) {
        runtime().block_on(async {
            const STALLED: usize = 99;
            const MUCH: usize = 2_000_000;
            let count = flows.len();
            let sent = flows.clone();
            let bench = Bench::new();
            let guest = move |guest: Guest| {
                let mut guest = guest.greet().created().started();
                let mut senders = Vec::new();
                for _ in 0..=count {
                    let id = guest.hear_exec();
                    let number: usize = id.as_str().trim_start_matches("exec-").parse().unwrap();
                    let (stdout, stderr) =
                        (guest.exec_stream(&id, StreamKind::Stdout), guest.exec_stream(&id, StreamKind::Stderr));
                    guest.exec_started(&id);
                    let (data, pieces) = match sent.get(number) {
                        Some(flow) => (bytes(number, flow.length), flow.pieces.clone()),
                        None => (bytes(number, MUCH), vec![beta9_wire::MAX_DATA]),
                    };
                    guest.exec_exited(&id, number as u8, [data.len() as u64, 3]);
                    senders.push(std::thread::spawn(move || send(stdout, &data, &pieces)));
                    senders.push(std::thread::spawn(move || send(stderr, b"err", &[2])));
                }
                for sender in senders {
                    sender.join().unwrap();
                }
                guest.linger();
            };
            let (stdio, _client) = stdio();
            let sandbox = bench.open(guest).await.unwrap();
            sandbox.create(create(stdio)).await.unwrap();
            sandbox.start().await.unwrap();

            let (stdio, mut stalled) = self::stdio();
            let mut stalled_exit = sandbox.exec(exec(STALLED, stdio)).await.unwrap();
            for (number, flow) in flows.iter().enumerate() {
                let (stdio, mut client) = self::stdio();
                let mut exit = sandbox.exec(exec(number, stdio)).await.unwrap();
                let reads = flow.reads;
                let reader = tokio::task::spawn_blocking(move || {
                    let (mut all, mut buffer) = (Vec::new(), vec![0; reads]);
                    while let Ok(count @ 1..) = client.stdout.read(&mut buffer) {
                        all.extend_from_slice(&buffer[..count]);
                    }
                    let mut err = Vec::new();
                    client.stderr.read_to_end(&mut err).unwrap();
                    (all, err)
                });
                let code = exit.wait_for(Option::is_some).await.unwrap().clone();
                assert_eq!(code, Some(Exit::exited(number as u8)));
                let (all, err) = reader.await.unwrap();
                assert!(all == bytes(number, flow.length), "the bytes of {number} changed");
                assert_eq!(err, b"err");
            }
            assert!(stalled_exit.borrow().is_none(), "its output cannot be there yet");
            let reader = tokio::task::spawn_blocking(move || {
                let mut all = Vec::new();
                stalled.stdout.read_to_end(&mut all).unwrap();
                all
            });
            let exit = stalled_exit.wait_for(Option::is_some).await.unwrap().clone();
            assert_eq!(exit, Some(Exit::exited(STALLED as u8)));
            assert!(reader.await.unwrap() == bytes(STALLED, MUCH), "the stalled bytes changed");
            sandbox.stop().await.unwrap();
        });
    }
}

#[tokio::test(flavor = "current_thread")]
async fn an_exec_that_fails_keeps_its_kind_and_its_name_is_free_again() {
    let bench = Bench::new();
    let (signals, signalled) = mpsc::channel();
    let guest = move |guest: Guest| {
        let mut guest = guest.greet().created().started();
        let exec = guest.hear_exec();
        let (container, failure) = (id(), StartFailure::NotFound);
        guest.say(&FromGuest::ExecFailed { container, exec, failure, message: "no\nsuch program".into() });
        let exec = guest.hear_exec();
        guest.exec_started(&exec);
        signals.send((guest.hear(), guest.hear())).unwrap();
        guest.exec_exited(&exec, 5, [0, 0]);
        guest.linger();
    };
    let (stdio, _client) = stdio();
    let sandbox = bench.open(guest).await.unwrap();
    assert!(sandbox.exec(exec(0, self::stdio().0)).await.is_err(), "there is no container yet");
    sandbox.create(create(stdio)).await.unwrap();
    sandbox.start().await.unwrap();
    let error = sandbox.exec(exec(1, self::stdio().0)).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::NotFound, "nosuch program"));
    let mut exit = sandbox.exec(exec(1, self::stdio().0)).await.unwrap();
    assert!(sandbox.exec(exec(1, self::stdio().0)).await.is_err(), "the name is taken");
    sandbox.signal_exec(exec_id(1), 15).await.unwrap();
    let size = TerminalSize { rows: 2, columns: 3 };
    sandbox.resize(Some(exec_id(1)), size).await.unwrap();
    assert_eq!(exit.wait_for(Option::is_some).await.unwrap().clone(), Some(Exit::exited(5)));
    let (signal, resize) = signalled.recv().unwrap();
    assert_eq!(signal, ToGuest::SignalExec { container: id(), exec: exec_id(1), signal: 15 });
    assert_eq!(resize, ToGuest::Resize { container: id(), exec: Some(exec_id(1)), size });
    sandbox.stop().await.unwrap();
}

#[tokio::test(flavor = "current_thread")]
async fn what_a_guest_must_not_say_of_a_process_ends_the_vm() {
    let cases: [(Script, &str); 4] = [
        (
            |mut guest| {
                guest.exec_started(&exec_id(7));
                guest.linger();
            },
            "it spoke of process exec-7, which it was not asked for",
        ),
        (
            |mut guest| {
                guest.exec_exited(&exec_id(7), 0, [0, 0]);
                guest.linger();
            },
            "it spoke of process exec-7, which it was not asked for",
        ),
        (
            |guest| {
                let _stream = guest.exec_stream(&exec_id(7), StreamKind::Stdout);
                guest.linger();
            },
            "it opened Stdout twice or uninvited",
        ),
        (
            |mut guest| {
                let (container, exec) = (ContainerId::parse("c2").unwrap(), exec_id(7));
                guest.say(&FromGuest::ExecStarted { container, exec });
                guest.linger();
            },
            "it spoke of container c2, which it does not hold",
        ),
    ];
    for (guest, expected) in cases {
        assert_violation(&Bench::new().verdict_on(guest).await, expected);
    }
}
