//! The lock of a pool directory: a flock(2) on the inode that KCM's tools lock too.

use std::fs::{File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fs2::FileExt;
use nix::unistd::geteuid;

use super::lock_table::FileId;
use super::queue::{self, Ticket};
use super::wait::Alarm;
use super::{LOCK_MODE, PoolDirectory};
use crate::files;
use crate::host::Host;
use crate::refusal::{Reason, Refusal};
use crate::text::{Shown, shell_word};

/// A pool directory's lock, held. Dropping it unlocks.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    /// What the file was when it was locked; its device and inode never change.
    taken: Metadata,
    waited: Option<Duration>,
}

/// The time between two looks at who holds the lock.
const PAUSE: Duration = Duration::from_millis(1);

/// The longest wait until somebody who waits for the lock has got it.
const HANDED: Duration = Duration::from_millis(100);

/// The longest wait for somebody who only looks at the lock. A look takes a moment, and this long
/// if others have the CPU meanwhile.
const LOOK: Duration = Duration::from_millis(200);

/// The longest wait for somebody who is taking a ticket. That locks the file of the queue for
/// microseconds, unless the process was stopped.
const TAKING: Duration = Duration::from_millis(500);

/// The name of the queue's file in the run directory.
const QUEUE: &str = "queue";

/// A wait for the lock.
struct Wait<'a> {
    host: &'a Host,
    began: Instant,
    patience: Duration,
    /// The file of the queue; `None` if there is none, or once it was tried.
    queue: Option<PathBuf>,
    /// The place in the queue, once it was taken.
    ticket: Option<Ticket>,
}

impl Wait<'_> {
    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.began.elapsed())
    }

    /// Is there a queue in which others wait?
    fn is_behind_others(&self) -> bool {
        let queue = self.queue.as_ref().filter(|_| !self.patience.is_zero());
        queue.is_some_and(|queue| queue::is_waited_in(queue))
    }

    /// Takes a ticket, and waits until it is this process's turn to wait for the lock itself. A
    /// process ahead may have been stopped (SIGSTOP), so a quarter of the patience is left for
    /// trying the lock without a turn.
    fn stand_in_queue(&mut self) {
        let Some(queue) = self.queue.take() else {
            return;
        };
        let attempt = || {
            files::ensure_trusted_way(&queue, || self.host.unknown_root())?;
            let patience = self.left() * 3 / 4;
            let ticket = Ticket::take(&queue, patience.min(TAKING))?;
            let left = patience.saturating_sub(self.began.elapsed());
            ticket.wait(left).map(|()| ticket)
        };
        match attempt() {
            Ok(ticket) => self.ticket = Some(ticket),
            Err(error) => log::info!("no turn for the lock: {error:#}"),
        }
    }
}

/// Why the lock was not taken.
#[derive(Debug)]
pub enum LockError {
    /// We may not open the file: only its owner may.
    Denied(anyhow::Error),
    /// Somebody else held it all the time.
    Held(anyhow::Error),
    /// The file is missing or unusable.
    Unusable(anyhow::Error),
}

impl From<LockError> for anyhow::Error {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Denied(error) | LockError::Held(error) | LockError::Unusable(error) => error,
        }
    }
}

impl PoolDirectory {
    /// Takes the lock, waiting at most `patience`. With no patience it is tried once; somebody who
    /// only looks ([`PoolDirectory::ensure_let_go`]) is waited for even then, since that takes a
    /// moment.
    ///
    /// # Errors
    /// The lock is held by somebody else all the time, may not be opened, or is unusable.
    pub fn lock(&self, host: &Host, patience: Duration) -> Result<Lock, LockError> {
        self.take(host, patience, None)
    }

    /// As [`PoolDirectory::lock`], but all who use the same run directory get the lock in the order
    /// in which they came.
    ///
    /// # Errors
    /// As [`PoolDirectory::lock`].
    pub fn lock_in_turn(
        &self,
        host: &Host,
        patience: Duration,
        run_dir: &Path,
    ) -> Result<Lock, LockError> {
        self.take(host, patience, Some(run_dir.join(QUEUE)))
    }

