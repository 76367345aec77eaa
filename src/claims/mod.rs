//! The ledger: our records of all owners. A claim is one file, found by container id, by CPU list
//! or by cgroup without reading the others.
//!
//! ```text
//! claims/<id>/<pid>-<start>.json       the claim
//! lists/<cpulist>/<id>@<pid>-<start>   → the claim, for each of its lists
//! cgroups/<inode>                      → the claim
//! ended/<id>@<pid>-<start>             the claim of an owner that ended, until it is accounted for
//! boot                                 the boot, pool directory and pid namespace of the claims
//! ```
//! The links are made before their claim and removed after it; a link that leads nowhere means
//! nothing. A claim ends with its check sum. It counts as unreadable where it is not in the place
//! that its content names, or not of the boot that `boot` names.

mod ended;
mod record;

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::geteuid;

pub use ended::Ended;
pub use record::{Before, Claim, ClaimedGroup, OwnerKind, VERSION};

use crate::files::{self, Durability};
use crate::process::Process;
use crate::refusal::Refusal;
use crate::text::shell_word;

/// What is in the place of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A claim that can be read.
    Claim(Box<Claim>),
    /// A claim that cannot be read, or is of a newer version.
    Unreadable(Unreadable),
}

/// A claim that cannot be read. It counts as held and is never removed unless its owner is known to
/// be dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreadable {
    /// Its file.
    pub path: PathBuf,
    /// Why it cannot be read.
    pub reason: String,
}

impl Unreadable {
    /// The same claim; the reason adds that it is on the new owner's cgroup.
    pub fn of_a_group(self) -> Unreadable {
        Unreadable {
            reason: format!("it is on its cgroup, and {}", self.reason),
            ..self
        }
    }

    /// The refusal of whatever this claim is in the way of.
    pub fn refusal(&self) -> Refusal {
        Refusal::new(
            self.to_string(),
            "`pinfold reconcile` frees it once its owner is gone, and says who that is",
        )
    }
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unreadable { path, reason } = self;
        write!(f, "the claim {} counts as held: {reason}", path.display())
    }
}

impl Entry {
    /// The claim, if it can be read.
    pub fn claim(&self) -> Option<&Claim> {
        match self {
            Entry::Claim(claim) => Some(claim),
            Entry::Unreadable(_) => None,
        }
    }
}

/// The name of a link from a CPU list to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker(String);

impl Marker {
    /// The process that the claim was made for; `None` where the name has no pid.
    pub fn pid(&self) -> Option<i32> {
        let (_, process) = self.0.rsplit_once('@')?;
        process.split_once('-')?.0.parse().ok()
    }
}

/// What the file name of a claim and the links to it tell, without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traces {
    /// The owner's id.
    pub id: String,
    /// The process that the claim was made for.
    pub process: Process,
    /// The directory names of its CPU lists.
    pub lists: Vec<String>,
    /// The inodes of the cgroups that lead to it.
    pub inodes: Vec<u64>,
    path: PathBuf,
    marker: String,
}

/// The run directory, where the claims are.
#[derive(Debug, Clone)]
pub struct Ledger {
    run_dir: PathBuf,
    boot_id: Option<String>,
    /// Are the claims of ended owners set aside?
    keeps_ended: bool,
    /// Was one set aside?
    has_ended: Cell<bool>,
}

impl Ledger {
    /// Opens the run directory; `None` where there is none.
    ///
    /// # Errors
    /// It cannot be looked at, is not a directory, or can be changed by others.
    pub fn open_if_there(run_dir: &Path) -> Result<Option<Ledger>> {
        let metadata = match run_dir.symlink_metadata() {
            Err(error) if files::is_gone(&error) => return Ok(None),
            other => other.with_context(|| format!("look at {}", run_dir.display()))?,
        };
        let word = shell_word(run_dir);
        ensure!(
            metadata.is_dir(),
            Refusal::new(
                format!(
                    "{} is not a directory, and Pinfold keeps its claims there",
                    run_dir.display()
                ),
                format!("move it away: `mv {word} {word}.old`")
            )
        );
        ensure!(
            metadata.mode() & 0o022 == 0
                && (metadata.uid() == 0 || metadata.uid() == geteuid().as_raw()),
            Refusal::new(
                format!("{} can be written by others", run_dir.display()),
                format!("`chown {} {word} && chmod 700 {word}`", geteuid())
            )
        );
        Ok(Some(Ledger::at_dir(run_dir)))
    }

