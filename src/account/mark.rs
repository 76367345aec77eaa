//! A reading of one meter that outlives the process that made it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Account, Meter, Source, Times, time_online};
use std::collections::BTreeMap;

/// What one meter showed at one moment of this boot. All times are in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// The moment: the time since boot without sleep (clock_gettime(2), `CLOCK_MONOTONIC`).
    pub clock: f64,
    /// The CPU time that the owner had used until then.
    pub total: f64,
    /// Its part in user mode.
    pub user: f64,
    /// Its part in kernel mode.
    pub system: f64,
    /// How the CPU time is known.
    pub source: Source,
    /// Its part on the owner's own CPUs; `None` if the kernel does not count each CPU by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_its_cpus: Option<f64>,
    /// What the owner's CPUs had done until then; `None` if that was not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuTotals>,
}

/// What an owner's CPUs had done since boot, added up over them, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CpuTotals {
    /// The owner's online CPUs, in the kernel's list format.
    pub cpus: String,
    /// The number of these CPUs.
    pub count: u32,
    /// The time that is neither the owner's nor noise: idle, interrupts, software interrupts, and
    /// what a hypervisor took.
    pub quiet: f64,
    /// All the time that the kernel counted of these CPUs, which stands still for a CPU while it is
    /// offline. `None` in marks of older programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<f64>,
}

/// The CPU time that others used on an owner's CPUs while somebody watched these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// That time, in CPU seconds. What is added to it can be a little below 0, because the kernel
    /// counts idle time in hundredths of a second; over time that evens out.
    pub seconds: f64,
    /// The largest value that `seconds` ever had: a counter for metrics, which must never fall.
    #[serde(default)]
    pub most: f64,
    /// How long the CPUs were watched, in seconds.
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
            cpus: times.map(|times| CpuTotals::new(meter, times)),
        }
    }

    /// The CPU time that others used on the owner's CPUs since an earlier mark. `None` if it is not
    /// known: a mark lacks the CPUs, they are others by now, no time has passed, or a total has
    /// become smaller.
    pub fn noise_since(&self, before: &Mark) -> Option<Noise> {
        let (now, then) = (self.cpus.as_ref()?, before.cpus.as_ref()?);
        let over = self.clock - before.clock;
        let used = self.total - before.total;
        // What the owner used on other CPUs did not keep its own busy.
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

impl CpuTotals {
    fn new(meter: &Meter, times: &BTreeMap<u32, Times>) -> CpuTotals {
        let online = meter.cpus.iter().filter(|cpu| times.contains_key(cpu));
        let online: crate::cpulist::CpuSet = online.collect();
        let sum = |time: fn(&Times) -> Duration| {
            let each = online.iter().filter_map(|cpu| times.get(&cpu)).map(time);
            each.sum::<Duration>().as_secs_f64()
        };
        CpuTotals {
            quiet: sum(|of| of.idle + of.irq + of.softirq + of.steal),
            counted: Some(sum(|of| of.counted)),
            count: u32::try_from(online.len()).unwrap_or(u32::MAX),
            cpus: online.to_string(),
        }
    }
}

impl Noise {
    /// Adds another time of watching, if there is one.
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
            cpus: (!cpus.is_empty()).then(|| CpuTotals {
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
        // There is no answer for other CPUs, an earlier time, an account that shrank, or a mark
        // without CPUs.
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
        // Quiet time that the kernel counted too long lowers `seconds`, but not `most`.
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
        // It used four seconds, one of them on its CPUs, which were busy for five.
        assert_eq!(noise(&at(110.0, 7.0, 3.0, 65.0, 170.0)), 4.0);
        // The kernel missed ticks, but not many.
        assert_eq!(noise(&at(110.0, 7.0, 3.0, 65.0, 168.0)), 4.0);
        // One CPU was offline for eight seconds, idle for the rest of the time.
        assert_eq!(noise(&at(110.0, 7.0, 6.0, 57.0, 162.0)), 1.0);
    }
}
