//! Standard output, whose reader may go away at any time: that says nothing about what a verb did.

use std::io::{self, ErrorKind, Stdout, Write};

use anstream::AutoStream;
use anyhow::Result;
use serde_json::Value;

use crate::text;

/// What a verb prints. Once the reader is gone (`pinfold describe | head`) the rest is dropped, and the verb ends as if all
/// had been read: its exit code is about what it did.
#[derive(Debug)]
pub(super) struct Output {
    stdout: Stdout,
    unwritable: Unwritable,
    end: Option<End>,
}

/// Why nothing more is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Its reader is gone.
    Closed,
    /// It cannot be written, which was remarked.
    Failed,
}

/// What becomes of an output that cannot be written, as on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwritable {
    Fails,
    IsRemarked,
}

impl Output {
    /// Of a verb that is there for what it prints: where that cannot be written, it failed.
    pub(super) fn product() -> Output {
        Output::new(Unwritable::Fails)
    }

    /// Of a verb that did something, and tells it: done it is all the same.
    pub(super) fn account() -> Output {
        Output::new(Unwritable::IsRemarked)
    }

    fn new(unwritable: Unwritable) -> Output {
        Output {
            stdout: io::stdout(),
            unwritable,
            end: None,
        }
    }

    /// Prints a JSON document.
    pub(super) fn json(&mut self, document: &Value) -> Result<()> {
        Ok(writeln!(self, "{}", text::json(document))?)
    }

    /// Prints what has colours, which a terminal alone gets.
    pub(super) fn coloured(
        &mut self,
        write: impl FnOnce(&mut AutoStream<Vec<u8>>) -> io::Result<()>,
    ) -> Result<()> {
        let choice = AutoStream::choice(&self.stdout);
        let mut page = AutoStream::new(Vec::new(), choice);
        write(&mut page)?;
        Ok(self.write_all(&page.into_inner())?)
    }

    /// Is its reader gone?
    pub(super) fn is_closed(&self) -> bool {
        self.end == Some(End::Closed)
    }

    fn judge(&mut self, written: io::Result<()>) -> io::Result<()> {
        let Err(error) = written else {
            return Ok(());
        };
        if error.kind() == ErrorKind::BrokenPipe {
            self.end = Some(End::Closed);
            return Ok(());
        }
        self.end = Some(End::Failed);
        let message = format!("write to standard output: {error}");
        match self.unwritable {
            Unwritable::Fails => Err(io::Error::new(error.kind(), message)),
            Unwritable::IsRemarked => {
                log::warn!("{message}; what was to be done is done");
                Ok(())
            }
        }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.end.is_none() {
            let written = self.stdout.write_all(bytes);
            self.judge(written)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.end.is_some() {
            return Ok(());
        }
        let flushed = self.stdout.flush();
        self.judge(flushed)
    }
}
