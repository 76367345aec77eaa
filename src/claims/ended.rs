//! The claims of owners that ended: set aside where they would be removed, by one system call
//! instead of another, until somebody without the lock has written down what the owner did.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Claim, Ledger, OwnerKind, make_directory, record};
use crate::files;

const DIRECTORY: &str = "ended";

/// The claim of an owner that ended.
#[derive(Debug)]
pub struct Ended {
    /// The claim, or why it cannot be read.
    pub claim: Result<Claim, String>,
    /// When it was set aside, in seconds since the epoch.
    pub at: i64,
    /// What tells the owner from others of its boot.
    pub name: String,
    path: PathBuf,
}

impl Ledger {
    /// From now on the claims of owners that end are set aside.
    pub fn keep_ended(&mut self) {
        self.keeps_ended = true;
    }

    /// Has this ledger set any aside?
    pub fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Removes the claim of an owner that ended, as [`Ledger::remove`] does, and sets it aside
    /// where that is wanted. A reservation is of no owner yet, and whoever cannot be set aside is
    /// removed all the same.
    ///
    /// # Errors
    /// As [`Ledger::remove`].
    pub fn end(&self, claim: &Claim) -> Result<()> {
        if !self.keeps_ended || claim.kind == OwnerKind::Reservation {
            return self.remove(claim);
        }
        match self.set_aside(claim) {
            Ok(()) => {
                self.has_ended.set(true);
                self.remove_what_is_left_of(claim)
            }
            Err(error) => {
                log::info!("{} is not accounted for: {error}", claim.shown());
                self.remove(claim)
            }
        }
    }

    fn set_aside(&self, claim: &Claim) -> io::Result<()> {
        let ended = self.run_dir.join(DIRECTORY);
        let (from, to) = (self.file_of(claim), ended.join(claim.marker_name()));
        match std::fs::rename(&from, &to) {
            Err(error) if files::is_gone(&error) => {
                make_directory(&ended).map_err(io::Error::other)?;
                std::fs::rename(&from, &to)
            }
            other => other,
        }
    }

    /// The names of those that are set aside, unread: there can be thousands.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn names_of_ended(&self) -> Result<Vec<String>> {
        files::names_in(&self.run_dir.join(DIRECTORY))
    }

    /// Makes sure that nobody else writes down what they did, until the file is closed; waits for
    /// somebody who does.
    ///
    /// # Errors
    /// Somebody does so for longer than that, or nobody is set aside.
    pub fn lock_ended(&self, patience: Duration) -> Result<File> {
        let path = self.run_dir.join(DIRECTORY);
        let dir = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        files::lock_within(&dir, patience).with_context(|| {
            format!("another process writes them down: lock {}", path.display())
        })?;
        Ok(dir)
    }

    /// One of them; `None` where somebody else has taken it.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn ended(&self, name: &str) -> Result<Option<Ended>> {
        let path = self.run_dir.join(DIRECTORY).join(name);
        let Some(metadata) = files::entry_if_there(&path)? else {
            return Ok(None);
        };
        let claim = match files::read_if_there(&path)? {
            Some(text) => record::parse(&text).map_err(|error| format!("{error:#}")),
            None => return Ok(None),
        };
        Ok(Some(Ended {
            claim,
            // Renaming it was the last that was done to it.
            at: metadata.ctime(),
            name: name.to_owned(),
            path,
        }))
    }

    /// Forgets one: it is accounted for.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, ended: &Ended) -> Result<()> {
        files::remove(&ended.path)
    }
}
