//! Pinning a command that `isolate` runs. Its group is claimed before the command exists.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cgroup::cpuset::{self, Masks};
use crate::cgroup::{Group, Hierarchy, Version, systemd};
use crate::claims::{Claim, Entry, OwnerKind};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::names;
use crate::placement::end::Fate;
use crate::placement::life::Life;
use crate::placement::start::container::TOLD;
use crate::placement::start::give::{Confinement, NewOwner};
use crate::placement::start::pick::Demand;
use crate::placement::{Books, Site, at_most};
use crate::process::Process;
use crate::request::Request;
use crate::usage::Sample;

/// What the ids of commands begin with; the pid of `isolate` follows.
const COMMAND: &str = "isolate-";

/// How long to wait for the lock to record a command's process.
const RECORD_PATIENCE: Duration = Duration::from_secs(2);

/// The group that `isolate` itself moves into, beside its command's, in a unit that delegates its
/// group to its processes.
const SUPERVISOR: &str = "pinfold-supervisor";

/// The place that a command is to run in.
#[derive(Debug)]
pub struct CommandPlace {
    /// Its CPUs.
    pub cpus: CpuSet,
    /// The directory names of its CPU lists, by first CPU.
    pub lists: Vec<String>,
    /// The `cgroup.procs` that the command's process writes `0` to, to enter its group; `None` if
    /// it is in that group already.
    pub procs_file: Option<PathBuf>,
    claim: Claim,
    /// The usage of the group before the command began.
    began: Option<Sample>,
}

/// Claims CPUs for a command that this process will run, and makes a group for it. `confined`: the
/// group confines the command; otherwise it only tells which processes are the command's.
///
/// # Errors
/// As [`crate::placement::pin_container`].
pub fn pin_command(
    site: &Site,
    program: &Path,
    request: &Request,
    confined: bool,
) -> Result<CommandPlace> {
    let host = &site.host;
    let pid = std::process::id() as i32;
    let process = Process::with_pid(host, pid)?.context("/proc does not show this process")?;
    let id = format!("{COMMAND}{pid}");
    let hierarchy = cpuset::hierarchy(host)?;
    let demand = Demand::of(host, request)?;
    let names = names::of_command(host, program);
    // Before the lock is taken: systemd can be slow.
    let patience = at_most(TOLD, site.deadline);
    let lodging = Lodging::of(host, &hierarchy, process.pid, patience)?;
    let books = site.open_books(hierarchy.clone())?;
    let place = books.place_of_command(lodging, &id, process, confined)?;
    let new_owner = NewOwner {
        id: &id,
        kind: OwnerKind::Process,
        names: &names,
        process,
        place,
    };
    let claim = books.give(&new_owner, &demand)?;
    // systemd can be slow: others get the lock meanwhile.
    drop(books);
    let (claim, procs_file) = match &new_owner.place {
        Confinement::Supervised {
            group,
            confined: true,
            ..
        } => {
            let mems = claim.mems.as_ref();
            let told = systemd::tell(host, group, &claim.cpus, mems, at_most(TOLD, site.deadline));
            let claim = match told {
                Ok(false) => claim,
                told => site
                    .open_books(hierarchy)?
                    .recheck_after_systemd(&claim, None, group, group, told)?,
            };
            (claim, None)
        }
        Confinement::Supervised { .. } => (claim, None),
        place => (claim, Some(place.group().procs_file())),
    };
    Ok(CommandPlace {
        cpus: claim.cpus.clone(),
        lists: claim.lists.clone(),
        procs_file,
        began: site.read_command(&claim, None),
        claim,
    })
}

/// Where the group of a command can be.
#[derive(Debug)]
pub(crate) enum Lodging {
    /// In our own group. It is that of a unit, our supervisor, which nobody else is in; so the
    /// unit's limits and its kill reach the command.
    Supervisors(Group),
    /// Below the unit's group, which the unit delegates to us.
    Below(Group),
    /// Elsewhere, in a group that we make.
    OfOurs,
}

impl Lodging {
    /// On version 1 supervisors know nothing of cpusets; a user's own manager would undo our
    /// changes.
    fn of(host: &Host, hierarchy: &Hierarchy, pid: i32, patience: Duration) -> Result<Lodging> {
        let own = hierarchy.group_of(host, pid)?;
        let may_be = |group: &Group| {
            group.version() == Version::V2
                && group.parent().is_some()
                && !systemd::is_of_user(group)
        };
        let Some(group) = own.filter(may_be) else {
            return Ok(Lodging::OfOurs);
        };
        if !group.is_of(pid)? {
            return Ok(Lodging::OfOurs);
        }
        Ok(match systemd::is_delegated(host, &group, patience)? {
            true => Lodging::Below(group),
            false => Lodging::Supervisors(group),
        })
    }
}

