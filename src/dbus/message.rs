//! Pure: messages as bytes: our calls, and the answers (D-Bus Specification, "Message Protocol").

use anyhow::{Context, Result, bail, ensure};

/// The byte that tells a message's byte order. It is the machine's own, because the peer is on the
/// same machine.
const BYTE_ORDER: u8 = if cfg!(target_endian = "little") {
    b'l'
} else {
    b'B'
};
/// The version of the protocol.
const VERSION: u8 = 1;
/// The length of a header before its fields, in bytes.
const FIXED: usize = 16;

// The types of messages.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;

// The codes of header fields.
const PATH: u8 = 1;
const INTERFACE: u8 = 2;
const MEMBER: u8 = 3;
const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
const DESTINATION: u8 = 6;
const SIGNATURE: u8 = 8;

/// A method call.
#[derive(Debug)]
pub struct Call<'a> {
    /// The name of the program that is called.
    pub to: &'a str,
    /// The object's path.
    pub path: &'a str,
    /// The interface of the method.
    pub interface: &'a str,
    /// The method.
    pub member: &'a str,
    /// The arguments.
    pub values: Values,
}

impl Call<'_> {
    /// Appends the call as a message with this serial number, which must not be 0.
    pub(super) fn write(&self, serial: u32, to: &mut Vec<u8>) {
        let mut fields = Bytes::default();
        for (code, kind, value) in [
            (PATH, "o", self.path),
            (INTERFACE, "s", self.interface),
            (MEMBER, "s", self.member),
            (DESTINATION, "s", self.to),
        ] {
            fields.field(code, kind);
            fields.text(value);
        }
        if !self.values.signature.is_empty() {
            fields.field(SIGNATURE, "g");
            fields.signature(&self.values.signature);
        }
        let mut message = Bytes::default();
        message.0.extend([BYTE_ORDER, CALL, 0, VERSION]);
        message.length(self.values.bytes.0.len());
        message.number(serial);
        message.length(fields.0.len());
        message.0.extend(&fields.0);
        message.align(8);
        message.0.extend(&self.values.bytes.0);
        to.extend(message.0);
    }
}

/// The arguments of a call, in their order.
#[derive(Debug, Default)]
pub struct Values {
    signature: String,
    bytes: Bytes,
}

impl Values {
    /// Adds a text, which must have no NUL.
    pub fn text(mut self, text: &str) -> Values {
        self.signature.push('s');
        self.bytes.text(text);
        self
    }

    /// Adds a boolean.
    pub fn boolean(mut self, value: bool) -> Values {
        self.signature.push('b');
        self.bytes.number(value.into());
        self
    }

    /// Adds an array of properties by name.
    pub fn properties(mut self, properties: &[(&str, Property)]) -> Values {
        self.signature.push_str("a(sv)");
        // The array's length counts neither the padding after it, nor that of the values before.
        let start = self.bytes.array(8);
        for (name, value) in properties {
            self.bytes.align(8);
            self.bytes.text(name);
            match value {
                Property::Bytes(bytes) => {
                    self.bytes.signature("ay");
                    self.bytes.length(bytes.len());
                    self.bytes.0.extend(bytes);
                }
                Property::Number(number) => {
                    self.bytes.signature("t");
                    self.bytes.align(8);
                    self.bytes.0.extend(number.to_ne_bytes());
                }
            }
        }
        self.bytes.end_array(start);
        self
    }
}

/// The value of a property (Specification, "Basic types").
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// `ay`
    Bytes(Vec<u8>),
    /// `t`
    Number(u64),
}

#[derive(Debug, Default)]
struct Bytes(Vec<u8>);

