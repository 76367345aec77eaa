//! Pure: a site's pools, owners and counters as OpenMetrics text (OpenMetrics 1.0; names follow
//! Prometheus).

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::claims::Claim;
use crate::counters::Counters;
use crate::placement::{ListState, SurveyedPool};
use crate::refusal::Reason;
use crate::text::one_line;
use crate::usage::Sample;

/// The text's HTTP content type.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Seconds = Family<Labels, Counter<f64>>;

/// What the text is made from.
#[derive(Debug, Default)]
pub struct Facts {
    /// The pools.
    pub pools: Vec<SurveyedPool>,
    /// The owners, and what was last read of each.
    pub owners: Vec<(Claim, Sample)>,
    /// The counters.
    pub counters: Counters,
}

/// The OpenMetrics text.
///
/// # Errors
/// None is known; the library's interface allows one.
pub fn text(facts: &Facts) -> Result<String> {
    text_with(facts, |_| {})
}

/// The OpenMetrics text, with what `add` knows besides.
///
/// # Errors
/// As [`text`].
pub fn text_with(facts: &Facts, add: impl FnOnce(&mut Registry)) -> Result<String> {
    let mut registry = Registry::with_prefix("pinfold");
    // A gauge, because node_exporter has no info type.
    let build = Family::<Labels, Gauge>::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    build.get_or_create(&version).set(1);
    registry.register("build_info", "The program, always 1", build);
    register_pools(&mut registry, &facts.pools);
    register_counters(&mut registry, &facts.counters);
    register_owners(&mut registry, &facts.owners);
    add(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).context("write the metrics")?;
    Ok(text)
}

/// Turns OpenMetrics text into the older text format, which node_exporter reads (Prometheus: "Text
/// format details", version 0.0.4). There a counter has the name of its samples, with `_total`.
pub fn older_text(text: &str) -> String {
    let counter = |line: &str| -> Option<String> {
        let name = line.strip_prefix("# TYPE ")?.strip_suffix(" counter")?;
        Some(name.to_owned())
    };
    let counters: BTreeSet<String> = text.lines().filter_map(counter).collect();
    let mut older = String::with_capacity(text.len());
    for line in text.lines() {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        match words.as_slice() {
            ["#", "EOF"] | ["#", "UNIT", ..] => {}
            ["#", what, name, rest] if counters.contains(*name) => {
                older += &format!("# {what} {name}_total {rest}\n");
            }
            _ => {
                older += line;
                older += "\n";
            }
        }
    }
    older
}

fn register_pools(registry: &mut Registry, pools: &[SurveyedPool]) {
    let lists = Family::<Labels, Gauge>::default();
    for pool in pools {
        for state in [ListState::Free, ListState::Owned, ListState::Dead] {
            let count = pool.lists.iter().filter(|list| list.state == state).count();
            let labels = vec![
                ("pool", one_line(&pool.name)),
                ("state", state.word().to_owned()),
            ];
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            lists.get_or_create(&labels).set(count);
        }
    }
    let help = "CPU lists of a pool: free, owned, or held by dead owners alone";
    registry.register("pool_lists", help, lists);
}

fn register_counters(registry: &mut Registry, counters: &Counters) {
    let refusals = Family::<Labels, Counter>::default();
    let words = Reason::ALL.map(Reason::word);
    for word in words {
        let count = counters.refusals.get(word).copied().unwrap_or_default();
        let labels = vec![("reason", word.to_owned())];
        refusals.get_or_create(&labels).inc_by(count);
    }
    let help = "Starts that were refused since the machine was booted";
    registry.register("refusals", help, refusals);
    let waits = Counter::<u64>::default();
    waits.inc_by(counters.lock_waits);
    registry.register("lock_waits", "Waits for the lock", waits);
    let waited = Counter::<f64>::default();
    waited.inc_by(counters.lock_wait_seconds);
    let help = "Time for which the lock was waited for";
    registry.register_with_unit("lock_wait", help, Unit::Seconds, waited);
    let reclaimed = Counter::<u64>::default();
    reclaimed.inc_by(counters.reclaimed_lists);
    let help = "CPU lists of dead owners that nobody had given back, and that were freed";
    registry.register("reclaimed_lists", help, reclaimed);
}

fn register_owners(registry: &mut Registry, owners: &[(Claim, Sample)]) {
    let (used, noise, watched) = (Seconds::default(), Seconds::default(), Seconds::default());
    for (claim, sample) in owners {
        let labels = || -> Labels {
            vec![
                ("id", one_line(&claim.id)),
                ("name", one_line(&claim.names.title().unwrap_or_default())),
                ("pool", one_line(&claim.pool)),
            ]
        };
        for (mode, seconds) in [("user", sample.mark.user), ("system", sample.mark.system)] {
            let mut labels = labels();
            labels.push(("mode", mode.to_owned()));
            used.get_or_create(&labels).inc_by(seconds);
        }
        // `over` is 0 if nobody has watched the CPUs yet, or nothing was kept of it. That does not
        // mean that there was no noise.
        if sample.noise.over > 0.0 {
            noise.get_or_create(&labels()).inc_by(sample.noise.most);
            watched.get_or_create(&labels()).inc_by(sample.noise.over);
        }
    }
    let help = "CPU time that an owner has used";
    registry.register_with_unit("owner_cpu", help, Unit::Seconds, used);
    let help = "CPU time that others used on an owner's CPUs, interrupts not counted";
    registry.register_with_unit("owner_noise", help, Unit::Seconds, noise);
    let help = "Time in which others were watched for that";
    registry.register_with_unit("owner_watched", help, Unit::Seconds, watched);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_without_anything_has_its_counters() {
        let mut facts = Facts::default();
        facts.counters.refusals.insert("exhausted".into(), 3);
        facts.counters.lock_wait_seconds = 1.25;
        let text = text(&facts).unwrap();
        for line in [
            "pinfold_refusals_total{reason=\"exhausted\"} 3",
            "pinfold_refusals_total{reason=\"other\"} 0",
            "pinfold_lock_wait_seconds_total 1.25",
            "pinfold_reclaimed_lists_total 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}: {text}");
        }
        let older = older_text(&text);
        for line in [
            "# TYPE pinfold_refusals_total counter",
            "# HELP pinfold_lock_waits_total Waits for the lock.",
            "pinfold_lock_wait_seconds_total 1.25",
            "# TYPE pinfold_build_info gauge",
        ] {
            assert!(older.lines().any(|one| one == line), "{line}: {older}");
        }
        assert!(
            !older.contains("# UNIT") && !older.contains("# EOF"),
            "{older}"
        );
    }
}
