//! A container's id, as its engine gives it.

use std::fmt;

use anyhow::{Result, ensure};

use crate::text::Shown;

/// The longest id, in bytes: a file name holds 255, and ours add to the id.
const MOST_BYTES: usize = 200;

/// A container's id that is safe as a file name: letters, digits, `_`, `+`, `-` and `.`, as runc
/// allows; neither `.` alone nor `..` anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id<'a>(&'a str);

impl<'a> Id<'a> {
    /// Parses an id.
    ///
    /// # Errors
    /// The text cannot name a file.
    pub fn parse(text: &'a str) -> Result<Id<'a>> {
        ensure!(
            is_usable(text),
            "the container id {} cannot be used: ids have 1 to {MOST_BYTES} letters, digits, _ + - \
             and ., and no \"..\"",
            Shown(text)
        );
        Ok(Id(text))
    }

    /// Any text, escaped so that a message can show it as an id.
    pub fn shown(text: &str) -> String {
        match Id::parse(text) {
            Ok(id) => id.to_string(),
            Err(_) => Shown(text).to_string(),
        }
    }

    /// The id as text.
    pub fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

fn is_usable(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+-.".contains(&b);
    (1..=MOST_BYTES).contains(&text.len())
        && text.bytes().all(allowed)
        && text != "."
        && !text.contains("..")
}
