//! Keeps the CDI devices of single lists those of the pools. Whoever changes pools by Pinfold's own
//! verbs does so as well; KCM's tools know nothing of CDI.

use anyhow::{Result, bail};
use pinfold::install::{CdiState, DeviceKind, Place, apply, cdi_state, plan_refresh};
use pinfold::placement::Site;
use pinfold::refusal::Refusal;

/// Rewrites the CDI file where it is not that of the pools; its hooks stay as they are.
///
/// # Errors
/// There is no file, so that nobody knows how the hooks are run; it cannot be read or written.
pub fn keep(site: &Site) -> Result<()> {
    let place = Place::default_on(&site.host);
    if let CdiState::Missing(_) = cdi_state(&place, DeviceKind::Lists)? {
        bail!(Refusal::new(
            "no CDI file has the devices of single lists: no container that is given one starts",
            "on this node, `pinfold cdi --lists`"
        ));
    }
    let plan = plan_refresh(site, &place, DeviceKind::Lists)?;
    if !plan.changes.is_empty() {
        apply(&plan)?;
        log::info!("the CDI devices of the lists have changed");
    }
    Ok(())
}