    /// Opens the run directory, and makes it where there is none.
    ///
    /// # Errors
    /// As [`Ledger::open_if_there`]; it cannot be made.
    pub fn open(run_dir: &Path) -> Result<Ledger> {
        if let Some(ledger) = Ledger::open_if_there(run_dir)? {
            return Ok(ledger);
        }
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(run_dir)
            .with_context(|| format!("make {}", run_dir.display()))?;
        Ledger::open_if_there(run_dir)?.with_context(|| format!("{} vanished", run_dir.display()))
    }

    /// The run directory for reading. One that is not there has no claims.
    ///
    /// # Errors
    /// As [`Ledger::open_if_there`].
    pub fn open_to_read(run_dir: &Path) -> Result<Ledger> {
        let there = Ledger::open_if_there(run_dir)?;
        Ok(there.unwrap_or_else(|| Ledger::at_dir(run_dir)))
    }

    fn at_dir(run_dir: &Path) -> Ledger {
        Ledger {
            run_dir: run_dir.to_owned(),
            boot_id: None,
            keeps_ended: false,
            has_ended: Cell::new(false),
        }
    }

    /// Writes a trial claim with its links, and removes it.
    ///
    /// # Errors
    /// What would keep a start from recording its owner.
    pub fn try_writing(run_dir: &Path) -> Result<()> {
        let mut directory = run_dir;
        // The first claim makes the run directory.
        if Ledger::open_if_there(run_dir)?.is_none() {
            for parent in run_dir.ancestors().skip(1) {
                directory = parent;
                if files::entry_if_there(parent)?.is_some() {
                    break;
                }
            }
        }
        let attempt = || -> Result<()> {
            let trial = tempfile::Builder::new()
                .prefix(&files::temporary_prefix("trial"))
                .tempdir_in(directory)?;
            // A claim needs a directory for its id and for each list, and links from its lists and
            // its group.
            for name in ["claims", "lists", "cgroups"] {
                make_directory(&trial.path().join(name))?;
                link(&trial.path().join(name).join("link"), Path::new("../claim"))?;
            }
            files::try_replacing(&trial.path().join("claim"))
        };
        attempt().with_context(|| format!("write a claim in {}", run_dir.display()))
    }

    /// From now on a claim of another boot counts as unreadable. The caller has seen that the mark
    /// names this boot: whoever wrote the mark removed all claims of earlier boots.
    pub fn expect_boot(&mut self, boot_id: &str) {
        self.boot_id = Some(boot_id.to_owned());
    }

    /// Has this id a claim, or leftovers of one? Asked without the lock.
    pub fn knows(&self, id: &str) -> Result<bool> {
        let home = self.run_dir.join("claims").join(id);
        let known = home.try_exists();
        known.with_context(|| format!("look at {}", home.display()))
    }

    /// The claims of one id: more than one where two roots of a runtime use the same id.
    pub fn of_id(&self, id: &str) -> Result<Vec<Entry>> {
        let dir = self.run_dir.join("claims").join(id);
        let mut entries = Vec::new();
        for name in files::names_in(&dir)? {
            if name.ends_with(".json") && !name.starts_with('.') {
                entries.extend(self.read(&dir.join(&name), |claim| {
                    claim.id == id && claim.file_name() == name
                }));
            }
        }
        Ok(entries)
    }

    /// The claims that have one CPU list.
    pub fn on_list(&self, list: &str) -> Result<Vec<Entry>> {
        let markers = self.markers_on(list)?;
        let entries = markers.iter().filter_map(|marker| self.at(list, marker));
        Ok(entries.collect())
    }

    /// The names of the links from one CPU list, unread: there can be thousands.
    pub fn markers_on(&self, list: &str) -> Result<Vec<Marker>> {
        let names = files::names_in(&self.run_dir.join("lists").join(list))?;
        Ok(names.into_iter().map(Marker).collect())
    }

