//! `pinfold noise`: who else runs on owned CPUs.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use super::output::Output;
use super::screen::{self, BAD, GOOD, PLAIN, Table};
use crate::account::noise::{self, Interrupts, Means, Noise, Owned, Runner, Watch};
use crate::cli::NoiseArgs;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::isolation;
use crate::last_words::ENDING;
use crate::placement::{Owner, OwnerState, Site, find, pid_id, survey};
use crate::pools::Kind;
use crate::process;
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::text::Shown;

/// Nobody else ran there.
const QUIET: u8 = 0;
/// Somebody did.
const NOISY: u8 = 1;

/// So many rows of each table are shown; all are in the document.
const MOST_ROWS: usize = 20;

pub(super) fn run(args: &NoiseArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site_with_processes()?;
    noise::ensure_all_are_shown(&site.host)?;
    if let Err(error) = noise::remove_leftovers(&site.host) {
        log::warn!("what a killed program left of its trace: {error:#}");
    }
    let there = Owners::look(site)?;
    let chosen = there.chosen(args.of.as_deref(), site)?;
    let cpus = cpus_of(chosen.iter().copied());
    ensure!(
        !cpus.is_empty(),
        Refusal::new(
            match &args.of {
                Some(of) => format!("nobody owns CPUs of {}", Shown(of)),
                None => "nobody owns CPUs of an exclusive pool".to_owned(),
            },
            match &args.of {
                Some(_) => "measure while an owner runs: `pinfold status` shows them",
                None => {
                    "measure while an owner runs, or name a shared pool: `pinfold status` shows \
                     them"
                }
            }
        )
    );
    let signals = Signals::hold(&site.host)?;
    let mut watch = Watch::begin(&site.host, &cpus, &there.owned())?;
    let why = watch.why_no_trace().map(str::to_owned);
    if let Some(why) = &why {
        log::warn!(
            "there is no trace: {why}; /proc is looked at instead, and who comes and goes between \
             two looks is not seen"
        );
    }
    let mut progress = Progress::of(args.seconds, &cpus);
    let end = watch.began() + args.seconds;
    let ended = loop {
        let now = Instant::now();
        if now >= end {
            break None;
        }
        progress.show(now.duration_since(watch.began()));
        let pause = watch
            .go_on()?
            .min(end.saturating_duration_since(Instant::now()));
        if let Some(signal) = signals.wait(pause)? {
            break Some(signal);
        }
    };
    drop(progress);
    if let Some(signal) = ended {
        drop(watch);
        return signals.end_by(signal);
    }
    let later = Owners::look(site)?;
    let stay = cpus_of(chosen.iter().copied().filter(|one| later.has(one)));
    let stay = stay.intersection(&cpus);
    let owners = [there.owned(), later.owned()].concat();
    let measured = watch.end(&stay, &owners)?;
    drop(signals);
    let gone = cpus.difference(&stay);
    ensure!(
        !stay.is_empty(),
        Refusal::new(
            format!("whoever owned the CPUs {gone} ended meanwhile"),
            "measure again"
        )
    );
    if !gone.is_empty() {
        log::warn!("the CPUs {gone} are left out: whoever owned them ended meanwhile");
    }
    let mut out = Output::product();
    match args.json {
        true => out.json(&document(&measured, &chosen, why.as_deref()))?,
        false => out.coloured(|out| write(out, &measured, screen::table_width()))?,
    }
    let is_quiet = measured.foreign.is_empty();
    if measured.lost > 0 {
        let lost = format!("the kernel had no room for {} events", measured.lost);
        if is_quiet {
            bail!(Refusal::new(
                format!("{lost}, so that somebody may have run there unseen"),
                "measure fewer CPUs at once: name a pool or an owner"
            ));
        }
        log::warn!("{lost}: there may have been more");
    }
    Ok(if is_quiet { QUIET } else { NOISY })
}

/// The owners that live, and the pools that there are.
struct Owners {
    all: Vec<Owner>,
    pools: Vec<(String, Kind)>,
}

