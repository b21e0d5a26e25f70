//! What somebody probably meant.

/// The allowed word closest to `given`, if it is close enough for a typing error.
pub(crate) fn nearest<'a>(given: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A word longer than any key is no typing error, and the distance costs the product of both lengths.
    if given.len() > 64 {
        return None;
    }
    let given = given.to_lowercase();
    let limit = (given.chars().count() / 3).clamp(1, 4);
    allowed
        .into_iter()
        .map(|word| (distance(&given, &word.to_lowercase()), word))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// Levenshtein's distance with a swap of neighbours counted as one step (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, first) in rows[0].iter_mut().enumerate() {
        *first = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_recognised_and_other_words_are_not() {
        let words = ["runc", "gvisor", "firecracker", "qemu", "microvm"];
        for (given, meant) in [
            ("firecraker", Some("firecracker")),
            ("Firecracker", Some("firecracker")),
            ("gVisor", Some("gvisor")),
            ("rucn", Some("runc")),
            ("micro-vm", Some("microvm")),
            ("kata", None),
            ("docker", None),
            ("", None),
            (&"q".repeat(5000), None),
        ] {
            assert_eq!(nearest(given, words), meant, "{given}");
        }
    }
}
