//! The interface that a VM's engine opens: in the container's namespace, wired to the container's own interface.
//!
//! Whatever arrives at the one leaves by the other, so the guest has the container's addresses, whoever gave them to the
//! namespace. The namespace's own stack sees none of it.

use std::os::fd::AsFd;

use beta9_sys::tap::create_persistent;
use beta9_types::ContainerId;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::namespace::{Namespace, inside};

/// The name of a container's TAP device, and of the host's end of its veth pair beside its own.
pub(crate) fn name_of(id: &ContainerId) -> String {
    format!("b9fc_{}", id.last8())
}

/// Makes the device and wires it. On failure nothing of it is left.
pub(crate) fn add(namespace: &mut Namespace, name: &str, interface: &str, mtu: u32) -> Result<()> {
    inside(namespace.fd.as_fd(), || create_persistent(name))?;
    let wired = wire(namespace, name, interface, mtu);
    if wired.is_err() {
        remove(namespace, name, interface);
    }
    wired
}

fn wire(namespace: &mut Namespace, name: &str, interface: &str, mtu: u32) -> Result<()> {
    let missing =
        |name: &str| Error::new(ErrorKind::Failed, format!("the namespace has no interface {name}"));
    let doing = || format!("wire {name} to {interface} in the container's network namespace");
    let socket = &mut namespace.socket;
    let tap = socket.link(name).while_doing(doing)?.ok_or_else(|| missing(name))?.index;
    let outer = socket.link(interface).while_doing(doing)?.ok_or_else(|| missing(interface))?.index;
    socket.set_mtu(tap, mtu).while_doing(doing)?;
    socket.redirect(tap, outer).while_doing(doing)?;
    socket.redirect(outer, tap).while_doing(doing)?;
    socket.set_up(outer).while_doing(doing)?;
    socket.set_up(tap).while_doing(doing)
}

/// Takes both away. What is missing is fine.
pub(crate) fn remove(namespace: &mut Namespace, name: &str, interface: &str) {
    let socket = &mut namespace.socket;
    let unwired = match socket.link(interface) {
        Ok(Some(link)) => socket.stop_redirect(link.index),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    for failed in [unwired, socket.remove_link(name)].into_iter().filter_map(std::result::Result::err) {
        let error: &dyn std::error::Error = &failed;
        tracing::warn!(error, interface, "a vm's interface could not be taken away");
    }
}
