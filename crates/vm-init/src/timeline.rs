//! When this machine came how far, for the host's timeline.
//!
//! The two clocks are not compared: what is reported is how long ago something was, and the host knows when it hears it.

use std::time::Duration;

use beta9_wire::{GuestMark, GuestMoment};
use rustix::time::{ClockId, clock_gettime};

/// A point in time, counted from the kernel's own start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Point(Duration);

impl Point {
    /// The moment at which the kernel began to count.
    pub(crate) const START: Self = Self(Duration::ZERO);

    pub(crate) fn now() -> Self {
        let now = clock_gettime(ClockId::Boottime);
        // Neither is negative on a clock that starts at boot.
        Self(Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0)))
    }

    /// This point as it is reported now.
    pub(crate) fn mark(self, moment: GuestMoment) -> GuestMark {
        let ago = Self::now().0.saturating_sub(self.0).as_micros();
        GuestMark { moment, ago_us: u32::try_from(ago).unwrap_or(u32::MAX) }
    }
}
