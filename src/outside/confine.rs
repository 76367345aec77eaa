//! Pure: which CPUs each of the host's own units shall have, so that none of them has CPUs of an
//! exclusive pool. Each value follows from what was found and what all pool directories keep it
//! off; what holds neither what was found nor ours is somebody else's.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cpulist::{self, CpuSet};
use crate::refusal::{OrRefuse, Refusal};

/// The version of the records that is written, and the only one that is understood.
const VERSION: u32 = 1;

/// A unit, and CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitCpus {
    /// Its name.
    pub unit: String,
    /// The CPUs.
    #[serde(with = "cpulist::as_text")]
    pub cpus: CpuSet,
}

/// What a pool directory keeps the host's units off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Away {
    /// The pool directory.
    pub(super) conf_dir: PathBuf,
    /// The CPUs that each unit is not to have.
    pub(super) units: Vec<UnitCpus>,
}

/// A unit that may not be as it was found. CPUs are those of systemd's `AllowedCPUs=`, where none
/// means all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Narrowed {
    /// Its name.
    pub(super) unit: String,
    /// Its CPUs before our first change.
    pub(super) found: String,
    /// Had somebody set them at run time?
    pub(super) was_set: bool,
    /// What we have set, or may have: before a change both the last and the next.
    pub(super) ours: Vec<String>,
}

/// What is recorded, for all pool directories of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Confined {
    version: u32,
    /// The boot id. In another boot nothing of this is true: systemd forgets what was set at run
    /// time.
    boot_id: String,
    pub(super) away: Vec<Away>,
    pub(super) narrowed: Vec<Narrowed>,
}

/// A unit as systemd has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SeenUnit {
    pub(super) unit: String,
    pub(super) cpus: CpuSet,
    /// Are they set at run time?
    pub(super) is_set: bool,
}

/// The CPUs that there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MachineCpus {
    /// All that the machine can have.
    pub(super) all: CpuSet,
    /// Those of partitions beside the units.
    pub(super) partitioned: CpuSet,
}

/// The values to set for a unit, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) unit: String,
    pub(super) values: Vec<CpuSet>,
}

/// What is to be set once `narrowed` is recorded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) narrowed: Vec<Narrowed>,
    pub(super) settings: Vec<Setting>,
    /// Units that somebody else has set since, and that have CPUs that they are not to have.
    pub(super) foreign: Vec<UnitCpus>,
    /// Units that would have no CPU left.
    pub(super) left_without: Vec<String>,
}

impl Confined {
    /// The records of a boot in which nothing was changed yet.
    pub(super) fn none(boot_id: &str) -> Confined {
        Confined {
            version: VERSION,
            boot_id: boot_id.to_owned(),
            away: Vec::new(),
            narrowed: Vec::new(),
        }
    }

    /// Parses the text of the records' file. Records of another boot are taken as empty.
    ///
    /// # Errors
    /// The text is damaged, or was written by another version of this program.
    pub(super) fn parse(text: &str, boot_id: &str) -> Result<Confined> {
        let read = serde_json::from_str::<Confined>(text).context("it is not in this form");
        let read = read.and_then(|records| {
            ensure!(records.version == VERSION, "it is of another version");
            Ok(records)
        });
        let records = read.or_refuse(|| {
            Refusal::new(
                "what CPUs the host's units were given cannot be read",
                "of each of system.slice, user.slice and init.scope, `systemctl set-property \
                 --runtime UNIT AllowedCPUs=0-N`, where N is the last CPU, and then `systemctl \
                 revert UNIT`, which alone leaves the CPUs of units that run as they are up to \
                 Linux 6.12; remove /run/pinfold-machine/units",
            )
        })?;
        Ok(match records.boot_id == boot_id {
            true => records,
            false => Confined::none(boot_id),
        })
    }

    /// The text of the records' file.
    ///
    /// # Errors
    /// No case is known.
    pub(super) fn print(&self) -> Result<String> {
        serde_json::to_string(self).context("write what CPUs the host's units were given")
    }

    /// Is there nothing to remember?
    pub(super) fn is_empty(&self) -> bool {
        self.away.is_empty() && self.narrowed.is_empty()
    }