impl Bytes {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_ne_bytes());
    }

    /// Our own messages are short, so the length fits.
    fn length(&mut self, length: usize) {
        self.number(u32::try_from(length).unwrap_or(u32::MAX));
    }

    fn text(&mut self, text: &str) {
        self.length(text.len());
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0
            .push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.bytes());
        self.0.push(0);
    }

    /// Begins a header field: its code, and the type of its value.
    fn field(&mut self, code: u8, kind: &str) {
        self.align(8);
        self.0.push(code);
        self.signature(kind);
    }

    /// Begins an array; its elements are aligned to `alignment`. Returns where its length and its
    /// elements begin.
    fn array(&mut self, alignment: usize) -> (usize, usize) {
        self.number(0);
        let length_at = self.0.len() - 4;
        self.align(alignment);
        (length_at, self.0.len())
    }

    fn end_array(&mut self, (length_at, start): (usize, usize)) {
        let length = u32::try_from(self.0.len() - start).unwrap_or(u32::MAX);
        self.0[length_at..length_at + 4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// What a call returned.
#[derive(Debug, Default)]
pub struct Answer {
    signature: String,
    bytes: Vec<u8>,
}

impl Answer {
    /// The text that the call returned, by itself or in a variant.
    ///
    /// # Errors
    /// It returned something else.
    pub fn text(&self) -> Result<String> {
        let text = self.value("s")?.text()?;
        Ok(text.to_owned())
    }

    /// The boolean that the call returned, by itself or in a variant.
    ///
    /// # Errors
    /// It returned something else.
    pub fn boolean(&self) -> Result<bool> {
        Ok(self.value("b")?.number()? != 0)
    }

    /// The number of 64 bits that the call returned, by itself or in a variant.
    ///
    /// # Errors
    /// It returned something else.
    pub fn number(&self) -> Result<u64> {
        self.value("t")?.long_number()
    }

    /// The array of bytes that the call returned, by itself or in a variant.
    ///
    /// # Errors
    /// It returned something else.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut value = self.value("ay")?;
        let length = value.length()?;
        Ok(value.take(length)?.to_vec())
    }

    /// A reader at the beginning of the value, if the value is of type `kind`.
    fn value(&self, kind: &str) -> Result<Reader<'_>> {
        let mut reader = Reader::of(&self.bytes);
        let found = match self.signature.as_str() {
            "v" => reader.signature()?,
            other => other,
        };
        ensure!(
            found == kind,
            "it answers a value of type {found:?}, and not {kind:?}"
        );
        Ok(reader)
    }
}

/// A message that was received.
#[derive(Debug, Default)]
pub struct Message {
    /// The serial number of the call that it answers; `None` if it is not an answer.
    pub answers_to: Option<u32>,
    /// The error's name and text, if it is an error.
    pub error: Option<String>,
    /// What the call returned.
    pub answer: Answer,
}

impl Message {
    /// The length of the message that begins here, in bytes; `None` if too few bytes are there to
    /// tell.
    ///
    /// # Errors
    /// The message is longer than `most`, or is not one of this machine.
    pub fn length(bytes: &[u8], most: usize) -> Result<Option<usize>> {
        let Some(head) = bytes.get(..FIXED) else {
            return Ok(None);
        };
        ensure!(
            head[0] == BYTE_ORDER && head[3] == VERSION,
            "it answers in another byte order or version"
        );
        let (body, fields) = (u32_at(head, 4)?, u32_at(head, 12)?);
        let length = (FIXED as u64 + u64::from(fields)).next_multiple_of(8) + u64::from(body);
        let length = usize::try_from(length).ok().filter(|all| *all <= most);
        Ok(Some(length.with_context(|| {
            format!("its answer is longer than {most} bytes")
        })?))
    }

