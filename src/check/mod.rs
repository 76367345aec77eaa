//! Looking at everything that a container's start depends on, and changing nothing: what `pinfold
//! check` tells.

mod cdi;
mod containers;
mod deep;
mod engines;
mod hooks;
mod isolation;
mod machine;
mod pools;
mod rules;
mod trial;
mod twins;
mod upkeep;

pub use containers::{KeptCpus, check_neighbours, check_requests, kept};

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::config::{PoolTable, RuntimeTable};
use crate::engines::Engine;
use crate::host::Host;
use crate::install::Place;
use crate::placement::Site;
use crate::pools::plan::Reserve;
use crate::refusal::Refusal;

/// How a thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Containers start, but not all is as whoever looks may think.
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

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it stands.
    pub level: Level,
    /// What was looked at, in one word.
    pub what: &'static str,
    /// How it was found.
    pub text: String,
    /// What to do about it, where it is not as it should be.
    pub remedy: Option<String>,
}

impl Finding {
    /// What keeps everything else from being looked at.
    pub fn of_error(what: &'static str, error: &anyhow::Error) -> Finding {
        let refusal = Refusal::of(error);
        Finding {
            level: Level::Fault,
            what,
            text: refusal.what,
            remedy: Some(refusal.remedy),
        }
    }
}

/// What to look at.
#[derive(Debug)]
pub struct Scope<'a> {
    /// The machine, the pool directory and the claims.
    pub site: &'a Site,
    /// Engines whose files are not at their default places.
    pub places: Vec<(Engine, Place<'a>)>,
    /// Which pools have rules, and what they are.
    pub rules: &'a BTreeMap<String, PoolTable>,
    /// What `pinfold-runtime` becomes.
    pub runtime: &'a RuntimeTable,
    /// The CPUs that the configuration keeps for the host's own work.
    pub reserve: Option<&'a Reserve>,
}

impl Scope<'_> {
    fn host(&self) -> &Host {
        &self.site.host
    }

    /// Where an engine's files are.
    fn place(&self, engine: Engine) -> Place<'_> {
        let named = self.places.iter().find(|(named, _)| *named == engine);
        named.map_or_else(
            || Place::default_on(self.host()),
            |(_, place)| place.clone(),
        )
    }

    /// Are there pools of some namespaces alone? Then whoever asks has to name its engine.
    fn has_namespaces(&self) -> bool {
        self.rules.values().any(|rules| rules.namespaces.is_some())
    }
}

/// Looks at everything, the machine first.
pub fn check(scope: &Scope<'_>) -> Vec<Finding> {
    let mut report = Report::default();
    machine::check(scope.site, &mut report);
    pools::check(scope.site, &mut report);
    upkeep::check(scope, &mut report);
    let have_shim = engines::check(scope, &mut report);
    rules::check(scope, &have_shim, &mut report);
    cdi::check(scope.site, &mut report);
    containers::check(scope, &mut report);
    let named = std::mem::take(&mut report.other_pools);
    twins::check(scope, named, &mut report);
    report.findings
}

/// Holds everything that is recorded against everything that lives.
pub fn check_deep(site: &Site) -> Vec<Finding> {
    let mut report = Report::default();
    deep::check(site, &mut report);
    report.findings
}

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    findings: Vec<Finding>,
    /// The pool directories that hooks are led to.
    other_pools: BTreeSet<PathBuf>,
}

impl Report {
    fn ok(&mut self, what: &'static str, text: impl fmt::Display) {
        self.add(Level::Ok, what, text, None);
    }

    fn warn(&mut self, what: &'static str, text: impl fmt::Display, remedy: impl Into<String>) {
        self.add(Level::Warning, what, text, Some(remedy.into()));
    }

    fn fault(&mut self, what: &'static str, text: impl fmt::Display, remedy: impl Into<String>) {
        self.add(Level::Fault, what, text, Some(remedy.into()));
    }

    fn error(&mut self, what: &'static str, error: &anyhow::Error) {
        let refusal = Refusal::of(error);
        self.once(Level::Fault, what, &refusal);
    }

    /// What others can change.
    fn doubt(&mut self, what: &'static str, doubt: &Refusal) {
        self.once(Level::Fault, what, doubt);
    }

    /// What another room remarks.
    fn remark(&mut self, what: &'static str, remark: &Refusal) {
        self.once(Level::Warning, what, remark);
    }

    /// More than one part of this can meet with the same thing. What is well is nobody's complaint:
    /// `257`, the version of systemd, stands in many a number.
    fn once(&mut self, level: Level, what: &'static str, refusal: &Refusal) {
        let mut complaints = self
            .findings
            .iter()
            .filter(|finding| finding.level != Level::Ok);
        if !complaints.any(|finding| refusal.what.contains(&finding.text)) {
            // Whoever looks at everything is not told to look at everything.
            let remedy = match refusal.is_vague() {
                true => "mend what it names",
                false => &refusal.remedy,
            };
            self.add(level, what, &refusal.what, Some(remedy.to_owned()));
        }
    }

    fn add(
        &mut self,
        level: Level,
        what: &'static str,
        text: impl fmt::Display,
        remedy: Option<String>,
    ) {
        self.findings.push(Finding {
            level,
            what,
            text: text.to_string(),
            remedy,
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
