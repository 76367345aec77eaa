//! `pinfold setup`: from nothing to the first container with CPUs of its own, and back.

use std::fmt::Display;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use nix::unistd::geteuid;

use super::output::Output;
use super::{apply, check, init, install};
use crate::cli::{
    ApplyArgs, CheckArgs, InitArgs, InstallArgs, InstallPlaceArgs, Options, SetupArgs, TargetArg,
};
use crate::cpulist::CpuSet;
use crate::engines::{Engine, RUNTIME};
use crate::files;
use crate::host::Host;
use crate::install::SetupRecord;
use crate::placement::{live_claims, reconcile, unmake};
use crate::pools::{Kind, PoolDirectory};
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::text::one_line;
use crate::topology::Levels;

pub(super) fn run(args: &SetupArgs, options: &Options) -> Result<u8> {
    let settings = Settings::of_command_line(options)?;
    let host = &settings.site().host;
    ensure!(
        geteuid().is_root() || !host.is_running_root() || args.dry_run,
        Refusal::new(
            "this is for the whole machine",
            "run it as root; or, for your own podman, `pinfold install podman --user`"
        )
    );
    match args.undo {
        true => undo(args, &settings, options),
        false => set_up(args, &settings, options),
    }
}

fn set_up(args: &SetupArgs, settings: &Settings, options: &Options) -> Result<u8> {
    let site = settings.site();
    let engines = engines(args, &site.host);
    let has_pools = files::entry_if_there(&site.conf_dir.join("pools"))?.is_some();
    let mut out = Output::account();
    writeln!(out, "{}", machine(settings)?)?;
    if has_pools {
        writeln!(out, "pools: those in {} stay", path(&site.conf_dir))?;
    } else if !args.yes {
        make_pools(args, settings, Doing::Trial)?;
    }
    match engines.is_empty() {
        true => writeln!(out, "engines: none found; name one with --engine")?,
        false => writeln!(out, "engines: {}", words(&engines))?,
    }
    if args.dry_run {
        return show_changes(args, &engines, options).map(|()| 0);
    }
    ensure_agreed(
        args.yes,
        "Make these pools, and change these engines' files?",
    )?;

    let mut record = SetupRecord::read(&site.host)?.unwrap_or_default();
    if !has_pools {
        // A recorded lock belongs to pools that are gone.
        let before = (
            record.pools.replace(site.conf_dir.clone()),
            record.lock.take(),
        );
        record.write(&site.host)?;
        if let Err(error) = make_pools(args, settings, Doing::Change) {
            (record.pools, record.lock) = before;
            record.write(&site.host)?;
            return Err(error);
        }
        record.lock = Some(mark_of(settings)?);
        record.run_dir = absolute(&options.run_dir)?;
        record.config = absolute(&options.config)?;
        record.write(&site.host)?;
    }
    for engine in &engines {
        let place = place(*engine);
        let bin_dir = args.bin_dir.clone();
        let install = InstallArgs { place, bin_dir };
        // What somebody installed by hand before is not taken back by `--undo`.
        if install::changes_something(&install, options)? {
            record.add(*engine);
            record.write(&site.host)?;
        }
        install::run(&install, options)?;
    }
    let code = check::run(&CheckArgs::default(), options)?;
    if let Some(pool) = exclusive_pool(settings)? {
        writeln!(out, "try it:")?;
        for engine in &engines {
            writeln!(out, "  {}", first_command(*engine, &pool))?;
        }
        let isolate = format!("`pinfold isolate --pool {pool}`");
        let isolate = options.repeated_in(&isolate).replace('`', "");
        writeln!(out, "  {isolate} -- {COMMAND}")?;
    }
    writeln!(out, "back to what it was: pinfold setup --undo")?;
    Ok(code)
}

