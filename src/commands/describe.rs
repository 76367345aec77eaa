//! `pinfold describe`: KCM's verb. With `--json` its document; else what `pinfold status` shows.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

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

/// KCM's document: keys sorted, indented by two.
fn document(survey: &Survey) -> Value {
    let list = |list: &SurveyedList| {
        let value = json!({"cpus": list.name, "tasks": list.tasks});
        (list.name.clone(), value)
    };
    let pool = |pool: &SurveyedPool| {
        let lists: BTreeMap<String, Value> = pool.lists.iter().map(list).collect();
        let exclusive = pool.kind == Kind::Exclusive;
        let value = json!({"cpuLists": lists, "exclusive": exclusive, "name": pool.name});
        (pool.name.clone(), value)
    };
    let pools: BTreeMap<String, Value> = survey.pools.iter().map(pool).collect();
    json!({"path": survey.path.to_string_lossy(), "pools": pools})
}
