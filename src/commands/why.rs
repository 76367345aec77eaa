//! `pinfold why`: the last refusals.

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use serde_json::{Value, json};

use super::Settings;
use super::output::Output;
use crate::cli::Why;
use crate::refusals::{self, Refused};
use crate::text::{Shown, one_line};

pub(super) fn run(args: &Why, settings: &Settings) -> Result<u8> {
    let since = args.since.map(|age| SystemTime::now() - age);
    let mut kept = refusals::all(&settings.site().run_dir)?;
    kept.retain(|refusal| {
        let is_new = since.is_none_or(|since| time(refusal) >= since);
        is_new
            && args
                .container
                .as_deref()
                .is_none_or(|name| is_of(refusal, name))
    });
    let mut out = Output::product();
    if args.json {
        out.json(&document(&kept))?;
    } else {
        for refusal in &kept {
            let at = humantime::format_rfc3339_seconds(time(refusal));
            writeln!(out, "{at} {}", one_line(&refusal.message))?;
        }
    }
    match &args.container {
        Some(name) if kept.is_empty() && !args.json => bail!(
            "no refusal of {} is kept: journalctl -t pinfold has older ones",
            Shown(name)
        ),
        _ if kept.is_empty() && !args.json => {
            writeln!(
                out,
                "nothing was refused since the machine started: journalctl -t pinfold has older refusals"
            )?;
            Ok(0)
        }
        Some(_) if kept.is_empty() => Ok(1),
        _ => Ok(0),
    }
}

/// By the beginning of its id, or by a name that the sentence has.
fn is_of(refusal: &Refused, name: &str) -> bool {
    let words = refusal
        .message
        .split(|one: char| one.is_whitespace() || "\"(),:".contains(one));
    let mut words = words.filter(|word| !word.is_empty());
    refusal.container.starts_with(name) || words.any(|word| word == name)
}

fn time(refusal: &Refused) -> SystemTime {
    UNIX_EPOCH
        .checked_add(Duration::from_secs(refusal.at))
        .unwrap_or(UNIX_EPOCH)
}

fn document(kept: &[Refused]) -> Value {
    let one = |refusal: &Refused| {
        json!({
            "time": humantime::format_rfc3339_seconds(time(refusal)).to_string(),
            "container": refusal.container,
            "message": refusal.message,
        })
    };
    json!({ "refusals": kept.iter().map(one).collect::<Vec<_>>() })
}