    /// The claim that a link from a CPU list leads to; `None` where there is none, or it no longer
    /// has the list. Unreadable is also a claim that names other lists while these do not lead to
    /// it: an older copy was put back.
    pub fn at(&self, list: &str, marker: &Marker) -> Option<Entry> {
        let Marker(name) = marker;
        let path = self.run_dir.join("lists").join(list).join(name);
        let entry = self.read(&path, |claim| claim.marker_name() == *name)?;
        let Some(claim) = entry.claim() else {
            return Some(entry);
        };
        if claim.lists.iter().any(|other| other == list) {
            return Some(entry);
        }
        // A claim that got another list keeps the old link for a moment, or for good if that was
        // interrupted.
        if self.is_linked(claim) {
            return None;
        }
        Some(Entry::Unreadable(Unreadable {
            path,
            reason: "it does not name this list, and its own do not lead to it: it is an old one"
                .to_owned(),
        }))
    }

    /// Do all lists that a claim names lead to it? A link that cannot be looked at counts as
    /// missing.
    fn is_linked(&self, claim: &Claim) -> bool {
        let lists = self.run_dir.join("lists");
        claim.lists.iter().all(|list| {
            let link = lists.join(list).join(claim.marker_name());
            matches!(files::entry_if_there(&link), Ok(Some(_)))
        })
    }

    /// The claim as it is on disk now; `None` where it was removed.
    pub fn current(&self, claim: &Claim) -> Option<Entry> {
        let home = self.run_dir.join("claims").join(&claim.id);
        self.read(&home.join(claim.file_name()), |now| {
            (&now.id, now.owner) == (&claim.id, claim.owner)
        })
    }

    /// The claim that a cgroup leads to.
    pub fn on_cgroup(&self, inode: u64) -> Option<Entry> {
        self.read(&self.cgroup_marker(inode), |_| true)
    }

    /// The ids that have claims or leftovers of one, sorted.
    pub fn ids(&self) -> Result<Vec<String>> {
        let mut ids = files::names_in(&self.run_dir.join("claims"))?;
        ids.sort();
        Ok(ids)
    }

    /// All claims, in the order of their ids.
    pub fn all(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for id in self.ids()? {
            entries.extend(self.of_id(&id)?);
        }
        Ok(entries)
    }

    /// Writes a claim, new or changed.
    pub fn write(&self, claim: &Claim) -> Result<()> {
        let home = self.run_dir.join("claims").join(&claim.id);
        make_directory(&home)?;
        self.link(claim)?;
        files::replace(
            &home.join(claim.file_name()),
            record::print(claim)?.as_bytes(),
            0o600,
            Durability::Crash,
        )
    }

