//! The table at the end: every pool, what it asked for, what it got and why, and what the program saw.

use std::io::IsTerminal;

use super::pools::Row;

const HEADER: [&str; 7] = ["POOL", "ASKED", "USED", "WHY", "KERNEL INSIDE", "EXIT", "START"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colour {
    Bold,
    Red,
    Green,
    Yellow,
}

/// The table and its notes, as text that ends with a line break.
pub(super) fn draw(rows: &[Row]) -> String {
    draw_with(rows, colours())
}

fn draw_with(rows: &[Row], coloured: bool) -> String {
    let mut notes = Vec::new();
    let mut lines = vec![(HEADER.map(str::to_owned), Colour::Bold)];
    lines.extend(rows.iter().map(|row| (cells(row, &mut notes), colour(row))));
    let mut widths = [0; HEADER.len()];
    for (cells, _) in &lines {
        for (width, cell) in widths.iter_mut().zip(cells) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for (cells, colour) in &lines {
        let mut padded = String::new();
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // The last two are numbers.
            let cell = if column < 5 { format!("{cell:<width$}   ") } else { format!("{cell:>width$}   ") };
            padded.push_str(&cell);
        }
        text.push_str(&paint(padded.trim_end(), *colour, coloured));
        text.push('\n');
    }
    text.push('\n');
    for (index, note) in notes.iter().enumerate() {
        text.push_str(&format!("[{}] {note}\n", index + 1));
    }
    if !notes.is_empty() {
        text.push('\n');
    }
    text
}

fn cells(row: &Row, notes: &mut Vec<String>) -> [String; HEADER.len()] {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let ran = row.ran.as_ref();
    [
        row.pool.name.clone(),
        row.pool.runtime_asked.clone(),
        or_dash(row.pool.runtime.clone()),
        why(row, notes),
        row.kernel().to_owned(),
        or_dash(ran.and_then(|ran| ran.exit_code).map(|code| code.to_string())),
        or_dash(ran.and_then(|ran| ran.start_ms).map(|ms| format!("{ms} ms"))),
    ]
}

/// Why the pool uses what it uses, in a few words; the long reasons become notes.
fn why(row: &Row, notes: &mut Vec<String>) -> String {
    let pool = &row.pool;
    let mut why = if !pool.ready {
        "not ready".to_owned()
    } else if pool.fell_back {
        "fell back".to_owned()
    } else if pool.runtime.as_ref() == Some(&pool.runtime_asked) {
        "as asked".to_owned()
    } else {
        "works here".to_owned()
    };
    for failure in &pool.failures {
        let note = format!("{} does not work here: {}", failure.runtime, failure.error);
        let number = notes.iter().position(|known| *known == note).unwrap_or_else(|| {
            notes.push(note);
            notes.len() - 1
        });
        why.push_str(&format!(", {} does not [{}]", failure.runtime, number + 1));
    }
    why
}

fn colour(row: &Row) -> Colour {
    match row.failure() {
        Some(_) => Colour::Red,
        None if row.pool.fell_back => Colour::Yellow,
        None => Colour::Green,
    }
}

/// A line of the worker's log.
pub(super) fn log_line(line: &str) -> String {
    if line.starts_with("[WARN]") {
        paint(line, Colour::Yellow, colours())
    } else if line.starts_with("[ERROR]") {
        paint(line, Colour::Red, colours())
    } else {
        line.to_owned()
    }
}

fn paint(text: &str, colour: Colour, coloured: bool) -> String {
    let code = match colour {
        Colour::Bold => "1",
        Colour::Red => "31",
        Colour::Green => "32",
        Colour::Yellow => "33",
    };
    if coloured { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

/// Whether stdout is a terminal whose user wants colours (no-color.org).
fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::pools::{Failure, Pool, Ran};
    use super::*;

    fn row(name: &str, asked: &str, used: Option<&str>, failures: &[(&str, &str)], code: i32) -> Row {
        let failures = failures
            .iter()
            .map(|(runtime, error)| Failure { runtime: (*runtime).to_owned(), error: (*error).to_owned() });
        let ran = used.map(|_| Ran {
            output: "kernel 6.1.0\npid 1\nsum of squares 332833500\n".to_owned(),
            errors: String::new(),
            exit_code: Some(code),
            start_ms: Some(41),
        });
        let pool = Pool {
            name: name.to_owned(),
            runtime_asked: asked.to_owned(),
            runtime: used.map(str::to_owned),
            ready: used.is_some(),
            fell_back: asked == "firecracker" && used == Some("runc"),
            failures: failures.collect(),
        };
        Row { pool, ran }
    }

    #[test]
    fn columns_are_aligned_and_reasons_are_told_once() {
        let reason = [("firecracker", "no such program")];
        let rows = [
            row("runc", "runc", Some("runc"), &[], 7),
            row("vm", "microvm", Some("qemu"), &reason, 7),
            row("fc", "firecracker", Some("runc"), &reason, 7),
        ];
        let expected = "\
POOL   ASKED         USED   WHY                                       KERNEL INSIDE   EXIT   START
runc   runc          runc   as asked                                  6.1.0              7   41 ms
vm     microvm       qemu   works here, firecracker does not [1]      6.1.0              7   41 ms
fc     firecracker   runc   fell back, firecracker does not [1]       6.1.0              7   41 ms

[1] firecracker does not work here: no such program

";
        // The width of a column is that of its longest cell, whichever row has it.
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        let drawn = draw_with(&rows, false);
        assert_eq!(squeezed(&drawn), squeezed(expected));
        let starts: Vec<_> = drawn.lines().take(4).map(|line| line.len()).collect();
        assert_eq!(starts, [starts[0]; 4], "{drawn}");
    }

    #[test]
    fn a_pool_that_is_not_ready_and_a_wrong_exit_code_are_failures() {
        let missing = row("vm", "microvm", None, &[("qemu", "no such program")], 7);
        assert_eq!(missing.failure().unwrap(), "pool vm is not ready: no such program");
        assert!(draw_with(&[missing], true).contains("\u{1b}[31mvm"));
        let wrong = row("vm", "microvm", Some("qemu"), &[], 125);
        assert_eq!(wrong.failure().unwrap(), "the program in pool vm ended with 125 instead of 7");
        assert_eq!(row("vm", "microvm", Some("qemu"), &[], 7).failure(), None);
    }
}
