//! Terminals of containers.
//!
//! The runtime program makes a terminal in the container and sends its other end over a socket. From then on it is ours:
//! what comes in by a pipe is typed there, what appears there goes out by another, so that the rest of the host sees
//! two pipes like any others.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use beta9_runtime::{ContainerStdio, Error, ErrorKind, Result};
use beta9_sys::passing::receive_descriptor;
use beta9_types::TerminalSize;
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// A program that says that it is done has sent the terminal before.
const DEADLINE: Duration = Duration::from_secs(10);
/// Bytes moved at a time; the kernel's own buffer of a terminal holds no more.
const CHUNK: usize = 4096;

/// The socket over which a runtime program sends a terminal.
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    file: PathBuf,
    path: PathBuf,
    /// Makes the path valid.
    _directory: File,
}

impl ConsoleSocket {
    /// Listens at `file`. By a path that is short wherever that is: a socket's address holds 107 bytes.
    pub(crate) fn bind(file: &Path) -> Result<Self> {
        let failed = |e| Error::caused(ErrorKind::Failed, format!("listen at {}", file.display()), e);
        let name = file.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let directory = File::open(file.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        let (process, descriptor) = (std::process::id(), directory.as_raw_fd());
        let path = PathBuf::from(format!("/proc/{process}/fd/{descriptor}")).join(name);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        Ok(Self { listener, file: file.to_owned(), path, _directory: directory })
    }

    /// The path for the program.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the terminal. Called when the program has ended, or while it runs.
    pub(crate) async fn receive(&self) -> Result<OwnedFd> {
        let received = async {
            let (stream, _) = self.listener.accept().await?;
            stream.async_io(Interest::READABLE, || receive_descriptor(&stream, 4096)).await
        };
        match tokio::time::timeout(DEADLINE, received).await {
            Ok(received) => received
                .map_err(|e| Error::caused(ErrorKind::Failed, "receive the terminal of a container", e)),
            Err(_) => {
                let text = "the runtime program did not send the terminal that it made";
                Err(Error::new(ErrorKind::Timeout, text))
            }
        }
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}

/// Our end of a process's terminal. Dropping it hangs the terminal up.
pub(crate) struct Terminal {
    master: Arc<AsyncFd<OwnedFd>>,
    typing: Option<JoinHandle<()>>,
    showing: JoinHandle<()>,
}

impl Terminal {
    /// Starts to move bytes between the terminal and the pipes.
    pub(crate) fn start(master: OwnedFd, stdio: ContainerStdio) -> Result<Self> {
        let failed = |e: io::Error| Error::caused(ErrorKind::Failed, "use the terminal of a container", e);
        let ContainerStdio { stdin, stdout, terminal, .. } = stdio;
        if let Some(size) = terminal {
            set_size(&master, size).map_err(failed)?;
        }
        rustix::fs::fcntl_setfl(&master, OFlags::NONBLOCK | OFlags::RDWR).map_err(|e| failed(e.into()))?;
        #[expect(
            deprecated,
            reason = "an OwnedFd is what it says; the successor is unsafe for types that are not"
        )]
        let master = Arc::new(AsyncFd::new(master).map_err(failed)?);
        let stdin = stdin.map(pipe::Receiver::from_owned_fd).transpose().map_err(failed)?;
        let stdout = pipe::Sender::from_owned_fd(stdout).map_err(failed)?;
        let typing = stdin.map(|stdin| tokio::spawn(type_all(stdin, Arc::clone(&master))));
        let showing = tokio::spawn(show_all(Arc::clone(&master), stdout));
        Ok(Self { master, typing, showing })
    }

    /// Changes its size, of which the kernel tells the programs at it.
    pub(crate) fn resize(&self, size: TerminalSize) -> Result<()> {
        set_size(self.master.get_ref(), size)
            .map_err(|e| Error::caused(ErrorKind::Failed, "change the size of a terminal", e))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(typing) = &self.typing {
            typing.abort();
        }
        self.showing.abort();
    }
}

fn set_size(terminal: &OwnedFd, size: TerminalSize) -> io::Result<()> {
    let TerminalSize { rows, columns } = size;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

async fn type_all(mut from: pipe::Receiver, to: Arc<AsyncFd<OwnedFd>>) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            let written = to.async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, rest)?)).await;
            match written {
                Ok(count) => rest = &rest[count..],
                // Nobody is at the terminal any more.
                Err(_) => return,
            }
        }
    }
}

async fn show_all(from: Arc<AsyncFd<OwnedFd>>, mut to: pipe::Sender) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = from.async_io(Interest::READABLE, |fd| match rustix::io::read(fd, &mut buffer) {
            // The last process that had it open is gone.
            Err(Errno::IO) => Ok(0),
            read => Ok(read?),
        });
        let Ok(count @ 1..) = read.await else { return };
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use beta9_sys::passing::send_descriptor;
    use rustix::pty::OpenptFlags;

    fn terminal() -> (OwnedFd, OwnedFd) {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let user = rustix::pty::ioctl_tiocgptpeer(&master, flags).unwrap();
        (master, user)
    }

    #[tokio::test]
    async fn what_is_typed_is_shown_and_the_end_of_its_user_is_the_end() {
        let (master, user) = terminal();
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((stdin, to), (from, stdout), (_, stderr)) = (pipe(), pipe(), pipe());
        let size = TerminalSize { rows: 33, columns: 99 };
        let stdio = ContainerStdio { stdin: Some(stdin), stdout, stderr, terminal: Some(size) };
        let terminal = Terminal::start(master, stdio).unwrap();
        let mut to = pipe::Sender::from_owned_fd(to).unwrap();
        let mut from = pipe::Receiver::from_owned_fd(from).unwrap();
        to.write_all(b"hello\n").await.unwrap();
        let mut shown = [0; 7];
        from.read_exact(&mut shown).await.unwrap();
        assert_eq!(&shown, b"hello\r\n");
        assert_eq!(rustix::termios::tcgetwinsize(&user).unwrap().ws_col, 99);
        terminal.resize(TerminalSize { rows: 1, columns: 2 }).unwrap();
        assert_eq!(rustix::termios::tcgetwinsize(&user).unwrap().ws_row, 1);
        drop(user);
        assert_eq!(from.read(&mut shown).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_terminal_arrives_whatever_the_length_of_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let socket = ConsoleSocket::bind(&deep.join("console")).unwrap();
        let path = socket.path().to_owned();
        let sender = std::thread::spawn(move || {
            let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
            send_descriptor(&stream, File::open("/dev/null").unwrap()).unwrap();
        });
        socket.receive().await.unwrap();
        sender.join().unwrap();
        drop(socket);
        assert!(!deep.join("console").exists());
    }
}
