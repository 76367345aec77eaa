//! `pinfold reconcile`: freeing what dead owners hold.

use std::io::{self, Write};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use super::{Settings, is_closed_pipe};
use crate::cli::Reconcile;
use crate::placement::{Report, reconcile};

pub(super) fn run(args: &Reconcile, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    loop {
        let outcome = reconcile(site).and_then(|report| print(&report, args.json));
        let Some(seconds) = args.interval else {
            return outcome.map(|()| 0);
        };
        if let Err(error) = outcome {
            if is_closed_pipe(&error) {
                return Err(error);
            }
            log::error!("{error:#}");
        }
        sleep(Duration::from_secs(seconds));
    }
}

fn print(report: &Report, json: bool) -> Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let entries: Vec<_> = report
            .reclaimed
            .iter()
            .map(|one| json!({"cpus": one.cpus, "pid": one.pid, "pool": one.pool}))
            .collect();
        let document = json!({ "reclaimedCpuLists": entries });
        writeln!(out, "{document:#}")?;
    } else {
        for one in &report.reclaimed {
            writeln!(
                out,
                "freed {} of pool {}, which process {} held",
                one.cpus, one.pool, one.pid
            )?;
        }
        if report.reclaimed.is_empty() {
            writeln!(out, "nothing to free")?;
        }
    }
    out.flush()?;
    if !report.problems.is_empty() {
        bail!("{}", report.problems.join("; "));
    }
    Ok(())
}
