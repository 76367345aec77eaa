//! Gives a container that comes back the lists that it had. What is remembered is read before the
//! lock is taken, and written after it is free; a start that changes nothing reads one small file.
//! No error here fails anything; a frozen file system holds a start up, as it holds the engine up.

use std::time::Duration;

use anyhow::Result;

use super::Site;
use crate::claims::{Claim, Entry, Ledger, OwnerKind};
use crate::last_lists::{DAY, Last, LastLists};
use crate::names::Names;

/// What is remembered of a container that starts; empty if nothing could recognize it when it comes
/// back.
#[derive(Debug, Default)]
pub(super) struct Recalled<'a> {
    memory: Option<(&'a Site, &'a LastLists, Names)>,
    /// What it had last, and how long ago that was recorded.
    last: Option<(Last, Duration)>,
}

impl Recalled<'_> {
    /// The lists of a pool that it had.
    pub(super) fn lists_of(&self, pool: &str) -> &[String] {
        let last = self.last.as_ref().map(|(last, _)| last);
        let last = last.filter(|last| last.pool == pool);
        last.map_or(&[], |last| &last.lists)
    }

    /// Remembers what it has now. Done at the start, because its end may be a power loss. A start
    /// that gets the same lists within a day writes nothing.
    pub(super) fn keep(self, claim: &Claim) {
        let Some((site, lists, names)) = self.memory else {
            return;
        };
        let now = Last {
            names,
            pool: claim.pool.clone(),
            lists: claim.lists.clone(),
        };
        match self.last {
            Some((last, age)) if last == now && age <= DAY => {}
            Some((last, _)) if last == now => log_error(lists.touch(&now.names)),
            _ => log_error(lists.keep(&site.host, &now)),
        }
    }
}

impl Site {
    /// What is remembered of a container with these names or this id.
    pub(super) fn recall(&self, names: &Names, id: &str) -> Recalled<'_> {
        let memory = self.last.as_ref().zip(names.lasting(id));
        let last = memory.as_ref();
        Recalled {
            last: last.and_then(|(lists, names)| lists.of(&self.host, names)),
            memory: memory.map(|(lists, names)| (self, lists, names)),
        }
    }

    /// Refreshes what is remembered of containers that ended, as they were here until now.
    pub(super) fn note_ends(&self, ended: &[Claim]) {
        if let Some(lists) = &self.last {
            for names in ended.iter().filter_map(lasting) {
                log_error(lists.touch(&names));
            }
        }
    }

    /// Forgets containers that did not come back. While a claim cannot be read, any of them may be
    /// its owner.
    pub(super) fn prune_last_lists(&self) {
        if let Some(lists) = &self.last {
            let entries = Ledger::open_if_there(&self.run_dir)
                .and_then(|ledger| ledger.map_or(Ok(Vec::new()), |ledger| ledger.all()));
            log_error(entries.and_then(|entries| {
                if entries.iter().any(|entry| entry.claim().is_none()) {
                    return Ok(());
                }
                let living = entries.iter().filter_map(Entry::claim).filter_map(lasting);
                lists.prune(&self.host, &living.collect::<Vec<_>>())
            }));
        }
    }
}

/// Forgets the lists of containers of this name, and returns what was remembered. Running
/// containers keep theirs.
///
/// # Errors
/// A file cannot be read or removed.
pub fn forget(site: &Site, called: &str) -> Result<Vec<Last>> {
    let lists = site.last.as_ref();
    lists.map_or(Ok(Vec::new()), |lists| lists.forget(&site.host, called))
}

fn lasting(claim: &Claim) -> Option<Names> {
    let is_container = claim.kind == OwnerKind::Container;
    is_container
        .then(|| claim.names.lasting(&claim.id))
        .flatten()
}

fn log_error(done: Result<()>) {
    if let Err(error) = done {
        log::info!("which CPU lists containers had last: {error:#}");
    }
}
