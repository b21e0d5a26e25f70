//! Points in time as people type and read them.

use std::str::FromStr;

use crate::service::now_us;

const SECOND: u64 = 1_000_000;
const DAY: i64 = 86_400;

/// A point in time, in microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct When(u64);

impl When {
    pub(super) fn micros(self) -> u64 {
        self.0
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rule = "use a time such as 2026-01-31T12:00:00Z, seconds since 1970, or a while ago such as 90s, 10m or 2h";
        parse(text, now_us()).map(Self).ok_or_else(|| rule.to_owned())
    }
}

fn parse(text: &str, now: u64) -> Option<u64> {
    if let Some(micros) = decimal(text) {
        return Some(micros);
    }
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86_400)];
    if let Some((number, factor)) =
        units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        && let Some(ago) = decimal(number).and_then(|micros| micros.checked_mul(*factor))
    {
        return Some(now.saturating_sub(ago));
    }
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let is_real = (1970..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !is_real {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * DAY + hour * 3600 + minute * 60 + second;
    Some(u64::try_from(seconds).ok()? * SECOND + decimal(&format!("0.{fraction}"))?)
}

/// A decimal number of seconds, in microseconds.
fn decimal(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6}")[..6].parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(micros)
}

fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut next =
        || parts.next().filter(|part| part.bytes().all(|b| b.is_ascii_digit()))?.parse::<i64>().ok();
    let numbers = [next()?, next()?, next()?];
    parts.next().is_none().then_some(numbers)
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap(year) => 29,
        2 => 28,
        _ => 31,
    }
}

fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let years: i64 = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum();
    let months: i64 = (1..month).map(|month| days_in(year, month)).sum();
    years + months + day - 1
}

/// A point in time by RFC 3339, in UTC.
pub(super) fn rfc3339(micros: u64) -> String {
    let (seconds, fraction) = (micros / SECOND, micros % SECOND);
    let (mut days, rest) = (seconds / DAY.unsigned_abs(), seconds % DAY.unsigned_abs());
    // No clock is that wrong; and it keeps the loop short.
    days = days.min(2_932_896);
    let (mut year, mut month) = (1970, 1);
    let mut left = days.cast_signed();
    while left >= if is_leap(year) { 366 } else { 365 } {
        left -= if is_leap(year) { 366 } else { 365 };
        year += 1;
    }
    while left >= days_in(year, month) {
        left -= days_in(year, month);
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}.{fraction:06}Z", left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_alike() {
        for micros in [0, 1_000_000, 951_782_400_000_000, 1_764_014_400_123_456, 4_102_444_799_999_999] {
            assert_eq!(parse(&rfc3339(micros), 0), Some(micros), "{}", rfc3339(micros));
        }
        assert_eq!(rfc3339(951_782_400_000_000), "2000-02-29T00:00:00.000000Z");
        assert_eq!(parse("12.5", 0), Some(12_500_000));
        assert_eq!(parse("10m", 700 * SECOND), Some(100 * SECOND));
        assert_eq!(parse("10h", 5), Some(0));
        for bad in [
            "",
            "x",
            "-1",
            "1.",
            "2026-02-30T00:00:00Z",
            "2026-1-1",
            "2026-01-01T24:00:00Z",
            "m",
            "99999999999999999999",
        ] {
            assert_eq!(parse(bad, 0), None, "{bad}");
        }
    }
}