impl Owners {
    fn look(site: &Site) -> Result<Owners> {
        let survey = survey(site)?;
        // Whoever is not known has CPUs that are not watched.
        if !survey.is_whole {
            bail!(Refusal::all(&survey.remarks));
        }
        let pools = survey
            .pools
            .into_iter()
            .map(|pool| (pool.name, pool.kind))
            .collect();
        let mut all = survey.owners;
        all.retain(|owner| {
            let is_known = owner.state != OwnerState::Unreadable;
            if !is_known {
                log::warn!("{} is left out: its claim cannot be read", owner.shown());
            }
            is_known && owner.is_alive() && !owner.cpus.is_empty()
        });
        Ok(Owners { all, pools })
    }

    /// Those of a pool, or the one that is called so. Where nothing is said, those of all exclusive
    /// pools: the CPUs of a shared one are not meant to be one owner's.
    fn chosen(&self, of: Option<&str>, site: &Site) -> Result<Vec<&Owner>> {
        let Some(of) = of else {
            let shared = |owner: &Owner| {
                let mut pools = self.pools.iter();
                pools.any(|(pool, kind)| *pool == owner.pool && *kind == Kind::Shared)
            };
            return Ok(self.all.iter().filter(|owner| !shared(owner)).collect());
        };
        if self.pools.iter().any(|(pool, _)| pool == of) {
            return Ok(self.all.iter().filter(|owner| owner.pool == of).collect());
        }
        let recorded = |owner: &&Owner| owner.id.is_none() && pid_id(owner.pid) == of;
        let recorded: Vec<&Owner> = self.all.iter().filter(recorded).collect();
        if !recorded.is_empty() {
            return Ok(recorded);
        }
        let id = find(site, of)?;
        let is_called = |owner: &&Owner| owner.id.as_ref() == Some(&id);
        Ok(self.all.iter().filter(is_called).collect())
    }

    fn owned(&self) -> Vec<Owned> {
        let owned = self.all.iter().map(|owner| Owned {
            cpus: owner.cpus.clone(),
            group: owner.group.clone(),
            pid: owner.pid,
        });
        owned.collect()
    }

    /// Is the same owner still there?
    fn has(&self, owner: &Owner) -> bool {
        let is_same = |other: &Owner| {
            // Nothing but its process tells one without an id from another.
            (&other.id, &other.group) == (&owner.id, &owner.group)
                && (owner.id.is_some() || other.pid == owner.pid)
                && !other.cpus.is_disjoint(&owner.cpus)
        };
        self.all.iter().any(is_same)
    }
}

fn cpus_of<'a>(owners: impl IntoIterator<Item = &'a Owner>) -> CpuSet {
    let cpus = owners.into_iter().flat_map(|owner| owner.cpus.iter());
    cpus.collect()
}

/// The signals that end a program, held back: what is in the kernel has to be taken back first.
struct Signals {
    inherited: SigSet,
    coming: SignalFd,
}

impl Signals {
    fn hold(host: &Host) -> Result<Signals> {
        // A signal that is ignored ends nobody, but would come here.
        let ignored = process::ignored_signals(host);
        let ends = |signal: &Signal| ignored >> (*signal as u32 - 1) & 1 == 0;
        let ending: SigSet = ENDING.into_iter().filter(ends).collect();
        let mut inherited = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&ending), Some(&mut inherited))
            .context("hold signals back")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let coming = SignalFd::with_flags(&ending, flags).context("wait for signals")?;
        Ok(Signals { inherited, coming })
    }

    /// Waits so long; returns the signal that came, if one did.
    fn wait(&self, pause: Duration) -> Result<Option<Signal>> {
        let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(self.coming.as_fd(), PollFlags::POLLIN)];
        match poll(&mut watched, timeout) {
            Err(Errno::EINTR) => return Ok(None),
            other => other.context("wait for signals")?,
        };
        let signal = self.coming.read_signal().context("read a signal")?;
        Ok(signal.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok()))
    }

    /// Ends by this signal, so that our parent sees that it did.
    fn end_by(self, signal: Signal) -> Result<u8> {
        drop(self);
        raise(signal).context("end by the signal that came")?;
        bail!("{signal} came")
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // It was so before.
        let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&self.inherited), None);
    }
}

