//! `pinfold metrics`: metrics for Prometheus, printed, written to a file, or served by HTTP.

mod server;

use std::io::Write;

use anyhow::Result;

use super::output::{Output, Target};
use crate::cli::MetricsArgs;
use crate::counters;
use crate::metrics::{Facts, older_text, text};
use crate::placement::{Site, readings, survey};
use crate::settings::Settings;

pub(super) fn run(args: &MetricsArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    if let Some(address) = args.listen {
        return server::serve(address, || text(&facts(site)?));
    }
    let text = text(&facts(site)?)?;
    match &args.textfile {
        Some(path) => {
            Target::of(path)?.write(&older_text(&text))?;
        }
        None => Output::product().write_all(text.as_bytes())?,
    }
    Ok(0)
}

/// All that is known now. If owners or counts cannot be read, the rest is still reported.
fn facts(site: &Site) -> Result<Facts> {
    let survey = survey(site)?;
    for remark in &survey.remarks {
        log::warn!("{remark}");
    }
    let owners = readings(site).unwrap_or_else(|error| {
        log::warn!("what owners use: {error:#}");
        Vec::new()
    });
    let counters = counters::read(&site.run_dir).unwrap_or_else(|error| {
        log::warn!("{error:#}");
        counters::Counters::default()
    });
    Ok(Facts {
        pools: survey.pools,
        owners,
        counters,
    })
}
