//! `pinfold topology --svg`: the machine as a picture, with its owners and their load.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::super::output::Target;
use super::super::stats;
use crate::account::{Accounts, Depth, Share};
use crate::files;
use crate::picture::{DrawnOwner, Load, Scene, machine};
use crate::placement::{Owner, Site, Survey, survey};
use crate::topology::Topology;

/// How long owners are measured: the kernel counts idle time in hundredths of a second.
const INTERVAL: Duration = Duration::from_millis(500);

pub(super) fn run(file: &Path, topology: &Topology, site: &Site) -> Result<u8> {
    let target = Target::of(file)?;
    // A picture without pools would look like a machine that has none.
    let survey = match files::metadata_if_there(&site.conf_dir)? {
        Some(_) => Some(survey(site)?),
        None => None,
    };
    for remark in survey.iter().flat_map(|survey| &survey.remarks) {
        log::warn!("{remark}");
    }
    let is_whole = survey.as_ref().is_none_or(Survey::is_all_read);
    let (pools, owners) = match &survey {
        Some(Survey { pools, owners, .. }) => (&pools[..], &owners[..]),
        None => Default::default(),
    };
    let loads = measure(site, owners).unwrap_or_else(|error| {
        log::warn!("what owners do with their CPUs is not known: {error:#}");
        BTreeMap::new()
    });
    let owned = owners.iter().enumerate().map(|(place, owner)| DrawnOwner {
        owner,
        load: loads.get(&place).copied(),
    });
    let picture = machine(&Scene {
        topology,
        pools,
        owners: owned.collect(),
        interval: (!loads.is_empty()).then_some(INTERVAL),
    });
    target.write(&picture)?;
    Ok(u8::from(!is_whole))
}

/// The load of the living owners, by their index; nothing if this is not the running machine.
fn measure(site: &Site, owners: &[Owner]) -> Result<BTreeMap<usize, Load>> {
    let lives = |(_, owner): &(usize, &Owner)| owner.is_alive() && !owner.cpus.is_empty();
    let living: Vec<(usize, &Owner)> = owners.iter().enumerate().filter(lives).collect();
    if !site.host.is_running_root() || living.is_empty() {
        return Ok(BTreeMap::new());
    }
    let accounts = Accounts::of(&site.host);
    let meters = stats::meters(living.iter().map(|(_, owner)| *owner), &accounts);
    let mut meters = accounts.together(meters);
    let before = meters.read(Depth::Usage)?;
    sleep(INTERVAL);
    let now = meters.read(Depth::Usage)?;
    let shares = now.since(&before, &meters.all).shares;
    let load = |((place, _), share): (&(usize, &Owner), Option<Share>)| {
        let share = share?;
        let load = Load {
            used: share.utilisation,
            noise: share.noise,
        };
        Some((*place, load))
    };
    Ok(living.iter().zip(shares).filter_map(load).collect())
}
