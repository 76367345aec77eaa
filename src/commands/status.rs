//! `pinfold status`: the pools, who owns what, and how each owner is. `pinfold describe` shows the
//! same.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anstyle::Style;
use anyhow::Result;
use serde::Serialize;

use super::output::Output;
use super::screen::{self, BAD, GOOD, ODD, PLAIN, Table};
use super::warn_of;
use crate::check::{Scope, check_requests};
use crate::cli::{LookArgs, OutputFormat, StatusArgs};
use crate::cpulist::CpuSet;
use crate::isolation::tuning::listed;
use crate::names::short_id;
use crate::outside::Keeping;
use crate::placement::{
    ListState, Owner, OwnerState, Survey, SurveyedList, SurveyedPool, pid_id, survey,
};
use crate::pools::Kind;
use crate::refusal::Refusal;
use crate::settings::Settings;

pub(super) fn run(args: &StatusArgs, settings: &Settings) -> Result<u8> {
    let look = match args.json {
        true => LookArgs {
            output: Some(OutputFormat::Json),
            ..args.look
        },
        false => args.look,
    };
    let survey = survey(settings.site())?;
    show(&survey, look)?;
    warn(&survey, settings);
    Ok(code(&survey))
}

/// The exit code: 1 if something could not be read that was to be shown.
pub(super) fn code(survey: &Survey) -> u8 {
    u8::from(!survey.is_all_read())
}

/// Prints a survey in the form that is asked for.
pub(super) fn show(survey: &Survey, look: LookArgs) -> Result<()> {
    if look.output == Some(OutputFormat::Json) {
        Output::product().json(&document(survey))?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| now.as_secs());
        let sheet = TableStyle {
            is_wide: look.output == Some(OutputFormat::Wide),
            is_whole: look.no_trunc || look.output == Some(OutputFormat::Wide),
            now: i64::try_from(now).unwrap_or(i64::MAX),
            width: screen::table_width(),
        };
        Output::product().coloured(|out| sheet.write(out, survey))?;
    }
    Ok(())
}

/// What is wrong, one sentence each.
fn remarks(survey: &Survey) -> impl Iterator<Item = &Refusal> {
    survey.remarks.iter().chain(&survey.about_owners)
}

/// Says what is wrong, and which running containers ask for CPUs and own none.
pub(super) fn warn(survey: &Survey, settings: &Settings) {
    for remark in remarks(survey) {
        log::warn!("{remark}");
    }
    let scope = Scope {
        site: settings.site(),
        places: Vec::new(),
        rules: settings.pools(),
        runtime: settings.runtime(),
        reserve: settings.reserve(),
        host_table: settings.host_table(),
    };
    check_requests(&scope).iter().for_each(warn_of);
}

/// How the tables are drawn.
struct TableStyle {
    is_wide: bool,
    is_whole: bool,
    /// Seconds since the epoch.
    now: i64,
    /// In columns.
    width: usize,
}

impl TableStyle {
    fn write(&self, out: &mut impl Write, survey: &Survey) -> io::Result<()> {
        let most = (!self.is_whole).then_some(self.width);
        self.pools(survey).write(out, most)?;
        writeln!(out)?;
        if survey.owners.is_empty() {
            return writeln!(out, "Nobody owns any CPUs.");
        }
        self.owners(survey).write(out, most)?;
        if survey.owners.iter().any(|owner| is_shared(survey, owner)) {
            writeln!(out, "\n{SHARED}")?;
        }
        Ok(())
    }

    fn pools(&self, survey: &Survey) -> Table {
        let mut table = Table::new(&[
            ("POOL", 8),
            ("KIND", 0),
            ("CPUS", 8),
            ("LISTS", 0),
            ("OWNERS", 0),
            ("FREE", 8),
        ]);
        for pool in &survey.pools {
            let owners = survey.owners.iter().filter(|owner| owner.pool == pool.name);
            table.row(vec![
                (pool.name.clone(), PLAIN),
                (pool.kind.word().to_owned(), PLAIN),
                (pool.cpus().to_string(), PLAIN),
                (pool.lists.len().to_string(), PLAIN),
                (owners.count().to_string(), PLAIN),
                (free(pool), GOOD),
            ]);
        }
        table
    }

