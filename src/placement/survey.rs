//! A look at the whole site without changing anything: what `describe` shows.

use std::path::PathBuf;

use anyhow::Result;

use super::Site;
use super::life::{Life, life_of};
use crate::cgroup::Hierarchy;
use crate::claims::{Claim, Entry, Ledger, OwnerKind};
use crate::cpulist::CpuSet;
use crate::pools::{CpuList, Kind, LockError, Pool, PoolDirectory};
use crate::process::{self, Process};
use crate::topology;

/// What there is.
#[derive(Debug)]
pub struct Survey {
    /// The pool directory, with symbolic links resolved.
    pub path: PathBuf,
    /// The pools in lexical order.
    pub pools: Vec<SurveyedPool>,
    /// What was seen but cannot be right, or could not be looked at: a sentence each.
    pub remarks: Vec<String>,
}

/// One pool.
#[derive(Debug)]
pub struct SurveyedPool {
    /// Its name.
    pub name: String,
    /// One owner a list, or many.
    pub kind: Kind,
    /// Its lists, by first CPU.
    pub lists: Vec<SurveyedList>,
}

/// One CPU list.
#[derive(Debug)]
pub struct SurveyedList {
    /// Its directory's name.
    pub name: String,
    /// The pids in its `tasks`.
    pub tasks: Vec<i32>,
    /// Is it free, and can it be given?
    pub state: ListState,
    /// Those of its CPUs that are offline.
    pub offline: CpuSet,
    /// Who holds it.
    pub owners: Vec<Owner>,
}

/// Whether a CPU list is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListState {
    /// Nobody holds it.
    Free,
    /// Somebody who lives holds it.
    Owned,
    /// Only dead owners do: it is freed when the pool is next needed, or by `reconcile`.
    Dead,
}

/// One owner of a list.
#[derive(Debug)]
pub struct Owner {
    /// The container's id, or the process's name: text of others.
    pub name: String,
    /// The process that stands for it.
    pub pid: i32,
    /// Since when, in seconds since the epoch.
    pub since: Option<i64>,
    /// Does it live?
    pub alive: bool,
}

/// Looks at everything; under the lock where we may take it, and without it, saying so, where we may not.
///
/// # Errors
/// A pool directory that cannot be read at all, and a lock that is held too long.
pub fn survey(site: &Site) -> Result<Survey> {
    let directory = PoolDirectory::open(&site.conf_dir)?;
    let mut remarks = Vec::new();
    let _lock = match directory.lock(&site.host, site.patience) {
        Ok(lock) => Some(lock),
        Err(LockError::Denied(_)) => {
            remarks.push(
                "read without the lock, which only its owner may take: owners may be changing"
                    .to_owned(),
            );
            None
        }
        Err(error) => return Err(error.into()),
    };
    let look = Look {
        site,
        ledger: Ledger::open_if_there(&site.run_dir)?,
        online: topology::online(&site.host).ok(),
        hierarchy: Hierarchy::discover(&site.host).ok(),
        boot_id: process::boot_id(&site.host).unwrap_or_default(),
        boot_time: process::boot_time(&site.host).ok(),
        directory: &directory,
    };
    let mut pools = Vec::new();
    for name in directory.pool_names()? {
        match directory.pool(&name) {
            Ok(pool) => pools.push(look.at_pool(&pool, &mut remarks)),
            Err(error) => remarks.push(format!("{error:#}")),
        }
        if let Err(error) = directory.sound_pool(&name) {
            remarks.push(format!("{error:#}"));
        }
    }
    remarks.dedup();
    Ok(Survey {
        path: directory.path().to_owned(),
        pools,
        remarks,
    })
}

struct Look<'a> {
    site: &'a Site,
    ledger: Option<Ledger>,
    online: Option<CpuSet>,
    hierarchy: Option<Hierarchy>,
    boot_id: String,
    boot_time: Option<i64>,
    directory: &'a PoolDirectory,
}