fn undo(args: &SetupArgs, settings: &Settings, options: &Options) -> Result<u8> {
    let host = &settings.site().host;
    let Some(record) = SetupRecord::read(host)? else {
        bail!(Refusal::new(
            "setup has done nothing here",
            "take back what was done by hand with `pinfold uninstall ENGINE`"
        ));
    };
    let options = &Options {
        conf_dir: options.conf_dir.clone().or(record.pools.clone()),
        run_dir: options.run_dir.clone().or(record.run_dir.clone()),
        config: options.config.clone().or(record.config.clone()),
        ..options.clone()
    };
    let settings = Settings::of_command_line(options)?;
    let site = settings.site();
    let engines = record.engines();
    let owners = live_claims(site)?;
    install::ensure_none(&owners.iter().collect::<Vec<_>>(), "stop them first")?;
    let mut out = Output::account();
    writeln!(out, "engines: {}", words(&engines))?;
    let is_there = files::entry_if_there(&site.conf_dir.join("pools"))?.is_some();
    let not_ours = match &record.lock {
        Some(lock) if is_there => match mark_of(&settings) {
            Ok(now) => (now != *lock).then(|| "were made by others, and stay".to_owned()),
            Err(error) => Some(format!("stay: {}", one_line(&format!("{error:#}")))),
        },
        // It was killed before it knew which pools were its own: others can have made these since.
        None if is_there && record.pools.as_ref() == Some(&site.conf_dir) => {
            Some("stay: setup was cut off, and they can be others' by now".to_owned())
        }
        _ => None,
    };
    let has_made = record.pools.as_ref() == Some(&site.conf_dir) && not_ours.is_none();
    if let Some(why) = not_ours {
        writeln!(out, "pools: those in {} {why}", path(&site.conf_dir))?;
    }
    if has_made {
        writeln!(out, "pools: {} goes", path(&site.conf_dir))?;
    }
    if args.dry_run {
        return Ok(0);
    }
    ensure_agreed(args.yes, "Take this back?")?;
    // The pools go first: this fails, with nothing done yet, if somebody is in them without a claim
    // of ours.
    if has_made {
        // Free what is held by owners that ended without their poststop hook.
        if files::entry_if_there(&site.conf_dir.join("pools"))?.is_some() {
            reconcile(site)?;
        }
        unmake(site)?;
        writeln!(out, "removed the pools in {}", path(&site.conf_dir))?;
    }
    for engine in engines {
        install::remove(&place(engine), options)?;
    }
    SetupRecord::remove(&site.host)?;
    Ok(0)
}

/// The engines that are named, or else those whose programs exist. The containerd that docker runs
/// is left out unless there is a kubelet: otherwise it starts no pods.
fn engines(args: &SetupArgs, host: &Host) -> Vec<Engine> {
    if !args.engine.is_empty() {
        let named = |engine: &Engine| args.engine.iter().any(|arg| arg == engine);
        return Engine::ALL.into_iter().filter(named).collect();
    }
    let has = |program: &str| host.program(program).is_some();
    let is_dockers = has(Engine::Docker.program()) && !has("kubelet");
    let mut engines = Engine::ALL.to_vec();
    engines.retain(|engine| has(engine.program()));
    engines.retain(|engine| *engine != Engine::Containerd || !is_dockers);
    engines
}

/// Prints what the engines' files would become.
fn show_changes(args: &SetupArgs, engines: &[Engine], options: &Options) -> Result<()> {
    for engine in engines {
        let place = InstallPlaceArgs {
            dry_run: true,
            ..place(*engine)
        };
        let bin_dir = args.bin_dir.clone();
        install::run(&InstallArgs { place, bin_dir }, options)?;
    }
    Ok(())
}

/// The mark that tells these pools from others that are made in their place later.
fn mark_of(settings: &Settings) -> Result<String> {
    let site = settings.site();
    PoolDirectory::open(&site.host, &site.conf_dir)?.mark()
}

/// Makes a path of the command line absolute, for a later command that runs in another directory.
fn absolute(path: &Option<PathBuf>) -> Result<Option<PathBuf>> {
    let path = path.as_ref().map(std::path::absolute);
    Ok(path.transpose()?)
}

