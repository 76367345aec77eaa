//! The claims of owners that ended. Where a claim would be removed it is renamed to here, one
//! system call instead of another, until a process without the lock has recorded what the owner
//! used.

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
    /// The owner's name in the ledger, as [`Claim::marker_name`] makes it.
    pub name: String,
    path: PathBuf,
}

impl Ledger {
    /// From now on claims of ended owners are set aside.
    pub fn keep_ended(&mut self) {
        self.keeps_ended = true;
    }

    /// Has this ledger set any claim aside?
    pub fn has_ended(&self) -> bool {
        self.has_ended.get()
    }

    /// Removes the claim of an ended owner, as [`Ledger::remove`] does; sets it aside where
    /// [`Ledger::keep_ended`] was called. A reservation, which has no owner yet, and a claim that
    /// cannot be set aside are only removed.
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
                self.remove_links_with_retry(claim)
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

    /// The names of the claims that are set aside, unread: there can be thousands.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn names_of_ended(&self) -> Result<Vec<String>> {
        files::names_in(&self.run_dir.join(DIRECTORY))
    }

    /// Locks the claims that are set aside, so that one process at a time accounts for them. The
    /// lock ends when the returned file is closed.
    ///
    /// # Errors
    /// Another process holds the lock for longer than `patience`; no claim was ever set aside.
    pub fn lock_ended(&self, patience: Duration) -> Result<File> {
        let path = self.run_dir.join(DIRECTORY);
        let dir = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        files::lock_within(&dir, patience).with_context(|| {
            format!("another process writes them down: lock {}", path.display())
        })?;
        Ok(dir)
    }

    /// The claim of this name; `None` where another process has accounted for it.
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
            // The rename was the last change.
            at: metadata.ctime(),
            name: name.to_owned(),
            path,
        }))
    }

    /// Removes a claim that is accounted for.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn forget(&self, ended: &Ended) -> Result<()> {
        files::remove(&ended.path)
    }
}
