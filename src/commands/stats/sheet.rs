//! One interval as a table and as a document.

use std::cmp::Ordering;
use std::io::{self, Write};

use anstyle::Style;
use serde::Serialize;

use super::Moment;
use crate::account::{Share, Source};
use crate::cli::{OutputFormat, SortBy, StatsArgs};
use crate::commands::screen::{BAD, GOOD, ODD, PLAIN, Table};
use crate::names::short_id;
use crate::placement::{Owner, pid_id};

/// The shares of the time of an owner's CPUs from which noise is worth a look, and bad.
const ODD_NOISE: f64 = 0.02;
const BAD_NOISE: f64 = 0.10;

/// How the owners are shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sheet {
    pub(super) sort: SortBy,
    pub(super) is_reversed: bool,
    pub(super) is_wide: bool,
    is_whole: bool,
}

impl Sheet {
    pub(super) fn of(args: &StatsArgs) -> Sheet {
        let is_wide = args.look.output == Some(OutputFormat::Wide);
        Sheet {
            sort: args.sort,
            is_reversed: args.reverse,
            is_wide,
            is_whole: args.look.no_trunc || is_wide,
        }
    }

    /// Writes the table; shortens cells so that lines have at most `most` columns, if that is
    /// possible.
    pub(super) fn write(
        &self,
        out: &mut impl Write,
        moment: &Moment<'_>,
        most: Option<usize>,
    ) -> io::Result<()> {
        if moment.owners.is_empty() {
            return match moment.is_chosen {
                true => writeln!(
                    out,
                    "Nobody of those that were asked for owns any CPUs now."
                ),
                false => writeln!(out, "Nobody owns any CPUs."),
            };
        }
        let most = most.filter(|_| !self.is_whole);
        let mut table = self.table(moment);
        if let Some(most) = most {
            table.drop_beyond(most);
        }
        table.write(out, most)
    }

    fn table(&self, moment: &Moment<'_>) -> Table {
        let mut columns = vec![
            ("NAME", 8),
            ("POOL", 6),
            ("CPUS", 6),
            ("TIME", 0),
            ("USED%", 0),
            ("NOISE%", 0),
            ("IRQ%", 0),
            ("WAIT%", 0),
            ("THROT%", 0),
        ];
        if self.is_wide {
            columns.extend([
                ("ID", 0),
                ("CPU%", 0),
                ("USER", 0),
                ("SYSTEM", 0),
                ("SOFTIRQ%", 0),
                ("STEAL%", 0),
                ("SWITCHES/S", 0),
                ("MOVES/S", 0),
            ]);
        }
        let mut table = Table::new(&columns);
        for (owner, share) in self.rows(moment) {
            table.row(self.row(owner, share));
        }
        table
    }

    fn row(&self, owner: &Owner, share: Option<Share>) -> Vec<(String, Style)> {
        let text = |text: String| (text, PLAIN);
        let percent = |part: Option<f64>| text(part.map_or(String::new(), in_percent));
        let time = |seconds: f64| text(format!("{seconds:.1}s"));
        let usage = share.map(|share| share.account.usage);
        let mut row = vec![
            text(title(owner, self.is_whole)),
            text(owner.pool.clone()),
            text(owner.lists.join(",")),
            usage.map_or(text(String::new()), |usage| time(usage.total.as_secs_f64())),
            percent(share.map(|share| share.utilisation)),
            (
                share.map_or(String::new(), |share| in_percent(share.noise)),
                share.map_or(PLAIN, |share| colour(share.noise)),
            ),
            percent(share.map(|share| share.irq + share.softirq)),
            percent(share.and_then(|share| share.waited)),
            percent(share.and_then(|share| share.throttled)),
        ];
        if self.is_wide {
            let number = |number: Option<f64>| {
                text(number.map_or(String::new(), |number| format!("{number:.0}")))
            };
            row.push(text(owner.id.clone().unwrap_or_default()));
            row.push(percent(share.map(|share| share.busy_cpus)));
            row.extend(match usage {
                Some(usage) => [usage.user, usage.system].map(|part| time(part.as_secs_f64())),
                None => [String::new(), String::new()].map(text),
            });
            row.push(percent(share.map(|share| share.softirq)));
            row.push(percent(share.map(|share| share.steal)));
            row.push(number(share.and_then(|share| share.switches)));
            row.push(number(share.and_then(|share| share.migrations)));
        }
        row
    }

    /// The owners, sorted; equal ones in their former order, by pool and first CPU.
    fn rows<'a>(&self, moment: &'a Moment<'_>) -> Vec<(&'a Owner, Option<Share>)> {
        let shares = moment.interval.shares.iter().copied();
        let mut rows: Vec<_> = moment.owners.iter().zip(shares).collect();
        rows.sort_by(|one, other| {
            let order = self.compare(one, other);
            if self.is_reversed {
                order.reverse()
            } else {
                order
            }
        });
        rows
    }

    /// Compares two rows: numbers descending, words ascending.
    fn compare(&self, one: &(&Owner, Option<Share>), other: &(&Owner, Option<Share>)) -> Ordering {
        let by = |number: fn(&Share) -> f64| {
            let number = |row: &(&Owner, Option<Share>)| row.1.as_ref().map_or(-1.0, number);
            number(other).total_cmp(&number(one))
        };
        match self.sort {
            SortBy::Name => title(one.0, true).cmp(&title(other.0, true)),
            SortBy::Pool => one.0.pool.cmp(&other.0.pool),
            SortBy::Cpus => one.0.cpus.first().cmp(&other.0.cpus.first()),
            SortBy::Time => by(|share| share.account.usage.total.as_secs_f64()),
            SortBy::Used => by(|share| share.utilisation),
            SortBy::Noise => by(|share| share.noise),
            SortBy::Irq => by(|share| share.irq + share.softirq),
            SortBy::Wait => by(|share| share.waited.unwrap_or_default()),
            SortBy::Throt => by(|share| share.throttled.unwrap_or_default()),
            SortBy::Id => one.0.id.cmp(&other.0.id),
            SortBy::Cpu => by(|share| share.busy_cpus),
            SortBy::User => by(|share| share.account.usage.user.as_secs_f64()),
            SortBy::System => by(|share| share.account.usage.system.as_secs_f64()),
            SortBy::Softirq => by(|share| share.softirq),
            SortBy::Steal => by(|share| share.steal),
            SortBy::Switches => by(|share| share.switches.unwrap_or_default()),
            SortBy::Moves => by(|share| share.migrations.unwrap_or_default()),
        }
    }
}

