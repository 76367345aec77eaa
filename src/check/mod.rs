//! `pinfold check`: looks at everything that a container's start depends on, and changes nothing.

mod cdi;
mod confine;
mod containers;
mod deep;
mod default_pool;
mod engines;
mod hooks;
mod isolation;
mod kubelet;
mod machine;
mod nri;
mod pools;
mod rules;
mod trial;
mod tuning;
mod twins;
mod upkeep;

pub use containers::{KeptCpus, check_neighbours, check_requests, kept};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use crate::config::{HostTable, PoolTable, RuntimeTable};
use crate::engines::Engine;
use crate::host::Host;
use crate::install::Place;
use crate::placement::Site;
use crate::pools::plan::Reserve;
use crate::refusal::Refusal;

/// How serious a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// All is well.
    Ok,
    /// Containers start, but something may not be as people think.
    Warning,
    /// Containers that ask for CPUs do not get them.
    Fault,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Fault => "fault",
        }
    }
}

/// How something stands that was checked, and what to do about it where it is not well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All is well.
    Ok,
    /// A warning, with the remedy.
    Warning(String),
    /// A fault, with the remedy.
    Fault(String),
}

impl Outcome {
    /// The remedy; `None` if all is well.
    pub fn remedy(&self) -> Option<&str> {
        match self {
            Outcome::Ok => None,
            Outcome::Warning(remedy) | Outcome::Fault(remedy) => Some(remedy),
        }
    }

    /// The same with another remedy.
    pub fn map_remedy(self, change: impl FnOnce(&str) -> String) -> Outcome {
        match self {
            Outcome::Ok => Outcome::Ok,
            Outcome::Warning(remedy) => Outcome::Warning(change(&remedy)),
            Outcome::Fault(remedy) => Outcome::Fault(change(&remedy)),
        }
    }
}

/// Something that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it stands.
    pub outcome: Outcome,
    /// What was checked, in one word.
    pub what: &'static str,
    /// What was found.
    pub text: String,
}

impl Finding {
    /// The finding for an error that keeps everything else from being checked.
    pub fn of_error(what: &'static str, error: &anyhow::Error) -> Finding {
        let refusal = Refusal::of(error);
        Finding {
            outcome: Outcome::Fault(refusal.remedy),
            what,
            text: refusal.what,
        }
    }

    /// How serious it is.
    pub fn level(&self) -> Level {
        match self.outcome {
            Outcome::Ok => Level::Ok,
            Outcome::Warning(_) => Level::Warning,
            Outcome::Fault(_) => Level::Fault,
        }
    }
}

/// What is checked.
#[derive(Debug)]
pub struct Scope<'a> {
    /// The machine, the pool directory and the run directory.
    pub site: &'a Site,
    /// The places of engines' files that are not at their default places.
    pub places: Vec<(Engine, Place<'a>)>,
    /// The configuration's tables of pools, by the pools' names.
    pub rules: &'a BTreeMap<String, PoolTable>,
    /// The configuration's table of the runtime that `pinfold-runtime` becomes.
    pub runtime: &'a RuntimeTable,
    /// The CPUs that the configuration reserves for the host's own work.
    pub reserve: Option<&'a Reserve>,
    /// The configuration's table of the host, and of whoever asks for nothing.
    pub host_table: &'a HostTable,
}

impl Scope<'_> {
    fn host(&self) -> &Host {
        &self.site.host
    }

    /// The place of an engine's files.
    fn place(&self, engine: Engine) -> Place<'_> {
        let named = self.places.iter().find(|(named, _)| *named == engine);
        named.map_or_else(
            || Place::default_on(self.host()),
            |(_, place)| place.clone(),
        )
    }

    /// Is there a pool for some namespaces only? Then whoever asks for CPUs must name its engine.
    fn has_namespaces(&self) -> bool {
        self.rules.values().any(|rules| rules.namespaces.is_some())
    }
}

/// Checks everything, the machine first.
pub fn check(scope: &Scope<'_>) -> Vec<Finding> {
    let mut report = Report::default();
    machine::check(scope.site, &mut report);
    pools::check(scope.site, &mut report);
    upkeep::check(scope, &mut report);
    let have_shim = engines::check(scope, &mut report);
    nri::check(scope, &mut report);
    rules::check(scope, &have_shim, &mut report);
    default_pool::check(scope, &mut report);
    confine::check(scope, &mut report);
    cdi::check(scope.site, &mut report);
    kubelet::check(scope.site, &mut report);
    containers::check(scope, &mut report);
    let named = std::mem::take(&mut report.other_pools);
    twins::check(scope, named, &mut report);
    report.findings
}

/// Compares all records with all live processes.
pub fn check_deep(site: &Site) -> Vec<Finding> {
    let mut report = Report::default();
    deep::check(site, &mut report);
    report.findings
}

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    /// The pool directories that hooks are told to use.
    other_pools: BTreeSet<PathBuf>,
}

impl Report {
    fn ok(&mut self, what: &'static str, text: impl fmt::Display) {
        self.add(Outcome::Ok, what, text);
    }

    fn warn(&mut self, what: &'static str, text: impl fmt::Display, remedy: impl Into<String>) {
        self.add(Outcome::Warning(remedy.into()), what, text);
    }

    fn fault(&mut self, what: &'static str, text: impl fmt::Display, remedy: impl Into<String>) {
        self.add(Outcome::Fault(remedy.into()), what, text);
    }

    fn error(&mut self, what: &'static str, error: &anyhow::Error) {
        let refusal = Refusal::of(error);
        self.once(Outcome::Fault, what, &refusal);
    }

    /// Adds a fault about something that others can change.
    fn doubt(&mut self, what: &'static str, doubt: &Refusal) {
        self.once(Outcome::Fault, what, doubt);
    }

    /// Adds a warning that another room gives.
    fn remark(&mut self, what: &'static str, remark: &Refusal) {
        self.once(Outcome::Warning, what, remark);
    }

    /// Adds a finding, unless a complaint with this text was added: two checks can meet the same
    /// thing. Findings of level `Ok` do not count: `257`, systemd's version, is part of many an
    /// inode's number.
    fn once(&mut self, outcome: fn(String) -> Outcome, what: &'static str, refusal: &Refusal) {
        let mut complaints = self
            .findings
            .iter()
            .filter(|finding| finding.outcome != Outcome::Ok);
        if !complaints.any(|finding| refusal.what.contains(&finding.text)) {
            // The vague remedy is to run `pinfold check`.
            let remedy = match refusal.is_vague() {
                true => "mend what it names",
                false => &refusal.remedy,
            };
            self.add(outcome(remedy.to_owned()), what, &refusal.what);
        }
    }

    fn add(&mut self, outcome: Outcome, what: &'static str, text: impl fmt::Display) {
        self.findings.push(Finding {
            outcome,
            what,
            text: text.to_string(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thing_is_complained_of_once_and_what_is_well_hides_no_complaint() {
        let mut report = Report::default();
        report.ok("systemd", "257");
        let left = Refusal::new(
            "the cgroup /pinfold/fe00-10257891/web is left over",
            "mend it",
        );
        report.remark("claims", &left);
        report.remark("books", &left);
        let found: Vec<&str> = report
            .findings
            .iter()
            .map(|one| one.text.as_str())
            .collect();
        assert_eq!(found, ["257", &left.what]);
    }
}
