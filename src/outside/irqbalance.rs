//! irqbalance, which moves interrupts about unless their CPUs are banned (irqbalance(1)). It is
//! asked `setup` and told `settings cpus` over its socket (irqbalance.c: `sock_handle`), and heeds
//! what it was told when it next looks around, 10 s later as it comes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// How long it may take to answer. It answers between two rounds, of milliseconds each.
const PATIENCE: Duration = Duration::from_millis(500);

/// The most bytes of an answer: its banned interrupts, about 50 bytes each, come before the CPUs.
const MOST_ANSWER: u64 = 64 << 10;

/// A connection to it, and where. Of one that was killed the socket stays, without a listener.
///
/// # Errors
/// It does not take the connection in time.
fn connected(host: &Host) -> Result<Option<(UnixStream, PathBuf)>> {
    let directory = host.irqbalance();
    let names = files::names_in(&directory).unwrap_or_default();
    for name in names.iter().filter(|name| is_socket(name)) {
        let path = directory.join(name);
        match open(&path) {
            Err(error) if error == Errno::CONNREFUSED || error == Errno::NOENT => {}
            opened => {
                let opened = opened.with_context(|| at(&path));
                return opened.map(|stream| Some((stream, path)));
            }
        }
    }
    Ok(None)
}

/// `irqbalance<PID>.sock`
fn is_socket(name: &str) -> bool {
    let pid = name.strip_prefix("irqbalance");
    let pid = pid.and_then(|name| name.strip_suffix(".sock"));
    pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
}

fn open(path: &Path) -> rustix::io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // This bounds connect(2) too, which waits for a listener that is busy (unix(7)).
    set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
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
    let Some((stream, path)) = connected(host)? else {
        return Ok(None);
    };
    let mut answer = String::new();
    let mut ask = || -> Result<String> {
        (&stream).write_all(b"setup")?;
        (&stream).take(MOST_ANSWER).read_to_string(&mut answer)?;
        // The last two words: `BANNED MASK`.
        let (_, mask) = answer.rsplit_once("BANNED ").context("it names no CPUs")?;
        let mask = mask.trim_end_matches(['\0', '\n', ' ']);
        CpuSet::from_hex_mask(mask).context("it names no CPUs")?;
        Ok(mask.to_owned())
    };
    ask().map(Some).with_context(|| at(&path))
}

/// Tells it to move no interrupt to these CPUs, and to no others than these.
///
/// # Errors
/// It cannot be told.
pub(super) fn ban(host: &Host, cpus: &CpuSet) -> Result<()> {
    let Some((mut stream, path)) = connected(host)? else {
        return Ok(());
    };
    // With `NULL` it bans what its own configuration says.
    let cpus = match cpus.is_empty() {
        true => "NULL".to_owned(),
        false => cpus.to_string(),
    };
    let mut tell = || -> std::io::Result<()> {
        stream.write_all(format!("settings cpus {cpus}").as_bytes())?;
        // It closes the connection once it has read this.
        stream.read_to_end(&mut Vec::new()).map(drop)
    };
    tell().with_context(|| at(&path))
}
