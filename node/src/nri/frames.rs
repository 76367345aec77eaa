//! Frames: several connections share the socket of an engine. A frame is the connection's number,
//! the number of bytes that follow, both as 32 bits in network order, and those bytes
//! (containerd/nri: pkg/net/multiplex/mux.go). Pure.

use anyhow::{Result, ensure};

use super::ttrpc;

/// The connection on which the engine calls us: its service is Plugin.
pub const PLUGIN: u32 = 1;
/// The connection on which we call the engine: its service is Runtime.
pub const RUNTIME: u32 = 2;

/// The length of a frame's header, in bytes.
pub const HEADER: usize = 8;

/// The most content of a frame that we write, in bytes. Engines hand a frame whole to a reader that
/// may have room for no more (Go: bufio, `defaultBufSize`), and close the connection where it does
/// not fit.
pub const MOST_WRITTEN: usize = 4096;

/// The most content of a frame that we read, in bytes: one message of the most length. No engine
/// sends more at once.
pub const MOST_READ: usize = ttrpc::HEADER + ttrpc::MOST;

/// Reads frames from bytes that come in pieces of any length. It keeps no content.
#[derive(Debug, Default)]
pub struct Frames {
    header: [u8; HEADER],
    /// How many bytes of the header are known.
    known: usize,
    connection: u32,
    /// How many bytes of the frame are still to come.
    left: usize,
}

/// A part of a frame's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The connection that it is of.
    pub connection: u32,
    /// One byte or more.
    pub content: &'a [u8],
}

impl Frames {
    /// Takes the next piece off the front of `bytes`; `None` once `bytes` are used up.
    ///
    /// # Errors
    /// A frame claims more than [`MOST_READ`]: what follows cannot be understood.
    pub fn next<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<Piece<'a>>> {
        while self.left == 0 {
            let header = take(bytes, HEADER - self.known);
            self.header[self.known..self.known + header.len()].copy_from_slice(header);
            self.known += header.len();
            if self.known < HEADER {
                return Ok(None);
            }
            self.known = 0;
            let [a, b, c, d, length @ ..] = self.header;
            self.connection = u32::from_be_bytes([a, b, c, d]);
            let length = u32::from_be_bytes(length);
            self.left = usize::try_from(length).unwrap_or(usize::MAX);
            ensure!(
                self.left <= MOST_READ,
                "a frame claims {length} bytes, and the most is {MOST_READ}"
            );
        }
        let content = take(bytes, self.left);
        self.left -= content.len();
        let connection = self.connection;
        Ok((!content.is_empty()).then_some(Piece {
            connection,
            content,
        }))
    }

    /// Has a frame begun whose end has not come?
    pub fn is_within(&self) -> bool {
        self.known > 0 || self.left > 0
    }
}

/// Takes at most `most` bytes off the front.
fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(most.min(bytes.len()));
    *bytes = rest;
    taken
}

/// The frames for these bytes, none longer than [`MOST_WRITTEN`].
pub fn framed(connection: u32, bytes: &[u8]) -> Vec<u8> {
    let count = bytes.len().div_ceil(MOST_WRITTEN);
    let mut frames = Vec::with_capacity(bytes.len() + count * HEADER);
    for content in bytes.chunks(MOST_WRITTEN) {
        frames.extend(connection.to_be_bytes());
        let length = u32::try_from(content.len()).expect("a chunk is short");
        frames.extend(length.to_be_bytes());
        frames.extend(content);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The connections and contents that come of feeding these pieces.
    fn read(pieces: &[&[u8]]) -> Result<Vec<(u32, Vec<u8>)>> {
        let (mut frames, mut seen) = (Frames::default(), Vec::new());
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(piece) = frames.next(&mut bytes)? {
                seen.push((piece.connection, piece.content.to_vec()));
            }
        }
        Ok(seen)
    }

    #[test]
    fn a_frame_is_a_number_a_length_and_its_bytes() {
        for (bytes, expected) in [
            (&b""[..], vec![]),
            (b"\0\0\0\x01\0\0\0\x02ab", vec![(1, b"ab".to_vec())]),
            // Without content; and half a header.
            (b"\0\0\0\x01\0\0\0\0\0\0\0", vec![]),
            (
                b"\0\0\0\x02\0\0\0\x01a\0\0\0\x01\0\0\0\x01b",
                vec![(2, b"a".to_vec()), (1, b"b".to_vec())],
            ),
            // A connection that nobody opened is for the reader to pass over.
            (
                b"\xff\0\0\x07\0\0\0\x01a",
                vec![(0xff00_0007, b"a".to_vec())],
            ),
            // The content is still to come.
            (b"\0\0\0\x01\0\0\0\x02a", vec![(1, b"a".to_vec())]),
        ] {
            assert_eq!(read(&[bytes]).unwrap(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn a_frame_split_at_every_byte_is_the_same() {
        let whole = framed(2, b"abcdef");
        for at in 0..=whole.len() {
            let (first, second) = whole.split_at(at);
            let seen = read(&[first, second]).unwrap();
            let bytes: Vec<u8> = seen.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            assert_eq!(bytes, b"abcdef", "{at}");
        }
        let singly: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(read(&singly).unwrap().len(), 6);
    }

    #[test]
    fn a_length_is_believed_up_to_the_most() {
        let most = u32::try_from(MOST_READ).unwrap();
        for (length, fits) in [(most, true), (most + 1, false), (u32::MAX, false)] {
            let header = [[0, 0, 0, 1], length.to_be_bytes()].concat();
            assert_eq!(read(&[&header]).is_ok(), fits, "{length}");
        }
    }

    #[test]
    fn what_is_written_fits_into_a_reader_of_4096_bytes() {
        for length in [0, 1, 4095, 4096, 4097, 20_000] {
            let bytes = vec![7; length];
            let frames = framed(PLUGIN, &bytes);
            let seen = read(&[&frames]).unwrap();
            assert_eq!(seen.len(), length.div_ceil(4096), "{length}");
            assert!(seen.iter().all(|(_, content)| content.len() <= 4096));
            let content: Vec<u8> = seen.into_iter().flat_map(|(_, content)| content).collect();
            assert_eq!(content, bytes);
        }
    }
}
