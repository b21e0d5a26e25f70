//! The keys of `container_runtime_config`, in one table: how each is read, checked and shown.

use std::path::{Component, Path, PathBuf};

use beta9_types::{MemoryMib, QemuAccel, RuntimeSettings, StorageOptions, UidRange};
use serde_json::Value as Json;

use crate::error::Result;
use crate::node::Value;
use crate::reader::{Entry, Reader};

/// Where a key's value lives, which says what it may be.
enum Slot {
    /// A bare name that is looked up in PATH, or an absolute path.
    Program(fn(&mut RuntimeSettings) -> &mut PathBuf),
    /// An absolute path.
    File(fn(&mut RuntimeSettings) -> &mut PathBuf),
    /// An absolute path, or nothing, which means the worker's own file.
    OptionalFile(fn(&mut RuntimeSettings) -> &mut Option<PathBuf>),
    /// An absolute path other than `/`, below which containers have their directories.
    Directory(fn(&mut RuntimeSettings) -> &mut PathBuf),
    Cpus(fn(&mut RuntimeSettings) -> &mut u8),
    Memory(fn(&mut RuntimeSettings) -> &mut MemoryMib),
    Accel(fn(&mut RuntimeSettings) -> &mut QemuAccel),
    Platform(fn(&mut RuntimeSettings) -> &mut String),
    Arguments(fn(&mut RuntimeSettings) -> &mut Vec<String>),
    /// A size of a writable layer.
    Storage(fn(&mut RuntimeSettings) -> &mut Option<u64>),
    Flag(fn(&mut RuntimeSettings) -> &mut bool),
    /// How many of something in a second.
    Rate(fn(&mut RuntimeSettings) -> &mut u32),
    /// A text `FIRST-LAST`.
    Users(fn(&mut RuntimeSettings) -> &mut UidRange),
}

const SETTINGS: [(&str, Slot); 27] = [
    ("runc_bin", Slot::Program(|s| &mut s.runc_bin)),
    ("gvisor_bin", Slot::Program(|s| &mut s.gvisor_bin)),
    ("gvisor_root", Slot::Directory(|s| &mut s.gvisor_root)),
    ("gvisor_platform", Slot::Platform(|s| &mut s.gvisor_platform)),
    ("gvisor_extra_args", Slot::Arguments(|s| &mut s.gvisor_extra_args)),
    ("firecracker_bin", Slot::Program(|s| &mut s.firecracker_bin)),
    ("firecracker_jailer", Slot::Program(|s| &mut s.firecracker_jailer)),
    ("require_jailer", Slot::Flag(|s| &mut s.require_jailer)),
    ("jail_uids", Slot::Users(|s| &mut s.jail_uids)),
    ("firecracker_root", Slot::Directory(|s| &mut s.firecracker_root)),
    ("firecracker_kernel", Slot::File(|s| &mut s.firecracker_kernel)),
    ("firecracker_initrd", Slot::OptionalFile(|s| &mut s.firecracker_initrd)),
    ("firecracker_cpus", Slot::Cpus(|s| &mut s.firecracker_cpus)),
    ("firecracker_mem_mib", Slot::Memory(|s| &mut s.firecracker_mem_mib)),
    ("qemu_bin", Slot::Program(|s| &mut s.qemu_bin)),
    ("qemu_accel", Slot::Accel(|s| &mut s.qemu_accel)),
    ("qemu_kernel", Slot::File(|s| &mut s.qemu_kernel)),
    ("qemu_initrd", Slot::OptionalFile(|s| &mut s.qemu_initrd)),
    ("qemu_cpus", Slot::Cpus(|s| &mut s.qemu_cpus)),
    ("qemu_mem_mib", Slot::Memory(|s| &mut s.qemu_mem_mib)),
    ("qemu_root", Slot::Directory(|s| &mut s.qemu_root)),
    ("vhost_device_vsock_bin", Slot::Program(|s| &mut s.vhost_device_vsock_bin)),
    ("storage_size", Slot::Storage(|s| &mut s.storage_size)),
    ("disk_mib_per_second", Slot::Rate(|s| &mut s.disk_mib_per_second)),
    ("disk_operations_per_second", Slot::Rate(|s| &mut s.disk_operations_per_second)),
    ("memory_balloon", Slot::Flag(|s| &mut s.memory_balloon)),
    ("debug", Slot::Flag(|s| &mut s.debug)),
];

