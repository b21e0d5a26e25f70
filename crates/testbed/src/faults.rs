//! What survives when a process dies that should not, and what happens where a runtime is missing.
//!
//! Every fault has a site of its own, and ends by counting what is left on the machine.

mod balloon;
mod client;
mod confined;
mod counters;
mod cycles;
mod events;
mod fallback;
mod floods;
mod initramfs;
mod kernel;
mod lender;
mod missing_kernel;
mod source;
mod supervisor;
mod traces;
mod vmm;
mod worker;

use std::time::Duration;

use anyhow::{Result, ensure};
use beta9_types::RuntimeKind;

use crate::site::Site;
use crate::stories::Tier;

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
    /// A program that it cannot do without.
    pub program: Option<&'static str>,
    /// Whether it is worth its time on every change.
    pub tier: Tier,
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
            program: None,
            tier: Tier::Core,
            run: Box::new(move || worker::is_killed(&mixed)),
        },
        on_runc("a_second_worker_for_one_root_is_refused", worker::is_doubled),
        on_runc("a_pool_falls_back_aloud", fallback::is_allowed),
        on_runc("a_pool_that_may_not_fall_back_is_not_ready", fallback::is_forbidden),
        on_runc("a_runtime_asked_for_never_falls_back", fallback::is_never_for_a_request),
        Fault {
            tier: Tier::Full,
            ..on_runc("networks_that_come_and_go_leave_nothing", cycles::leave_nothing)
        },
        Fault {
            program: Some("firecracker"),
            ..on_runc("a_jailer_that_is_required_and_missing_is_told", confined::without_a_jailer)
        },
    ];
    for runtime in runtimes {
        let on = |name: &str, run: fn(RuntimeKind) -> Result<()>| {
            let runtime = *runtime;
            Fault {
                name: format!("{runtime}::{name}"),
                needs: vec![runtime],
                program: None,
                tier: Tier::Core,
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
        all.push(on("a_mount_source_that_hangs_holds_up_nobody", source::hangs));
        if runtime.is_microvm() {
            all.push(on("a_killed_vmm_is_reported", vmm::is_killed));
            all.push(on("a_copy_of_one_that_is_over_may_be_killed", lender::is_killed));
            all.push(on("a_vmm_sees_nothing_of_the_host", confined::sees_nothing));
            all.push(on("kernels_that_are_none_are_told_apart", kernel::is_none));
            all.push(on("a_missing_kernel_is_installed_and_boots", missing_kernel::is_missing));
            let slow =
                |name: &str, run: fn(RuntimeKind) -> Result<()>| Fault { tier: Tier::Full, ..on(name, run) };
            all.push(slow(
                "a_vmm_killed_at_each_moment_of_the_start_is_reported",
                vmm::is_killed_at_the_start,
            ));
            all.push(slow("a_vmm_killed_while_stopping_is_reported", vmm::is_killed_while_stopping));
            all.push(slow("a_vmm_that_hangs_is_ended", vmm::is_stopped_for_good));
            all.push(slow("a_vmm_that_lost_time_goes_on", vmm::is_stopped_for_a_while));
            all.push(slow("a_vmm_over_its_memory_is_told_apart", vmm::is_out_of_memory));
            all.push(slow("a_supervisor_that_does_not_read_blocks_nobody_for_good", floods::meets_no_reader));
            all.push(slow("a_guest_that_panics_is_reported_with_its_last_words", kernel::panics));
            all.push(slow("a_running_guest_that_panics_is_reported", kernel::panics_later));
            all.push(slow("a_guest_that_hangs_is_ended", kernel::hangs));
            all.push(slow("a_guest_that_floods_its_console_is_bounded", floods::of_the_console));
            all.push(slow("a_guest_that_floods_its_vsock_is_bounded", floods::of_the_vsock));
            all.push(slow("a_root_file_system_that_is_none_fails_the_start", kernel::has_no_root));
            all.push(slow("a_full_disk_is_the_guests_error", floods::of_the_disk));
            all.push(slow("memory_is_taken_back_and_given_again", balloon::is_filled));
            all.push(slow("a_root_of_any_length_works", confined::at_the_end_of_a_long_path));
            all.push(slow("a_kvm_that_is_missing_is_told", kernel::has_no_kvm));
            all.push(slow("a_kvm_that_boots_nothing_is_told", kernel::has_a_useless_kvm));
        }
        if *runtime == RuntimeKind::Firecracker {
            let on = on("its_counters_are_served", counters::are_served);
            all.push(Fault { tier: Tier::Full, ..on });
        }
        if *runtime == RuntimeKind::Qemu {
            let on = on("a_killed_vsock_device_is_reported", vmm::loses_its_vsock);
            all.push(Fault { tier: Tier::Full, ..on });
        }
    }
    all
}

fn on_runc(name: &str, run: fn() -> Result<()>) -> Fault {
    let needs = vec![RuntimeKind::Runc];
    Fault { name: name.to_owned(), needs, program: None, tier: Tier::Core, run: Box::new(run) }
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
