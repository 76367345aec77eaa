//! irqbalance, which moves interrupts about unless their CPUs are banned (irqbalance(1)). It is
//! asked `setup` and told `settings cpus` over its socket (irqbalance.c: `sock_handle`), and heeds
//! what it was told when it next looks around, 10 s later as it comes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;

/// How long it may take to answer. It answers between two rounds, of milliseconds each.
const PATIENCE: Duration = Duration::from_millis(500);

/// The most bytes of an answer: its banned interrupts, about 50 bytes each, come before the CPUs.
const MOST_ANSWER: u64 = 64 << 10;

/// The file that it listens at, by its process; of one that was killed the file stays.
pub(super) fn socket(host: &Host) -> Option<PathBuf> {
    let directory = host.irqbalance();
    let names = files::names_in(&directory).unwrap_or_default();
    let is_socket = |name: &&String| {
        let pid = name
            .strip_prefix("irqbalance")
            .and_then(|name| name.strip_suffix(".sock"));
        pid.is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let mut sockets = names
        .iter()
        .filter(is_socket)
        .map(|name| directory.join(name));
    sockets.find(|path| open(path).is_ok())
}

/// The CPUs that it moves no interrupt to, as a hexadecimal mask; `None` where it does not run.
///
/// # Errors
/// It does not answer.
pub fn banned(host: &Host) -> Result<Option<String>> {
    let Some(path) = socket(host) else {
        return Ok(None);
    };
    let ask = || -> Result<String> {
        let mut stream = open(&path)?;
        stream.write_all(b"setup")?;
        let mut answer = String::new();
        stream.take(MOST_ANSWER).read_to_string(&mut answer)?;
        // The last two words: `BANNED MASK`.
        let (_, mask) = answer.rsplit_once("BANNED ").context("it names no CPUs")?;
        let mask = mask.trim_end_matches(['\0', '\n', ' ']);
        CpuSet::from_hex_mask(mask).context("it names no CPUs")?;
        Ok(mask.to_owned())
    };
    let mask = ask().with_context(|| format!("ask irqbalance at {}", path.display()))?;
    Ok(Some(mask))
}

/// Tells it to move no interrupt to these CPUs, and to no others than these.
///
/// # Errors
/// It cannot be told.
pub(super) fn ban(host: &Host, cpus: &CpuSet) -> Result<()> {
    let Some(path) = socket(host) else {
        return Ok(());
    };
    // With `NULL` it bans what its own configuration says.
    let cpus = match cpus.is_empty() {
        true => "NULL".to_owned(),
        false => cpus.to_string(),
    };
    let tell = || -> Result<()> {
        let mut stream = open(&path)?;
        stream.write_all(format!("settings cpus {cpus}").as_bytes())?;
        // It closes the connection once it has read this.
        stream.read_to_end(&mut Vec::new())?;
        Ok(())
    };
    tell().with_context(|| format!("have irqbalance at {} keep off {cpus}", path.display()))
}

fn open(path: &std::path::Path) -> Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // This bounds connect(2) too, which waits for a listener that is busy (unix(7)).
    set_socket_timeout(&stream, Timeout::Send, Some(PATIENCE))?;
    set_socket_timeout(&stream, Timeout::Recv, Some(PATIENCE))?;
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    Ok(stream.into())
}
