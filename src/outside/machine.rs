//! The machine's records: read as they are, or held under their lock and written.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result};

use super::Outside;
use super::converge::{self, Seen, Write};
use super::irqbalance;
use super::irqs;
use super::knobs::{self, Knob, LeftToIrqs, Situation, Turned};
use super::obstacle::{self, Obstacle};
use super::power;
use super::records::{Lifted, LimitedGroup, Owner, Reading, Records, Target, Tuned};
use crate::cgroup::systemd::{Limit, NO_LIMIT};
use crate::cgroup::{Group, Hierarchy, Mounts, cpu, partition};
use crate::cpulist::CpuSet;
use crate::files::{self, Durability};
use crate::host::Host;
use crate::limits;
use crate::process;
use crate::refusal::Refusal;
use crate::text::Shown;
use crate::topology;

/// The machine's records while their lock is held.
pub(super) struct Machine<'a> {
    host: &'a Host,
    hierarchy: &'a Hierarchy,
    /// How long systemd may take.
    patience: Duration,
    pub(super) records: Records,
    /// Recorded owners whose group was gone when the records were read.
    gone: Vec<Owner>,
    /// The text of the records' file; `None` where there is no file.
    written: Option<String>,
    /// What irqbalance has said, once it was asked.
    banned: OnceCell<Reading>,
    // Closing the file unlocks it.
    _lock: File,
}

/// The directory of this room's files, the same for all pool directories.
pub(super) fn directory(host: &Host) -> PathBuf {
    host.machine_dir()
}

pub(super) fn records_path(host: &Host) -> PathBuf {
    directory(host).join("changes")
}

pub(super) fn ensure_directory(host: &Host) -> Result<()> {
    let path = directory(host);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
    made.with_context(|| format!("make {}", path.display()))?;
    files::ensure_trusted_way(&path, || host.unknown_root())
}

/// Reads the records without the lock; others may change them meanwhile.
///
/// # Errors
/// The records cannot be read.
pub(super) fn read(host: &Host) -> Result<Records> {
    let boot_id = process::boot_id(host)?;
    let path = records_path(host);
    parsed(
        &path,
        files::read_text_if_there(&path)?.as_deref(),
        &boot_id,
    )
}

fn parsed(path: &Path, text: Option<&str>, boot_id: &str) -> Result<Records> {
    match text {
        Some(text) => {
            Records::parse(text, boot_id).with_context(|| format!("read {}", path.display()))
        }
        None => Ok(Records::none(boot_id)),
    }
}

/// A write that failed, or a file that could not be read and so was not written.
pub(super) struct Failure {
    /// The path of the file's group.
    pub(super) group: String,
    pub(super) error: Error,
}

/// What of the machine's own could not be set, or put back.
pub(super) struct Unset {
    pub(super) knob: Knob,
    pub(super) puts_back: bool,
    pub(super) error: Error,
}