    fn owners(&self, survey: &Survey) -> Table {
        let mut columns = vec![
            ("ID", 12),
            ("NAME", 12),
            ("ENGINE", 6),
            ("POOL", 8),
            ("CPUS", 8),
        ];
        if self.is_wide {
            columns.extend([("RUNS-ON", 0), ("ISOLATION", 0), ("TUNING", 0), ("PID", 0)]);
        }
        columns.extend([("STATE", 0), ("SINCE", 0)]);
        let mut table = Table::new(&columns);
        for owner in &survey.owners {
            let mut row = vec![
                self.id(owner),
                owner.names.title().unwrap_or_default(),
                owner.names.engine.clone().unwrap_or_default(),
                match owner.by_default {
                    true => format!("{} (default)", owner.pool),
                    false => owner.pool.clone(),
                },
                owner.lists.join(","),
            ];
            if self.is_wide {
                let runs_on = owner.runs_on.as_ref().map(CpuSet::to_string);
                row.extend([
                    runs_on.unwrap_or_default(),
                    match &owner.keeping {
                        Keeping::Above { path, kind } => format!("{} ({path})", kind.word()),
                        keeping => keeping.word().to_owned(),
                    },
                    listed(owner.tuning.said()),
                    owner.pid.to_string(),
                ]);
            }
            let mut row: Vec<_> = row.into_iter().map(|text| (text, PLAIN)).collect();
            // In a column that is never cut.
            row.push(match is_shared(survey, owner) {
                true if colour(owner.state) == GOOD => {
                    (format!("{}{MARK}", owner.state.word()), ODD)
                }
                true => (format!("{}{MARK}", owner.state.word()), colour(owner.state)),
                false => (owner.state.word().to_owned(), colour(owner.state)),
            });
            row.push((self.since(owner), PLAIN));
            table.row(row);
        }
        table
    }

    /// The owner's id. One that another tool recorded has none that `release` takes, and is shown
    /// by its pid.
    fn id(&self, owner: &Owner) -> String {
        match &owner.id {
            Some(id) if self.is_whole => id.clone(),
            Some(id) => short_id(id).to_owned(),
            None => pid_id(owner.pid),
        }
    }

    fn since(&self, owner: &Owner) -> String {
        match (owner.since, self.is_wide) {
            (None, _) => String::new(),
            (Some(since), true) => timestamp(since).unwrap_or_default(),
            (Some(since), false) => age(self.now.saturating_sub(since)),
        }
    }
}

/// What marks an owner on whose CPUs others can run although its pool wants them kept off, and what
/// is said of all those.
const MARK: &str = "*";
const SHARED: &str =
    "* others can run on its CPUs, against isolation= of its pool: `pinfold check`";

/// Can others run on an owner's CPUs although its pool wants them kept off?
fn is_shared(survey: &Survey, owner: &Owner) -> bool {
    let settles = !matches!(owner.state, OwnerState::Gone | OwnerState::Starting);
    let mut pools = survey.pools.iter();
    let pool = pools.find(|pool| pool.name == owner.pool);
    settles && owner.keeping.lets_others_in() && pool.is_some_and(SurveyedPool::wants_isolation)
}

/// The names of the lists that the next owner can get. A shared list is never taken.
fn free(pool: &SurveyedPool) -> String {
    if pool.kind == Kind::Shared {
        return "shared".to_owned();
    }
    let free = pool
        .lists
        .iter()
        .filter(|list| list.state == ListState::Free);
    let names = free.map(|list| match list.offline.is_empty() {
        true => list.name.clone(),
        false => format!("{}(offline)", list.name),
    });
    names.collect::<Vec<_>>().join(" ")
}

fn colour(state: OwnerState) -> Style {
    match state {
        OwnerState::Running => GOOD,
        OwnerState::Starting | OwnerState::Offline | OwnerState::Gone | OwnerState::Unknown => ODD,
        OwnerState::Moved | OwnerState::Unreadable => BAD,
    }
}

/// A time span in its largest unit, rounded down: `3h`.
fn age(seconds: i64) -> String {
    const UNITS: [(i64, char); 3] = [(86400, 'd'), (3600, 'h'), (60, 'm')];
    let seconds = seconds.max(0);
    let unit = UNITS.into_iter().find(|(length, _)| seconds >= *length);
    let (length, letter) = unit.unwrap_or((1, 's'));
    format!("{}{letter}", seconds / length)
}

/// A time in UTC (RFC 3339).
fn timestamp(seconds: i64) -> Option<String> {
    let since_epoch = Duration::from_secs(u64::try_from(seconds).ok()?);
    let time = UNIX_EPOCH.checked_add(since_epoch)?;
    // RFC 3339 has no year after 9999.
    (seconds < 253_402_300_800).then(|| humantime::format_rfc3339_seconds(time).to_string())
}

