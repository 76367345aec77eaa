//! A D-Bus client: calls over one connection, and their answers, within limits of time and length
//! (D-Bus Specification, <https://dbus.freedesktop.org/doc/dbus-specification.html>).
//!
//! Little of D-Bus is needed: no signals, no objects of ours, four types. The crates for it bring
//! an asynchronous runtime, link a C library, or read a handshake of any length.

mod message;

#[cfg(test)]
pub(crate) use message::tests::returned_value;
pub use message::{Answer, Call, Message, Property, Values};

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::unistd::geteuid;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::text::one_line;

/// The most that is kept of what a peer sends, in bytes. An answer to a call of ours has some
/// hundred.
const MOST_BYTES: usize = 64 << 10;
/// The size of one read(2), in bytes.
const READ_BYTES: usize = 4 << 10;
/// The end of a line in the handshake.
const LINE_END: &[u8] = b"\r\n";

/// A connection with a deadline for all that is done over it.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    deadline: Instant,
    /// The serial number of the last call (Specification, "Header": `serial`).
    last: u32,
    /// What is sent together with the next calls.
    unsent: Vec<u8>,
    is_welcome: bool,
    /// What was read and is not parsed yet.
    unread: Vec<u8>,
}

impl Connection {
    /// Connects to a message bus, which passes calls on to programs by their names.
    ///
    /// # Errors
    /// Nobody listens at the socket, or the connection takes too long.
    pub fn to_bus(socket: &Path, deadline: Instant) -> io::Result<Connection> {
        let mut connection = Connection::to_program(socket, deadline)?;
        let hello = Call {
            to: "org.freedesktop.DBus",
            path: "/org/freedesktop/DBus",
            interface: "org.freedesktop.DBus",
            member: "Hello",
            values: Values::default(),
        };
        connection.put(&hello);
        Ok(connection)
    }

    /// Connects to a program that speaks D-Bus itself.
    ///
    /// # Errors
    /// Nobody listens at the socket, or the connection takes too long.
    pub fn to_program(socket: &Path, deadline: Instant) -> io::Result<Connection> {
        let flags = SocketFlags::CLOEXEC;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // This bounds connect(2) too, which waits for a listener that is busy (unix(7)).
        set_socket_timeout(&stream, Timeout::Send, Some(left(deadline)?))?;
        connect(&stream, &SocketAddrUnix::new(socket)?)?;
        // The kernel tells the peer who we are, and the number must agree (Specification,
        // "EXTERNAL").
        let user = geteuid().to_string();
        let user: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        Ok(Connection {
            stream: stream.into(),
            deadline,
            last: 0,
            unsent: format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n").into_bytes(),
            is_welcome: false,
            unread: Vec::new(),
        })
    }