    /// From now on this is what a pool directory wants; nothing where there are no units.
    pub(super) fn want(&mut self, conf_dir: PathBuf, units: Vec<UnitCpus>) {
        self.away.retain(|away| away.conf_dir != conf_dir);
        if !units.is_empty() {
            self.away.push(Away { conf_dir, units });
            self.away
                .sort_by(|one, other| one.conf_dir.cmp(&other.conf_dir));
        }
    }

    /// The units that somebody wants changed, or that are.
    pub(super) fn units(&self) -> Vec<String> {
        let wanted = self.away.iter().flat_map(|away| &away.units);
        let wanted = wanted.map(|unit| &unit.unit);
        let narrowed = self.narrowed.iter().map(|narrowed| &narrowed.unit);
        let mut units: Vec<String> = wanted.chain(narrowed).cloned().collect();
        units.sort();
        units.dedup();
        units
    }

    /// The CPUs that a unit is not to have.
    pub(super) fn away_from(&self, unit: &str) -> CpuSet {
        let all = self.away.iter().flat_map(|away| &away.units);
        let its = all.filter(|one| one.unit == unit);
        its.map(|one| &one.cpus).collect()
    }

    /// Plans for units as they were seen. Of others everything stays as it is recorded.
    pub(super) fn plan(&self, seen: &[SeenUnit], machine: &MachineCpus) -> Plan {
        let mut plan = Plan::default();
        let is_seen = |unit: &str| seen.iter().any(|seen| seen.unit == unit);
        let others = self.narrowed.iter();
        let others = others.filter(|narrowed| !is_seen(&narrowed.unit));
        plan.narrowed = others.cloned().collect();
        for unit in seen {
            self.plan_one(unit, machine, &mut plan);
        }
        plan
    }

    fn plan_one(&self, seen: &SeenUnit, machine: &MachineCpus, plan: &mut Plan) {
        let away = self.away_from(&seen.unit);
        let known = self.known(&seen.unit).cloned();
        let mut narrowed = known.unwrap_or_else(|| Narrowed {
            unit: seen.unit.clone(),
            found: seen.cpus.to_string(),
            was_set: seen.is_set,
            ours: Vec::new(),
        });
        if narrowed.is_foreign(&seen.cpus) {
            if !away.is_empty() {
                if seen.cpus.is_empty() || !seen.cpus.is_disjoint(&away) {
                    let (unit, cpus) = (seen.unit.clone(), seen.cpus.clone());
                    plan.foreign.push(UnitCpus { unit, cpus });
                }
                // Whoever set it may put back what we had set.
                plan.narrowed.push(narrowed);
            }
            return;
        }
        let found = set(&narrowed.found);
        // A mask of our own names no CPU of a partition beside the unit: kernels before 7.0 break
        // the partition then.
        let widest = machine.all.difference(&machine.partitioned);
        let (base, usable) = match found.is_empty() {
            true => (&machine.all, &widest),
            false => (&found, &found),
        };
        let rest = usable.difference(&away);
        let is_left_without = rest.is_empty();
        if is_left_without {
            plan.left_without.push(seen.unit.clone());
        }
        let puts_back = is_left_without || base.is_disjoint(&away);
        let values = match (puts_back, found.is_empty()) {
            (false, _) => vec![rest],
            // Kernels up to 6.12 refuse an empty mask for a group with processes, and the narrow
            // one would stay: the widest comes first.
            (true, true) => vec![widest, CpuSet::new()],
            (true, false) => vec![found.clone()],
        };
        let target = values.last().unwrap_or(&found);
        if *target != seen.cpus {
            narrowed.ours.retain(|ours| set(ours) == seen.cpus);
            let own = values.iter().filter(|value| **value != found);
            narrowed.ours.extend(own.map(CpuSet::to_string));
            plan.settings.push(Setting {
                unit: seen.unit.clone(),
                values,
            });
        }
        if !narrowed.ours.is_empty() {
            plan.narrowed.push(narrowed);
        }
    }

    fn known(&self, unit: &str) -> Option<&Narrowed> {
        self.narrowed.iter().find(|narrowed| narrowed.unit == unit)
    }

    /// The narrowed units that are as they were found again. What was set for them at run time is
    /// to be forgotten, unless somebody had set something before.
    pub(super) fn back(&self, seen: &[SeenUnit]) -> Vec<Narrowed> {
        let is_back = |narrowed: &&Narrowed| {
            let mut its = seen.iter().filter(|seen| seen.unit == narrowed.unit);
            its.any(|seen| seen.cpus == set(&narrowed.found))
        };
        self.narrowed.iter().filter(is_back).cloned().collect()
    }
}

