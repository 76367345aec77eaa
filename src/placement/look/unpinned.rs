//! Finds running containers that ask for CPUs in their configuration and have none: they were
//! started without our hook or shim.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use nix::unistd::geteuid;

use crate::cgroup::cpuset;
use crate::claims::{Entry, Ledger};
use crate::containers::Container;
use crate::placement::Site;
use crate::process::Process;
use crate::refusal::Refusal;
use crate::request::{self, Silence};

/// Why a container that may be meant to have CPUs has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// It asks for CPUs of this pool, and has no hook of ours.
    Unseen(String),
    /// It asks for CPUs of this pool and was started with our hook, and nobody holds any for it
    /// now.
    Lost(String),
    /// It asks for what we would refuse, and has no hook of ours.
    Unrefused(Refusal),
    /// It has an annotation that is not ours and looks much like one.
    Misspelt {
        /// The annotation's key.
        key: String,
        /// The key that was probably meant.
        meant: String,
    },
    /// It has a label where an annotation was probably meant: no runtime sees labels.
    Label {
        /// The label's key.
        key: String,
        /// The annotation's key that was probably meant.
        meant: String,
    },
}

/// What is wrong with the containers of the calling user, each by its index into `all`. Other users
/// have books of their own.
///
/// # Errors
/// The claims, or a container's group, cannot be read.
pub fn unpinned(site: &Site, all: &[Container]) -> Result<Vec<(usize, Lack)>> {
    let mut lacks = Vec::new();
    let mut owners = None;
    let own = all.iter().enumerate();
    for (place, container) in own.filter(|(_, one)| one.user == geteuid().as_raw()) {
        for (key, _) in container.config.plain_annotations() {
            if let Some(meant) = request::meant(key) {
                let key = key.to_owned();
                lacks.push((place, Lack::Misspelt { key, meant }));
            }
        }
        let asked = request::from_annotations(&ours_of(container));
        if asked == Ok(None) {
            continue;
        }
        // Claims are read only once a container asks for something.
        let owners = match &mut owners {
            Some(owners) => owners,
            none => none.insert(owners_of(site)?),
        };
        let has_hook = !container.config.pinning_hooks().is_empty();
        let lack = match asked {
            Ok(None) => None,
            Ok(Some(_)) if owners.contains(&container.process) => None,
            Ok(Some(request)) if !has_hook => Some(Lack::Unseen(request.pool)),
            Ok(Some(request)) if is_free(site, container)? => Some(Lack::Lost(request.pool)),
            // It is confined, so it has an owner in another pool directory.
            Ok(Some(_)) => None,
            Err(bad) => (!has_hook).then_some(Lack::Unrefused(bad)),
        };
        lacks.extend(lack.map(|lack| (place, lack)));
    }
    Ok(lacks)
}

/// The running containers of the machine that ask for nothing and own nothing, by index into `all`:
/// no sandboxes, none that was given CPUs by others, and none that opts out where it may.
///
/// # Errors
/// The claims, or a container's group, cannot be read.
pub fn outside_of_default(site: &Site, all: &[Container], may_opt_out: bool) -> Result<Vec<usize>> {
    let owners = owners_of(site)?;
    let mut outside = Vec::new();
    let own = all.iter().enumerate();
    for (place, container) in own.filter(|(_, one)| one.user == geteuid().as_raw()) {
        let ours = ours_of(container);
        let is_silent = request::from_annotations(&ours) == Ok(None)
            && container.config.device_hooks().is_empty();
        let is_meant = match request::silence(&ours, container.starter.engine()) {
            Silence::Sandbox => false,
            _ if container.names.is_infra() => false,
            Silence::OptOut => !may_opt_out,
            Silence::Plain => true,
        };
        if is_silent
            && is_meant
            && !owners.contains(&container.process)
            && is_free(site, container)?
        {
            outside.push(place);
        }
    }
    Ok(outside)
}

/// A container's annotations that are ours.
fn ours_of(container: &Container) -> BTreeMap<String, String> {
    let annotations = container.config.plain_annotations();
    let ours = annotations.filter(|(key, _)| request::is_ours(key));
    ours.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The labels that look like our annotations.
pub fn labels_meant<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<Lack> {
    let lack = |key: &str| {
        let ours = key.starts_with(request::PREFIX).then(|| key.to_owned());
        let meant = ours.or_else(|| request::meant(key))?;
        let key = key.to_owned();
        Some(Lack::Label { key, meant })
    };
    keys.filter_map(lack).collect()
}

/// All processes of owners.
fn owners_of(site: &Site) -> Result<BTreeSet<Process>> {
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(BTreeSet::new());
    };
    let entries = ledger.all()?;
    let claims = entries.iter().filter_map(Entry::claim);
    let owners = claims.flat_map(|claim| claim.processes.iter().chain([&claim.owner]).copied());
    Ok(owners.collect())
}

/// May it run on all CPUs that the groups above it allow?
fn is_free(site: &Site, container: &Container) -> Result<bool> {
    let hierarchy = cpuset::hierarchy(&site.host)?;
    let group = hierarchy.group_of(&site.host, container.process.pid)?;
    let Some(group) = group else { return Ok(false) };
    let Some(masks) = cpuset::masks(&group)? else {
        return Ok(true);
    };
    Ok(cpuset::chosen_cpus(&group, &masks)?.is_none())
}
