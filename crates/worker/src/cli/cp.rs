//! `cp`: files between a container and this machine, as a tar archive on the way.
//!
//! What comes out of a container is hostile: an archive is unpacked below its destination, follows no link of its own, and
//! holds nothing but what was asked for.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use beta9_archive::{Links, Owner, Tree, Unpacking, pack, unpack};
use beta9_types::{CopyOut, Placement, chain};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::api::{self, copy_to_request::Message};
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::terminal;

const EXAMPLES: &str = "\
Examples:
  beta9-worker cp web:/etc/hosts .
  beta9-worker cp ./site/. web:/srv
  beta9-worker cp web:/var/log - | tar t
  tar c dir | beta9-worker cp - web:/srv

A directory goes into a directory that exists, and becomes one that does not. `/.` at its end means what is in it.";

/// Bytes of an archive in one message.
const CHUNK: usize = 64 << 10;
/// Messages that wait for a slow worker.
const PENDING: usize = 4;

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct CpArgs {
    /// Keep owners, and set-user-id bits. Otherwise files belong to root in a container and to you here.
    #[arg(short, long)]
    archive: bool,
    /// Copy what a symbolic link SOURCE points to.
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// For docker's scripts: there is no progress to be quiet about.
    #[arg(short, long, hide = true)]
    quiet: bool,
    /// CONTAINER:PATH, a path here, or - for a tar archive on stdin.
    source: String,
    /// CONTAINER:PATH, a path here, or - for a tar archive on stdout.
    destination: String,
}

/// One side of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Side<'a> {
    Container { name: &'a str, path: &'a str },
    Local(&'a str),
    Stream,
}

impl<'a> Side<'a> {
    /// docker's rule: what begins with `/` or `.` is a path here, whatever it holds.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((name, path)) if !name.is_empty() && !text.starts_with(['/', '.']) => {
                Self::Container { name, path }
            }
            _ => Self::Local(text),
        }
    }
}

