//! Waiting for the next time that partitions have to be made again.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::owners;
use crate::cgroup::{cpuset, partition};
use crate::host::Host;

/// The shortest time between two rounds: a partition that breaks again and again must not keep a
/// CPU busy.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits for `interval`, or until the partition file of an owner changes, as it does when the
/// partition breaks (kernel: cgroup-v2.rst, "cpuset.cpus.partition").
pub fn wait(host: &Host, interval: Duration) {
    let began = Instant::now();
    let files = open_partitions(host);
    if !files.is_empty() {
        let watched = files
            .iter()
            .map(|file| PollFd::new(file.as_fd(), PollFlags::POLLPRI));
        let mut watched: Vec<PollFd<'_>> = watched.collect();
        let timeout = PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            // It does not matter which file changed: the next round looks at all of them.
            Ok(changed) if changed > 0 => return sleep(PAUSE.min(interval)),
            Ok(_) => {}
            Err(error) => log::debug!("watch the partitions: {error}"),
        }
    }
    sleep(interval.saturating_sub(began.elapsed()));
}

/// Opens the partition files of all owners and reads them: poll(2) reports changes since the last
/// read.
fn open_partitions(host: &Host) -> Vec<File> {
    let owners = owners(host);
    if owners.is_empty() {
        return Vec::new();
    }
    let Ok(hierarchy) = cpuset::hierarchy(host) else {
        return Vec::new();
    };
    let open = |group: &str| {
        let mut file = File::open(partition::file(&hierarchy.group(group).ok()?)).ok()?;
        file.read_to_string(&mut String::new()).ok()?;
        Some(file)
    };
    owners
        .iter()
        .filter_map(|owner| open(&owner.group))
        .collect()
}
