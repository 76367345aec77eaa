//! Standard output, whose reader may go away at any time: that says nothing about what a verb did.

use std::io::{self, ErrorKind, Stdout, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anstream::AutoStream;
use anyhow::{Result, bail};
use serde_json::Value;

use crate::files::{self, Durability};
use crate::refusal::Refusal;
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

/// Where a document goes that somebody named a file for.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// Standard output, by the name `-`.
    Standard,
    /// A file, which is replaced as a whole, and the mode that it has then.
    File(&'a Path, u32),
}

impl Target<'_> {
    /// What a name means. Nothing is changed yet, but what would fail then fails now.
    ///
    /// # Errors
    /// What is there and is no regular file; a directory that no file can be put into.
    pub(super) fn of(name: &Path) -> Result<Target<'_>> {
        if name == Path::new("-") {
            return Ok(Target::Standard);
        }
        let mode = match files::entry_if_there(name)? {
            // Others may have made a link, and what it leads to be anything.
            Some(entry) if entry.is_symlink() => bail!(Refusal::new(
                format!("{} is a symbolic link", name.display()),
                "name the file itself, or - for standard output"
            )),
            Some(entry) if !entry.is_file() => bail!(Refusal::new(
                format!("{} is not a regular file", name.display()),
                "name another file, or - for standard output"
            )),
            Some(entry) => entry.mode() & 0o777,
            None => 0o644,
        };
        files::try_replacing(name)?;
        Ok(Target::File(name, mode))
    }

    /// Writes the document.
    pub(super) fn write(&self, document: &str) -> Result<()> {
        match self {
            Target::Standard => Ok(Output::product().write_all(document.as_bytes())?),
            Target::File(path, mode) => {
                files::replace(path, document.as_bytes(), *mode, Durability::Crash)
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
