//! The pool directory, in KCM's flat layout: `lock`, `pools/<pool>/exclusive` and
//! `pools/<pool>/<cpulist>/tasks`.

pub mod carve;
mod change;
pub mod converge;
mod lock;
mod lock_table;
pub mod make;
mod offer;
mod options;
mod owners;
pub mod plan;
mod queue;
pub mod resize;
mod tasks;
mod wait;

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail, ensure};

pub use lock::{Lock, LockError};
pub use offer::{OfferedList, OfferedPool};
pub use owners::TasksChange;

use crate::cpulist::CpuSet;
use crate::files::{self, Way, trusted};
use crate::host::Host;
use crate::refusal::{OrRefuse, Reason, Refusal};
use crate::text::{Shown, shell_word};

/// The mode of the directories in a pool directory.
pub const DIRECTORY_MODE: u32 = 0o755;
/// The mode of `tasks` and `exclusive`: anybody may read them.
pub const FILE_MODE: u32 = 0o644;
/// The mode of `lock`: whoever can open it can hold it, and stop every start.
pub const LOCK_MODE: u32 = 0o600;

/// The remedy where there is no pool directory, or no pool in it.
const MAKE: &str =
    "make it: `pinfold init` (`pinfold init --help` says how the CPUs can be divided)";

/// How many owners a list of a pool can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One owner a list.
    Exclusive,
    /// Any number of owners a list.
    Shared,
}

impl Kind {
    /// The word for it in tables and options.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Exclusive => "exclusive",
            Kind::Shared => "shared",
        }
    }

    /// The kind that a word means; `None` for any other word.
    pub fn by_word(word: &str) -> Option<Kind> {
        [Kind::Exclusive, Kind::Shared]
            .into_iter()
            .find(|kind| kind.word() == word)
    }

    /// The content of the file `exclusive`: one byte without a newline.
    pub fn content(self) -> &'static str {
        match self {
            Kind::Exclusive => "1",
            Kind::Shared => "0",
        }
    }
}

/// A pool as it was read.
#[derive(Debug, Clone)]
pub struct Pool {
    /// The name of its directory.
    pub name: String,
    /// Exclusive or shared.
    pub kind: Kind,
    /// Its CPU lists, by first CPU.
    pub lists: Vec<CpuList>,
}

/// A CPU list: what an owner gets.
#[derive(Debug, Clone)]
pub struct CpuList {
    /// The name of its directory. Other tools may have written it as `4,12` or `4-5`.
    pub name: String,
    /// The CPUs that the name means.
    pub cpus: CpuSet,
    /// The pids in `tasks`, in the file's order, with repetitions.
    pub tasks: Vec<i32>,
}

/// A pool directory that can be trusted: only root and we can write to it and to `pools`.
#[derive(Debug, Clone)]
pub struct PoolDirectory {
    path: PathBuf,
}

impl PoolDirectory {
    /// Opens a pool directory. Its path may lead through symbolic links; nothing below it may.
    ///
    /// # Errors
    /// The directory is missing or half-made, or others can change or replace it.
    pub fn open(host: &Host, path: &Path) -> Result<PoolDirectory> {
        let way = match Way::to(path, || host.unknown_root()) {
            Err(error) if files::is_gone(&error) => {
                bail!(Refusal::new(
                    format!("the pool directory {} does not exist", path.display()),
                    MAKE
                ))
            }
            other => {
                other.with_context(|| format!("open the pool directory {}", path.display()))?
            }
        };
        if let Some(doubt) = way.doubts.first() {
            bail!(doubt.clone());
        }
        let path = way.real;
        files::ensure_trusted(&path, &way.metadata, || None)?;
        ensure_directory(&path, &way.metadata)?;
        let directory = PoolDirectory { path };
        directory.or_half_made(trusted_directory(&directory.pools()), MAKE)?;
        Ok(directory)
    }

    /// The path, with symbolic links resolved.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file whose flock(2) everybody holds who reads or changes the directory.
    pub fn lock_path(&self) -> PathBuf {
        self.path.join("lock")
    }

    fn pools(&self) -> PathBuf {
        self.path.join("pools")
    }

    fn list_path(&self, pool: &str, list: &str) -> PathBuf {
        self.pools().join(pool).join(list)
    }

