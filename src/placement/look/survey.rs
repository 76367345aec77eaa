//! Surveys the whole site without changing anything, for `status`, `describe` and others that show
//! it.

use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::cgroup::{Group, Hierarchy, cpuset};
use crate::claims::{Claim, Entry, Ledger, OwnerKind};
use crate::cpulist::CpuSet;
use crate::files;
use crate::isolation::Options;
use crate::isolation::tuning::Tuning;
use crate::names::Names;
use crate::outside::{self, CpusOfMachine, Keeping};
use crate::placement::Site;
use crate::placement::boot::{Clock, pids_of};
use crate::placement::life::{Life, Pids, life_of};
use crate::pools::{CpuList, Kind, LockError, Pool, PoolDirectory};
use crate::process::{self, Process};
use crate::refusal::Refusal;

/// A site as it was seen.
#[derive(Debug, PartialEq)]
pub struct Survey {
    /// The pool directory, with symbolic links resolved.
    pub path: PathBuf,
    /// The pools in lexical order, each as far as it can be read.
    pub pools: Vec<SurveyedPool>,
    /// All owners, by pool and first CPU.
    pub owners: Vec<Owner>,
    /// Were the lists of all pools read, and the claims, unless only root may read them? Then no
    /// owner is missing.
    pub is_whole: bool,
    /// The pools whose lists were not all read; some are not among `pools` at all.
    pub unread: Vec<String>,
    /// The exclusive pools whose options could not be read. Their lists and owners may well be.
    pub options_unread: Vec<String>,
    /// Why the claims cannot be read although we may: nobody gets CPUs then.
    pub claims_unread: Option<Refusal>,
    /// Why all of it may be half of a change; `None` if two looks saw the same, and nobody kept the
    /// lock.
    pub doubt: Option<Refusal>,
    /// What looks wrong, or could not be looked at.
    pub remarks: Vec<Refusal>,
    /// The same about single owners. [`crate::placement::audit`] looks at those more closely.
    pub about_owners: Vec<Refusal>,
}

impl Survey {
    /// Was all of it read, the pools' options too?
    pub fn is_all_read(&self) -> bool {
        self.is_whole && self.options_unread.is_empty()
    }
}

/// A pool as it was seen.
#[derive(Debug, PartialEq)]
pub struct SurveyedPool {
    /// Its name.
    pub name: String,
    /// Exclusive or shared.
    pub kind: Kind,
    /// Its lists, by first CPU.
    pub lists: Vec<SurveyedList>,
    /// Its other options, from the configuration and its own files. A shared pool's mean nothing,
    /// and are not read.
    pub options: Options,
}

impl SurveyedPool {
    /// The CPUs of all its lists.
    pub fn cpus(&self) -> CpuSet {
        self.lists.iter().map(|list| &list.cpus).collect()
    }

    /// Does it say that others are to be kept off its owners' CPUs?
    pub fn wants_isolation(&self) -> bool {
        let wanted = self.options.wanted(&self.name);
        self.kind == Kind::Exclusive && wanted.is_ok_and(|wanted| wanted.is_some())
    }
}

/// A CPU list as it was seen.
#[derive(Debug, PartialEq)]
pub struct SurveyedList {
    /// Its directory's name.
    pub name: String,
    /// Its CPUs.
    pub cpus: CpuSet,
    /// The pids in its `tasks`.
    pub tasks: Vec<i32>,
    /// Is it free?
    pub state: ListState,
    /// Those of its CPUs that are offline.
    pub offline: CpuSet,
    /// How many owners hold it.
    pub owners: usize,
}

/// Whether a CPU list is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ListState {
    /// Nobody holds it.
    Free,
    /// Somebody who lives holds it.
    Owned,
    /// Only dead owners do: it is freed when the pool is next needed, or by `reconcile`.
    Dead,
}

impl ListState {
    /// The state as one word.
    pub fn word(self) -> &'static str {
        match self {
            ListState::Free => "free",
            ListState::Owned => "owned",
            ListState::Dead => "dead",
        }
    }
}

