//! Points in time as docker's users write them: dates, seconds since 1970, or how long ago.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beta9_supervisor::timestamp;

const SECOND: u64 = 1_000_000_000;

/// What a user typed just now, in nanoseconds since the Unix epoch.
pub(crate) fn time(text: &str) -> Result<u64, String> {
    parse_time(text, SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// A point in time given in microseconds since the Unix epoch, by RFC 3339 in UTC.
pub(crate) fn rfc3339(micros: u64) -> String {
    timestamp(UNIX_EPOCH + Duration::from_micros(micros))
}

/// Nanoseconds since the Unix epoch. A date without a zone is in UTC, as the log's own times are.
fn parse_time(text: &str, now: Duration) -> Result<u64, String> {
    let bad = || {
        "use 2026-01-31, 2026-01-31T12:00:00Z, seconds since 1970, or how long ago, as in 1h30m".to_owned()
    };
    let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    let parsed = if let Some(ago) = duration(text) {
        Some(now.saturating_sub(ago))
    } else if text.contains('-') {
        date(text)
    } else {
        fraction(text)
    };
    parsed.ok_or_else(bad)
}

/// `12` or `12.5` seconds, in nanoseconds.
fn fraction(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 9 {
        return None;
    }
    let nanoseconds: u64 = format!("{part:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(SECOND)?.checked_add(nanoseconds)
}

/// `1h30m`, `90s`, `1.5h`, `100ms`, in nanoseconds (Go's durations, which docker reads).
fn duration(text: &str) -> Option<u64> {
    let (mut rest, mut total) = (text, 0u64);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let number = fraction(number)?;
        let nanoseconds = match unit {
            "h" => number.checked_mul(3600)?,
            "m" => number.checked_mul(60)?,
            "s" => number,
            "ms" => number / 1_000,
            "us" | "\u{b5}s" => number / 1_000_000,
            "ns" => number / SECOND,
            _ => return None,
        };
        total = total.checked_add(nanoseconds)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

/// RFC 3339, of which the zone, the time of day, or its seconds may be missing.
fn date(text: &str) -> Option<u64> {
    let (day, time) = text.split_once(['T', ' ']).unwrap_or((text, "00:00:00Z"));
    let mut parts = day.splitn(3, '-');
    let mut number = || parts.next()?.parse::<u64>().ok();
    let (year, month, day) = (number()?, number()?, number()?);
    if !(1970..=2500).contains(&year)
        || !(1..=12).contains(&month)
        || !(1..=days_in(year, month)).contains(&day)
    {
        return None;
    }
    let (time, offset) = zone(time)?;
    let mut parts = time.splitn(3, ':');
    let hour: u64 = parts.next()?.parse().ok()?;
    let minute: u64 = parts.next()?.parse().ok()?;
    let second = fraction(parts.next().unwrap_or("0"))?;
    if hour > 23 || minute > 59 || second >= 61 * SECOND {
        return None;
    }
    let seconds = (days_before(year, month, day) * 86_400 + hour * 3600 + minute * 60).cast_signed() - offset;
    u64::try_from(seconds).ok()?.checked_mul(SECOND)?.checked_add(second)
}

/// The time of day and by how many seconds its zone is ahead of UTC.
fn zone(time: &str) -> Option<(&str, i64)> {
    if let Some(time) = time.strip_suffix(['Z', 'z']) {
        return Some((time, 0));
    }
    let Some(at) = time.rfind(['+', '-']) else { return Some((time, 0)) };
    let (time, offset) = time.split_at(at);
    let (hours, minutes) = offset[1..].split_once(':')?;
    let seconds = hours.parse::<u32>().ok().filter(|h| *h < 24)? * 3600
        + minutes.parse::<u32>().ok().filter(|m| *m < 60)? * 60;
    Some((time, if offset.starts_with('-') { -i64::from(seconds) } else { seconds.into() }))
}

fn days_in(year: u64, month: u64) -> u64 {
    let next = if month == 12 { days_before(year + 1, 1, 1) } else { days_before(year, month + 1, 1) };
    next - days_before(year, month, 1)
}

/// Days since 1970. The calendar arithmetic is Howard Hinnant's `days_from_civil`.
fn days_before(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let shifted = (month + 9) % 12;
    let day_of_year = (153 * shifted + 2) / 5 + day - 1;
    let (era, of_era) = (year / 400, year % 400);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_seconds_and_spans_are_understood() {
        let now = Duration::from_secs(1_000_000);
        let at = |text: &str| parse_time(text, now);
        assert_eq!(at("1970-01-02"), Ok(86_400 * SECOND));
        assert_eq!(at("2000-02-29T00:00:00.000000005Z"), Ok(951_782_400 * SECOND + 5));
        assert_eq!(at("2000-02-29T01:30:00+01:30"), Ok(951_782_400 * SECOND));
        assert_eq!(at("2000-02-28T22:30-01:30"), Ok(951_782_400 * SECOND));
        assert_eq!(at("1475713029"), Ok(1_475_713_029 * SECOND));
        assert_eq!(at("1.5"), Ok(SECOND + SECOND / 2));
        assert_eq!(at("1h30m"), Ok((1_000_000 - 5400) * SECOND));
        assert_eq!(at("0.5s"), Ok(1_000_000 * SECOND - SECOND / 2));
        assert_eq!(at(&rfc3339(951_782_400_000_123)), Ok(951_782_400 * SECOND + 123_000));
        for bad in [
            "",
            "x",
            "1x",
            "2026-13-01",
            "2026-02-29",
            "2026-04-31T00:00:00Z",
            "2026-01-01T25:00",
            "1h30",
            "-5",
            "2026-01-01T00:00:00+99:00",
            "1.2.3",
        ] {
            assert!(at(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
