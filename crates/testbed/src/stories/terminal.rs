//! Terminals: of the container's process, of more processes, and the user's own.

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::stories;
use crate::{Screen, World};

stories![
    Core a_terminal_is_one_and_has_its_users_size,
    Full a_terminal_follows_its_users_size,
    Full ctrl_c_interrupts_and_does_not_end_the_shell,
    Core a_user_leaves_a_terminal_and_comes_back,
    Full other_keys_leave_if_asked_to,
    Full a_users_terminal_is_given_back_when_its_client_is_told_to_end,
    Full an_exec_has_a_terminal_of_its_own,
    Full a_terminal_without_stdin_shows_and_takes_nothing,
    Full a_terminal_needs_one_to_type_at,
    Full a_terminals_output_is_logged,
    Full two_users_see_the_same_terminal,
];

/// A shell that says who it is in a way that its echo does not.
const SHELL: [&str; 1] = ["sh"];

fn a_terminal_is_one_and_has_its_users_size(world: &World<'_>) -> Result<()> {
    let mut screen = Screen::open(world.invocation(&["-it"], &SHELL), 33, 99)?;
    screen.types("test -t 0 && test -t 1 && test -t 2 && echo all-$((40+2))\r")?;
    screen.shows("all-42")?;
    ensure!(screen.is_raw()?, "keys do not go to the container as they are");
    screen.types("stty size; echo $TERM; test -w /dev/tty && echo tty-$((40+3))\r")?;
    screen.shows("33 99\r\nxterm\r\ntty-43")?;
    screen.types("exit 9\r")?;
    let code = screen.ends()?;
    ensure!(code == 9, "expected exit code 9, got {code}: {:?}", screen.text());
    ensure!(screen.is_restored()?, "the user's terminal was not given back");
    Ok(())
}

fn a_terminal_follows_its_users_size(world: &World<'_>) -> Result<()> {
    let script = "trap 'stty size' WINCH; echo armed; while :; do sleep 0.1; done";
    let mut screen = Screen::open(world.invocation(&["-it"], &["sh", "-c", script]), 24, 80)?;
    screen.shows("armed")?;
    screen.resize(40, 120)?;
    screen.shows("40 120")?;
    screen.types("\x03")?;
    let code = screen.ends()?;
    ensure!(code == 130, "expected exit code 130, got {code}");
    Ok(())
}

fn ctrl_c_interrupts_and_does_not_end_the_shell(world: &World<'_>) -> Result<()> {
    let mut screen = Screen::open(world.invocation(&["-it"], &SHELL), 24, 80)?;
    // What says that it is armed is what the key is for: it has the terminal by then.
    screen.types("sh -c 'echo armed-$((1+1)); exec sleep 1000'; echo code-$?\r")?;
    screen.shows("armed-2")?;
    screen.types("\x03")?;
    screen.types("echo after-$((2+1))\r")?;
    screen.shows("after-3")?;
    screen.types("exit\r")?;
    screen.ends()?;
    ensure!(screen.is_restored()?, "the user's terminal was not given back");
    Ok(())
}

fn a_user_leaves_a_terminal_and_comes_back(world: &World<'_>) -> Result<()> {
    let (container, invocation) = world.prepared(&["-it"], &SHELL);
    let mut screen = Screen::open(invocation, 24, 80)?;
    screen.types("mark=left-$((40+4)); echo set-$((1+4))\r")?;
    screen.shows("set-5")?;
    screen.types("\x10\x11")?;
    let code = screen.ends()?;
    ensure!(code == 0, "expected exit code 0, got {code}: {:?}", screen.text());
    ensure!(screen.is_restored()?, "the user's terminal was not given back");
    ensure!(container.inspect()?["status"] == "running", "the container went with its user");

    let mut again = Screen::open(container.command(&["attach"]), 50, 100)?;
    // Nobody types before the screen has been drawn again, which a shell may take for a reason to forget the line.
    again.shows("# ")?;
    again.types("echo $mark; stty size\r")?;
    again.shows("left-44\r\n50 100")?;
    again.types("exit 6\r")?;
    let code = again.ends()?;
    ensure!(code == 6, "expected exit code 6, got {code}: {:?}", again.text());
    ensure!(again.is_restored()?, "the user's terminal was not given back");
    Ok(())
}

