//! Queueing disciplines: packets that arrive at one interface leave by another, and rates are limited.

use super::socket::{CREATE, REPLACE};
use super::{Attributes, Message, Socket, native};
use crate::Result;

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_NEWTFILTER: u16 = 44;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;

/// `TC_H_ROOT` and `TC_H_INGRESS`.
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;
/// `ffff:0`, which the ingress discipline always has.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const PRIORITY: u32 = 1;
const TERMINAL: u8 = 1;
/// `TC_ACT_STOLEN` and `TCA_EGRESS_REDIR`.
const STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;

/// How long a packet may wait for its turn before it is dropped, in milliseconds.
const LATENCY_MS: u64 = 50;

/// `struct tcmsg`.
fn header(link: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut header = [0; 20];
    for (at, value) in [(4, link), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&native(value));
    }
    header
}

impl Socket {
    /// Whatever arrives at interface `from` leaves by interface `to`, and nothing of it reaches this namespace's own stack.
    pub fn redirect(&mut self, from: u32, to: u32) -> Result<()> {
        let discipline = Attributes::new().text(TCA_KIND, "ingress");
        let message =
            Message::new(RTM_NEWQDISC, CREATE, &header(from, INGRESS_HANDLE, INGRESS, 0), discipline);
        self.request("catch what arrives at an interface", &message)?;

        // One key that looks at nothing fits every packet (`struct tc_u32_sel` and `struct tc_u32_key`).
        let mut selector = [0; 32];
        selector[0] = TERMINAL;
        selector[2] = 1;
        // `struct tc_mirred`: index, capabilities, verdict, two counts, action, interface.
        let mut target = [0; 28];
        target[8..12].copy_from_slice(&native(STOLEN));
        target[20..24].copy_from_slice(&native(EGRESS_REDIRECT));
        target[24..].copy_from_slice(&native(to));
        let options = Attributes::new().bytes(TCA_MIRRED_PARMS, &target);
        let action = Attributes::new().text(TCA_ACT_KIND, "mirred").nested(TCA_ACT_OPTIONS, options);
        let filter = Attributes::new()
            .bytes(TCA_U32_SEL, &selector)
            .nested(TCA_U32_ACT, Attributes::new().nested(1, action));
        let attributes = Attributes::new().text(TCA_KIND, "u32").nested(TCA_OPTIONS, filter);
        // Priority above, protocol below, the latter in the network's order.
        let info = (PRIORITY << 16) | u32::from((libc::ETH_P_ALL as u16).to_be());
        let message =
            Message::new(RTM_NEWTFILTER, CREATE, &header(from, 0, INGRESS_HANDLE, info), attributes);
        self.request("redirect what arrives at an interface", &message)
    }

    /// Takes a redirection away. Missing is fine, and so is an interface that is gone.
    pub fn stop_redirect(&mut self, from: u32) -> Result<()> {
        let attributes = Attributes::new().text(TCA_KIND, "ingress");
        let message = Message::new(RTM_DELQDISC, 0, &header(from, INGRESS_HANDLE, INGRESS, 0), attributes);
        match self.request("let what arrives at an interface in", &message) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// What leaves by an interface leaves as fast as it goes. One without a limit does already.
    pub fn lift_rate(&mut self, link: u32) -> Result<()> {
        let message = Message::new(RTM_DELQDISC, 0, &header(link, 0, ROOT, 0), Attributes::new());
        match self.request("lift the limit of an interface's rate", &message) {
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) =>
            {
                Ok(())
            }
            other => other,
        }
    }

    /// What leaves by an interface leaves at no more than so many bytes per second.
    pub fn limit_rate(&mut self, link: u32, bytes_per_second: u64) -> Result<()> {
        // A burst of 20 ms, and of some long packets at least: less and a fast link never reaches its rate.
        let burst = u32::try_from(bytes_per_second / 50).unwrap_or(u32::MAX / 2).clamp(32 << 10, 64 << 20);
        let limit =
            u32::try_from(bytes_per_second * LATENCY_MS / 1000).unwrap_or(u32::MAX / 2).saturating_add(burst);
        // `struct tc_tbf_qopt`: two of `struct tc_ratespec` (rate at 8), limit, buffer in ticks, mtu.
        let mut parameters = [0; 36];
        // TC_LINKLAYER_ETHERNET
        parameters[1] = 1;
        let rate = u32::try_from(bytes_per_second).unwrap_or(u32::MAX);
        parameters[8..12].copy_from_slice(&native(rate));
        parameters[24..28].copy_from_slice(&native(limit));
        let mut options = Attributes::new().bytes(TCA_TBF_PARMS, &parameters).number(TCA_TBF_BURST, burst);
        if bytes_per_second > u64::from(u32::MAX) {
            options = options.bytes(TCA_TBF_RATE64, &bytes_per_second.to_ne_bytes());
        }
        let attributes = Attributes::new().text(TCA_KIND, "tbf").nested(TCA_OPTIONS, options);
        let message = Message::new(RTM_NEWQDISC, REPLACE, &header(link, 0, ROOT, 0), attributes);
        self.request("limit an interface's rate", &message)
    }
}
