//! Sizes as people write them: `20GiB`, `512 MiB`. Fractions are not taken.

use crate::error::Result;
use crate::node::Value;
use crate::reader::{Entry, Reader};

/// What a unit is worth. Like docker, and unlike disk makers, `G` means `GiB`.
const UNITS: [(&str, u32); 5] = [("B", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];

const RULE: &str = "use a whole number with a unit, as in 20GiB, 512MiB or 1TiB, or 0 for no limit";

/// Reads a size; `None` where it is null, empty or zero.
pub(crate) fn read(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<u64>> {
    if let Value::Integer(number) = entry.node.value {
        return match number {
            0 => Ok(None),
            // Whether bytes or gigabytes are meant cannot be told.
            number => Err(reader.invalid(entry, &number.to_string(), RULE)),
        };
    }
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    match parse(text) {
        Some(size) => Ok(Some(size).filter(|size| *size > 0)),
        None => Err(reader.invalid(entry, text, RULE)),
    }
}

fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let unit = unit.trim_start().strip_suffix("iB").unwrap_or(unit.trim_start());
    let (_, shift) = UNITS.into_iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// In the largest unit that keeps it exact, so that it reads back as the same.
pub(crate) fn show(size: u64) -> String {
    let fits = |(_, shift): &&(&str, u32)| size.is_multiple_of(1 << shift) && size >> shift > 0;
    let (name, shift) = UNITS.iter().rev().find(fits).unwrap_or(&UNITS[0]);
    format!("{}{name}{}", size >> shift, if *shift == 0 { "" } else { "iB" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_come_back_as_they_were() {
        for (text, size) in
            [("20GiB", 20 << 30), ("512 MiB", 512 << 20), ("3G", 3 << 30), ("1TiB", 1 << 40), ("1025B", 1025)]
        {
            assert_eq!(parse(text), Some(size), "{text}");
            assert_eq!(parse(&show(size)), Some(size), "{text}");
        }
        for bad in ["", "20", "GiB", "1.5GiB", "-1GiB", "20 gigs", "99999999999TiB", "20GB"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(show(20 << 30), "20GiB");
    }
}