/// An owner's name, or else its id, or else the process that another tool recorded.
fn title(owner: &Owner, is_whole: bool) -> String {
    let id = || match &owner.id {
        Some(id) if is_whole => id.clone(),
        Some(id) => short_id(id).to_owned(),
        None => pid_id(owner.pid),
    };
    owner.names.title().unwrap_or_else(id)
}

fn in_percent(part: f64) -> String {
    format!("{:.1}", part * 100.0)
}

fn colour(noise: f64) -> Style {
    match noise {
        noise if noise >= BAD_NOISE => BAD,
        noise if noise >= ODD_NOISE => ODD,
        _ => GOOD,
    }
}

/// How owners used their CPUs in an interval. A share is a part of the time of the owner's online
/// CPUs: 1 is all of them, all the time.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(in crate::commands) struct Document<'a> {
    /// How long the interval was, in seconds.
    interval_seconds: f64,
    /// The owners that were asked for. What is null of one is not known: it began or ended
    /// meanwhile, or the kernel does not tell.
    owners: Vec<Row<'a>>,
    /// When the interval ended: a time in UTC (RFC 3339).
    time: String,
}

/// An owner, and whoever else was on its CPUs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    /// How its CPU time is known.
    account: Option<Source>,
    /// How many CPUs were busy with it on average: 1 is one CPU all the time.
    busy_cpus: Option<f64>,
    /// Its context switches a second.
    context_switches_per_second: Option<f64>,
    /// The CPU time that it has used since it began, in seconds.
    cpu_seconds: Option<f64>,
    /// The CPUs that it owns, as a list such as `4,12` or `0-2`.
    cpus: String,
    /// Its engine: `podman`, `crio`, `containerd` or `docker`; null where none is known.
    engine: Option<&'a str>,
    /// The id that `pinfold release` takes; null for a process that another tool recorded.
    id: Option<&'a str>,
    /// The time of interrupts, as a share.
    irq: Option<f64>,
    /// Its CPU lists, a directory name each.
    lists: &'a [String],
    /// Its moves between CPUs a second, over the last twenty seconds or so.
    migrations_per_second: Option<f64>,
    /// What people call it; null where no name is known.
    name: Option<String>,
    /// The time that its CPUs were busy neither with it nor with interrupts, as a share.
    noise: Option<f64>,
    /// The process that stands for it.
    pid: i32,
    /// The pool's name.
    pool: &'a str,
    /// The part of the interval in which a process of it waited for a CPU, from 0 to 1.
    pressure: Option<f64>,
    /// The time of software interrupts, as a share.
    softirq: Option<f64>,
    /// The time that a hypervisor gave to somebody else, as a share.
    steal: Option<f64>,
    /// That part of its CPU time that was inside the kernel, in seconds.
    system_seconds: Option<f64>,
    /// The time in which a bandwidth limit kept it from running, as a share.
    throttled: Option<f64>,
    /// That part of its CPU time that was outside the kernel, in seconds.
    user_seconds: Option<f64>,
    /// The time that it used on its CPUs, as a share.
    utilization: Option<f64>,
}

impl Moment<'_> {
    pub(super) fn document(&self) -> Document<'_> {
        let rounded = |number: f64| (number * 1e6).round() / 1e6;
        let row = |(owner, share)| -> Row<'_> {
            let (owner, share): (&Owner, &Option<Share>) = (owner, share);
            let number =
                |number: fn(&Share) -> Option<f64>| share.as_ref().and_then(number).map(rounded);
            Row {
                account: share.map(|share| share.account.source),
                busy_cpus: number(|share| Some(share.busy_cpus)),
                context_switches_per_second: number(|share| share.switches),
                cpu_seconds: number(|share| Some(share.account.usage.total.as_secs_f64())),
                cpus: owner.cpus.to_string(),
                engine: owner.names.engine.as_deref(),
                id: owner.id.as_deref(),
                irq: number(|share| Some(share.irq)),
                lists: &owner.lists,
                migrations_per_second: number(|share| share.migrations),
                name: owner.names.title(),
                noise: number(|share| Some(share.noise)),
                pid: owner.pid,
                pool: &owner.pool,
                pressure: number(|share| share.waited),
                softirq: number(|share| Some(share.softirq)),
                steal: number(|share| Some(share.steal)),
                system_seconds: number(|share| Some(share.account.usage.system.as_secs_f64())),
                throttled: number(|share| share.throttled),
                user_seconds: number(|share| Some(share.account.usage.user.as_secs_f64())),
                utilization: number(|share| Some(share.utilisation)),
            }
        };
        let owners = self.owners.iter().zip(&self.interval.shares);
        Document {
            interval_seconds: rounded(self.interval.length.as_secs_f64()),
            owners: owners.map(row).collect(),
            time: humantime::format_rfc3339_millis(self.at).to_string(),
        }
    }
}
