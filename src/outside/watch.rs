//! Waiting for the next time that partitions have to be made again.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::machine::directory;
use super::{Owner, owners};
use crate::cgroup::{cpuset, partition};
use crate::files;
use crate::host::Host;

/// The shortest time between two rounds, and between two looks at the records: a partition that
/// breaks again and again must not keep a CPU busy.
const PAUSE: Duration = Duration::from_millis(200);

/// Tells when a partition breaks, of whatever owner: also of one that starts meanwhile.
pub struct PartitionWatch<'a> {
    host: &'a Host,
    /// Those that did not stand at the end of the last round, or when they were last looked at: a
    /// round that could not make them again is not repeated at once.
    broken: Vec<BrokenPartition>,
}

/// A partition that does not stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenPartition {
    pub(super) group: String,
    /// What its file says.
    pub(super) state: String,
}

/// An owner's partition file, which stays open, and what was read of it.
struct Watched {
    file: File,
    owner: Owner,
    state: String,
}

impl<'a> PartitionWatch<'a> {
    /// One that has not looked yet.
    pub fn new(host: &'a Host) -> PartitionWatch<'a> {
        PartitionWatch {
            host,
            broken: Vec::new(),
        }
    }

    /// Notes which partitions a round could not make again. One that stood at its end, and has
    /// broken since, is news, even if it says what it said before the round.
    pub fn round_is_over(&mut self, broken: Vec<BrokenPartition>) {
        self.broken = broken;
    }

    /// Waits for `interval`, or until a partition is found not to stand that was not found so
    /// before. The kernel wakes whoever polls an owner's partition file when it changes (kernel:
    /// cgroup-v2.rst, "cpuset.cpus.partition"); the records say who the owners are.
    pub fn wait(&mut self, interval: Duration) {
        let until = Instant::now() + interval;
        let left = || until.saturating_duration_since(Instant::now());
        while !left().is_zero() {
            // Before the look, so that no change is missed in between.
            let records = watch_records(self.host);
            let watched = open_partitions(self.host);
            if self.is_news(&watched) {
                return sleep(PAUSE.min(left()));
            }
            let files = watched.iter().map(|one| &one.file);
            let files = files.map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI));
            let records = records.as_ref().map(|records| records.as_fd());
            let records = records.map(|records| PollFd::new(records, PollFlags::POLLIN));
            let mut polled: Vec<PollFd<'_>> = files.chain(records).collect();
            // poll(2) counts whole milliseconds: rounded down it would end before its time.
            let timeout = PollTimeout::try_from(left() + Duration::from_millis(1));
            let timeout = timeout.unwrap_or(PollTimeout::MAX);
            match poll(&mut polled, timeout) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) => log::debug!("watch the partitions: {error}"),
            }
            let mut files = polled.iter().take(watched.len());
            let has_changed = files.any(|file| file.any().unwrap_or(false));
            // A start writes the records several times.
            sleep(PAUSE.min(left()));
            if has_changed {
                // It does not matter which: the next round looks at all of them.
                return;
            }
        }
    }

    /// Does one not stand that was not found so before?
    fn is_news(&mut self, watched: &[Watched]) -> bool {
        let broken = watched.iter().filter(|one| !one.stands());
        let broken = broken.map(|one| BrokenPartition {
            group: one.owner.group.clone(),
            state: one.state.clone(),
        });
        let broken: Vec<_> = broken.collect();
        let is_news = broken.iter().any(|one| !self.broken.contains(one));
        self.broken = broken;
        is_news
    }
}

impl Watched {
    fn stands(&self) -> bool {
        self.state == self.owner.kind.word()
    }
}

/// Watches for the records' file to be replaced, or for the directory of the records to be made
/// where nothing was recorded in this boot. `None` where the kernel has no watch left.
fn watch_records(host: &Host) -> Option<Inotify> {
    let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK);
    let watched = watch.and_then(|watch| {
        let directory = directory(host);
        let (path, events) = match files::metadata_if_there(&directory) {
            Ok(None) => (directory.parent(), AddWatchFlags::IN_CREATE),
            _ => (Some(&*directory), AddWatchFlags::IN_MOVED_TO),
        };
        if let Some(path) = path {
            watch.add_watch(path, events)?;
        }
        Ok(watch)
    });
    watched
        .inspect_err(|error| log::debug!("watch for owners: {error}"))
        .ok()
}

/// Opens the partition files of all owners and reads them: poll(2) reports changes since the last
/// read.
fn open_partitions(host: &Host) -> Vec<Watched> {
    let owners = owners(host);
    if owners.is_empty() {
        return Vec::new();
    }
    let Ok(hierarchy) = cpuset::hierarchy(host) else {
        return Vec::new();
    };
    let open = |owner: Owner| {
        let group = hierarchy.group(&owner.group).ok()?;
        let mut file = File::open(partition::file(&group)).ok()?;
        let mut state = String::new();
        file.read_to_string(&mut state).ok()?;
        Some(Watched {
            file,
            owner,
            state: state.trim().to_owned(),
        })
    };
    owners.into_iter().filter_map(open).collect()
}
