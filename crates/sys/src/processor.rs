//! What only the processor itself can tell: its time stamp counter, and whether it is emulated.

use std::time::Duration;

/// The time stamp counter and the host's clock, read at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TscSample {
    ticks: u64,
    nanoseconds: u64,
}

impl TscSample {
    /// Two samples closer together than this do not give a rate that a guest can keep time by.
    pub const MIN_DISTANCE: Duration = Duration::from_millis(10);

    /// Reads both now. `None` on processors without the counter.
    pub fn now() -> Option<Self> {
        // The shortest of a few attempts is the one that was not interrupted half-way.
        (0..5).map(|_| read()).min_by_key(|(_, uncertainty)| *uncertainty).and_then(|(sample, _)| sample)
    }

    /// How long before `later` this was taken.
    pub fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.nanoseconds.saturating_sub(self.nanoseconds))
    }

    /// The counter's rate in kHz. `None` if the samples are less than [`Self::MIN_DISTANCE`] apart.
    pub fn khz(self, later: Self) -> Option<u64> {
        let elapsed = self.until(later);
        let ticks = later.ticks.checked_sub(self.ticks)?;
        if elapsed < Self::MIN_DISTANCE {
            return None;
        }
        u64::try_from(u128::from(ticks) * 1_000_000 / elapsed.as_nanos()).ok()
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> (Option<TscSample>, u64) {
    let clock = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicRaw);
        // Neither field is negative on a clock that starts at boot.
        now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
    };
    let before = clock();
    // SAFETY: the instruction has no operands and no effect but its result.
    let ticks = unsafe { std::arch::x86_64::_rdtsc() };
    let uncertainty = clock() - before;
    (Some(TscSample { ticks, nanoseconds: before + uncertainty / 2 }), uncertainty)
}

#[cfg(not(target_arch = "x86_64"))]
fn read() -> (Option<TscSample>, u64) {
    (None, 0)
}

/// Whether this machine is itself a guest whose instructions are emulated by QEMU in software.
///
/// Its CPUID says so (leaf 0x4000_0000, the hypervisor's signature).
#[cfg(target_arch = "x86_64")]
pub fn is_emulated() -> bool {
    const HYPERVISOR_PRESENT: u32 = 1 << 31;
    let leaf = |number| std::arch::x86_64::__cpuid(number);
    if leaf(1).ecx & HYPERVISOR_PRESENT == 0 {
        return false;
    }
    let found = leaf(0x4000_0000);
    let signature = [found.ebx, found.ecx, found.edx].map(u32::to_le_bytes);
    signature.as_flattened() == b"TCGTCGTCGTCG"
}

/// Whether this machine is itself emulated. Not known on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub fn is_emulated() -> bool {
    false
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn the_rate_agrees_with_itself_and_is_that_of_a_processor() {
        let first = TscSample::now().unwrap();
        assert_eq!(first.khz(first), None);
        std::thread::sleep(TscSample::MIN_DISTANCE * 2);
        let second = TscSample::now().unwrap();
        std::thread::sleep(TscSample::MIN_DISTANCE * 2);
        let third = TscSample::now().unwrap();
        let (a, b) = (first.khz(second).unwrap(), second.khz(third).unwrap());
        assert!((100_000..10_000_000).contains(&a), "{a} kHz");
        assert!(a.abs_diff(b) < a / 100, "{a} and {b} kHz");
        is_emulated();
    }
}
