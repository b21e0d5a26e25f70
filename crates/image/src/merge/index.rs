//! What the layers leave: a file system in memory, without the files' contents.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::stream::Form;
use crate::apply::{Contents, Destination, Device, Entry, EntryPath, Kind, Limits, Metadata, Part, Shown};
use crate::{Error, ErrorKind, Result};

/// Most bytes of contents in an index. A file of users has a few thousand.
const MAX_KEPT: u64 = 4 << 20;

/// A file's number in the index. Names that are hard links share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Inode(usize);

impl Inode {
    pub(super) const ROOT: Self = Self(0);
}

/// Which file of which layer has the contents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    /// The layer's number.
    pub(super) layer: u32,
    /// How manieth entry it is there.
    pub(super) entry: u64,
}

/// What an inode is.
#[derive(Debug)]
pub(super) enum Body {
    Directory(Directory),
    File { size: u64, origin: Origin },
    Symlink(Vec<u8>),
    Fifo,
    Character(Device),
    Block(Device),
}

/// Names in the order of their bytes.
pub(super) type Directory = BTreeMap<Vec<u8>, Name>;

#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) inode: Inode,
    /// The last layer that described it: its whiteouts only hide what is older.
    layer: u32,
}

#[derive(Debug)]
pub(super) struct Node {
    pub(super) metadata: Metadata,
    pub(super) body: Body,
}

/// The file system that all layers together describe.
#[derive(Debug)]
pub(crate) struct Index {
    nodes: Vec<Node>,
    /// Contents of files that may say which users there are.
    kept: HashMap<Origin, Vec<u8>>,
}

/// An index under construction.
pub(crate) struct Indexer {
    index: Index,
    limits: Limits,
    layers: u32,
    /// Directories in which only the current layer's files are left. To look again would find nothing, and a layer may
    /// ask for it as often as it likes.
    opaque: HashSet<Inode>,
    entries: u64,
    buffer: Vec<u8>,
    kept_bytes: u64,
}

/// One name in a directory of the index.
#[derive(Debug, Clone)]
pub(super) struct Spot {
    pub(super) directory: Inode,
    pub(super) name: Vec<u8>,
    /// Directories above, and bytes of the path to the directory.
    pub(super) depth: usize,
    pub(super) above: usize,
}

impl Index {
    pub(super) fn node(&self, inode: Inode) -> &Node {
        &self.nodes[inode.0]
    }

    /// The names in a directory; none in anything else.
    pub(super) fn names(&self, inode: Inode) -> Option<&Directory> {
        match &self.node(inode).body {
            Body::Directory(names) => Some(names),
            _ => None,
        }
    }

    fn names_mut(&mut self, inode: Inode) -> Option<&mut Directory> {
        match &mut self.nodes[inode.0].body {
            Body::Directory(names) => Some(names),
            _ => None,
        }
    }

    pub(super) fn at(&self, spot: &Spot) -> Option<Name> {
        self.names(spot.directory)?.get(&spot.name).copied()
    }

    fn is_directory(&self, inode: Inode) -> bool {
        self.names(inode).is_some()
    }

    fn add(&mut self, node: Node) -> Inode {
        self.nodes.push(node);
        Inode(self.nodes.len() - 1)
    }

    /// Whether the form holds all that the image says.
    pub(crate) fn fits(&self, form: Form) -> bool {
        // The root of a squashfs made of a tar is root's, and has no attributes.
        let root = self.root();
        let root =
            form == Form::Whole || (root.uid == 0 && root.gid == 0 && root.attributes().next().is_none());
        root && self.reachable().into_iter().all(|inode| form.holds(&self.node(inode).metadata))
    }

    /// What the root directory is.
    pub(crate) fn root(&self) -> &Metadata {
        &self.node(Inode::ROOT).metadata
    }

