//! The control connection: dialling the host, and the two directions after that.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use beta9_sys::vsock;
use beta9_types::{ContainerId, chain};
use beta9_wire::{CONTROL_PORT, Frame, FromGuest, PROTOCOL_VERSION, ToGuest, decode, encode, read_frame};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};

use crate::report;

/// How long the host has to answer the first message, counted from the first try.
const DIAL_DEADLINE: Duration = Duration::from_secs(10);
/// How long the host may leave a report unread before it counts as gone.
const SEND_DEADLINE: Duration = Duration::from_secs(20);
/// Linux's own limit.
const MAX_HOST_NAME: usize = 64;
/// A clock that is off by less is left alone: so long a message may be on its way.
const CLOCK_TOLERANCE: u64 = 20_000_000;
/// How long any connection to the host may take to be made.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The half that reads.
pub(crate) struct Requests(File);

/// The half that writes; any thread may.
pub(crate) struct Reports(Mutex<File>);

impl Requests {
    /// The next request. An error of any kind means that the host is gone.
    pub(crate) fn next(&mut self) -> Result<ToGuest, beta9_wire::Error> {
        match read_frame(&mut self.0)? {
            Frame::Message(body) => decode("request", &body),
            Frame::Data(_) => Err(beta9_wire::Error::BadMessage("request")),
        }
    }
}

impl Reports {
    /// Sends one report. Not being able to is not the caller's to handle: the reading half sees that the host is gone.
    pub(crate) fn send(&self, report: &FromGuest) {
        let sent = encode(report).and_then(|frame| {
            // A panic while it was held ends the whole machine, so there is nothing half-written to see here.
            let mut connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(connection.write_all(&frame)?)
        });
        if let Err(error) = sent {
            report::warn(&format!("cannot report to the host: {}", chain(&error)));
        }
    }
}

impl Reports {
    /// Nothing more will be said: everything is done and written.
    pub(crate) fn close(&self) {
        let connection = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = rustix::net::shutdown(&*connection, rustix::net::Shutdown::Both);
    }
}

/// Opens another connection to the host.
pub(crate) fn connect(port: u32) -> io::Result<File> {
    vsock::connect(vsock::HOST_CID, port, CONNECT_DEADLINE).map(File::from)
}

/// Dials the host until it answers, takes over its time and entropy, and returns the connection.
pub(crate) fn dial() -> Result<(ContainerId, Requests, Reports), String> {
    let end = Instant::now() + DIAL_DEADLINE;
    let mut pause = Duration::from_millis(2);
    loop {
        let failure = match greet(end) {
            Ok(greeted) => return Ok(greeted),
            Err(failure) => failure,
        };
        if Instant::now() + pause >= end {
            return Err(format!("the host did not answer on vsock port {CONTROL_PORT}: {}", chain(&failure)));
        }
        // The device may not be there yet, or the host not listen yet: neither announces itself.
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

fn greet(end: Instant) -> Result<(ContainerId, Requests, Reports), beta9_wire::Error> {
    let mut connection = connect(CONTROL_PORT)?;
    let rest = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    set_socket_timeout(&connection, Timeout::Recv, Some(rest)).map_err(io::Error::from)?;
    set_socket_timeout(&connection, Timeout::Send, Some(SEND_DEADLINE)).map_err(io::Error::from)?;
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    connection.write_all(&encode(&FromGuest::Hello { protocol: PROTOCOL_VERSION, kernel })?)?;
    let reports = Reports(Mutex::new(connection.try_clone()?));
    let mut requests = Requests(connection);
    match requests.next()? {
        ToGuest::Welcome { protocol: PROTOCOL_VERSION, sandbox, unix_ns, entropy } => {
            renew(unix_ns, entropy);
            // For the kernel's own log: containers have names of their own.
            let name = sandbox.as_str().as_bytes();
            if let Err(error) = rustix::system::sethostname(&name[..name.len().min(MAX_HOST_NAME)]) {
                report::warn(&format!("set the host name: {error}"));
            }
            set_socket_timeout(&requests.0, Timeout::Recv, None).map_err(io::Error::from)?;
            Ok((sandbox, requests, reports))
        }
        ToGuest::Welcome { protocol, .. } => report::fatal(&format!(
            "the host speaks protocol {protocol} and this initramfs {PROTOCOL_VERSION}: use those of one release"
        )),
        _ => Err(beta9_wire::Error::BadMessage("welcome")),
    }
}

/// Takes over what only the host has: the time, and randomness that no other machine has.
pub(crate) fn renew(unix_ns: u64, entropy: [u8; 32]) {
    set_clock(unix_ns);
    if let Err(error) = beta9_sys::machine::add_entropy(entropy) {
        report::warn(&chain(&error));
    }
}

fn set_clock(unix_ns: u64) {
    const SECOND: u64 = 1_000_000_000;
    let now = clock_gettime(ClockId::Realtime);
    let now_ns = now.tv_sec.unsigned_abs().saturating_mul(SECOND).saturating_add(now.tv_nsec.unsigned_abs());
    if now_ns.abs_diff(unix_ns) < CLOCK_TOLERANCE {
        return;
    }
    let (Ok(tv_sec), Ok(tv_nsec)) = (i64::try_from(unix_ns / SECOND), i64::try_from(unix_ns % SECOND)) else {
        return;
    };
    if let Err(error) = clock_settime(ClockId::Realtime, Timespec { tv_sec, tv_nsec }) {
        report::warn(&format!("set the clock: {error}"));
    }
}
