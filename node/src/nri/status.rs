//! How the plugin stands, for whoever asks meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How the plugin stands.
#[derive(Debug, Default)]
pub struct Status {
    is_connected: AtomicBool,
    asking: Mutex<Asking>,
}

/// The ids of running containers that asked for CPUs, and are not known to have any.
#[derive(Debug, Default)]
struct Asking {
    /// They are to be looked at, once more where one look found no claim.
    suspected: BTreeSet<String>,
    /// Two looks found no claim.
    unpinned: BTreeSet<String>,
}

impl Status {
    /// Does the engine ask us about each container?
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// How many running containers asked for CPUs and have none. While there is no connection, as
    /// many as there were.
    pub fn unpinned(&self) -> usize {
        self.asking().unpinned.len()
    }

    pub(super) fn connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
    }

    /// These and no others run that ask; of those that were unpinned before that stays so.
    pub(super) fn suspect_only(&self, ids: BTreeSet<String>) {
        let mut asking = self.asking();
        asking.unpinned.retain(|id| ids.contains(id));
        asking.suspected = ids;
    }

    /// This one asks, and has been started.
    pub(super) fn suspect(&self, id: &str) {
        self.asking().suspected.insert(id.to_owned());
    }

    /// It has a claim, or has ended.
    pub(super) fn clear(&self, id: &str) {
        let mut asking = self.asking();
        asking.suspected.remove(id);
        asking.unpinned.remove(id);
    }

    /// Is it still to be looked at? It is not once it has ended.
    pub(super) fn is_suspected(&self, id: &str) -> bool {
        self.asking().suspected.contains(id)
    }

    /// The second look at one that is suspected found no claim either. Returns whether that is
    /// news.
    pub(super) fn confirm(&self, id: &str) -> bool {
        let mut asking = self.asking();
        asking.suspected.remove(id) && asking.unpinned.insert(id.to_owned())
    }

    fn asking(&self) -> MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
