//! How the plugin stands, for whoever asks meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How the plugin stands.
#[derive(Debug, Default)]
pub struct Status {
    is_connected: AtomicBool,
    /// The ids of running containers that asked for CPUs and have none.
    unpinned: Mutex<BTreeSet<String>>,
}

impl Status {
    /// Does the engine ask us about each container?
    pub fn is_connected(&self) -> bool {
        self.is_connected.load(Ordering::Relaxed)
    }

    /// How many running containers asked for CPUs and have none. While there is no connection, as
    /// many as there were.
    pub fn unpinned(&self) -> usize {
        self.ids().len()
    }

    pub(super) fn connected(&self, is_connected: bool) {
        self.is_connected.store(is_connected, Ordering::Relaxed);
    }

    /// These and no others are unpinned. Returns those that were not before.
    pub(super) fn set_unpinned(&self, ids: BTreeSet<String>) -> BTreeSet<String> {
        let mut known = self.ids();
        let new = ids.difference(&known).cloned().collect();
        *known = ids;
        new
    }

    /// This one is unpinned too. Returns whether it was not before.
    pub(super) fn add_unpinned(&self, id: &str) -> bool {
        self.ids().insert(id.to_owned())
    }

    /// This container has ended.
    pub(super) fn ended(&self, id: &str) {
        self.ids().remove(id);
    }

    fn ids(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.unpinned.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