/// An owner as it was seen, with all that it holds.
#[derive(Debug, PartialEq)]
pub struct Owner {
    /// The id that `release` takes; `None` for a process that another tool recorded.
    pub id: Option<String>,
    /// Container, command or reservation; `None` where no claim that can be read says so.
    pub kind: Option<OwnerKind>,
    /// The names that people use for it; untrusted text.
    pub names: Names,
    /// The process that stands for it; 0 if the claim's file does not name one.
    pub pid: i32,
    /// The pool; empty if the claim cannot be read.
    pub pool: String,
    /// The directory names of its lists.
    pub lists: Vec<String>,
    /// The CPUs that it owns.
    pub cpus: CpuSet,
    /// The CPUs that it may run on; `None` if that cannot be told.
    pub runs_on: Option<CpuSet>,
    /// The path of the group whose processes are its own; `None` for a process that another tool
    /// recorded.
    pub group: Option<String>,
    /// Is it alive and where it should be?
    pub state: OwnerState,
    /// When it started, in seconds since the epoch.
    pub since: Option<i64>,
    /// How others are kept off its CPUs now.
    pub keeping: Keeping,
    /// What of the machine is set for it.
    pub tuning: Tuning,
    /// Did it ask for nothing, and is in the default pool?
    pub by_default: bool,
}

impl Owner {
    /// Does it hold this list of this pool?
    pub fn holds(&self, pool: &str, list: &str) -> bool {
        self.pool == pool && self.lists.iter().any(|other| other == list)
    }

    /// Is it alive, as far as can be told?
    pub fn is_alive(&self) -> bool {
        self.state != OwnerState::Gone
    }

    /// Did the kubelet have it started? Its names tell: only containers of pods that come by the
    /// CRI have a namespace of Kubernetes'.
    pub fn is_of_kubelet(&self) -> bool {
        self.names.pod.is_some() && self.names.namespace.is_some()
    }

    /// The owner as a sentence names it.
    pub fn shown(&self) -> String {
        match &self.id {
            Some(id) => self.names.with_id(id),
            None => self.names.with_id(&format!("process {}", self.pid)),
        }
    }
}

/// How an owner is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum OwnerState {
    /// It runs on its CPUs.
    Running,
    /// A runtime is about to make it.
    Starting,
    /// It runs on other CPUs than it owns, or not on all of them: another tool has changed that.
    Moved,
    /// CPUs that it owns are offline.
    Offline,
    /// It is dead: what it holds is freed when the pool is next needed, or by `reconcile`.
    Gone,
    /// Its claim cannot be read: it counts as held.
    Unreadable,
    /// Whether it lives cannot be told.
    Unknown,
}

impl OwnerState {
    /// The state as one word.
    pub fn word(self) -> &'static str {
        match self {
            OwnerState::Running => "running",
            OwnerState::Starting => "starting",
            OwnerState::Moved => "moved",
            OwnerState::Offline => "offline",
            OwnerState::Gone => "gone",
            OwnerState::Unreadable => "unreadable",
            OwnerState::Unknown => "unknown",
        }
    }
}

/// How long somebody may hold the lock before a look mentions it.
const BRIEF: Duration = Duration::from_millis(200);

/// How many looks are taken at most until two in a row see the same.
const LOOKS: usize = 10;

/// The time between two looks.
const BETWEEN: Duration = Duration::from_millis(3);

/// Surveys everything without the lock, until two looks in a row see the same. A remark says so if
/// they never do, or if somebody keeps the lock and may have done half of a change.
///
/// # Errors
/// The pool directory cannot be read at all.
pub fn survey(site: &Site) -> Result<Survey> {
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    let Steady { seen, is_steady } = steadily(|| look(site, &directory))?;
    let mut survey = seen;
    let (is_denied, doubt) = match doubt(site, &directory, is_steady) {
        Some((doubt, is_denied)) => (is_denied, Some(doubt)),
        None => (false, None),
    };
    survey.remarks.splice(0..0, doubt.clone());
    // Who may not take the lock sees no sign of a change.
    survey.doubt = doubt.filter(|_| !is_denied);
    Ok(survey)
}

/// What a change would come to, without the lock: what two looks in a row see. A warning says so if
/// that is in doubt.
///
/// # Errors
/// Both looks are refused.
pub(crate) fn trial<T: PartialEq>(
    site: &Site,
    directory: &PoolDirectory,
    look: impl Fn() -> Result<T>,
) -> Result<T> {
    // A half-made change can also cause a refusal.
    let Steady { seen, is_steady } = steadily(|| Ok(look().map_err(|error| Refusal::of(&error))))?;
    // Without a lock file nobody can be changing the directory.
    if files::entry_if_there(&directory.lock_path())?.is_some() {
        if let Some((doubt, _)) = doubt(site, directory, is_steady) {
            log::warn!("{doubt}");
        }
    }
    Ok(seen?)
}