/// A line about the machine: the cores and CPUs that there are to divide.
fn machine(settings: &Settings) -> Result<String> {
    let (host, stock) = (&settings.site().host, settings.stock(None)?);
    let cores = stock.cores.iter();
    let cpus: CpuSet = cores.flat_map(|core| core.cpus.iter()).collect();
    let levels = Levels::of(host, &cpus);
    let count = |number: usize, one: &str| match number {
        1 => format!("1 {one}"),
        number => format!("{number} {one}s"),
    };
    Ok(format!(
        "machine: {}, {}, in {} and {}; the core of CPU {} is the host's",
        count(stock.cores.len(), "core"),
        count(cpus.len(), "CPU"),
        count(levels.packages.len().max(1), "package"),
        count(levels.nodes.len().max(1), "NUMA node"),
        stock.reserved
    ))
}

/// Are the pools made, or only shown?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Trial,
    Change,
}

/// Makes or shows the pools that are named, or else those that the configuration declares, or else
/// pools that fit the machine.
fn make_pools(args: &SetupArgs, settings: &Settings, doing: Doing) -> Result<()> {
    let dry_run = doing == Doing::Trial;
    if args.pool.is_empty() && !apply::declared(settings)?.is_empty() {
        let apply = ApplyArgs {
            dry_run,
            ..ApplyArgs::default()
        };
        return apply::run(&apply, settings).map(drop);
    }
    let init = InitArgs {
        pool: args.pool.clone(),
        dry_run,
        ..InitArgs::default()
    };
    init::run(&init, settings).map(drop)
}

fn place(engine: Engine) -> InstallPlaceArgs {
    InstallPlaceArgs {
        target: TargetArg::Engine(engine),
        engine_config: None,
        hooks_dir: None,
        user: false,
        dry_run: false,
    }
}

/// The first exclusive pool by name.
fn exclusive_pool(settings: &Settings) -> Result<Option<String>> {
    let site = settings.site();
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    for name in directory.pool_names()? {
        if directory.pool(&name)?.kind == Kind::Exclusive {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A command that prints the CPUs on which it may run.
const COMMAND: &str = "grep Cpus_allowed_list /proc/self/status";
/// A small image that has this command, and that everybody can pull.
const IMAGE: &str = "docker.io/library/busybox";

/// The command that starts a first container.
fn first_command(engine: Engine, pool: &str) -> String {
    match engine {
        Engine::Podman => {
            format!("podman run --rm --annotation pinfold.io/pool={pool} {IMAGE} {COMMAND}")
        }
        Engine::Docker => format!(
            "systemctl restart docker && docker run --rm --runtime {RUNTIME} \
             --annotation pinfold.io/pool={pool} {IMAGE} {COMMAND}"
        ),
        Engine::Containerd | Engine::Crio => format!(
            "crictl run --runtime {RUNTIME} CONTAINER.json POD.json   \
             # annotation pinfold.io/pool: {pool}"
        ),
    }
}

/// Asks on a terminal, unless `--yes` has answered already.
fn ensure_agreed(yes: bool, question: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(
        io::stdin().is_terminal(),
        Refusal::usage(
            "nobody can be asked here: standard input is not a terminal",
            "add --yes to do it, or --dry-run to look"
        )
    );
    let mut terminal = io::stderr();
    write!(terminal, "{question} [y/N] ")?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let is_agreed = matches!(answer.trim(), "y" | "Y" | "yes");
    ensure!(
        is_agreed,
        Refusal::new("nothing was changed", "answer y to go on, or add --yes")
    );
    Ok(())
}

fn words(engines: &[Engine]) -> String {
    let words: Vec<&str> = engines.iter().map(|engine| engine.word()).collect();
    words.join(", ")
}

fn path(path: &Path) -> impl Display {
    one_line(&path.display().to_string())
}
