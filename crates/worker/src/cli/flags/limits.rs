use beta9_types::{MemoryBytes, MemorySwap};
use clap::Args;

use super::rate;
use crate::api;
use crate::api::throttle::Kind;
use crate::cli::Failure;

/// What it may use.
#[derive(Args)]
pub(super) struct LimitFlags {
    /// CPUs, as in 1.5.
    #[arg(long, value_name = "NUMBER", value_parser = nano_cpus)]
    cpus: Option<u64>,
    /// CPU time among competitors, 2 to 262144; 1024 is everybody's default.
    #[arg(short, long, value_name = "SHARES", default_value_t = 0, hide_default_value = true)]
    cpu_shares: u64,
    /// Microseconds of CPU time per period; --cpus is easier.
    #[arg(long, value_name = "MICROSECONDS", conflicts_with = "cpus")]
    cpu_quota: Option<u64>,
    /// The period of --cpu-quota, 1000 to 1000000 microseconds.
    #[arg(
        long,
        value_name = "MICROSECONDS",
        requires = "cpu_quota",
        default_value_t = 100_000,
        hide_default_value = true
    )]
    cpu_period: u64,
    /// The CPUs it may run on, as in 0-2,5.
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    cpuset_cpus: String,
    /// The memory nodes it may use.
    #[arg(long, value_name = "LIST", default_value = "", hide_default_value = true)]
    cpuset_mems: String,
    /// Memory and swap together; twice --memory where absent, -1 for unlimited swap.
    #[arg(long, value_name = "SIZE", allow_negative_numbers = true)]
    memory_swap: Option<MemorySwap>,
    /// Memory that it keeps when the host runs short.
    #[arg(long, value_name = "SIZE")]
    memory_reservation: Option<MemoryBytes>,
    /// Processes and threads; -1 is unlimited.
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = 0,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    pids_limit: i64,
    /// Share of the disks among competitors, 10 to 1000.
    #[arg(long, value_name = "WEIGHT", default_value_t = 0, hide_default_value = true)]
    blkio_weight: u32,
    /// Bytes read from a disk per second.
    #[arg(long, value_name = "DEVICE:RATE")]
    device_read_bps: Vec<String>,
    /// Bytes written to a disk per second.
    #[arg(long, value_name = "DEVICE:RATE")]
    device_write_bps: Vec<String>,
    /// Reads from a disk per second.
    #[arg(long, value_name = "DEVICE:NUMBER")]
    device_read_iops: Vec<String>,
    /// Writes to a disk per second.
    #[arg(long, value_name = "DEVICE:NUMBER")]
    device_write_iops: Vec<String>,
    /// Bytes per second on its own disks, as in 20m; 0 is no limit.
    #[arg(long, value_name = "RATE", value_parser = rate)]
    disk_rate: Option<u64>,
    /// Reads and writes per second on its own disks; 0 is no limit.
    #[arg(long, value_name = "NUMBER")]
    disk_operations: Option<u64>,
}

impl LimitFlags {
    pub(super) fn apply(self, request: &mut api::CreateRequest) -> Result<(), Failure> {
        request.nano_cpus = match (self.cpus, self.cpu_quota) {
            (Some(cpus), _) => cpus,
            (None, None) => 0,
            (None, Some(quota)) if (1000..=1_000_000).contains(&self.cpu_period) && quota >= 1000 => {
                u64::try_from(u128::from(quota) * 1_000_000_000 / u128::from(self.cpu_period))
                    .unwrap_or(u64::MAX)
            }
            (None, Some(_)) => {
                let text = "invalid --cpu-quota: use at least 1000, and a --cpu-period of 1000 to 1000000 microseconds";
                return Err(Failure::new(text));
            }
        };
        request.cpu_shares = self.cpu_shares;
        request.cpuset_cpus = self.cpuset_cpus;
        request.cpuset_mems = self.cpuset_mems;
        request.memory_swap_bytes = match self.memory_swap {
            None => 0,
            Some(MemorySwap::Unlimited) => -1,
            Some(MemorySwap::Limited(total)) => i64::try_from(total.get()).unwrap_or(i64::MAX),
        };
        request.memory_reservation_bytes = self.memory_reservation.map_or(0, MemoryBytes::get);
        request.pids_limit = self.pids_limit;
        request.blkio_weight = self.blkio_weight;
        (request.disk_rate, request.disk_operations) = (self.disk_rate, self.disk_operations);
        let throttles = [
            (Kind::ReadBytes, self.device_read_bps),
            (Kind::WriteBytes, self.device_write_bps),
            (Kind::ReadOperations, self.device_read_iops),
            (Kind::WriteOperations, self.device_write_iops),
        ];
        request.throttles = throttles
            .into_iter()
            .flat_map(|(kind, limits)| {
                limits.into_iter().map(move |limit| api::Throttle { kind: kind.into(), limit })
            })
            .collect();
        Ok(())
    }
}

/// A number with at most nine decimals, in billionths.
pub(in crate::cli) fn nano_cpus(text: &str) -> Result<u64, String> {
    let bad = || "use a number such as 2 or 0.5".to_owned();
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(part) || (whole.is_empty() && part.is_empty()) || part.len() > 9 {
        return Err(bad());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| bad())? };
    let part: u64 = format!("{part:0<9}").parse().map_err(|_| bad())?;
    let nano = whole.checked_mul(1_000_000_000).and_then(|nano| nano.checked_add(part)).ok_or_else(bad)?;
    if nano == 0 { Err(bad()) } else { Ok(nano) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_decimal() {
        for (text, nano) in
            [("1", 1_000_000_000), ("0.5", 500_000_000), (".25", 250_000_000), ("1.", 1_000_000_000)]
        {
            assert_eq!(nano_cpus(text).unwrap(), nano);
        }
        for bad in ["", ".", "0", "-1", "1e3", "x", "0.0000000001", "99999999999"] {
            assert!(nano_cpus(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
