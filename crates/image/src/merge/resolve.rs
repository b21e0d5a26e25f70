//! Paths in the index, resolved as the kernel resolves them below a root (openat2(2), `RESOLVE_IN_ROOT`): a link is
//! followed from where it is, an absolute one from the root, and `..` does not leave it.

use std::collections::VecDeque;

use super::index::{Body, Index, Inode, Spot};
use crate::apply::Shown;
use crate::{Error, ErrorKind, Result};

/// Most symbolic links in one path, as in the kernel (path_resolution(7)).
const MAX_LINKS: usize = 40;

const NAME_MAX: usize = 255;
const PATH_MAX: usize = 4096;

/// A directory that was found, and the way to it.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// From the root; never empty.
    way: Vec<(Inode, usize)>,
}

impl Found {
    fn root() -> Self {
        Self { way: vec![(Inode::ROOT, 0)] }
    }

    fn inode(&self) -> Inode {
        self.way.last().map_or(Inode::ROOT, |(inode, _)| *inode)
    }

    fn enter(&mut self, inode: Inode, name: usize) {
        self.way.push((inode, name));
    }

    fn leave(&mut self) {
        if self.way.len() > 1 {
            self.way.pop();
        }
    }

    pub(super) fn child(&self, name: &[u8]) -> Spot {
        let names = self.way.iter().skip(1);
        let above = names.clone().map(|(_, bytes)| bytes + 1).sum::<usize>().saturating_sub(1);
        Spot { directory: self.inode(), name: name.to_owned(), depth: names.count(), above }
    }
}

/// Why a path leads to no directory.
enum Lost {
    /// A component is missing.
    Missing,
    /// A component is a file.
    File,
    Error(Error),
}

impl Index {
    /// Finds a directory; `None` if a part of the path is missing.
    pub(super) fn lookup(&self, directory: &[u8]) -> Result<Option<Found>> {
        match self.walk(Found::root(), directory) {
            Ok(found) => Ok(Some(found)),
            Err(Lost::Missing) => Ok(None),
            Err(Lost::File) => {
                let message = format!("is below {:?}, which is no directory", Shown(directory));
                Err(Error::new(ErrorKind::Invalid, message))
            }
            Err(Lost::Error(error)) => Err(error),
        }
    }

    /// Finds the directory that an existing file lies in; `None` if there is no such directory.
    pub(super) fn existing(&self, path: &[u8]) -> Result<Option<Spot>> {
        let (directory, name) = split(path);
        if name.is_empty() {
            return Ok(None);
        }
        match self.walk(Found::root(), directory) {
            Ok(found) => Ok(Some(found.child(name))),
            Err(Lost::Missing | Lost::File) => Ok(None),
            Err(Lost::Error(error)) => Err(error),
        }
    }

    /// Whether a directory is another one, or lies below it.
    pub(super) fn is_below(&self, directory: Inode, above: Inode) -> bool {
        let mut left = vec![above];
        while let Some(inode) = left.pop() {
            if inode == directory {
                return true;
            }
            let names = self.names(inode).into_iter().flatten();
            left.extend(names.map(|(_, name)| name.inode).filter(|inode| self.names(*inode).is_some()));
        }
        false
    }

    fn walk(&self, start: Found, path: &[u8]) -> Result<Found, Lost> {
        if path.len() >= PATH_MAX {
            return Err(too_long(path));
        }
        let mut at = start;
        let mut left: VecDeque<Vec<u8>> = components(path).collect();
        let mut links = 0;
        while let Some(component) = left.pop_front() {
            let Some(names) = self.names(at.inode()) else { return Err(Lost::File) };
            match component.as_slice() {
                b"." => continue,
                b".." => {
                    at.leave();
                    continue;
                }
                long if long.len() > NAME_MAX => return Err(too_long(path)),
                _ => {}
            }
            let inode = names.get(&component).ok_or(Lost::Missing)?.inode;
            match &self.node(inode).body {
                Body::Directory(_) => at.enter(inode, component.len()),
                Body::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        let message = format!("is below {:?}, where symbolic links form a loop", Shown(path));
                        return Err(Lost::Error(Error::new(ErrorKind::Invalid, message)));
                    }
                    if target.starts_with(b"/") {
                        at = Found::root();
                    }
                    for component in components(target).collect::<Vec<_>>().into_iter().rev() {
                        left.push_front(component);
                    }
                }
                _ => return Err(Lost::File),
            }
        }
        Ok(at)
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|component| !component.is_empty()).map(<[u8]>::to_owned)
}

/// The directory and the last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn too_long(path: &[u8]) -> Lost {
    let message = format!("is below {:?}, a path that is too long", Shown(path));
    Lost::Error(Error::new(ErrorKind::Limit, message))
}