/// The pools, and who owns what.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// Was everything read that was to be shown? The exit code is 1 if it was not.
    is_whole: bool,
    /// The owners, by pool and first CPU.
    owners: Vec<OwnerEntry<'a>>,
    /// The pool directory.
    path: Cow<'a, str>,
    /// The pools, by name.
    pools: Vec<PoolEntry<'a>>,
    /// What cannot be right, or could not be looked at: a sentence each, with the remedy.
    remarks: Vec<String>,
}

/// A pool.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct PoolEntry<'a> {
    /// The CPUs of all its lists, as a list such as `4,12` or `0-2`.
    cpus: String,
    /// Has each of its lists one owner at most?
    exclusive: bool,
    /// Its CPU lists, by first CPU.
    lists: Vec<ListEntry<'a>>,
    /// Its name.
    name: &'a str,
}

/// A CPU list.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ListEntry<'a> {
    /// The CPUs, as a list.
    cpus: &'a str,
    /// Those of its CPUs that are offline, as a list; empty where all are online.
    offline: String,
    /// How many owners hold it.
    owners: usize,
    /// Whether it is free.
    state: ListState,
}

/// An owner, with all that it holds.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct OwnerEntry<'a> {
    /// Did it ask for nothing, and was given CPUs of the configuration's default pool?
    by_default: bool,
    /// The CPUs that it owns, as a list.
    cpus: String,
    /// Its engine: `podman`, `crio`, `containerd` or `docker`; null where none is known.
    engine: Option<&'a str>,
    /// The id that `pinfold release` takes; null for a process that another tool recorded.
    id: Option<&'a str>,
    /// How the kernel keeps everybody else off its CPUs now: `root` or `isolated`, the kind of its
    /// cpuset partition, or of the one that a group above its own is; `isolcpus`, if these were
    /// isolated at boot; `none` where it does not.
    isolation: &'static str,
    /// Its CPU lists, a directory name each.
    lists: &'a [String],
    /// The container's name, or the file name of the command's program.
    name: Option<&'a str>,
    /// The Kubernetes namespace of its pod.
    namespace: Option<&'a str>,
    /// The process that stands for it.
    pid: i32,
    /// The name of its pod.
    pod: Option<&'a str>,
    /// The pool's name; empty where its claim cannot be read.
    pool: &'a str,
    /// The CPUs that it may run on, as a list; null where that cannot be told.
    runs_on: Option<String>,
    /// Since when it owns them: a time in UTC (RFC 3339); null where that is not known.
    since: Option<String>,
    /// How it is.
    state: OwnerState,
    /// What is set for it of interrupts, limits and power, by option.
    tuning: BTreeMap<&'static str, &'a str>,
    /// The systemd service that runs it.
    unit: Option<&'a str>,
}

fn document(survey: &Survey) -> Document<'_> {
    Document {
        is_whole: survey.is_all_read(),
        owners: survey.owners.iter().map(owner_entry).collect(),
        path: survey.path.to_string_lossy(),
        pools: survey.pools.iter().map(pool_entry).collect(),
        remarks: remarks(survey).map(Refusal::to_string).collect(),
    }
}

fn pool_entry<'a>(pool: &'a SurveyedPool) -> PoolEntry<'a> {
    let list = |list: &'a SurveyedList| ListEntry {
        cpus: &list.name,
        offline: list.offline.to_string(),
        owners: list.owners,
        state: list.state,
    };
    PoolEntry {
        cpus: pool.cpus().to_string(),
        exclusive: pool.kind == Kind::Exclusive,
        lists: pool.lists.iter().map(list).collect(),
        name: &pool.name,
    }
}

fn owner_entry(owner: &Owner) -> OwnerEntry<'_> {
    let names = &owner.names;
    OwnerEntry {
        by_default: owner.by_default,
        cpus: owner.cpus.to_string(),
        engine: names.engine.as_deref(),
        id: owner.id.as_deref(),
        isolation: owner.keeping.word(),
        lists: &owner.lists,
        name: names.name.as_deref(),
        namespace: names.namespace.as_deref(),
        pid: owner.pid,
        pod: names.pod.as_deref(),
        pool: &owner.pool,
        runs_on: owner.runs_on.as_ref().map(CpuSet::to_string),
        since: owner.since.and_then(timestamp),
        state: owner.state,
        tuning: owner.tuning.said(),
        unit: names.unit.as_deref(),
    }
}
