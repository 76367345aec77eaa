//! `pinfold pool`: the pools, and changing them while containers run.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::{Result, ensure};
use serde::Serialize;
use tabwriter::TabWriter;

use super::output::Output;
use super::status;
use crate::cli::pool::{
    Action, AddArgs, Form, PoolArgs, RemoveArgs, ResizeArgs, SetArgs, ShowArgs, listed, spec,
};
use crate::config::PoolTable;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::install::refresh_cdi;
use crate::isolation::Options;
use crate::isolation::tuning;
use crate::last_words;
use crate::placement::{
    Change, Changed, ListState, SurveyedPool, change, set_options, survey, try_change,
};
use crate::pools::carve::Cut;
use crate::pools::plan::{ListUnit, PlannedPool, PoolSpec, Stock, list_name};
use crate::pools::{Kind, PoolDirectory};
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::text::{Shown, one_line};
use crate::topology;

pub(super) fn run(args: &PoolArgs, settings: &Settings) -> Result<u8> {
    match &args.action {
        Action::Show(args) => show(args, settings),
        Action::Add(args) => add(args, settings),
        Action::Remove(args) => remove(args, settings),
        Action::Resize(args) => resize(args, settings),
        Action::Set(args) => set(args, settings),
    }
}

fn show(args: &ShowArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let survey = survey(site)?;
    let mut code = status::code(&survey);
    let online = topology::online(&site.host)?;
    let mut in_none = online;
    for pool in &survey.pools {
        in_none = in_none.difference(&pool.cpus());
    }
    let mut pools = survey.pools;
    if let Some(name) = &args.name {
        let whole = PoolDirectory::open(&site.host, &site.conf_dir)?.pool(name);
        pools.retain(|pool| pool.name == *name);
        // It does not matter what is wrong with other pools.
        let mut unread = survey.unread.iter().chain(&survey.options_unread);
        let is_unread = whole.is_err() || unread.any(|unread| unread == name);
        code = u8::from(is_unread || survey.claims_unread.is_some());
        if pools.is_empty() {
            whole?;
        }
    }
    for remark in &survey.remarks {
        log::warn!("{remark}");
    }
    let mut out = Output::product();
    if args.json {
        out.json(&document(&pools, &in_none)?)?;
        return Ok(code);
    }
    let mut table = TabWriter::new(vec![]);
    writeln!(
        table,
        "POOL\tKIND\tISOLATION\tTUNING\tALLOW\tLISTS\tFREE\tCPUS"
    )?;
    for pool in &pools {
        let (kind, cpus) = (pool.kind.word(), pool.cpus());
        let (lists, free) = (pool.lists.len(), free_lists(pool));
        writeln!(
            table,
            "{}\t{kind}\t{}\t{}\t{}\t{lists}\t{free}\t{cpus}",
            Shown(&pool.name),
            isolation(pool),
            one_line(&tuning::listed(pool.options.tuning.said())),
            allow(pool)
        )?;
    }
    if args.name.is_none() {
        writeln!(table, "-\tin no pool\t-\t-\t-\t-\t-\t{in_none}")?;
    }
    out.write_all(&table.into_inner()?)?;
    Ok(code)
}

/// The pools, and the CPUs that are in none.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// The pools, or the one that was named.
    pools: Vec<PoolEntry<'a>>,
    /// The online CPUs that are in no pool, as a list such as `4,12` or `0-2`.
    in_no_pool: String,
}

/// A pool.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct PoolEntry<'a> {
    /// Its name.
    name: &'a str,
    /// Has each of its lists one owner at most?
    exclusive: bool,
    /// Its CPU lists.
    lists: Vec<&'a str>,
    /// How many of its lists nobody who lives holds.
    free: usize,
    /// The CPUs of all its lists, as one list.
    cpus: String,
    /// How it wants others kept off the CPUs of its owners: `none`, `root` or `isolated`. It is the
    /// word that its file or the configuration has, and may be wrong.
    isolation: &'a str,
    /// Is a start refused where that cannot be?
    isolation_needed: bool,
    /// What its files or the configuration say of interrupts, limits and power, by option.
    tuning: BTreeMap<&'static str, &'a str>,
    /// Which of these a container may choose by its annotations: the words that its file or the
    /// configuration has, which may be wrong; empty where it may choose none.
    allow: Vec<&'a str>,
}

