//! Changes to the machine outside of the owners' own masks: partitions, which keep everybody else
//! off an owner's CPUs, the exclusive CPUs that the groups above it need for that, the CPUs of
//! interrupts, limits of CPU time, governors and wake-up latencies. A change is recorded before it
//! is made, in one file for all pool directories of the machine. What has to be changed follows
//! from the live owners alone, so the next program finishes or undoes what a killed one left half
//! done.
//!
//! The machine's lock is taken under a pool directory's lock, never the other way round.

mod confine;
mod converge;
mod irqbalance;
mod irqs;
mod keeping;
mod knobs;
mod machine;
mod obstacle;
mod power;
mod records;
mod units;
mod watch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub use confine::UnitCpus;
pub use irqbalance::banned as irqs_banned;
pub use irqs::on as irqs_on;
pub use keeping::{CpusOfMachine, Keeping, is_kept_above, is_kept_by_a_slice, suits, why_by_mask};
pub use knobs::leaves_few;
pub use obstacle::{
    FEW_FOR_IRQBALANCE, Obstacle, STAYING, broken_by_siblings, lost_cpus, named as irqs_named,
    no_own_limit, none_left_for_others, not_confined, obstacle_here, obstacle_to_all,
    of_another_tool, pool_at_boot,
};
pub use power::{Astray, astray, possible};
pub use records::{LimitedGroup, Owner, Tuned};
pub use units::{are_confined, away_of, confine, have_we_confined, kept_off};
pub use watch::{BrokenPartition, PartitionWatch};

use crate::cgroup::systemd::{self, Limit, NO_LIMIT};
use crate::cgroup::{Group, Hierarchy, Mounts, cpu, partition};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::limits;
use crate::refusal::Refusal;
use crate::text::Shown;
use crate::topology;
use knobs::{Knob, LeftToIrqs};
use machine::{Failure, Machine, Unset};
use records::{Lifted, Target};

/// What [`Outside::converge`] could not do.
#[derive(Debug, Default)]
pub struct Converged {
    /// The problems that remain.
    pub problems: Vec<Refusal>,
    /// The partitions among them that do not stand.
    pub broken: Vec<BrokenPartition>,
}

/// The claims of a pool directory, which say what was changed where the machine's records do not.
pub trait Claimed {
    /// The owners of this boot whose claims say that others are kept off their CPUs.
    ///
    /// # Errors
    /// The claims cannot be read.
    fn isolated(&self) -> Result<Vec<Owner>>;
}

/// The machine, and how long to wait for others who change it.
#[derive(Clone, Copy)]
pub struct Outside<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The hierarchy of the cpuset controller.
    pub hierarchy: &'a Hierarchy,
    /// The longest wait for the machine's lock.
    pub patience: Duration,
    /// The claims of the pool directory for which the machine is changed. `None` where its lock is
    /// not held: then records are changed, but none begun.
    pub claims: Option<&'a dyn Claimed>,
}

