//! `pinfold stats`: how owners use their CPUs, and who else runs there.

mod live;
mod sheet;
mod terminal;

use std::io::{IsTerminal, Write};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Result;

#[cfg(test)]
pub(super) use self::sheet::Document;
use self::sheet::Sheet;
use super::output::Output;
use super::screen;
use crate::account::{Accounts, Depth, Figure, Interval, Meter, Meters, Reading};
use crate::cli::{OutputFormat, StatsArgs};
use crate::placement::{Owner, Seen, Site, Survey, find, pid_id, survey_to_watch};
use crate::settings::Settings;
use crate::settings::news;
use crate::text;

/// How long the list of owners is kept. It is renewed earlier when the books change or an owner is
/// gone; renewing reads everything, which costs more than many samples.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

pub(super) fn run(args: &StatsArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    let accounts = Accounts::of(&site.host);
    let missing: Vec<String> = accounts.missing().into_iter().map(lack).collect();
    missing.iter().for_each(|note| log::warn!("{note}"));
    let mut watch = Watch::begin(args, site, &accounts)?;
    let is_json = args.json || args.look.output == Some(OutputFormat::Json);
    let sheet = Sheet::of(args);
    if args.no_stream {
        sleep(args.interval);
        watch.go_on()?;
        let moment = watch.moment();
        let mut out = Output::product();
        match is_json {
            true => out.json(&moment.document())?,
            false => out.coloured(|out| sheet.write(out, &moment, Some(screen::table_width())))?,
        }
        return Ok(0);
    }
    let is_dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
    let has_keys = std::io::stdin().is_terminal();
    if !is_json && !is_dumb && has_keys && screen::terminal_width().is_some() {
        return live::run(args, &mut watch, sheet, &missing);
    }
    let mut out = Output::product();
    loop {
        watch.look_again()?;
        sleep(args.interval);
        watch.go_on()?;
        let moment = watch.moment();
        match is_json {
            true => writeln!(out, "{}", text::json_line(&moment.document()))?,
            false => {
                out.coloured(|out| sheet.write(out, &moment, None))?;
                writeln!(out)?;
            }
        }
        out.flush()?;
        if out.is_closed() {
            return Ok(0);
        }
    }
}

/// Which columns are missing or incomplete, and why.
fn lack((figure, why): (Figure, String)) -> String {
    let columns = match figure {
        Figure::Usage => {
            "TIME, USED%, NOISE%, USER and SYSTEM are added up over processes, and what ended has \
             left the sum"
        }
        Figure::Throttling => "THROT% is not known",
        Figure::Pressure => "WAIT% is not known",
    };
    format!("{columns}: {why}")
}

/// The owners, measured again and again.
struct Watch<'a> {
    args: &'a StatsArgs,
    site: &'a Site,
    accounts: &'a Accounts<'a>,
    owners: Vec<Owner>,
    meters: Meters<'a>,
    before: Reading,
    last: Interval,
    /// The owners of the last interval, if the list was renewed since.
    shown: Option<Vec<Owner>>,
    chosen: Vec<Chosen>,
    looked: Instant,
    seen: Seen,
    /// Is an owner gone, so that the list must be renewed?
    has_lost: bool,
}

/// What is shown of one interval.
struct Moment<'a> {
    at: SystemTime,
    owners: &'a [Owner],
    /// Did the user name owners or pools?
    is_chosen: bool,
    interval: &'a Interval,
}

