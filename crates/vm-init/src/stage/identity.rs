//! As whom a container's process runs, and what it may do.

use beta9_wire::{Capabilities, Identity, Process};
use rustix::fs::fchown;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::failure::{Context, Failure, Result};

/// Takes on the identity and the rights of the container's process. The stage has one thread, so the calls that
/// change a thread change the process.
pub(super) fn assume(process: &Process) -> Result<()> {
    let Identity { uid, gid, groups, .. } = &process.identity;
    let (uid, gid) = (checked_uid(*uid)?, checked_gid(*gid)?);
    let groups = groups.iter().map(|group| checked_gid(*group)).collect::<Result<Vec<_>>>()?;
    // Its streams are pipes, which a process opens again by /dev/stdout only if they are its own.
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for (index, stream) in streams.into_iter().enumerate() {
        let null = index == 0 && !process.stdin && process.terminal.is_none();
        if !null {
            fchown(stream, Some(uid), None).context(|| format!("give descriptor {index} to the user"))?;
        }
    }
    // Without new privileges anybody may; else only who still has the right to.
    if !process.no_new_privileges {
        filter(process)?;
    }
    drop_bounding(process.capabilities.bounding)?;
    set_keep_capabilities(true).context(|| "keep capabilities over the change of user")?;
    set_thread_groups(&groups).context(|| "set the supplementary groups")?;
    set_thread_res_gid(gid, gid, gid).context(|| "set the group")?;
    set_thread_res_uid(uid, uid, uid).context(|| "set the user")?;
    set_sets(&process.capabilities)?;
    set_keep_capabilities(false).context(|| "forget capabilities at the next change of user")?;
    if process.no_new_privileges {
        set_no_new_privs(true).context(|| "give up new privileges")?;
        filter(process)?;
    }
    Ok(())
}

/// From here on the filters have a say in every call of this process.
fn filter(process: &Process) -> Result<()> {
    process.seccomp.iter().try_for_each(|program| {
        beta9_sys::seccomp::install(program).context(|| "install the filter of system calls")
    })
}

/// All ones means "leave as it is" to the kernel.
fn checked_uid(number: u32) -> Result<Uid> {
    if number == u32::MAX { Err(Failure::refused("user id 4294967295")) } else { Ok(Uid::from_raw(number)) }
}

fn checked_gid(number: u32) -> Result<Gid> {
    if number == u32::MAX { Err(Failure::refused("group id 4294967295")) } else { Ok(Gid::from_raw(number)) }
}

fn drop_bounding(keep: u64) -> Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            // Past the last one that this kernel has.
            Err(Errno::INVAL) => break,
            Ok(true) if keep & (1 << number) == 0 => remove_capability_from_bounding_set(capability)
                .context(|| format!("drop capability {number}"))?,
            Ok(_) => {}
            Err(error) => return Err(error).context(|| format!("look at capability {number}")),
        }
    }
    Ok(())
}

fn set_sets(wanted: &Capabilities) -> Result<()> {
    let sets = CapabilitySets {
        effective: CapabilitySet::from_bits_retain(wanted.effective),
        permitted: CapabilitySet::from_bits_retain(wanted.permitted),
        inheritable: CapabilitySet::from_bits_retain(wanted.inheritable),
    };
    set_capabilities(None, sets).context(|| "set the capabilities")?;
    clear_ambient_capability_set().context(|| "clear the ambient capabilities")?;
    for number in (0..u64::BITS).filter(|number| wanted.ambient & (1 << number) != 0) {
        configure_capability_in_ambient_set(CapabilitySet::from_bits_retain(1 << number), true)
            .context(|| format!("raise ambient capability {number}"))?;
    }
    Ok(())
}
