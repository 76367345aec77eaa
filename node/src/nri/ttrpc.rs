//! Messages of ttrpc: the number of bytes that follow a header of ten, the stream, both as 32 bits
//! in network order, a kind, flags, and those bytes (containerd/ttrpc: PROTOCOL.md). Only calls
//! with one request and one response are known here; NRI has no others. Pure.

use anyhow::{Result, ensure};
use prost::Message as _;

/// The length of a message's header, in bytes.
pub const HEADER: usize = 10;

/// The most content of a message, in bytes (containerd/ttrpc: channel.go, `messageLengthMax`).
pub const MOST: usize = 4 << 20;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It begins a call.
    Request,
    /// It ends a call.
    Response,
    /// Data of a stream, or of a later version.
    Other(u8),
}

impl Kind {
    fn of(byte: u8) -> Kind {
        match byte {
            1 => Kind::Request,
            2 => Kind::Response,
            other => Kind::Other(other),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Kind::Request => 1,
            Kind::Response => 2,
            Kind::Other(byte) => byte,
        }
    }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The call that it is of.
    pub stream: u32,
    /// What it is.
    pub kind: Kind,
    /// At most [`MOST`] bytes.
    pub content: Vec<u8>,
}

impl Message {
    /// Its bytes. A content that is too long becomes an error of the call.
    pub fn bytes(&self) -> Vec<u8> {
        if self.content.len() > MOST {
            let error = Response::failed(Code::ResourceExhausted, "the answer is too long");
            return Message {
                content: error.encode_to_vec(),
                ..*self
            }
            .bytes();
        }
        let length = u32::try_from(self.content.len()).expect("it was compared with the most");
        let mut bytes = Vec::with_capacity(HEADER + self.content.len());
        bytes.extend(length.to_be_bytes());
        bytes.extend(self.stream.to_be_bytes());
        bytes.extend([self.kind.byte(), 0]);
        bytes.extend(&self.content);
        bytes
    }
}

/// Reads messages from bytes that come in pieces of any length.
#[derive(Debug, Default)]
pub struct Messages {
    /// What has come of a message whose end has not.
    pending: Vec<u8>,
}

impl Messages {
    /// Adds bytes, and returns the messages that they complete.
    ///
    /// # Errors
    /// A message claims more than [`MOST`]: what follows cannot be understood.
    pub fn add(&mut self, bytes: &[u8]) -> Result<Vec<Message>> {
        self.pending.extend(bytes);
        let (mut messages, mut read) = (Vec::new(), 0);
        while let Some((message, length)) = first(&self.pending[read..])? {
            messages.push(message);
            read += length;
        }
        self.pending.drain(..read);
        if self.pending.is_empty() {
            // One long message does not keep its room for ever.
            self.pending = Vec::new();
        }
        Ok(messages)
    }

    /// How many bytes are kept of a message whose end has not come.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }
}

/// The first message and its length; `None` where its end has not come.
fn first(bytes: &[u8]) -> Result<Option<(Message, usize)>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [l1, l2, l3, l4, s1, s2, s3, s4, kind, _flags] = *header;
    let claimed = u32::from_be_bytes([l1, l2, l3, l4]);
    let length = usize::try_from(claimed).unwrap_or(usize::MAX);
    ensure!(
        length <= MOST,
        "a message claims {claimed} bytes, and the most is {MOST}"
    );
    let message = rest.get(..length).map(|content| Message {
        stream: u32::from_be_bytes([s1, s2, s3, s4]),
        kind: Kind::of(kind),
        content: content.to_vec(),
    });
    Ok(message.map(|message| (message, HEADER + length)))
}

/// The content of a request (containerd/ttrpc: request.proto; Apache-2.0).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Request {
    /// The service that is called.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Its method.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The method's argument.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
}

/// The content of a response.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Response {
    /// How the call went; none means well.
    #[prost(message, optional, tag = "1")]
    pub status: Option<Status>,
    /// The method's result.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// Why a call failed (googleapis: google/rpc/status.proto; Apache-2.0).
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Status {
    /// A [`Code`], or 0 for none.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The codes of failed calls that we use (googleapis: google/rpc/code.proto).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Code {
    /// The argument cannot be read.
    InvalidArgument = 3,
    /// The answer takes too long.
    DeadlineExceeded = 4,
    /// Something is too large.
    ResourceExhausted = 8,
    /// The container may not be made or changed like this.
    FailedPrecondition = 9,
    /// There is no such method here.
    Unimplemented = 12,
}

impl Response {
    /// The response of a call that went well.
    pub fn of(result: &impl prost::Message) -> Response {
        Response {
            status: None,
            payload: result.encode_to_vec(),
        }
    }

    /// The response of a call that failed.
    pub fn failed(code: Code, message: impl Into<String>) -> Response {
        Response {
            status: Some(Status {
                code: code as i32,
                message: message.into(),
            }),
            payload: Vec::new(),
        }
    }

    /// Why the call failed; `None` if it went well.
    pub fn failure(&self) -> Option<&Status> {
        self.status.as_ref().filter(|status| status.code != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(stream: u32, kind: Kind, content: &[u8]) -> Message {
        Message {
            stream,
            kind,
            content: content.to_vec(),
        }
    }

    #[test]
    fn messages_are_read_as_they_were_written() {
        let all = [
            message(1, Kind::Request, b"ab"),
            message(u32::MAX, Kind::Response, b""),
            message(2, Kind::Other(9), &[7; 5000]),
        ];
        let bytes: Vec<u8> = all.iter().flat_map(Message::bytes).collect();
        assert_eq!(&bytes[..12], b"\0\0\0\x02\0\0\0\x01\x01\0ab");
        for at in 0..=bytes.len() {
            let mut messages = Messages::default();
            let mut seen = messages.add(&bytes[..at]).unwrap();
            seen.extend(messages.add(&bytes[at..]).unwrap());
            assert_eq!(seen, all, "{at}");
            assert_eq!(messages.pending(), 0);
        }
    }

    #[test]
    fn a_length_is_believed_up_to_the_most_and_room_is_made_for_what_comes() {
        let most = u32::try_from(MOST).unwrap();
        for (length, fits) in [(most, true), (most + 1, false), (u32::MAX, false)] {
            let mut messages = Messages::default();
            let header = [&length.to_be_bytes()[..], &[0, 0, 0, 1, 1, 0]].concat();
            assert_eq!(messages.add(&header).is_ok(), fits, "{length}");
            if fits {
                assert!(messages.pending.capacity() < 1000);
            }
        }
    }

    #[test]
    fn an_answer_that_is_too_long_is_an_error() {
        let bytes = message(3, Kind::Response, &vec![0; MOST + 1]).bytes();
        let seen = Messages::default().add(&bytes).unwrap();
        let response = Response::decode(seen[0].content.as_slice()).unwrap();
        assert_eq!(response.failure().map(|status| status.code), Some(8));
    }

    #[test]
    fn a_status_of_code_0_is_no_failure() {
        let fine = Response {
            status: Some(Status::default()),
            payload: Vec::new(),
        };
        assert_eq!(fine.failure(), None);
        let bad = Response::failed(Code::Unimplemented, "no");
        assert_eq!(bad.failure().map(|status| status.code), Some(12));
    }
}
