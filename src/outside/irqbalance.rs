//! irqbalance, which moves interrupts about unless their CPUs are banned (irqbalance(1)). It is
//! asked `setup` and told `settings cpus` over its socket (irqbalance.c: `sock_handle`), and heeds
//! what it was told when it next looks around, 10 s later as it comes.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// How long it may take for all that is asked or told over one connection. It answers between two
/// rounds, of milliseconds each.
const PATIENCE: Duration = Duration::from_millis(500);

/// The most bytes of an answer: its banned interrupts, about 50 bytes each, come before the CPUs.
const MOST_ANSWER: usize = 64 << 10;

/// A connection to it, with a deadline for all that is done over it.
struct Connection {
    stream: UnixStream,
    path: PathBuf,
    deadline: Instant,
}

/// Connects to it. Of one that was killed the socket stays, without a listener.
///
/// # Errors
/// It does not take the connection in time, or whether it runs cannot be looked at.
fn connected(host: &Host) -> Result<Option<Connection>> {
    let deadline = Instant::now() + PATIENCE;
    let directory = host.irqbalance();
    let names = files::names_in(&directory)?;
    for name in names.iter().filter(|name| is_socket(name)) {
        let path = directory.join(name);
        match open(&path, deadline) {
            Err(error) if is_nobody(&error) => {}
            opened => {
                let stream = opened.with_context(|| at(&path))?;
                return Ok(Some(Connection {
                    stream,
                    path,
                    deadline,
                }));
            }
        }
    }
    Ok(None)
}

impl Connection {
    /// Sends it a text, and returns what it says until it closes the connection.
    ///
    /// # Errors
    /// It has not done so by the deadline, or says too much.
    fn say(&mut self, text: &str) -> io::Result<Vec<u8>> {
        self.stream.set_write_timeout(Some(left(self.deadline)?))?;
        self.stream.write_all(text.as_bytes())?;
        let mut answer = Vec::new();
        let mut bytes = [0; 4096];
        loop {
            self.stream.set_read_timeout(Some(left(self.deadline)?))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(answer),
                Ok(read) => answer.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if answer.len() > MOST_ANSWER {
                return Err(io::Error::other("it says too much"));
            }
        }
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

/// The time until the deadline. None left is an error, because zero would mean no limit (socket(7),
/// `SO_RCVTIMEO`).
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left < Duration::from_millis(1) {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// `irqbalance<PID>.sock`
fn is_socket(name: &str) -> bool {
    let pid = name.strip_prefix("irqbalance");
    let pid = pid.and_then(|name| name.strip_suffix(".sock"));
    pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn open(path: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // This bounds connect(2) too, which waits for a listener that is busy (unix(7)).
    set_socket_timeout(&stream, Timeout::Send, Some(left(deadline)?))?;
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    Ok(stream.into())
}

fn at(path: &Path) -> String {
    format!("speak to irqbalance at {}", path.display())
}

/// The CPUs that it moves no interrupt to, as a hexadecimal mask; `None` where it does not run.
///
/// # Errors
/// It does not answer.
pub fn banned(host: &Host) -> Result<Option<String>> {
    let Some(mut balancer) = connected(host)? else {
        return Ok(None);
    };
    let mut ask = || -> Result<String> {
        let answer = String::from_utf8(balancer.say("setup")?)?;
        // The last two words: `BANNED MASK`.
        let (_, mask) = answer.rsplit_once("BANNED ").context("it names no CPUs")?;
        let mask = mask.trim_end_matches(['\0', '\n', ' ']);
        CpuSet::from_hex_mask(mask).context("it names no CPUs")?;
        Ok(mask.to_owned())
    };
    ask().map(Some).with_context(|| at(&balancer.path))
}

/// Tells it to move no interrupt to these CPUs, and to no others than these.
///
/// # Errors
/// It cannot be told.
pub(super) fn ban(host: &Host, cpus: &CpuSet) -> Result<()> {
    let Some(mut balancer) = connected(host)? else {
        return Ok(());
    };
    // With `NULL` it bans what its own configuration says.
    let cpus = match cpus.is_empty() {
        true => "NULL".to_owned(),
        false => cpus.to_string(),
    };
    // It closes the connection once it has read this.
    let told = balancer.say(&format!("settings cpus {cpus}"));
    told.map(drop).with_context(|| at(&balancer.path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A peer that says a byte again and again, each sooner than one read(2) is waited for.
    #[test]
    fn a_peer_that_dribbles_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        std::fs::create_dir_all(host.irqbalance()).unwrap();
        let socket = host.irqbalance().join("irqbalance7.sock");
        let listener = UnixListener::bind(socket).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    for _ in 0..60 {
                        if stream.write_all(b"S").is_err() {
                            return;
                        }
                        std::thread::sleep(PATIENCE / 5);
                    }
                });
            }
        });
        let began = Instant::now();
        banned(&host).unwrap_err();
        ban(&host, &CpuSet::new()).unwrap_err();
        assert!(began.elapsed() < PATIENCE * 8, "{:?}", began.elapsed());
    }
}