impl Narrowed {
    fn is_foreign(&self, now: &CpuSet) -> bool {
        let is_ours = self.ours.iter().any(|ours| set(ours) == *now);
        !is_ours && set(&self.found) != *now
    }
}

fn set(text: &str) -> CpuSet {
    text.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// What systemd has of each unit, and the records on disk.
    #[derive(Clone, Debug, PartialEq)]
    struct Machine {
        units: BTreeMap<String, String>,
        records: Confined,
        partitioned: String,
        foreign: usize,
        left_without: usize,
    }

    const UNITS: [&str; 2] = ["system.slice", "user.slice"];

    impl Machine {
        fn new(found: &str) -> Machine {
            Machine {
                units: UNITS.map(|unit| (unit.to_owned(), found.to_owned())).into(),
                records: Confined::none("boot"),
                partitioned: String::new(),
                foreign: 0,
                left_without: 0,
            }
        }

        fn seen(&self) -> Vec<SeenUnit> {
            let seen = self.units.iter().map(|(unit, cpus)| SeenUnit {
                unit: unit.clone(),
                cpus: set(cpus),
                is_set: false,
            });
            seen.collect()
        }

        /// Killed before one of the values is set; at `usize::MAX` never.
        fn converge_until(&mut self, kill_at: usize) {
            let cpus = MachineCpus {
                all: set("0-7"),
                partitioned: set(&self.partitioned),
            };
            let plan = self.records.plan(&self.seen(), &cpus);
            self.records.narrowed = plan.narrowed;
            (self.foreign, self.left_without) = (plan.foreign.len(), plan.left_without.len());
            let settings = plan.settings.into_iter();
            let values = settings.flat_map(|setting| {
                let unit = setting.unit;
                setting
                    .values
                    .into_iter()
                    .map(move |value| (unit.clone(), value))
            });
            for (number, (unit, value)) in values.enumerate() {
                if number == kill_at {
                    return;
                }
                self.units.insert(unit, value.to_string());
            }
            for back in self.records.back(&self.seen()) {
                self.records.narrowed.retain(|other| *other != back);
            }
        }

        fn converge(&mut self) {
            self.converge_until(usize::MAX);
        }

        fn want(&mut self, directory: &str, cpus: &str) {
            let units = UNITS.map(|unit| UnitCpus {
                unit: unit.to_owned(),
                cpus: set(cpus),
            });
            let units = units.into_iter().filter(|unit| !unit.cpus.is_empty());
            self.records.want(directory.into(), units.collect());
        }

        fn cpus(&self) -> Vec<&str> {
            self.units.values().map(String::as_str).collect()
        }
    }

    #[test]
    fn units_leave_the_cpus_of_exclusive_pools_and_have_them_back() {
        for (found, narrowed) in [("", "0-3,6-7"), ("2-5", "2-3"), ("0-3", "0-3")] {
            let mut machine = Machine::new(found);
            let before = machine.clone();
            machine.want("/a", "4-5");
            machine.converge();
            assert_eq!(machine.cpus(), [narrowed, narrowed], "{found}");
            let held = machine.clone();
            machine.converge();
            assert_eq!(machine, held, "nothing is done twice");
            machine.want("/a", "");
            machine.converge();
            assert_eq!(machine, before, "{found}");
            assert!(machine.records.is_empty());
        }
    }

    #[test]
    fn no_value_names_cpus_of_a_partition_beside_the_units() {
        let mut machine = Machine::new("");
        machine.partitioned = "4-7".to_owned();
        // Also where the pools have none but its CPUs: it may be gone tomorrow.
        for pools in ["3-5", "4-5"] {
            machine.want("/a", pools);
            machine.converge();
            assert!(machine.cpus()[0].ends_with(['2', '3']), "{machine:?}");
        }
        let held = machine.clone();
        machine.converge();
        assert_eq!(machine, held, "nothing is done twice");
        // The first value on the way back is the one that a kernel up to 6.12 keeps.
        machine.want("/a", "");
        let mut halfway = machine.clone();
        halfway.converge_until(1);
        machine.partitioned.clear();
        machine.converge();
        assert_eq!(machine.cpus(), ["", ""]);
        assert_eq!(halfway.cpus(), ["0-3", "0-3"]);
        halfway.converge();
        assert!(halfway.records.is_empty(), "{halfway:?}");
        // Once the partition is gone its other CPUs are the units' again.
        let mut machine = held;
        machine.partitioned.clear();
        machine.converge();
        assert_eq!(machine.cpus(), ["0-3,6-7", "0-3,6-7"]);
        let mut whole = Machine::new("");
        whole.partitioned = "4-7".to_owned();
        whole.want("/a", "0-3");
        whole.converge();
        assert_eq!((whole.cpus()[0], whole.left_without), ("", 2));
    }

    #[test]
    fn the_pools_of_several_directories_count_together() {
        let mut machine = Machine::new("");
        machine.want("/a", "4-5");
        machine.want("/b", "5-6");
        machine.converge();
        assert_eq!(machine.cpus()[0], "0-3,7");
        machine.want("/a", "");
        machine.converge();
        assert_eq!(machine.cpus()[0], "0-4,7");
        machine.want("/b", "");
        machine.converge();
        assert_eq!(machine.cpus()[0], "");
    }

    #[test]
    fn whatever_value_it_is_killed_at_the_next_one_mends_it() {
        for found in ["", "1-7"] {
            let none = Machine::new(found);
            for kill_at in 0..5 {
                for again_at in 0..5 {
                    let mut machine = none.clone();
                    machine.want("/a", "4-5");
                    machine.converge_until(kill_at);
                    machine.want("/a", "3-5");
                    machine.converge_until(again_at);
                    let mut through = machine.clone();
                    through.converge();
                    assert!(!through.cpus()[0].contains(['3', '4', '5']), "{through:?}");
                    machine.want("/a", "");
                    machine.converge_until(kill_at);
                    machine.converge_until(again_at);
                    machine.converge();
                    assert_eq!(machine, none, "{found} {kill_at} {again_at}");
                }
            }
        }
    }

    #[test]
    fn what_somebody_else_has_set_since_is_left() {
        let mut machine = Machine::new("");
        machine.want("/a", "4-5");
        machine.converge();
        for (theirs, is_told) in [("0-4", true), ("", false), ("0-1", false)] {
            let mut machine = machine.clone();
            machine.units.insert(UNITS[0].to_owned(), theirs.to_owned());
            machine.converge();
            // An empty value is as it was found: it is narrowed anew.
            let now = if theirs.is_empty() { "0-3,6-7" } else { theirs };
            assert_eq!(
                (machine.cpus()[0], machine.foreign),
                (now, usize::from(is_told))
            );
            machine.want("/a", "");
            machine.converge();
            let back = if theirs.is_empty() { "" } else { theirs };
            assert_eq!(machine.cpus(), [back, ""], "{theirs}");
            assert!(machine.records.is_empty(), "{machine:?}");
        }
    }

    #[test]
    fn a_unit_that_would_have_no_cpu_is_left_as_it_was_found() {
        let mut machine = Machine::new("4");
        machine.want("/a", "4-5");
        machine.converge();
        assert_eq!((machine.cpus()[0], machine.left_without), ("4", 2));
        let mut machine = Machine::new("");
        machine.want("/a", "4-5");
        machine.converge();
        machine.want("/a", "0-7");
        machine.converge();
        assert_eq!((machine.cpus()[0], machine.left_without), ("", 2));
    }

    #[test]
    fn records_are_of_one_boot_and_one_form() {
        let mut machine = Machine::new("");
        machine.want("/a", "4-5");
        machine.converge();
        let text = machine.records.print().unwrap();
        assert_eq!(Confined::parse(&text, "boot").unwrap(), machine.records);
        assert!(Confined::parse(&text, "other").unwrap().is_empty());
        for broken in ["{torn", &text.replace("\"version\":1", "\"version\":2")] {
            let error = Confined::parse(broken, "boot").unwrap_err();
            let Refusal { remedy, .. } = Refusal::of(&error);
            let set = remedy.find("AllowedCPUs=0-N").unwrap();
            assert!(set < remedy.find("systemctl revert").unwrap(), "{remedy}");
            assert!(remedy.contains("/run/pinfold-machine/units"), "{remedy}");
        }
    }
}
