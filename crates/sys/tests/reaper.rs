//! The reaper owns every child of its process, so its tests have a process of their own.

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use beta9_sys::reaper::{ChildExit, Reaper};

const DEADLINE: Duration = Duration::from_secs(20);

/// One test, in order: the reaper is one per process.
#[test]
fn every_exit_arrives_exactly_once() {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let reaper = Reaper::start().unwrap();

    let (sender, exits) = mpsc::channel();
    for code in 0..50u8 {
        let sender = sender.clone();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exit {code}")]);
        reaper.spawn(&mut command, move |exit| sender.send((code, exit)).unwrap()).unwrap();
    }
    for _ in 0..50 {
        let (code, exit) = exits.recv_timeout(DEADLINE).unwrap();
        assert_eq!(exit, ChildExit::Code(code));
    }

    let mut missing = Command::new("/does/not/exist");
    assert!(reaper.spawn(&mut missing, |_| ()).is_err(), "a failed exec is reported and nobody panics");

    // An orphan: the shell starts a child, prints its pid and ends; the orphan becomes ours.
    let (sender, exits) = mpsc::channel();
    let mut command = Command::new("sh");
    command.args(["-c", "(kill -KILL $(sh -c 'echo $PPID')) & echo $!"]).stdout(Stdio::piped());
    let child = reaper.spawn(&mut command, |_| ()).unwrap();
    let pid = std::io::read_to_string(child.stdout.unwrap()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    reaper.adopt(pid, move |exit| sender.send(exit).unwrap());
    assert_eq!(exits.recv_timeout(DEADLINE).unwrap(), ChildExit::Signal(9));
}