/// How far it is, on standard error where that is a terminal.
struct Progress {
    is_shown: bool,
    of: Duration,
    cpus: String,
    said: Option<u64>,
}

impl Progress {
    fn of(of: Duration, cpus: &CpuSet) -> Progress {
        let is_dumb = std::env::var_os("TERM").is_none_or(|kind| kind == "dumb");
        Progress {
            is_shown: io::stderr().is_terminal() && !is_dumb,
            of,
            cpus: cpus.to_string(),
            said: None,
        }
    }

    fn show(&mut self, passed: Duration) {
        let seconds = passed.as_secs();
        if !self.is_shown || self.said == Some(seconds) {
            return;
        }
        self.said = Some(seconds);
        let line = format!(
            "watching the CPUs {}: {seconds} of {:.0} s",
            self.cpus,
            self.of.as_secs_f64().ceil()
        );
        // A terminal that is gone shows nothing.
        let _ = write!(io::stderr(), "\r\x1b[K{}", screen::cut(&line, 79));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.said.is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn write(out: &mut impl Write, noise: &Noise, most: usize) -> io::Result<()> {
    let means = match noise.means {
        Means::Trace => "by the kernel's trace",
        Means::Samples => "by looking at /proc again and again",
    };
    let seconds = noise.length.as_secs_f64();
    let cpus = &noise.cpus;
    writeln!(out, "Watched the CPUs {cpus} for {seconds:.1} s {means}.")?;
    if !noise.foreign.is_empty() {
        writeln!(out)?;
        runners(out, "FOREIGN", &noise.foreign, most)?;
    }
    if !noise.kernel.is_empty() {
        writeln!(out)?;
        runners(out, "KERNEL THREAD", &noise.kernel, most)?;
    }
    for (heading, all) in [
        ("INTERRUPT", &noise.interrupts),
        ("SOFT INTERRUPT", &noise.soft_interrupts),
    ] {
        if !all.is_empty() {
            writeln!(out)?;
            interrupts(out, heading, all, most)?;
        }
    }
    writeln!(out)?;
    match noise.foreign.is_empty() {
        true if noise.lost > 0 => writeln!(out, "Events were lost: somebody may have run there."),
        true => writeln!(
            out,
            "{GOOD}Nobody but the owners and the kernel ran there.{GOOD:#}"
        ),
        false => {
            let threads: usize = noise.foreign.iter().map(|one| one.threads).sum();
            let time: Duration = noise.foreign.iter().map(|one| one.time).sum();
            let whole = seconds * cpus.len() as f64;
            let share = 100.0 * time.as_secs_f64() / whole.max(f64::MIN_POSITIVE);
            let noun = if threads == 1 { "thread" } else { "threads" };
            writeln!(
                out,
                "{BAD}{threads} {noun} of others ran there, for {} in all: {share:.1}% of the \
                 time.{BAD:#}",
                in_words(time)
            )
        }
    }
}

fn runners(
    out: &mut impl Write,
    heading: &'static str,
    all: &[Runner],
    most: usize,
) -> io::Result<()> {
    let is_foreign = all.iter().any(|one| one.group.is_some());
    let mut columns = vec![
        (heading, 8),
        ("TID", 0),
        ("THREADS", 0),
        ("CPUS", 6),
        ("TIME", 0),
        ("TIMES", 0),
    ];
    if is_foreign {
        columns.push(("CGROUP", 8));
    }
    let mut table = Table::new(&columns);
    for one in all.iter().take(MOST_ROWS) {
        let mut row = vec![
            (one.name.clone(), PLAIN),
            (one.tid.to_string(), PLAIN),
            (one.threads.to_string(), PLAIN),
            (one.cpus.to_string(), PLAIN),
            (in_words(one.time), PLAIN),
            (one.times.to_string(), PLAIN),
        ];
        if is_foreign {
            row.push((one.group.clone().unwrap_or_default(), PLAIN));
        }
        table.row(row);
    }
    table.write(out, Some(most))?;
    rest(out, all.len())
}

fn interrupts(
    out: &mut impl Write,
    heading: &'static str,
    all: &[Interrupts],
    most: usize,
) -> io::Result<()> {
    let is_named = all.iter().any(|one| !one.what.is_empty());
    let mut columns = vec![(heading, 0), ("CPUS", 6), ("COUNT", 0)];
    if is_named {
        columns.push(("SOURCE", 8));
    }
    let mut table = Table::new(&columns);
    for one in all.iter().take(MOST_ROWS) {
        let mut row = vec![
            (one.source.clone(), PLAIN),
            (one.cpus.to_string(), PLAIN),
            (one.count.to_string(), PLAIN),
        ];
        if is_named {
            row.push((one.what.clone(), PLAIN));
        }
        table.row(row);
    }
    table.write(out, Some(most))?;
    rest(out, all.len())
}

fn rest(out: &mut impl Write, count: usize) -> io::Result<()> {
    match count.checked_sub(MOST_ROWS) {
        Some(more @ 1..) => writeln!(out, "… and {more} more (--json has all)"),
        _ => Ok(()),
    }
}

/// A time as people read it.
fn in_words(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.2}s"),
        seconds => format!("{:.2}ms", seconds * 1e3),
    }
}