/// Why what was seen without the lock is in doubt, and is it only that we may not take it? `None`
/// if there is no doubt.
fn doubt(site: &Site, directory: &PoolDirectory, is_steady: bool) -> Option<(Refusal, bool)> {
    match directory.ensure_let_go(&site.host, BRIEF) {
        Ok(()) if is_steady => None,
        Ok(()) => {
            let unsteady = Refusal::new(
                "read without the lock, and owners changed all the time",
                "look again when fewer of them start and end",
            );
            Some((unsteady, false))
        }
        Err(LockError::Denied(_)) => {
            let denied = Refusal::new(
                "read without the lock, which only its owner may take: owners may be changing",
                "run this as root",
            );
            Some((denied, true))
        }
        Err(LockError::Held(error) | LockError::Unusable(error)) => {
            let refusal = Refusal::of(&error);
            let what = format!(
                "read without the lock, so that owners may be changing: {}",
                refusal.what
            );
            Some((Refusal::new(what, refusal.remedy), false))
        }
    }
}

/// The last look, and whether the one before it saw the same.
pub(crate) struct Steady<T> {
    pub(crate) seen: T,
    pub(crate) is_steady: bool,
}

/// Looks until two looks in a row see the same: a change takes several steps.
pub(crate) fn steadily<T: PartialEq>(look: impl Fn() -> Result<T>) -> Result<Steady<T>> {
    let mut seen = look()?;
    for _ in 1..LOOKS {
        sleep(BETWEEN);
        let again = look()?;
        if again == seen {
            return Ok(Steady {
                seen,
                is_steady: true,
            });
        }
        seen = again;
    }
    Ok(Steady {
        seen,
        is_steady: false,
    })
}

fn look(site: &Site, directory: &PoolDirectory) -> Result<Survey> {
    let mut remarks = Vec::new();
    let mut claims_unread = None;
    let boot_id = process::boot_id(&site.host).unwrap_or_default();
    let mut ledger = Ledger::open_if_there(&site.run_dir)?;
    let mut is_swept = false;
    let mut pids = Pids::default();
    if let Some(ledger) = ledger.as_mut().filter(|_| !boot_id.is_empty()) {
        let mark = ledger.boot_mark()?.unwrap_or_default();
        is_swept = mark.starts_with(&format!("{boot_id} "));
        pids = pids_of(&mark, &boot_id, ledger);
        if is_swept {
            ledger.expect_boot(&boot_id);
        }
    }
    let entries = match ledger.as_ref().map(Ledger::all) {
        Some(Ok(entries)) => entries,
        Some(Err(error)) => {
            let cause = Refusal::of(&error);
            let what = format!(
                "the claims cannot be read, so that owners are told by their pids alone: {}",
                cause.what
            );
            let refusal = Refusal::new(what, cause.remedy);
            // A user need not be told of root's claims.
            claims_unread = (!files::is_denied_to_us(&error)).then(|| refusal.clone());
            remarks.push(refusal);
            Vec::new()
        }
        None => Vec::new(),
    };
    let look = Surveyor {
        site,
        entries,
        pids,
        ledger,
        cpus: CpusOfMachine::read(&site.host),
        hierarchy: cpuset::hierarchy(&site.host).ok(),
        boot_id,
        boot_time: process::boot_time(&site.host).ok(),
        clock: match is_swept {
            true => None,
            false => Clock::of(&site.host).ok(),
        },
        directory,
    };
    let mut survey = Survey {
        path: directory.path().to_owned(),
        pools: Vec::new(),
        owners: look
            .entries
            .iter()
            .map(|entry| look.at_entry(entry))
            .collect(),
        is_whole: claims_unread.is_none(),
        unread: Vec::new(),
        options_unread: Vec::new(),
        claims_unread,
        doubt: None,
        remarks,
        about_owners: Vec::new(),
    };
    look.remark_on_owners(&mut survey);
    for problem in directory.not_pools()? {
        survey.is_whole = false;
        survey.remarks.push(Refusal::of(&problem));
    }
    for name in directory.pool_names()? {
        look.at_pool(&name, &mut survey);
    }
    let first = |owner: &Owner| owner.cpus.first();
    survey
        .owners
        .sort_by(|one, other| (&one.pool, first(one)).cmp(&(&other.pool, first(other))));
    survey.remarks.dedup();
    Ok(survey)
}

