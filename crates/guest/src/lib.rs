//! What a microVM boots: its kernel and its initramfs.
//!
//! ```text
//! vmlinuz (bzImage) ──unpack──▶ vmlinux (ELF) ──check──▶ Kernel: version, entry, whether its drivers are modules
//! lib/modules/VERSION ──choose──▶ Modules ──pack──▶ archive ─┐
//! an init ──────────────────────────────────────────pack────┴─▶ initramfs
//! ```
//!
//! Files are taken for what they are, not for what they are called: a file that is no kernel of this machine's kind is
//! refused in one sentence, before anything boots it. Everything is bounded; nothing here runs a program, with the one
//! exception of `xz` for kernels and modules that are packed by it.

mod bzimage;
mod cpio;
mod elf;
mod error;
mod initramfs;
mod kernel;
mod modules;
mod unpack;

pub use cpio::Archive;
pub use error::{Error, ErrorKind, Result};
pub use initramfs::{initramfs, module_archive};
pub use kernel::{Drivers, Kernel, check_file};
pub use modules::{Modules, Purpose};
