//! Reads the pool directory and the directory of claims.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirEntry, read_dir};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::libc;
use serde::{Deserialize, Deserializer, de::Error};

use super::Remarks;
use crate::text::Shown;

/// The largest CPU number that is accepted.
const LARGEST_CPU: u32 = 65_535;

#[derive(Default)]
pub(super) struct SiteFiles {
    pub(super) claims: Vec<ClaimFile>,
    /// `<id>/<file>` of the claims that cannot be read.
    pub(super) unreadable: Vec<String>,
    /// Each link below the directory of claims, and where it leads.
    pub(super) links: BTreeMap<String, String>,
    /// The owners that ended and have no record yet: file name and boot id, because another boot
    /// gives the same pids.
    pub(super) ended: BTreeSet<(String, String)>,
    pub(super) lists: Vec<List>,
    pub(super) boot_mark: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ClaimFile {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) awaited: Option<String>,
    pub(super) boot_id: String,
    pub(super) owner: RecordedProcess,
    pub(super) processes: Vec<RecordedProcess>,
    pub(super) pool: String,
    pub(super) lists: Vec<String>,
    #[serde(deserialize_with = "cpus_in_text")]
    pub(super) cpus: BTreeSet<u32>,
    pub(super) cgroup: Option<ClaimedGroup>,
}

#[derive(Deserialize)]
pub(super) struct RecordedProcess {
    pub(super) pid: i32,
    pub(super) start: u64,
}

#[derive(Deserialize)]
pub(super) struct ClaimedGroup {
    pub(super) path: String,
    pub(super) inode: u64,
    pub(super) confined: bool,
}

pub(super) struct List {
    pub(super) pool: String,
    pub(super) name: String,
    pub(super) is_exclusive: bool,
    pub(super) cpus: BTreeSet<u32>,
    pub(super) tasks: Vec<i32>,
}

impl ClaimFile {
    /// `<id>/<pid>-<start>.json`.
    pub(super) fn file(&self) -> String {
        format!("{}/{}-{}.json", self.id, self.owner.pid, self.owner.start)
    }

    /// `<id>@<pid>-<start>`.
    pub(super) fn owner_name(&self) -> String {
        let RecordedProcess { pid, start } = self.owner;
        format!("{}@{pid}-{start}", self.id)
    }

    pub(super) fn list_link(&self, list: &str) -> String {
        format!("lists/{list}/{}", self.owner_name())
    }

    pub(super) fn name(&self) -> String {
        format!(
            "{} ({}-{})",
            Shown(&self.id),
            self.owner.pid,
            self.owner.start
        )
    }

    pub(super) fn shares_group_with(&self, other: &ClaimFile) -> bool {
        let inode = |claim: &ClaimFile| claim.cgroup.as_ref().map(|group| group.inode);
        inode(self).is_some() && inode(self) == inode(other)
    }
}

impl ClaimedGroup {
    pub(super) fn link(&self) -> String {
        format!("cgroups/{}", self.inode)
    }
}

impl List {
    pub(super) fn shown(&self) -> String {
        format!("{} of pool {}", Shown(&self.name), Shown(&self.pool))
    }
}

impl SiteFiles {
    pub(super) fn read(conf_dir: &Path, run_dir: &Path, remarks: &mut Remarks) -> SiteFiles {
        let mut books = SiteFiles {
            boot_mark: text(&run_dir.join("boot"), remarks),
            ..SiteFiles::default()
        };
        books.read_claims(run_dir, remarks);
        for kind in ["lists", "cgroups"] {
            books.read_links(run_dir, kind, remarks);
        }
        for entry in entries(&run_dir.join("ended"), remarks) {
            let claim = text(&entry.path(), remarks);
            let claim = claim.and_then(|text| serde_json::from_str::<ClaimFile>(&text).ok());
            // A damaged file is nobody's, and no owner misses it.
            books
                .ended
                .extend(claim.map(|claim| (name(&entry), claim.boot_id)));
        }
        books.read_pools(&conf_dir.join("pools"), remarks);
        leftovers(run_dir, remarks);
        books
    }

    fn read_claims(&mut self, run_dir: &Path, remarks: &mut Remarks) {
        for home in entries(&run_dir.join("claims"), remarks) {
            leftovers(&home.path(), remarks);
            for entry in entries(&home.path(), remarks) {
                let path = entry.path();
                let file = format!("{}/{}", name(&home), name(&entry));
                let Some(text) = text(&path, remarks).filter(|_| !is_hidden(&entry)) else {
                    continue;
                };
                match serde_json::from_str::<ClaimFile>(&text) {
                    Ok(claim) if claim.file() == file => self.claims.push(claim),
                    Ok(claim) => {
                        remarks.broken(format!("{} is the claim {file}", claim.name()));
                        self.unreadable.push(file);
                    }
                    Err(error) => {
                        remarks.broken(format!("the claim {}: {error}", path.display()));
                        self.unreadable.push(file);
                    }
                }
            }
        }
    }