    /// Makes the links to a claim that are missing.
    pub fn link(&self, claim: &Claim) -> Result<()> {
        let file = Path::new(&claim.id).join(claim.file_name());
        let lists = self.run_dir.join("lists");
        for list in &claim.lists {
            make_directory(&lists.join(list))?;
            let target = Path::new("../../claims").join(&file);
            link(&lists.join(list).join(claim.marker_name()), &target)?;
        }
        if let Some(group) = &claim.cgroup {
            let marker = self.cgroup_marker(group.inode);
            let target = Path::new("../claims").join(&file);
            // Only the first claim finds no directory.
            match link(&marker, &target) {
                Err(error) if files::says_gone(&error) => {
                    make_directory(&self.run_dir.join("cgroups"))?;
                    link(&marker, &target)?;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// Writes a claim whose lists changed, and removes the links from the lists that it lost.
    pub fn rewrite(&self, before: &Claim, after: &Claim) -> Result<()> {
        self.write(after)?;
        let gone = before.lists.iter();
        self.unlink(after, gone.filter(|list| !after.lists.contains(list)))
    }

    fn unlink<'a>(&self, claim: &Claim, lists: impl Iterator<Item = &'a String>) -> Result<()> {
        let mut first_error = Ok(());
        for list in lists {
            let dir = self.run_dir.join("lists").join(list);
            let removed = files::remove(&dir.join(claim.marker_name()))
                .and_then(|()| files::remove_empty_directory(&dir).map(drop));
            first_error = first_error.and(removed);
        }
        first_error
    }

    /// Removes a claim with the links to it; one that is not there is success. Goes on past an
    /// error with a link, and returns the first.
    pub fn remove(&self, claim: &Claim) -> Result<()> {
        files::remove(&self.file_of(claim))?;
        self.remove_links_with_retry(claim)
    }

    fn file_of(&self, claim: &Claim) -> PathBuf {
        let home = self.run_dir.join("claims").join(&claim.id);
        home.join(claim.file_name())
    }

    fn remove_links_with_retry(&self, claim: &Claim) -> Result<()> {
        // Tried twice: nothing leads here again, so a passing error would leave them for good.
        self.remove_links_to(claim)
            .or_else(|_| self.remove_links_to(claim))
    }

    /// Removes the links to a claim, and the temporary files beside it.
    fn remove_links_to(&self, claim: &Claim) -> Result<()> {
        let home = self.run_dir.join("claims").join(&claim.id);
        let leftovers = files::remove_leftovers(&home, &claim.file_name())
            .and_then(|()| files::remove_empty_directory(&home).map(drop));
        self.unlink(claim, claim.lists.iter())
            .and(self.unlink_group(claim))
            .and(leftovers)
    }

    /// Removes the link from a claim's group, unless it leads to another claim by now.
    fn unlink_group(&self, claim: &Claim) -> Result<()> {
        let Some(group) = &claim.cgroup else {
            return Ok(());
        };
        let marker = self.cgroup_marker(group.inode);
        match std::fs::read_link(&marker) {
            Ok(target) if target.ends_with(claim.file_name()) => files::remove(&marker),
            Ok(_) => Ok(()),
            Err(error) if files::is_gone(&error) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("read {}", marker.display())),
        }
    }

    /// The traces of a claim that cannot be read; `None` where it is of a newer version, or its
    /// file name has no pid and start time.
    ///
    /// # Errors
    /// The claim or a link cannot be looked at.
    pub fn traces(&self, path: &Path) -> Result<Option<Traces>> {
        // A claim that cannot even be looked at may be of a newer version: an error.
        if record::is_newer(&files::read_if_there(path)?.unwrap_or_default()) {
            return Ok(None);
        }
        let named = || -> Option<(String, Process)> {
            let id = path.parent()?.file_name()?.to_str()?;
            let (pid, start) = path.file_stem()?.to_str()?.split_once('-')?;
            let process = Process {
                pid: pid.parse().ok()?,
                start: start.parse().ok()?,
            };
            Some((id.to_owned(), process))
        };
        let Some((id, process)) = named() else {
            return Ok(None);
        };
        let marker = format!("{id}@{}-{}", process.pid, process.start);
        let mut lists = Vec::new();
        let all = self.run_dir.join("lists");
        for list in files::names_in(&all)? {
            if files::names_in(&all.join(&list))?.contains(&marker) {
                lists.push(list);
            }
        }
        let mut inodes = Vec::new();
        let file = Path::new("../claims")
            .join(&id)
            .join(path.file_name().unwrap_or_default());
        let groups = self.run_dir.join("cgroups");
        for name in files::names_in(&groups)? {
            let link = groups.join(&name);
            let is_its = match std::fs::read_link(&link) {
                Ok(target) => target == file,
                Err(error) if files::is_gone(&error) => false,
                Err(error) => {
                    return Err(error).with_context(|| format!("read {}", link.display()));
                }
            };
            inodes.extend(name.parse::<u64>().ok().filter(|_| is_its));
        }
        Ok(Some(Traces {
            id,
            process,
            lists,
            inodes,
            path: path.to_owned(),
            marker,
        }))
    }

    /// Removes an unreadable claim, and then the links to it.
    pub fn remove_traces(&self, traces: &Traces) -> Result<()> {
        files::remove(&traces.path)?;
        for list in &traces.lists {
            let dir = self.run_dir.join("lists").join(list);
            files::remove(&dir.join(&traces.marker))?;
            files::remove_empty_directory(&dir)?;
        }
        for inode in &traces.inodes {
            files::remove(&self.cgroup_marker(*inode))?;
        }
        if let Some(home) = traces.path.parent() {
            files::remove_empty_directory(home)?;
        }
        Ok(())
    }

    /// The CPU lists that have links to claims.
    pub fn lists(&self) -> Result<Vec<String>> {
        files::names_in(&self.run_dir.join("lists"))
    }

    /// Removes what killed writers left: temporary files beside the mark `boot`, and links from
    /// cgroups that lead nowhere.
    pub fn remove_leftovers(&self) -> Result<()> {
        files::remove_leftovers(&self.run_dir, "boot")?;
        remove_dangling_links(&self.run_dir.join("cgroups"))
    }

    /// Removes the links from one CPU list that lead nowhere.
    pub fn remove_leftovers_of_list(&self, list: &str) -> Result<()> {
        let dir = self.run_dir.join("lists").join(list);
        remove_dangling_links(&dir)?;
        files::remove_empty_directory(&dir).map(drop)
    }

    /// Removes the temporary files of one id, and its directory if that is empty then.
    pub fn remove_leftovers_of_id(&self, id: &str) -> Result<()> {
        let home = self.run_dir.join("claims").join(id);
        for name in files::names_in(&home)? {
            if name.starts_with('.') {
                files::remove(&home.join(name))?;
            }
        }
        files::remove_empty_directory(&home).map(drop)
    }

    /// The text of `boot`: the boot id, the key of the lock, and the pool directory, separated by
    /// blanks; on a second line the pid namespace, where it is known. `None` where there is no such
    /// file.
    pub fn boot_mark(&self) -> Result<Option<String>> {
        files::read_record_if_there(&self.boot_mark_path())
    }

    /// Where `boot` is.
    pub fn boot_mark_path(&self) -> PathBuf {
        self.run_dir.join("boot")
    }

    /// Writes `boot`.
    pub fn write_boot_mark(&self, mark: &str) -> Result<()> {
        files::replace(
            &self.boot_mark_path(),
            mark.as_bytes(),
            0o600,
            Durability::Crash,
        )
    }

    /// Reads a claim, directly or through a link. It is unreadable where `is_it` denies that it
    /// belongs there; `None` where there is none.
    fn read(&self, path: &Path, is_it: impl FnOnce(&Claim) -> bool) -> Option<Entry> {
        let text = match files::read_record_if_there(path) {
            Ok(None) => return None,
            Ok(Some(text)) => Ok(text),
            Err(error) => Err(error),
        };
        let is_of_boot = |claim: &Claim| {
            let boot_id = self.boot_id.as_ref();
            boot_id.is_none_or(|boot_id| claim.boot_id == *boot_id)
        };
        let claim = text.and_then(|text| {
            let claim = record::parse(&text)?;
            ensure!(is_it(&claim), "it is the claim of another");
            ensure!(
                is_of_boot(&claim),
                "it is of another boot, and all of those were removed: it was damaged"
            );
            Ok(claim)
        });
        Some(match claim {
            Ok(claim) => Entry::Claim(Box::new(claim)),
            Err(error) => Entry::Unreadable(Unreadable {
                path: path.to_owned(),
                reason: format!("{error:#}"),
            }),
        })
    }

    fn cgroup_marker(&self, inode: u64) -> PathBuf {
        self.run_dir.join("cgroups").join(inode.to_string())
    }
}

fn make_directory(path: &Path) -> Result<()> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    made.with_context(|| format!("make {}", path.display()))
}

/// Makes a symbolic link; replaces one that leads elsewhere.
fn link(path: &Path, target: &Path) -> Result<()> {
    let attempt = || match symlink(target, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::read_link(path)? == target {
                return Ok(());
            }
            std::fs::remove_file(path)?;
            symlink(target, path)
        }
        other => other,
    };
    attempt().with_context(|| format!("link {}", path.display()))
}