impl<'a> Machine<'a> {
    /// Takes the lock, waiting for `outside.patience` at most, and reads the records. Where their
    /// file was removed, what the claims say is entered. Owners whose group is gone are dropped
    /// from them.
    pub(super) fn open(outside: &Outside<'a>) -> Result<Machine<'a>> {
        let Outside {
            host,
            hierarchy,
            patience,
            claims,
        } = *outside;
        ensure_directory(host)?;
        let path = directory(host).join("lock");
        let lock = files::open_or_make_regular(&path, 0o600)?;
        files::lock_within(&lock, patience).map_err(|error| {
            Error::new(error).context(Refusal::new(
                format!("lock {}", path.display()),
                "another start, or `pinfold reconcile`, takes long: do it again",
            ))
        })?;
        let path = records_path(host);
        let boot_id = process::boot_id(host)?;
        let written = files::read_text_if_there(&path)?;
        let records = parsed(&path, written.as_deref(), &boot_id)?;
        let mut machine = Machine {
            host,
            hierarchy,
            patience,
            records,
            gone: Vec::new(),
            written,
            banned: OnceCell::new(),
            _lock: lock,
        };
        let is_lost = machine.written.is_none();
        if let Some(claims) = claims.filter(|_| is_lost) {
            // Of all at once: the records that are written next say nothing of the others.
            for owner in claims.isolated()? {
                let (seen, _) = machine.look_at(&owner)?;
                converge::enter_lost(&mut machine.records, &owner, &seen);
                machine.records.owners.push(owner);
            }
        }
        let mut living = Vec::new();
        for owner in std::mem::take(&mut machine.records.owners) {
            match hierarchy.group(&owner.group)?.inode()? == Some(owner.inode) {
                true => living.push(owner),
                false => machine.gone.push(owner),
            }
        }
        machine.records.owners = living;
        let mut living = Vec::new();
        for tuned in std::mem::take(&mut machine.records.tuned) {
            if hierarchy.group(&tuned.group)?.inode()? == Some(tuned.inode) {
                living.push(tuned);
            }
        }
        machine.records.tuned = living;
        if is_lost {
            machine.save()?;
        }
        Ok(machine)
    }

    /// The paths of the groups that were changed for the owner with this group inode, including an
    /// owner whose group is gone, and one that was forgotten while a change could not be undone.
    ///
    /// # Errors
    /// A group cannot be looked at.
    pub(super) fn groups_of(&self, inode: u64) -> Result<Vec<String>> {
        let owners = self.records.owners.iter().chain(&self.gone);
        let owners = owners.filter(|owner| owner.inode == inode);
        let groups = owners.flat_map(|owner| owner.above.iter().chain([&owner.group]).cloned());
        let mut groups: Vec<String> = groups.collect();
        for change in &self.records.changes {
            let group = self.hierarchy.group(change.target.group())?;
            if group.inode()? == Some(inode) {
                let above = partition::ancestors(&group);
                let all = above.iter().chain([&group]);
                groups.extend(all.map(|group| group.path().to_owned()));
            }
        }
        Ok(groups)
    }

    /// Is everybody else kept off the owner's CPUs? CPUs of it that are offline do not count: its
    /// partition stays valid without them, and has them again once they are online.
    pub(super) fn keeps_off(&self, owner: &Owner) -> Result<bool> {
        let group = self.hierarchy.group(&owner.group)?;
        let cpus = owner.cpus.intersection(&topology::online(self.host)?);
        partition::stands(&group, owner.kind.word(), &cpus)
    }

    /// Enters what was changed for an owner whose claim says that something was, if there is no
    /// record of it, and its group is as we leave it: the records' file was removed, and another
    /// pool directory's program has made a new one.
    ///
    /// # Errors
    /// It cannot be told what was changed.
    pub(super) fn enter_lost(&mut self, owner: &Owner) -> Result<()> {
        let mut known = self.records.owners.iter().chain(&self.gone);
        if known.any(|known| known.inode == owner.inode) {
            return Ok(());
        }
        let (seen, is_left) = self.look_at(owner)?;
        if is_left {
            converge::enter_lost(&mut self.records, owner, &seen);
        }
        Ok(())
    }

    /// What an owner's files hold, and whether its own group is as we leave it.
    fn look_at(&self, owner: &Owner) -> Result<(Seen, bool)> {
        let is_there = self.hierarchy.group(&owner.group)?.inode()? == Some(owner.inode);
        let mut seen = Seen::new();
        let mut is_left = false;
        for target in converge::targets_of(owner) {
            // A later group of the same path is another's.
            if target.group() == owner.group && !is_there {
                continue;
            }
            let is_recorded = self.records.changes.iter().any(|one| one.target == target);
            let now = match self.now(&target) {
                Err(_) if is_recorded => Reading::Unread,
                now => now?,
            };
            if let (true, Reading::Holds(text)) = (target.group() == owner.group, &now) {
                is_left |= match target {
                    Target::Exclusive(_) => text.parse() == Ok(owner.cpus.clone()),
                    Target::Partition(_) => partition::kind_in(text) == owner.kind.word(),
                };
            }
            seen.insert(target, now);
        }
        Ok((seen, is_left))
    }

    pub(super) fn forget(&mut self, is_over: impl Fn(&Owner) -> bool) {
        self.records.owners.retain(|owner| !is_over(owner));
    }

    pub(super) fn forget_tuned(&mut self, is_over: impl Fn(&Tuned) -> bool) {
        self.records.tuned.retain(|tuned| !is_over(tuned));
    }

    /// Records what an owner wants. One that is known keeps its place: who came first counts.
    pub(super) fn note_tuned(&mut self, tuned: Tuned) {
        let mut known = self.records.tuned.iter_mut();
        match known.find(|known| known.group == tuned.group) {
            Some(known) => *known = tuned,
            None => self.records.tuned.push(tuned),
        }
    }

    /// What is in the way of a partition for `owner`, as far as it can be told before a write.
    pub(super) fn obstacle(&self, group: &Group, owner: &Owner) -> Result<Option<Obstacle>> {
        let others = self.records.owners.iter();
        let others = others.filter(|other| other.group != owner.group);
        let kept = others.map(|other| &other.cpus).collect();
        let asked = obstacle::Asked {
            group,
            cpus: &owner.cpus,
            kind: owner.kind,
            kept: &kept,
        };
        obstacle::before(self.host, &asked)
    }

    /// Is the owner's partition broken, and can it be made again because nothing is in its way? Who
    /// lacks the capability would only write [`partition::MEMBER`], and leave it so.
    pub(super) fn may_heal(&self, owner: &Owner) -> Result<bool> {
        let group = self.hierarchy.group(&owner.group)?;
        if self.keeps_off(owner)? || !limits::may_be_admin()? {
            return Ok(false);
        }
        Ok(self.obstacle(&group, owner)?.is_none()
            && obstacle::in_the_way(self.host, &group, &owner.cpus)?.is_none())
    }

    /// Writes what the live owners want; returns what failed. A partition is made or healed only
    /// for the owners that `makes` accepts.
    ///
    /// # Errors
    /// The records cannot be written. If that happens before the first write, nothing is changed.
    pub(super) fn converge(&mut self, makes: impl Fn(&Owner) -> bool) -> Result<Vec<Failure>> {
        let mut failed = Vec::new();
        let plan = converge::plan(&self.records, &self.look(&mut failed), &makes);
        for Write { target, value } in &plan.foreign {
            log::warn!(
                "{target:?} holds {} and not what it was given: it is left as it is",
                Shown(value)
            );
        }
        self.records.changes = plan.changes;
        self.save()?;
        failed.extend(self.carry_out(&plan.writes));
        self.records.changes = converge::still_changed(&self.records, &self.look(&mut failed));
        self.save()?;
        Ok(failed)
    }

    /// The groups where something is left that no recorded owner wants, or may be.
    pub(super) fn left_over(&self) -> BTreeSet<String> {
        converge::left_over(&self.records, &self.look(&mut Vec::new()))
    }

    /// Reads all that is changed or has to be. What cannot be read is added to `failed`, once for
    /// each group.
    fn look(&self, failed: &mut Vec<Failure>) -> Seen {
        let mut seen = Seen::new();
        for target in converge::targets(&self.records) {
            let now = self.now(&target).unwrap_or_else(|error| {
                let group = target.group().to_owned();
                if !failed.iter().any(|known| known.group == group) {
                    failed.push(Failure { group, error });
                }
                Reading::Unread
            });
            seen.insert(target, now);
        }
        seen
    }

    /// Sets what the machine's live owners want, and puts back what none of them wants any more;
    /// returns what could not be written. What others have set since is changed for new owners
    /// alone.
    ///
    /// # Errors
    /// The records cannot be written: then nothing is changed.
    pub(super) fn tune(&mut self, is_new: impl Fn(&Tuned) -> bool) -> Result<Vec<Unset>> {
        let mut failed = Vec::new();
        let Records {
            tuned,
            turned,
            lifted,
            ..
        } = &self.records;
        if tuned.is_empty() && turned.is_empty() && lifted.is_empty() {
            return Ok(failed);
        }
        let online = topology::online(self.host)?;
        let nodes = topology::node_cpus(self.host, &online);
        // Interrupts to come first: those that come meanwhile are found among the others.
        for is_first in [true, false] {
            let there = self.irqs_that_matter()?;
            let knobs = match is_first {
                true => BTreeSet::from([Knob::NewIrqs]),
                false => self.knobs(&there)?,
            };
            let mut seen = Vec::new();
            for knob in knobs {
                match self.value(&knob, &online) {
                    Ok(Reading::Holds(now)) => seen.push((knob, now)),
                    Ok(Reading::Gone | Reading::Unread) => {}
                    Err(error) => log::warn!("{error:#}"),
                }
            }
            self.records.note_irqs(there);
            let situation = Situation {
                records: &self.records,
                online: &online,
                nodes: &nodes,
                is_new: &is_new,
            };
            let plan = situation.plan(&seen);
            for (knob, value) in &plan.foreign {
                if let Ok(Some(path)) = self.path(knob, &online) {
                    log::warn!(
                        "{} holds {} and not what it was given: it is left as it is",
                        path.display(),
                        Shown(value)
                    );
                }
            }
            self.records.turned = plan.turned;
            if !plan.writes.is_empty() {
                self.save()?;
            }
            for write in plan.writes {
                let unset = self.turn(write, &online);
                if unset
                    .as_ref()
                    .is_some_and(|unset| unset.knob == Knob::Banned)
                {
                    let ban = |turned: &&mut Turned| turned.knob == Knob::Banned;
                    let ban = self.records.turned.iter_mut().find(ban);
                    ban.into_iter().for_each(Turned::was_not_told);
                }
                failed.extend(unset);
            }
        }
        let situation = Situation {
            records: &self.records,
            online: &online,
            nodes: &nodes,
            is_new: &is_new,
        };
        let mut now = BTreeMap::new();
        for Turned { knob, .. } in &self.records.turned {
            let value = self.value(knob, &online).unwrap_or_else(|error| {
                // It may not be as it was found, and nobody else would tell.
                if !situation.is_wanted(knob) && !failed.iter().any(|one| one.knob == *knob) {
                    failed.push(Unset {
                        knob: knob.clone(),
                        puts_back: true,
                        error,
                    });
                }
                Reading::Unread
            });
            now.insert(knob.clone(), value);
        }
        self.records.turned = situation.still_turned(&|knob| now[knob].clone());
        self.records.note_irqs(self.irqs_that_matter()?);
        failed.extend(self.limit_again());
        self.save()?;
        Ok(failed)
    }

    /// Tells systemd the limits of CPU time again of units that nobody wants without one any more;
    /// returns those of which it could not be told, and still has to be.
    fn limit_again(&mut self) -> Vec<Unset> {
        let lifted = std::mem::take(&mut self.records.lifted).into_iter();
        let (mut kept, over): (Vec<_>, Vec<_>) =
            lifted.partition(|lifted| self.records.lifts(&lifted.group));
        let mut failed = Vec::new();
        for one in over {
            if let Err(error) = self.tell_limit(&one) {
                failed.push(Unset {
                    knob: Knob::Quota(one.group.clone()),
                    puts_back: true,
                    error,
                });
                kept.push(one);
            }
        }
        self.records.lifted = kept;
        failed
    }

    /// Tells systemd what it knew of a unit's limit. A unit that is gone needs none, and what
    /// somebody else has told it since stays.
    fn tell_limit(&self, lifted: &Lifted) -> Result<()> {
        let Some(group) = self.limited(&lifted.group)? else {
            return Ok(());
        };
        if lifted.found == NO_LIMIT {
            return Ok(());
        }
        match Limit::of(self.host, &group, self.patience)? {
            Some(mut limit) if limit.known == NO_LIMIT => limit.set(lifted.found),
            _ => Ok(()),
        }
    }

    /// Records what systemd knows of the limits of groups, before it is told that they have none.
    /// Of those that nobody wants without a limit any more, nothing is recorded.
    ///
    /// # Errors
    /// The records cannot be written.
    pub(super) fn note_limits(&mut self, found: Vec<Lifted>) -> Result<()> {
        for one in found {
            let is_known = self.records.lifted_of(&one.group).is_some();
            if !is_known && self.records.lifts(&one.group) {
                self.records.lifted.push(one);
            }
        }
        self.save()
    }

    /// Records that systemd knows a group to have no limit. Is the group on record still?
    ///
    /// # Errors
    /// The records cannot be written.
    pub(super) fn note_told(&mut self, group: &LimitedGroup) -> Result<bool> {
        let mut lifted = self.records.lifted.iter_mut();
        let Some(lifted) = lifted.find(|lifted| lifted.group == *group) else {
            return Ok(false);
        };
        lifted.is_told = true;
        self.save()?;
        Ok(true)
    }

    /// None where interrupts are nobody's matter.
    fn irqs_that_matter(&self) -> Result<Vec<u32>> {
        let is_irq = |knob: &Knob| matches!(knob, Knob::NewIrqs | Knob::Banned | Knob::Irq(_));
        let Records { tuned, turned, .. } = &self.records;
        match tuned.iter().any(|tuned| tuned.tuning.irqs_away)
            || turned.iter().any(|turned| is_irq(&turned.knob))
        {
            true => irqs::numbers(self.host),
            false => Ok(Vec::new()),
        }
    }

    /// All but that of interrupts to come.
    fn knobs(&self, irqs: &[u32]) -> Result<BTreeSet<Knob>> {
        let irqs = irqs.iter().map(|number| Knob::Irq(*number));
        let turned = self.records.turned.iter();
        let turned = turned.map(|turned| turned.knob.clone());
        let mut knobs: BTreeSet<Knob> = irqs.chain(turned).collect();
        for tuned in &self.records.tuned {
            knobs.extend(tuned.tuning.irqs_away.then_some(Knob::Banned));
            knobs.extend(power::knobs_of(self.host, tuned)?);
            if tuned.tuning.quota_lifted {
                knobs.extend(tuned.limited.iter().cloned().map(Knob::Quota));
            }
        }
        knobs.remove(&Knob::NewIrqs);
        Ok(knobs)
    }

    fn turn(&self, write: knobs::Write, online: &CpuSet) -> Option<Unset> {
        if write.knob == Knob::Banned {
            let cpus = CpuSet::from_hex_mask(&write.value)?;
            let error = irqbalance::ban(self.host, &cpus).err()?;
            return Some(Unset {
                error,
                knob: write.knob,
                puts_back: write.puts_back,
            });
        }
        let put = || -> Result<()> {
            let Some(path) = self.path(&write.knob, online)? else {
                return Ok(());
            };
            match files::write_kernel(&path, &format!("{}\n", write.value)) {
                // A device went, and its interrupt.
                Err(error) if files::is_gone(&error) => Ok(()),
                written => {
                    written.with_context(|| format!("write {} to {}", write.value, path.display()))
                }
            }
        };
        let error = put().err()?;
        Some(Unset {
            error,
            knob: write.knob,
            puts_back: write.puts_back,
        })
    }

    /// The file of one; `None` where it is of a group that is gone. Another of the same path is
    /// another container's.
    ///
    /// # Errors
    /// The group cannot be looked at.
    fn path(&self, knob: &Knob, online: &CpuSet) -> Result<Option<PathBuf>> {
        let irqs = self.host.irqs();
        Ok(Some(match knob {
            Knob::Quota(group) => match self.limited(group)? {
                Some(group) => cpu::quota_file(&group),
                None => return Ok(None),
            },
            Knob::NewIrqs => irqs.join("default_smp_affinity"),
            Knob::Banned => self.host.irqbalance(),
            Knob::Irq(number) => irqs.join(number.to_string()).join(irqs::CPUS),
            Knob::Governor(cpus) => {
                let cpus: CpuSet = cpus.parse().unwrap_or_default();
                power::governor_file(self.host, &cpus, online)
            }
            Knob::Latency(cpu) => power::latency_file(self.host, *cpu),
        }))
    }

    /// A group of the CPU controller, if it is still the same.
    fn limited(&self, limited: &LimitedGroup) -> Result<Option<Group>> {
        let hierarchy = cpu::hierarchy(&Mounts::read(self.host)?)?;
        limited.group_in(&hierarchy)
    }

    /// What one holds. One without a text is not to be written, and nothing tells that it is as it
    /// was found.
    ///
    /// # Errors
    /// It cannot be read.
    fn value(&self, knob: &Knob, online: &CpuSet) -> Result<Reading> {
        if *knob == Knob::Banned {
            return Ok(self.banned());
        }
        let Some(path) = self.path(knob, online)? else {
            return Ok(Reading::Gone);
        };
        let Some(text) = files::read_record_if_there(&path)? else {
            return Ok(Reading::Gone);
        };
        let line = text.lines().next().unwrap_or_default().trim();
        Ok(match line.is_empty() {
            true => Reading::Unread,
            false => Reading::Holds(line.to_owned()),
        })
    }

    /// What irqbalance bans, asked once: it shows later what it is told. Where it runs and does not
    /// answer, that is what it was told last.
    fn banned(&self) -> Reading {
        let asked = self.banned.get_or_init(|| {
            let asked = irqbalance::banned(self.host).map_err(|error| log::warn!("{error:#}"));
            match asked {
                Ok(Some(mask)) => Reading::Holds(mask),
                Ok(None) => Reading::Gone,
                Err(()) => {
                    let mut turned = self.records.turned.iter();
                    let told = turned.find(|turned| turned.knob == Knob::Banned);
                    let last = told.and_then(|told| told.ours.last());
                    last.map_or(Reading::Unread, |last| Reading::Holds(last.clone()))
                }
            }
        });
        asked.clone()
    }

    /// The owned CPUs that interrupts can still come to, though their owners want them away.
    ///
    /// # Errors
    /// Which CPUs are online cannot be read.
    pub(super) fn left_to_irqs(&self) -> Result<LeftToIrqs> {
        let mut turned = self.records.turned.iter();
        let found = match turned.find(|turned| turned.knob == Knob::Banned) {
            Some(turned) => Some(turned.found.clone()),
            None => match self.banned() {
                Reading::Holds(there) => Some(there),
                Reading::Gone | Reading::Unread => None,
            },
        };
        let there = found.and_then(|mask| CpuSet::from_hex_mask(&mask));
        let online = topology::online(self.host)?;
        Ok(LeftToIrqs::of(&self.records, &online, there.as_ref()))
    }

    /// Writes in order, and returns the writes that failed. Below a group whose write failed only
    /// `member` is still written: a partition made there would be invalid at once.
    fn carry_out(&self, writes: &[Write]) -> Vec<Failure> {
        let mut failed: Vec<Failure> = Vec::new();
        for Write { target, value } in writes {
            let group = target.group();
            let is_below = |above: &str| group == above || group.starts_with(&format!("{above}/"));
            if failed.iter().any(|above| is_below(&above.group)) && value != partition::MEMBER {
                continue;
            }
            if let Err(error) = self.put(target, value) {
                let group = group.to_owned();
                failed.push(Failure { group, error });
            }
        }
        failed
    }

    fn put(&self, target: &Target, value: &str) -> Result<()> {
        let group = self.hierarchy.group(target.group())?;
        match target {
            Target::Exclusive(_) => partition::set_exclusive(&group, value),
            Target::Partition(path) => {
                let mut owners = self.records.owners.iter();
                if let Some(owner) = owners.find(|owner| owner.group == *path) {
                    partition::set_mask(&group, &owner.cpus)?;
                }
                limits::as_admin(|| partition::set_kind(&group, value))
            }
        }
    }

    /// What a target holds.
    ///
    /// # Errors
    /// It cannot be read.
    fn now(&self, target: &Target) -> Result<Reading> {
        let group = self.hierarchy.group(target.group())?;
        let now = match target {
            Target::Exclusive(_) => partition::exclusive(&group),
            Target::Partition(_) => partition::state(&group),
        };
        Ok(now?.map_or(Reading::Gone, Reading::Holds))
    }

    /// Makes the records' file, if there is none: what is missing later was removed.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn begin(&mut self) -> Result<()> {
        match self.written {
            Some(_) => Ok(()),
            None => self.write(self.records.print()?),
        }
    }

    /// Writes the records, if they are others than the file has. Without anything to record none is
    /// made.
    fn save(&mut self) -> Result<()> {
        let text = self.records.print()?;
        let is_new = self.written.is_none() && self.records == Records::none(&self.records.boot_id);
        if is_new || self.written.as_ref() == Some(&text) {
            return Ok(());
        }
        self.write(text)
    }

    fn write(&mut self, text: String) -> Result<()> {
        files::replace(
            &records_path(self.host),
            text.as_bytes(),
            0o600,
            Durability::Crash,
        )?;
        self.written = Some(text);
        Ok(())
    }
}
