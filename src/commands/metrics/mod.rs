//! `pinfold metrics`: metrics for Prometheus, printed, written to a file, or served by HTTP. The
//! parts of that serve `pinfold-node` as well.

mod server;

use std::io::Write;
use std::path::Path;

use anyhow::Result;

pub use server::Listener;

use super::output::{Output, Target};
use crate::cli::MetricsArgs;
use crate::counters;
use crate::metrics::{Facts, older_text, text};
use crate::placement::{Site, readings, survey};
use crate::settings::Settings;

pub(super) fn run(args: &MetricsArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    if let Some(address) = args.listen {
        Listener::bind(address)?.serve(|| text(&facts(site)?));
    }
    let text = text(&facts(site)?)?;
    match &args.textfile {
        Some(path) => {
            replace_textfile(path, &text)?;
        }
        None => Output::product().write_all(text.as_bytes())?,
    }
    Ok(0)
}

/// Replaces a file that node_exporter reads by this OpenMetrics text; `-` is standard output.
///
/// # Errors
/// It is not a regular file, or cannot be written.
pub fn replace_textfile(path: &Path, text: &str) -> Result<()> {
    Target::of(path)?.write(&older_text(text))
}

/// All that is known now. If owners or counts cannot be read, the rest is still reported.
///
/// # Errors
/// The pool directory cannot be read at all.
pub fn facts(site: &Site) -> Result<Facts> {
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