fn remove_dangling_links(dir: &Path) -> Result<()> {
    for name in files::names_in(dir)? {
        let path = dir.join(name);
        if files::metadata_if_there(&path)?.is_none() {
            files::remove(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;
    use crate::process::Process;

    fn claim(id: &str, pid: i32, lists: &[&str], inode: u64) -> Claim {
        let owner = Process { pid, start: 77 };
        Claim {
            version: VERSION,
            id: id.into(),
            kind: OwnerKind::Container,
            names: Names::default(),
            nonce: None,
            awaited: None,
            boot_id: "b".into(),
            owner,
            processes: vec![owner],
            pool: "dp".into(),
            lists: lists.iter().map(|list| (*list).to_owned()).collect(),
            cpus: lists.join(",").parse().unwrap(),
            mems: None,
            cgroup: Some(ClaimedGroup {
                path: "/c".into(),
                inode,
                made: false,
                confined: true,
                before: Before {
                    cpus: "0-7".into(),
                    mems: "0".into(),
                },
                moved_from: None,
            }),
            isolation: None,
            tuning: Default::default(),
            by_default: false,
            unit_settings: Vec::new(),
            is_slow: false,
            is_exact: false,
            since: 1,
        }
    }

    fn entry(claim: &Claim) -> Entry {
        Entry::Claim(Box::new(claim.clone()))
    }

    fn files_under(dir: &Path) -> usize {
        files::names_in(dir)
            .unwrap()
            .iter()
            .map(|name| match dir.join(name).symlink_metadata() {
                Ok(metadata) if metadata.is_dir() => files_under(&dir.join(name)),
                _ => 1,
            })
            .sum()
    }

    #[test]
    fn a_link_tells_the_process_that_its_claim_was_made_for() {
        for (name, pid) in [
            ("web@77-5", Some(77)),
            ("a@b-c@77-5", Some(77)),
            ("web", None),
            ("web@77", None),
            ("web@x-5", None),
        ] {
            assert_eq!(Marker(name.to_owned()).pid(), pid, "{name}");
        }
    }

    #[test]
    fn claims_are_found_by_id_list_and_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("run")).unwrap();
        let (a, b) = (
            claim("web", 5, &["0", "1,9"], 70),
            claim("web", 6, &["2"], 71),
        );
        ledger.write(&a).unwrap();
        ledger.write(&b).unwrap();
        assert_eq!(ledger.of_id("web").unwrap().len(), 2);
        assert_eq!(ledger.on_list("1,9").unwrap(), [entry(&a)]);
        assert_eq!(ledger.on_cgroup(71), Some(entry(&b)));
        assert!(ledger.knows("web").unwrap() && !ledger.knows("we").unwrap());
        assert_eq!(ledger.on_list("3").unwrap(), []);
        for _ in 0..2 {
            ledger.remove(&a).unwrap();
            assert_eq!(ledger.all().unwrap(), [entry(&b)]);
        }
        ledger.remove(&b).unwrap();
        assert_eq!(files_under(dir.path()), 0);
        assert!(!ledger.knows("web").unwrap());
    }

    #[test]
    fn a_claim_that_takes_over_a_cgroup_keeps_the_link_when_the_older_goes() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().join("run").as_path()).unwrap();
        let (old, new) = (claim("old", 5, &["0"], 70), claim("new", 6, &["1"], 70));
        ledger.write(&old).unwrap();
        ledger.write(&new).unwrap();
        ledger.remove(&old).unwrap();
        assert_eq!(ledger.on_cgroup(70), Some(entry(&new)));
    }

    #[test]
    fn what_cannot_be_read_or_is_newer_is_opaque() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path().join("run").as_path()).unwrap();
        let claim = claim("web", 5, &["0"], 70);
        ledger.write(&claim).unwrap();
        let path = dir.path().join("run/claims/web/5-77.json");
        let text = files::read(&path).unwrap();
        let unsummed = serde_json::to_string(&claim).unwrap();
        for (content, part) in [
            (text.replace("\"version\":1", "\"version\":2"), "version 2"),
            (unsummed.replace("\"pool\"", "\"poll\""), "`pool`"),
            (unsummed.replace("\"web\"", "\"wed\""), "of another"),
            (text.replace("\"dp\"", "\"dq\""), "check sum"),
            ("{".to_owned(), "EOF"),
            (String::new(), "EOF"),
            ("\u{fffd}".to_owned(), "expected value"),
        ] {
            files::replace(&path, content.as_bytes(), 0o600, Durability::Crash).unwrap();
            match ledger.on_list("0").unwrap().as_slice() {
                [Entry::Unreadable(one)] => {
                    assert!(one.reason.contains(part), "{one}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_a_later_program_adds_is_passed_over() {
        let claim = claim("web", 5, &["0"], 70);
        let text = serde_json::to_string(&claim).unwrap();
        let later = text.replacen('{', r#"{"colour":{"of":"it"},"#, 1);
        assert_eq!(record::parse(&later).unwrap(), claim);
        assert!(!text.contains("names"), "none, and nothing written");
    }

    #[test]
    fn a_claim_with_any_bit_flipped_is_none_or_as_it_was() {
        let claim = claim("web", 5, &["0", "1,9"], 70);
        let text = record::print(&claim).unwrap();
        assert_eq!(record::parse(&text).unwrap(), claim);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let flipped = String::from_utf8_lossy(&bytes);
                // A bit flipped in the name of `sum` leaves the claim as it was.
                if let Ok(read) = record::parse(&flipped) {
                    assert_eq!(read, claim, "{flipped}");
                }
            }
        }
    }

    #[test]
    fn a_claim_without_a_sum_is_read_and_one_of_another_boot_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::open(&dir.path().join("run")).unwrap();
        let claim = claim("web", 5, &["0"], 70);
        ledger.write(&claim).unwrap();
        let path = dir.path().join("run/claims/web/5-77.json");
        let text = serde_json::to_string(&claim).unwrap();
        files::replace(&path, text.as_bytes(), 0o600, Durability::Crash).unwrap();
        assert_eq!(ledger.all().unwrap(), [entry(&claim)]);
        ledger.expect_boot("b");
        assert_eq!(ledger.on_list("0").unwrap(), [entry(&claim)]);
        ledger.expect_boot("c");
        match ledger.on_list("0").unwrap().as_slice() {
            [Entry::Unreadable(one)] => {
                assert!(one.reason.contains("boot"), "{one}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_link_that_cannot_be_looked_at_stays_and_a_missing_one_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(&dir.path().join("run")).unwrap();
        let claim = claim("web", 5, &["0"], 70);
        ledger.write(&claim).unwrap();
        let lists = dir.path().join("run/lists");
        // A link to itself: ELOOP, which says nothing about the claim.
        symlink("round", lists.join("0/round")).unwrap();
        assert!(ledger.remove_leftovers_of_list("0").is_err());
        assert!(lists.join("0/round").symlink_metadata().is_ok());
        for link in ["lists/0/round", "lists/0/web@5-77", "cgroups/70"] {
            files::remove(&dir.path().join("run").join(link)).unwrap();
        }
        assert_eq!(ledger.on_list("0").unwrap(), []);
        ledger.link(&claim).unwrap();
        assert_eq!(ledger.on_list("0").unwrap(), [entry(&claim)]);
        assert_eq!(ledger.on_cgroup(70), Some(entry(&claim)));
    }

    #[test]
    fn of_what_cannot_be_looked_at_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let ledger = Ledger::open(&run).unwrap();
        ledger.write(&claim("web", 5, &["0"], 70)).unwrap();
        let path = run.join("claims/web/5-77.json");
        assert_eq!(ledger.traces(&path).unwrap().unwrap().inodes, [70]);
        // A file instead of a link: EINVAL. It may stand for the link from its group.
        files::replace(&run.join("cgroups/71"), b"", 0o600, Durability::Crash).unwrap();
        assert!(ledger.traces(&path).is_err());
        files::remove(&run.join("cgroups/71")).unwrap();
        // A directory instead of a file: EISDIR. It may be of a newer version.
        files::remove(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(ledger.traces(&path).is_err());
    }

    #[test]
    fn leftovers_go_and_claims_stay() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        let ledger = Ledger::open(&run).unwrap();
        let (kept, killed) = (claim("kept", 5, &["0"], 70), claim("killed", 6, &["1"], 71));
        ledger.write(&kept).unwrap();
        ledger.write(&killed).unwrap();
        files::remove(&run.join("claims/killed/6-77.json")).unwrap();
        files::replace(
            &run.join("claims/killed/.6-77.json.abcDE1-0"),
            b"",
            0o600,
            Durability::Crash,
        )
        .unwrap();
        ledger.remove_leftovers().unwrap();
        for list in ledger.lists().unwrap() {
            ledger.remove_leftovers_of_list(&list).unwrap();
        }
        for id in ledger.ids().unwrap() {
            ledger.remove_leftovers_of_id(&id).unwrap();
        }
        assert_eq!(ledger.all().unwrap(), [entry(&kept)]);
        assert_eq!(files_under(&run), 3);
        assert!(!ledger.knows("killed").unwrap());
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        assert!(
            Ledger::open_if_there(&dir.path().join("no"))
                .unwrap()
                .is_none()
        );
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o770)).unwrap();
        let error = Ledger::open(dir.path()).unwrap_err();
        assert!(error.to_string().contains("chmod 700"));
    }
}
