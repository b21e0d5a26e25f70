//! What the kernel tells of changes to its filters, as far as tables of nftables are removed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

use super::message::{attributes, text};
use super::socket::messages;
use crate::{Error, Result};

/// `NFNLGRP_NFTABLES`, as a bit.
const GROUP: u32 = 1 << 6;
/// `NFNL_SUBSYS_NFTABLES` and `NFT_MSG_DELTABLE`.
const TABLE_REMOVED: u16 = 10 << 8 | 2;
const NFTA_TABLE_NAME: u16 = 1;
/// The kernel sends at most a page or two at a time.
const BUFFER: usize = 64 << 10;

/// A socket that is told of changes in the network namespace in which it was opened. It never blocks: wait until it can be
/// read.
#[derive(Debug)]
pub struct FilterEvents {
    fd: OwnedFd,
}

impl FilterEvents {
    /// Opens one for the namespace that this thread is in.
    pub fn open() -> Result<Self> {
        let failed = |e: rustix::io::Errno| Error::new("be told of changes to nftables", e);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))
            .map_err(failed)?;
        bind(&fd, &SocketAddrNetlink::new(0, GROUP)).map_err(failed)?;
        Ok(Self { fd })
    }

    /// The names of tables that were removed, by the next message; none if it is about something else. `WouldBlock` where
    /// there is none; any other error means that some were lost.
    pub fn removed_tables(&self) -> io::Result<Vec<String>> {
        let mut buffer = vec![0; BUFFER];
        let (count, _) = recv(&self.fd, buffer.as_mut_slice(), RecvFlags::empty())?;
        let removed = messages(&buffer[..count]).filter(|piece| piece.kind == TABLE_REMOVED);
        // Attributes follow family, version and resource.
        let names = removed.filter_map(|piece| {
            let (_, name) = attributes(piece.body.get(4..)?).find(|(kind, _)| *kind == NFTA_TABLE_NAME)?;
            Some(text(name))
        });
        Ok(names.collect())
    }
}

impl AsFd for FilterEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for FilterEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::{enter_new_network, on_own_thread};

    #[test]
    fn a_table_that_is_removed_is_told() {
        let nft = |rules: &str| std::process::Command::new("nft").arg(rules).status();
        if !rustix::process::geteuid().is_root() || nft("list tables").is_err() {
            eprintln!("skipped: needs root and nft");
            return;
        }
        let done = on_own_thread(None, || {
            enter_new_network()?;
            let events = FilterEvents::open()?;
            assert!(nft("add table inet one; add table bridge two; flush ruleset").unwrap().success());
            let mut removed = Vec::new();
            loop {
                match events.removed_tables() {
                    Ok(names) => removed.extend(names),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
            removed.sort();
            assert_eq!(removed, ["one", "two"]);
            Ok(())
        });
        done.unwrap();
    }
}
