//! The pool directory, and whether the claims are true.

use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use anyhow::{Error, Result};
use nix::unistd::geteuid;

use super::{Report, check_neighbours, kept, machine, trial, tuning};
use crate::cpulist::CpuSet;
use crate::files::{self, Way};
use crate::isolation;
use crate::isolation::tuning::listed;
use crate::outside;
use crate::placement::{ListState, Site, Survey, SurveyedPool, audit, replaced_lock, survey};
use crate::pools::{Kind, LOCK_MODE, PoolDirectory};
use crate::refusal::Refusal;
use crate::request::is_pool_name;
use crate::text::{Shown, one_line, shell_word};
use crate::topology;

pub(super) fn check(site: &Site, report: &mut Report) {
    for path in [&site.conf_dir, &site.run_dir] {
        // A directory that is missing is reported below, if that matters.
        if let Ok(way) = Way::to(path, || site.host.unknown_root()) {
            for doubt in way.doubts {
                report.doubt("pools", &doubt);
            }
        }
    }
    let directory = match PoolDirectory::open(&site.host, &site.conf_dir) {
        Ok(directory) => directory,
        Err(error) => return report.error("pools", &error),
    };
    lock(site, &directory, report);
    for doubt in directory.doubts() {
        report.doubt("pools", &doubt);
    }
    let names = match directory.pool_names() {
        Ok(names) => names,
        Err(error) => return report.error("pools", &error),
    };
    if names.is_empty() {
        let text = format!("{} has no pool", directory.path().display());
        report.fault(
            "pools",
            text,
            "make some: `pinfold init` (`pinfold init --help` says how the CPUs can be divided)",
        );
        return;
    }
    let mut unsound = Vec::new();
    for name in names {
        match can_give(&directory, &name) {
            Ok(Kind::Exclusive) => {}
            Ok(Kind::Shared) => of_shared(site, &directory, &name, report),
            Err(error) => {
                unsound.push(name);
                report.error("pools", &error);
            }
        }
    }
    trial::check(site, &directory, report);
    match survey(site) {
        Ok(survey) => {
            let sound = survey
                .pools
                .iter()
                .filter(|pool| !unsound.contains(&pool.name));
            sound.for_each(|pool| one_pool(pool, report));
            for remark in &survey.remarks {
                report.remark("pools", remark);
            }
            reach(site, &survey, report);
            super::isolation::check(site, &survey, report);
            tuning::check(site, &survey, report);
            report
                .findings
                .extend(check_neighbours(site, &kept(&survey)));
        }
        Err(error) => report.error("pools", &error),
    }
    claims(site, report);
}

/// What a start reads of a pool before it chooses.
fn can_give(directory: &PoolDirectory, name: &str) -> Result<Kind> {
    let kind = directory.sound_pool(name)?.kind;
    if kind == Kind::Exclusive {
        directory.options(name)?;
    }
    Ok(kind)
}

/// Warns of what a shared pool's files or the configuration say of its owners' CPUs: nothing does
/// it.
fn of_shared(site: &Site, directory: &PoolDirectory, name: &str, report: &mut Report) {
    let mut warn = |asking: Vec<(&'static str, &str)>, remedy: String| {
        if !asking.is_empty() {
            let why = one_line(&isolation::of_shared(Shown(name)).what);
            let asking = one_line(&listed(asking));
            report.warn("pools", format!("{why}, and nothing does {asking}"), remedy);
        }
    };
    if let Some(options) = site.options.get(name) {
        let table = format!("take that out of [pools.{name}] in the configuration file");
        warn(options.asking(), table);
    }
    match directory.options(name) {
        Ok(options) => {
            let files = options.asking().into_iter();
            let files = files.map(|(key, _)| shell_word(&directory.option_path(name, key)));
            let files = format!("`rm {}`", files.collect::<Vec<_>>().join(" "));
            warn(options.asking(), files);
        }
        Err(error) => report.remark("pools", &Refusal::of(&error)),
    }
}

fn lock(site: &Site, directory: &PoolDirectory, report: &mut Report) {
    let path = directory.lock_path();
    match replaced_lock(site, directory) {
        Ok(Some(remark)) => report.warn(
            "pools",
            remark,
            "`pinfold reconcile`, or the next start, takes the new one over; leave that file alone \
             (rsync --exclude)",
        ),
        Ok(None) => {}
        Err(error) => report.error("pools", &error),
    }
    match path.symlink_metadata() {
        Ok(metadata) if !is_owned(&metadata, site) => report.doubt(
            "pools",
            &Refusal::new(
                format!(
                    "{} belongs to uid {}: only root's, or one's own, can be trusted",
                    path.display(),
                    metadata.uid()
                ),
                format!("`chown -h {} {}`", geteuid(), shell_word(&path)),
            ),
        ),
        Ok(metadata) if metadata.permissions().mode() & 0o077 != 0 => report.warn(
            "pools",
            format!(
                "{} can be opened, so held, by others than root",
                path.display()
            ),
            format!("`chmod {LOCK_MODE:o} {}`", shell_word(&path)),
        ),
        Ok(_) => {}
        Err(error) if !files::is_gone(&error) => {
            let error = Error::new(error).context(format!("look at {}", path.display()));
            report.error("pools", &error);
        }
        Err(error) => report.fault(
            "pools",
            format!("look at {}: {error}", path.display()),
            format!(
                "make it: `install -m {LOCK_MODE:o} /dev/null {}`",
                shell_word(&path)
            ),
        ),
    }
}

