//! Pools of VMs find no kernel, and are given one.

use std::fs;

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use serde_json::Value;

use super::at;
use crate::site::stock_kernel;
use crate::{Finished, Site, World};

pub(super) fn is_missing(runtime: RuntimeKind) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("b9-kernel-").tempdir_in("/var/tmp")?;
    let place = directory.path().join("deep/vmlinux");
    let setting = format!("{}_kernel: {}", runtime.as_str(), place.display());
    at(Site::with_settings("", &setting)?, |site| {
        let to = place.to_string_lossy();
        let known = site.survey()?.into_iter().find(|found| found.runtime == runtime);
        let why = known.and_then(|found| found.detail.err()).context("it works without a kernel")?;
        ensure!(why.contains("`beta9-worker kernel install`"), "doctor does not say what to do: {why}");

        let text = site.files().join("text");
        fs::write(&text, "no kernel").context("cannot write a text")?;
        let text = text.to_string_lossy().into_owned();
        kernel(site, &["install", "--from", &text, "--to", &to])?
            .ends_with(1)?
            .complains_of(&["neither a kernel"])?;
        ensure!(list(site, &to)?["version"].is_null(), "a text was installed");

        // Packed, with its drivers in modules.
        let stock = stock_kernel()?.to_string_lossy().into_owned();
        kernel(site, &["install", "--from", &stock, "--to", &to])?.ends_with(0)?;
        let listed = list(site, &to)?;
        let version = listed["version"].as_str().with_context(|| format!("no version in {listed:#}"))?;
        ensure!(stock.ends_with(version), "{stock} is not version {version}");
        ensure!(listed["drivers"] == "modules", "its modules are not there: {listed:#}");
        let world = World::new(site, runtime, "kernel");
        world.run(&[], &["uname", "-r"])?.prints(version)?;

        kernel(site, &["rm", &to])?.ends_with(0)?;
        ensure!(list(site, &to)?["error"] == "not installed", "the kernel is still there");
        Ok(())
    })
}

fn kernel(site: &Site, args: &[&str]) -> Result<Finished> {
    site.command(std::iter::once("kernel").chain(args.iter().copied())).finish()
}

/// What is known of the kernel at `path`.
fn list(site: &Site, path: &str) -> Result<Value> {
    let listed = kernel(site, &["ls", "--output", "json"])?.ends_with(0)?;
    let listed: Value = serde_json::from_slice(&listed.stdout).context("the list is not JSON")?;
    let row = listed.as_array().into_iter().flatten().find(|row| row["path"] == path);
    row.cloned().with_context(|| format!("{path} is not in {listed:#}"))
}