impl<'a> Watch<'a> {
    fn begin(args: &'a StatsArgs, site: &'a Site, accounts: &'a Accounts<'a>) -> Result<Watch<'a>> {
        let looked = Instant::now();
        let (survey, seen) = survey_to_watch(site)?;
        let chosen = choose(args, site, &survey)?;
        let owners = living(survey, &chosen);
        let mut meters = accounts.together(meters(&owners, accounts));
        let before = meters.read(depth(args))?;
        Ok(Watch {
            last: before.since(&before, &meters.all),
            shown: None,
            before,
            looked,
            seen,
            has_lost: false,
            args,
            site,
            accounts,
            chosen,
            owners,
            meters,
        })
    }

    /// Ends an interval and begins the next one.
    fn go_on(&mut self) -> Result<()> {
        // A problem of every interval is logged once.
        news::begin_round();
        let now = self.meters.read(depth(self.args))?;
        self.last = now.since(&self.before, &self.meters.all);
        self.has_lost |= now.has_lost(&self.before);
        self.before = now;
        self.shown = None;
        Ok(())
    }

    /// The last interval, for showing.
    fn moment(&self) -> Moment<'_> {
        Moment {
            at: SystemTime::now(),
            owners: self.shown.as_ref().unwrap_or(&self.owners),
            is_chosen: !self.chosen.is_empty(),
            interval: &self.last,
        }
    }

    /// Renews the list of owners if it can have changed; it counts from the next interval.
    fn look_again(&mut self) -> Result<()> {
        let is_due = self.has_lost || self.looked.elapsed() >= LOOK_AGAIN;
        if !is_due && !self.seen.may_have_changed() {
            return Ok(());
        }
        self.has_lost = false;
        self.looked = Instant::now();
        let (survey, seen) = survey_to_watch(self.site)?;
        self.seen = seen;
        let owners = living(survey, &self.chosen);
        let before = std::mem::replace(&mut self.owners, owners);
        // An owner that stays keeps its meter and the meter's open files.
        let mut known: Vec<Meter> = std::mem::take(&mut self.meters.all);
        for owner in &self.owners {
            let group = owner.group.as_deref();
            let same = known
                .iter()
                .position(|meter| meter.is_of(owner.pid, &owner.cpus, group));
            let meter = match same {
                Some(place) => known.swap_remove(place),
                None => meter(owner, self.accounts),
            };
            self.meters.all.push(meter);
        }
        self.shown.get_or_insert(before);
        self.before = self.meters.read(depth(self.args))?;
        Ok(())
    }
}

/// How much is read of each owner.
fn depth(args: &StatsArgs) -> Depth {
    match args.with_everything() {
        true => Depth::Everything,
        false => Depth::Rates,
    }
}

/// An owner or a pool that the user named.
enum Chosen {
    Pool(String),
    Id(String),
    /// An owner that another tool recorded, by the name that is shown.
    Recorded(String),
}

impl Chosen {
    fn includes(&self, owner: &Owner) -> bool {
        match self {
            Chosen::Pool(name) => owner.pool == *name,
            Chosen::Id(id) => owner.id.as_ref() == Some(id),
            Chosen::Recorded(called) => {
                let is_its_name = owner.names.title().as_ref() == Some(called);
                owner.id.is_none() && (is_its_name || pid_id(owner.pid) == *called)
            }
        }
    }
}

/// Resolves each word: a pool; an owner by id, beginning of the id, or name; or an owner as shown.
fn choose(args: &StatsArgs, site: &Site, survey: &Survey) -> Result<Vec<Chosen>> {
    let one = |called: &String| {
        if survey.pools.iter().any(|pool| pool.name == *called) {
            return Ok(Chosen::Pool(called.clone()));
        }
        let recorded = Chosen::Recorded(called.clone());
        match find(site, called) {
            Ok(id) => Ok(Chosen::Id(id)),
            Err(_) if survey.owners.iter().any(|owner| recorded.includes(owner)) => Ok(recorded),
            Err(error) => Err(error),
        }
    };
    args.owners.iter().map(one).collect()
}

/// The living owners among the chosen; all living ones if none was chosen.
fn living(survey: Survey, chosen: &[Chosen]) -> Vec<Owner> {
    let is_chosen =
        |owner: &Owner| chosen.is_empty() || chosen.iter().any(|one| one.includes(owner));
    let owners = survey.owners.into_iter();
    owners
        .filter(|owner| owner.is_alive() && !owner.cpus.is_empty() && is_chosen(owner))
        .collect()
}

/// The meters of these owners.
pub(super) fn meters<'a>(
    owners: impl IntoIterator<Item = &'a Owner>,
    accounts: &Accounts<'_>,
) -> Vec<Meter> {
    owners
        .into_iter()
        .map(|owner| meter(owner, accounts))
        .collect()
}

/// An owner's meter, which reads only its process if its group cannot be looked at.
fn meter(owner: &Owner, accounts: &Accounts<'_>) -> Meter {
    accounts
        .meter(owner.pid, &owner.cpus, owner.group.as_deref())
        .unwrap_or_else(|error| {
            log::warn!("the account of {}: {error:#}", owner.shown());
            Meter::of_process(owner.pid, &owner.cpus)
        })
}
