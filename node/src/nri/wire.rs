//! What comes over an engine's socket, taken apart, and what goes, put together. Pure.

use anyhow::Result;

use super::frames::{Frames, PLUGIN, RUNTIME, framed};
use super::ttrpc::{Message, Messages};

/// Takes apart what comes over one socket.
#[derive(Debug, Default)]
pub struct Wire {
    frames: Frames,
    calls: Messages,
    answers: Messages,
}

/// A message, by the connection that it came over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Arrived {
    /// Over the one on which the engine calls us.
    ToPlugin(Message),
    /// Over the one on which we call the engine.
    ToCaller(Message),
}

impl Wire {
    /// Adds bytes, and returns the messages that they complete. What is of another connection is
    /// passed over, as engines do.
    ///
    /// # Errors
    /// A length is more than anybody sends: what follows cannot be understood.
    pub fn add(&mut self, mut bytes: &[u8]) -> Result<Vec<Arrived>> {
        let mut arrived = Vec::new();
        while let Some(piece) = self.frames.next(&mut bytes)? {
            match piece.connection {
                PLUGIN => {
                    let messages = self.calls.add(piece.content)?;
                    arrived.extend(messages.into_iter().map(Arrived::ToPlugin));
                }
                RUNTIME => {
                    let messages = self.answers.add(piece.content)?;
                    arrived.extend(messages.into_iter().map(Arrived::ToCaller));
                }
                _ => {}
            }
        }
        Ok(arrived)
    }

    /// Has something begun whose end has not come?
    pub fn is_within(&self) -> bool {
        self.frames.is_within() || self.pending() > 0
    }

    /// How many bytes are kept of messages whose end has not come.
    pub fn pending(&self) -> usize {
        self.calls.pending() + self.answers.pending()
    }
}

/// The bytes of a message over a connection.
pub fn sent(connection: u32, message: &Message) -> Vec<u8> {
    framed(connection, &message.bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ttrpc::Kind;
    use super::*;

    fn message(stream: u32, content: &[u8]) -> Message {
        Message {
            stream,
            kind: Kind::Request,
            content: content.to_vec(),
        }
    }

    #[test]
    fn connections_do_not_mix_and_others_are_passed_over() {
        let (to_us, answer) = (message(1, b"for us"), message(3, b"an answer"));
        let [first, second] = [(PLUGIN, &to_us), (RUNTIME, &answer)]
            .map(|(connection, message)| (connection, message.bytes(), message.bytes().len() / 2));
        // Their halves take turns, with frames of connections that nobody has opened in between.
        let mut bytes = Vec::new();
        for (connection, whole, half) in [&first, &second] {
            bytes.extend(framed(*connection, &whole[..*half]));
            bytes.extend(framed(0, b"reserved"));
        }
        for (connection, whole, half) in [&first, &second] {
            bytes.extend(framed(7, &[0xff; 100]));
            bytes.extend(framed(*connection, &whole[*half..]));
        }
        let mut wire = Wire::default();
        let arrived = wire.add(&bytes).unwrap();
        assert_eq!(
            arrived,
            [Arrived::ToPlugin(to_us), Arrived::ToCaller(answer)]
        );
        assert!(!wire.is_within());
    }

    proptest! {
        #[test]
        fn what_was_sent_arrives_however_it_is_split(
            contents in prop::collection::vec((any::<bool>(), 0..9000_usize), 0..6),
            cuts in prop::collection::vec(1..5000_usize, 1..20),
        ) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (stream, (is_to_us, length)) in (0..).zip(contents) {
                let message = message(stream, &vec![stream as u8; length]);
                let connection = if is_to_us { PLUGIN } else { RUNTIME };
                bytes.extend(sent(connection, &message));
                expected.push(match is_to_us {
                    true => Arrived::ToPlugin(message),
                    false => Arrived::ToCaller(message),
                });
            }
            let (mut wire, mut arrived, mut rest) = (Wire::default(), Vec::new(), &bytes[..]);
            for cut in cuts.into_iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at(cut.min(rest.len()));
                arrived.extend(wire.add(piece).unwrap());
                rest = after;
            }
            prop_assert_eq!(arrived, expected);
            prop_assert!(!wire.is_within());
        }

        #[test]
        fn any_bytes_are_messages_or_an_error_and_no_more_is_kept_than_came(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let mut wire = Wire::default();
            if let Ok(arrived) = wire.add(&bytes) {
                prop_assert!(wire.pending() <= bytes.len());
                prop_assert!(arrived.len() <= bytes.len());
            }
        }
    }
}