    /// Every inode that has a name, directories before what is in them.
    fn reachable(&self) -> Vec<Inode> {
        let mut found = vec![Inode::ROOT];
        let mut next = 0;
        while let Some(inode) = found.get(next).copied() {
            next += 1;
            found.extend(self.names(inode).into_iter().flatten().map(|(_, name)| name.inode));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The files that say which users there are, by their paths; `None` if they are not plain small files.
    pub(crate) fn accounts(&self) -> Option<Vec<(&'static str, &[u8])>> {
        let mut found = Vec::new();
        for path in ["etc/passwd", "etc/group"] {
            let Some(name) = self.existing(path.as_bytes()).ok()?.and_then(|spot| self.at(&spot)) else {
                continue;
            };
            let Body::File { origin, .. } = &self.node(name.inode).body else { return None };
            found.push((path, self.kept.get(origin)?.as_slice()));
        }
        Some(found)
    }

    /// Which inode's contents each entry of the layers holds.
    pub(super) fn origins(&self) -> HashMap<Origin, Inode> {
        let files = self.reachable().into_iter().filter_map(|inode| match self.node(inode).body {
            Body::File { origin, .. } => Some((origin, inode)),
            _ => None,
        });
        files.collect()
    }
}

impl Indexer {
    pub(crate) fn new(limits: Limits) -> Self {
        let root = Node { metadata: Metadata::implied(), body: Body::Directory(Directory::new()) };
        Self {
            index: Index { nodes: vec![root], kept: HashMap::new() },
            kept_bytes: 0,
            limits,
            layers: 0,
            opaque: HashSet::new(),
            entries: 0,
            buffer: vec![0; 64 << 10],
        }
    }

    pub(crate) fn finish(self) -> Index {
        self.index
    }

    /// Reads over a file's contents. They are kept where they may be needed, and few.
    fn contents(&mut self, path: &EntryPath, origin: Origin, contents: &mut Contents<'_>) -> Result<()> {
        let mut kept = Vec::new();
        let wanted = matches!(path.split(), Some((_, b"passwd" | b"group")))
            && self.kept_bytes.saturating_add(contents.size) <= MAX_KEPT;
        loop {
            match contents.next(&mut self.buffer)? {
                Part::Data(count) if wanted => kept.extend_from_slice(&self.buffer[..count]),
                Part::Hole(bytes) if wanted => kept.resize(kept.len() + bytes as usize, 0),
                Part::Data(_) | Part::Hole(_) => {}
                Part::End => break,
            }
        }
        if wanted {
            self.kept_bytes += kept.len() as u64;
            self.index.kept.insert(origin, kept);
        }
        Ok(())
    }

    /// Finds where `path`, which is not the root, goes. Missing directories are made.
    fn place(&mut self, path: &EntryPath) -> Result<Spot> {
        let Some((directory, name)) = path.split() else {
            return Err(Error::new(ErrorKind::Invalid, "replaces the root itself"));
        };
        let mut spot = match self.index.lookup(directory)? {
            Some(found) => found.child(name),
            None => self.make_directories(directory)?.child(name),
        };
        spot.check(&self.limits)?;
        spot.name = name.to_owned();
        Ok(spot)
    }

    fn make_directories(&mut self, directory: &[u8]) -> Result<super::resolve::Found> {
        let ends = (0..directory.len()).filter(|at| directory[*at] == b'/').chain([directory.len()]);
        let mut start = 0;
        for end in ends {
            if self.index.lookup(&directory[..end])?.is_none() {
                let above = directory[..start].strip_suffix(b"/").unwrap_or_default();
                let spot = self.index.lookup(above)?.map(|found| found.child(&directory[start..end]));
                let spot = spot.ok_or_else(|| nowhere(above))?;
                spot.check(&self.limits)?;
                if self.index.at(&spot).is_some() {
                    let shown = Shown(&directory[..end]);
                    let message = format!("is below {shown:?}, a symbolic link to nothing");
                    return Err(Error::new(ErrorKind::Invalid, message));
                }
                let body = Body::Directory(Directory::new());
                let inode = self.index.add(Node { metadata: Metadata::implied(), body });
                self.name(&spot, inode);
            }
            start = end + 1;
        }
        self.index.lookup(directory)?.ok_or_else(|| nowhere(directory))
    }

    /// Gives an inode a name, in place of what had it.
    fn name(&mut self, spot: &Spot, inode: Inode) {
        let layer = self.layers;
        if let Some(names) = self.index.names_mut(spot.directory) {
            names.insert(spot.name.clone(), Name { inode, layer });
        }
    }

    /// Hides what older layers have there and spares what this layer made.
    fn hide(&mut self, directory: Inode, name: &[u8]) {
        let Some(found) = self.index.names(directory).and_then(|names| names.get(name)).copied() else {
            return;
        };
        if found.layer != self.layers {
            if let Some(names) = self.index.names_mut(directory) {
                names.remove(name);
            }
        } else if self.index.is_directory(found.inode) {
            self.hide_all(found.inode);
        }
    }

    fn hide_all(&mut self, directory: Inode) {
        if !self.opaque.insert(directory) {
            return;
        }
        let names: Vec<_> =
            self.index.names(directory).into_iter().flatten().map(|(n, _)| n.clone()).collect();
        for name in names {
            self.hide(directory, &name);
        }
    }

    fn directory(&mut self, spot: &Spot, metadata: Metadata) {
        match self.index.at(spot) {
            Some(found) if self.index.is_directory(found.inode) => {
                self.index.nodes[found.inode.0].metadata = metadata;
                self.name(spot, found.inode);
            }
            _ => {
                let inode = self.index.add(Node { metadata, body: Body::Directory(Directory::new()) });
                self.name(spot, inode);
            }
        }
    }

    fn hard_link(&mut self, spot: &Spot, target: &EntryPath) -> Result<()> {
        let missing = || {
            let message = format!("is a hard link to {target}, which is not in the image");
            Error::new(ErrorKind::Invalid, message)
        };
        let source = self.index.existing(target.as_bytes())?.ok_or_else(missing)?;
        let found = self.index.at(&source).ok_or_else(missing)?;
        if self.index.is_directory(found.inode) {
            let message = format!("is a hard link to {target}, which is a directory");
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        // The directory that has to give way may hold the target.
        if let Some(there) = self.index.at(spot)
            && self.index.is_directory(there.inode)
            && self.index.is_below(source.directory, there.inode)
        {
            return Err(missing());
        }
        self.name(spot, found.inode);
        Ok(())
    }
}

fn nowhere(directory: &[u8]) -> Error {
    Error::new(ErrorKind::Invalid, format!("is below {:?}, which is no directory", Shown(directory)))
}

impl Spot {
    fn check(&self, limits: &Limits) -> Result<()> {
        if self.depth > limits.depth {
            let message = format!("is more than {} directories deep", limits.depth);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        if self.above + 1 + self.name.len() > limits.path_bytes {
            let message = format!("has a path of more than {} bytes", limits.path_bytes);
            return Err(Error::new(ErrorKind::Limit, message));
        }
        Ok(())
    }
}

impl Destination for Indexer {
    fn begin_layer(&mut self) {
        self.layers += 1;
        self.opaque.clear();
        self.entries = 0;
    }

    fn whiteout(&mut self, path: &EntryPath, hidden: &[u8]) -> Result<()> {
        if let Some(spot) = self.index.existing(path.as_bytes())? {
            self.hide(spot.directory, hidden);
        }
        Ok(())
    }

    fn opaque(&mut self, path: &EntryPath) -> Result<()> {
        if let Some(spot) = self.index.existing(path.as_bytes())? {
            self.hide_all(spot.directory);
        }
        Ok(())
    }

    fn entry(&mut self, path: &EntryPath, entry: Entry, contents: &mut Contents<'_>) -> Result<()> {
        self.entries += 1;
        let Entry { kind, metadata } = entry;
        if path.is_root() {
            self.index.nodes[Inode::ROOT.0].metadata = metadata;
            return Ok(());
        }
        let spot = self.place(path)?;
        let body = match kind {
            Kind::Directory => {
                self.directory(&spot, metadata);
                return Ok(());
            }
            Kind::HardLink(target) => return self.hard_link(&spot, &target),
            Kind::File => {
                let origin = Origin { layer: self.layers, entry: self.entries };
                self.contents(path, origin, contents)?;
                Body::File { size: contents.size, origin }
            }
            Kind::Symlink(target) => Body::Symlink(target),
            Kind::Fifo => Body::Fifo,
            Kind::Character(device) => Body::Character(device),
            Kind::Block(device) => Body::Block(device),
        };
        let inode = self.index.add(Node { metadata, body });
        self.name(&spot, inode);
        Ok(())
    }
}
