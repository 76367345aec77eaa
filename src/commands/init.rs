//! `pinfold init`: making the pool directory.

use std::io::{self, Write};

use anyhow::{Result, ensure};
use tabwriter::TabWriter;

use super::Settings;
use crate::cli::{Init, PoolArg};
use crate::placement::{Existing, Made, init};
use crate::pools::Kind;
use crate::pools::plan::{Cores, PlannedPool, PoolSpec, list_name, plan};
use crate::topology;

pub(super) fn run(args: &Init, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let specs = specs(args)?;
    let cores = topology::cores(&site.host)?;
    let isolated = topology::isolated(&site.host)?;
    let plan = plan(&cores, &isolated, &specs)?;
    let mut out = io::stdout().lock();
    if args.dry_run {
        writeln!(out, "would make {}:", site.conf_dir.display())?;
        return print(&mut out, &plan);
    }
    let existing = if args.force {
        Existing::Replace
    } else {
        Existing::Keep
    };
    let path = site.conf_dir.display();
    match init(site, &plan, existing)? {
        Made::New => writeln!(out, "made {path}:")?,
        Made::AlreadyThere => writeln!(out, "{path} is so already:")?,
        Made::Completed(reason) => {
            log::warn!("{path} was half-made: {reason}");
            writeln!(out, "completed {path}:")?;
        }
        Made::Replaced => writeln!(out, "made {path} in place of other pools:")?,
    }
    print(&mut out, &plan)
}

fn print(out: &mut impl Write, plan: &[PlannedPool]) -> Result<u8> {
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
    out.write_all(&table.into_inner()?)?;
    Ok(0)
}

fn specs(args: &Init) -> Result<Vec<PoolSpec>> {
    if args.pool.is_empty() {
        return Ok(kcm_specs(
            args.num_dp_cores.unwrap_or(4).into(),
            args.num_cp_cores.unwrap_or(1).into(),
        ));
    }
    let specs: Vec<PoolSpec> = args.pool.iter().map(|PoolArg(spec)| spec.clone()).collect();
    for (index, spec) in specs.iter().enumerate() {
        let is_repeated = specs[..index].iter().any(|other| other.name == spec.name);
        ensure!(
            !is_repeated,
            "pool {} is asked for twice: give each a name of its own",
            spec.name
        );
    }
    Ok(specs)
}

/// KCM's three pools. Where cores are isolated, dataplane and controlplane get those, and infra only the others.
fn kcm_specs(dataplane: usize, controlplane: usize) -> Vec<PoolSpec> {
    let spec = |name: &str, cores, kind, from_isolated| PoolSpec {
        name: name.to_owned(),
        cores,
        kind,
        from_isolated,
    };
    vec![
        spec("dataplane", Cores::Count(dataplane), Kind::Exclusive, true),
        spec(
            "controlplane",
            Cores::Count(controlplane),
            Kind::Shared,
            true,
        ),
        spec("infra", Cores::Rest, Kind::Shared, false),
    ]
}