/// gVisor's platforms (runsc's `--platform`).
const PLATFORMS: [&str; 3] = ["systrap", "ptrace", "kvm"];
const MAX_CPUS: u32 = 32;
const MIN_MEMORY: u32 = 96;
const MAX_MEMORY: u32 = 1 << 20;
/// More than any disk does.
const MAX_RATE: u32 = 100_000_000;
const MAX_ARGUMENTS: usize = 64;

/// The keys, in the order in which they are shown.
pub(crate) fn names() -> Vec<&'static str> {
    SETTINGS.iter().map(|(name, _)| *name).collect()
}

/// Reads the mapping into `settings` and returns the keys that said something other than "the default".
pub(crate) fn read(
    reader: &Reader<'_>,
    entry: &Entry<'_>,
    settings: &mut RuntimeSettings,
) -> Result<Vec<(&'static str, u32)>> {
    let mut keys = reader.keys(entry.node, &entry.path, &names())?;
    let mut given = Vec::new();
    for (name, slot) in &SETTINGS {
        if let Some(entry) = keys.take(name)
            && slot.read(reader, &entry, settings)?
        {
            given.push((*name, entry.key.at.line));
        }
    }
    Ok(given)
}

/// The effective values, in the table's order.
pub(crate) fn show(settings: &RuntimeSettings) -> Vec<(&'static str, Json)> {
    // The slots lend mutably; a copy of a few strings is cheaper to read than a second table.
    let mut copy = settings.clone();
    SETTINGS.iter().map(|(name, slot)| (*name, slot.show(&mut copy))).collect()
}

impl Slot {
    /// Puts the value in place; `false` where the file asks for the default.
    fn read(&self, reader: &Reader<'_>, entry: &Entry<'_>, settings: &mut RuntimeSettings) -> Result<bool> {
        match self {
            Self::Program(slot) => put(slot(settings), read_path(reader, entry, Rule::Program)?),
            Self::File(slot) => put(slot(settings), read_path(reader, entry, Rule::File)?),
            Self::Directory(slot) => put(slot(settings), read_path(reader, entry, Rule::Directory)?),
            Self::OptionalFile(slot) => {
                let path = read_path(reader, entry, Rule::File)?;
                put(slot(settings), path.map(Some))
            }
            Self::Cpus(slot) => {
                let number = reader.number(entry, 1, MAX_CPUS)?;
                put(slot(settings), number.and_then(|number| u8::try_from(number).ok()))
            }
            Self::Memory(slot) => {
                let number = reader.number(entry, MIN_MEMORY, MAX_MEMORY)?;
                put(slot(settings), number.and_then(|number| MemoryMib::try_from(number).ok()))
            }
            Self::Accel(slot) => {
                let words = QemuAccel::ALL.map(QemuAccel::as_str);
                let word = read_word(reader, entry, &words)?;
                put(
                    slot(settings),
                    word.and_then(|word| QemuAccel::ALL.into_iter().find(|a| a.as_str() == word)),
                )
            }
            Self::Platform(slot) => {
                put(slot(settings), read_word(reader, entry, &PLATFORMS)?.map(str::to_owned))
            }
            Self::Arguments(slot) => put(slot(settings), read_arguments(reader, entry)?),
            Self::Storage(slot) => {
                let bytes = crate::size::read(reader, entry)?;
                let range = StorageOptions::MIN_BYTES..=StorageOptions::MAX_BYTES;
                if let Some(bytes) = bytes.filter(|bytes| !range.contains(bytes)) {
                    let rule = "use a size from 16m to 16t";
                    return Err(reader.invalid(entry, &crate::size::show(bytes), rule));
                }
                put(slot(settings), bytes.map(Some))
            }
            Self::Rate(slot) => put(slot(settings), reader.number(entry, 1, MAX_RATE)?),
            Self::Users(slot) => {
                let Some(text) = reader.text(entry)? else { return Ok(false) };
                let range = UidRange::parse(text).map_err(|_| reader.invalid(entry, text, UidRange::RULE))?;
                put(slot(settings), Some(range))
            }
            Self::Flag(slot) => match entry.node.value {
                Value::Null => Ok(false),
                _ => put(slot(settings), Some(reader.flag(entry)?)),
            },
        }
    }