    fn take(
        &self,
        host: &Host,
        patience: Duration,
        queue: Option<PathBuf>,
    ) -> Result<Lock, LockError> {
        let mut wait = Wait {
            host,
            began: Instant::now(),
            patience,
            queue,
            ticket: None,
        };
        let mut has_waited = false;
        loop {
            let (file, taken) = self.open_lock(host)?;
            if wait.is_behind_others() {
                has_waited = true;
                wait.stand_in_queue();
            }
            match file.try_lock_exclusive() {
                Err(error) if is_contended(&error) => {
                    has_waited = true;
                    if patience.is_zero() && wait.began.elapsed() < LOOK && !is_kept(host, &file) {
                        sleep(PAUSE);
                        continue;
                    }
                    wait.stand_in_queue();
                    self.wait(&file, &wait)?;
                }
                Err(error) if is_interrupted(&error) => continue,
                other => self.usable(other)?,
            }
            let lock = Lock {
                taken,
                file,
                path: self.lock_path(),
                waited: has_waited.then(|| wait.began.elapsed()),
            };
            // The inode that was waited for may have been replaced meanwhile: its lock keeps nobody
            // out.
            if lock.is_in_place().map_err(LockError::Unusable)? {
                // From now on the next in the queue waits for the lock itself.
                drop(wait.ticket);
                return Ok(lock);
            }
        }
    }

    /// Looks whether the holder of the lock lets go of it within `patience`, without keeping the
    /// lock. If it passes from one holder to another, all is well too.
    ///
    /// # Errors
    /// As [`PoolDirectory::lock`].
    pub fn ensure_let_go(&self, host: &Host, patience: Duration) -> Result<(), LockError> {
        let started = Instant::now();
        let (file, _) = self.open_lock(host)?;
        let mut first = None;
        loop {
            match FileExt::try_lock_shared(&file) {
                Err(error) if is_contended(&error) => {
                    let now = holder(host, &file);
                    match (&first, &now) {
                        (Some(first), Some(now)) if first != now => return Ok(()),
                        (None, _) => first = now.clone(),
                        _ => {}
                    }
                    if started.elapsed() >= patience {
                        let waited = started.elapsed();
                        return Err(self.held(&file, now, waited, ""));
                    }
                    sleep(PAUSE);
                }
                Err(error) if is_interrupted(&error) => {}
                other => return self.usable(other),
            }
        }
    }

    /// The pid of the process that holds the lock; `None` where nobody does, or that cannot be
    /// read.
    pub fn holder(&self, host: &Host) -> Option<i32> {
        let file = files::open_regular(&self.lock_path()).ok()?;
        holder(host, &file).map(|(pid, _)| pid)
    }

    /// A process that holds or waits for the lock on the file that was `lock` before it was
    /// replaced; `key` is that file's [`Lock::key`]. Returned as a text for messages.
    ///
    /// # Errors
    /// The present file, or the kernel's table of locks, cannot be read.
    pub fn user_of_former(&self, host: &Host, key: &str) -> Result<Option<String>> {
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let parts = key.split_once('-');
        let parts = parts.and_then(|(device, inode)| Some((number(device)?, inode.parse().ok()?)));
        // A key that is damaged names no file.
        let Some((device, inode)) = parts else {
            return Ok(None);
        };
        let file = files::open_regular(&self.lock_path())?;
        let now = FileId::of(host, &file)?;
        // The former file was on the file system of the present one, or on one that is not mounted
        // here any more.
        let is_same = file.metadata().context("look at the lock")?.dev() == device;
        let former = FileId {
            inode,
            ..if is_same {
                now
            } else {
                FileId::by_device(device, inode)
            }
        };
        let locks = files::read_if_there(&host.proc_locks())?.unwrap_or_default();
        let user = former.users_in(&locks).first().copied();
        Ok(user.map(|pid| described(host, pid)))
    }