/// Who else ran on owned CPUs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// By what means it was measured: `trace` misses nobody, `samples` miss whoever comes and goes
    /// between two of them.
    means: &'static str,
    /// Why there is no trace; null where there is one.
    why_no_trace: Option<&'a str>,
    /// How long it was measured, in seconds.
    seconds: f64,
    /// The CPUs that were measured, as a list such as `4,12` or `0-2`.
    cpus: String,
    /// The owners of these CPUs.
    owners: Vec<OwnerEntry<'a>>,
    /// Threads of processes that are none of the owners', the longest first.
    foreign: Vec<RunnerEntry<'a>>,
    /// Threads of the kernel, the longest first.
    kernel_threads: Vec<RunnerEntry<'a>>,
    /// Interrupts, by their sources.
    interrupts: &'a [Interrupts],
    /// Soft interrupts, by their kinds.
    soft_interrupts: &'a [Interrupts],
    /// How many events the kernel had no room for, at least.
    lost_events: u64,
}

/// An owner of CPUs that were measured.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct OwnerEntry<'a> {
    /// The id that `pinfold release` takes; null for a process that another tool recorded.
    id: Option<&'a str>,
    /// What people call it; null where no name is known.
    name: Option<String>,
    /// The pool's name.
    pool: &'a str,
    /// The CPUs that it owns, as a list.
    cpus: String,
    /// How the kernel keeps everybody else off its CPUs now; null where it does not.
    isolation: Option<isolation::Kind>,
}

/// Threads of one name that ran on owned CPUs.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RunnerEntry<'a> {
    /// Their name.
    name: &'a str,
    /// The number of the first of them.
    tid: i32,
    /// How many they are.
    threads: usize,
    /// The owned CPUs that they ran on, as a list.
    cpus: String,
    /// How long they ran there, in seconds.
    seconds: f64,
    /// How often they came, or were seen there.
    times: u64,
    /// Their cgroup; null where it is not known.
    cgroup: Option<&'a str>,
}

fn document<'a>(noise: &'a Noise, owners: &[&'a Owner], why: Option<&'a str>) -> Document<'a> {
    let seconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e6;
    let runner = |one: &'a Runner| RunnerEntry {
        name: &one.name,
        tid: one.tid,
        threads: one.threads,
        cpus: one.cpus.to_string(),
        seconds: seconds(one.time),
        times: one.times,
        cgroup: one.group.as_deref(),
    };
    let owner = |one: &&'a Owner| OwnerEntry {
        id: one.id.as_deref(),
        name: one.names.title(),
        pool: &one.pool,
        cpus: one.cpus.to_string(),
        isolation: one.keeping.partition(),
    };
    Document {
        means: noise.means.word(),
        why_no_trace: why,
        seconds: seconds(noise.length),
        cpus: noise.cpus.to_string(),
        owners: owners.iter().map(owner).collect(),
        foreign: noise.foreign.iter().map(runner).collect(),
        kernel_threads: noise.kernel.iter().map(runner).collect(),
        interrupts: &noise.interrupts,
        soft_interrupts: &noise.soft_interrupts,
        lost_events: noise.lost,
    }
}