    /// The path of a list's directory, quoted for a shell.
    fn list_word(&self, pool: &str, list: &str) -> String {
        shell_word(&self.list_path(pool, list))
    }

    /// Checks that only root and we can change a list's directory.
    ///
    /// # Errors
    /// Others can, or it is not a directory.
    pub fn ensure_trusted_list(&self, pool: &str, list: &str) -> Result<()> {
        trusted_directory(&self.list_path(pool, list)).map(drop)
    }

    /// Does the pool have a list of this name?
    ///
    /// # Errors
    /// The directory cannot be looked at.
    pub fn has_list(&self, pool: &str, list: &str) -> Result<bool> {
        Ok(files::entry_if_there(&self.list_path(pool, list))?.is_some())
    }

    /// The names of the directories in a pool, without looking at anything else of it.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn list_names(&self, pool: &str) -> Result<Vec<String>> {
        files::directories_in(&self.pools().join(pool))
    }

    /// A refusal for each part below the directory that others can change. A start refuses only the
    /// parts that it needs.
    pub fn doubts(&self) -> Vec<Refusal> {
        let mut doubts = Vec::new();
        // Whoever reads a part that is missing, or a directory that cannot be listed, says so.
        let mut look = |path: PathBuf| {
            if matches!(files::entry_if_there(&path), Ok(None)) {
                return;
            }
            if let Err(error) = trusted(&path) {
                doubts.push(Refusal::of(&error));
            }
        };
        let lists = |pool: &String| self.list_names(pool).unwrap_or_default();
        for pool in self.pool_names().unwrap_or_default() {
            look(self.pools().join(&pool));
            for list in lists(&pool) {
                look(self.list_path(&pool, &list));
                look(self.list_path(&pool, &list).join("tasks"));
            }
            look(self.pools().join(&pool).join("exclusive"));
        }
        doubts
    }

    /// Adds to an error that the pool directory is half-made, with the remedy. An I/O error other
    /// than "not there" is returned as it is: what cannot be looked at may be whole.
    fn or_half_made<T>(&self, looked: Result<T>, remedy: impl Into<String>) -> Result<T> {
        match looked {
            Err(error) if error.is::<io::Error>() && !files::says_gone(&error) => Err(error),
            looked => looked.or_refuse(|| {
                let path = self.path.display();
                Refusal::new(format!("the pool directory {path} is half-made"), remedy)
            }),
        }
    }

    /// The names of the directories in `pools`, sorted. Other files are left out.
    ///
    /// # Errors
    /// `pools` cannot be listed.
    pub fn pool_names(&self) -> Result<Vec<String>> {
        let mut names = files::directories_in(&self.pools())?;
        names.sort();
        Ok(names)
    }

    /// An error for each entry of `pools` that may be meant as a pool and cannot be one: a symbolic
    /// link, which KCM's tools follow and we do not, or a name that is not UTF-8.
    ///
    /// # Errors
    /// `pools` cannot be listed.
    pub fn not_pools(&self) -> Result<Vec<Error>> {
        let entries = entries(&self.pools(), |_| false)?.into_iter();
        Ok(entries.filter_map(Result::err).collect())
    }

    /// The refusal that there is no pool of this name. One that the configuration means for all is
    /// shared.
    ///
    /// # Errors
    /// `pools` cannot be listed.
    pub fn no_such_pool(&self, name: &str, kind: Kind) -> Result<Refusal> {
        let known = self.pool_names()?;
        let path = self.path.display();
        let name = Shown(name);
        let take = match kind {
            Kind::Exclusive => "ask for one of those",
            Kind::Shared => "name a shared one of those",
        };
        let (has, remedy) = match (known.is_empty(), is_word(name.0)) {
            (true, _) => ("none".to_owned(), MAKE.to_owned()),
            (false, true) => (
                known.join(", "),
                format!(
                    "{take}, or make it: `pinfold pool add {}=1:{}`",
                    name.0,
                    kind.word()
                ),
            ),
            (false, false) => (known.join(", "), take.to_owned()),
        };
        let what = format!("there is no pool {name} in {path}, which has {has}");
        Ok(Refusal::new(what, remedy).because(Reason::Pool))
    }

    /// Reads one pool with all its lists.
    ///
    /// # Errors
    /// There is no such pool (the message names those there are), or a part of it cannot be read.
    pub fn pool(&self, name: &str) -> Result<Pool> {
        let read = self.readable_part(name);
        let path = self.pools().join(name);
        if read.as_ref().is_err_and(files::says_gone) && files::entry_if_there(&path)?.is_none() {
            bail!(self.no_such_pool(name, Kind::Exclusive)?);
        }
        let (pool, problems) = read?;
        match problems.into_iter().next() {
            Some(problem) => Err(problem),
            None => Ok(pool),
        }
    }

    /// Reads the parts of a pool that can be read, and returns an error for each list that cannot:
    /// one bad entry must not hide the others.
    ///
    /// # Errors
    /// The pool's directory cannot be listed, or others can change it; its kind cannot be read.
    pub fn readable_part(&self, name: &str) -> Result<(Pool, Vec<Error>)> {
        let path = self.pools().join(name);
        trusted_directory(&path)?;
        let mut lists = Vec::new();
        let mut problems = Vec::new();
        for list in entries(&path, is_option)? {
            match list.and_then(|list| list.map(|list| self.list(name, list)).transpose()) {
                Ok(list) => lists.extend(list),
                Err(problem) => problems.push(problem),
            }
        }
        lists.sort_by(|a, b| a.cpus.cmp(&b.cpus));
        let pool = Pool {
            name: name.to_owned(),
            kind: self.kind(name)?,
            lists,
        };
        Ok((pool, problems))
    }

    /// Reads a pool, and checks that its lists can be given to owners: none overlaps another list
    /// of any pool. Nothing else is checked of other pools.
    ///
    /// # Errors
    /// As [`PoolDirectory::pool`]; two lists overlap.
    pub fn sound_pool(&self, name: &str) -> Result<Pool> {
        let pool = self.pool(name)?;
        let mut seen: Vec<(String, String, CpuSet)> = Vec::new();
        for other in self.pool_names()?.into_iter().filter(|other| other != name) {
            for list in files::directories_in(&self.pools().join(&other))? {
                // A name in another pool that is no CPU list is reported to whoever asks for that
                // pool.
                if let Ok(cpus) = list.parse() {
                    seen.push((other.clone(), list, cpus));
                }
            }
        }
        let mut given: CpuSet = seen.iter().flat_map(|(_, _, cpus)| cpus.iter()).collect();
        for list in &pool.lists {
            // The overlapping list is searched for only if there is one.
            if given.is_disjoint(&list.cpus) {
                given.extend(&list.cpus);
                seen.push((name.to_owned(), list.name.clone(), list.cpus.clone()));
                continue;
            }
            let overlaps = |(_, _, cpus): &&(_, _, CpuSet)| !cpus.is_disjoint(&list.cpus);
            if let Some((other, overlapping, cpus)) = seen.iter().find(overlaps) {
                bail!(Refusal::new(
                    format!(
                        "CPU list {} of pool {name} overlaps {} of pool {} in CPU {}",
                        list.name,
                        Shown(overlapping),
                        Shown(other),
                        cpus.intersection(&list.cpus)
                    ),
                    format!(
                        "give each CPU to one list: once nobody owns it, `rm -r {}`",
                        self.list_word(other, overlapping)
                    )
                ));
            }
        }
        Ok(pool)
    }

    fn kind(&self, pool: &str) -> Result<Kind> {
        let path = self.pools().join(pool).join("exclusive");
        let word = shell_word(&path);
        let remedy = format!(
            "say whether each list has one owner, `printf 1 > {word}`, or many, `printf 0 > {word}`"
        );
        let metadata = self.or_half_made(trusted(&path), remedy.clone())?;
        ensure!(
            metadata.is_file(),
            Refusal::new(
                format!("{} is not a regular file", path.display()),
                format!(
                    "put one there: `rm -r {word} && printf 1 > {word}`, or 0 for a shared pool"
                )
            )
        );
        // KCM's tools write 1 or 0, and read anything but 1 as shared. A file with neither is
        // damaged, and must not make a list shared that has an owner.
        match files::read_record_of(&path)?.as_bytes().first() {
            Some(b'1') => Ok(Kind::Exclusive),
            Some(b'0') => Ok(Kind::Shared),
            _ => bail!(Refusal::new(
                format!("{} holds neither 1 nor 0", path.display()),
                remedy
            )),
        }
    }

    fn list(&self, pool: &str, name: String) -> Result<CpuList> {
        let cpus: CpuSet = name.parse().or_refuse(|| {
            Refusal::new(
                format!("pool {} has a directory {}", Shown(pool), Shown(&name)),
                format!(
                    "take it out of the pool: `mv {} {}`",
                    self.list_word(pool, &name),
                    shell_word(&self.path)
                ),
            )
        })?;
        ensure!(
            !cpus.is_empty(),
            Refusal::new(
                format!(
                    "pool {} has a CPU list without a CPU: {}",
                    Shown(pool),
                    Shown(&name)
                ),
                format!(
                    "take it out of the pool: `mv {} {}`",
                    self.list_word(pool, &name),
                    shell_word(&self.path)
                )
            )
        );
        self.ensure_trusted_list(pool, &name)?;
        let tasks = self.tasks(pool, &name)?;
        Ok(CpuList { name, cpus, tasks })
    }
}