    /// Parses a message of exactly this length.
    ///
    /// # Errors
    /// It is torn, or not as D-Bus specifies.
    pub fn parse(bytes: &[u8]) -> Result<Message> {
        let mut reader = Reader::of(bytes);
        let kind = reader.take(FIXED)?[1];
        let fields = u32_at(bytes, 12)? as usize;
        let end = FIXED + fields;
        ensure!(end <= bytes.len(), "its answer is torn");
        let mut message = Message::default();
        let mut name = String::new();
        while reader.at < end {
            reader.align(8)?;
            let code = reader.take(1)?[0];
            let of_type = reader.signature()?.to_owned();
            match (code, of_type.as_str()) {
                (REPLY_SERIAL, "u") => message.answers_to = Some(reader.number()?),
                (ERROR_NAME, "s") => reader.text()?.clone_into(&mut name),
                (SIGNATURE, "g") => {
                    reader
                        .signature()?
                        .clone_into(&mut message.answer.signature);
                }
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                (_, "u") => drop(reader.number()?),
                _ => bail!("its answer has a field {code} of type {of_type:?}"),
            }
        }
        reader.align(8)?;
        message.answer.bytes = reader.rest().to_vec();
        match kind {
            RETURN => {}
            ERROR => {
                let text = message.answer.text().unwrap_or_default();
                message.error = Some(format!("{name}: {text}"));
            }
            // A signal, or a call to us.
            _ => message.answers_to = None,
        }
        Ok(message)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let mut reader = Reader { bytes, at };
    reader.number()
}

/// Reads values. Positions are aligned relative to the beginning of `bytes`.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn of(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, at: 0 }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.context("its answer is torn")?;
        self.at += count;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<()> {
        let padding = self.at.next_multiple_of(to) - self.at;
        self.take(padding).map(drop)
    }

    fn number(&mut self) -> Result<u32> {
        self.align(4)?;
        let mut number = [0; 4];
        number.copy_from_slice(self.take(4)?);
        Ok(u32::from_ne_bytes(number))
    }

    fn long_number(&mut self) -> Result<u64> {
        self.align(8)?;
        let mut number = [0; 8];
        number.copy_from_slice(self.take(8)?);
        Ok(u64::from_ne_bytes(number))
    }

    fn length(&mut self) -> Result<usize> {
        Ok(self.number()? as usize)
    }

