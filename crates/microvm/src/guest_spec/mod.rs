//! From an OCI runtime spec to what the guest needs.
//!
//! Every choice is made here: names become numbers, options become flags, and what a VM's guest does not do is
//! refused by its name in the spec, so that nothing is silently weaker than asked. Two things are dropped on
//! purpose, because the VM's boundary replaces them: device cgroup rules (every device in the VM is the VM's own)
//! and what decides among competitors, which the VM's own cgroup on the host is for.

mod mounts;
mod process;
mod refusals;
mod resources;
mod seccomp;
pub(crate) use seccomp::system_call_number;

use std::path::Path;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::{Attachment, BindMount, Gateway};
use beta9_wire::{ContainerSpec, GuestDevice, GuestNetwork, GuestRoute};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Spec};

pub(crate) use process::translate as translate_process;
pub(crate) use refusals::{refuse_unsupported, refuse_unsupported_process};
pub(crate) use resources::{cpu_limit, cpu_set, memory_limit};

/// What tells that the container asked for an init.
const INIT_ANNOTATION: &str = "dev.beta9.init";

/// Memory devices, a terminal's alias and FUSE.
const OF_EVERY_KERNEL: [(u32, u32); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (10, 229)];

/// Whether somebody may write to the container's stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// It is `/dev/null`.
    Closed,
    /// It is a stream.
    Open,
}

/// The number of a system call; `None` where this architecture has none of that name.
pub(crate) fn call_number(name: &str) -> Option<i64> {
    seccomp::numbers::number(name)
}

/// Translates a spec that [`refuse_unsupported`] let pass. Bind mounts must be among `binds`, whose positions are
/// the indexes of the exports.
///
/// `own` is the directory of the container's own small files, which are mounts, too.
pub(crate) fn translate(spec: &Spec, binds: &[BindMount], own: &Path, stdin: Stdin) -> Result<ContainerSpec> {
    let process = spec.process().as_ref().ok_or_else(|| unsupported("a spec without process"))?;
    let linux = spec.linux().as_ref();
    let paths = |paths: Option<&Option<Vec<String>>>| -> Result<Vec<String>> {
        paths.and_then(Option::as_ref).into_iter().flatten().map(|path| absolute(Path::new(path))).collect()
    };
    let mut process = process::translate(process, stdin)?;
    if let Some(filter) = linux.and_then(|linux| linux.seccomp().as_ref()) {
        process.seccomp = seccomp::compile(filter)?;
    }
    process.init = spec.annotations().as_ref().is_some_and(|notes| notes.contains_key(INIT_ANNOTATION));
    Ok(ContainerSpec {
        process,
        hostname: spec.hostname().clone().unwrap_or_default(),
        mounts: mounts::translate(spec.mounts().as_deref().unwrap_or_default(), binds, own)?,
        masked_paths: paths(linux.map(|linux| linux.masked_paths()))?,
        readonly_paths: paths(linux.map(|linux| linux.readonly_paths()))?,
        readonly_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        resources: resources::translate(spec)?,
        sysctls: sysctls(spec)?,
        devices: devices(spec)?,
        network: None,
    })
}

/// What the guest is told about its interface.
pub(crate) fn translate_network(attachment: &Attachment) -> GuestNetwork {
    let route =
        |way: &Gateway| GuestRoute { destination: way.destination, prefix: way.prefix, gateway: way.gateway };
    GuestNetwork {
        mac: attachment.mac.0,
        mtu: attachment.mtu,
        addresses: attachment.addresses.clone(),
        routes: attachment.routes.iter().map(route).collect(),
    }
}

/// Nodes of devices that the guest's kernel has, too.
fn devices(spec: &Spec) -> Result<Vec<GuestDevice>> {
    let given = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
    let number = |number: i64| u32::try_from(number).map_err(|_| invalid("a device number is negative"));
    let device = |device: &LinuxDevice| {
        let path = absolute(device.path())?;
        let numbers = (number(device.major())?, number(device.minor())?);
        let is_there = device.typ() == LinuxDeviceType::C && OF_EVERY_KERNEL.contains(&numbers);
        if !is_there {
            return Err(unsupported(&format!("linux.devices {path}, a device of the host")));
        }
        let mode = device.file_mode().unwrap_or(0o666) & 0o777;
        let owner = (device.uid().unwrap_or(0), device.gid().unwrap_or(0));
        Ok(GuestDevice { path, number: numbers, mode, owner })
    };
    given.into_iter().flatten().map(device).collect()
}

/// Kernel settings in the order of their names. Those of the container's namespaces and of its VM's kernel alone;
/// the same ones as runc allows.
fn sysctls(spec: &Spec) -> Result<Vec<(String, String)>> {
    let allowed = |name: &str| {
        let namespaced = name.starts_with("net.") || name.starts_with("fs.mqueue.");
        let ipc = name.starts_with("kernel.shm") || name.starts_with("kernel.msg") || name == "kernel.sem";
        let plain = name.split('.').all(|part| {
            !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-'))
        });
        (namespaced || ipc) && plain
    };
    let given = spec.linux().as_ref().and_then(|linux| linux.sysctl().as_ref());
    let mut sysctls: Vec<_> =
        given.into_iter().flatten().map(|(name, value)| (name.clone(), value.clone())).collect();
    sysctls.sort();
    if let Some((name, _)) = sysctls.iter().find(|(name, value)| !allowed(name) || value.contains('\0')) {
        return Err(unsupported(&format!("linux.sysctl {name}")));
    }
    Ok(sysctls)
}

/// A path in the container as the guest takes it.
fn absolute(path: &Path) -> Result<String> {
    let bad = |rule| invalid(&format!("path {} in the spec {rule}", path.display()));
    let text = path.to_str().ok_or_else(|| bad("is not UTF-8"))?;
    if !text.starts_with('/') {
        return Err(bad("is not absolute"));
    }
    if text.split('/').any(|part| part == "..") || text.contains('\0') || text.len() >= 4096 {
        return Err(bad("contains .. or a NUL, or is too long"));
    }
    Ok(text.to_owned())
}

fn unsupported(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("a microVM does not support {what}"))
}

fn invalid(text: &str) -> Error {
    Error::new(ErrorKind::Failed, text.to_owned())
}

#[cfg(test)]
mod tests;