fn other_keys_leave_if_asked_to(world: &World<'_>) -> Result<()> {
    let (container, invocation) = world.prepared(&["-it", "--detach-keys", "ctrl-a,d"], &SHELL);
    let mut screen = Screen::open(invocation, 24, 80)?;
    screen.types("echo \x10\x11up-$((1+4))\r")?;
    screen.shows("up-5")?;
    screen.types("\x01d")?;
    ensure!(screen.ends()? == 0, "it did not leave: {:?}", screen.text());
    ensure!(container.inspect()?["status"] == "running", "the container went with its user");
    Ok(())
}

fn a_users_terminal_is_given_back_when_its_client_is_told_to_end(world: &World<'_>) -> Result<()> {
    let (container, invocation) = world.prepared(&["-it"], &SHELL);
    let mut screen = Screen::open(invocation, 24, 80)?;
    screen.types("echo up-$((1+4))\r")?;
    screen.shows("up-5")?;
    ensure!(screen.is_raw()?, "keys do not go to the container as they are");
    screen.signal(Signal::TERM)?;
    let code = screen.ends()?;
    ensure!(code == 143, "expected exit code 143, got {code}");
    ensure!(screen.is_restored()?, "the user's terminal was not given back");
    ensure!(container.inspect()?["status"] == "running", "the container went with its user");
    Ok(())
}

fn an_exec_has_a_terminal_of_its_own(world: &World<'_>) -> Result<()> {
    let container = world.detach_ready(&[], "echo ready; while :; do sleep 1; done")?;
    let mut screen = Screen::open(container.exec(&["-it"], &SHELL), 31, 91)?;
    screen.types("test -t 0 && stty size; echo $TERM\r")?;
    screen.shows("31 91\r\nxterm")?;
    screen.resize(41, 121)?;
    // The size follows by itself, sooner or later.
    screen.types("until stty size | grep -qx '41 121'; do sleep 0.1; done; echo sized-$((1+1))\r")?;
    screen.shows("sized-2")?;
    screen.types("sh -c 'echo napping-$((1+1)); exec sleep 1000'\r")?;
    screen.shows("napping-2")?;
    screen.types("\x03")?;
    screen.types("exit 8\r")?;
    let code = screen.ends()?;
    ensure!(code == 8, "expected exit code 8, got {code}: {:?}", screen.text());
    ensure!(screen.is_restored()?, "the user's terminal was not given back");

    let mut screen = Screen::open(container.exec(&["-it"], &SHELL), 24, 80)?;
    screen.types("echo up-$((1+4))\r")?;
    screen.shows("up-5")?;
    screen.types("\x10\x11")?;
    ensure!(screen.ends()? == 0, "it did not leave: {:?}", screen.text());
    Ok(())
}

fn a_terminal_without_stdin_shows_and_takes_nothing(world: &World<'_>) -> Result<()> {
    let script = "test -t 1 && echo one; test -t 0 && echo two; echo err >&2";
    let finished = world.run(&["-t"], &["sh", "-c", script])?.ends_with(0)?;
    ensure!(finished.stdout == b"one\r\ntwo\r\nerr\r\n", "expected three lines\n{finished}");
    ensure!(finished.stderr.is_empty(), "a terminal is one stream\n{finished}");
    Ok(())
}

fn a_terminal_needs_one_to_type_at(world: &World<'_>) -> Result<()> {
    world
        .invocation(&["-i", "-t"], &["true"])
        .input("x")
        .finish()?
        .ends_with(125)?
        .complains_of(&["-t with -i needs a terminal"])?;
    Ok(())
}

fn a_terminals_output_is_logged(world: &World<'_>) -> Result<()> {
    let container = world.detach(&["-t"], &["sh", "-c", "echo one; echo two >&2; exit 3"])?;
    ensure!(container.wait()? == 3, "wait did not print 3");
    let finished = container.run(&["logs"])?.ends_with(0)?;
    ensure!(finished.stdout == b"one\r\ntwo\r\n", "expected two lines\n{finished}");
    Ok(())
}

fn two_users_see_the_same_terminal(world: &World<'_>) -> Result<()> {
    let container = world.detach(&["-it"], &SHELL)?;
    let mut first = Screen::open(container.command(&["attach"]), 24, 80)?;
    first.types("echo first-$((1+4))\r")?;
    first.shows("first-5")?;
    let mut second = Screen::open(container.command(&["attach"]), 24, 80)?;
    second.types("echo second-$((1+4))\r")?;
    second.shows("second-5")?;
    first.shows("second-5")?;
    second.types("\x10\x11")?;
    ensure!(second.ends()? == 0, "it did not leave");
    first.types("exit 4\r")?;
    let code = first.ends()?;
    ensure!(code == 4, "expected exit code 4, got {code}: {:?}", first.text());
    Ok(())
}