    /// The directory's [`Lock::key`], without taking the lock.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn lock_key(&self) -> Result<String> {
        let path = self.lock_path();
        let metadata = path.symlink_metadata();
        let metadata = metadata.with_context(|| format!("look at {}", path.display()))?;
        Ok(key_of(&metadata))
    }

    /// Tells this directory from another that is at its path later: the lock's inode, and when that
    /// was made, in nanoseconds since the epoch. The device is left out, because its number can
    /// change at a boot.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn mark(&self) -> Result<String> {
        let path = self.lock_path();
        let metadata = path.symlink_metadata();
        let metadata = metadata.with_context(|| format!("look at {}", path.display()))?;
        Ok(format!("{}-{}", metadata.ino(), files::born(&metadata)))
    }

    /// # Errors
    /// Also a file that another user owns or can write: that user could hold the lock and keep
    /// everybody out.
    fn open_lock(&self, host: &Host) -> Result<(File, Metadata), LockError> {
        let path = self.lock_path();
        let (file, metadata) = self.open_file(&path)?;
        let trusted = files::ensure_trusted(&path, &metadata, || host.unknown_root());
        trusted.map_err(LockError::Unusable)?;
        Ok((file, metadata))
    }

    fn open_file(&self, path: &Path) -> Result<(File, Metadata), LockError> {
        files::open_regular_seen(path).map_err(|error| {
            let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
            if kind == Some(io::ErrorKind::PermissionDenied) {
                LockError::Denied(self.denied(error))
            } else {
                let remedy = format!(
                    "make its lock: `install -m 600 /dev/null {}`",
                    shell_word(path)
                );
                let half_made = self.or_half_made(Err::<(), _>(error), remedy);
                LockError::Unusable(half_made.expect_err("it was an error"))
            }
        })
    }

    /// The part of a remedy about a lock's mode: whoever can open the file can hold it.
    fn open_to_others(&self, file: &File) -> String {
        match file.metadata() {
            Ok(metadata) if metadata.mode() & 0o077 != 0 => format!(
                "; others than its owner can hold it too: chmod {LOCK_MODE:o} {}",
                self.lock_path().display()
            ),
            _ => String::new(),
        }
    }

    fn usable(&self, taken: io::Result<()>) -> Result<(), LockError> {
        let taken = taken.with_context(|| format!("lock {}", self.lock_path().display()));
        taken.map_err(LockError::Unusable)
    }

    /// The error that the lock was held for the time `waited`. `or` is a remedy besides ending the
    /// holder.
    fn held(
        &self,
        file: &File,
        holder: Option<(i32, String)>,
        waited: Duration,
        or: &str,
    ) -> LockError {
        let (who, remedy) = match holder {
            Some((pid, who)) => (
                who,
                format!("let that finish, or end it (`kill {pid}`){or}"),
            ),
            None => ("somebody else".to_owned(), format!("let that finish{or}")),
        };
        let what = format!(
            "the lock {} is held by {who}; gave up after {:.1} s",
            self.lock_path().display(),
            waited.as_secs_f64()
        );
        let refusal = Refusal::new(what, remedy + &self.open_to_others(file));
        LockError::Held(refusal.because(Reason::Lock).into())
    }

    /// Waits in the kernel's queue for what is left of the patience.
    fn wait(&self, file: &File, wait: &Wait<'_>) -> Result<(), LockError> {
        let held = || {
            let waited = wait.began.elapsed();
            let or = ", or wait longer with --lock-timeout";
            self.held(file, holder(wait.host, file), waited, or)
        };
        let left = wait.left();
        if left.is_zero() {
            return Err(held());
        }
        let alarm = Alarm::after(left).map_err(LockError::Unusable)?;
        let taken = loop {
            match file.lock_exclusive() {
                Err(error) if is_interrupted(&error) => {
                    if wait.left().is_zero() {
                        return Err(held());
                    }
                }
                other => break other,
            }
        };
        drop(alarm);
        let milliseconds = wait.began.elapsed().as_secs_f64() * 1e3;
        log::info!("waited {milliseconds:.1} ms for the lock");
        self.usable(taken)
    }

    fn denied(&self, error: anyhow::Error) -> anyhow::Error {
        let owner = self.lock_path().symlink_metadata().map(|lock| lock.uid());
        let remedy = match owner {
            Ok(uid) if uid != 0 => format!("run this as the user with the uid {uid}"),
            _ => "run this as root".to_owned(),
        };
        let remedy = remedy
            + ", or name a pool directory and a run directory of your own (--conf-dir, --run-dir)";
        let what = format!("only its owner may lock the pool directory: {error:#}");
        Refusal::new(what, remedy).into()
    }
}

