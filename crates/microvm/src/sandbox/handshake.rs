//! From a started VM to a guest that has reported.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use beta9_runtime::{Error, ErrorKind, Result};
use beta9_types::ContainerId;
use beta9_wire::{FromGuest, PROTOCOL_VERSION, ToGuest, decode, encode};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::frames::{FrameReader, Received};
use super::listeners::accept;
use super::{GuestKernel, Violation, printable};
use crate::engine::{Vm, describe};

/// A guest that reads nothing for this long is not going to.
const WRITE_DEADLINE: Duration = Duration::from_secs(10);

/// The control connection.
pub(super) struct Control {
    pub(super) frames: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Control {
    /// Says one message.
    pub(super) async fn say(&mut self, message: &ToGuest) -> std::result::Result<(), Violation> {
        let frame = encode(message)?;
        match timeout(WRITE_DEADLINE, self.write.write_all(&frame)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Violation::new(format!("its control connection broke: {error}"))),
            Err(_) => Err(Violation::new("it does not read its control connection")),
        }
    }
}

/// Waits for `Hello` and answers it. The VM's end and the deadline each end the wait.
pub(super) async fn greet(
    vm: &Vm,
    listener: UnixListener,
    sandbox: &ContainerId,
    deadline: Duration,
) -> Result<(Control, GuestKernel)> {
    let outcome = tokio::select! {
        biased;
        outcome = timeout(deadline, converse(vm, listener, sandbox)) => outcome,
        (who, exit) = vm.ended() => {
            vm.settle().await;
            let text = format!("the VM ended before its guest reported: {who} {}", describe(exit));
            return Err(vm.complain(ErrorKind::Failed, text));
        }
    };
    match outcome {
        Ok(Ok(greeted)) => Ok(greeted),
        Ok(Err(violation)) => {
            let text = format!("the guest broke the protocol: {}", violation.0);
            Err(vm.complain(ErrorKind::Failed, text))
        }
        Err(_) => {
            let seconds = deadline.as_secs_f32();
            let text = format!("the guest did not report within {seconds} s of the VM's start");
            Err(vm.complain(ErrorKind::Timeout, text))
        }
    }
}

/// One connection: the listener goes away with this function, so there is never a second.
async fn converse(
    vm: &Vm,
    listener: UnixListener,
    sandbox: &ContainerId,
) -> std::result::Result<(Control, GuestKernel), Violation> {
    let connection = accept(&listener, vm.dialer).await.map_err(|e: Error| Violation::new(e.chain()))?;
    let (read, write) = connection.into_split();
    let mut control = Control { frames: FrameReader::new(read), write };
    let kernel = match control.frames.next().await? {
        Some(Received::Message(body)) => match decode("hello", &body)? {
            FromGuest::Hello { protocol: PROTOCOL_VERSION, kernel } => printable(&kernel, 64),
            FromGuest::Hello { protocol, .. } => {
                let text = format!(
                    "it speaks version {protocol} and this worker {PROTOCOL_VERSION}; use the initramfs that came with the worker"
                );
                return Err(Violation::new(text));
            }
            _ => return Err(Violation::new("it began with something else than a greeting")),
        },
        Some(Received::Data(_)) => return Err(Violation::new("it began with data")),
        None => return Err(Violation::new("it closed the control connection without a greeting")),
    };
    let (unix_ns, entropy) = renewal()?;
    let welcome = ToGuest::Welcome { protocol: PROTOCOL_VERSION, sandbox: sandbox.clone(), unix_ns, entropy };
    control.say(&welcome).await?;
    Ok((control, GuestKernel(kernel)))
}

/// What a guest cannot have of its own: the time, and randomness that no other guest has.
pub(super) fn renewal() -> std::result::Result<(u64, [u8; 32]), Violation> {
    let mut entropy = [0; 32];
    rustix::rand::getrandom(&mut entropy, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Violation::new(format!("no randomness for it: {e}")))?;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Nanoseconds since 1970 fit into 64 bits until 2554.
    Ok((since_epoch.as_nanos() as u64, entropy))
}
