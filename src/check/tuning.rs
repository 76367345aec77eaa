//! What is set of the machine for the owners of exclusive pools: can it be, and is it so?

use super::Report;
use crate::cpulist::CpuSet;
use crate::files;
use crate::isolation::tuning::{Key, Tuning, listed};
use crate::outside::{self, Astray};
use crate::placement::{Site, Survey, SurveyedPool, live_claims};
use crate::pools;
use crate::text::Shown;
use crate::topology;

/// What this is called in the report.
const WHAT: &str = "irqs";
const POWER: &str = "power";
const QUOTA: &str = "quota";

/// What to do about what somebody else has set.
const ELSEWHERE: &str = "have that tool leave the CPUs of exclusive pools alone";
const UNLIMITED: &str = "start it again, which lifts the limit, or say quota=keep of its pool";

pub(super) fn check(site: &Site, survey: &Survey, report: &mut Report) {
    let exclusive = |pool: &&SurveyedPool| pool.kind == pools::Kind::Exclusive;
    let mut away = CpuSet::new();
    let online = topology::online(&site.host).unwrap_or_default();
    for pool in survey.pools.iter().filter(exclusive) {
        let wanted = wanted(pool, report);
        let cpus = pool.cpus();
        if wanted.irqs_away {
            away.extend(&cpus);
        }
        power(site, pool, &wanted, &cpus.intersection(&online), report);
    }
    away.extend(&away_of_owners(site));
    if !away.is_empty() {
        irqs(site, &away, report);
    }
    astray(site, &online, report);
}

/// The CPUs of live owners whose interrupts are to go elsewhere: their own annotations can say so.
fn away_of_owners(site: &Site) -> CpuSet {
    let claims = live_claims(site).unwrap_or_default();
    let claims = claims.iter().filter(|claim| claim.tuning.irqs_away);
    let mut cpus: CpuSet = claims.map(|claim| &claim.cpus).collect();
    let tuned = outside::tuned(&site.host);
    let tuned = tuned.iter().filter(|tuned| tuned.tuning.irqs_away);
    tuned.for_each(|tuned| cpus.extend(&tuned.cpus));
    cpus
}

/// What is said of a pool, told where it makes no sense.
fn wanted(pool: &SurveyedPool, report: &mut Report) -> Tuning {
    let (tuning, unknown) = pool.options.tuning.tuning(&pool.name);
    for refusal in unknown
        .into_iter()
        .chain(pool.options.unknown_allow(&pool.name))
    {
        report.warn("pools", refusal.what, refusal.remedy);
    }
    tuning
}

/// Has the machine what a pool wants of the power of its CPUs?
fn power(site: &Site, pool: &SurveyedPool, wanted: &Tuning, cpus: &CpuSet, report: &mut Report) {
    let wanted = Tuning {
        governor: wanted.governor.clone(),
        resume_latency: wanted.resume_latency.clone(),
        ..Tuning::default()
    };
    match outside::possible(&site.host, cpus, &wanted) {
        Ok((possible, obstacles)) => {
            for obstacle in obstacles {
                let text = format!("pool {}: {}", Shown(&pool.name), obstacle.what);
                report.warn(POWER, text, obstacle.remedy);
            }
            if !possible.is_none() {
                let said = listed(possible.said());
                report.ok(POWER, format!("{said} of {cpus} while they are owned"));
            }
        }
        Err(error) => report.error(POWER, &error),
    }
}

/// What was set for those who live, and is not so any more.
fn astray(site: &Site, online: &CpuSet, report: &mut Report) {
    for tuned in outside::tuned(&site.host) {
        match outside::astray(&site.host, &tuned, online) {
            Ok(astray) => {
                for Astray { key, path, now } in astray {
                    let text = format!("somebody has set {} to {now} since", path.display());
                    match key {
                        Key::Quota => report.warn(QUOTA, text, UNLIMITED),
                        _ => report.warn(POWER, text, ELSEWHERE),
                    }
                }
            }
            Err(error) => report.error(POWER, &error),
        }
    }
}

/// Interrupts leave a list's CPUs once it is owned: what is there then stays.
fn irqs(site: &Site, away: &CpuSet, report: &mut Report) {
    let host = &site.host;
    let mut tuned = outside::tuned(host);
    tuned.retain(|tuned| tuned.tuning.irqs_away);
    let mut owned: CpuSet = tuned.iter().map(|tuned| &tuned.cpus).collect();
    match outside::no_cpu_for_irqs(host) {
        // They are where they have to be, and did not come back.
        Ok(Some((cpus, obstacle))) => {
            report.warn(WHAT, obstacle.what, obstacle.remedy);
            owned = owned.difference(&cpus);
        }
        Ok(None) => {}
        Err(error) => report.error(WHAT, &error),
    }
    match files::entry_if_there(&host.irqs()) {
        Ok(Some(_)) => {}
        Ok(None) => {
            return report.warn(
                WHAT,
                format!("nothing shows the interrupts that are to leave {away}"),
                "mount /proc whole",
            );
        }
        Err(error) => return report.error(WHAT, &error),
    }
    let irqs = match outside::irqs_on(host, away) {
        Ok(irqs) => irqs,
        Err(error) => return report.error(WHAT, &error),
    };
    let (staying, others): (Vec<_>, Vec<_>) = irqs
        .into_iter()
        .partition(|irq| !irq.may_move || !irq.cpus.is_disjoint(&owned));
    if staying.is_empty() {
        report.ok(
            WHAT,
            format!(
                "{} of {away} leave when their CPUs get an owner",
                others.len()
            ),
        );
    } else {
        report.warn(
            WHAT,
            format!(
                "of {away} {} cannot be moved, or came back",
                outside::irqs_named(&staying)
            ),
            outside::STAYING,
        );
    }
    match outside::irqs_banned(host) {
        Ok(Some(banned)) if !has_all(&banned, &owned) => report.warn(
            WHAT,
            format!("irqbalance runs, and can move interrupts back to {owned}"),
            match topology::online(host) {
                Ok(online) if leaves_few(&online, &[away, &set(&banned)]) => {
                    outside::FEW_FOR_IRQBALANCE.to_owned()
                }
                _ => format!("say IRQBALANCE_BANNED_CPULIST={away} in /etc/default/irqbalance"),
            },
        ),
        Ok(_) => {}
        Err(error) => report.error(WHAT, &error),
    }
}

/// Does the mask have all of these?
fn has_all(mask: &str, cpus: &CpuSet) -> bool {
    cpus.is_subset(&set(mask))
}

fn leaves_few(online: &CpuSet, banned: &[&CpuSet]) -> bool {
    outside::leaves_few(online, &banned.iter().copied().collect())
}

fn set(mask: &str) -> CpuSet {
    CpuSet::from_hex_mask(mask).unwrap_or_default()
}
