//! The command line as docker's users know it: tables, filters, templates, files of ids, and what is refused.

use anyhow::{Result, ensure};

use super::stories;
use crate::World;

stories![
    Core containers_are_filtered_and_formatted,
    Full labels_come_from_flags_and_files,
    Full the_id_is_written_to_a_file,
    Full several_are_waited_for,
    Full sizes_are_shown,
    Full a_stop_may_have_a_signal_of_its_own,
    Full images_are_filtered_and_formatted,
    Full those_that_are_over_are_pruned,
    Core a_bad_value_of_a_flag_is_one_sentence,
    Full a_flag_of_dockers_is_refused_with_the_alternative,
    Full flags_that_contradict_each_other_are_refused,
    Full completion_and_help,
];

fn containers_are_filtered_and_formatted(world: &World<'_>) -> Result<()> {
    let label = format!("story={}", world.name());
    let first = world.detach(&["-l", &label, "-l", "role=first"], &["sh", "-c", "exit 3"])?;
    ensure!(first.wait()? == 3, "the first did not end with 3");
    let second = world.detach_ready(&["-l", &label], "echo ready; sleep 1000")?;
    let filter = format!("label={label}");
    let ps = |more: &[&str]| {
        let mut words = vec!["ps", "--filter", &filter];
        words.extend(more);
        world.worker(&words)
    };
    ps(&["-q"])?.prints(&second.id)?;
    ps(&["-aq"])?.prints(&format!("{}\n{}", second.id, first.id))?;
    ps(&["-aq", "--filter", "exited=3"])?.prints(&first.id)?;
    ps(&["-q", "--filter", "status=exited"])?.prints(&first.id)?;
    ps(&["-aq", "-n", "1"])?.prints(&second.id)?;
    ps(&[
        "-a",
        "--filter",
        "label=role=first",
        "--format",
        "{{.Names}} {{.State}} {{.ExitCode}} {{.Label \"role\"}}",
    ])?
    .prints(&format!("{} exited 3 first", first.name))?;
    ps(&["-a", "--format", "table {{.ID}}\\t{{.Runtime}}"])?.ends_with(0).and_then(|finished| {
        let runtime = world.runtime().as_str();
        let expected = format!("CONTAINER ID   RUNTIME\n{}   {runtime}", &second.id[..12]);
        ensure!(finished.out().starts_with(&expected), "expected {expected:?}\n{finished}");
        Ok(())
    })?;
    ps(&["--format", "{{.NoSuchField}}"])?.ends_with(1)?.complains_of(&["NoSuchField", "Names"])?;
    ps(&["--filter", "health=none"])?.ends_with(1)?.complains_of(&["health", "status"])?;
    Ok(())
}

fn labels_come_from_flags_and_files(world: &World<'_>) -> Result<()> {
    let path = world.directory()?.join("labels");
    std::fs::write(&path, "# notes\na=file\nb=file\n")?;
    let path = path.to_string_lossy();
    let (container, finished) =
        world.run_kept(&["--label-file", &path, "--label", "b=flag", "-l", "c"], &["true"])?;
    finished.ends_with(0)?;
    let known = container.inspect()?;
    ensure!(
        known["labels"] == serde_json::json!({ "a": "file", "b": "flag", "c": "" }),
        "unexpected labels: {known:#}"
    );
    Ok(())
}

fn the_id_is_written_to_a_file(world: &World<'_>) -> Result<()> {
    let path = world.directory()?.join("cid");
    let text = path.to_string_lossy();
    world.run(&["--cidfile", &text], &["true"])?.ends_with(0)?;
    ensure!(std::fs::read_to_string(&path)?.len() == 32, "there is no id in {text}");
    world.run(&["--cidfile", &text], &["true"])?.ends_with(125)?.complains_of(&["exists"])?;
    std::fs::remove_file(&path)?;
    world.run(&["--cidfile", &text, "-u", "no-such-user"], &["true"])?.ends_with(125)?;
    ensure!(!path.exists(), "{text} names no container");
    Ok(())
}

fn several_are_waited_for(world: &World<'_>) -> Result<()> {
    let first = world.detach(&[], &["sh", "-c", "exit 3"])?;
    let second = world.detach(&[], &["sh", "-c", "exit 4"])?;
    world.worker(&["wait", &first.name, &second.name])?.prints("3\n4")?;
    world
        .worker(&["wait", "no-such-container", &second.name])?
        .ends_with(1)?
        .complains_of(&["no-such-container"])?;
    Ok(())
}

fn sizes_are_shown(world: &World<'_>) -> Result<()> {
    let label = format!("size={}", world.name());
    let (container, finished) =
        world.run_kept(&["-l", &label], &["sh", "-c", "head -c 3000000 /dev/urandom > /big; sync"])?;
    finished.ends_with(0)?;
    let filter = format!("label={label}");
    let table = world.worker(&["ps", "-a", "-s", "--filter", &filter])?.ends_with(0)?;
    ensure!(table.out().contains("SIZE") && table.out().contains("(virtual "), "no sizes\n{table}");
    let known = container.run(&["inspect", "-s"])?.ends_with(0)?;
    let known: serde_json::Value = serde_json::from_slice(&known.stdout)?;
    let number = |name: &str| known[0][name].as_u64().unwrap_or(0);
    ensure!(number("written_bytes") >= 3_000_000, "it wrote more: {known:#}");
    ensure!(number("image_bytes") > 100_000, "its image is larger: {known:#}");
    ensure!(container.inspect()?["written_bytes"].is_null(), "nobody asked for a size");
    container.run(&["inspect", "--type", "image"])?.ends_with(125)?.complains_of(&["image inspect"])?;
    Ok(())
}

