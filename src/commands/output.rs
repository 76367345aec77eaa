//! Writes standard output. Its reader may go away at any time, which is no failure of the verb.

use std::io::{self, ErrorKind, Stdout, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anstream::AutoStream;
use anyhow::{Result, bail};
use serde::Serialize;

use crate::files::{self, Durability};
use crate::refusal::Refusal;
use crate::text;

/// What a verb prints. Once the reader is gone (`pinfold describe | head`) the rest is dropped, and
/// the exit code is still about what the verb did.
#[derive(Debug)]
pub(super) struct Output {
    stdout: Stdout,
    unwritable: Unwritable,
    end: Option<End>,
}

/// Why nothing more is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The reader is gone.
    Closed,
    /// A write failed, which was remarked.
    Failed,
}

/// What a failed write means, as on a full disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unwritable {
    Fails,
    IsRemarked,
}

impl Output {
    /// The output of a verb whose purpose is to print: a failed write fails the verb.
    pub(super) fn product() -> Output {
        Output::new(Unwritable::Fails)
    }

    /// The output of a verb that reports what it did: a failed write does not undo that.
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
    pub(super) fn json(&mut self, document: &impl Serialize) -> Result<()> {
        Ok(writeln!(self, "{}", text::json(document))?)
    }

    /// Prints a text with colours, which only a terminal gets.
    pub(super) fn coloured(
        &mut self,
        write: impl FnOnce(&mut AutoStream<Vec<u8>>) -> io::Result<()>,
    ) -> Result<()> {
        let choice = AutoStream::choice(&self.stdout);
        let mut page = AutoStream::new(Vec::new(), choice);
        write(&mut page)?;
        Ok(self.write_all(&page.into_inner())?)
    }

    /// Is the reader gone?
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

/// The destination of a document, named by the user.
#[derive(Debug)]
pub(super) enum Target<'a> {
    /// Standard output, by the name `-`.
    Standard,
    /// A file, which is replaced as a whole, and the mode that it gets.
    File(&'a Path, u32),
}

impl Target<'_> {
    /// Resolves a name. Changes nothing yet, but fails if writing would fail.
    ///
    /// # Errors
    /// There is something else than a regular file, or its directory takes no new file.
    pub(super) fn of(name: &Path) -> Result<Target<'_>> {
        if name == Path::new("-") {
            return Ok(Target::Standard);
        }
        let mode = match files::entry_if_there(name)? {
            // Others may have made the link, and it may lead anywhere.
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
