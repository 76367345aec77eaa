//! `pinfold describe`: KCM's verb. With `--json` its document; else what `pinfold status` shows.

use std::borrow::Cow;
use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::output::Output;
use super::status;
use crate::cli::DescribeArgs;
use crate::placement::{Survey, SurveyedList, SurveyedPool, survey};
use crate::pools::Kind;
use crate::settings::Settings;

pub(super) fn run(args: &DescribeArgs, settings: &Settings) -> Result<u8> {
    let survey = survey(settings.site())?;
    if args.json {
        Output::product().json(&document(&survey))?;
    } else {
        status::show(&survey, args.look)?;
    }
    status::warn(&survey, settings);
    Ok(status::code(&survey))
}

/// The pools in KCM's form; keys are sorted.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Document<'a> {
    /// The pool directory.
    path: Cow<'a, str>,
    /// The pools, by name.
    pools: BTreeMap<&'a str, PoolEntry<'a>>,
}

/// A pool.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct PoolEntry<'a> {
    /// Its CPU lists, by directory name.
    cpu_lists: BTreeMap<&'a str, ListEntry<'a>>,
    /// Has each of its lists one owner at most?
    exclusive: bool,
    /// Its name.
    name: &'a str,
}

/// A CPU list.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ListEntry<'a> {
    /// The CPUs, as a list such as `4,12` or `0-2`.
    cpus: &'a str,
    /// How the kernel keeps everybody but its owner off the CPUs now: `root` or `isolated`, the
    /// kind of the cpuset partition that does; `isolcpus`, if they were isolated at boot; `none`
    /// where it does not, and where nobody owns them. Only in a pool that says `isolation`.
    #[serde(skip_serializing_if = "Option::is_none")]
    isolation: Option<&'static str>,
    /// The pids of its owners.
    tasks: &'a [i32],
}

fn document<'a>(survey: &'a Survey) -> Document<'a> {
    let list = |pool: &'a SurveyedPool, list: &'a SurveyedList| {
        let (cpus, tasks) = (list.name.as_str(), list.tasks.as_slice());
        let holder = survey
            .owners
            .iter()
            .find(|owner| owner.is_alive() && owner.holds(&pool.name, cpus));
        let isolation = holder.map_or("none", |owner| owner.keeping.word());
        let entry = ListEntry {
            cpus,
            isolation: pool.wants_isolation().then_some(isolation),
            tasks,
        };
        (cpus, entry)
    };
    let pool = |pool: &'a SurveyedPool| {
        let entry = PoolEntry {
            cpu_lists: pool.lists.iter().map(|one| list(pool, one)).collect(),
            exclusive: pool.kind == Kind::Exclusive,
            name: &pool.name,
        };
        (entry.name, entry)
    };
    Document {
        path: survey.path.to_string_lossy(),
        pools: survey.pools.iter().map(pool).collect(),
    }
}
