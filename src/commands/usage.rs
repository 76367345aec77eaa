//! `pinfold usage`: what ended owners used.

mod picture;

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::Serialize;

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
    let has_default = sums.iter().any(|sum| sum.by_default > 0);
    let by_default = has_default.then_some(("DEFAULT", 0));
    let columns = [(args.by.heading(), 8), ("ENDED", 0)].into_iter();
    let columns = columns.chain(by_default).chain([
        ("OWNED", 0),
        ("USED", 0),
        ("USED%", 0),
        ("USER", 0),
        ("SYSTEM", 0),
        ("NOISE", 0),
        ("INEXACT", 0),
    ]);
    let mut table = Table::new(&columns.collect::<Vec<_>>());
    let time = |seconds: f64| (format!("{seconds:.1}s"), PLAIN);
    for sum in sums {
        let percent = match sum.owned > 0.0 {
            true => format!("{:.1}", 100.0 * sum.used / sum.owned),
            false => String::new(),
        };
        let inexact = sum.sampled + sum.unknown;
        let mut row = vec![(sum.of.clone(), PLAIN), (sum.owners.to_string(), PLAIN)];
        if has_default {
            row.push((sum.by_default.to_string(), PLAIN));
        }
        row.extend([
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
        table.row(row);
    }
    if let Some(most) = most {
        table.drop_beyond(most);
    }
    table.write(out, most)
}

/// What owners that ended have used.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// Owners that ended before are left out: seconds since 1970-01-01 in UTC; null where none is.
    since: Option<i64>,
    /// What is summed up by: `pool`, `name` or `day`.
    by: &'static str,
    /// The sums, in the order of pools, names or days.
    usage: Vec<SumEntry<'a>>,
    /// How many lines of the record are left out because they cannot be read.
    broken_lines: usize,
}

/// The owners of one pool or name, or those that ended on one day.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct SumEntry<'a> {
    /// Which they are, by the key that `by` names.
    #[serde(flatten)]
    of: Of<'a>,
    /// How many owners ended.
    ended: usize,
    /// How many of them asked for nothing, and were in the configuration's default pool.
    by_default: usize,
    /// The time of all their CPUs from their start to their end, in seconds.
    owned_seconds: f64,
    /// The CPU time that they used, in seconds.
    cpu_seconds: f64,
    /// That outside the kernel, in seconds.
    user_seconds: f64,
    /// That inside the kernel, in seconds.
    system_seconds: f64,
    /// The CPU time that others used on their CPUs while those were watched, in seconds; null where
    /// they never were.
    noise_seconds: Option<f64>,
    /// Of how many owners the CPU time is exact, or that of all that was waited for.
    exact: usize,
    /// Of how many it is what the last sample showed.
    sampled: usize,
    /// Of how many it is not known.
    unknown: usize,
}

#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
enum Of<'a> {
    Pool {
        /// The pool's name.
        pool: &'a str,
    },
    Name {
        /// What people call the owner, or its id where it has no name.
        name: &'a str,
    },
    Day {
        /// The day on which they ended, in UTC: `2026-01-31`.
        day: &'a str,
    },
}

fn document<'a>(
    args: &UsageArgs,
    since: Option<i64>,
    sums: &'a [Sum],
    kept: &LogFiles,
) -> Document<'a> {
    let of = |of| match args.by {
        SumBy::Pool => Of::Pool { pool: of },
        SumBy::Name => Of::Name { name: of },
        SumBy::Day => Of::Day { day: of },
    };
    let entry = |sum: &'a Sum| SumEntry {
        of: of(&sum.of),
        ended: sum.owners,
        by_default: sum.by_default,
        owned_seconds: sum.owned,
        cpu_seconds: sum.used,
        user_seconds: sum.user,
        system_seconds: sum.system,
        noise_seconds: sum.noise,
        exact: sum.exact,
        sampled: sum.sampled,
        unknown: sum.unknown,
    };
    Document {
        since,
        by: args.by.word(),
        usage: sums.iter().map(entry).collect(),
        broken_lines: kept.broken,
    }
}
