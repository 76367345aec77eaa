//! Whether anything runs `pinfold reconcile` again and again, and whether the pools are as the
//! configuration declares them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::unistd::geteuid;

use super::{Report, Scope};
use crate::files;
use crate::host::Host;
use crate::placement::{Applied, stock, try_apply};
use crate::pools::converge::{Declared, Undeclared};
use crate::pools::plan::PlannedPool;
use crate::process;
use crate::refusal::Refusal;
use crate::text::Shown;

pub(super) fn check(scope: &Scope<'_>, report: &mut Report) {
    // A user's pools are not this machine's to keep, and without pools there is nothing to keep.
    let pools = files::entry_if_there(&scope.site.conf_dir.join("pools"));
    if geteuid().is_root() && matches!(pools, Ok(Some(_))) {
        match keeper(scope.host()) {
            Ok(Keeper::Unknown) => {}
            Ok(Keeper::Known(who)) => report.ok("reconcile", who),
            Ok(Keeper::Nobody) => report.warn(
                "reconcile",
                "nothing runs `pinfold reconcile`: what dead owners hold is freed when somebody \
                 needs it, and not before",
                "`systemctl enable --now pinfold-reconcile` (the packages have that unit), or have \
                 cron run `pinfold reconcile`",
            ),
            Err(error) => report.remark("reconcile", &Refusal::of(&error)),
        }
    }
    if let Err(error) = check_declared(scope, report) {
        report.remark("declared", &Refusal::of(&error));
    }
}

/// Who runs `pinfold reconcile`.
enum Keeper {
    /// A sentence that says who.
    Known(String),
    Nobody,
    /// No processes can be seen on the machine.
    Unknown,
}

fn keeper(host: &Host) -> Result<Keeper> {
    let mut shows_processes = false;
    for name in files::directories_in(&host.processes())? {
        let Ok(pid) = name.parse() else {
            continue;
        };
        let line = process::command_line(host, pid);
        shows_processes |= !line.is_empty();
        if is_reconcile(&line) {
            return Ok(Keeper::Known(format!("process {pid} runs it")));
        }
    }
    if !shows_processes {
        return Ok(Keeper::Unknown);
    }
    for path in schedules(host)? {
        let text = files::read_bytes_if_there(&path).ok().flatten();
        if says_reconcile(&String::from_utf8_lossy(&text.unwrap_or_default())) {
            return Ok(Keeper::Known(format!(
                "{} runs it",
                Shown(&path.display().to_string())
            )));
        }
    }
    Ok(Keeper::Nobody)
}

/// The files that say what runs at which times: cron's, and the services of enabled timers.
fn schedules(host: &Host) -> Result<Vec<PathBuf>> {
    let mut schedules = vec![host.crontab()];
    for directory in host.cron_directories() {
        let names = files::names_in(&directory)?.into_iter();
        schedules.extend(names.map(|name| directory.join(name)));
    }
    for timer in files::names_in(&host.enabled_timers())? {
        let service = timer.replace(".timer", ".service");
        schedules.extend(host.unit_files(&service));
    }
    Ok(schedules)
}

/// Is this the command line of a `pinfold reconcile --interval`?
fn is_reconcile(line: &[OsString]) -> bool {
    let Some((program, arguments)) = line.split_first() else {
        return false;
    };
    let is_named = |name: &str| arguments.iter().any(|argument| argument == name);
    let mut texts = arguments.iter().filter_map(|argument| argument.to_str());
    Path::new(program)
        .file_name()
        .is_some_and(|name| name == "pinfold")
        && is_named("reconcile")
        && texts.any(|text| text.starts_with("--interval"))
}

fn says_reconcile(schedule: &str) -> bool {
    let mut lines = schedule
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'));
    lines.any(|line| line.contains("pinfold reconcile"))
}

/// Reports whether the pools are as the configuration declares them.
fn check_declared(scope: &Scope<'_>, report: &mut Report) -> Result<()> {
    let mut declared: Vec<Declared> = Vec::new();
    for (name, table) in scope.rules {
        declared.extend(table.declared(name)?);
    }
    if declared.is_empty() {
        return Ok(());
    }
    let stock = stock(scope.host(), scope.reserve.map(|reserve| &reserve.0))?;
    let applied = try_apply(scope.site, &stock, &declared, Undeclared::Stay)?;
    let others = differing(&applied);
    if !others.is_empty() {
        report.warn(
            "declared",
            format_args!("not as the configuration says: pool {}", others.join(", ")),
            "`pinfold apply` makes it so; with --dry-run it shows the difference",
        );
    }
    for kept in &applied.kept {
        report.remark("declared", &kept.why);
    }
    if others.is_empty() && applied.kept.is_empty() {
        let number = declared.len();
        let text = format_args!("as the configuration says ({number} declared)");
        report.ok("declared", text);
    }
    Ok(())
}

/// The names of the pools that `pinfold apply` would change.
fn differing(applied: &Applied) -> Vec<String> {
    let pools = applied.before.iter().chain(&applied.after);
    let is_other =
        |pool: &&PlannedPool| !(applied.before.contains(pool) && applied.after.contains(pool));
    let names: BTreeSet<&String> = pools.filter(is_other).map(|pool| &pool.name).collect();
    names
        .into_iter()
        .map(|name| Shown(name).to_string())
        .collect()
}
