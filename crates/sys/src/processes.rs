//! Processes as a reader of `/proc` sees them, proc(5). What a process says of itself is its own to choose, so
//! everything is bounded and nothing is trusted.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;

use beta9_types::ProcessInfo;
use rustix::process::Pid;

/// Longest command line that is taken over.
const MAX_COMMAND: u64 = 4096;

/// Describes processes; those that have ended meanwhile are left out. A parent that is not among them is 0.
pub fn describe(pids: &[Pid]) -> Vec<ProcessInfo> {
    let found: Vec<Seen> = pids.iter().filter_map(|pid| see(pid.as_raw_nonzero().get())).collect();
    let inner: HashMap<i32, u32> = found.iter().map(|seen| (seen.outer, seen.info.pid)).collect();
    let mut all: Vec<ProcessInfo> = found
        .into_iter()
        .map(|seen| ProcessInfo { parent: inner.get(&seen.parent).copied().unwrap_or(0), ..seen.info })
        .collect();
    all.sort_unstable_by_key(|info| info.pid);
    all
}

/// The process that is number 1 of its own PID namespace: a container's first.
pub fn first_of_its_namespace(pids: &[Pid]) -> Option<Pid> {
    // Nested namespaces have a first process, too; a container's was there before them.
    let depth = |pid: &Pid| {
        let text = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
        let numbers: Vec<&str> = field(&text, "NSpid:")?.split_ascii_whitespace().collect();
        (numbers.len() > 1 && numbers.last() == Some(&"1")).then_some(numbers.len())
    };
    pids.iter()
        .filter_map(|pid| Some((depth(pid)?, *pid)))
        .min_by_key(|(depth, _)| *depth)
        .map(|(_, pid)| pid)
}

struct Seen {
    outer: i32,
    parent: i32,
    info: ProcessInfo,
}

fn see(outer: i32) -> Option<Seen> {
    let status = fs::read_to_string(format!("/proc/{outer}/status")).ok()?;
    let stat = fs::read_to_string(format!("/proc/{outer}/stat")).ok()?;
    let pid = field(&status, "NSpid:")?.split_ascii_whitespace().next_back()?.parse().ok()?;
    let uid = field(&status, "Uid:")?.split_ascii_whitespace().next()?.parse().ok()?;
    let parent = field(&status, "PPid:")?.trim().parse().ok()?;
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{outer}/cmdline")).ok()?;
    file.take(MAX_COMMAND).read_to_end(&mut bytes).ok()?;
    let words: Vec<_> =
        bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy).collect();
    let command = match words.is_empty() {
        true => format!("[{}]", field(&status, "Name:")?.trim()),
        false => words.join(" "),
    };
    Some(Seen { outer, parent, info: ProcessInfo { pid, parent: 0, uid, cpu_ms: cpu_ms(&stat)?, command } })
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// User and system time, fields 14 and 15. The name in field 2 can hold anything, so it is skipped from its end.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some(user.saturating_add(system).saturating_mul(1000) / rustix::param::clock_ticks_per_second().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_described() {
        let me = rustix::process::getpid();
        let all = describe(&[me]);
        assert_eq!((all.len(), all[0].parent), (1, 0));
        assert_eq!(all[0].uid, rustix::process::getuid().as_raw());
        assert!(all[0].command.contains("beta9_sys"), "{all:?}");
        assert_eq!(first_of_its_namespace(&[me]), None);
    }

    #[test]
    fn a_name_with_a_parenthesis_does_not_shift_the_fields() {
        let ticks = rustix::param::clock_ticks_per_second();
        let stat = format!("7 (a) b 9) S 1 7 7 0 -1 4194560 1 0 0 0 {ticks} {ticks} 0 0 20 0 1 0 9 9");
        assert_eq!(cpu_ms(&stat), Some(2000));
        assert_eq!(cpu_ms("7 (a"), None);
    }
}