impl Look<'_> {
    fn at_pool(&self, pool: &Pool, remarks: &mut Vec<String>) -> SurveyedPool {
        let lists = pool
            .lists
            .iter()
            .map(|list| self.at_list(&pool.name, list, remarks))
            .collect();
        SurveyedPool {
            name: pool.name.clone(),
            kind: pool.kind,
            lists,
        }
    }

    fn at_list(&self, pool: &str, list: &CpuList, remarks: &mut Vec<String>) -> SurveyedList {
        let entries = match self
            .ledger
            .as_ref()
            .map(|ledger| ledger.on_list(&list.name))
        {
            Some(Ok(entries)) => entries,
            Some(Err(_)) => {
                let remark = "the claims cannot be read: owners are told by their pids alone";
                if !remarks.iter().any(|other| other == remark) {
                    remarks.push(remark.to_owned());
                }
                Vec::new()
            }
            None => Vec::new(),
        };
        let mut owners = Vec::new();
        let mut claimed = Vec::new();
        for entry in &entries {
            match entry {
                Entry::Claim(claim) => {
                    owners.push(self.claimant(claim));
                    claimed.extend(claim.pids());
                }
                Entry::Opaque { path, reason } => remarks.push(format!(
                    "the claim {} counts as held: {reason}",
                    path.display()
                )),
            }
        }
        let unclaimed = list.tasks.iter().filter(|pid| !claimed.contains(pid));
        let is_void = self.is_void(pool, list);
        owners.extend(unclaimed.map(|pid| self.stranger(*pid, is_void)));
        let is_opaque = entries.iter().any(|entry| entry.claim().is_none());
        let state = match owners.iter().any(|owner| owner.alive) {
            true => ListState::Owned,
            false if is_opaque => ListState::Owned,
            false if owners.is_empty() => ListState::Free,
            false => ListState::Dead,
        };
        let online = self.online.as_ref();
        SurveyedList {
            name: list.name.clone(),
            tasks: list.tasks.clone(),
            state,
            offline: online.map_or_else(CpuSet::new, |online| list.cpus.difference(online)),
            owners,
        }
    }

    fn claimant(&self, claim: &Claim) -> Owner {
        let host = &self.site.host;
        let life = match &self.hierarchy {
            Some(hierarchy) => life_of(claim, host, hierarchy, &self.boot_id).ok(),
            None => None,
        };
        let is_alive = |process: &&Process| process.is_alive(host).unwrap_or(true);
        // Of a command that `isolate` runs, the last one recorded is the command's own.
        let process = match life {
            Some(Life::Survived(Some(survivor))) => survivor,
            _ => *claim
                .processes
                .iter()
                .rev()
                .find(is_alive)
                .unwrap_or(&claim.owner),
        };
        let name = match claim.kind {
            OwnerKind::Container | OwnerKind::Reservation => claim.id.clone(),
            OwnerKind::Process => {
                process::name(host, process.pid).unwrap_or_else(|| claim.id.clone())
            }
        };
        Owner {
            name,
            pid: process.pid,
            since: i64::try_from(claim.since).ok(),
            alive: life.is_none_or(Life::is_alive),
        }
    }

    /// Were a list's owners written before this boot, and not looked at since? Then the numbers mean nothing.
    fn is_void(&self, pool: &str, list: &CpuList) -> bool {
        let mark = self
            .ledger
            .as_ref()
            .and_then(|ledger| ledger.boot_mark().ok()?);
        let is_swept = mark.is_some_and(|mark| mark.starts_with(&self.boot_id));
        let is_old = |time| self.directory.is_from_before(time, pool, &list.name);
        !is_swept && self.boot_time.is_some_and(is_old)
    }

    /// A process that another tool wrote into `tasks`; its own start is the best that is known of when.
    fn stranger(&self, pid: i32, is_void: bool) -> Owner {
        let host = &self.site.host;
        let process = Process::with_pid(host, pid).unwrap_or_default();
        let since = process.and_then(|process| process.started_at(self.boot_time?));
        Owner {
            name: process::name(host, pid)
                .filter(|_| !is_void)
                .unwrap_or_default(),
            pid,
            since: since.filter(|_| !is_void),
            alive: !is_void && process::pid_is_alive(host, pid).unwrap_or(true),
        }
    }
}
