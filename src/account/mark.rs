//! What one meter showed, in a form that outlives the process that read it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Account, Meter, Source, Times, time_online};
use std::collections::BTreeMap;

/// What one meter showed at one moment of this boot. Times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// Since the machine started, sleep left out (clock_gettime(2), `CLOCK_MONOTONIC`).
    pub clock: f64,
    /// What the owner had used until then.
    pub total: f64,
    /// Outside the kernel.
    pub user: f64,
    /// Inside it.
    pub system: f64,
    /// How that is known.
    pub source: Source,
    /// The part of it that was used on its own CPUs, where the kernel tells for each CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_its_cpus: Option<f64>,
    /// What its CPUs had done until then; `None` where nobody looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<OfCpus>,
}

/// What the CPUs of an owner had done since the machine started, added up. In seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OfCpus {
    /// Which ones, those that are offline left out, in the kernel's format.
    pub cpus: String,
    /// How many those are.
    pub count: u32,
    /// The time in which neither the owner ran nor anybody who counts as noise: idle, interrupts,
    /// software interrupts, and what a hypervisor took.
    pub quiet: f64,
    /// All that was counted of them, which stands still while one is offline; `None` in marks of
    /// older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<f64>,
}

/// What others did on an owner's CPUs, in CPU seconds, and how long they were watched, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// CPU seconds. What is added to this can be a little below zero, for the kernel counts idle
    /// time in hundredths of a second; over time that evens out.
    pub seconds: f64,
    /// The largest that it ever was: a counter for others, which never goes back.
    #[serde(default)]
    pub most: f64,
    /// How long.
    pub over: f64,
}

impl Mark {
    pub(super) fn new(
        clock: Duration,
        account: &Account,
        meter: &Meter,
        times: Option<&BTreeMap<u32, Times>>,
    ) -> Mark {
        let usage = account.usage;
        Mark {
            clock: clock.as_secs_f64(),
            total: usage.total.as_secs_f64(),
            user: usage.user.as_secs_f64(),
            system: usage.system.as_secs_f64(),
            source: account.source,
            on_its_cpus: account.on_its_cpus.map(|time| time.as_secs_f64()),
            cpus: times.map(|times| OfCpus::new(meter, times)),
        }
    }

    /// What others did on the owner's CPUs since an earlier mark; `None` where that cannot be told:
    /// nobody looked at the CPUs, they are others by now, or the account has become smaller.
    pub fn noise_since(&self, before: &Mark) -> Option<Noise> {
        let (now, then) = (self.cpus.as_ref()?, before.cpus.as_ref()?);
        let over = self.clock - before.clock;
        let used = self.total - before.total;
        // What it used elsewhere kept none of its own CPUs busy.
        let used_here = match (self.on_its_cpus, before.on_its_cpus) {
            (Some(now), Some(then)) => now - then,
            _ => used,
        };
        let quiet = now.quiet - then.quiet;
        let is_told = now.cpus == then.cpus && over > 0.0 && used >= 0.0 && quiet >= 0.0;
        let whole = f64::from(now.count) * over;
        let counted = match (now.counted, then.counted) {
            (Some(now), Some(then)) => now - then,
            _ => whole,
        };
        let seconds = time_online(whole, counted, used_here) - quiet - used_here;
        is_told.then(|| Noise {
            seconds,
            most: seconds.max(0.0),
            over,
        })
    }
}

impl OfCpus {
    fn new(meter: &Meter, times: &BTreeMap<u32, Times>) -> OfCpus {
        let online = meter.cpus.iter().filter(|cpu| times.contains_key(cpu));
        let online: crate::cpulist::CpuSet = online.collect();
        let sum = |time: fn(&Times) -> Duration| {
            let each = online.iter().filter_map(|cpu| times.get(&cpu)).map(time);
            each.sum::<Duration>().as_secs_f64()
        };
        OfCpus {
            quiet: sum(|of| of.idle + of.irq + of.softirq + of.steal),
            counted: Some(sum(|of| of.counted)),
            count: u32::try_from(online.len()).unwrap_or(u32::MAX),
            cpus: online.to_string(),
        }
    }
}

impl Noise {
    /// Both together.
    pub fn and(self, other: Option<Noise>) -> Noise {
        let other = other.unwrap_or_default();
        let seconds = self.seconds + other.seconds;
        Noise {
            seconds,
            most: self.most.max(seconds),
            over: self.over + other.over,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(clock: f64, total: f64, cpus: &str, quiet: f64) -> Mark {
        Mark {
            clock,
            total,
            user: total,
            system: 0.0,
            source: Source::Group,
            on_its_cpus: None,
            cpus: (!cpus.is_empty()).then(|| OfCpus {
                cpus: cpus.to_owned(),
                count: 2,
                quiet,
                counted: None,
            }),
        }
    }

    #[test]
    fn noise_is_what_neither_the_owner_nor_anything_that_is_none_used() {
        let before = mark(100.0, 3.0, "2-3", 50.0);
        let noise = |now: &Mark| now.noise_since(&before);
        let told = noise(&mark(110.0, 7.0, "2-3", 65.0)).unwrap();
        assert_eq!((told.seconds, told.over), (1.0, 10.0));
        // Nothing is told of other CPUs, of an earlier time, of an account that shrank, nor where
        // nobody looked at the CPUs.
        for now in [
            mark(110.0, 7.0, "2", 65.0),
            mark(90.0, 7.0, "2-3", 65.0),
            mark(110.0, 2.0, "2-3", 65.0),
            mark(110.0, 7.0, "2-3", 49.0),
            mark(110.0, 7.0, "", 0.0),
        ] {
            assert_eq!(noise(&now), None, "{now:?}");
        }
        let sum = Noise::default().and(Some(told)).and(None).and(Some(told));
        assert_eq!((sum.seconds, sum.over), (2.0, 20.0));
        // A quiet time that the kernel counted too long takes nothing from the most.
        let quiet = noise(&mark(110.0, 7.0, "2-3", 66.5)).unwrap();
        assert_eq!((quiet.seconds, quiet.most), (-0.5, 0.0));
        let sum = sum.and(Some(quiet));
        assert_eq!((sum.seconds, sum.most), (1.5, 2.0));
    }

    #[test]
    fn what_was_used_elsewhere_and_time_offline_are_no_part_of_it() {
        let at = |clock: f64, total: f64, here: f64, quiet: f64, counted: f64| {
            let mut mark = mark(clock, total, "2-3", quiet);
            mark.on_its_cpus = Some(here);
            mark.cpus.as_mut().unwrap().counted = Some(counted);
            mark
        };
        let before = at(100.0, 3.0, 2.0, 50.0, 150.0);
        let noise = |now: &Mark| now.noise_since(&before).unwrap().seconds;
        // Of four seconds it used one on its CPUs, which were busy for five.
        assert_eq!(noise(&at(110.0, 7.0, 3.0, 65.0, 170.0)), 4.0);
        // Ticks are missed, but not many.
        assert_eq!(noise(&at(110.0, 7.0, 3.0, 65.0, 168.0)), 4.0);
        // One CPU was offline for eight seconds, idle for the rest of the time.
        assert_eq!(noise(&at(110.0, 7.0, 6.0, 57.0, 162.0)), 1.0);
    }
}
