//! `pinfold usage`: what ended owners used.

mod picture;

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::output::{Output, Target};
use super::screen::{self, ODD, PLAIN, Table};
use crate::cli::{SumBy, UsageArgs};
use crate::placement::account;
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::usage::{By, LogFiles, Sum, sum};

pub(super) fn run(args: &UsageArgs, settings: &Settings) -> Result<u8> {
    let target = args.svg.as_deref().map(Target::of).transpose()?;
    let site = settings.site();
    let log = site.usage.as_ref().ok_or_else(|| {
        Refusal::new(
            "nothing is written down of what owners use: usage.enabled is false in Pinfold's \
             configuration",
            "set it to true there",
        )
    })?;
    if site.host.is_running_root() {
        // A user who may only read sees the records that are there.
        if let Err(error) = account(site, usize::MAX) {
            log::warn!("owners that ended are not accounted for yet: {error:#}");
        }
    }
    let kept = log.read()?;
    if let Some(said) = broken(&kept) {
        log::warn!("{said}");
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = |time: Duration| i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    let since = args.since.map(|age| seconds(now.saturating_sub(age)));
    if let Some(target) = target {
        target.write(&picture::picture(&kept.records, since, seconds(now)))?;
        return Ok(0);
    }
    let sums = sum(&kept.records, since, by(args.by));
    let mut out = Output::product();
    if args.json {
        out.json(&document(args, since, &sums, &kept))?;
        return Ok(0);
    }
    let most = (!args.no_trunc).then(screen::table_width);
    out.coloured(|out| write(out, args, &sums, most))
        .context("show what was used")?;
    Ok(0)
}

fn by(word: SumBy) -> By {
    match word {
        SumBy::Pool => By::Pool,
        SumBy::Name => By::Name,
        SumBy::Day => By::Day,
    }
}

/// A sentence about the first line that is no record.
fn broken(kept: &LogFiles) -> Option<String> {
    let (path, line) = kept.first_broken.as_ref()?;
    let path = path.display();
    Some(match kept.broken {
        1 => format!("line {line} of {path} is not a record, and is left out"),
        many => format!(
            "{many} lines are not records, and are left out: line {line} of {path} is the first"
        ),
    })
}

fn write(
    out: &mut impl Write,
    args: &UsageArgs,
    sums: &[Sum],
    most: Option<usize>,
) -> io::Result<()> {
    if sums.is_empty() {
        return match args.since {
            Some(_) => writeln!(out, "Nobody who owned CPUs has ended in that time."),
            None => writeln!(out, "Nobody who owned CPUs has ended yet."),
        };
    }
    let mut table = Table::new(&[
        (args.by.heading(), 8),
        ("ENDED", 0),
        ("OWNED", 0),
        ("USED", 0),
        ("USED%", 0),
        ("USER", 0),
        ("SYSTEM", 0),
        ("NOISE", 0),
        ("INEXACT", 0),
    ]);
    let time = |seconds: f64| (format!("{seconds:.1}s"), PLAIN);
    for sum in sums {
        let percent = match sum.owned > 0.0 {
            true => format!("{:.1}", 100.0 * sum.used / sum.owned),
            false => String::new(),
        };
        let inexact = sum.sampled + sum.unknown;
        table.row(vec![
            (sum.of.clone(), PLAIN),
            (sum.owners.to_string(), PLAIN),
            time(sum.owned),
            time(sum.used),
            (percent, PLAIN),
            time(sum.user),
            time(sum.system),
            sum.noise.map_or((String::new(), PLAIN), time),
            match inexact {
                0 => (String::new(), PLAIN),
                _ => (inexact.to_string(), ODD),
            },
        ]);
    }
    if let Some(most) = most {
        table.drop_beyond(most);
    }
    table.write(out, most)
}

fn document(args: &UsageArgs, since: Option<i64>, sums: &[Sum], kept: &LogFiles) -> Value {
    let key = SumBy::word(args.by);
    let one = |sum: &Sum| {
        json!({
            key: sum.of,
            "ended": sum.owners,
            "ownedSeconds": sum.owned,
            "cpuSeconds": sum.used,
            "userSeconds": sum.user,
            "systemSeconds": sum.system,
            "noiseSeconds": sum.noise,
            "exact": sum.exact,
            "sampled": sum.sampled,
            "unknown": sum.unknown,
        })
    };
    json!({
        "since": since,
        "by": key,
        "usage": sums.iter().map(one).collect::<Vec<_>>(),
        "brokenLines": kept.broken,
    })
}
