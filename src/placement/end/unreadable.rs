//! Freeing claims that cannot be read. The file's name and the links to it still tell whose claim
//! it is. It is freed once nobody is left who could be its owner; in doubt it counts as held.

use anyhow::{Context, Result, bail};

use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::systemd;
use crate::claims::{Claim, Entry, Traces, Unreadable};
use crate::cpulist::CpuSet;
use crate::files;
use crate::placement::Books;
use crate::placement::end::reap::Reclaimed;
use crate::pools::TasksChange;
use crate::process::{self, Process};
use crate::refusal::Refusal;
use crate::text::{Shown, shell_word};

impl Books<'_> {
    /// Frees an unreadable claim if its owner is gone.
    ///
    /// # Errors
    /// Somebody may be its owner, and is named; something cannot be looked at.
    pub(crate) fn free_unreadable(&self, claim: &Unreadable) -> Result<Vec<Reclaimed>> {
        let Unreadable { path, reason } = claim;
        let held = |who: &str, remedy: &str| {
            let what = format!(
                "the claim {} cannot be read ({reason}) and is kept: {who}",
                path.display()
            );
            Refusal::new(what, remedy)
        };
        let Some(traces) = self.ledger.traces(path)? else {
            bail!(held(
                "it is of a newer Pinfold, or its name tells no process",
                "run `pinfold reconcile` of the Pinfold that wrote it"
            ));
        };
        if let Some(who) = self.possible_owner(&traces)? {
            bail!(held(
                &format!("{who} may be its owner"),
                "stop that, and then `pinfold reconcile`"
            ));
        }
        // A claim without lists was freed by force. It stays while its group is there: that may
        // have our mask, and nothing else tells which CPUs.
        let groups = self.hierarchy.groups_with(&traces.inodes)?;
        if let Some(group) = groups.first().filter(|_| traces.lists.is_empty()) {
            bail!(held(
                &format!(
                    "nothing tells which CPUs it has, and its cgroup {} is still there",
                    Shown(group.path())
                ),
                &format!(
                    "`rmdir {}`, and then `pinfold reconcile`",
                    shell_word(group.dir())
                )
            ));
        }
        log::warn!(
            "{} is freed: it cannot be read ({reason}), and its owner is gone",
            path.display()
        );
        self.free_traces(&traces)
    }

    /// A live process that could be the owner: the one that the file's name tells; any in the
    /// group; any in `tasks` that no other claim names; any that can run on nothing but these CPUs,
    /// unless it is in another claim's group.
    fn possible_owner(&self, traces: &Traces) -> Result<Option<String>> {
        if traces.process.is_alive(self.host)? || !self.pids_tell() {
            return Ok(Some(format!("process {}", traces.process.pid)));
        }
        for group in self.hierarchy.groups_with(&traces.inodes)? {
            if group.is_populated()? {
                return Ok(Some(format!("a process in the cgroup {}", group.path())));
            }
        }
        let claims = self.ledger.all()?;
        let claims: Vec<&Claim> = claims.iter().filter_map(Entry::claim).collect();
        let is_explained = |pid: &i32| claims.iter().any(|claim| claim.pids().contains(pid));
        for (pool, list) in self.lists_of(traces)? {
            let tasks = self.directory.tasks(&pool, &list)?;
            let mut unexplained = tasks.iter().filter(|pid| !is_explained(pid));
            if let Some(pid) = unexplained.find(|pid| self.is_pid_alive(**pid)) {
                return Ok(Some(format!("process {pid}")));
            }
        }
        let cpus = cpus_of(traces)?;
        for name in files::names_in(&self.host.processes())? {
            let Ok(pid) = name.parse::<i32>() else {
                continue;
            };
            if is_explained(&pid) || process::is_kernel_thread(self.host, pid)? {
                continue;
            }
            let affinity = match process::affinity(pid) {
                Err(error) if files::is_gone(&error) => continue,
                other => {
                    other.with_context(|| format!("read the CPU affinity of process {pid}"))?
                }
            };
            if affinity.is_subset(&cpus) && !self.is_in_group_of(pid, &claims)? {
                return Ok(Some(format!("process {pid}, which runs on them alone,")));
            }
        }
        Ok(None)
    }

    fn is_in_group_of(&self, pid: i32, claims: &[&Claim]) -> Result<bool> {
        let Some(group) = self.hierarchy.group_of(self.host, pid)? else {
            return Ok(true);
        };
        let is_in = |claim: &&Claim| {
            let path = claim.cgroup.as_ref().map(|claimed| claimed.path.as_str());
            let below = path.and_then(|path| group.path().strip_prefix(path));
            below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        Ok(claims.iter().any(is_in))
    }

    /// The pool and the name of each of its lists that exists.
    fn lists_of(&self, traces: &Traces) -> Result<Vec<(String, String)>> {
        let mut lists = Vec::new();
        for pool in self.directory.pool_names()? {
            for list in &traces.lists {
                if self.directory.has_list(&pool, list)? {
                    lists.push((pool.clone(), list.clone()));
                }
            }
        }
        Ok(lists)
    }

    fn free_traces(&self, traces: &Traces) -> Result<Vec<Reclaimed>> {
        let (cpus, none) = (cpus_of(traces)?, CpuSet::new());
        for inode in &traces.inodes {
            self.let_in_at(*inode)?;
        }
        for group in self.hierarchy.groups_with(&traces.inodes)? {
            // What the unit had before is unknown: after the next reload its own files count.
            let former = systemd::Former {
                cpus: &none,
                mems: Some(&none),
                settings: &[],
                told: Some(&cpus),
            };
            let is_ours = systemd::untell(self.host, &group, &former, self.systemd_patience())?;
            // A group that we made is removed with the others that no claim names.
            if is_ours {
                let Masks { cpus, mems } = cpuset::inherited(&group)?;
                cpuset::restore(&group, &cpus, Some(&mems), || {
                    self.exclusive_where_isolated()
                })?;
            }
        }
        let Process { pid, .. } = traces.process;
        let mut reclaimed = Vec::new();
        for (pool, list) in self.lists_of(traces)? {
            let change = TasksChange {
                pool: &pool,
                list: &list,
                drop: &[pid],
                add: &[],
            };
            self.directory.change_tasks(&self.lock, &change)?;
            reclaimed.push(Reclaimed {
                pool,
                cpus: list,
                pid,
            });
        }
        self.ledger.remove_traces(traces)?;
        Ok(reclaimed)
    }
}

fn cpus_of(traces: &Traces) -> Result<CpuSet> {
    let mut cpus = CpuSet::new();
    for list in &traces.lists {
        cpus.extend(&list.parse()?);
    }
    Ok(cpus)
}
