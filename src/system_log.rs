//! Writes to the system log, for hooks: crun discards a hook's stderr.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

use crate::host::Host;

/// The facility `daemon` (syslog(3)).
const DAEMON: u8 = 3 << 3;

/// The longest message that is sent, in bytes: the kernel's log takes lines of somewhat over 900.
const MOST_BYTES: usize = 900;

/// How urgent a message is (syslog(3)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// A failure.
    Error = 3,
    /// A state that should not be.
    Warning = 4,
    /// Information.
    Info = 6,
}

/// Sends a message to `/dev/log`, or to `/dev/kmsg` if there is none. A message that cannot be sent
/// is lost: a log must never fail a start.
pub fn send(host: &Host, severity: Severity, message: &str) {
    let mut cut = message.len().min(MOST_BYTES);
    while !message.is_char_boundary(cut) {
        cut -= 1;
    }
    let priority = DAEMON | severity as u8;
    let line = format!(
        "<{priority}>pinfold[{}]: {}",
        std::process::id(),
        &message[..cut]
    );
    let (socket, kernel) = host.system_logs();
    let to_socket = || -> io::Result<usize> {
        let datagram = UnixDatagram::unbound()?;
        // A reader that hangs must not hang the container.
        datagram.set_nonblocking(true)?;
        datagram.send_to(line.as_bytes(), socket)
    };
    let to_kernel = || -> io::Result<usize> {
        OpenOptions::new()
            .write(true)
            .open(kernel)?
            .write(format!("{line}\n").as_bytes())
    };
    if to_socket().is_err() {
        // There is nobody left to tell.
        let _ = to_kernel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{self, Durability};

    #[test]
    fn the_socket_comes_first_and_the_kernel_second() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        send(&host, Severity::Error, "nobody listens");
        let (socket, kernel) = host.system_logs();
        std::fs::create_dir(dir.path().join("dev")).unwrap();
        files::replace(&kernel, b"", 0o600, Durability::Crash).unwrap();
        send(&host, Severity::Error, "to the kernel");
        let line = format!("<27>pinfold[{}]: to the kernel\n", std::process::id());
        assert_eq!(files::read(&kernel).unwrap(), line);
        let listener = UnixDatagram::bind(socket).unwrap();
        send(&host, Severity::Warning, &"é".repeat(2000));
        let mut buffer = [0; 4096];
        let length = listener.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        assert!(
            text.starts_with("<28>pinfold[") && text.len() < 940,
            "{text}"
        );
    }
}
