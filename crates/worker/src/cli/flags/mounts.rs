use std::path::Path;

use beta9_types::{MountFlag, MountRequest};
use clap::Args;

use crate::api;
use crate::cli::Failure;

/// Host paths, volumes and the writable layer.
#[derive(Args)]
pub(super) struct MountFlags {
    /// Mount a host path or a volume; a path that does not exist is made as a directory.
    ///
    /// OPTIONS are ro, nocopy, nosuid, nodev, noexec, cached, consistent and rslave. A target alone gets a volume of the
    /// container's own, which goes with it by --rm or `rm -v`.
    #[arg(short, long, value_name = "[SOURCE:]TARGET[:OPTIONS]")]
    volume: Vec<String>,
    /// Mount a host path, a volume or a memory file system, as in type=bind,source=/srv,target=/data,readonly.
    #[arg(long, value_name = "KEY=VALUE,…")]
    mount: Vec<String>,
    /// Mount what another container has mounted.
    #[arg(long, value_name = "CONTAINER[:ro]")]
    volumes_from: Vec<String>,
    /// About what the container writes outside its mounts: size=SIZE is the most, medium=memory keeps it in memory.
    #[arg(long, value_name = "NAME=VALUE")]
    storage_opt: Vec<String>,
}

impl MountFlags {
    pub(super) fn apply(self, request: &mut api::CreateRequest) -> Result<(), Failure> {
        for text in &self.volume {
            let text = match text.split_once(':') {
                Some((source, rest)) if is_relative(source) => format!("{}:{rest}", absolute(source)?),
                _ => text.clone(),
            };
            request.mounts.push(MountRequest::parse_volume(&text).map_err(said)?.into());
        }
        for text in &self.mount {
            match MountFlag::parse(&with_absolute_source(text)?).map_err(said)? {
                MountFlag::Mount(mount) => request.mounts.push(mount.into()),
                MountFlag::Tmpfs(tmpfs) => request.tmpfs.push(tmpfs.to_string()),
            }
        }
        request.volumes_from = self.volumes_from;
        request.storage_options = self.storage_opt;
        Ok(())
    }
}

fn said(error: beta9_types::ParseError) -> Failure {
    Failure::new(error.to_string())
}

/// A path that starts with a dot is relative to here, as for docker.
fn is_relative(source: &str) -> bool {
    source == "." || source == ".." || source.starts_with("./") || source.starts_with("../")
}

/// Without `..`, whose meaning depends on links; what does not exist yet is made later, or refused.
fn absolute(source: &str) -> Result<String, Failure> {
    let failed = |e: std::io::Error| Failure::new(format!("mount source {source}: {e}"));
    let path = std::path::absolute(source).map_err(failed)?;
    let path = match path.canonicalize() {
        Ok(path) => path,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let (parent, name) =
                (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
            parent.canonicalize().map_err(failed)?.join(name)
        }
        Err(e) => return Err(failed(e)),
    };
    Ok(path.display().to_string())
}

fn with_absolute_source(text: &str) -> Result<String, Failure> {
    let field = |field: &str| match field.split_once('=') {
        Some((key @ ("source" | "src"), source)) if is_relative(source) => {
            Ok(format!("{key}={}", absolute(source)?))
        }
        _ => Ok(field.to_owned()),
    };
    Ok(text.split(',').map(field).collect::<Result<Vec<_>, Failure>>()?.join(","))
}
