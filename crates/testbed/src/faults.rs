//! What survives when a process dies that should not, and what happens where a runtime is missing.
//!
//! Every fault has a site of its own, and ends by counting what is left on the machine.

mod client;
mod engine;
mod events;
mod fallback;
mod lender;
mod supervisor;
mod traces;
mod worker;

use std::time::Duration;

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;

use crate::site::Site;

/// How long the machine may take to let go of what containers held.
const SETTLE: Duration = Duration::from_secs(20);

/// Ends with its number when it is told to by SIGUSR1, and prints `ready` when it can be.
const OBEDIENT: &str = "trap 'exit '$CODE USR1; echo ready; while true; do sleep 0.1; done";

/// One fault.
pub struct Fault {
    /// What is shown.
    pub name: String,
    /// Runtimes that it cannot do without.
    pub needs: Vec<RuntimeKind>,
    /// What to run.
    pub run: Box<dyn FnOnce() -> Result<()> + Send>,
}

/// Every fault: those that are about a runtime once for each of `runtimes`, of which `available` work here.
pub fn all(runtimes: &[RuntimeKind], available: &[RuntimeKind]) -> Vec<Fault> {
    let mixed = available.to_vec();
    let mut all = vec![
        Fault {
            name: "a_killed_worker_is_replaced_and_no_exit_code_is_lost".to_owned(),
            needs: vec![RuntimeKind::Runc],
            run: Box::new(move || worker::is_killed(&mixed)),
        },
        on_runc("a_second_worker_for_one_root_is_refused", worker::is_doubled),
        on_runc("a_pool_falls_back_aloud", fallback::is_allowed),
        on_runc("a_pool_that_may_not_fall_back_is_not_ready", fallback::is_forbidden),
        on_runc("a_runtime_asked_for_never_falls_back", fallback::is_never_for_a_request),
    ];
    for runtime in runtimes {
        let on = |name: &str, run: fn(RuntimeKind) -> Result<()>| {
            let runtime = *runtime;
            Fault {
                name: format!("{runtime}::{name}"),
                needs: vec![runtime],
                run: Box::new(move || run(runtime)),
            }
        };
        all.push(on("what_happens_is_told", events::are_told));
        all.push(on("a_killed_client_leaves_its_container", client::is_killed));
        all.push(on(
            "a_supervisor_killed_at_each_step_of_the_start_is_reported",
            supervisor::is_killed_at_the_start,
        ));
        all.push(on(
            "a_supervisor_killed_while_cleaning_up_keeps_the_verdict",
            supervisor::is_killed_while_cleaning_up,
        ));
        all.push(on("a_supervisor_killed_while_running_is_reported", supervisor::is_killed_while_running));
        all.push(on("a_supervisor_killed_while_stopping_is_reported", supervisor::is_killed_while_stopping));
        if runtime.is_microvm() {
            all.push(on("a_killed_vmm_is_reported", engine::is_killed));
            all.push(on("a_copy_of_one_that_is_over_may_be_killed", lender::is_killed));
        }
    }
    all
}

fn on_runc(name: &str, run: fn() -> Result<()>) -> Fault {
    Fault { name: name.to_owned(), needs: vec![RuntimeKind::Runc], run: Box::new(run) }
}

/// Runs `fault` at a site of its own, which then has to be as clean as before.
fn at(site: Site, fault: impl FnOnce(&Site) -> Result<()>) -> Result<()> {
    let watch = site.watch()?;
    let outcome = fault(&site).and_then(|()| {
        let leaks = watch.settle(SETTLE)?;
        ensure!(leaks.is_empty(), "something is left on the machine:\n{leaks}");
        Ok(())
    });
    if outcome.is_err() {
        site.keep();
    }
    outcome
}