impl Drop for Lock {
    /// Unlocks. Closing would not do: a process forked meanwhile may have the file open, and would
    /// hold the lock.
    fn drop(&mut self) {
        if let Err(error) = FileExt::unlock(&self.file) {
            log::warn!("unlock {}: {error}", self.path.display());
        }
    }
}

impl Lock {
    /// How long others were waited for; `None` where the lock was free.
    pub fn waited(&self) -> Option<Duration> {
        self.waited
    }

    /// Tells this lock, and so its pool directory, from every other on the machine: device
    /// (hexadecimal) and inode, as `fe01-1234`.
    pub fn key(&self) -> String {
        key_of(&self.taken)
    }

    /// Checks that the lock still keeps others out.
    ///
    /// # Errors
    /// The file was replaced: others hold the new one, and may be changing the same pools and
    /// claims.
    pub fn ensure_in_place(&self) -> Result<()> {
        ensure!(
            self.is_in_place()?,
            "the lock {} was replaced while it was held: do it again, and leave that file alone \
             (rsync --exclude)",
            self.path.display()
        );
        Ok(())
    }

    /// Unlocks, and waits 100 ms at most until one of those who wait for the lock has it. Without
    /// that, whoever asks again at once would be ahead of them.
    pub fn hand_on(self, host: &Host) {
        let place = FileId::of(host, &self.file);
        let locks = || files::read(&host.proc_locks()).unwrap_or_default();
        let waited_for = place
            .ok()
            .filter(|place| place.users_in(&locks()).len() > 1);
        drop(self);
        let Some(place) = waited_for else {
            return;
        };
        let started = Instant::now();
        while place.holder_in(&locks()).is_none() && started.elapsed() < HANDED {
            sleep(PAUSE);
        }
    }

    /// Takes the permission to open the file from group and others, with a warning: whoever can
    /// open it can hold it, and so keep every container from starting. Only the file's owner can do
    /// that, so nothing is done by anybody else.
    pub fn close_to_others(&self) {
        let attempt = || -> io::Result<()> {
            let is_open = self.taken.mode() & 0o077 != 0;
            if is_open && self.taken.uid() == geteuid().as_raw() {
                let closed = Permissions::from_mode(LOCK_MODE);
                self.file.set_permissions(closed)?;
                log::warn!(
                    "{} could be opened, so held, by others than its owner: its mode is \
                     {LOCK_MODE:o} now",
                    self.path.display()
                );
            }
            Ok(())
        };
        if let Err(error) = attempt() {
            log::warn!("close {} to others: {error}", self.path.display());
        }
    }

    /// Does the path still name the inode that was locked?
    fn is_in_place(&self) -> Result<bool> {
        let place = |metadata: &Metadata| (metadata.dev(), metadata.ino());
        let named = files::entry_if_there(&self.path)?;
        Ok(named.is_some_and(|named| place(&named) == place(&self.taken)))
    }
}

fn is_contended(error: &io::Error) -> bool {
    error.raw_os_error() == fs2::lock_contended_error().raw_os_error()
}

fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

fn key_of(metadata: &Metadata) -> String {
    format!("{:x}-{}", metadata.dev(), metadata.ino())
}

/// Does somebody hold an exclusive flock on the file? Who only looks holds a shared one.
fn is_kept(host: &Host, file: &File) -> bool {
    let locks = files::read_if_there(&host.proc_locks());
    let locks = locks.ok().flatten().unwrap_or_default();
    FileId::of(host, file).is_ok_and(|place| place.is_kept_in(&locks))
}

/// The process that holds a flock on the file, from `/proc/locks` (proc_locks(5)): its pid, and a
/// text for messages.
fn holder(host: &Host, file: &File) -> Option<(i32, String)> {
    let place = FileId::of(host, file).ok()?;
    let locks = files::read_if_there(&host.proc_locks()).ok()??;
    let pid = place.holder_in(&locks)?;
    Some((pid, described(host, pid)))
}

fn described(host: &Host, pid: i32) -> String {
    let name = process_name(host, pid).unwrap_or_default();
    format!("process {pid} {}", Shown(name.trim_end()))
}

fn process_name(host: &Host, pid: i32) -> Option<String> {
    files::read_if_there(&host.proc_pid(pid, "comm")).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, PoolDirectory) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pools")).unwrap();
        files::replace(
            &dir.path().join("lock"),
            b"",
            0o600,
            files::Durability::Crash,
        )
        .unwrap();
        let opened = PoolDirectory::open(&Host::new("/"), dir.path()).unwrap();
        (dir, opened)
    }

    #[test]
    fn a_held_lock_is_refused_after_the_patience_and_names_the_holder() {
        let (_dir, directory) = directory();
        let host = Host::new("/");
        let held = directory.lock(&host, Duration::ZERO).unwrap();
        let started = Instant::now();
        match directory.lock(&host, Duration::from_millis(30)) {
            Err(LockError::Held(error)) => {
                let own_pid = format!("process {} ", std::process::id());
                assert!(error.to_string().contains(&own_pid), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(started.elapsed() >= Duration::from_millis(30));
        assert_eq!(directory.holder(&host), Some(std::process::id() as i32));
        drop(held);
        assert_eq!(directory.holder(&host), None);
        directory.lock(&host, Duration::ZERO).unwrap();
    }

    #[test]
    fn a_held_lock_that_others_can_hold_too_is_to_be_closed() {
        for (mode, is_open) in [(0o600, false), (0o644, true), (0o604, true), (0o700, false)] {
            let (dir, directory) = directory();
            let path = dir.path().join("lock");
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let host = Host::new("/");
            let _held = directory.lock(&host, Duration::ZERO).unwrap();
            let error = match directory.lock(&host, Duration::ZERO) {
                Err(LockError::Held(error)) => error,
                other => panic!("{other:?}"),
            };
            let remedy = Refusal::of(&error).remedy;
            let chmod = format!(
                "; others than its owner can hold it too: chmod 600 {}",
                path.display()
            );
            assert_eq!(remedy.contains(&chmod), is_open, "{mode:o}: {remedy}");
        }
    }

    #[test]
    fn a_missing_lock_is_a_half_made_directory() {
        let (dir, directory) = directory();
        std::fs::remove_file(dir.path().join("lock")).unwrap();
        match directory.lock(&Host::new("/"), Duration::ZERO) {
            Err(LockError::Unusable(error)) => assert!(error.to_string().contains("half-made")),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until `wanted` processes hold the lock or wait for it, besides the first.
    fn until_waiting(directory: &PoolDirectory, wanted: usize) {
        let file = File::open(directory.lock_path()).unwrap();
        let place = FileId::of(&Host::new("/"), &file).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(
                Instant::now() < deadline,
                "{wanted} do not wait in the kernel"
            );
            let locks = files::read(&Host::new("/").proc_locks()).unwrap();
            if place.users_in(&locks).len() == wanted + 1 {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn those_who_wait_get_it_in_the_order_in_which_they_came() {
        let (_dir, directory) = directory();
        let host = Host::new("/");
        let held = directory.lock(&host, Duration::ZERO).unwrap();
        let order = std::sync::Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for number in 0..16 {
                let (directory, host, order) = (&directory, &host, &order);
                scope.spawn(move || {
                    let lock = directory.lock(host, Duration::from_secs(60)).unwrap();
                    order.lock().unwrap().push(number);
                    drop(lock);
                });
                until_waiting(directory, number + 1);
            }
            drop(held);
        });
        assert_eq!(order.into_inner().unwrap(), Vec::from_iter(0..16));
    }

    /// The number of threads that want the lock, and how often each wants it.
    const STARTERS: usize = 64;
    const TURNS: usize = 20;

    /// For each time: how many others had the lock while it was waited for. A measured time would
    /// depend on the machine's other work.
    fn others_before_one(run_dir: &Path) -> Vec<usize> {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
        let (_dir, directory) = directory();
        let host = Host::new("/");
        let served = AtomicUsize::new(0);
        let waits = std::sync::Mutex::new(Vec::new());
        let first = directory.lock(&host, Duration::ZERO).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..STARTERS {
                let (directory, host, served, waits) = (&directory, &host, &served, &waits);
                scope.spawn(move || {
                    for _ in 0..TURNS {
                        let came = served.load(SeqCst);
                        let patience = Duration::from_secs(120);
                        let lock = directory.lock_in_turn(host, patience, run_dir).unwrap();
                        waits
                            .lock()
                            .unwrap()
                            .push(served.fetch_add(1, SeqCst) - came);
                        std::thread::sleep(Duration::from_millis(1));
                        drop(lock);
                    }
                });
            }
            // By then most of the threads wait. Those that come later wait for a shorter time.
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        waits.into_inner().unwrap()
    }

    #[test]
    fn the_longest_wait_of_64_is_within_twice_the_mean() {
        let run_dir = tempfile::tempdir().unwrap();
        let waits = others_before_one(run_dir.path());
        let longest = *waits.iter().max().unwrap();
        let mean = waits.iter().sum::<usize>() as f64 / waits.len() as f64;
        println!("others before one: {mean:.1} in the mean, {longest} at most");
        assert!(longest as f64 <= 2.0 * mean, "{longest} of {mean}");
        let length = || run_dir.path().join(QUEUE).metadata().unwrap().len();
        assert!(length() > 0 && length() <= (STARTERS * TURNS) as u64);
    }

    #[test]
    fn a_queue_that_cannot_be_used_keeps_nobody_from_the_lock() {
        let (dir, directory) = directory();
        let host = Host::new("/");
        let queue = dir.path().join(QUEUE);
        for run_dir in [dir.path().join("no"), dir.path().to_owned()] {
            std::fs::create_dir_all(&queue).unwrap();
            let held = directory.lock(&host, Duration::ZERO).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let patience = Duration::from_secs(60);
                    drop(directory.lock_in_turn(&host, patience, &run_dir).unwrap());
                });
                until_waiting(&directory, 1);
                drop(held);
            });
        }
    }

    #[test]
    fn whoever_was_stopped_in_the_queue_does_not_keep_the_next_from_the_lock() {
        let (dir, directory) = directory();
        let host = Host::new("/");
        let stopped = Ticket::take(&dir.path().join(QUEUE), Duration::from_secs(1)).unwrap();
        let patience = Duration::from_millis(400);
        let began = Instant::now();
        drop(directory.lock_in_turn(&host, patience, dir.path()).unwrap());
        assert!(began.elapsed() >= patience / 2, "it is waited for");
        drop(stopped);
        let began = Instant::now();
        let patience = Duration::from_secs(60);
        drop(directory.lock_in_turn(&host, patience, dir.path()).unwrap());
        assert!(began.elapsed() < patience / 2, "nobody waits any more");
    }

    #[test]
    fn a_try_is_not_refused_for_whoever_only_looks() {
        use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
        let (_dir, directory) = directory();
        let host = Host::new("/");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(SeqCst) {
                    let _ = directory.ensure_let_go(&host, Duration::ZERO);
                    sleep(Duration::from_micros(100));
                }
            });
            let tries = (0..500).map(|_| directory.lock(&host, Duration::ZERO));
            let refused = tries.filter(Result::is_err).count();
            is_over.store(true, SeqCst);
            assert_eq!(refused, 0);
        });
    }

    #[test]
    fn whoever_hands_it_on_is_not_the_next() {
        let (_dir, directory) = directory();
        let host = Host::new("/");
        for _ in 0..20 {
            let held = directory.lock(&host, Duration::ZERO).unwrap();
            let order = std::sync::Mutex::new(Vec::new());
            std::thread::scope(|scope| {
                let (directory, host, order) = (&directory, &host, &order);
                scope.spawn(move || {
                    let lock = directory.lock(host, Duration::from_secs(60)).unwrap();
                    order.lock().unwrap().push("waited");
                    drop(lock);
                });
                until_waiting(directory, 1);
                held.hand_on(host);
                let lock = directory.lock(host, Duration::from_secs(60)).unwrap();
                order.lock().unwrap().push("again");
                drop(lock);
            });
            assert_eq!(order.into_inner().unwrap(), ["waited", "again"]);
        }
    }

    #[test]
    fn a_lock_that_others_can_open_is_closed_to_them() {
        let (dir, directory) = directory();
        let path = dir.path().join("lock");
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        directory
            .ensure_let_go(&Host::new("/"), Duration::ZERO)
            .unwrap();
        let mode = || path.metadata().unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o644, "who looks changes nothing");
        let lock = directory.lock(&Host::new("/"), Duration::ZERO).unwrap();
        assert_eq!(mode(), 0o644, "nor does who tries");
        lock.close_to_others();
        assert_eq!(mode(), LOCK_MODE);
    }

    #[test]
    fn a_look_does_not_wait_for_whoever_holds_it() {
        let (_dir, directory) = directory();
        let host = Host::new("/");
        let held = directory.lock(&host, Duration::ZERO).unwrap();
        let told = directory.ensure_let_go(&host, Duration::from_millis(20));
        match told {
            Err(LockError::Held(error)) => {
                let error = error.to_string();
                assert!(!error.contains("--lock-timeout"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        drop(held);
        directory.ensure_let_go(&host, Duration::ZERO).unwrap();
    }

    #[test]
    fn whoever_waited_for_a_lock_that_was_replaced_takes_the_new_one() {
        let (dir, directory) = directory();
        let host = Host::new("/");
        let held = directory.lock(&host, Duration::ZERO).unwrap();
        let former = held.key();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let lock = directory.lock(&host, Duration::from_secs(60)).unwrap();
                lock.key()
            });
            until_waiting(&directory, 1);
            let lock = dir.path().join("lock");
            files::replace(&lock, b"", 0o600, files::Durability::Crash).unwrap();
            assert!(held.ensure_in_place().is_err());
            let user = directory.user_of_former(&host, &former).unwrap();
            assert!(user.is_some_and(|user| user.starts_with("process ")));
            drop(held);
            let taken = waiting.join().unwrap();
            assert_eq!(taken, directory.lock_key().unwrap());
            assert_ne!(taken, former);
        });
        assert_eq!(directory.user_of_former(&host, &former).unwrap(), None);
    }

    #[test]
    fn a_lock_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, directory) = directory();
        let open = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(dir.path().join("lock"), open).unwrap();
        match directory.lock(&Host::new("/"), Duration::ZERO) {
            Err(LockError::Unusable(error)) => {
                assert!(error.to_string().contains("chmod"), "{error}");
            }
            other => panic!("{other:?}"),
        }
    }
}