    fn read_links(&mut self, run_dir: &Path, under: &str, remarks: &mut Remarks) {
        for entry in entries(&run_dir.join(under), remarks) {
            let link = format!("{under}/{}", name(&entry));
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.read_links(run_dir, &link, remarks);
                continue;
            }
            match std::fs::read_link(entry.path()) {
                Ok(target) => {
                    let target = target.to_string_lossy().into_owned();
                    self.links.insert(link, target);
                }
                Err(error) if is_gone(&error) => {}
                Err(error) => remarks.broken(format!("{}: {error}", Shown(&link))),
            }
        }
    }

    fn read_pools(&mut self, pools: &Path, remarks: &mut Remarks) {
        leftovers(pools, remarks);
        let is_pool = |entry: &DirEntry| is_directory(entry) && !is_hidden(entry);
        for pool in entries(pools, remarks).into_iter().filter(is_pool) {
            let kind = text(&pool.path().join("exclusive"), remarks);
            let lists = entries(&pool.path(), remarks).into_iter();
            for list in lists.filter(is_directory) {
                leftovers(&list.path(), remarks);
                let path = list.path().join("tasks");
                let tasks = text(&path, remarks).unwrap_or_default();
                let parts = tasks
                    .split(',')
                    .map(str::trim)
                    .filter(|pid| !pid.is_empty());
                let tasks: Result<Vec<i32>, _> = parts.map(str::parse).collect();
                let (Some(cpus), Ok(tasks)) = (cpus_in(&name(&list)), tasks) else {
                    let shown = path.display();
                    remarks.broken(format!(
                        "{} is not a list of pids of a CPU list",
                        Shown(&shown.to_string())
                    ));
                    continue;
                };
                self.lists.push(List {
                    pool: name(&pool),
                    name: name(&list),
                    is_exclusive: kind.as_ref().is_some_and(|kind| kind.starts_with('1')),
                    cpus,
                    tasks,
                });
            }
        }
    }
}

/// Parses a CPU list in the kernel's form: `0-2,8`.
pub(super) fn cpus_in(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > LARGEST_CPU {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// CPUs as text: `0,1,2`, or `none`.
pub(super) fn listed(cpus: &BTreeSet<u32>) -> String {
    let cpus: Vec<String> = cpus.iter().map(u32::to_string).collect();
    match cpus.is_empty() {
        true => "none".to_owned(),
        false => cpus.join(","),
    }
}

fn cpus_in_text<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeSet<u32>, D::Error> {
    let text = String::deserialize(from)?;
    cpus_in(&text).ok_or_else(|| D::Error::custom("not a CPU list"))
}

/// Remarks on the files that killed writers left: `.NAME.<nonce>`.
fn leftovers(directory: &Path, remarks: &mut Remarks) {
    for entry in entries(directory, remarks) {
        if is_hidden(&entry) {
            let path = entry.path().display().to_string();
            remarks.leftover(format!("{} was never put into its place", Shown(&path)));
        }
    }
}

fn text(path: &Path, remarks: &mut Remarks) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) => Some(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if is_gone(&error) => None,
        Err(error) => {
            remarks.broken(format!(
                "read {}: {error}",
                Shown(&path.display().to_string())
            ));
            None
        }
    }
}

fn entries(directory: &Path, remarks: &mut Remarks) -> Vec<DirEntry> {
    let list = || read_dir(directory)?.collect::<io::Result<Vec<_>>>();
    match list() {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => vec![],
        Err(error) => {
            let path = directory.display().to_string();
            remarks.broken(format!("list {}: {error}", Shown(&path)));
            vec![]
        }
    }
}

pub(super) fn is_gone(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    matches!(number, Some(libc::ENOENT | libc::ESRCH | libc::ENODEV))
}

fn name(entry: &DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_bytes().starts_with(b".")
}

fn is_directory(entry: &DirEntry) -> bool {
    entry.file_type().is_ok_and(|kind| kind.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        for (text, cpus) in [
            ("", &[][..]),
            ("3\n", &[3]),
            ("0-2,8", &[0, 1, 2, 8]),
            ("4,12", &[4, 12]),
        ] {
            assert_eq!(
                cpus_in(text),
                Some(cpus.iter().copied().collect()),
                "{text:?}"
            );
        }
        for text in ["x", "1-", "0-4294967295", "-1", "1 2"] {
            assert_eq!(cpus_in(text), None, "{text:?}");
        }
    }
}
