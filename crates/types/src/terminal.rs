use serde::{Deserialize, Serialize};

/// The size of a terminal in characters. Zero means that nobody knows it, as for the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}