/// The names of the directories in a directory, sorted. A symbolic link is an error: its target is
/// not part of the pool directory.
fn subdirectories(path: &Path) -> Result<Vec<String>> {
    let names = entries(path, is_option)?
        .into_iter()
        .filter_map(Result::transpose);
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Is this the name of a pool's option? Whoever reads that says what is wrong with it.
fn is_option(name: &str) -> bool {
    PoolDirectory::key_of(OsStr::new(name)).is_some()
}

/// The entries of a directory: a directory as its name, any other file as `None`. A symbolic link,
/// or a name that is not UTF-8, is an error, but for names that are `others`' business.
fn entries(path: &Path, others: fn(&str) -> bool) -> Result<Vec<Result<Option<String>>>> {
    let entries = std::fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    let one = |entry: std::fs::DirEntry| -> Result<Option<String>> {
        let kind = entry.file_type()?;
        let name = entry.file_name().into_string().map_err(|name| {
            Refusal::new(
                format!("{} has an entry {name:?} that is not UTF-8", path.display()),
                "move it away",
            )
        })?;
        ensure!(
            !kind.is_symlink() || others(&name),
            Refusal::new(
                format!(
                    "{} is a symbolic link, which is not followed",
                    path.join(&name).display()
                ),
                format!(
                    "put a real directory there, or take it away: `rm {}`",
                    shell_word(&path.join(&name))
                )
            )
        );
        Ok(kind.is_dir().then_some(name))
    };
    let mut found = Vec::new();
    for entry in entries {
        found.push(one(
            entry.with_context(|| format!("list {}", path.display()))?
        ));
    }
    Ok(found)
}

/// Can the name stand in a shell command unquoted, and is it no option?
fn is_word(name: &str) -> bool {
    !name.starts_with('-') && shell_word(Path::new(name)) == name
}

fn trusted_directory(path: &Path) -> Result<()> {
    ensure_directory(path, &trusted(path)?)
}

fn ensure_directory(path: &Path, found: &Metadata) -> Result<()> {
    ensure!(
        found.is_dir(),
        Refusal::new(
            format!("{} is not a directory", path.display()),
            "put a directory there"
        )
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Durability;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// Makes a pool directory from words: `pool/list=tasks` is a list, `pool!` makes the pool
    /// exclusive.
    pub(super) fn directory(words: &str) -> (tempfile::TempDir, PoolDirectory) {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &Path, content: &str| {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            files::replace(path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
        };
        put(&dir.path().join("lock"), "");
        fs::create_dir(dir.path().join("pools")).unwrap();
        for word in words.split_whitespace() {
            let pools = dir.path().join("pools");
            match word.split_once('=') {
                Some((list, tasks)) => put(&pools.join(list).join("tasks"), tasks),
                None => put(
                    &pools.join(word.trim_end_matches('!')).join("exclusive"),
                    if word.ends_with('!') { "1" } else { "0" },
                ),
            }
        }
        let opened = PoolDirectory::open(&Host::new("/"), dir.path()).unwrap();
        (dir, opened)
    }

    fn refusal<T>(result: Result<T>) -> String {
        format!("{:#}", result.err().unwrap())
    }

    #[test]
    fn reads_a_pool_by_first_cpu() {
        let (_dir, directory) = directory("dp! dp/10= dp/4,12=7,8 cp cp/0-1=");
        assert_eq!(directory.pool_names().unwrap(), ["cp", "dp"]);
        let pool = directory.sound_pool("dp").unwrap();
        let lists: Vec<_> = pool
            .lists
            .iter()
            .map(|l| (l.name.as_str(), l.tasks.clone()))
            .collect();
        assert_eq!(lists, [("4,12", vec![7, 8]), ("10", vec![])]);
        assert_eq!(pool.kind, Kind::Exclusive);
        assert_eq!(directory.sound_pool("cp").unwrap().kind, Kind::Shared);
    }

    #[test]
    fn unsound_pools_are_refused_and_do_not_trouble_others() {
        for (words, part) in [
            ("dp! dp/1= dp/0-2= ok ok/9=", "overlaps"),
            ("dp! dp/x= ok ok/9=", "not a CPU list"),
            ("dp! dp/1=rubbish ok ok/9=", "dp/1/tasks"),
            ("dp/1= ok ok/9=", "half-made"),
        ] {
            let (_dir, directory) = directory(words);
            let error = refusal(directory.sound_pool("dp"));
            assert!(error.contains(part), "{words}: {error}");
            assert!(directory.sound_pool("ok").is_ok(), "{words}");
        }
        let (_dir, directory) = directory("dp! dp/1= cp cp/1-2=");
        assert!(refusal(directory.sound_pool("dp")).contains("overlaps \"1-2\" of pool \"cp\""));
        assert!(refusal(directory.sound_pool("xx")).contains("which has cp, dp"));
    }

    #[test]
    fn a_kind_that_is_damaged_is_none() {
        let (dir, directory) = directory("dp! dp/1=");
        let file = dir.path().join("pools/dp/exclusive");
        let told = |content: &str| {
            files::replace(&file, content.as_bytes(), 0o644, Durability::Crash).unwrap();
            directory.sound_pool("dp").map(|pool| pool.kind)
        };
        for (content, kind) in [("1\n", Kind::Exclusive), ("0", Kind::Shared)] {
            assert_eq!(told(content).unwrap(), kind, "{content:?}");
        }
        for content in ["", "\0", "3", "yes"] {
            assert!(
                refusal(told(content)).contains("neither 1 nor 0"),
                "{content:?}"
            );
        }
    }

    #[test]
    fn half_made_lists_and_the_socket_layout_are_told_apart() {
        let (dir, directory) = directory("dp! cp");
        fs::create_dir_all(dir.path().join("pools/dp/1")).unwrap();
        assert!(refusal(directory.pool("dp")).contains("half-made"));
        fs::create_dir_all(dir.path().join("pools/cp/0/1,5")).unwrap();
        assert!(refusal(directory.pool("cp")).contains("sockets"));
    }

    #[test]
    fn what_others_can_change_is_refused() {
        let (dir, opened) = directory("dp! dp/1=");
        let mode = |path: &str, mode| {
            fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).unwrap();
        };
        for path in [
            "pools/dp/1/tasks",
            "pools/dp/1",
            "pools/dp",
            "pools/dp/exclusive",
        ] {
            mode(path, 0o777);
            assert!(refusal(opened.pool("dp")).contains("chmod o-w"), "{path}");
            mode(path, 0o755);
        }
        mode("", 0o777);
        assert!(refusal(PoolDirectory::open(&Host::new("/"), dir.path())).contains("chmod o-w"));
    }

    #[test]
    fn links_inside_are_refused_and_a_link_to_it_is_not() {
        let (dir, opened) = directory("dp! dp/1=");
        let elsewhere = tempfile::tempdir().unwrap();
        symlink(elsewhere.path(), dir.path().join("pools/evil")).unwrap();
        assert!(refusal(opened.pool("evil")).contains("symbolic link"));
        fs::remove_file(dir.path().join("pools/evil")).unwrap();
        symlink("1", dir.path().join("pools/dp/2")).unwrap();
        assert!(refusal(opened.pool("dp")).contains("symbolic link"));
        symlink(dir.path(), elsewhere.path().join("kcm")).unwrap();
        assert!(PoolDirectory::open(&Host::new("/"), &elsewhere.path().join("kcm")).is_ok());
    }

    #[test]
    fn missing_and_half_made_directories_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            refusal(PoolDirectory::open(&Host::new("/"), &dir.path().join("no")))
                .contains("pinfold init")
        );
        assert!(refusal(PoolDirectory::open(&Host::new("/"), dir.path())).contains("half-made"));
    }
}