    fn show(&self, settings: &mut RuntimeSettings) -> Json {
        match self {
            Self::Program(slot) | Self::File(slot) | Self::Directory(slot) => {
                slot(settings).display().to_string().into()
            }
            Self::OptionalFile(slot) => slot(settings).as_ref().map(|path| path.display().to_string()).into(),
            Self::Cpus(slot) => (*slot(settings)).into(),
            Self::Memory(slot) => slot(settings).get().into(),
            Self::Accel(slot) => slot(settings).as_str().into(),
            Self::Platform(slot) => slot(settings).clone().into(),
            Self::Arguments(slot) => slot(settings).clone().into(),
            Self::Storage(slot) => {
                (*slot(settings)).map_or(Json::Null, |bytes| crate::size::show(bytes).into())
            }
            Self::Flag(slot) => (*slot(settings)).into(),
            Self::Rate(slot) => (*slot(settings)).into(),
            Self::Users(slot) => slot(settings).to_string().into(),
        }
    }
}

fn put<T>(place: &mut T, value: Option<T>) -> Result<bool> {
    let given = value.is_some();
    if let Some(value) = value {
        *place = value;
    }
    Ok(given)
}

/// What a path must be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A bare name or an absolute path.
    Program,
    /// An absolute path.
    File,
    /// An absolute path below `/`.
    Directory,
}

/// A path; `None` where it is null or empty.
pub(crate) fn read_path(reader: &Reader<'_>, entry: &Entry<'_>, rule: Rule) -> Result<Option<PathBuf>> {
    let Some(text) = reader.text(entry)? else { return Ok(None) };
    let path = Path::new(text);
    let refuse = |what: &str| Err(reader.invalid(entry, text, what));
    if text.len() > 4095 || text.chars().any(char::is_control) {
        return refuse("use a path without control characters, at most 4095 bytes long");
    }
    if path.components().any(|component| component == Component::ParentDir) {
        return refuse("use a path without \"..\"");
    }
    match rule {
        Rule::Program
            if !path.is_absolute() && (text.contains('/') || text == "." || text.starts_with('-')) =>
        {
            refuse("use an absolute path, or a bare name that is looked up in PATH")
        }
        Rule::File | Rule::Directory if !path.is_absolute() => refuse("use an absolute path"),
        Rule::Program if path.is_absolute() && path.file_name().is_none() => {
            refuse("use the path of a program")
        }
        Rule::File | Rule::Directory if path.file_name().is_none() => refuse("use a path below /"),
        _ => Ok(Some(path.to_owned())),
    }
}

fn read_word<'n>(reader: &Reader<'_>, entry: &Entry<'n>, allowed: &[&str]) -> Result<Option<&'n str>> {
    match reader.text(entry)? {
        Some(text) if !allowed.contains(&text) => Err(reader.unknown_word(entry, text, allowed)),
        word => Ok(word),
    }
}

/// One text that is split at white space, or a list with one argument per item; `None` where there is none.
fn read_arguments(reader: &Reader<'_>, entry: &Entry<'_>) -> Result<Option<Vec<String>>> {
    let arguments: Vec<String> = match &entry.node.value {
        Value::Null => Vec::new(),
        Value::Text(text) if text.contains(['"', '\'', '\\']) => {
            let rule = "quotes mean nothing here; write a list with one argument per item";
            return Err(reader.invalid(entry, text, rule));
        }
        Value::Text(text) => text.split_whitespace().map(str::to_owned).collect(),
        _ => {
            let mut list = Vec::new();
            for item in reader.list(entry, "a text or a list of texts")? {
                match reader.text(&item)? {
                    Some(text) => list.push(text.to_owned()),
                    None => return Err(reader.invalid(&item, "", "remove the empty argument")),
                }
            }
            list
        }
    };
    if arguments.len() > MAX_ARGUMENTS {
        let count = arguments.len().to_string();
        return Err(reader.invalid(entry, &count, format!("use at most {MAX_ARGUMENTS} arguments")));
    }
    if let Some(bad) = arguments.iter().find(|argument| argument.chars().any(char::is_control)) {
        return Err(reader.invalid(entry, bad, "use arguments without control characters"));
    }
    // The program would take a first word without dashes for its subcommand.
    if let Some(first) = arguments.first().filter(|first| !first.starts_with('-')) {
        return Err(reader.invalid(entry, first, "use flags, which start with \"-\""));
    }
    Ok((!arguments.is_empty()).then_some(arguments))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_setting_and_shows_what_serde_sees() {
        let settings = RuntimeSettings::default();
        let serde_json::Value::Object(fields) = serde_json::to_value(&settings).unwrap() else { panic!() };
        let shown: serde_json::Map<_, _> =
            show(&settings).into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        assert_eq!(shown.keys().collect::<Vec<_>>(), fields.keys().collect::<Vec<_>>());
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            assert_eq!(&shown[name], value, "{name}");
        }
    }
}
