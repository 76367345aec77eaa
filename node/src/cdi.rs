//! Keeps the CDI devices of single lists those of the pools, and looks which of them engines find.
//! Whoever changes pools by Pinfold's own verbs does so as well; KCM's tools know nothing of CDI.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use pinfold::files;
use pinfold::install::{DeviceKind, Place, apply, cdi_devices, cdi_file, plan_refresh};
use pinfold::placement::{ListDevice, Site};
use pinfold::refusal::Refusal;

/// Rewrites the CDI file where it is not that of the pools; its hooks stay as they are. Where there
/// is none nobody knows how the hooks are run.
///
/// # Errors
/// It cannot be read or written; a pool cannot be read, whose devices stay as they are.
pub fn keep(site: &Site) -> Result<()> {
    let place = Place::default_on(&site.host);
    let plan = plan_refresh(site, &place, DeviceKind::Lists)?;
    if !plan.changes.is_empty() {
        apply(&plan)?;
        log::info!("the CDI devices of the lists have changed");
    }
    plan.ensure_whole()
}

/// The devices that engines find, by their names; or why they find none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known(Result<BTreeSet<String>, Refusal>);

impl Known {
    /// As the file is now.
    pub fn of(site: &Site) -> Known {
        let place = Place::default_on(&site.host);
        let devices = cdi_devices(site, &place, DeviceKind::Lists);
        Known(devices.map_err(|error| Refusal::of(&error)))
    }

    /// Does an engine find the device of a list?
    ///
    /// # Errors
    /// Why it does not: a container that is given the list does not start.
    pub fn ensure_has(&self, list: &ListDevice) -> Result<(), Refusal> {
        let devices = self.0.as_ref().map_err(Clone::clone)?;
        if devices.contains(&list.exact.device_name()?) {
            return Ok(());
        }
        let what = format!(
            "no CDI file has the device of CPU list {} of pool {}",
            list.name, list.exact.pool
        );
        Err(Refusal::new(what, DeviceKind::Lists.remedy()))
    }

    /// Why engines find no device at all; `None` if they find some.
    pub fn failure(&self) -> Option<&Refusal> {
        self.0.as_ref().err()
    }
}

/// What is remembered of the file, so that it is read only when it is another.
#[derive(Debug, Clone)]
pub struct Looked {
    stamp: Option<Stamp>,
    /// What it had.
    pub known: Known,
}

/// Tells one version of a file from another: its device and inode, its size, and when it changed.
type Stamp = (u64, u64, u64, (i64, i64));

impl Looked {
    /// Looks at the file; `last` is the look before.
    pub fn again(site: &Site, last: Option<Looked>) -> Looked {
        // Before it is read: a change meanwhile is seen the next time.
        let stamp = stamp(site);
        match last {
            Some(last) if stamp.is_some() && last.stamp == stamp => last,
            _ => Looked {
                stamp,
                known: Known::of(site),
            },
        }
    }
}

/// `None` if there is no file, or it cannot be looked at.
fn stamp(site: &Site) -> Option<Stamp> {
    let path = cdi_file(&Place::default_on(&site.host), DeviceKind::Lists).ok()?;
    let entry = files::entry_if_there(&path).ok()??;
    let changed = (entry.ctime(), entry.ctime_nsec());
    Some((entry.dev(), entry.ino(), entry.size(), changed))
}
