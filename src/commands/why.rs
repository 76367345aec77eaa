//! `pinfold why`: the last refusals.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde::Serialize;

use super::output::Output;
use crate::cli::WhyArgs;
use crate::names::{self, Names};
use crate::refusal::Refusal;
use crate::refusals::{self, Refused};
use crate::settings::Settings;
use crate::text::{Shown, one_line};

pub(super) fn run(args: &WhyArgs, settings: &Settings) -> Result<u8> {
    let since = args.since.map(|age| SystemTime::now() - age);
    let mut kept = refusals::all(&settings.site().run_dir)?;
    kept.retain(|refusal| since.is_none_or(|since| time(refusal) >= since));
    if let Some(name) = &args.container {
        let has_names = |one: &Refused, is: &dyn Fn(&Names) -> bool| is(&one.names);
        let its = names::meant(&kept, name, |one| one.container.as_str(), has_names);
        kept = its.into_iter().cloned().collect();
    }
    if let (Some(name), true) = (&args.container, kept.is_empty()) {
        bail!(Refusal::new(
            format!("no refusal of {} is kept", Shown(name)),
            "`journalctl -t pinfold` has older ones"
        ));
    }
    let mut out = Output::product();
    if args.json {
        out.json(&document(&kept))?;
        return Ok(0);
    }
    for refusal in &kept {
        let at = humantime::format_rfc3339_seconds(time(refusal));
        writeln!(out, "{at} {}", one_line(&refusal.message))?;
    }
    if kept.is_empty() {
        writeln!(
            out,
            "nothing was refused since the machine started: journalctl -t pinfold has older \
             refusals"
        )?;
    }
    Ok(0)
}

fn time(refusal: &Refused) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(refusal.at))
        .unwrap_or(UNIX_EPOCH)
}

/// The last refusals.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Document<'a> {
    /// The starts and ends of containers that failed, the oldest first.
    refusals: Vec<RefusalEntry<'a>>,
}

/// A start or an end of a container that failed.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RefusalEntry<'a> {
    /// When: a time in UTC (RFC 3339).
    time: String,
    /// The container's id as its runtime gave it.
    container: &'a str,
    /// The message that the engine was told.
    message: &'a str,
    /// What people call the container; null where no name is known.
    name: Option<String>,
}

fn document<'a>(kept: &'a [Refused]) -> Document<'a> {
    let entry = |refusal: &'a Refused| RefusalEntry {
        time: humantime::format_rfc3339_seconds(time(refusal)).to_string(),
        container: &refusal.container,
        message: &refusal.message,
        name: refusal.names.title(),
    };
    Document {
        refusals: kept.iter().map(entry).collect(),
    }
}