impl CommandPlace {
    /// Its id in the ledger.
    pub fn id(&self) -> &str {
        &self.claim.id
    }

    /// Records the command's process beside our own, so that it owns the CPUs if we are killed.
    ///
    /// Waits for the lock only a moment: the command's group tells whose it is in any case.
    pub fn record(&self, site: &Site, pid: i32) -> Result<()> {
        let site = Site {
            patience: site.patience.min(RECORD_PATIENCE),
            ..site.clone()
        };
        let Some(process) = Process::with_pid(&site.host, pid)? else {
            return Ok(());
        };
        let books = site.open_books(cpuset::hierarchy(&site.host)?)?;
        let Some(mut claim) = books.current(&self.claim)? else {
            return Ok(());
        };
        claim.processes.push(process);
        books.ledger.write(&claim)?;
        books.record_instead_of(&[], &claim)
    }

    /// Ends the claim of a command that has ended; its remaining processes keep the CPUs.
    pub fn end(self, site: &Site) -> Result<()> {
        site.keep_end_of_command(&self.claim, self.began.as_ref());
        let books = site.open_books(cpuset::hierarchy(&site.host)?)?;
        let done = self.end_in(&books);
        site.close(books);
        done
    }

    fn end_in(&self, books: &Books<'_>) -> Result<()> {
        let Some(claim) = books.current(&self.claim)? else {
            return match self.claim.is_supervised() {
                true => books.restore_released(&self.claim),
                false => Ok(()),
            };
        };
        if claim.is_supervised() {
            return books.end_supervised(&claim);
        }
        let mut rest = claim.clone();
        rest.processes.retain(|process| *process != claim.owner);
        if books.life_of(&rest)? == Life::Gone && books.free_dead(&claim)? == Fate::Freed {
            return Ok(());
        }
        books.change_tasks(&claim, &[claim.owner.pid], &[])?;
        books.ledger.write(&rest)?;
        books.free_or_refresh(&rest).map(drop)
    }
}

