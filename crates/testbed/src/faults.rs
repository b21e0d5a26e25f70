//! What survives when a process dies that should not.

use beta9_types::RuntimeKind;

/// One fault.
pub struct Fault {
    /// What is shown.
    pub name: String,
    /// Runtimes that it cannot do without.
    pub needs: Vec<RuntimeKind>,
    /// What to run.
    pub run: Box<dyn FnOnce() -> anyhow::Result<()> + Send>,
}

/// Every fault, on the runtimes that work here where it runs on several.
pub fn all(_available: &[RuntimeKind]) -> Vec<Fault> {
    Vec::new()
}
