//! From what a pool asks for to what it gets.
//!
//! ```text
//! begin ──▶ next() = Some(kind) ──record(Ok)──▶ ready with kind
//!                ▲        │
//!                └─record(Err), a candidate is left
//!                         └─record(Err), none is left ──▶ not ready, with every reason
//! ```
//!
//! The candidates are what satisfies the choice (`microvm` is satisfied by Firecracker, then QEMU), then what the pool
//! may fall back to, each once. The decision is made once, when the pool's runtime is created: no container that fails
//! to start is ever given a second runtime. Trying is the caller's; this is the rule alone.

use beta9_types::{PoolName, RuntimeChoice, RuntimeKind};
use serde::Serialize;

use crate::pool::Pool;

/// A runtime that did not work, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// The runtime.
    pub kind: RuntimeKind,
    /// What failed, why, and what to do, in one line.
    pub error: String,
}

/// What follows from an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The runtime works and is used.
    Ready(RuntimeKind),
    /// Another runtime that satisfies the choice as well is to be tried.
    TryNext(RuntimeKind),
    /// The choice cannot be satisfied; this is the next thing that the pool may fall back to.
    FallBack(RuntimeKind),
    /// Nothing works.
    NotReady,
}

/// The choice of a runtime: under way, or made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Selection {
    pool: PoolName,
    asked: RuntimeChoice,
    used: Option<RuntimeKind>,
    fell_back: bool,
    reasons: Vec<Attempt>,
    /// What may still be tried; the first is due.
    #[serde(skip)]
    left: Vec<RuntimeKind>,
}

impl Selection {
    /// The choice for a pool, with the fallback that it allows.
    pub fn begin(pool: &Pool) -> Self {
        let mut selection = Self::exactly(pool.name.clone(), pool.runtime);
        for kind in &pool.fallback {
            if !selection.left.contains(kind) {
                selection.left.push(*kind);
            }
        }
        selection
    }

    /// The choice for a request or a flag that names a runtime: it never falls back.
    pub fn exactly(pool: PoolName, asked: RuntimeChoice) -> Self {
        let left = asked.candidates().to_vec();
        Self { pool, asked, used: None, fell_back: false, reasons: Vec::new(), left }
    }

    /// The runtime to try now; `None` when the choice is made.
    pub fn next(&self) -> Option<RuntimeKind> {
        if self.used.is_some() { None } else { self.left.first().copied() }
    }

    /// Takes in how trying [`Selection::next`] went. Once the choice is made it stays.
    pub fn record(&mut self, result: Result<(), String>) -> Step {
        if let Some(kind) = self.next() {
            match result {
                Ok(()) => {
                    self.used = Some(kind);
                    self.fell_back = !self.satisfies(kind);
                }
                Err(error) => {
                    self.reasons.push(Attempt { kind, error });
                    self.left.remove(0);
                }
            }
        }
        match (self.used, self.next()) {
            (Some(kind), _) => Step::Ready(kind),
            (None, Some(kind)) if self.satisfies(kind) => Step::TryNext(kind),
            (None, Some(kind)) => Step::FallBack(kind),
            (None, None) => Step::NotReady,
        }
    }

    fn satisfies(&self, kind: RuntimeKind) -> bool {
        self.asked.candidates().contains(&kind)
    }

    /// The pool it is for.
    pub fn pool(&self) -> &PoolName {
        &self.pool
    }

    /// What was asked for.
    pub fn asked(&self) -> RuntimeChoice {
        self.asked
    }

    /// The runtime that works; `None` while the choice is under way and where nothing works.
    pub fn used(&self) -> Option<RuntimeKind> {
        self.used
    }

    /// What was tried and did not work, in order.
    pub fn reasons(&self) -> &[Attempt] {
        &self.reasons
    }

    /// Whether the pool runs with something other than what was asked for.
    pub fn fell_back(&self) -> bool {
        self.fell_back
    }

    /// Why the pool does not have what it asked for, in one line; `None` where it has.
    pub fn explain(&self) -> Option<String> {
        if self.used.is_some() && !self.fell_back {
            return None;
        }
        let reasons: Vec<String> = self.reasons.iter().map(|a| format!("{}: {}", a.kind, a.error)).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

#[cfg(test)]
mod tests;
