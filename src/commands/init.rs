//! `pinfold init`: making the pool directory.

use std::io::Write;

use anyhow::{Result, ensure};
use nix::unistd::geteuid;
use tabwriter::TabWriter;

use super::output::Output;
use super::warn_of_neighbours;
use crate::check::KeptCpus;
use crate::cli::InitArgs;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::install::refresh_cdi;
use crate::isolation::{self, Options};
use crate::last_words;
use crate::outside;
use crate::placement::{Existing, Made, Site, init, try_init};
use crate::pools::Kind;
use crate::pools::carve::{Cut, FromNodes};
use crate::pools::plan::{Cores, ListUnit, PlannedPool, PoolSpec, Stock, list_name, plan};
use crate::refusal::Refusal;
use crate::settings::Settings;
use crate::text::one_line;
use crate::topology;

pub(super) fn run(args: &InitArgs, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let mut stock = settings.stock(args.housekeeping.reserve.as_ref())?;
    let is_kcms = args.num_dp_cores.is_some() || args.num_cp_cores.is_some();
    if args.pool.is_empty() {
        stock.shared_isolated = Some(CONTROLPLANE.to_owned());
    }
    // KCM knows no housekeeping CPUs: none are reserved unless somebody says so.
    if is_kcms && !settings.reserves(args.housekeeping.reserve.as_ref()) {
        stock.reserved = CpuSet::new();
    }
    let specs = specs(args, &stock)?;
    let mut plan = plan(&stock, &specs)?;
    // Only the machine's root can keep others off: the pools of a user's own podman would have each
    // start say so.
    if geteuid().is_root() {
        keep_others_off(&mut plan, &stock.isolated);
    }
    warn_of_neighbours(site, &kept(&plan));
    warn_of_all(site, &plan);
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
    last_words::arrange_for_change(&Host::new("/"), "init")?;
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

/// Has everybody else kept off what is exclusive, where nobody says otherwise. Off the CPUs of
/// `isolcpus=` they are kept already, and the kernel makes no such partition with those.
fn keep_others_off(plan: &mut [PlannedPool], isolated: &CpuSet) {
    for pool in plan {
        let is_apart = pool.lists.iter().any(|list| !list.is_disjoint(isolated));
        if pool.kind == Kind::Exclusive && !is_apart && pool.options.isolation.is_none() {
            pool.options.isolation = Some(isolation::Kind::Root.word().to_owned());
        }
    }
}

/// Says where pools want others kept off every CPU there is.
fn warn_of_all(site: &Site, plan: &[PlannedPool]) {
    let wants = |pool: &&PlannedPool| pool.options.wanted(&pool.name).is_ok_and(|it| it.is_some());
    let cpus: CpuSet = plan
        .iter()
        .filter(wants)
        .flat_map(|pool| &pool.lists)
        .collect();
    if topology::online(&site.host).is_ok_and(|online| online.is_subset(&cpus)) {
        log::warn!("{}", outside::none_left_for_others(&cpus));
    }
}

/// The CPUs that the exclusive pools keep for their owners.
fn kept(plan: &[PlannedPool]) -> Vec<KeptCpus> {
    let pools = plan.iter().filter(|pool| pool.kind == Kind::Exclusive);
    let kept = pools.flat_map(|pool| {
        pool.lists.iter().map(|list| KeptCpus {
            cpus: list.clone(),
            pool: pool.name.clone(),
            owner: None,
        })
    });
    kept.collect()
}

fn print(out: &mut Output, plan: &[PlannedPool]) -> Result<()> {
    let mut table = TabWriter::new(vec![]);
    writeln!(table, "POOL\tKIND\tLISTS\tCPUS")?;
    for pool in plan {
        let lists: Vec<String> = pool.lists.iter().map(list_name).collect();
        writeln!(
            table,
            "{}\t{}\t{}\t{}",
            pool.name,
            pool.kind.word(),
            lists.len(),
            lists.join(" ")
        )?;
    }
    Ok(out.write_all(&table.into_inner()?)?)
}

fn specs(args: &InitArgs, stock: &Stock) -> Result<Vec<PoolSpec>> {
    match (args.num_dp_cores, args.num_cp_cores) {
        _ if !args.pool.is_empty() => {}
        (None, None) => return Ok(specs_that_fit(stock)),
        (dataplane, controlplane) => {
            let dataplane = dataplane.map_or(MOST_DATAPLANE, usize::from);
            return Ok(kcm_specs(dataplane, controlplane.unwrap_or(1).into()));
        }
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

/// The most cores of dataplane if nobody says how many: KCM's own number.
const MOST_DATAPLANE: usize = 4;

/// KCM's three pools. Where cores are isolated, dataplane and controlplane get those, and infra
/// only the others.
fn kcm_specs(dataplane: usize, controlplane: usize) -> Vec<PoolSpec> {
    vec![
        spec("dataplane", Cores::Count(dataplane), Kind::Exclusive),
        spec(CONTROLPLANE, Cores::Count(controlplane), Kind::Shared),
        spec("infra", Cores::Rest, Kind::Shared),
    ]
}

fn spec(name: &str, cores: Cores, kind: Kind) -> PoolSpec {
    PoolSpec {
        name: name.to_owned(),
        cores,
        kind,
        cut: Cut::default(),
        unit: ListUnit::Core,
        options: Options::default(),
    }
}

/// Those of KCM's three pools for which the machine has cores. dataplane is as large as it can be
/// with one core left for each of the others. If the cores suffice for nothing, making the plan
/// fails.
fn specs_that_fit(stock: &Stock) -> Vec<PoolSpec> {
    let mut dataplane = spec("dataplane", Cores::Count(1), Kind::Exclusive);
    dataplane.cut.numa = FromNodes::Pack;
    let controlplane = spec(CONTROLPLANE, Cores::Count(1), Kind::Shared);
    let infra = spec("infra", Cores::Rest, Kind::Shared);
    let exclusive = stock.cores_for(&dataplane).len();
    let (shared, others) = (
        stock.cores_for(&controlplane).len(),
        stock.cores_for(&infra).len(),
    );
    // Isolated cores are one supply, and the others, for infra, are another.
    let is_apart = !stock.isolated.is_empty();
    let has_infra = others > 0;
    let kept = usize::from(has_infra && !is_apart);
    let has_controlplane = shared > 1 + kept;
    let spare = shared.saturating_sub(kept + usize::from(has_controlplane));
    let most = MOST_DATAPLANE.min(exclusive).min(spare).max(1);
    dataplane.cores = Cores::Count(most);
    let pools = [
        Some(dataplane),
        has_controlplane.then_some(controlplane),
        has_infra.then_some(infra),
    ];
    pools.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::carve::Core;

    #[test]
    fn others_are_kept_off_what_is_exclusive_unless_somebody_says_otherwise() {
        for (kind, lists, said, isolated, comes_to) in [
            (Kind::Exclusive, "1 2", None, "", Some("root")),
            (Kind::Exclusive, "1 2", None, "3-7", Some("root")),
            (Kind::Exclusive, "1 2", None, "2", None),
            (Kind::Exclusive, "1 2", Some("none"), "", Some("none")),
            (
                Kind::Exclusive,
                "1 2",
                Some("isolated"),
                "1-2",
                Some("isolated"),
            ),
            (Kind::Shared, "1-2", None, "", None),
        ] {
            let mut plan = [PlannedPool {
                name: "dp".to_owned(),
                kind,
                lists: lists.split(' ').map(|list| list.parse().unwrap()).collect(),
                options: Options {
                    isolation: said.map(str::to_owned),
                    ..Options::default()
                },
            }];
            keep_others_off(&mut plan, &isolated.parse().unwrap());
            let isolation = plan[0].options.isolation.as_deref();
            assert_eq!(isolation, comes_to, "{lists} {said:?} {isolated}");
            assert_eq!(plan[0].options.needed, None);
        }
    }

    #[test]
    fn whatever_there_is_of_two_cores_or_more_is_divided() {
        for (cores, isolated, expected) in [
            (1, "", "too few"),
            (2, "", "dataplane=1 infra=0"),
            (3, "", "dataplane=1 controlplane=0 infra=2"),
            (4, "", "dataplane=1/2 controlplane=0 infra=3"),
            (5, "", "dataplane=1/2/3 controlplane=0 infra=4"),
            (6, "", "dataplane=1/2/3/4 controlplane=0 infra=5"),
            (9, "", "dataplane=1/2/3/4 controlplane=0 infra=5,6,7,8"),
            (4, "3", "dataplane=3 infra=0,1,2"),
            (4, "2-3", "dataplane=2 controlplane=3 infra=0,1"),
            (8, "1-7", "dataplane=1/2/3/4 controlplane=5 infra=0"),
            (4, "0-3", "dataplane=1/2/3 controlplane=0"),
        ] {
            let core = |cpu: u32| Core {
                cpus: CpuSet::from_iter([cpu]),
                node: Some(0),
                cache: Some(0),
            };
            let stock = Stock {
                cores: (0..cores).map(core).collect(),
                isolated: isolated.parse().unwrap(),
                reserved: CpuSet::from_iter([0]),
                shared_isolated: Some(CONTROLPLANE.to_owned()),
            };
            let pools = plan(&stock, &specs_that_fit(&stock));
            let shown = pools.map_or_else(
                |error| error.to_string(),
                |pools| {
                    let pool = |pool: &PlannedPool| {
                        let lists: Vec<String> = pool.lists.iter().map(list_name).collect();
                        format!("{}={}", pool.name, lists.join("/"))
                    };
                    pools.iter().map(pool).collect::<Vec<_>>().join(" ")
                },
            );
            assert!(shown.starts_with(expected), "{cores} {isolated}: {shown}");
        }
    }
}