fn document<'a>(pools: &'a [SurveyedPool], in_none: &CpuSet) -> Result<Document<'a>> {
    let entry = |pool: &'a SurveyedPool| -> Result<PoolEntry<'a>> {
        Ok(PoolEntry {
            name: &pool.name,
            exclusive: pool.kind == Kind::Exclusive,
            lists: pool.lists.iter().map(|list| list.name.as_str()).collect(),
            free: free_lists(pool),
            cpus: pool.cpus().to_string(),
            isolation: pool.options.isolation.as_deref().unwrap_or("none"),
            isolation_needed: pool.options.needed.as_deref() == Some("yes"),
            tuning: pool.options.tuning.said().collect(),
            allow: pool.options.allow_words(),
        })
    };
    Ok(Document {
        pools: pools.iter().map(entry).collect::<Result<_>>()?,
        in_no_pool: in_none.to_string(),
    })
}

/// A table cell that says how others are kept off; others wrote the text.
fn isolation(pool: &SurveyedPool) -> String {
    if pool.kind == Kind::Shared {
        return "-".to_owned();
    }
    let word = one_line(pool.options.isolation.as_deref().unwrap_or("none"));
    match pool.options.needed.as_deref() {
        Some("yes") => format!("{word} (needed)"),
        _ => word,
    }
}

/// The same of what containers may choose themselves.
fn allow(pool: &SurveyedPool) -> String {
    match pool.options.allow_words()[..] {
        [] => "-".to_owned(),
        [""] => Shown("").to_string(),
        ref words => one_line(&words.join(",")),
    }
}

fn free_lists(pool: &SurveyedPool) -> usize {
    let lists = pool.lists.iter();
    lists.filter(|list| list.state != ListState::Owned).count()
}

fn add(args: &AddArgs, settings: &Settings) -> Result<u8> {
    let wanted = if args.list.is_empty() {
        Change::Add(spec(&args.pool).map_err(|remedy| ill_written(&args.pool, remedy))?)
    } else {
        let spec = listed_pool(args)?;
        Change::AddLists(PlannedPool {
            name: spec.name,
            kind: spec.kind,
            lists: args.list.clone(),
            options: spec.options,
        })
    };
    let stock = settings.stock(args.housekeeping.reserve.as_ref())?;
    carry_out(settings, stock, &wanted, args.dry_run)
}

/// The pool to add if its CPU lists are given by `--list`.
fn listed_pool(args: &AddArgs) -> Result<PoolSpec> {
    let spec = listed(&args.pool).map_err(|error| {
        let sized = args
            .pool
            .split_once('=')
            .filter(|_| spec(&args.pool).is_ok());
        let remedy = match (sized, error) {
            (Some((name, rest)), _) => {
                let (size, _) = rest.split_once(':').unwrap_or((rest, ""));
                format!("drop ={size}: --list says how many there are, as in {name}:exclusive")
            }
            (None, Form::Part(error)) => error,
            (None, Form::Whole) => "with --list it is written like fast:exclusive".to_owned(),
        };
        ill_written(&args.pool, remedy)
    })?;
    ensure!(
        spec.cut == Cut::default() && spec.unit == ListUnit::Core,
        Refusal::usage(
            "--list says which CPUs",
            "drop numa=, cache= and cores=, or --list"
        )
    );
    let mut seen = CpuSet::new();
    for list in &args.list {
        ensure!(
            !list.is_empty(),
            Refusal::usage("--list has no CPU", "drop it, or name its CPUs, as 4,12")
        );
        let twice = seen.intersection(list);
        ensure!(
            twice.is_empty(),
            Refusal::usage(
                format!("CPU {twice} is in two of the lists"),
                "give each CPU to one list"
            )
        );
        seen.extend(list);
    }
    Ok(spec)
}

fn ill_written(pool: &str, remedy: String) -> Refusal {
    Refusal::usage(format!("the pool is written as {}", Shown(pool)), remedy)
}

fn remove(args: &RemoveArgs, settings: &Settings) -> Result<u8> {
    let stock = settings.stock(None)?;
    let wanted = match args.if_exists {
        true => Change::RemoveIfThere(args.name.clone()),
        false => Change::Remove(args.name.clone()),
    };
    let done = carry_out(settings, stock, &wanted, args.dry_run)?;
    let host = settings.host_table();
    if host.default_pool.as_ref() == Some(&args.name) {
        let effect = match host.default_pool_needed {
            true => "none that asks for nothing starts",
            false => "those that ask for nothing start outside of any",
        };
        log::warn!(
            "the configuration names pool {} as the default-pool of containers, and without it \
             {effect}: name another shared pool there",
            args.name
        );
    }
    Ok(done)
}