struct Surveyor<'a> {
    site: &'a Site,
    entries: Vec<Entry>,
    ledger: Option<Ledger>,
    cpus: CpusOfMachine,
    hierarchy: Option<Hierarchy>,
    boot_id: String,
    boot_time: Option<i64>,
    /// Judges the pids of earlier boots by their times; `None` once they were voided.
    clock: Option<Clock>,
    pids: Pids,
    directory: &'a PoolDirectory,
}

impl Surveyor<'_> {
    /// Adds a pool, as far as it can be read.
    fn at_pool(&self, name: &str, survey: &mut Survey) {
        let (pool, problems) = match self.directory.readable_part(name) {
            Ok(read) => read,
            Err(error) => {
                survey.is_whole = false;
                survey.unread.push(name.to_owned());
                survey.remarks.push(Refusal::of(&error));
                return;
            }
        };
        let is_sound = problems.is_empty();
        survey.is_whole &= is_sound;
        if !is_sound {
            survey.unread.push(name.to_owned());
        }
        survey.remarks.extend(problems.iter().map(Refusal::of));
        if let (true, Err(error)) = (is_sound, self.directory.sound_pool(name)) {
            survey.remarks.push(Refusal::of(&error));
        }
        let lists = pool.lists.iter();
        let lists = lists.map(|list| self.at_list(&pool, list, &mut survey.owners));
        let lists = lists.collect();
        let options = match pool.kind {
            Kind::Exclusive => self.options_of(&pool.name, survey),
            Kind::Shared => Options::default(),
        };
        survey.pools.push(SurveyedPool {
            name: pool.name.clone(),
            kind: pool.kind,
            lists,
            options,
        });
    }

    /// The options of a pool; the configuration's come first.
    fn options_of(&self, pool: &str, survey: &mut Survey) -> Options {
        let said = self.directory.options(pool).unwrap_or_else(|error| {
            survey.options_unread.push(pool.to_owned());
            survey.remarks.push(Refusal::of(&error));
            Options::default()
        });
        match self.site.options.get(pool) {
            Some(first) => first.or(said),
            None => said,
        }
    }

    fn at_list(&self, pool: &Pool, list: &CpuList, owners: &mut Vec<Owner>) -> SurveyedList {
        let claims = self.entries.iter().filter_map(Entry::claim);
        let claims =
            claims.filter(|claim| claim.pool == pool.name && claim.lists.contains(&list.name));
        let claimed: Vec<i32> = claims.flat_map(Claim::pids).collect();
        let unclaimed = list.tasks.iter().filter(|pid| !claimed.contains(pid));
        let recorded = self.directory.recorded_at(&pool.name, &list.name);
        let recorded = recorded.ok().flatten();
        for pid in unclaimed {
            let is_void = self.is_void(pool, *pid, recorded);
            self.add_stranger(*pid, is_void, pool, list, owners);
        }
        let holders = || {
            owners
                .iter()
                .filter(|owner| owner.holds(&pool.name, &list.name))
        };
        let is_opaque = self.has_unreadable_claim(&list.name);
        let state = match holders().any(Owner::is_alive) {
            true => ListState::Owned,
            false if is_opaque => ListState::Owned,
            false if holders().next().is_none() => ListState::Free,
            false => ListState::Dead,
        };
        SurveyedList {
            name: list.name.clone(),
            cpus: list.cpus.clone(),
            tasks: list.tasks.clone(),
            state,
            offline: self.offline(&list.cpus),
            owners: holders().count(),
        }
    }

    fn has_unreadable_claim(&self, list: &str) -> bool {
        let entries = self.ledger.as_ref().map(|ledger| ledger.on_list(list));
        let entries = entries.and_then(Result::ok).unwrap_or_default();
        entries.iter().any(|entry| entry.claim().is_none())
    }

    fn offline(&self, cpus: &CpuSet) -> CpuSet {
        let online = self.cpus.online.as_ref();
        online.map_or_else(CpuSet::new, |online| cpus.difference(online))
    }

    fn at_entry(&self, entry: &Entry) -> Owner {
        match entry {
            Entry::Claim(claim) => self.claimant(claim),
            Entry::Unreadable(one) => unreadable(&one.path),
        }
    }

    fn remark_on_owners(&self, survey: &mut Survey) {
        for entry in &self.entries {
            if let Entry::Unreadable(one) = entry {
                survey.about_owners.push(one.refusal());
            }
        }
        for owner in &survey.owners {
            let runs_on = match &owner.runs_on {
                Some(cpus) => format!("runs on {cpus}"),
                None => "runs elsewhere".to_owned(),
            };
            let (shown, cpus) = (owner.shown(), &owner.cpus);
            match owner.state {
                OwnerState::Moved => survey.about_owners.push(Refusal::new(
                    format!("{shown} owns {cpus} and {runs_on}, for another tool has changed that"),
                    "`pinfold reconcile` confines it again",
                )),
                OwnerState::Offline => survey.about_owners.push(Refusal::new(
                    format!(
                        "{shown} owns {cpus} and {runs_on}, for {} is offline",
                        self.offline(cpus)
                    ),
                    "put it online",
                )),
                _ => {}
            }
        }
    }

    fn claimant(&self, claim: &Claim) -> Owner {
        let host = &self.site.host;
        let hierarchy = self.hierarchy.as_ref().filter(|_| !self.boot_id.is_empty());
        let life = hierarchy
            .and_then(|hierarchy| life_of(claim, host, hierarchy, &self.boot_id, &self.pids).ok());
        let is_alive = |process: &&Process| process.is_alive(host).unwrap_or(true);
        // The last process of a command's claim is the command, the first is `isolate`.
        let process = match life {
            Some(Life::Survived(Some(survivor))) => survivor,
            _ => *claim
                .processes
                .iter()
                .rev()
                .find(is_alive)
                .unwrap_or(&claim.owner),
        };
        let mut owner = Owner {
            id: Some(claim.id.clone()),
            kind: Some(claim.kind),
            names: claim.names.clone(),
            pid: process.pid,
            pool: claim.pool.clone(),
            lists: claim.lists.clone(),
            cpus: claim.cpus.clone(),
            runs_on: None,
            group: claim.cgroup.as_ref().map(|group| group.path.clone()),
            state: OwnerState::Running,
            since: i64::try_from(claim.since).ok(),
            keeping: self.keeping(claim),
            tuning: self.tuning(claim),
            by_default: claim.by_default,
        };
        owner.state = match life {
            None => OwnerState::Unknown,
            Some(Life::Gone) => OwnerState::Gone,
            Some(_) if claim.kind == OwnerKind::Reservation => OwnerState::Starting,
            Some(_) => {
                let group = self.mask_of_group(claim);
                let own = process::allowed_cpus(host, process.pid);
                let own = own.filter(|_| !claim.is_beside(process));
                let is_as_claimed = match &claim.confining_group() {
                    Some(_) => {
                        group.as_ref().is_none_or(|mask| *mask == claim.cpus)
                            && own.as_ref().is_none_or(|own| own.is_subset(&claim.cpus))
                    }
                    None => true,
                };
                owner.runs_on = union(group, own);
                match is_as_claimed {
                    _ if !self.offline(&claim.cpus).is_empty() => OwnerState::Offline,
                    true => OwnerState::Running,
                    false => OwnerState::Moved,
                }
            }
        };
        owner
    }

    /// How others are kept off a claim's CPUs now: a partition counts only while the kernel calls
    /// it valid.
    fn keeping(&self, claim: &Claim) -> Keeping {
        let Some(claimed) = claim.confining_group() else {
            return self.by_boot(&claim.cpus);
        };
        let group = self.hierarchy.as_ref();
        let group = group.and_then(|hierarchy| hierarchy.group(&claimed.path).ok());
        let is_same = |group: &Group| group.inode().is_ok_and(|now| now == Some(claimed.inode));
        let Some(group) = group.filter(is_same) else {
            return Keeping::default();
        };
        let keeping = self.cpus.keeping(Some(&group), &claim.cpus);
        keeping.unwrap_or_default()
    }

    /// The same of who is in no group of its own.
    fn by_boot(&self, cpus: &CpuSet) -> Keeping {
        self.cpus.keeping(None, cpus).unwrap_or_default()
    }

    /// What the machine's records say that is set for a claim.
    fn tuning(&self, claim: &Claim) -> Tuning {
        let claimed = claim.cgroup.as_ref().filter(|_| !claim.tuning.is_none());
        let tuned = claimed.and_then(|claimed| {
            let mut tuned = outside::tuned(&self.site.host).into_iter();
            tuned.find(|tuned| tuned.inode == claimed.inode)
        });
        tuned.map(|tuned| tuned.tuning).unwrap_or_default()
    }

    /// The CPUs of the group that confines an owner; `None` if that group is gone.
    fn mask_of_group(&self, claim: &Claim) -> Option<CpuSet> {
        let claimed = claim.confining_group()?;
        let group = self.hierarchy.as_ref()?.group(&claimed.path).ok()?;
        let is_same = group.inode().ok()? == Some(claimed.inode);
        is_same
            .then(|| cpuset::effective_cpus(&group).ok()?)
            .flatten()
    }

    /// Is a pid void? It is if it was recorded before this boot and no longer counts.
    fn is_void(&self, pool: &Pool, pid: i32, recorded: Option<i64>) -> bool {
        let (Some(clock), Some(recorded)) = (self.clock, recorded) else {
            return false;
        };
        // An owner can have several lists.
        let lists = pool.lists.iter().filter(|list| list.tasks.contains(&pid));
        let cpus = lists.map(|list| &list.cpus).collect();
        // What cannot be told counts as held.
        let counts = clock.counts(&self.site.host, pid, &cpus, recorded);
        !counts.unwrap_or(true)
    }

    /// Adds a process that another tool wrote into `tasks`. In several lists of a pool it is one
    /// owner; it counts as owner since its own start, for nothing else is known.
    fn add_stranger(
        &self,
        pid: i32,
        is_void: bool,
        pool: &Pool,
        list: &CpuList,
        owners: &mut Vec<Owner>,
    ) {
        let mut known = owners.iter_mut();
        let known =
            known.find(|owner| owner.id.is_none() && owner.pid == pid && owner.pool == pool.name);
        if let Some(owner) = known {
            if !owner.lists.contains(&list.name) {
                owner.lists.push(list.name.clone());
                owner.cpus.extend(&list.cpus);
            }
            return;
        }
        let host = &self.site.host;
        let process = Process::with_pid(host, pid).unwrap_or_default();
        let since = process.and_then(|process| process.started_at(self.boot_time?));
        let is_alive = !is_void && process::pid_is_alive(host, pid).unwrap_or(true);
        // A captured machine may not tell.
        let is_unknown = self.hierarchy.is_none()
            || self.boot_id.is_empty()
            || (!is_void && !is_alive && !self.pids.tell(host));
        let name = process::name(host, pid).filter(|_| is_alive);
        owners.push(Owner {
            id: None,
            kind: None,
            names: Names {
                name,
                ..Names::default()
            },
            pid,
            pool: pool.name.clone(),
            lists: vec![list.name.clone()],
            cpus: list.cpus.clone(),
            runs_on: process::allowed_cpus(host, pid).filter(|_| is_alive),
            group: None,
            state: match is_alive {
                _ if is_unknown => OwnerState::Unknown,
                true => OwnerState::Running,
                false => OwnerState::Gone,
            },
            since: since.filter(|_| !is_void),
            keeping: self.by_boot(&list.cpus),
            tuning: Tuning::default(),
            by_default: false,
        });
    }
}

/// An owner whose claim cannot be read: the directory names its id, the file its process.
fn unreadable(path: &Path) -> Owner {
    let id = path.parent().and_then(Path::file_name);
    let process = path.file_stem().unwrap_or_default().to_string_lossy();
    let pid = process
        .split_once('-')
        .and_then(|(pid, _)| pid.parse().ok());
    Owner {
        id: id.map(|id| id.to_string_lossy().into_owned()),
        kind: None,
        names: Names::default(),
        pid: pid.unwrap_or_default(),
        pool: String::new(),
        lists: Vec::new(),
        cpus: CpuSet::new(),
        runs_on: None,
        group: None,
        state: OwnerState::Unreadable,
        since: None,
        keeping: Keeping::default(),
        tuning: Tuning::default(),
        by_default: false,
    }
}

fn union(one: Option<CpuSet>, other: Option<CpuSet>) -> Option<CpuSet> {
    match (one, other) {
        (Some(mut one), Some(other)) => {
            one.extend(&other);
            Some(one)
        }
        (one, other) => one.or(other),
    }
}
