//! A file server for the share: the few FUSE requests (linux/fuse.h) that a shell needs, on files in memory.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

use beta9_types::ContainerId;
use beta9_wire::{Frame, ShareOpen, decode, read_frame};

const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// The exported files by their path in the share, `0/hello`; every directory above one exists.
pub(crate) type Files = Arc<Mutex<HashMap<String, Vec<u8>>>>;

/// Serves every share connection with these files.
pub(crate) fn serve(listener: UnixListener, files: Files) {
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let files = Arc::clone(&files);
            std::thread::spawn(move || {
                let Frame::Message(body) = read_frame(&mut stream).unwrap() else {
                    panic!("data on a share")
                };
                let ShareOpen { container } = decode("share", &body).unwrap();
                Server { files, paths: vec![String::new()], _container: container }.run(&mut stream)
            });
        }
    });
}

struct Server {
    files: Files,
    /// Paths by node id, which counts from 1, the root.
    paths: Vec<String>,
    _container: ContainerId,
}

impl Server {
    fn run(mut self, stream: &mut UnixStream) -> io::Result<()> {
        loop {
            let mut header = [0; 40];
            stream.read_exact(&mut header)?;
            let [length, opcode] = [u32_at(&header, 0), u32_at(&header, 4)];
            let (unique, node) = (u64_at(&header, 8), u64_at(&header, 16));
            let mut body = vec![0; length as usize - header.len()];
            stream.read_exact(&mut body)?;
            let (error, reply) = match self.answer(opcode, node, &body) {
                // FORGET, BATCH_FORGET and INTERRUPT are not answered.
                _ if matches!(opcode, 2 | 36 | 42) => continue,
                Ok(reply) => (0, reply),
                Err(error) => (-error, Vec::new()),
            };
            let mut message = Vec::new();
            message.extend((16 + reply.len() as u32).to_ne_bytes());
            message.extend(error.to_ne_bytes());
            message.extend(unique.to_ne_bytes());
            message.extend(reply);
            stream.write_all(&message)?;
        }
    }

    fn answer(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let path = self.paths.get((node as usize).wrapping_sub(1)).cloned().unwrap_or_default();
        let mut files = self.files.lock().unwrap();
        match opcode {
            // INIT: protocol 7.31, writes of up to 1 MiB (FUSE_BIG_WRITES, FUSE_MAX_PAGES).
            26 => {
                let mut reply = words(&[7, 31, 1 << 20, 1 << 5 | 1 << 22, 16 << 16 | 16, 1 << 20, 1, 256]);
                reply.resize(64, 0);
                Ok(reply)
            }
            // LOOKUP
            1 => {
                let name = std::str::from_utf8(&body[..body.len() - 1]).unwrap();
                let child = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
                let attributes = attributes(&files, &child)?;
                let known = self.paths.iter().position(|path| *path == child);
                let index = known.unwrap_or_else(|| {
                    self.paths.push(child);
                    self.paths.len() - 1
                });
                let mut reply = (index as u64 + 1).to_ne_bytes().to_vec();
                reply.resize(40, 0);
                reply.extend(attributes);
                Ok(reply)
            }
            // GETATTR, SETATTR (of which a shell needs the size)
            3 | 4 => {
                const SIZE: u32 = 1 << 3;
                if opcode == 4 && u32_at(body, 0) & SIZE != 0 {
                    files.get_mut(&path).ok_or(ENOENT)?.resize(u64_at(body, 16) as usize, 0);
                }
                let mut reply = vec![0; 16];
                reply.extend(attributes(&files, &path)?);
                Ok(reply)
            }
            // OPEN, OPENDIR
            14 | 27 => Ok(vec![0; 16]),
            // READ
            15 => {
                let file = files.get(&path).ok_or(ENOENT)?;
                let start = (u64_at(body, 8) as usize).min(file.len());
                let end = (start + u32_at(body, 16) as usize).min(file.len());
                Ok(file[start..end].to_vec())
            }
            // WRITE
            16 => {
                let file = files.get_mut(&path).ok_or(ENOENT)?;
                let (start, data) = (u64_at(body, 8) as usize, &body[40..]);
                let end = start + data.len();
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(data);
                Ok(words(&[data.len() as u32, 0]))
            }
            // READDIR: of an empty directory, which is enough for `ls` not to fail.
            28 => Ok(Vec::new()),
            // RELEASE, FSYNC, FLUSH, RELEASEDIR
            18 | 20 | 25 | 29 => Ok(Vec::new()),
            _ => Err(ENOSYS),
        }
    }
}

/// `struct fuse_attr` of a file or of a directory above one.
fn attributes(files: &HashMap<String, Vec<u8>>, path: &str) -> Result<Vec<u8>, i32> {
    let below = |name: &String| path.is_empty() || name.starts_with(&format!("{path}/"));
    let (mode, size) = match files.get(path) {
        Some(data) => (0o100_666, data.len() as u64),
        None if files.keys().any(below) => (0o040_777, 0),
        None => return Err(ENOENT),
    };
    let mut attributes = Vec::new();
    attributes.extend([1, size, size / 512, 0, 0, 0].iter().flat_map(|word: &u64| word.to_ne_bytes()));
    attributes.extend(words(&[0, 0, 0, mode, 1, 0, 0, 0, 4096, 0]));
    Ok(attributes)
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}