pub(super) async fn run(client: &mut Client, args: CpArgs) -> Outcome {
    let _ = args.quiet;
    let owner = if args.archive {
        Owner::Kept
    } else {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Owner::Ids { uid, gid }
    };
    match (Side::parse(&args.source), Side::parse(&args.destination)) {
        (Side::Container { name, path }, to @ (Side::Local(_) | Side::Stream)) => {
            if path.is_empty() {
                return Err(no_path(name));
            }
            let request = api::CopyFromRequest {
                container: name.to_owned(),
                path: path.to_owned(),
                follow: args.follow_link,
            };
            copy_from(client, request, to, owner).await?;
        }
        (from @ (Side::Local(_) | Side::Stream), Side::Container { name, path }) => {
            if path.is_empty() {
                return Err(no_path(name));
            }
            let open = api::CopyToOpen {
                container: name.to_owned(),
                path: path.to_owned(),
                unpack: from == Side::Stream,
                // An archive that somebody made says whose its files are.
                keep_owner: args.archive || from == Side::Stream,
            };
            copy_to(client, open, from, args.follow_link).await?;
        }
        (Side::Container { .. }, Side::Container { .. }) => {
            let text = "copying between containers is not supported: copy to this machine first, or use - and a pipe";
            return Err(Failure::new(text));
        }
        _ => {
            return Err(Failure::new("neither side is in a container: write one of them as CONTAINER:PATH"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn no_path(name: &str) -> Failure {
    Failure::new(format!("no path after {name}: write it as {name}:/PATH"))
}

async fn copy_from(
    client: &mut Client,
    request: api::CopyFromRequest,
    to: Side<'_>,
    owner: Owner,
) -> Result<(), Failure> {
    let path = request.path.clone();
    let mut answers = client.containers.copy_from(request).await?.into_inner();
    let Side::Local(destination) = to else {
        while let Some(api::CopyFromResponse { data }) = answers.message().await? {
            write_stdout(&data)?;
        }
        return Ok(());
    };
    let (read, write) = new_pipe()?;
    let destination = destination.to_owned();
    let unpacking = tokio::task::spawn_blocking(move || receive(&path, &destination, owner, read));
    let mut write = pipe::Sender::from_owned_fd(write).map_err(no_pipe)?;
    let failed = loop {
        match answers.message().await {
            Ok(Some(api::CopyFromResponse { data })) => {
                // Why no more is taken is what the other side says.
                if write.write_all(&data).await.is_err() {
                    break None;
                }
            }
            Ok(None) => break None,
            Err(status) => break Some(status),
        }
    };
    drop(write);
    let unpacked = unpacking.await.map_err(|e| Failure::new(format!("unpack: {e}")))?;
    match failed {
        Some(status) => Err(status.into()),
        None => unpacked,
    }
}

/// Unpacks what comes out of a container.
fn receive(source: &str, destination: &str, owner: Owner, from: OwnedFd) -> Result<(), Failure> {
    let failed = |error: beta9_archive::Error| Failure::new(chain(&error));
    let is_contents = source.ends_with("/.") || source == "." || source.trim_matches('/').is_empty();
    let name =
        if is_contents { "" } else { source.trim_end_matches('/').rsplit('/').next().unwrap_or_default() };
    let (directory, path) = place(destination)?;
    let tree = Tree::open(&directory, Links::Refused).map_err(failed)?;
    let request = Unpacking { path, placement: Placement::Named, owner, name: Some(name.to_owned()) };
    let skipped = unpack(&tree, &request, std::fs::File::from(from)).map_err(failed)?;
    if skipped > 0 {
        terminal::warning(&format!("{skipped} devices, sockets and pipes were left out"));
    }
    Ok(())
}

/// The directory that a destination is below, and its path in there: its links are the user's own and are followed, those
/// of the archive are not.
fn place(destination: &str) -> Result<(PathBuf, String), Failure> {
    let path = Path::new(destination);
    if destination.is_empty() {
        return Err(Failure::new("the destination is empty: name a file or directory"));
    }
    if path.is_dir() {
        return Ok((path.to_owned(), String::new()));
    }
    // A link to a file means that file.
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
        return Err(Failure::new(format!("{destination:?} names no file: name a file or directory")));
    };
    let slash = if destination.ends_with('/') { "/" } else { "" };
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    Ok((parent, format!("{name}{slash}")))
}

async fn copy_to(
    client: &mut Client,
    open: api::CopyToOpen,
    from: Side<'_>,
    follow: bool,
) -> Result<(), Failure> {
    let (sender, receiver) = mpsc::channel(PENDING);
    let message = |message| api::CopyToRequest { message: Some(message) };
    let sending = async {
        // Whoever stops taking them says why.
        if sender.send(message(Message::Open(open))).await.is_err() {
            return Ok(());
        }
        let (mut input, packing): (Box<dyn tokio::io::AsyncRead + Unpin>, _) = match from {
            Side::Local(source) => {
                let (read, write) = new_pipe()?;
                let request = CopyOut { path: absolute(source)?, follow };
                let packing = tokio::task::spawn_blocking(move || send(&request, write));
                (Box::new(pipe::Receiver::from_owned_fd(read).map_err(no_pipe)?), Some(packing))
            }
            _ => (Box::new(tokio::io::stdin()), None),
        };
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = input.read(&mut buffer).await.map_err(|e| Failure::new(format!("read: {e}")))?;
            if count == 0 {
                break;
            }
            if sender.send(message(Message::Data(buffer[..count].to_vec()))).await.is_err() {
                return Ok(());
            }
        }
        if let Some(packing) = packing {
            packing.await.map_err(|e| Failure::new(format!("pack: {e}")))??;
        }
        let _ = sender.send(message(Message::End(true))).await;
        Ok::<(), Failure>(())
    };
    let copying = client.containers.copy_to(ReceiverStream::new(receiver));
    tokio::pin!(copying);
    tokio::pin!(sending);
    tokio::select! {
        copied = &mut copying => copied.map(drop).map_err(Failure::from),
        sent = &mut sending => {
            // An archive without its end is thrown away by the worker.
            sent?;
            copying.await.map(drop).map_err(Failure::from)
        }
    }
}

/// Packs what goes into a container.
fn send(request: &CopyOut, to: OwnedFd) -> Result<(), Failure> {
    let failed = |error: beta9_archive::Error| Failure::new(chain(&error));
    let root = Tree::open(Path::new("/"), Links::InRoot).map_err(failed)?;
    match pack(&root, request, std::fs::File::from(to)) {
        // The other side stopped reading, and says why.
        Err(error) if error.kind() == beta9_archive::ErrorKind::Stream => Ok(()),
        other => other.map_err(failed),
    }
}

/// A local path from the root, with its end as it was typed.
fn absolute(path: &str) -> Result<String, Failure> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    let here =
        std::env::current_dir().map_err(|e| Failure::new(format!("find the working directory: {e}")))?;
    let here = here.to_str().ok_or_else(|| Failure::new("the working directory has no UTF-8 name"))?;
    Ok(format!("{here}/{path}"))
}

fn write_stdout(data: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data).and_then(|()| stdout.flush()).map_err(|e| match e.kind() {
        io::ErrorKind::BrokenPipe => Failure { message: String::new(), code: 141 },
        _ => Failure::new(format!("write to stdout: {e}")),
    })
}

fn new_pipe() -> Result<(OwnedFd, OwnedFd), Failure> {
    let (read, write) = io::pipe().map_err(no_pipe)?;
    Ok((read.into(), write.into()))
}

fn no_pipe(error: io::Error) -> Failure {
    Failure::new(format!("make a pipe: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sides_are_told_apart_as_docker_does() {
        assert_eq!(Side::parse("web:/etc"), Side::Container { name: "web", path: "/etc" });
        assert_eq!(Side::parse("web:etc"), Side::Container { name: "web", path: "etc" });
        for local in ["./a:b", "/a:b", "a", "..", ":x"] {
            assert_eq!(Side::parse(local), Side::Local(local));
        }
        assert_eq!(Side::parse("-"), Side::Stream);
    }

    #[test]
    fn a_destination_is_a_directory_and_a_name_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let at = |name: &str| root.join(name).to_str().unwrap().to_owned();
        std::fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", root.join("link")).unwrap();
        assert_eq!(place(root.to_str().unwrap()).unwrap_or_else(|f| panic!("{}", f.message)).1, "");
        for (path, name) in [("file", "file"), ("link", "file"), ("new", "new"), ("new/", "new/")] {
            let found = place(&at(path)).unwrap_or_else(|f| panic!("{}", f.message));
            assert_eq!(found, (root.clone(), name.to_owned()), "{path}");
        }
    }
}
