//! Compares two readings: what each owner did in between, and who else used its CPUs. Pure.

use std::time::Duration;

use super::{Account, Meter, Reading, time_online};

/// What happened between two readings of the same meters.
#[derive(Debug)]
pub struct Interval {
    /// The time between the readings.
    pub length: Duration,
    /// What each meter's owner did; `None` for an owner that began or ended meanwhile, and for all
    /// if no time has passed.
    pub shares: Vec<Option<Share>>,
}

/// What an owner and others did on the owner's CPUs. A share is a part of the time of the owner's
/// online CPUs, from 0 to 1: 1 is all of them, all the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The owner's totals at the end of the interval.
    pub account: Account,
    /// The share that the owner used, in user and in kernel mode. Its time on other CPUs is left
    /// out if the kernel counts each CPU by itself.
    pub utilisation: f64,
    /// How many CPUs the owner kept busy on average, other than its own included: 1 is one CPU all
    /// the time.
    pub busy_cpus: f64,
    /// The share that other processes used: the time that was neither idle, nor the owner's, nor
    /// taken by interrupts or by other guests of a hypervisor. The kernel counts idle time in
    /// hundredths of a second.
    pub noise: f64,
    /// The share of hardware interrupts.
    pub irq: f64,
    /// The share of software interrupts.
    pub softirq: f64,
    /// The share that a hypervisor gave to somebody else.
    pub steal: f64,
    /// The share in which a bandwidth limit kept the owner from running, which the kernel adds up
    /// over CPUs; `None` if the kernel does not say.
    pub throttled: Option<f64>,
    /// The part of the interval, from 0 to 1, in which a process of the owner waited for a CPU;
    /// `None` if the kernel does not say.
    pub waited: Option<f64>,
    /// Context switches per second; `None` if they were not read.
    pub switches: Option<f64>,
    /// Moves between CPUs per second, over the last twenty seconds or so; `None` if they were not
    /// read, or the kernel does not say.
    pub migrations: Option<f64>,
}

impl Reading {
    /// Compares this reading with an earlier one of the same meters.
    pub fn since(&self, before: &Reading, meters: &[Meter]) -> Interval {
        let length = self.at.saturating_duration_since(before.at);
        let shares = meters.iter().enumerate().map(|(index, meter)| {
            let account = self.accounts.get(index).copied().flatten();
            let account = account.filter(|_| !length.is_zero())?;
            let earlier = before.accounts.get(index).copied().flatten()?;
            Some(self.share(before, meter, account, earlier, length))
        });
        Interval {
            length,
            shares: shares.collect(),
        }
    }

    /// Has an owner ended since an earlier reading of the same meters?
    pub fn has_lost(&self, before: &Reading) -> bool {
        let pairs = self.accounts.iter().zip(&before.accounts);
        let mut gone = pairs.filter(|(now, then)| now.is_none() && then.is_some());
        gone.next().is_some()
    }

    fn share(
        &self,
        before: &Reading,
        meter: &Meter,
        account: Account,
        earlier: Account,
        length: Duration,
    ) -> Share {
        let mut counted = 0u32;
        let (mut idle, mut irq, mut softirq, mut steal) = (0.0, 0.0, 0.0, 0.0);
        let mut told = 0.0;
        for cpu in meter.cpus.iter() {
            let (Some(now), Some(then)) = (self.cpus.get(&cpu), before.cpus.get(&cpu)) else {
                continue;
            };
            // The CPU was offline meanwhile, and the kernel has begun its idle time anew.
            if now.idle < then.idle {
                continue;
            }
            counted += 1;
            told += less(now.counted, then.counted);
            idle += less(now.idle, then.idle);
            irq += less(now.irq, then.irq);
            softirq += less(now.softirq, then.softirq);
            steal += less(now.steal, then.steal);
        }
        let seconds = length.as_secs_f64();
        let whole = (seconds * f64::from(counted)).max(f64::MIN_POSITIVE);
        let used = less(account.usage.total, earlier.usage.total);
        let used_here = match (account.on_its_cpus, earlier.on_its_cpus) {
            (Some(now), Some(then)) => less(now, then),
            _ => used,
        };
        let busy = time_online(f64::from(counted) * seconds, told, used_here) - idle - steal;
        let part = |time: f64| (time / whole).clamp(0.0, 1.0);
        let of_time = |now: Option<Duration>, then: Option<Duration>| {
            Some(less(now?, then?) / seconds.max(f64::MIN_POSITIVE))
        };
        let switches = match (account.switches, earlier.switches) {
            (Some(now), Some(then)) => Some(now.saturating_sub(then) as f64),
            _ => None,
        };
        Share {
            account,
            utilisation: part(used_here),
            busy_cpus: used / seconds.max(f64::MIN_POSITIVE),
            noise: part(busy - used_here - irq - softirq),
            irq: part(irq),
            softirq: part(softirq),
            steal: part(steal),
            throttled: match (account.throttled, earlier.throttled) {
                (Some(now), Some(then)) => Some(part(less(now, then))),
                _ => None,
            },
            waited: of_time(account.waited, earlier.waited),
            switches: switches.map(|count| count / seconds.max(f64::MIN_POSITIVE)),
            migrations: account.migrations,
        }
    }
}

