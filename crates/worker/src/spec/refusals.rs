//! What one runtime cannot do and others can, by the name of the flag.

use beta9_types::{ContainerRequest, Propagation, RuntimeKind, SeccompChoice};

use crate::error::{Error, ErrorKind, Result};

/// Refuses what `runtime` would silently leave out.
pub(super) fn check(runtime: RuntimeKind, request: &ContainerRequest) -> Result<()> {
    let options = &request.options;
    let propagates = request.mounts.iter().any(|mount| mount.propagation != Propagation::Private);
    let is_shared = request.mounts.iter().any(|mount| mount.propagation == Propagation::Shared);
    let of_runc = [(
        is_shared,
        "bind-propagation=rshared",
        "what a container mounts stays in a namespace of its own; use rslave for what the host mounts",
    )];
    let of_vms = [(propagates, "bind-propagation", "its kernel is not the host's; use rprivate")];
    let of_gvisor = [
        (propagates, "bind-propagation", "its kernel is not the host's; use rprivate"),
        (
            matches!(options.process.seccomp, SeccompChoice::Profile(_)),
            "--security-opt seccomp=FILE",
            "its own kernel is the filter",
        ),
        (
            options.limits.pids.is_some(),
            "--pids-limit",
            "it would limit the sandbox's threads; use --ulimit nproc=",
        ),
        (!options.files.devices.is_empty(), "--device", "its kernel drives no devices of the host"),
        (
            !options.files.sysctls.is_empty(),
            "--sysctl",
            "its kernel's settings cannot be changed from outside",
        ),
    ];
    let refused: &[(bool, &str, &str)] = match runtime {
        RuntimeKind::Runc => &of_runc,
        RuntimeKind::Firecracker | RuntimeKind::Qemu => &of_vms,
        RuntimeKind::Gvisor => &of_gvisor,
    };
    match refused.iter().find(|(asked, ..)| *asked) {
        Some((_, flag, why)) => {
            let text = format!(
                "{runtime} does not support {flag}: {why}; leave it out, or choose another --runtime"
            );
            Err(Error::new(ErrorKind::Invalid, text))
        }
        None => Ok(()),
    }
}
