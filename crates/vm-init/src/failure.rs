use std::error::Error;
use std::fmt::Display;

use beta9_wire::StartFailure;
use serde::{Deserialize, Serialize};

/// Why a container cannot be created or started, as it is reported to the host and, before that, by the stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The exit code it means.
    pub(crate) kind: StartFailure,
    /// What was tried and what went wrong, in one line.
    pub(crate) message: String,
}

impl Failure {
    /// Longest message that is sent: the names in it come from images.
    const MAX_MESSAGE: usize = 1000;

    pub(crate) fn new(kind: StartFailure, message: impl Into<String>) -> Self {
        let message = message.into().chars().take(Self::MAX_MESSAGE).collect();
        Self { kind, message }
    }

    /// Preparing failed: `what` was tried, `source` is the answer.
    pub(crate) fn setup(what: impl Display, source: &dyn Error) -> Self {
        Self::new(StartFailure::Setup, format!("{what}: {}", beta9_types::chain(source)))
    }

    /// The host asked for something that makes no sense.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(StartFailure::Setup, message)
    }
}

/// The result of a step towards a running container.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Names the step that an error belongs to.
pub(crate) trait Context<T> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Error> Context<T> for std::result::Result<T, E> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Failure::setup(what(), &error))
    }
}