impl Books<'_> {
    /// The place of a command. A unit that somebody entered since `lodging` was found is not used.
    pub(crate) fn place_of_command(
        &self,
        lodging: Lodging,
        id: &str,
        process: Process,
        confined: bool,
    ) -> Result<Confinement> {
        let pid = process.pid;
        match lodging {
            Lodging::OfOurs => {
                let group = self.new_group(id, process)?;
                Ok(Confinement::Entered { group, confined })
            }
            Lodging::Below(unit) => {
                // A group that has processes cannot give controllers to those below it (kernel:
                // cgroup-v2.rst, "No Internal Process Constraint").
                let supervisor = unit.child(SUPERVISOR);
                supervisor.make()?;
                supervisor.adopt(pid)?;
                let group = unit.child(&format!("{id}-{}-{}", pid, process.start));
                Ok(Confinement::Entered { group, confined })
            }
            // Somebody entered the unit's group while the lock was waited for.
            Lodging::Supervisors(group) if !group.is_of(pid)? => {
                let group = self.new_group(id, process)?;
                Ok(Confinement::Entered { group, confined })
            }
            Lodging::Supervisors(group) => {
                let before = self.evict_stale_from_unit(&group, process)?;
                let settings = systemd::settings(self.host, &group)?;
                Ok(Confinement::Supervised {
                    group,
                    before,
                    settings,
                    confined,
                })
            }
        }
    }

    /// Frees the claims that killed `isolate`s left on a unit: the unit was started anew, and
    /// nobody else is in its group. Returns the masks that the unit has without us.
    pub(crate) fn evict_stale_from_unit(&self, group: &Group, process: Process) -> Result<Masks> {
        let found = cpuset::masks(group)?.unwrap_or_default();
        let now: CpuSet = found.cpus.parse()?;
        let mut before = found;
        for claim in self.claims_on_unit(group, &now)? {
            // A process of the earlier command that left the unit's group still runs on those CPUs.
            if claim.owner == process || self.life_of(&claim)? == Life::Recorded {
                continue;
            }
            // Any other mask was set by an operator since.
            let is_narrowed = !now.is_empty() && now.is_subset(&claim.cpus);
            if let Some(claimed) = claim.confining_group().filter(|_| is_narrowed) {
                before = Masks {
                    cpus: claimed.before.cpus.clone(),
                    mems: match claim.mems.is_some() {
                        true => claimed.before.mems.clone(),
                        false => before.mems,
                    },
                };
            }
            self.evict(&claim)?;
        }
        Ok(before)
    }

    /// The claims of commands in a unit: the one on its group; those on an earlier group of this
    /// path whose CPUs systemd kept and gave to the new one; and those of this path that were freed
    /// by force, of which systemd may still know.
    pub(crate) fn claims_on_unit(&self, group: &Group, cpus: &CpuSet) -> Result<Vec<Claim>> {
        let mut entries = Vec::new();
        let on_group = group
            .inode()?
            .and_then(|inode| self.ledger.on_cgroup(inode));
        if let Some(Entry::Unreadable(one)) = on_group {
            bail!(one.of_a_group().refusal());
        }
        entries.extend(on_group);
        for list in self.ledger.lists()? {
            let is_among = |list: CpuSet| list.is_subset(cpus);
            if list.parse().is_ok_and(is_among) {
                entries.extend(self.ledger.on_list(&list)?);
            }
        }
        // No list leads to a claim that was freed by force.
        let ids = self.ledger.ids()?.into_iter();
        for id in ids.filter(|id| id.starts_with(COMMAND)) {
            let of_id = self.ledger.of_id(&id)?.into_iter();
            entries.extend(
                of_id.filter(|entry| entry.claim().is_some_and(|claim| claim.lists.is_empty())),
            );
        }
        let mut claims: Vec<Claim> = Vec::new();
        for entry in entries {
            match entry {
                Entry::Claim(claim) => {
                    let path = claim.cgroup.as_ref().map(|claimed| claimed.path.as_str());
                    let is_known = claims.iter().any(|other| other.owner == claim.owner);
                    if claim.is_supervised() && path == Some(group.path()) && !is_known {
                        claims.push(*claim);
                    }
                }
                Entry::Unreadable(one) => log::warn!("{one}"),
            }
        }
        claims.retain(|claim| claim.boot_id == self.boot_id);
        Ok(claims)
    }

    /// Ends a command in its supervisor's group, which we are in as well.
    fn end_supervised(&self, claim: &Claim) -> Result<()> {
        let Some((group, _)) = self.group_of(claim)? else {
            return self.evict(claim);
        };
        let others = group.all_pids()?.into_iter();
        let mut others = others.filter(|pid| *pid != claim.owner.pid);
        let survivor = others.find_map(|pid| Process::with_pid(self.host, pid).transpose());
        let Some(survivor) = survivor.transpose()? else {
            return self.evict(claim);
        };
        let mut rest = claim.clone();
        rest.processes = vec![survivor];
        self.ledger.write(&rest)?;
        self.record_instead_of(&claim.pids(), &rest)
    }

    /// The claim as it is now; `None` if it was released by force since.
    pub(crate) fn current(&self, claim: &Claim) -> Result<Option<Claim>> {
        match self.ledger.current(claim) {
            None => Ok(None),
            Some(Entry::Claim(claim)) => Ok(Some(*claim)),
            Some(Entry::Unreadable(one)) => bail!("read {}: {}", one.path.display(), one.reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    #[test]
    fn a_command_is_lodged_with_a_supervisor_that_nobody_else_uses_and_we_can_speak_to() {
        for (path, processes, is_supervisors) in [
            ("/system.slice/a.service", "77\n", true),
            ("/system.slice/a.service", "77\n78\n", false),
            (
                "/user.slice/user-1.slice/user@1.service/app.slice/a.service",
                "77\n",
                false,
            ),
            ("/", "77\n", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let put = |path: String, content: &str| {
                let path = dir.path().join(path);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                replace(&path, content.as_bytes(), 0o644, Durability::Crash).unwrap();
            };
            let mount = "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
            put("proc/1/mountinfo".into(), mount);
            put("proc/77/cgroup".into(), &format!("0::{path}\n"));
            put(format!("sys/fs/cgroup{path}/cgroup.procs"), processes);
            let host = Host::new(dir.path());
            let hierarchy = cpuset::hierarchy(&host).unwrap();
            let lodging = Lodging::of(&host, &hierarchy, 77, Duration::ZERO).unwrap();
            let found = matches!(lodging, Lodging::Supervisors(group) if group.path() == path);
            assert_eq!(found, is_supervisors, "{path} {processes:?}");
        }
    }
}
