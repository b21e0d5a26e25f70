//! The program that runs a VM dies, hangs, loses time, or runs out of memory.

use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use rustix::process::{Pid, Signal};

use super::at;
use super::supervisor::begin;
use super::traces::Trace;
use crate::processes::{self, kill, signal};
use crate::{Container, Site, World};

/// A VMM that appears is seen within this time; there is no event for it.
const APPEARANCE: Duration = Duration::from_secs(120);

pub(super) fn is_killed(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "vmm");
        let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
        kill(vmm(runtime, &container.id)?.context("there is no VMM")?)?;
        is_lost(&container, "")?;
        container.run(&["logs"])?.prints("ready")?;
        container.run(&["rm"])?.ends_with(0)?;
        Ok(())
    })
}

/// As early as it can be seen, and at moments that are spread over the time that a start takes.
pub(super) fn is_killed_at_the_start(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "vmm-start");
        let (measured, finished) = world.run_kept(&[], &["true"])?;
        let usual = finished.ends_with(0)?.took;
        // The next container's directory is found by being the only one.
        measured.run(&["rm"])?.ends_with(0)?;
        for percent in [0, 10, 25, 40, 60, 80] {
            let (container, client, places) = begin(&world, site, &[], &["sleep", "1000"])?;
            let id = places.container.file_name().context("no id")?.to_string_lossy().into_owned();
            let vmm = appears(runtime, &id)?;
            sleep(usual * percent / 100);
            kill(vmm)?;
            let was_up = places.has(Trace::State("running"));
            let vm = site.vms(runtime).join(&id);
            drop(places);
            let finished = client.finish()?;
            ensure!(finished.code() == 125 || was_up, "a start that was cut short\n{finished}");
            ensure!(container.wait()? == 125, "wait did not print 125");
            let known = container.inspect()?;
            let reason = known["exit"]["reason"].as_str().unwrap_or_default();
            ensure!(["start_failed", "vmm_lost"].contains(&reason), "the wrong verdict: {known:#}");
            if reason == "start_failed" {
                let log = if runtime == RuntimeKind::Qemu { "qemu.log" } else { "firecracker.log" };
                ensure!(vm.join(log).exists(), "{log} was not kept for whoever looks for the reason");
            }
            ensure!(processes::of_container(&id)?.is_empty(), "processes of the VM go on");
            container.run(&["rm"])?.ends_with(0)?;
            ensure!(!vm.exists(), "{} outlives the record", vm.display());
        }
        Ok(())
    })
}

pub(super) fn is_killed_while_stopping(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "vmm-stop");
        let script = "trap 'echo told' TERM; echo ready; while true; do sleep 0.1; done";
        let container = world.detach_ready(&[], script)?;
        let log = container.follow()?;
        let stop = container.command(&["stop", "-t", "100"]).spawn()?;
        log.stdout_shows("told")?;
        kill(vmm(runtime, &container.id)?.context("there is no VMM")?)?;
        stop.finish()?;
        log.finish()?;
        is_lost(&container, "")
    })
}

/// The guest's vsock device is a program of its own with QEMU, and nothing works without it.
pub(super) fn loses_its_vsock(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "vsock");
        let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
        kill(program(&container.id, "vhost-device-vsock")?.context("there is no vsock device")?)?;
        is_lost(&container, "")?;
        ensure!(processes::of_container(&container.id)?.is_empty(), "QEMU goes on");
        Ok(())
    })
}

/// It is there and does nothing: nobody waits for it forever.
pub(super) fn is_stopped_for_good(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "hangs");
        let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
        signal(vmm(runtime, &container.id)?.context("there is no VMM")?, Signal::STOP)?;
        is_lost(&container, "did not answer")
    })
}

/// What a guest sees when its host was suspended: the clocks jump. It goes on.
pub(super) fn is_stopped_for_a_while(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "jump");
        let script = "trap 'exit 23' USR1; echo ready; while true; do sleep 0.1; done";
        let container = world.detach_ready(&[], script)?;
        let vmm = vmm(runtime, &container.id)?.context("there is no VMM")?;
        signal(vmm, Signal::STOP)?;
        // The jump itself.
        sleep(Duration::from_secs(5));
        signal(vmm, Signal::CONT)?;
        container.run(&["kill", "-s", "USR1"])?.ends_with(0)?;
        ensure!(container.wait()? == 23, "the container did not go on");
        Ok(())
    })
}

/// The host's limit for the VMM is reached: that is no doing of the container's, and is said so.
pub(super) fn is_out_of_memory(runtime: RuntimeKind) -> Result<()> {
    at(Site::prepare()?, |site| {
        let world = World::new(site, runtime, "vmm-memory");
        let script = "echo ready; read line; dd if=/dev/zero of=/big/file bs=1M count=250; sleep 1000";
        let container = world.detach_ready(&["-i", "--tmpfs", "/big:size=300m"], script)?;
        let (limit, used) = memory(&container.id)?;
        fs::write(&limit, (used + (64 << 20)).to_string())
            .with_context(|| format!("cannot write {}", limit.display()))?;
        let attached = container.command(&["attach"]).input("go\n").spawn()?;
        ensure!(container.wait()? == 125, "wait did not print 125");
        attached.finish()?;
        container.ended(125, "vmm_oom")?;
        Ok(())
    })
}

/// The file with the memory limit of the container's cgroup, and how much is used.
fn memory(id: &str) -> Result<(PathBuf, u64)> {
    let v2 = PathBuf::from("/sys/fs/cgroup/beta9").join(id);
    let v1 = PathBuf::from("/sys/fs/cgroup/memory/beta9").join(id);
    let (limit, usage) = if v2.join("memory.max").exists() {
        (v2.join("memory.max"), v2.join("memory.current"))
    } else {
        (v1.join("memory.limit_in_bytes"), v1.join("memory.usage_in_bytes"))
    };
    let text = fs::read_to_string(&usage).with_context(|| format!("cannot read {}", usage.display()))?;
    Ok((limit, text.trim().parse().context("the memory in use is no number")?))
}

pub(super) fn is_lost(container: &Container<'_, '_>, why: &str) -> Result<()> {
    ensure!(container.wait()? == 125, "wait did not print 125");
    let known = container.ended(125, "vmm_lost")?;
    let message = known["exit"]["message"].as_str().unwrap_or_default();
    ensure!(!message.is_empty() && message.contains(why), "the record does not say what happened: {known:#}");
    Ok(())
}

/// The VMM of a container, if it runs.
pub(super) fn vmm(runtime: RuntimeKind, id: &str) -> Result<Option<Pid>> {
    program(id, if runtime == RuntimeKind::Qemu { "qemu-system" } else { "firecracker" })
}

fn program(id: &str, name: &str) -> Result<Option<Pid>> {
    let is_it = |(_, line): &(Pid, String)| {
        line.split('\0')
            .next()
            .and_then(|path| path.rsplit('/').next())
            .is_some_and(|file| file.contains(name))
    };
    Ok(processes::of_container(id)?.into_iter().find(is_it).map(|(pid, _)| pid))
}

fn appears(runtime: RuntimeKind, id: &str) -> Result<Pid> {
    let end = Instant::now() + APPEARANCE;
    loop {
        if let Some(pid) = vmm(runtime, id)? {
            return Ok(pid);
        }
        ensure!(Instant::now() < end, "no VMM appeared within {APPEARANCE:?}");
        sleep(Duration::from_millis(20));
    }
}