fn a_stop_may_have_a_signal_of_its_own(world: &World<'_>) -> Result<()> {
    let script = "trap 'exit 7' USR2; trap 'exit 8' TERM; echo ready; while :; do sleep 0.1; done";
    let container = world.detach_ready(&[], script)?;
    container.run(&["stop", "-t", "60", "-s", "USR2"])?.ends_with(0)?;
    container.ended(7, "exited")?;
    Ok(())
}

fn images_are_filtered_and_formatted(world: &World<'_>) -> Result<()> {
    let ls = |more: &[&str]| world.worker(&[&["image", "ls", "--filter", "reference=busy*"], more].concat());
    ls(&["--format", "{{.Repository}} {{.Tag}}"])?.prints("busybox latest")?;
    let digest = ls(&["-q"])?.ends_with(0)?.out();
    ensure!(digest.starts_with("sha256:") && digest.len() == 71, "no digest: {digest}");
    world.worker(&["image", "inspect", "-f", "{{.digest}}", "busybox"])?.prints(&digest)?;
    world.worker(&["image", "ls", "-q", "--filter", "reference=no-such-*"])?.prints("")?;
    Ok(())
}

fn those_that_are_over_are_pruned(world: &World<'_>) -> Result<()> {
    let label = format!("prune={}", world.name());
    let over = world.detach(&["-l", &label], &["true"])?;
    over.wait()?;
    let running = world.detach_ready(&["-l", &label], "echo ready; sleep 1000")?;
    let filter = format!("label={label}");
    world.worker(&["container", "prune", "--filter", &filter])?.ends_with(1)?.complains_of(&["--force"])?;
    world.worker(&["container", "prune", "-f", "--filter", &filter])?.prints(&over.id)?;
    over.run(&["inspect"])?.ends_with(1)?;
    ensure!(running.inspect()?["status"] == "running", "a container that runs was pruned");
    Ok(())
}

fn a_bad_value_of_a_flag_is_one_sentence(world: &World<'_>) -> Result<()> {
    let name = world.name();
    for flags in [
        &["--memory", "much"][..],
        &["--memory-swap", "x", "-m", "64m"],
        &["--cpus", "many"],
        &["--cpus", "-1"],
        &["--cpuset-cpus", "a-b"],
        &["--cpu-shares", "x"],
        &["--pids-limit", "x"],
        &["--blkio-weight", "9999"],
        &["--device-read-bps", "sda:1m"],
        &["--ulimit", "files=1"],
        &["--ulimit", "nofile=2:1"],
        &["--cap-add", "ROOT"],
        &["--cap-drop", ""],
        &["--security-opt", "seccomp="],
        &["--security-opt", "what=ever"],
        &["--security-opt", "apparmor=mine"],
        &["--tmpfs", "run"],
        &["--tmpfs", "/run:size=x"],
        &["--shm-size", "0"],
        &["--device", "fuse"],
        &["--sysctl", "kernel.hostname=x"],
        &["--add-host", "db"],
        &["--dns", "example.org"],
        &["--label", "=x"],
        &["--stop-signal", "NOPE"],
        &["--stop-timeout", "-1"],
        &["--restart", "sometimes"],
        &["--restart", "on-failure:x"],
        &["--env-file", "/no/such/file"],
        &["--no-such-flag"],
        &["--name", "-x-"],
        &["-w", "relative"],
        &["-v", "/a:/b:what"],
        &["-p", "http"],
        &["--network", "no such network"],
    ] {
        let mut all = vec!["run", "--runtime", world.runtime().as_str()];
        if flags[0] != "--name" {
            all.extend(["--name", &name]);
        }
        all.extend(flags);
        all.extend(["busybox", "true"]);
        let finished = world.worker(&all)?.ends_with(125)?;
        let said = finished.err();
        ensure!(said.lines().count() == 1 && said.starts_with("error: "), "not one sentence\n{finished}");
        ensure!(!said.contains("panicked") && finished.stdout.is_empty(), "more than a sentence\n{finished}");
    }
    // Nothing came to be of any of them.
    world.worker(&["inspect", &name])?.ends_with(1)?;
    Ok(())
}

fn a_flag_of_dockers_is_refused_with_the_alternative(world: &World<'_>) -> Result<()> {
    for (flag, word) in [
        ("--privileged", "--cap-add"),
        ("--gpus=all", "--device"),
        ("--pid=host", "exec"),
        ("--userns=host", "--user"),
        ("--oom-kill-disable", "137"),
    ] {
        let name = flag.split('=').next().unwrap_or(flag);
        world.run(&[flag], &["true"])?.ends_with(125)?.complains_of(&[name, "is not supported", word])?;
    }
    Ok(())
}

fn flags_that_contradict_each_other_are_refused(world: &World<'_>) -> Result<()> {
    world.run(&["--restart", "always"], &["true"])?.ends_with(125)?.complains_of(&["--rm", "--restart"])?;
    world.run(&["--cpus", "1", "--cpu-quota", "5000"], &["true"])?.ends_with(125)?;
    Ok(())
}

fn completion_and_help(world: &World<'_>) -> Result<()> {
    for shell in ["bash", "zsh", "fish"] {
        let finished = world.worker(&["completion", shell])?.ends_with(0)?;
        ensure!(finished.out().contains("cap-add"), "the flags are not in it\n{finished}");
    }
    let finished = world.worker(&["run", "--help"])?.ends_with(0)?;
    ensure!(finished.out().contains("Examples:"), "there are no examples\n{finished}");
    Ok(())
}
