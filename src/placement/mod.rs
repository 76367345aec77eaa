//! The use cases: give an owner CPUs and confine it, take them back, free what dead owners hold.
//! The hook, `isolate`, `release` and `reconcile` all go through here.
//!
//! The pool directory, the ledger and the cgroups do not know each other; this room joins them.

mod again;
mod boot;
mod change;
mod confine;
mod end;
mod keep_off;
mod keeper;
mod life;
mod look;
mod refusal;
mod start;
mod usage;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

pub use again::forget;
pub use boot::replaced_lock;
pub use change::apply::{Applied, apply, try_apply};
pub use change::init::{Existing, Made, init, try_init, unmake};
pub use change::steps::{Change, Changed, change, set_options, try_change};
pub use change::stock::stock;
pub use confine::{Confinable, WantedOfUnits, confinable};
pub use end::reap::Reclaimed;
pub use end::reconcile::{Reconciled, reconcile};
pub use end::release::{Release, force_release, release};
pub use keeper::let_through;
pub use look::audit::{Audit, audit, live_claims};
pub use look::beside::{Neighbour, Neighbours, neighbours};
pub use look::devices::{DevicePool, ListDevice, ListDevices, list_devices};
pub use look::explain::{Explanation, Taken, explain};
pub use look::find::{find, pid_id};
pub use look::seen::{Seen, survey_to_watch};
pub use look::survey::{ListState, Owner, OwnerState, Survey, SurveyedList, SurveyedPool, survey};
pub use look::unpinned::{Lack, labels_meant, outside_of_default, unpinned};
pub use refusal::chosen_already;
pub use start::command::{CommandPlace, pin_command};
pub use start::container::{Start, pin_container};
pub use start::reserve::{cancel_reservation, reserve};
pub use usage::{account, read_before_end, readings};

use crate::cgroup::{Group, Hierarchy, cpuset};
use crate::claims::Ledger;
use crate::files;
use crate::host::Host;
use crate::isolation::Options;
use crate::last_lists::LastLists;
use crate::pools::{Lock, LockError, PoolDirectory};
use crate::process::{self, Process};
use crate::usage::Log;
use life::Pids;
use usage::Tally;

/// A machine, its pool directory and its claims; how long to wait, and what else is recorded.
#[derive(Debug, Clone)]
pub struct Site {
    /// The machine.
    pub host: Host,
    /// The pool directory.
    pub conf_dir: PathBuf,
    /// The run directory, which holds the claims.
    pub run_dir: PathBuf,
    /// How long to wait for the lock; zero tries once.
    pub patience: Duration,
    /// The time by which every wait has to end; `None` if nobody waits for us.
    pub deadline: Option<Instant>,
    /// The log of what owners used; `None` if it is not wanted.
    pub usage: Option<Log>,
    /// The files that remember the last lists of containers; `None` if they are not wanted.
    pub last: Option<LastLists>,
    /// The pools' options in the configuration. They override those in the pools' files.
    pub options: BTreeMap<String, Options>,
    /// Are the host's own units kept off the CPUs of exclusive pools?
    pub confines_host: bool,
}

/// How long a start looks for dead owners while others wait for the lock: well below the 10 s that
/// a hook waits for it.
const LOOKING: Duration = Duration::from_secs(5);

/// A site for reading: others may be changing it.
pub(crate) struct View<'a> {
    host: &'a Host,
    directory: PoolDirectory,
    ledger: Ledger,
    hierarchy: Hierarchy,
    boot_id: String,
    /// Can it be told who lives? Not on every captured machine: there all owners count as alive.
    tells_lives: bool,
    pids: Pids,
}

/// A site while its lock is held: nobody else changes it.
pub(crate) struct Books<'a> {
    view: View<'a>,
    options: &'a BTreeMap<String, Options>,
    run_dir: &'a Path,
    deadline: Option<Instant>,
    /// When looking for dead owners has to end.
    until: Instant,
    /// Has every claim its links? `None` until that is found out.
    links: Cell<Option<bool>>,
    // Dropped after the fields above, so that what they do at their end is done under the lock.
    lock: Lock,
    // Dropped last: it counts once the lock is free.
    tally: Tally<'a>,
}

impl<'a> Deref for Books<'a> {
    type Target = View<'a>;

    fn deref(&self) -> &View<'a> {
        &self.view
    }
}

/// `most`, or what is left until the deadline if that is less.
fn at_most(most: Duration, deadline: Option<Instant>) -> Duration {
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
    deadline.map_or(most, |deadline| most.min(left(deadline)))
}

impl Site {
    /// Takes the lock. The first to take it after a boot voids what was recorded before that.
    fn open_books(&self, hierarchy: Hierarchy) -> Result<Books<'_>> {
        let directory = PoolDirectory::open(&self.host, &self.conf_dir)?;
        let patience = at_most(self.patience, self.deadline);
        let began = Instant::now();
        let lock = directory.lock_in_turn(&self.host, patience, &self.run_dir);
        if let Err(LockError::Held(_)) = &lock {
            self.count(Some(began.elapsed()), 0);
        }
        self.books(directory, lock?, hierarchy)
    }

    /// The books of a lock that is held already.
    fn books(
        &self,
        directory: PoolDirectory,
        lock: Lock,
        hierarchy: Hierarchy,
    ) -> Result<Books<'_>> {
        files::ensure_trusted_way(&self.run_dir, || self.host.unknown_root())?;
        lock.close_to_others();
        let view = View {
            host: &self.host,
            ledger: Ledger::open(&self.run_dir)?,
            hierarchy,
            boot_id: process::boot_id(&self.host)?,
            tells_lives: true,
            pids: Pids::default(),
            directory,
        };
        let mut books = Books {
            view,
            options: &self.options,
            run_dir: &self.run_dir,
            deadline: self.deadline,
            until: Instant::now() + at_most(LOOKING, self.deadline),
            links: Cell::new(None),
            tally: Tally::of(self, &lock),
            lock,
        };
        if self.usage.is_some() {
            books.view.ledger.keep_ended();
        }
        books.begin_boot(self)?;
        Ok(books)
    }

    /// The view for a trial, which changes nothing: what an earlier boot left stays as well.
    fn view(&self, directory: &PoolDirectory) -> Result<View<'_>> {
        let (hierarchy, boot_id) = match self.host.is_running_root() {
            true => (
                Some(cpuset::hierarchy(&self.host)?),
                Some(process::boot_id(&self.host)?),
            ),
            false => (
                cpuset::hierarchy(&self.host).ok(),
                process::boot_id(&self.host).ok(),
            ),
        };
        let ledger = Ledger::open_to_read(&self.run_dir)?;
        let mark = ledger.boot_mark()?.unwrap_or_default();
        Ok(View {
            host: &self.host,
            pids: boot::pids_of(&mark, boot_id.as_deref().unwrap_or_default(), &ledger),
            ledger,
            tells_lives: hierarchy.is_some() && boot_id.is_some(),
            hierarchy: hierarchy.unwrap_or_else(|| cpuset::usual_hierarchy(&self.host)),
            boot_id: boot_id.unwrap_or_default(),
            directory: directory.clone(),
        })
    }
}

impl Books<'_> {
    /// The group that we make for an owner without a group of its own. Its name is unique within a
    /// boot.
    fn new_group(&self, id: &str, owner: Process) -> Result<Group> {
        let name = format!("{id}-{}-{}", owner.pid, owner.start);
        Ok(self.hierarchy.parent_for(&self.lock.key())?.child(&name))
    }
}

#[cfg(test)]
mod tests;
