//! The project's own chores: `cargo xtask demo`, `test`, `nested`, `guest`.

fn main() {}
