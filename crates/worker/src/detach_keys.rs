//! The keys that leave a container's terminal without ending anything.

use std::str::FromStr;

/// Keys to be pressed one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let key = |key: &str| -> Option<u8> {
            let control = key.strip_prefix("ctrl-").map(|letter| (letter.as_bytes(), 0x1f));
            match control.unwrap_or((key.as_bytes(), 0x7f)) {
                ([letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')], 0x1f) => {
                    Some(letter & 0x1f)
                }
                ([letter @ b' '..=b'~'], 0x7f) => Some(*letter),
                _ => None,
            }
        };
        let keys: Option<Vec<u8>> = text.split(',').map(key).collect();
        keys.map(Self).ok_or_else(|| {
            "use characters and ctrl-a to ctrl-z, ctrl-@, ctrl-[, ctrl-], ctrl-^ or ctrl-_, with commas between them"
                .to_owned()
        })
    }
}

/// Looks for the keys in what is typed.
#[derive(Debug)]
pub(crate) struct Detector {
    keys: Vec<u8>,
    /// The beginning of the keys that was typed and not passed on.
    held: Vec<u8>,
}

/// What becomes of what was typed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// It is passed on.
    PassOn(Vec<u8>),
    /// This is passed on, and then the user leaves.
    Detach(Vec<u8>),
}

impl Detector {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, held: Vec::new() }
    }

    pub(crate) fn take(&mut self, typed: &[u8]) -> Typed {
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            self.held.push(*byte);
            if self.held == self.keys {
                self.held.clear();
                return Typed::Detach(passed);
            }
            while !self.keys.starts_with(&self.held) {
                passed.push(self.held.remove(0));
            }
        }
        Typed::PassOn(passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(detector: &mut Detector, typed: &str) -> (String, bool) {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        match detector.take(typed.as_bytes()) {
            Typed::PassOn(passed) => (text(passed), false),
            Typed::Detach(passed) => (text(passed), true),
        }
    }

    #[test]
    fn keys_are_named_as_docker_names_them() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys(vec![0x10, 0x11])));
        assert_eq!("ctrl-@,a,ctrl-[".parse(), Ok(DetachKeys(vec![0, b'a', 0x1b])));
        for bad in ["", "ctrl-", "ctrl-P", "ctrl-1", "ab", "a,,b", "\u{e4}", "\n"] {
            assert!(bad.parse::<DetachKeys>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn the_beginning_of_the_keys_is_held_until_it_is_clear_what_it_is() {
        let mut detector = Detector::new("ctrl-p,ctrl-q".parse().unwrap());
        assert_eq!(take(&mut detector, "ls\r"), ("ls\r".to_owned(), false));
        assert_eq!(take(&mut detector, "a\x10"), ("a".to_owned(), false));
        assert_eq!(take(&mut detector, "b"), ("\x10b".to_owned(), false));
        assert_eq!(take(&mut detector, "\x10\x10"), ("\x10".to_owned(), false));
        assert_eq!(take(&mut detector, "\x11rest"), (String::new(), true));
        let mut detector = Detector::new("a,a,b".parse().unwrap());
        assert_eq!(take(&mut detector, "xaaab"), ("xa".to_owned(), true));
    }
}