impl Outside<'_> {
    /// Keeps everybody else off the owner's CPUs; nothing is done where they are kept off already.
    /// Whether a partition above its group does that ([`is_kept_above`]) was looked at before.
    /// Returns the obstacle if that is impossible; then nothing stays changed.
    ///
    /// `claim` has the owner's claim say so, and returns whether it did before: then a record of it
    /// may be lost. It is called once there are records, even of nothing, and before anything is
    /// changed: a claim that says so beside no records tells that these were removed.
    ///
    /// # Errors
    /// The records or a group cannot be read or written.
    pub fn keep_off(
        &self,
        owner: &Owner,
        claim: impl FnOnce() -> Result<bool>,
    ) -> Result<Option<Obstacle>> {
        let group = self.hierarchy.group(&owner.group)?;
        let mut machine = match Machine::open(self) {
            Err(error) if files::is_denied(&error) => {
                return Ok(Some(obstacle::denied(&error)));
            }
            opened => opened?,
        };
        machine.begin()?;
        if claim()? {
            machine.enter_lost(owner)?;
        }
        let is_known = machine.records.owners.contains(owner);
        if is_known && partition::stands(&group, owner.kind.word(), &owner.cpus)? {
            return Ok(None);
        }
        if let Some(obstacle) = machine.obstacle(&group, owner)? {
            return give_up(machine, owner, obstacle).map(Some);
        }
        machine
            .records
            .owners
            .retain(|other| other.group != owner.group);
        machine.records.owners.push(owner.clone());
        let failed = machine.converge(|other| other.group == owner.group)?;
        // A write that failed at another owner's group does not concern this owner.
        if partition::stands(&group, owner.kind.word(), &owner.cpus)? {
            warn_of(&failed);
            return Ok(None);
        }
        let obstacle = obstacle::of_kernel(self.host, &group, owner, &failed)?;
        give_up(machine, owner, obstacle).map(Some)
    }

    /// Sets what an owner wants of the machine; done twice it is done once. What cannot be is told.
    ///
    /// # Errors
    /// The records cannot be read or written.
    pub fn tune(&self, tuned: &Tuned) -> Result<Vec<Obstacle>> {
        let (tuning, mut obstacles) = power::possible(self.host, &tuned.cpus, &tuned.tuning)?;
        obstacles.extend(self.quota_above(tuned)?);
        let tuned = &Tuned {
            tuning,
            ..tuned.clone()
        };
        let mut machine = match Machine::open(self) {
            Err(error) if files::is_denied(&error) => {
                return Ok(vec![obstacle::denied(&error)]);
            }
            opened => opened?,
        };
        machine.note_tuned(tuned.clone());
        let unset = machine.tune(|other| other == tuned)?;
        warn_of_old(&unset);
        if tuned.tuning.irqs_away {
            obstacles.extend(obstacle::left_to_irqs(&machine.left_to_irqs()?));
        }
        let mut staying = Vec::new();
        for one in unset.iter().filter(|one| !one.puts_back) {
            match one.knob {
                Knob::Irq(number) => staying.push(number),
                _ => obstacles.push(Obstacle::of(&one.error)),
            }
        }
        let mut irqs = Vec::new();
        if !staying.is_empty() {
            irqs = irqs::on(self.host, &tuned.cpus)?;
            irqs.retain(|irq| staying.contains(&irq.number));
        }
        if !irqs.is_empty() {
            obstacles.push(obstacle::irqs_stay(&irqs, &tuned.cpus));
        }
        Ok(obstacles)
    }

    /// Has systemd know that the limits of CPU time are lifted of the owner whose group has this
    /// inode: it would write them again. What it knew is recorded before. systemd can be slow, so
    /// that no lock is held meanwhile.
    ///
    /// # Errors
    /// systemd does not do it in time, or the records cannot be read or written.
    pub fn lift_in_systemd(&self, inode: u64, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        let records = machine::read(self.host)?;
        let Some(tuned) = records.tuned.iter().find(|tuned| tuned.inode == inode) else {
            return Ok(());
        };
        let hierarchy = cpu::hierarchy(&Mounts::read(self.host)?)?;
        let groups = tuned.limited.iter().filter_map(|limited| {
            let group = limited.group_in(&hierarchy).transpose()?;
            Some(group.map(|group| (limited, group)))
        });
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let mut limits = Vec::new();
        for (limited, group) in &groups {
            if let Some(limit) = Limit::of(self.host, group, left())? {
                limits.push((*limited, limit));
            }
        }
        if limits.is_empty() {
            return Ok(());
        }
        let found = limits.iter().map(|(group, limit)| Lifted {
            group: (*group).clone(),
            found: limit.known,
            is_told: false,
        });
        Machine::open(self)?.note_limits(found.collect())?;
        for (group, limit) in &mut limits {
            let found = limit.known;
            if found != NO_LIMIT {
                limit.set(NO_LIMIT)?;
            }
            // It may have been released meanwhile: who did saw the limit still there.
            if !Machine::open(self)?.note_told(group)? && found != NO_LIMIT {
                limit.set(found)?;
            }
        }
        Ok(())
    }

    /// Does systemd have to be told of the limits of the owner whose group has this inode? A start
    /// that was killed may not have done it.
    pub fn is_lift_untold(&self, inode: u64) -> bool {
        let untold = || -> Result<bool> {
            let records = machine::read(self.host)?;
            let hierarchy = cpu::hierarchy(&Mounts::read(self.host)?)?;
            let tuned = records.tuned.iter().filter(|tuned| tuned.inode == inode);
            for group in tuned.flat_map(|tuned| &tuned.limited) {
                let is_told = records.lifted_of(group).is_some_and(|one| one.is_told);
                let unit = hierarchy.group(&group.path)?;
                if !is_told && systemd::limited_unit(self.host, &unit)?.is_some() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        untold().unwrap_or(false)
    }

    /// The limit of a group above an owner's own, which is not ours to lift.
    fn quota_above(&self, tuned: &Tuned) -> Result<Option<Obstacle>> {
        let (true, Some(topmost)) = (tuned.tuning.quota_lifted, tuned.limited.last()) else {
            return Ok(None);
        };
        let hierarchy = cpu::hierarchy(&Mounts::read(self.host)?)?;
        let above = cpu::quota_above(&hierarchy.group(&topmost.path)?)?;
        Ok(above.map(|(path, text)| obstacle::quota_above(&path, &text)))
    }

    /// Undoes what was changed for the owner whose group has or had this inode, so that everybody
    /// can use its CPUs again, and what killed programs left. `said` is the owner as its claim
    /// has it, where that says that others are kept off: the machine's records may be lost.
    ///
    /// # Errors
    /// The records, or one of this owner's groups, cannot be read or written: what is changed there
    /// is still recorded.
    pub fn let_in(&self, inode: u64, said: Option<&Owner>) -> Result<()> {
        let is_in_use = is_in_use(self.host)?;
        if said.is_none() && !is_in_use {
            return Ok(());
        }
        let mut machine = match Machine::open(self) {
            Err(error) if !is_in_use && files::is_denied(&error) => return Ok(()),
            opened => opened?,
        };
        if let Some(owner) = said {
            machine.enter_lost(owner)?;
        }
        let own = machine.groups_of(inode)?;
        machine.forget(|owner| owner.inode == inode);
        machine.forget_tuned(|tuned| tuned.inode == inode);
        let failed = machine.converge(|_| false)?;
        let undone = own_failure(&machine, failed, &own);
        // What cannot be put back now is still recorded, and harms nobody who comes.
        match machine.tune(|_| false) {
            Ok(unset) => warn_of_old(&unset),
            Err(error) => log::warn!("{error:#}"),
        }
        undone
    }

    /// Undoes what killed programs left, and makes broken partitions again once nothing is in their
    /// way. Owners recorded with `run_dir` that have no claim there any more (`is_claimed`, asked
    /// with the inode of their group) are forgotten.
    ///
    /// # Errors
    /// The records cannot be read or written.
    pub fn converge(
        &self,
        run_dir: &std::path::Path,
        is_claimed: impl Fn(u64) -> bool,
    ) -> Result<Converged> {
        if !is_in_use(self.host)? {
            return Ok(Converged::default());
        }
        let mut machine = Machine::open(self)?;
        machine.forget(|owner| owner.run_dir == run_dir && !is_claimed(owner.inode));
        machine.forget_tuned(|tuned| tuned.run_dir == run_dir && !is_claimed(tuned.inode));
        let (mut problems, mut broken) = (Vec::new(), Vec::new());
        let mut healed = Vec::new();
        for owner in machine.records.owners.clone() {
            match machine.may_heal(&owner) {
                Ok(true) => healed.push(owner.group),
                Ok(false) => {}
                Err(error) => problems.push(Refusal::of(&error)),
            }
        }
        let failed = machine.converge(|owner| healed.contains(&owner.group))?;
        problems.extend(failed.iter().map(|failed| Refusal::of(&failed.error)));
        for owner in &machine.records.owners {
            match self.broken(&machine, owner) {
                Ok(None) => {}
                Ok(Some((partition, problem))) => {
                    broken.push(partition);
                    problems.push(problem);
                }
                // The rest is seen to all the same.
                Err(error) => problems.push(Refusal::of(&error)),
            }
        }
        match machine.tune(|_| false) {
            Ok(unset) => {
                let old = unset.into_iter().filter(|one| one.puts_back);
                problems.extend(old.map(|one| Refusal::of(&one.error)));
            }
            Err(error) => problems.push(Refusal::of(&error)),
        }
        Ok(Converged { problems, broken })
    }

    /// An owner's partition that does not stand, and why.
    fn broken(
        &self,
        machine: &Machine<'_>,
        owner: &Owner,
    ) -> Result<Option<(BrokenPartition, Refusal)>> {
        if machine.keeps_off(owner)? {
            return Ok(None);
        }
        let group = self.hierarchy.group(&owner.group)?;
        let what = match limits::may_be_admin()? {
            true => obstacle::of_kernel(self.host, &group, owner, &[])?,
            false => obstacle::not_permitted(),
        };
        let problem = Refusal::new(
            format!(
                "others can run on {} of {} again: {}",
                owner.cpus,
                Shown(&owner.group),
                what.what
            ),
            what.remedy,
        );
        let broken = BrokenPartition {
            group: owner.group.clone(),
            state: partition::state(&group)?.unwrap_or_default(),
        };
        Ok(Some((broken, problem)))
    }
}

/// Says what could not be put back.
fn warn_of_old(unset: &[Unset]) {
    let old = unset.iter().filter(|one| one.puts_back);
    old.for_each(|one| log::warn!("{:#}", one.error));
}

/// Forgets the owner, undoes what was changed for it, and returns the obstacle.
fn give_up(mut machine: Machine<'_>, owner: &Owner, obstacle: Obstacle) -> Result<Obstacle> {
    let own = machine.groups_of(owner.inode)?;
    machine.forget(|other| other.group == owner.group);
    let failed = machine.converge(|_| false)?;
    own_failure(&machine, failed, &own).map(|()| obstacle)
}

/// The first failure at one of the ended owner's groups (`own`) where something is left, as an
/// error. All others are logged only: they concern other owners, who have groups above in common
/// with it, and stay recorded.
fn own_failure(machine: &Machine<'_>, failed: Vec<Failure>, own: &[String]) -> Result<()> {
    if failed.is_empty() {
        return Ok(());
    }
    let left = machine.left_over();
    let (of_owner, of_others): (Vec<_>, Vec<_>) = failed
        .into_iter()
        .partition(|failed| own.contains(&failed.group) && left.contains(&failed.group));
    warn_of(&of_others);
    match of_owner.into_iter().next() {
        Some(failed) => Err(failed.error),
        None => Ok(()),
    }
}

fn warn_of(failed: &[Failure]) {
    failed.iter().for_each(|one| log::warn!("{:#}", one.error));
}

/// Describes the owner of a group, to be passed to [`Outside::keep_off`].
///
/// # Errors
/// The group is gone, or cannot be looked at.
pub fn owner_of(
    group: &Group,
    cpus: &CpuSet,
    kind: crate::isolation::Kind,
    run_dir: PathBuf,
) -> Result<Owner> {
    let inode = group.inode()?.context("the cgroup is gone")?;
    Ok(former_owner(group, inode, cpus, kind, run_dir))
}

/// The same of a group that had this inode, and may be gone: to be passed to [`Outside::let_in`].
pub fn former_owner(
    group: &Group,
    inode: u64,
    cpus: &CpuSet,
    kind: crate::isolation::Kind,
    run_dir: PathBuf,
) -> Owner {
    let above = partition::ancestors(group);
    Owner {
        group: group.path().to_owned(),
        inode,
        above: above.iter().map(|above| above.path().to_owned()).collect(),
        cpus: cpus.clone(),
        kind,
        run_dir,
    }
}

/// Those for whom something of the machine is set, as was recorded last; none where that cannot be
/// read.
pub fn tuned(host: &Host) -> Vec<Tuned> {
    let tuned = machine::read(host).map(|records| records.tuned);
    tuned.unwrap_or_default()
}

/// Can the records be read, by whoever may look at them? Takes no lock.
///
/// # Errors
/// They cannot: nothing is changed for an owner any more, and nothing put back.
pub fn ensure_readable(host: &Host) -> Result<()> {
    match machine::read(host) {
        Err(error) if !files::is_denied(&error) => Err(error),
        _ => Ok(()),
    }
}

/// The owned CPUs that interrupts are not kept away from, for no other CPU is left for them, and
/// what to say of that; `None` where there are none. Takes no lock.
///
/// # Errors
/// The records, or the CPUs that are online, cannot be read.
pub fn no_cpu_for_irqs(host: &Host) -> Result<Option<(CpuSet, Obstacle)>> {
    let records = machine::read(host)?;
    let left = LeftToIrqs::of(&records, &topology::online(host)?, None);
    let said = obstacle::left_to_irqs(&left).into_iter().next();
    Ok(said.map(|said| (left.by_all, said)))
}

/// The recorded owners that keep others off; none where the records cannot be read. Takes no lock.
pub fn owners(host: &Host) -> Vec<Owner> {
    let owners = machine::read(host).map(|records| records.owners);
    owners.unwrap_or_default()
}

/// The exclusive CPUs that a group has for owners alone, as was recorded last: not those that were
/// found there, and none where somebody else has written since, which is left as it is. None where
/// that cannot be read. Takes no lock.
pub fn exclusive_for_owners(host: &Host, group: &Group) -> CpuSet {
    let changes = machine::read(host).map(|records| records.changes);
    let mut changes = changes.unwrap_or_default().into_iter();
    let target = Target::Exclusive(group.path().to_owned());
    let change = changes.find(|change| change.target == target);
    let now = partition::exclusive(group).ok().flatten();
    let (Some(change), Some(now)) = (change, now) else {
        return CpuSet::new();
    };
    let cpus = |text: &str| text.parse::<CpuSet>().unwrap_or_default();
    let now = cpus(&now);
    match change.ours.iter().any(|ours| cpus(ours) == now) {
        true => now.difference(&cpus(&change.found)),
        false => CpuSet::new(),
    }
}

/// Is an owner recorded whose group has this inode? Where the records cannot be read one may be.
/// Whoever may not look at them keeps nobody off, as [`is_in_use`] says. Takes no lock.
pub fn may_be_owner(host: &Host, inode: u64) -> bool {
    match machine::read(host) {
        Ok(records) => records.owners.iter().any(|owner| owner.inode == inode),
        Err(error) => !files::is_denied(&error),
    }
}

/// Does any owner keep others off its CPUs? Where the records cannot be read one may. Whoever may
/// not look at them keeps nobody off, as [`is_in_use`] says. Takes no lock.
pub fn may_keep_off(host: &Host) -> bool {
    match machine::read(host) {
        Ok(records) => !records.owners.is_empty(),
        Err(error) => !files::is_denied(&error),
    }
}

/// All CPUs that recorded owners keep others off; none where the records cannot be read. Takes no
/// lock.
pub fn kept(host: &Host) -> CpuSet {
    let cpus = machine::read(host).map(|records| records.cpus());
    cpus.unwrap_or_default()
}

/// Was anything changed in this boot? If not, the lock need not be taken. Whoever may not look at
/// the records has changed nothing: podman without root, in a user namespace of its own.
fn is_in_use(host: &Host) -> Result<bool> {
    match files::entry_if_there(&machine::records_path(host)) {
        Err(error) if files::is_denied(&error) => Ok(false),
        found => Ok(found?.is_some()),
    }
}

/// How many sentences about one obstacle of the machine are remembered.
const REMEMBERED: usize = 64;

/// Shall this obstacle be logged? One that holds for the whole machine is news once in a boot, any
/// other each time. A file `told-<name>` has the check sums of the sentences that were logged: of
/// another pool it can be another sentence.
pub fn is_news(host: &Host, obstacle: &Obstacle) -> bool {
    let Some(name) = obstacle.of_machine else {
        return true;
    };
    let mark = machine::directory(host).join(format!("told-{name}"));
    let told = files::read_text_if_there(&mark).unwrap_or_else(|error| {
        log::debug!("{error:#}");
        None
    });
    let told = told.unwrap_or_default();
    let sum = format!("{:08x}", crc32fast::hash(obstacle.to_string().as_bytes()));
    if told.lines().any(|line| line == sum) {
        return false;
    }
    let mut sums: Vec<&str> = told.lines().collect();
    sums.push(&sum);
    let latest = sums.len().saturating_sub(REMEMBERED);
    let text = sums[latest..].join("\n");
    // An obstacle whose mark cannot be written is logged again.
    let noted = machine::ensure_directory(host)
        .and_then(|()| files::replace(&mark, text.as_bytes(), 0o600, files::Durability::Crash));
    if let Err(error) = noted {
        log::debug!("{error:#}");
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sentence_about_the_machine_is_news_once() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let of = |governor: &str| {
            let what = format!("CPU 2 has no governor {governor}, but schedutil");
            Obstacle::of_machine("no-such-governor", what, "say one of these")
        };
        for (obstacle, is_new) in [
            (of("performance"), true),
            (of("performance"), false),
            // Of another pool.
            (of("powersave"), true),
            (of("performance"), false),
            (of("powersave"), false),
        ] {
            assert_eq!(is_news(&host, &obstacle), is_new, "{obstacle}");
        }
        let each_time = Obstacle::of_owner("x", "y");
        assert!(is_news(&host, &each_time) && is_news(&host, &each_time));
        // What differs each time fills no disk.
        for number in 0..200 {
            assert!(is_news(&host, &of(&number.to_string())));
        }
        let text = files::read(&machine::directory(&host).join("told-no-such-governor")).unwrap();
        assert_eq!(text.lines().count(), REMEMBERED);
        assert!(!is_news(&host, &of("199")) && is_news(&host, &of("powersave")));
    }
}
