//! Tables as docker's users know them, and ages in words.

use comfy_table::{Table, presets};

/// A table without lines, its columns two spaces apart.
pub(super) fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.into_iter().collect::<Vec<_>>());
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table
}

/// Lines whose columns are apart by tabs, with the columns aligned.
pub(super) fn aligned(lines: &[String]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        for (index, cell) in line.split('\t').enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(index) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let align = |line: &String| {
        let cells = line.split('\t').zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("   ").trim_end().to_owned()
    };
    lines.iter().map(align).collect()
}

/// The time since `at_us` (microseconds since the Unix epoch) in its largest unit.
pub(super) fn age(at_us: u64) -> String {
    in_words(crate::service::now_us().saturating_sub(at_us) / 1_000_000)
}

fn in_words(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..=59 => (seconds, "second"),
        60..=3599 => (seconds / 60, "minute"),
        3600..=86_399 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {unit}{plural}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_use_their_largest_unit() {
        let cases =
            [(0, "0 seconds"), (1, "1 second"), (60, "1 minute"), (7200, "2 hours"), (200_000, "2 days")];
        for (seconds, words) in cases {
            assert_eq!(in_words(seconds), words);
        }
    }

    #[test]
    fn columns_are_aligned_and_apart() {
        let mut table = new(["A", "LONG"]);
        table.add_row(["value", "x"]);
        assert_eq!(table.trim_fmt(), "A      LONG\nvalue  x");
    }
}
