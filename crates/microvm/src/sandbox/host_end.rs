//! Our end of one of a container's streams: a pipe in practice, any file in principle.

use std::fs::File as StdFile;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, fstat};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

/// Where a container's input comes from.
pub(super) enum Input {
    Pipe(pipe::Receiver),
    /// A file or `/dev/null`, read on a thread.
    Plain(File),
}

/// Where a container's output goes.
pub(super) enum Output {
    Pipe(pipe::Sender),
    /// A file or `/dev/null`, written on a thread.
    Plain(File),
}

fn is_pipe(fd: &OwnedFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(fstat(fd)?.st_mode) == FileType::Fifo)
}

impl Input {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(if is_pipe(&fd)? {
            Self::Pipe(pipe::Receiver::from_owned_fd(fd)?)
        } else {
            Self::Plain(StdFile::from(fd).into())
        })
    }

    /// Reads some bytes; 0 at the end. Nothing is lost if it is cancelled.
    pub(super) async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::Plain(file) => file.read(buffer).await,
        }
    }
}

impl Output {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(if is_pipe(&fd)? {
            Self::Pipe(pipe::Sender::from_owned_fd(fd)?)
        } else {
            Self::Plain(StdFile::from(fd).into())
        })
    }

    /// Writes all of `bytes`.
    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Pipe(pipe) => pipe.write_all(bytes).await,
            Self::Plain(file) => {
                file.write_all(bytes).await?;
                file.flush().await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn pipes_and_files_both_work() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let mut write = Output::new(write).unwrap();
        let mut read = Input::new(read).unwrap();
        let big = vec![b'x'; 300_000];
        let writer = async { write.write_all(&big).await };
        let reader = async {
            let (mut buffer, mut total) = (vec![0; 4096], 0);
            while total < 300_000 {
                total += read.read(&mut buffer).await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(writer, reader);
        written.unwrap();
        drop(write);
        assert_eq!(read.read(&mut [0; 1]).await.unwrap(), 0);

        let null = std::fs::File::create("/dev/null").unwrap();
        Output::new(null.into()).unwrap().write_all(b"x").await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_reader_that_left_is_an_error_and_not_the_end_of_us() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        drop(read);
        let error = Output::new(write).unwrap().write_all(b"x").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