    fn text(&mut self) -> Result<&'a str> {
        let length = self.length()?;
        self.ended(length)
    }

    fn signature(&mut self) -> Result<&'a str> {
        let length = self.take(1)?[0];
        self.ended(length.into())
    }

    /// A text of this length, followed by a NUL.
    fn ended(&mut self, length: usize) -> Result<&'a str> {
        let text = self.take(length)?;
        ensure!(self.take(1)? == [0], "its answer is torn");
        std::str::from_utf8(text).context("its answer is no text")
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn message(kind: u8, to: u32, name: Option<&str>, text: &str) -> Vec<u8> {
        let mut body = Bytes::default();
        body.text(text);
        with_body(kind, to, name, ("s", &body.0))
    }

    /// A message with a body of this type.
    fn with_body(kind: u8, to: u32, name: Option<&str>, (of, body): (&str, &[u8])) -> Vec<u8> {
        let mut fields = Bytes::default();
        fields.field(REPLY_SERIAL, "u");
        fields.number(to);
        if let Some(name) = name {
            fields.field(ERROR_NAME, "s");
            fields.text(name);
        }
        // The sender's name, which is ignored.
        fields.field(7, "s");
        fields.text(":1.2");
        fields.field(SIGNATURE, "g");
        fields.signature(of);
        let mut message = Bytes::default();
        message.0.extend([BYTE_ORDER, kind, 1, VERSION]);
        message.length(body.len());
        message.number(99);
        message.length(fields.0.len());
        message.0.extend(fields.0);
        message.align(8);
        message.0.extend(body);
        message.0
    }

    /// The message that a method returned a value of this type, in these bytes.
    pub(crate) fn returned_value(to: u32, of: &str, value: &[u8]) -> Vec<u8> {
        with_body(RETURN, to, None, (of, value))
    }

    /// The message that a method returned a text.
    pub(in crate::dbus) fn returned(to: u32, text: &str) -> Vec<u8> {
        message(RETURN, to, None, text)
    }

    /// The message that a method failed.
    pub(in crate::dbus) fn refused(to: u32, name: &str, text: &str) -> Vec<u8> {
        message(ERROR, to, Some(name), text)
    }

    /// The bytes are written out: the lengths, and the alignment of each part.
    #[test]
    fn a_call_is_the_bytes_that_the_specification_says() {
        if BYTE_ORDER != b'l' {
            return;
        }
        let call = Call {
            to: "a.b",
            path: "/c",
            interface: "d.e",
            member: "F",
            values: Values::default()
                .text("x")
                .boolean(true)
                .properties(&[("P", Property::Bytes(vec![5])), ("Q", Property::Number(9))]),
        };
        let mut bytes = Vec::new();
        call.write(7, &mut bytes);
        let mut expected = Vec::new();
        expected.extend(b"l\x01\x00\x01\x40\x00\x00\x00\x07\x00\x00\x00\x4d\x00\x00\x00");
        expected.extend(b"\x01\x01o\x00\x02\x00\x00\x00/c\x00\x00\x00\x00\x00\x00");
        expected.extend(b"\x02\x01s\x00\x03\x00\x00\x00d.e\x00\x00\x00\x00\x00");
        expected.extend(b"\x03\x01s\x00\x01\x00\x00\x00F\x00\x00\x00\x00\x00\x00\x00");
        expected.extend(b"\x06\x01s\x00\x03\x00\x00\x00a.b\x00\x00\x00\x00\x00");
        expected.extend(b"\x08\x01g\x00\x07sba(sv)\x00");
        expected.resize(expected.len().next_multiple_of(8), 0);
        // A text, a boolean, and the length of the array.
        expected.extend(b"\x01\x00\x00\x00x\x00\x00\x00\x01\x00\x00\x00");
        expected.extend(b"\x30\x00\x00\x00");
        // A name, and a variant with an array of one byte.
        expected.extend(b"\x01\x00\x00\x00P\x00\x02ay\x00\x00\x00\x01\x00\x00\x00\x05");
        // The next begins at a multiple of eight, and so does a number of eight bytes.
        expected.extend(b"\0\0\0\0\0\0\0\x01\x00\x00\x00Q\x00\x01t\x00\0\0\0\0\0\0\0");
        expected.extend(b"\x09\0\0\0\0\0\0\0");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_answer_is_read_and_its_type_is_judged() {
        let bytes = returned(3, "/system.slice");
        assert_eq!(Message::length(&bytes, 4096).unwrap(), Some(bytes.len()));
        assert!(Message::length(&bytes, bytes.len() - 1).is_err());
        assert_eq!(Message::length(&bytes[..15], 4096).unwrap(), None);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.answers_to, Some(3));
        assert_eq!(message.answer.text().unwrap(), "/system.slice");
        assert!(message.answer.bytes().is_err() && message.answer.boolean().is_err());
        let error = Message::parse(&refused(4, "a.b", "no")).unwrap();
        assert_eq!(error.error.as_deref(), Some("a.b: no"));
        for (bytes, expected) in [
            (
                &b"\x02ay\x00\x02\x00\x00\x00\x03\x80"[..],
                Some(vec![3, 128]),
            ),
            (b"\x02ay\x00\x03\x00\x00\x00\x03\x80", None),
            (b"\x02ay\x00\xff\xff\xff\xff\x03\x80", None),
            (b"\x02as\x00\x00\x00\x00\x00", None),
            (b"\xff", None),
        ] {
            let answer = Answer {
                signature: "v".into(),
                bytes: bytes.to_vec(),
            };
            if BYTE_ORDER == b'l' {
                assert_eq!(answer.bytes().ok(), expected, "{bytes:?}");
            }
        }
    }

    /// Tries each prefix of a message, and each value of each of its bytes.
    #[test]
    fn no_message_does_harm() {
        let whole = refused(4, "org.example.No", "why");
        for end in 0..whole.len() {
            if Message::length(&whole[..end], 4096).unwrap().is_some() {
                let _ = Message::parse(&whole[..end]);
            }
        }
        for at in 0..whole.len() {
            for byte in 0..=255 {
                let mut bytes = whole.clone();
                bytes[at] = byte;
                if let Ok(message) = Message::parse(&bytes) {
                    let _ = (message.answer.bytes(), message.answer.boolean());
                    let _ = message.answer.number();
                }
            }
        }
    }
}
