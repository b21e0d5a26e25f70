//! From an OCI runtime spec to what the guest needs.
//!
//! Every choice is made here: names become numbers, options become flags, and what a VM's guest does not do is
//! refused by its name in the spec, so that nothing is silently weaker than asked. Two things are dropped on
//! purpose, because the VM's boundary replaces them: device cgroup rules (every device in the VM is the VM's own)
//! and CPU shares (nobody competes inside).

mod mounts;
mod process;
mod refusals;
mod resources;

use std::path::Path;

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::BindMount;
use beta9_wire::ContainerSpec;
use oci_spec::runtime::Spec;

pub(crate) use process::translate as translate_process;
pub(crate) use refusals::{refuse_unsupported, refuse_unsupported_process};
pub(crate) use resources::{cpu_limit, memory_limit};

/// Whether somebody may write to the container's stdin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdin {
    /// It is `/dev/null`.
    Closed,
    /// It is a stream.
    Open,
}

/// Translates a spec that [`refuse_unsupported`] let pass. Bind mounts must be among `binds`, whose positions are
/// the indexes of the exports.
pub(crate) fn translate(spec: &Spec, binds: &[BindMount], stdin: Stdin) -> Result<ContainerSpec> {
    let process = spec.process().as_ref().ok_or_else(|| unsupported("a spec without process"))?;
    let linux = spec.linux().as_ref();
    let paths = |paths: Option<&Option<Vec<String>>>| -> Result<Vec<String>> {
        paths.and_then(Option::as_ref).into_iter().flatten().map(|path| absolute(Path::new(path))).collect()
    };
    Ok(ContainerSpec {
        process: process::translate(process, stdin)?,
        hostname: spec.hostname().clone().unwrap_or_default(),
        mounts: mounts::translate(spec.mounts().as_deref().unwrap_or_default(), binds)?,
        masked_paths: paths(linux.map(|linux| linux.masked_paths()))?,
        readonly_paths: paths(linux.map(|linux| linux.readonly_paths()))?,
        readonly_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        resources: resources::translate(spec)?,
        sysctls: sysctls(spec)?,
    })
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
