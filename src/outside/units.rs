//! The host's own units, kept on the CPUs that no exclusive pool has, by systemd. What was found is
//! recorded before it is changed, in a file of its own under a lock of its own: no start waits for
//! systemd's sake.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Error, Result};

use super::confine::{Confined, MachineCpus, SeenUnit, Setting, UnitCpus};
use super::machine::{directory, ensure_directory};
use crate::cgroup::systemd::{self, HostUnits};
use crate::cgroup::{cpuset, partition};
use crate::cpulist::CpuSet;
use crate::files::{self, Durability};
use crate::host::Host;
use crate::process;
use crate::refusal::Refusal;
use crate::text::Shown;
use crate::topology;

fn records_path(host: &Host) -> PathBuf {
    directory(host).join("units")
}

/// Is any unit of the host kept on some CPUs, or about to be?
///
/// # Errors
/// That cannot be looked at.
pub fn are_confined(host: &Host) -> Result<bool> {
    Ok(files::entry_if_there(&records_path(host))?.is_some())
}

/// Like [`are_confined`]; whoever may not look has kept none on any: those of root are none of a
/// user's business.
///
/// # Errors
/// As [`are_confined`].
pub fn have_we_confined(host: &Host) -> Result<bool> {
    match are_confined(host) {
        Err(error) if files::is_denied(&error) => Ok(false),
        confined => confined,
    }
}

/// The CPUs that each unit of the host is kept off, as was recorded last; none where that cannot be
/// read. Takes no lock.
pub fn kept_off(host: &Host) -> Vec<UnitCpus> {
    let records = read(host).unwrap_or_else(|error| {
        log::debug!("{error:#}");
        Confined::none("")
    });
    let units = records.units().into_iter().map(|unit| UnitCpus {
        cpus: records.away_from(&unit),
        unit,
    });
    units.filter(|unit| !unit.cpus.is_empty()).collect()
}

/// The CPUs that a pool directory keeps each unit off, as was recorded last. Takes no lock.
///
/// # Errors
/// The records cannot be read.
pub fn away_of(host: &Host, conf_dir: &Path) -> Result<Vec<UnitCpus>> {
    let away = read(host)?.away.into_iter();
    let its = away.filter(|away| away.conf_dir == conf_dir);
    Ok(its.flat_map(|away| away.units).collect())
}

fn read(host: &Host) -> Result<Confined> {
    let boot_id = process::boot_id(host)?;
    match files::read_text_if_there(&records_path(host))? {
        Some(text) => Confined::parse(&text, &boot_id),
        None => Ok(Confined::none(&boot_id)),
    }
}

/// Keeps the host's units off the CPUs of the exclusive pools of this pool directory, and of all
/// others that are recorded; puts a unit back as it was found where nobody keeps it off any.
/// Returns what could not be done, also because systemd did not answer by the deadline. On a
/// machine without systemd nothing is done.
///
/// # Errors
/// Others who change them have the lock until the deadline, the records cannot be read or written,
/// or the partitions beside the units cannot be looked at: then nothing is changed.
pub fn confine(
    host: &Host,
    conf_dir: &Path,
    units: Vec<UnitCpus>,
    deadline: Instant,
) -> Result<Vec<Refusal>> {
    let mut problems = Vec::new();
    if !systemd::runs(host)? || (units.is_empty() && !are_confined(host)?) {
        return Ok(problems);
    }
    let mut records = Held::open(host, deadline)?;
    let mut systemd = HostUnits::until(host, deadline);
    records.confined.want(conf_dir.to_owned(), units);
    // A pool directory that is gone wants nothing any more.
    let gone = |conf_dir: &Path| matches!(files::entry_if_there(&conf_dir.join("pools")), Ok(None));
    records.confined.away.retain(|away| !gone(&away.conf_dir));
    let seen = records.look(&mut systemd, &mut problems);
    let top = cpuset::hierarchy(host)?.group("/")?;
    let cpus = MachineCpus {
        all: all_cpus(host)?,
        partitioned: partition::named_below(&top)?,
    };
    let plan = records.confined.plan(&seen, &cpus);
    for UnitCpus { unit, cpus } in &plan.foreign {
        log::warn!(
            "AllowedCPUs= of {} is {}, and not what it was given: it is left as it is",
            Shown(unit),
            Shown(&cpus.to_string())
        );
    }
    problems.extend(plan.left_without.iter().map(|unit| {
        Refusal::new(
            format!(
                "{} would have no CPU outside of exclusive pools",
                Shown(unit)
            ),
            "leave it some: `pinfold pool resize --help`, or AllowedCPUs= of it",
        )
    }));
    records.confined.narrowed = plan.narrowed;
    records.save()?;
    for setting in plan.settings {
        if systemd.is_late() {
            break;
        }
        let Setting { unit, values } = setting;
        let set = values.iter().try_for_each(|cpus| systemd.set(&unit, cpus));
        if let Err(error) = set {
            problems.push(told(&error, &unit));
        }
    }
    let seen = records.look(&mut systemd, &mut Vec::new());
    for back in records.confined.back(&seen) {
        let forgotten = match back.was_set {
            true => Ok(()),
            false => systemd.forget(&back.unit),
        };
        match forgotten {
            Ok(()) => records.confined.narrowed.retain(|other| *other != back),
            Err(error) => problems.push(told(&error, &back.unit)),
        }
    }
    records.save()?;
    Ok(problems)
}