fn resize(args: &ResizeArgs, settings: &Settings) -> Result<u8> {
    let mut cut = Cut::default();
    for (key, value) in [("numa", &args.numa), ("cache", &args.cache)] {
        if let Some(value) = value {
            cut.set(key, value)
                .map_err(|remedy| Refusal::usage(format!("--{key} is {}", Shown(value)), remedy))?;
        }
    }
    let wanted = Change::Resize(PoolSpec {
        name: args.name.clone(),
        cores: args.size,
        // An existing pool keeps its kind.
        kind: Kind::Exclusive,
        cut,
        unit: ListUnit::Core,
        options: Options::default(),
    });
    let stock = settings.stock(args.housekeeping.reserve.as_ref())?;
    carry_out(settings, stock, &wanted, args.dry_run)
}

fn set(args: &SetArgs, settings: &Settings) -> Result<u8> {
    let who = format!("the change of pool {}", args.name);
    last_words::arrange_for_change(&Host::new("/"), &who)?;
    let mut options = Options::default();
    for (key, value) in &args.options {
        let set = options.set(key, value);
        set.map_err(|remedy| Refusal::usage(format!("{} of {key}", Shown(value)), remedy))?;
    }
    let is_new = set_options(settings.site(), &args.name, &options)?;
    let mut out = Output::account();
    match is_new {
        true => {
            for (key, value) in options.said() {
                writeln!(out, "{key} of pool {} is {value}", args.name)?;
            }
        }
        false => writeln!(out, "it is so already")?,
    }
    let table = settings.pools().get(&args.name);
    let configured = table.map(PoolTable::options).unwrap_or_default();
    let is_set = |key: &str| args.options.iter().any(|(set, _)| set == key);
    for (key, value) in configured.said().into_iter().filter(|one| is_set(one.0)) {
        log::warn!(
            "the configuration file says {key} {value} of pool {}, which counts before this",
            args.name
        );
    }
    Ok(0)
}

/// Makes a change, or tries it, and brings the CDI devices up to date.
fn carry_out(settings: &Settings, stock: Stock, wanted: &Change, is_trial: bool) -> Result<u8> {
    let changed = match is_trial {
        true => try_change(settings.site(), stock, wanted)?,
        false => {
            let site = settings.site_with_processes()?;
            let who = format!("the change of pool {}", wanted.name());
            last_words::arrange_for_change(&Host::new("/"), &who)?;
            change(site, stock, wanted)?
        }
    };
    // The change is made, and that is reported, even if the devices cannot be written.
    tell(&changed, is_trial)?;
    if !is_trial {
        refresh_cdi(settings.site())?;
    }
    Ok(0)
}

fn tell(changed: &Changed, is_trial: bool) -> Result<()> {
    let mut out = match is_trial {
        true => Output::product(),
        false => Output::account(),
    };
    say(&mut out, changed, is_trial)
}

fn say(out: &mut impl Write, changed: &Changed, is_trial: bool) -> Result<()> {
    if *changed == Changed::default() {
        writeln!(out, "nothing to change")?;
        return Ok(());
    }
    let (add, remove, give) = match is_trial {
        true => ("would add", "would remove", "would give"),
        false => ("added", "removed", "gave"),
    };
    for cpus in &changed.added {
        writeln!(out, "{add} {}", list_name(cpus))?;
    }
    for cpus in &changed.removed {
        writeln!(out, "{remove} {}", list_name(cpus))?;
    }
    if let Some((from, to)) = &changed.renamed {
        for (verb, cpus) in [(add, to.difference(from)), (remove, from.difference(to))] {
            if !cpus.is_empty() {
                writeln!(out, "{verb} {}", list_name(&cpus))?;
            }
        }
    }
    for owner in &changed.owners {
        writeln!(out, "{give} the CPUs to {}", Shown(owner))?;
    }
    if let Some((from, to)) = &changed.renamed {
        for pid in &changed.strangers {
            let (from, to) = (list_name(from), list_name(to));
            writeln!(
                out,
                "process {pid} keeps its CPUs: another tool put it into {from}, have that \
                 tool give it {to}"
            )?;
        }
    }
    match changed.siblings.len() {
        0 => {}
        1 => writeln!(
            out,
            "CPU {} shares a core with the pool and is in none: it is the next that the pool gets",
            changed.siblings
        )?,
        _ => writeln!(
            out,
            "CPUs {} share cores with the pool and are in none: they are the next that the \
             pool gets",
            changed.siblings
        )?,
    }
    Ok(())
}
