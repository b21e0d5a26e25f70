//! What a shell user expects of an exit code.

use anyhow::{Result, ensure};

use super::stories;
use crate::World;

stories![
    Core exit_code_of_the_command,
    Core a_command_that_does_not_exist_is_127,
    Full a_file_that_cannot_be_executed_is_126,
    Full a_directory_as_the_command_is_126,
    Full a_failed_start_leaves_a_record,
    Full a_child_killed_by_a_signal_is_the_shells_to_report,
    Core killed_from_outside_is_137,
    Full background_processes_end_with_the_command,
];

fn exit_code_of_the_command(world: &World<'_>) -> Result<()> {
    let mut containers = Vec::new();
    for code in [0, 1, 255] {
        containers.push((code, world.detach(&[], &["sh", "-c", &format!("exit {code}")])?));
    }
    world.shell("exit 7")?.ends_with(7)?;
    for (code, container) in &containers {
        ensure!(container.wait()? == *code, "wait on {} did not print {code}", container.name);
        container.ended(*code, "exited")?;
    }
    Ok(())
}

fn a_command_that_does_not_exist_is_127(world: &World<'_>) -> Result<()> {
    world.run(&[], &["no-such-program"])?.ends_with(127)?.complains_of(&["no-such-program"])?;
    Ok(())
}

fn a_file_that_cannot_be_executed_is_126(world: &World<'_>) -> Result<()> {
    world.run(&[], &["/etc/passwd"])?.ends_with(126)?.complains_of(&["/etc/passwd"])?;
    Ok(())
}

fn a_directory_as_the_command_is_126(world: &World<'_>) -> Result<()> {
    world.run(&[], &["/etc"])?.ends_with(126)?.complains_of(&["/etc"])?;
    Ok(())
}

fn a_failed_start_leaves_a_record(world: &World<'_>) -> Result<()> {
    let (container, finished) = world.run_kept(&[], &["/no/such/program"])?;
    finished.ends_with(127)?;
    let known = container.ended(127, "start_failed")?;
    let message = known["exit"]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("/no/such/program"), "the record does not say why: {known:#}");
    container.run(&["rm"])?.ends_with(0)?;
    container.run(&["inspect"])?.ends_with(1)?;
    Ok(())
}

fn a_child_killed_by_a_signal_is_the_shells_to_report(world: &World<'_>) -> Result<()> {
    world.shell("sh -c 'kill -TERM $$'; echo $?; sh -c 'kill -KILL $$'; exit $?")?.ends_with(137).and_then(
        |finished| {
            ensure!(finished.out().contains("143"), "expected 143 on stdout\n{finished}");
            Ok(())
        },
    )
}

fn killed_from_outside_is_137(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "echo ready; sleep 1000")?;
    container.run(&["kill"])?.ends_with(0)?;
    ensure!(container.wait()? == 137, "wait did not print 137");
    container.ended(137, "signaled")?;
    Ok(())
}

fn background_processes_end_with_the_command(world: &World<'_>) -> Result<()> {
    // They hold the container's stdout, which must not hold up its end.
    world.shell("sleep 1000 & (sleep 1000 &); echo started; exit 3")?.ends_with(3)?;
    Ok(())
}
