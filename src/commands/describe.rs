//! `pinfold describe`: the pools, and who owns what.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Result;
use serde_json::{Value, json};
use tabwriter::TabWriter;

use super::{Settings, warn_of};
use crate::check::{Scope, check_requests};
use crate::cli::Describe;
use crate::placement::{ListState, Owner, Survey, SurveyedList, SurveyedPool, survey};
use crate::pools::Kind;
use crate::text::one_line;

pub(super) fn run(args: &Describe, settings: &Settings) -> Result<u8> {
    let survey = survey(settings.site())?;
    for remark in &survey.remarks {
        log::warn!("{remark}");
    }
    let mut out = io::stdout().lock();
    if args.json {
        writeln!(out, "{:#}", document(&survey))?;
    } else {
        let mut table = TabWriter::new(vec![]);
        write_table(&mut table, &survey)?;
        out.write_all(&table.into_inner()?)?;
    }
    out.flush()?;
    let scope = Scope {
        site: settings.site(),
        places: Vec::new(),
        rules: settings.pools(),
        runtime: settings.runtime(),
    };
    check_requests(&scope).iter().for_each(warn_of);
    Ok(0)
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

fn write_table(out: &mut impl Write, survey: &Survey) -> Result<()> {
    writeln!(out, "POOL\tKIND\tCPUS\tSTATE\tOWNER\tPID\tSINCE")?;
    for pool in &survey.pools {
        for list in &pool.lists {
            let start = format!("{}\t{}\t{}", pool.name, pool.kind.word(), list.name);
            let start = one_line(&start).replace("\\t", "\t");
            for owner in &list.owners {
                writeln!(out, "{start}\t{}\t{}", state(list), owner_columns(owner))?;
            }
            if list.owners.is_empty() {
                writeln!(out, "{start}\t{}\t-\t-\t-", state(list))?;
            }
        }
    }
    Ok(out.flush()?)
}

fn state(list: &SurveyedList) -> String {
    let word = match list.state {
        ListState::Free => "free",
        ListState::Owned => "owned",
        ListState::Dead => "dead",
    };
    if list.offline.is_empty() {
        word.to_owned()
    } else {
        format!("{word}, {} offline", list.offline)
    }
}

fn owner_columns(owner: &Owner) -> String {
    let name = if owner.name.is_empty() {
        "?"
    } else {
        &owner.name
    };
    let since = match owner.since.map(u64::try_from) {
        Some(Ok(seconds)) => {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            humantime::format_rfc3339_seconds(time).to_string()
        }
        _ => "-".to_owned(),
    };
    let gone = if owner.alive { "" } else { " (gone)" };
    format!("{}{gone}\t{}\t{since}", one_line(name), owner.pid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpulist::CpuSet;

    fn survey() -> Survey {
        let list = |name: &str, tasks: &[i32], state| SurveyedList {
            name: name.into(),
            tasks: tasks.to_vec(),
            state,
            offline: CpuSet::new(),
            owners: tasks
                .iter()
                .map(|pid| Owner {
                    name: "we\tb\x1b".into(),
                    pid: *pid,
                    since: Some(0),
                    alive: true,
                })
                .collect(),
        };
        let mut lists = vec![
            list("4,12", &[2000], ListState::Owned),
            list("10", &[], ListState::Free),
        ];
        lists[1].offline = CpuSet::from_iter([10]);
        let dataplane = SurveyedPool {
            name: "dataplane".into(),
            kind: Kind::Exclusive,
            lists,
        };
        Survey {
            path: "/etc/kcm".into(),
            pools: vec![dataplane],
            remarks: vec![],
        }
    }

    #[test]
    fn the_document_is_kcms() {
        let expected = r#"{
  "path": "/etc/kcm",
  "pools": {
    "dataplane": {
      "cpuLists": {
        "10": {
          "cpus": "10",
          "tasks": []
        },
        "4,12": {
          "cpus": "4,12",
          "tasks": [
            2000
          ]
        }
      },
      "exclusive": true,
      "name": "dataplane"
    }
  }
}"#;
        assert_eq!(format!("{:#}", document(&survey())), expected);
    }

    #[test]
    fn the_table_escapes_what_others_named() {
        let mut table = Vec::new();
        write_table(&mut table, &survey()).unwrap();
        let text = String::from_utf8(table).unwrap();
        assert!(text.contains(
            "dataplane\texclusive\t4,12\towned\twe\\tb\\u{1b}\t2000\t1970-01-01T00:00:00Z"
        ));
        assert!(text.contains("dataplane\texclusive\t10\tfree, 10 offline\t-\t-\t-"));
    }
}
