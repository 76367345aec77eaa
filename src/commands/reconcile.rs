//! `pinfold reconcile`: freeing what dead owners hold.

use std::io::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use super::Settings;
use super::output::Output;
use crate::cli::Reconcile;
use crate::placement::{Report, reconcile};
use crate::text::one_line;

pub(super) fn run(args: &Reconcile, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    loop {
        let mut out = Output::account();
        let outcome = reconcile(site).and_then(|report| tell(&report, args.json, &mut out));
        let Some(seconds) = args.interval else {
            return outcome.map(|()| 0);
        };
        // What is done for a reader that is gone is done for nobody.
        if out.is_closed() {
            return outcome.map(|()| 0);
        }
        if let Err(error) = outcome {
            log::error!("{error:#}");
        }
        sleep(Duration::from_secs(seconds));
    }
}

fn tell(report: &Report, json: bool, out: &mut Output) -> Result<()> {
    if json {
        let entries: Vec<_> = report
            .reclaimed
            .iter()
            .map(|one| json!({"cpus": one.cpus, "pid": one.pid, "pool": one.pool}))
            .collect();
        let document = json!({ "reclaimedCpuLists": entries });
        out.json(&document)?;
    } else {
        for one in &report.reclaimed {
            writeln!(
                out,
                "freed {} of pool {}, which process {} held",
                one_line(&one.cpus),
                one_line(&one.pool),
                one.pid
            )?;
        }
        if report.reclaimed.is_empty() {
            writeln!(out, "nothing to free")?;
        }
    }
    if !report.problems.is_empty() {
        bail!("{}", report.problems.join("; "));
    }
    Ok(())
}