/// The seconds between two totals; 0 if the later one is smaller, as in a sum over processes of
/// which one has ended.
fn less(now: Duration, then: Duration) -> f64 {
    now.saturating_sub(then).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::account::{Source, Times};
    use crate::cgroup::cpuacct::CpuTime;
    use std::time::Instant;

    fn account(total: f64) -> Option<Account> {
        Some(Account {
            usage: CpuTime {
                total: Duration::from_secs_f64(total),
                ..CpuTime::default()
            },
            source: Source::Group,
            on_its_cpus: None,
            throttled: Some(Duration::from_secs_f64(total / 2.0)),
            waited: None,
            switches: None,
            migrations: None,
        })
    }

    /// `times` are CPU number, idle time, time of software interrupts, and all counted time.
    fn reading(
        at: Instant,
        times: &[(u32, f64, f64, f64)],
        accounts: Vec<Option<Account>>,
    ) -> Reading {
        let times = times.iter().map(|(cpu, idle, softirq, counted)| {
            let times = Times {
                idle: Duration::from_secs_f64(*idle),
                softirq: Duration::from_secs_f64(*softirq),
                counted: Duration::from_secs_f64(*counted),
                ..Times::default()
            };
            (*cpu, times)
        });
        Reading {
            at,
            cpus: times.collect(),
            accounts,
        }
    }

    fn meter(cpus: &str) -> Meter {
        Meter::of_process(1, &cpus.parse().unwrap())
    }

    #[test]
    fn what_an_owner_did_not_use_is_noise() {
        let start = Instant::now();
        let meters = [meter("2-3"), meter("5"), meter("9")];
        let before = reading(
            start,
            &[
                (2, 10.0, 0.0, 50.0),
                (3, 20.0, 0.0, 50.0),
                (5, 7.0, 1.0, 50.0),
            ],
            vec![account(4.0), account(1.0), account(1.0)],
        );
        let now = reading(
            start + Duration::from_secs(10),
            // CPU 2 was never idle, 3 half the time; 5 was busy for a second, half of it with
            // software interrupts.
            &[
                (2, 10.0, 0.0, 60.0),
                (3, 25.0, 0.0, 60.0),
                (5, 16.0, 1.5, 60.0),
            ],
            vec![account(18.0), account(1.0), account(0.5)],
        );
        let interval = now.since(&before, &meters);
        let shares: Vec<Share> = interval.shares.into_iter().flatten().collect();
        let near = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
        near(shares[0].utilisation, 0.7);
        near(shares[0].busy_cpus, 1.4);
        near(shares[0].noise, 0.05);
        near(shares[0].throttled.unwrap(), 0.35);
        assert_eq!(shares[0].waited, None);
        near(shares[1].utilisation, 0.0);
        near(shares[1].noise, 0.05);
        near(shares[1].softirq, 0.05);
        // Its CPU is offline, and its processes have ended: nothing, but no nonsense.
        assert_eq!(shares[2].utilisation, 0.0);
        assert_eq!(shares[2].noise, 0.0);
    }

    #[test]
    fn who_began_meanwhile_has_no_share_yet() {
        let start = Instant::now();
        let before = reading(start, &[(2, 0.0, 0.0, 0.0)], vec![None]);
        let later = start + Duration::from_secs(1);
        let now = reading(later, &[(2, 0.0, 0.0, 0.0)], vec![account(1.0)]);
        assert_eq!(now.since(&before, &[meter("2")]).shares, [None]);
        // Nobody has a share if no time has passed.
        assert_eq!(now.since(&now, &[meter("2")]).shares, [None]);
    }

    #[test]
    fn what_an_owner_used_elsewhere_is_no_use_of_its_cpus() {
        let start = Instant::now();
        let on = |total: f64, here: f64| {
            account(total).map(|account| Account {
                on_its_cpus: Some(Duration::from_secs_f64(here)),
                ..account
            })
        };
        let before = reading(start, &[(2, 0.0, 0.0, 0.0)], vec![on(4.0, 1.0)]);
        let later = start + Duration::from_secs(10);
        let now = reading(later, &[(2, 2.0, 0.0, 10.0)], vec![on(20.0, 4.0)]);
        let share = now.since(&before, &[meter("2")]).shares[0].unwrap();
        let near = |one: f64, other: f64| assert!((one - other).abs() < 1e-9, "{one} {other}");
        near(share.utilisation, 0.3);
        near(share.busy_cpus, 1.6);
        near(share.noise, 0.5);
    }

    #[test]
    fn a_cpu_that_was_offline_is_not_noisy() {
        let start = Instant::now();
        let later = start + Duration::from_secs(10);
        for (then, now, noise) in [
            // Offline for six of ten seconds, idle for three.
            ((5.0, 100.0), (8.0, 104.0), 0.1),
            // Its idle time has begun anew.
            ((50.0, 100.0), (1.0, 104.0), 0.0),
            // Busy with the owner, though no tick has met that.
            ((5.0, 100.0), (9.0, 104.0), 0.1),
        ] {
            let used = if now.0 == 9.0 { 5.0 } else { 0.0 };
            let before = [(2, then.0, 0.0, then.1)];
            let before = reading(start, &before, vec![account(1.0)]);
            let now = [(2, now.0, 0.0, now.1)];
            let now = reading(later, &now, vec![account(1.0 + used)]);
            let share = now.since(&before, &[meter("2")]).shares[0].unwrap();
            assert!((share.noise - noise).abs() < 1e-9, "{share:?}");
        }
    }
}
