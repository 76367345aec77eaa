//! `pinfold reconcile`: freeing what dead owners hold.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::output::Output;
use crate::cli::{Options, ReconcileArgs};
use crate::config::Confine;
use crate::files;
use crate::host::Host;
use crate::last_words;
use crate::outside::{self, PartitionWatch};
use crate::placement::{Reclaimed, Reconciled, Site, reconcile};
use crate::refusal::Refusal;
use crate::settings::{Settings, news};
use crate::text::{Shown, one_line};

pub(super) fn run(args: &ReconcileArgs, options: &Options) -> Result<u8> {
    let settings = Settings::of_command_line(options)?;
    let site = settings.site_with_processes()?;
    if args.let_host_in {
        return let_host_in(&settings);
    }
    match args.interval {
        None => {
            last_words::arrange_for_command(&Host::new("/"), "reconcile")?;
            let report = reconcile(site)?;
            tell(&report, args.json, &mut Output::account())?;
            match report.problems.is_empty() {
                true => Ok(0),
                false => bail!(Refusal::all(&report.problems)),
            }
        }
        Some(seconds) => {
            last_words::arrange_for_service(&Host::new("/"), "reconcile")?;
            for_ever(args, options, settings, Duration::from_secs(seconds))
        }
    }
}

/// Gives the host's own units back the CPUs that they were kept off, whatever the configuration
/// says, and does nothing else.
fn let_host_in(settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let were_confined = outside::are_confined(&site.host)?;
    let problems = site.let_host_in()?;
    ensure!(problems.is_empty(), Refusal::all(&problems));
    let said = match were_confined {
        true => "the host's units have the CPUs of exclusive pools again",
        false => "the host's units are not kept off any CPUs",
    };
    writeln!(Output::account(), "{said}")?;
    if settings.host_table().confine == Confine::Pools {
        log::warn!(
            "the next `pinfold reconcile`, and each change of the pools, keeps them off, unless \
             confine in the configuration is none"
        );
    }
    Ok(0)
}

/// Reconciles again and again, each time with the settings as they are by then; while they cannot
/// be read, with the last ones. Prints only news: what was freed, and each problem once until it is
/// another.
fn for_ever(
    args: &ReconcileArgs,
    options: &Options,
    mut settings: Settings,
    interval: Duration,
) -> Result<u8> {
    let mut binary = Binary::running();
    // The roots of the machine are options of the command line: no configuration changes them.
    let host = settings.site().host.clone();
    let mut watch = PartitionWatch::new(&host);
    loop {
        news::begin_round();
        let renewed = Settings::again(options).and_then(|renewed| {
            renewed.site_with_processes()?;
            Ok(renewed)
        });
        match renewed {
            Ok(renewed) => settings = renewed,
            Err(error) => log::error!("{error:#}; until then the settings are the former ones"),
        }
        let site = settings.site();
        let mut out = Output::account();
        match reconcile(site) {
            Ok(report) => {
                for problem in &report.problems {
                    log::error!("{problem}");
                }
                if !report.reclaimed.is_empty() {
                    tell(&report, args.json, &mut out)?;
                }
                if let Some(broken) = report.broken {
                    watch.round_is_over(broken);
                }
            }
            // They are made later, as after a package's installation, or were taken back.
            Err(_) if !has_pools(site).unwrap_or(true) => log::warn!(
                "there are no pools in {}: once they are there, what dead owners hold is freed",
                Shown(&site.conf_dir.display().to_string())
            ),
            Err(error) => log::error!("{error:#}"),
        }
        // Nobody reads the output any more.
        if out.is_closed() {
            return Ok(0);
        }
        binary.switch_to_update();
        watch.wait(interval);
    }
}

/// Is there anything at the place of the pools?
fn has_pools(site: &Site) -> Result<bool> {
    Ok(files::entry_if_there(&site.conf_dir.join("pools"))?.is_some())
}

/// The program that runs: its path, and the device and inode that were there at the start.
struct Binary {
    file: Option<(PathBuf, (u64, u64))>,
}

impl Binary {
    /// Finds it by the path by which it was called, which can be a link that an update redirects;
    /// if that leads elsewhere, by the program's own path.
    fn running() -> Binary {
        let own = || std::env::current_exe().ok();
        let is_own = |path: &PathBuf| {
            let own = own().map(|own| identity(&own));
            matches!((identity(path), own), (Ok(called), Some(Ok(own))) if called == own)
        };
        let called = called_by().filter(is_own);
        let file = called.or_else(own).and_then(|path| {
            let identity = identity(&path).ok()?;
            Some((path, identity))
        });
        Binary { file }
    }

    /// If an update has replaced the program, executes the new one in our place. Nothing is lost by
    /// that, because all records are on disk.
    fn switch_to_update(&mut self) {
        let Some((path, before)) = &mut self.file else {
            return;
        };
        match identity(path) {
            Ok(now) if now == *before => {}
            Ok(now) => {
                log::warn!("{} was replaced: the new one goes on", path.display());
                // A program that cannot be executed is reported once.
                *before = now;
                let error = Command::new(&*path)
                    .args(std::env::args_os().skip(1))
                    .exec();
                log::error!("execute {}: {error}", path.display());
            }
            Err(error) => log::warn!(
                "{}, which this is, cannot be looked at any more: {error}",
                path.display()
            ),
        }
    }
}

/// The path by which we were started: `argv[0]`, or if that is only a name, the file of this name
/// in a directory of `PATH` (execvp(3)).
fn called_by() -> Option<PathBuf> {
    let name = PathBuf::from(std::env::args_os().next()?);
    if name.components().count() > 1 {
        return std::path::absolute(name).ok();
    }
    let directories = std::env::var_os("PATH")?;
    let mut paths = std::env::split_paths(&directories).map(|dir| dir.join(&name));
    paths.find(|path| identity(path).is_ok())
}

fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    let metadata = path.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// The CPU lists that were freed, in KCM's form.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// Each pid of a dead owner in each list that it held.
    reclaimed_cpu_lists: Vec<ReclaimedEntry<'a>>,
}

/// A CPU list that a dead owner held.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct ReclaimedEntry<'a> {
    /// The CPUs, as a list such as `4,12` or `0-2`.
    cpus: &'a str,
    /// The pid that stood for the owner.
    pid: i32,
    /// The pool's name.
    pool: &'a str,
}

fn document<'a>(report: &'a Reconciled) -> Document<'a> {
    let entry = |one: &'a Reclaimed| ReclaimedEntry {
        cpus: &one.cpus,
        pid: one.pid,
        pool: &one.pool,
    };
    Document {
        reclaimed_cpu_lists: report.reclaimed.iter().map(entry).collect(),
    }
}

fn tell(report: &Reconciled, json: bool, out: &mut Output) -> Result<()> {
    if json {
        out.json(&document(report))?;
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
    Ok(())
}
