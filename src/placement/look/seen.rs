//! Tells whether a survey may be out of date. The kernel reports changes (inotify(7)); where it
//! cannot, file times are compared.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::placement::Site;
use crate::placement::look::survey::{Survey, survey};

/// The kernel sets file times by its clock tick: a change may seem this much older than it is.
const TICK: Duration = Duration::from_millis(20);

/// Surveys the site as [`survey`] does, and remembers what was there.
///
/// # Errors
/// As [`survey`].
pub fn survey_to_watch(site: &Site) -> Result<(Survey, Seen)> {
    let began = SystemTime::now();
    let survey = survey(site)?;
    let seen = Seen::of(site, &survey, began);
    Ok((survey, seen))
}

/// The files that a survey read, as they were.
#[derive(Debug)]
pub struct Seen {
    /// When the survey began, in nanoseconds since the epoch: later changes count.
    began: i128,
    /// Reports changes in directories; `None` if the kernel has no watch left.
    watch: Option<Inotify>,
    /// What to compare: at first everything, then only what is not watched.
    compared: Vec<Compared>,
}

#[derive(Debug)]
struct Compared {
    path: PathBuf,
    stamp: Option<Stamp>,
    is_watched: bool,
}

/// Tells one version of a file or directory from another. Times are in nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    size: u64,
    modified: i128,
    changed: i128,
}

impl Seen {
    fn of(site: &Site, survey: &Survey, began: SystemTime) -> Seen {
        let claims = site.run_dir.join("claims");
        let pools = site.conf_dir.join("pools");
        let mut dirs = vec![claims.clone(), pools.clone()];
        let ids = survey.owners.iter().filter_map(|owner| owner.id.as_ref());
        dirs.extend(ids.map(|id| claims.join(id)));
        let mut tasks = Vec::new();
        for pool in &survey.pools {
            let dir = pools.join(&pool.name);
            for list in &pool.lists {
                let dir = dir.join(&list.name);
                tasks.push(dir.join("tasks"));
                dirs.push(dir);
            }
            dirs.push(dir);
        }
        dirs.sort();
        dirs.dedup();
        let watch = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        let is_watched = |dir: &Path| {
            let watch = watch.as_ref();
            watch.is_some_and(|watch| watch.add_watch(dir, changes()).is_ok())
        };
        let mut compared = Vec::new();
        for path in dirs {
            compared.push(Compared {
                is_watched: is_watched(&path),
                stamp: Stamp::of(&path),
                path,
            });
        }
        for path in tasks {
            let dir = |one: &Compared| Some(&*one.path) == path.parent() && one.is_watched;
            compared.push(Compared {
                is_watched: compared.iter().any(dir),
                stamp: Stamp::of(&path),
                path,
            });
        }
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let began = began.saturating_sub(TICK).as_nanos();
        Seen {
            began: i128::try_from(began).unwrap_or(i128::MAX),
            watch,
            compared,
        }
    }

    /// May anything have changed since the survey began? Changes during the survey count.
    pub fn may_have_changed(&mut self) -> bool {
        let watch = self.watch.as_ref();
        let is_told = watch.is_some_and(|watch| !matches!(watch.read_events(), Err(Errno::EAGAIN)));
        let has_changed = is_told
            || self.compared.iter().any(|one| {
                let is_fresh = one.stamp.is_some_and(|stamp| stamp.changed >= self.began);
                is_fresh || Stamp::of(&one.path) != one.stamp
            });
        // From here on the watch reports changes of these.
        self.compared.retain(|one| !one.is_watched);
        has_changed
    }
}

/// The events that count: other tools write `tasks` in place, and the directory itself may be
/// removed.
fn changes() -> AddWatchFlags {
    AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR
}

impl Stamp {
    /// `None` if there is nothing, or it cannot be looked at.
    fn of(path: &Path) -> Option<Stamp> {
        let metadata = path.symlink_metadata().ok()?;
        let time = |seconds: i64, nanoseconds: i64| {
            i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds)
        };
        Some(Stamp {
            inode: metadata.ino(),
            size: metadata.size(),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};
    use crate::host::Host;

    #[test]
    fn every_change_of_the_books_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            replace(&path, text.as_bytes(), 0o600, Durability::Crash).unwrap();
        };
        put("kcm/lock", "");
        put("kcm/pools/dp/exclusive", "1");
        put("kcm/pools/dp/4/tasks", "");
        put("run/claims/a/1-2.json", "{}");
        let site = Site {
            host: Host::new("/"),
            conf_dir: dir.path().join("kcm"),
            run_dir: dir.path().join("run"),
            patience: Duration::ZERO,
            deadline: None,
            usage: None,
            last: None,
            options: Default::default(),
            confines_host: false,
        };
        // What was made within the last tick could change again without a new time.
        let mut fresh = survey_to_watch(&site).unwrap().1;
        assert!(fresh.may_have_changed());
        let settle = || std::thread::sleep(3 * TICK);
        type Change<'a> = &'a dyn Fn();
        let in_place = || {
            let path = dir.path().join("kcm/pools/dp/5/tasks");
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, b"1", 0).unwrap();
        };
        let changes: [(&str, Change<'_>); 6] = [
            ("a list is given", &|| put("kcm/pools/dp/4/tasks", "1")),
            ("a list is made", &|| put("kcm/pools/dp/5/tasks", "")),
            ("a list is given in its place", &in_place),
            ("a pool is made", &|| put("kcm/pools/other/exclusive", "0")),
            ("an owner comes", &|| put("run/claims/b/1-2.json", "{}")),
            ("a claim is another", &|| put("run/claims/a/1-2.json", "[]")),
        ];
        for (what, change) in changes {
            settle();
            let mut seen = survey_to_watch(&site).unwrap().1;
            assert!(seen.compared.iter().all(|one| one.is_watched), "{seen:?}");
            assert!(!seen.may_have_changed(), "before {what}");
            change();
            assert!(seen.may_have_changed(), "{what}");
            assert!(!seen.may_have_changed(), "after {what}");
        }
        // Without a watch, and at the first question with one, times are compared.
        for (what, change) in changes {
            std::fs::remove_dir_all(dir.path().join("run/claims/b")).unwrap();
            std::fs::remove_dir_all(dir.path().join("kcm/pools/other")).unwrap();
            std::fs::remove_dir_all(dir.path().join("kcm/pools/dp/5")).unwrap();
            put("kcm/pools/dp/4/tasks", "");
            if what.contains("in its place") {
                put("kcm/pools/dp/5/tasks", "");
            }
            settle();
            let mut seen = survey_to_watch(&site).unwrap().1;
            seen.watch = None;
            seen.compared
                .iter_mut()
                .for_each(|one| one.is_watched = false);
            assert!(!seen.may_have_changed(), "before {what}");
            change();
            assert!(seen.may_have_changed(), "{what}");
            put("run/claims/b/1-2.json", "{}");
            put("kcm/pools/other/exclusive", "0");
            put("kcm/pools/dp/5/tasks", "");
        }
    }
}
