//! `pinfold init`: making the pool directory.

use std::io::Write;

use anyhow::{Result, ensure};
use tabwriter::TabWriter;

use super::output::Output;
use super::{Settings, warn_of_neighbours};
use crate::check::Kept;
use crate::cli::Init;
use crate::cpulist::CpuSet;
use crate::install::refresh_cdi;
use crate::placement::{Existing, Made, init, stock, try_init};
use crate::pools::Kind;
use crate::pools::carve::Cut;
use crate::pools::plan::{Cores, PlannedPool, PoolSpec, Unit, list_name, plan};
use crate::refusal::Refusal;
use crate::text::one_line;

pub(super) fn run(args: &Init, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let specs = specs(args)?;
    let mut stock = stock(&site.host, args.housekeeping.reserve.as_ref())?;
    if args.pool.is_empty() {
        stock.shared_isolated = Some(CONTROLPLANE.to_owned());
        // KCM knows no housekeeping CPUs.
        if args.housekeeping.reserve.is_none() {
            stock.reserved = CpuSet::new();
        }
    }
    let plan = plan(&stock, &specs)?;
    warn_of_neighbours(site, &kept(&plan));
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let path = one_line(&site.conf_dir.display().to_string());
    if args.dry_run {
        let mut out = Output::product();
        match try_init(site, &plan, existing)? {
            Made::New => writeln!(out, "would make {path}:")?,
            Made::AlreadyThere => writeln!(out, "{path} is so already:")?,
            Made::Completed(reason) => {
                log::warn!("{path} is half-made: {reason}");
                writeln!(out, "would complete {path}:")?;
            }
            Made::Replaced => writeln!(out, "would make {path} in place of other pools:")?,
        }
        return print(&mut out, &plan).map(|()| 0);
    }
    let mut out = Output::account();
    match init(site, &plan, existing)? {
        Made::New => writeln!(out, "made {path}:")?,
        Made::AlreadyThere => writeln!(out, "{path} is so already:")?,
        Made::Completed(reason) => {
            log::warn!("{path} was half-made: {reason}");
            writeln!(out, "completed {path}:")?;
        }
        Made::Replaced => writeln!(out, "made {path} in place of other pools:")?,
    }
    print(&mut out, &plan)?;
    refresh_cdi(site)?;
    Ok(0)
}

/// What the exclusive pools keep for one owner a list.
fn kept(plan: &[PlannedPool]) -> Vec<Kept> {
    let pools = plan.iter().filter(|pool| pool.kind == Kind::Exclusive);
    let kept = pools.flat_map(|pool| {
        pool.lists.iter().map(|list| Kept {
            cpus: list.clone(),
            pool: pool.name.clone(),
            owner: None,
        })
    });
    kept.collect()
}

fn print(out: &mut Output, plan: &[PlannedPool]) -> Result<()> {
    let mut table = TabWriter::new(vec![]);
    writeln!(table, "POOL\tKIND\tCPUS")?;
    for pool in plan {
        for list in &pool.lists {
            writeln!(
                table,
                "{}\t{}\t{}",
                pool.name,
                pool.kind.word(),
                list_name(list)
            )?;
        }
    }
    Ok(out.write_all(&table.into_inner()?)?)
}

fn specs(args: &Init) -> Result<Vec<PoolSpec>> {
    if args.pool.is_empty() {
        return Ok(kcm_specs(
            args.num_dp_cores.unwrap_or(4).into(),
            args.num_cp_cores.unwrap_or(1).into(),
        ));
    }
    let specs = args.pool.clone();
    for (index, spec) in specs.iter().enumerate() {
        let is_repeated = specs[..index].iter().any(|other| other.name == spec.name);
        ensure!(
            !is_repeated,
            Refusal::usage(
                format!("pool {} is asked for twice", spec.name),
                "give each a name of its own"
            )
        );
    }
    Ok(specs)
}

/// KCM's shared pool that is cut from isolated cores.
const CONTROLPLANE: &str = "controlplane";

/// KCM's three pools. Where cores are isolated, dataplane and controlplane get those, and infra only the others.
fn kcm_specs(dataplane: usize, controlplane: usize) -> Vec<PoolSpec> {
    let spec = |name: &str, cores, kind| PoolSpec {
        name: name.to_owned(),
        cores,
        kind,
        cut: Cut::default(),
        unit: Unit::Core,
    };
    vec![
        spec("dataplane", Cores::Count(dataplane), Kind::Exclusive),
        spec(CONTROLPLANE, Cores::Count(controlplane), Kind::Shared),
        spec("infra", Cores::Rest, Kind::Shared),
    ]
}
