//! The container's root file system: the image's drive, the writable layer, and their overlay.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use beta9_wire::{RootDisk, WritableLayer};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, Timespec, inotify};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::failure::{Context, Failure, Result};
use crate::modules::Modules;

/// How long a drive may take to appear after the machine has booted.
const DRIVE_DEADLINE: Duration = Duration::from_secs(5);

/// The mounts of one container's root. Dropping them unmounts them, newest first.
pub(super) struct Disks {
    place: PathBuf,
    mounted: Vec<PathBuf>,
}

impl Disks {
    /// Mounts everything below `place`.
    pub(super) fn mount(place: &Path, root: &RootDisk, modules: &Modules) -> Result<Self> {
        let mut disks = Self { place: place.to_owned(), mounted: Vec::new() };
        if !["erofs", "squashfs", "ext4"].contains(&root.format.as_str()) {
            return Err(Failure::refused(format!("a root file system of the kind {:?}", root.format)));
        }
        modules.load(&root.format);
        modules.load("overlay");
        let drive = drive(root.drive)?;
        let image = disks.attach("image", &drive, &root.format, MountFlags::RDONLY, "")?;
        let layer = match root.writable {
            WritableLayer::Drive(index) => {
                modules.load("ext4");
                let drive = self::drive(index)?;
                disks.attach("layer", &drive, "ext4", MountFlags::NOATIME, "")?
            }
            WritableLayer::Memory(bytes) => {
                let data = format!("size={bytes},mode=0755");
                disks.attach("layer", Path::new("tmpfs"), "tmpfs", MountFlags::NOATIME, &data)?
            }
        };
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        make_directory(&upper)?;
        make_directory(&work)?;
        like(&image, &upper)?;
        let data =
            format!("lowerdir={},upperdir={},workdir={}", image.display(), upper.display(), work.display());
        disks.attach("root", Path::new("overlay"), "overlay", MountFlags::empty(), &data)?;
        Ok(disks)
    }

    /// The directory that becomes the container's `/`.
    pub(super) fn root(&self) -> PathBuf {
        self.place.join("root")
    }

    fn attach(
        &mut self,
        name: &str,
        source: &Path,
        kind: &str,
        flags: MountFlags,
        data: &str,
    ) -> Result<PathBuf> {
        let target = self.place.join(name);
        make_directory(&target)?;
        let options = std::ffi::CString::new(data).context(|| "mount options")?;
        mount(source, &target, kind, flags, options.as_c_str())
            .context(|| format!("mount {} as {kind} for the container's {name}", source.display()))?;
        self.mounted.push(target.clone());
        Ok(target)
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for target in self.mounted.iter().rev() {
            // Detached, it goes when its last user does.
            if let Err(error) = unmount(target, UnmountFlags::DETACH) {
                crate::report::warn(&format!("unmount {}: {error}", target.display()));
            }
            let _ = fs::remove_dir(target);
        }
        let _ = fs::remove_dir(&self.place);
    }
}

fn make_directory(path: &Path) -> Result<()> {
    fs::create_dir_all(path).context(|| format!("create {}", path.display()))
}

/// Gives the overlay's upper directory, which is the container's `/`, the owner and mode of the image's.
fn like(image: &Path, upper: &Path) -> Result<()> {
    let metadata = fs::metadata(image).context(|| format!("look at {}", image.display()))?;
    std::os::unix::fs::chown(upper, Some(metadata.uid()), Some(metadata.gid()))
        .context(|| format!("change the owner of {}", upper.display()))?;
    rustix::fs::chmod(upper, Mode::from_raw_mode(metadata.mode()))
        .context(|| format!("change the mode of {}", upper.display()))
}

/// The device of the `index`th drive; waits for it where it has not appeared yet.
fn drive(index: u8) -> Result<PathBuf> {
    let letter = (b'a'..=b'z').nth(index.into()).ok_or_else(|| Failure::refused(format!("drive {index}")))?;
    let path = PathBuf::from(format!("/dev/vd{}", char::from(letter)));
    if path.exists() {
        return Ok(path);
    }
    let end = Instant::now() + DRIVE_DEADLINE;
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let watch = inotify::init(flags).context(|| "watch /dev")?;
    inotify::add_watch(&watch, "/dev", inotify::WatchFlags::CREATE).context(|| "watch /dev")?;
    let mut buffer = [0; 4096];
    // Looked at after the watch has begun, so it cannot appear unnoticed in between.
    while !path.exists() {
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Err(Failure::refused(format!("the machine has no drive {}", path.display())));
        }
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: rest.subsec_nanos().into() };
        let _ = poll(&mut [PollFd::new(&watch, PollFlags::IN)], Some(&timeout));
        let _ = rustix::io::read(&watch, &mut buffer);
    }
    Ok(path)
}
