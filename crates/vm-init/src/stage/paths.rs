//! Paths of a container, resolved in its root.
//!
//! An image can hold any link. So a path is only ever resolved by the kernel with `RESOLVE_IN_ROOT` (openat2(2)), for
//! which `/` and `..` end at the container's root, and what is found is used by its descriptor.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, readlinkat};
use rustix::io::Errno;

/// Links that end in nothing which are followed while a directory is made: the kernel's own limit for links.
const MAX_LINKS: usize = 40;

/// What a mount goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Directory,
    File,
}

/// A name for an open descriptor that system calls without a descriptor argument take.
pub(super) fn name_of(descriptor: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// What `path` is in the root, without opening it for reading.
pub(super) fn open(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    open_as(root.as_fd(), path, OFlags::PATH)
}

fn open_as(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT)
}

/// Opens `path` in the root; makes it, and the directories above it, where it is missing.
pub(super) fn open_or_make(root: &OwnedFd, path: &str, place: Place) -> Result<OwnedFd, Errno> {
    match open(root, path) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    match place {
        Place::Directory => make_directories(root, path),
        Place::File => {
            let path = Path::new(path);
            let name = path.file_name().ok_or(Errno::INVAL)?;
            let parent = path.parent().and_then(Path::to_str).unwrap_or("/");
            let parent = make_directories(root, parent)?;
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(openat(&parent, name, flags, Mode::from_raw_mode(0o644))?);
            openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        }
    }
}

/// Opens the directory `path` in the root; makes what is missing of it.
pub(super) fn make_directories(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match walk(root, &path)? {
            Walk::Done(directory) => return Ok(directory),
            Walk::DanglingLink { instead } => path = instead,
        }
    }
    Err(Errno::LOOP)
}

enum Walk {
    Done(OwnedFd),
    /// A part of the path is a link to something that does not exist; this is the path with the link replaced.
    DanglingLink {
        instead: String,
    },
}

fn walk(root: &OwnedFd, path: &str) -> Result<Walk, Errno> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    let mut current = open_as(root.as_fd(), ".", directory)?;
    let mut so_far = String::from("/");
    for (index, part) in parts.iter().enumerate() {
        let parent = so_far.clone();
        so_far.push_str(part);
        match open_as(root.as_fd(), &so_far, directory) {
            Ok(next) => current = next,
            Err(Errno::NOENT) => match mkdirat(&current, *part, Mode::from_raw_mode(0o755)) {
                Ok(()) => current = open_as(root.as_fd(), &so_far, directory)?,
                Err(Errno::EXIST) => {
                    let link = readlinkat(&current, *part, Vec::new())?;
                    let link = link.to_str().map_err(|_| Errno::INVAL)?;
                    let above = if link.starts_with('/') { "" } else { parent.as_str() };
                    let rest = parts[index + 1..].join("/");
                    return Ok(Walk::DanglingLink { instead: format!("{above}{link}/{rest}") });
                }
                Err(error) => return Err(error),
            },
            Err(error) => return Err(error),
        }
        so_far.push('/');
    }
    Ok(Walk::Done(current))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let outside = tempfile::tempdir().unwrap();
        let path = outside.path().join("root");
        fs::create_dir(&path).unwrap();
        let root = rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (outside, root)
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let (outside, root) = root();
        let inside = outside.path().join("root");
        open_or_make(&root, "/a/b/c", Place::Directory).unwrap();
        assert!(inside.join("a/b/c").is_dir());
        open_or_make(&root, "/a/x/file", Place::File).unwrap();
        assert!(inside.join("a/x/file").is_file());
        open_or_make(&root, "/a/x/file", Place::File).unwrap();
        assert_eq!(open_or_make(&root, "/a/x/file/below", Place::File).unwrap_err(), Errno::NOTDIR);
    }

    #[test]
    fn no_link_and_no_dots_lead_out_of_the_root() {
        let (outside, root) = root();
        let inside = outside.path().join("root");
        let escape = outside.path().join("escape");
        symlink(&escape, inside.join("absolute")).unwrap();
        symlink("../../escape", inside.join("relative")).unwrap();
        symlink("/", inside.join("to-root")).unwrap();
        for path in ["/absolute/x", "/relative/x", "/../escape/x", "/to-root/../../escape/x"] {
            open_or_make(&root, path, Place::Directory).unwrap();
            assert!(!escape.exists(), "{path} left the root");
        }
        // The same text, read in the root.
        assert!(inside.join(escape.strip_prefix("/").unwrap()).join("x").is_dir());
        assert!(inside.join("escape/x").is_dir());
        open_or_make(&root, "/relative/file", Place::File).unwrap();
        assert!(inside.join("escape/file").is_file());
    }

    #[test]
    fn a_link_to_itself_is_an_error() {
        let (outside, root) = root();
        symlink("loop", outside.path().join("root/loop")).unwrap();
        assert_eq!(open_or_make(&root, "/loop/x", Place::Directory).unwrap_err(), Errno::LOOP);
        assert!(open_or_make(&root, "/loop", Place::File).is_err());
    }
}
