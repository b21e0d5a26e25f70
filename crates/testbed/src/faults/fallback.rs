//! A pool asks for a runtime that this machine does not have.

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use super::at;
use super::worker::serve;
use crate::{Finished, Site};

const ABSENT: &str = "firecracker_bin: /nonexistent/firecracker";

pub(super) fn is_allowed() -> Result<()> {
    at(Site::with_settings("container_runtime: firecracker", ABSENT)?, |site| {
        let worker = serve(site)?;
        for line in [
            "[INFO] initializing container runtime for worker pool pool=default runtime=firecracker\n",
            "[WARN] failed to create firecracker runtime, falling back to runc error=\"",
            "[INFO] runc runtime initialized successfully bin=",
        ] {
            worker.stderr_shows(line)?;
        }
        let pool = pool(site)?;
        ensure!(
            pool["runtime_asked"] == "firecracker" && pool["runtime"] == "runc" && pool["fell_back"] == true,
            "status does not show the fallback: {pool:#}"
        );
        let why = pool["failures"][0]["error"].as_str().unwrap_or_default();
        ensure!(why.contains("/nonexistent/firecracker"), "status does not say why: {pool:#}");

        run(site, &["--name", "fallen", "busybox", "echo", "on runc"])?.prints("on runc")?;
        let known: Value = serde_json::from_slice(&site.command(["inspect", "fallen"]).finish()?.stdout)?;
        let (asked, used, why) =
            (&known[0]["runtime_asked"], &known[0]["runtime"], &known[0]["fallback_reason"]);
        ensure!(
            asked == "firecracker" && used == "runc" && why.is_string(),
            "the record does not show the fallback: {known:#}"
        );
        site.command(["rm", "fallen"]).finish()?.ends_with(0)?;
        end(worker)
    })
}

pub(super) fn is_forbidden() -> Result<()> {
    at(Site::with_settings("container_runtime: firecracker\nruntime_fallback: []", ABSENT)?, |site| {
        let worker = serve(site)?;
        worker.stderr_shows("failed to create firecracker runtime, pool is not ready")?;
        let pool = pool(site)?;
        ensure!(pool["ready"] == false && pool["runtime"].is_null(), "the pool is ready: {pool:#}");
        run(site, &["--rm", "busybox", "true"])?
            .ends_with(125)?
            .complains_of(&["not ready", "/nonexistent/firecracker"])?;
        // What the pool does not have, a request may name.
        run(site, &["--rm", "--runtime", "runc", "busybox", "echo", "asked for"])?.prints("asked for")?;
        end(worker)
    })
}

pub(super) fn is_never_for_a_request() -> Result<()> {
    at(Site::with_settings("container_runtime: runc", ABSENT)?, |site| {
        let finished = run(site, &["--rm", "--runtime", "firecracker", "busybox", "echo", "somewhere"])?;
        let finished = finished.ends_with(125)?.complains_of(&["firecracker", "/nonexistent/firecracker"])?;
        ensure!(finished.stdout.is_empty(), "it ran in another runtime\n{finished}");
        Ok(())
    })
}

fn run(site: &Site, args: &[&str]) -> Result<Finished> {
    site.command(std::iter::once("run").chain(args.iter().copied())).finish()
}

fn pool(site: &Site) -> Result<Value> {
    let finished = site.command(["status", "--output", "json"]).finish()?.ends_with(0)?;
    let mut status: Value = serde_json::from_slice(&finished.stdout).context("status is not JSON")?;
    Ok(status["pools"][0].take())
}

fn end(worker: crate::Running) -> Result<()> {
    worker.signal(Signal::TERM)?;
    worker.finish()?.ends_with(0).map(drop)
}
