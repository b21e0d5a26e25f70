//! `cargo xtask demo`: what a demonstration needs, from a fresh machine on.

use std::process::ExitCode;

use anyhow::Result;

use crate::project::Project;
use crate::{guest, setup};

pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let ready = setup::run(project)?;
    let guest = guest::run(project, &guest::Options::default())?;
    println!("image    {}", ready.images.debian.layout.display());
    println!("kernel   {}", guest.kernel.display());
    println!("initrd   {}", guest.initramfs.display());
    Ok(ExitCode::SUCCESS)
}