fn told(error: &Error, unit: &str) -> Refusal {
    let Refusal { what, remedy, .. } = Refusal::of(error);
    let remedy = match Refusal::of(error).is_vague() {
        true => "see `systemctl status`, and do it again: `pinfold reconcile`".to_owned(),
        false => remedy,
    };
    Refusal::new(format!("AllowedCPUs= of {}: {what}", Shown(unit)), remedy)
}

/// All CPUs that the machine can have; those that are online where it does not say.
fn all_cpus(host: &Host) -> Result<CpuSet> {
    let text = files::read_record_if_there(&host.possible_cpus())?;
    let possible: Option<CpuSet> = text.and_then(|text| text.trim().parse().ok());
    match possible.filter(|possible| !possible.is_empty()) {
        Some(possible) => Ok(possible),
        None => topology::online(host),
    }
}

/// The records while their lock is held.
struct Held<'a> {
    host: &'a Host,
    confined: Confined,
    /// The text of the file; `None` where there is none.
    written: Option<String>,
    // Closing the file unlocks it.
    _lock: File,
}

impl<'a> Held<'a> {
    fn open(host: &'a Host, deadline: Instant) -> Result<Held<'a>> {
        ensure_directory(host)?;
        let path = directory(host).join("units-lock");
        let lock = files::open_or_make_regular(&path, 0o600)?;
        let patience = deadline.saturating_duration_since(Instant::now());
        files::lock_within(&lock, patience).map_err(|error| {
            Error::new(error).context(Refusal::new(
                format!("lock {}", path.display()),
                "another `pinfold reconcile` takes long: do it again",
            ))
        })?;
        let boot_id = process::boot_id(host)?;
        let path = records_path(host);
        let written = files::read_text_if_there(&path)?;
        let confined = match &written {
            Some(text) => Confined::parse(text, &boot_id)
                .with_context(|| format!("read {}", path.display()))?,
            None => Confined::none(&boot_id),
        };
        Ok(Held {
            host,
            confined,
            written,
            _lock: lock,
        })
    }

    /// The units that somebody wants changed, or that are, as systemd has them. One that cannot be
    /// looked at is left out; after the deadline no other is asked for.
    fn look(&self, systemd: &mut HostUnits<'_>, problems: &mut Vec<Refusal>) -> Vec<SeenUnit> {
        let mut seen = Vec::new();
        for name in self.confined.units() {
            let mut look = || -> Result<SeenUnit> {
                Ok(SeenUnit {
                    cpus: systemd.cpus(&name)?,
                    is_set: systemd.is_set(&name)?,
                    unit: name.clone(),
                })
            };
            match look() {
                Ok(unit) => seen.push(unit),
                Err(error) => problems.push(told(&error, &name)),
            }
            if systemd.is_late() {
                break;
            }
        }
        seen
    }

    /// Writes the records if they differ; records of nothing have no file.
    fn save(&mut self) -> Result<()> {
        let path = records_path(self.host);
        if self.confined.is_empty() {
            self.written = None;
            return files::remove(&path);
        }
        let text = self.confined.print()?;
        if self.written.as_ref() != Some(&text) {
            files::replace(&path, text.as_bytes(), 0o600, Durability::Crash)?;
            self.written = Some(text);
        }
        Ok(())
    }
}