fn is_owned(metadata: &Metadata, site: &Site) -> bool {
    let uid = metadata.uid();
    uid == 0 || uid == geteuid().as_raw() || site.host.unknown_root() == Some(uid)
}

fn one_pool(pool: &SurveyedPool, report: &mut Report) {
    let name = Shown(&pool.name);
    let offline: CpuSet = pool
        .lists
        .iter()
        .flat_map(|list| list.offline.iter())
        .collect();
    let usable = pool.lists.iter().filter(|list| list.offline.is_empty());
    let count = |state| pool.lists.iter().filter(|list| list.state == state).count();
    if !is_pool_name(&pool.name) {
        report.warn(
            "pools",
            format!("pool {name} has a name that cannot be asked for"),
            "rename its directory: up to 63 letters, digits, - and _, a letter or digit first",
        );
    }
    if pool.lists.is_empty() {
        report.warn(
            "pools",
            format!("pool {name} has no CPU list"),
            match is_pool_name(&pool.name) {
                true => format!(
                    "give it some, `pinfold pool resize {0} 1`, or take it away, `pinfold pool \
                     remove {0}`",
                    pool.name
                ),
                false => "remove its directory".to_owned(),
            },
        );
    } else if usable.count() == 0 {
        let text = format!("every CPU list of pool {name} has CPUs that are offline ({offline})");
        report.fault(
            "pools",
            text,
            "bring them online, or make the pool of others",
        );
    } else if !offline.is_empty() {
        let text = format!(
            "pool {name} has CPUs that are offline ({offline}), and their lists are passed over"
        );
        report.warn("pools", text, "bring them online");
    } else {
        let kind = pool.kind.word();
        let lists = pool.lists.len();
        let text = format!(
            "pool {name}, {kind}: {} of its CPU lists owned, of {lists}",
            count(ListState::Owned)
        );
        report.ok("pools", text);
    }
    if count(ListState::Dead) > 0 {
        let text = format!(
            "pool {name}: {} CPU lists are held by dead owners",
            count(ListState::Dead)
        );
        report.warn(
            "pools",
            text,
            "`pinfold reconcile`, or the next start that needs them, frees them",
        );
    }
}

/// Reports whether containers can get the pools' CPUs in the groups where engines put them.
fn reach(site: &Site, survey: &Survey, report: &mut Report) {
    let lists = survey.pools.iter().flat_map(|pool| &pool.lists);
    let cpus: Vec<CpuSet> = lists.filter_map(|list| list.name.parse().ok()).collect();
    let all: CpuSet = cpus.iter().collect();
    let online = topology::online(&site.host).unwrap_or_default();
    let mut elsewhere = CpuSet::new();
    for (path, cpus) in machine::partitions(site) {
        let ours = all.intersection(&cpus);
        let slice = path.rsplit('/').next().unwrap_or(&path);
        if !ours.is_empty() {
            report.ok(
                "pools",
                format!(
                    "the CPUs {ours} of pools are a partition of {path}: containers there have \
                     them (--cgroup-parent {slice}), and no others"
                ),
            );
        }
        elsewhere.extend(&ours);
    }
    let online = online.difference(&elsewhere);
    // What the configuration's confine keeps a slice off is said by its own check.
    let confined = outside::kept_off(&site.host);
    let by_us = |path: &str, lacks: &CpuSet| {
        let mut units = confined.iter();
        units.any(|unit| path == format!("/{}", unit.unit) && lacks.is_subset(&unit.cpus))
    };
    for (path, lacks, remedy) in machine::narrow_parents(site, &all.intersection(&online)) {
        if by_us(&path, &lacks) {
            continue;
        }
        report.warn(
            "pools",
            format!(
                "{path} does not allow the CPUs {lacks} of pools, which containers in it cannot get"
            ),
            remedy,
        );
    }
}

fn claims(site: &Site, report: &mut Report) {
    let audit = match audit(site) {
        Ok(audit) => audit,
        Err(error) if !geteuid().is_root() => {
            report.warn("claims", Refusal::of(&error).what, "run this as root");
            return;
        }
        Err(error) => return report.error("claims", &error),
    };
    match audit.owners {
        _ if !audit.remarks.is_empty() => {}
        0 => report.ok("claims", "there are no owners"),
        owners => report.ok(
            "claims",
            format!("all owners ({owners}) are confined as their claims say"),
        ),
    }
    for remark in &audit.remarks {
        report.remark("claims", remark);
    }
}
