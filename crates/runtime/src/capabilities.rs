use serde::{Deserialize, Serialize};

/// Facts about a runtime that a scheduler relies on. A flag is true when the feature is there and tested.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// A running container can be saved and brought back.
    pub checkpoint_restore: bool,
    /// GPUs can be handed to a container.
    pub gpu: bool,
    /// Running out of memory is reported as such.
    pub oom_events: bool,
    /// A container can join a network namespace that exists.
    pub join_existing_netns: bool,
    /// Devices can be named by the Container Device Interface.
    pub cdi: bool,
}