    /// Makes several calls at once, and waits for all answers.
    ///
    /// # Errors
    /// The peer refuses a call (with what it says), does not answer in time, or sends something
    /// that is too long or cannot be parsed.
    pub fn ask<const N: usize>(&mut self, calls: [Call<'_>; N]) -> Result<[Answer; N]> {
        let serials = calls.map(|call| self.put(&call));
        let unsent = std::mem::take(&mut self.unsent);
        let sent = self.stream.write_all(&unsent);
        sent.map_err(late).context("send it a message")?;
        let mut answers = [const { None }; N];
        while answers.iter().any(Option::is_none) {
            let message = self.next()?;
            let Some(to) = message.answers_to else {
                continue;
            };
            let place = serials.iter().position(|serial| *serial == to);
            match (message.error, place) {
                (Some(error), _) => bail!("it says {:?}", one_line(&error)),
                (None, Some(place)) => answers[place] = Some(message.answer),
                // The bus's answer to our `Hello`.
                (None, None) => {}
            }
        }
        Ok(answers.map(Option::unwrap_or_default))
    }

    /// Appends a call to what will be sent; returns its serial number.
    fn put(&mut self, call: &Call<'_>) -> u32 {
        self.last += 1;
        call.write(self.last, &mut self.unsent);
        self.last
    }

    fn next(&mut self) -> Result<Message> {
        if !self.is_welcome {
            self.be_welcome()?;
        }
        loop {
            if let Some(length) = Message::length(&self.unread, MOST_BYTES)?
                && length <= self.unread.len()
            {
                let bytes: Vec<u8> = self.unread.drain(..length).collect();
                return Message::parse(&bytes);
            }
            self.read_more()?;
        }
    }

    fn be_welcome(&mut self) -> Result<()> {
        let ends = |bytes: &[u8]| bytes.windows(2).position(|two| two == LINE_END);
        let end = loop {
            if let Some(end) = ends(&self.unread) {
                break end;
            }
            self.read_more()?;
        };
        let line: Vec<u8> = self.unread.drain(..end + LINE_END.len()).collect();
        let said = || one_line(&String::from_utf8_lossy(&line[..end]));
        ensure!(line.starts_with(b"OK"), "it refuses us: {:?}", said());
        self.is_welcome = true;
        Ok(())
    }

    fn read_more(&mut self) -> Result<()> {
        let mut bytes = [0; READ_BYTES];
        let attempt = left(self.deadline)
            .and_then(|left| self.stream.set_read_timeout(Some(left)))
            .and_then(|()| self.stream.read(&mut bytes));
        let read = match attempt {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(()),
            other => other.map_err(late).context("read its answer")?,
        };
        ensure!(read > 0, "it closed the connection");
        self.unread.extend_from_slice(&bytes[..read]);
        // Messages that were skipped do not count: systemd tells everybody who is connected of all
        // units.
        ensure!(
            self.unread.len() <= MOST_BYTES,
            "it sends more than {MOST_BYTES} bytes"
        );
        Ok(())
    }
}

/// The time until the deadline. Less than a millisecond is an error, because zero would mean no
/// limit (socket(7), `SO_RCVTIMEO`).
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left < Duration::from_millis(1) {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// Is there no time left until the deadline, in which anything could be asked?
pub fn is_late(deadline: Instant) -> bool {
    left(deadline).is_err()
}

/// Turns an error into one that explains a timeout.
pub fn late(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            anyhow!("it did not answer in time: is it busy, or stuck?")
        }
        _ => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread::{JoinHandle, spawn};

    const GREETING: &[u8] = b"OK 0123456789abcdef\r\n";

    fn call(member: &'static str) -> Call<'static> {
        Call {
            to: "org.example",
            path: "/org/example",
            interface: "org.example.It",
            member,
            values: Values::default(),
        }
    }

    /// A peer that reads as many bytes as a client sends first, sends `answers`, and returns what
    /// it read.
    fn peer(answers: Vec<u8>) -> (tempfile::TempDir, JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("bus")).unwrap();
        let heard = spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = vec![0; 4096];
            let length = stream.read(&mut heard).unwrap();
            heard.truncate(length);
            // A client that has got enough closes the connection.
            let _ = stream.write_all(&answers);
            let _ = stream.read(&mut [0]);
            heard
        });
        (dir, heard)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn answers_are_told_by_their_numbers() {
        let mut said = GREETING.to_vec();
        for (serial, text) in [(1, ":1.5"), (3, "three"), (2, "two")] {
            said.extend(message::tests::returned(serial, text));
        }
        let (dir, peer) = peer(said);
        let mut bus = Connection::to_bus(&dir.path().join("bus"), soon()).unwrap();
        let [two, three] = bus.ask([call("Two"), call("Three")]).unwrap();
        assert_eq!(two.text().unwrap(), "two");
        assert_eq!(three.text().unwrap(), "three");
        drop(bus);
        let heard = peer.join().unwrap();
        let user = geteuid().to_string();
        let user: String = user.bytes().map(|digit| format!("{digit:02x}")).collect();
        let greeting = format!("\0AUTH EXTERNAL {user}\r\nBEGIN\r\n");
        assert!(heard.starts_with(greeting.as_bytes()), "{heard:?}");
    }

    #[test]
    fn what_a_peer_says_is_bounded_and_judged() {
        let mut refused = GREETING.to_vec();
        refused.extend(message::tests::refused(1, "org.example.No", "it won't"));
        let mut endless = GREETING.to_vec();
        for _ in 0..MOST_BYTES / 64 {
            endless.extend(message::tests::returned(7, "not what was asked for"));
        }
        let mut torn = GREETING.to_vec();
        torn.extend(b"HTTP/1.1 400 Bad Request\r\n");
        let flood = vec![b'O'; MOST_BYTES + READ_BYTES];
        let cases: [(&[u8], &str); 6] = [
            (&refused, "it says \"org.example.No: it won't\""),
            (b"REJECTED EXTERNAL\r\n", "it refuses us"),
            // Signals are skipped, until the deadline.
            (&endless, "in time"),
            (&torn, "byte order"),
            (&flood, "more than"),
            (b"", "in time"),
        ];
        for (said, part) in cases {
            let (dir, _peer) = peer(said.to_vec());
            let patience = match part == "in time" {
                true => Duration::from_millis(200),
                false => Duration::from_secs(20),
            };
            let socket = dir.path().join("bus");
            let mut peer = Connection::to_program(&socket, Instant::now() + patience).unwrap();
            let error = format!("{:#}", peer.ask([call("It")]).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn nobody_there_is_an_error_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let error = Connection::to_bus(&dir.path().join("none"), soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    /// A listener that accepts no more connections.
    #[test]
    fn a_peer_that_does_not_listen_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("bus");
        let _listener = UnixListener::bind(&socket).unwrap();
        let mut waiting = Vec::new();
        let error = loop {
            let deadline = Instant::now() + Duration::from_millis(20);
            match Connection::to_bus(&socket, deadline) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
            assert!(waiting.len() < 10_000);
        };
        let error = format!("{:#}", late(error));
        assert!(error.contains("in time"), "{error}");
    }
}
