//! What one story sees: a runtime, and containers of its own.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use beta9_types::RuntimeKind;
use serde_json::Value;

use crate::program::{Finished, Invocation, Running};
use crate::site::{IMAGE, Site};

/// One story's view of a site.
#[derive(Debug)]
pub struct World<'a> {
    site: &'a Site,
    runtime: RuntimeKind,
    story: &'static str,
}

/// Containers and directories so far, of every world in this process.
static COUNT: AtomicU32 = AtomicU32::new(0);

impl<'a> World<'a> {
    /// The world of `story` on `runtime`. Container names and files carry the story's name.
    pub fn new(site: &'a Site, runtime: RuntimeKind, story: &'static str) -> Self {
        Self { site, runtime, story }
    }

    /// The runtime that containers run on.
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime
    }

    /// Where it all happens.
    pub fn site(&self) -> &Site {
        self.site
    }

    /// A container name that nobody else uses.
    pub fn name(&self) -> String {
        format!("{}-{}-{}", self.story, self.runtime, COUNT.fetch_add(1, Ordering::Relaxed))
    }

    /// A new empty directory on the host.
    pub fn directory(&self) -> Result<PathBuf> {
        let path = self.site.files().join(self.name());
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// A command of the worker's, run to its end.
    pub fn worker(&self, args: &[&str]) -> Result<Finished> {
        self.site.command(args).finish()
    }

    /// `run --rm` on this story's runtime, not yet started.
    pub fn invocation(&self, flags: &[&str], command: &[&str]) -> Invocation {
        let mut all = vec!["--rm"];
        all.extend(flags);
        self.named(&self.name(), &all, command)
    }

    /// A container that is run in the foreground and leaves nothing.
    pub fn run(&self, flags: &[&str], command: &[&str]) -> Result<Finished> {
        self.invocation(flags, command).finish()
    }

    /// The same for a shell script.
    pub fn shell(&self, script: &str) -> Result<Finished> {
        self.run(&[], &["sh", "-c", script])
    }

    /// A container that is run in the foreground and whose record stays until it is dropped.
    pub fn run_kept(&self, flags: &[&str], command: &[&str]) -> Result<(Container<'_, 'a>, Finished)> {
        let container = Container { world: self, name: self.name(), id: String::new() };
        let finished = self.named(&container.name, flags, command).finish()?;
        Ok((container, finished))
    }

    /// The same, not waited for.
    pub fn run_kept_aside(&self, flags: &[&str], command: &[&str]) -> Result<(Container<'_, 'a>, Running)> {
        let container = Container { world: self, name: self.name(), id: String::new() };
        let running = self.named(&container.name, flags, command).spawn()?;
        Ok((container, running))
    }

    /// A container in the background.
    pub fn detach(&self, flags: &[&str], command: &[&str]) -> Result<Container<'_, 'a>> {
        let mut all = vec!["-d"];
        all.extend(flags);
        let mut container = Container { world: self, name: self.name(), id: String::new() };
        let finished = self.named(&container.name, &all, command).finish()?.ends_with(0)?;
        container.id = finished.out();
        let is_id = container.id.len() == 32 && container.id.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(is_id, "expected an id of 32 hex digits\n{finished}");
        Ok(container)
    }

    /// A container in the background that runs a script which prints `ready` once it is.
    pub fn detach_ready(&self, flags: &[&str], script: &str) -> Result<Container<'_, 'a>> {
        let container = self.detach(flags, &["sh", "-c", script])?;
        container.follow()?.stdout_shows("ready\n")?;
        Ok(container)
    }

    /// `run` with a name of the story's own, not yet started, and a handle on the container that it makes.
    pub fn prepared(&self, flags: &[&str], command: &[&str]) -> (Container<'_, 'a>, Invocation) {
        let container = Container { world: self, name: self.name(), id: String::new() };
        let invocation = self.named(&container.name, flags, command);
        (container, invocation)
    }

    fn named(&self, name: &str, flags: &[&str], command: &[&str]) -> Invocation {
        let mut args: Vec<OsString> =
            ["run", "--runtime", self.runtime.as_str(), "--name", name].map(Into::into).to_vec();
        args.extend(flags.iter().chain(&[IMAGE]).chain(command).map(Into::into));
        self.site.command(args)
    }
}

/// A container with a record. Dropped, it is removed by force.
#[derive(Debug)]
pub struct Container<'w, 'a> {
    world: &'w World<'a>,
    /// Its name.
    pub name: String,
    /// Its id; empty when it was run in the foreground.
    pub id: String,
}

impl Container<'_, '_> {
    /// A command about it, such as `stop -t 1`.
    pub fn command(&self, words: &[&str]) -> Invocation {
        self.world.site.command(words.iter().chain(&[self.name.as_str()]))
    }

    /// Another command in it: `exec FLAGS… NAME COMMAND…`.
    pub fn exec(&self, flags: &[&str], command: &[&str]) -> Invocation {
        let name = [self.name.as_str()];
        let words = ["exec"].iter().chain(flags).chain(&name).chain(command).copied();
        self.world.site.command(words)
    }

    /// The same, run to its end.
    pub fn run(&self, words: &[&str]) -> Result<Finished> {
        self.command(words).finish()
    }

    /// Everything known of it.
    pub fn inspect(&self) -> Result<Value> {
        let finished = self.run(&["inspect"])?.ends_with(0)?;
        let mut all: Vec<Value> = serde_json::from_slice(&finished.stdout).context("inspect is not JSON")?;
        ensure!(all.len() == 1, "expected one container\n{finished}");
        Ok(all.remove(0))
    }

    /// Waits for its end and returns the exit code.
    pub fn wait(&self) -> Result<i32> {
        let finished = self.run(&["wait"])?.ends_with(0)?;
        finished.out().parse().with_context(|| format!("wait printed no number\n{finished}"))
    }

    /// Its log as it grows.
    pub fn follow(&self) -> Result<Running> {
        self.command(&["logs", "-f"]).spawn()
    }

    /// Fails unless it ended with this code and reason.
    pub fn ended(&self, code: i32, reason: &str) -> Result<Value> {
        let known = self.inspect()?;
        let exit = &known["exit"];
        ensure!(
            exit["code"] == code && exit["reason"] == reason,
            "expected code {code} and reason {reason}, got {known:#}"
        );
        Ok(known)
    }
}

impl Drop for Container<'_, '_> {
    fn drop(&mut self) {
        // The story may have removed it; whatever else stays is found by counting.
        let _ = self.run(&["rm", "-f"]);
    }
}
