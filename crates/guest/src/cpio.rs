//! Writes an initramfs: a `newc` cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
//!
//! Everything belongs to root, has no time of change and gets its inode number from its position, so the same
//! input gives the same bytes.

use std::io::{self, Write};

/// What an entry is, beside its name and mode.
enum Content<'a> {
    Directory,
    File(&'a [u8]),
    CharacterDevice { major: u32, minor: u32 },
}

/// An archive being written.
pub struct Archive<W> {
    to: W,
    written: usize,
    entries: u32,
}

impl<W: Write> Archive<W> {
    /// Starts an archive.
    pub fn new(to: W) -> Self {
        Self { to, written: 0, entries: 0 }
    }

    /// Adds a directory; its parents have to be there already.
    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, 0o040_755, &Content::Directory)
    }

    /// Adds a regular file with these permissions.
    pub fn file(&mut self, name: &str, permissions: u32, body: &[u8]) -> io::Result<()> {
        self.entry(name, 0o100_000 | permissions, &Content::File(body))
    }

    /// Adds a character device that everyone may use.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, 0o020_666, &Content::CharacterDevice { major, minor })
    }

    /// Ends the archive and hands the writer back.
    pub fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, &Content::File(&[]))?;
        self.pad(512)?;
        Ok(self.to)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &Content<'_>) -> io::Result<()> {
        let (body, major, minor): (&[u8], u32, u32) = match content {
            Content::Directory => (&[], 0, 0),
            Content::File(body) => (body, 0, 0),
            Content::CharacterDevice { major, minor } => (&[], *major, *minor),
        };
        let size = u32::try_from(body.len()).map_err(|_| io::Error::other("a file over 4 GiB"))?;
        self.entries += 1;
        let links = if matches!(content, Content::Directory) { 2 } else { 1 };
        let name_size = u32::try_from(name.len() + 1).map_err(|_| io::Error::other("an endless name"))?;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.put(header.as_bytes())?;
        self.put(name.as_bytes())?;
        self.put(&[0])?;
        self.pad(4)?;
        self.put(body)?;
        self.pad(4)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += bytes.len();
        self.to.write_all(bytes)
    }

    fn pad(&mut self, to: usize) -> io::Result<()> {
        let missing = self.written.next_multiple_of(to) - self.written;
        self.put(&vec![0; missing])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn the_cpio_program_reads_what_was_written() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev").unwrap();
        archive.character_device("dev/null", 1, 3).unwrap();
        archive.file("init", 0o755, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        let mut child = match Command::new("cpio")
            .args(["-itv", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(error) => return eprintln!("skipped: cannot run cpio: {error}"),
        };
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<_> = listing.lines().collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert!(lines[0].starts_with("drwxr-xr-x") && lines[0].ends_with(" dev"), "{listing}");
        assert!(lines[1].starts_with("crw-rw-rw-") && lines[1].contains("1,   3"), "{listing}");
        assert!(lines[2].starts_with("-rwxr-xr-x") && lines[2].contains(" 5 "), "{listing}");
    }
}
