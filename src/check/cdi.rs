//! The CDI file: whether it has a device for each present pool, and whether its hooks can be run.

use super::Report;
use crate::engines::Engine;
use crate::install::{CdiState, Place, cdi_state, check_program, plan_refresh};
use crate::placement::Site;
use crate::pools::PoolDirectory;

const REMEDY: &str = "`pinfold cdi`";

pub(super) fn check(site: &Site, report: &mut Report) {
    let place = Place::default_on(&site.host);
    let state = match cdi_state(&place) {
        Ok(state) => state,
        Err(error) => return report.error("cdi", &error),
    };
    if let CdiState::There(program) = &state {
        if let Err(error) = check_program(&site.host, program) {
            let text = format!("devices run what cannot be run: {error:#}");
            return report.fault("cdi", text, REMEDY);
        }
    }
    // The check of the pools has said what is wrong with them.
    if PoolDirectory::open(&site.host, &site.conf_dir).is_err() {
        return;
    }
    let is_so = match plan_refresh(site, &place) {
        Ok(plan) => plan.changes.is_empty(),
        Err(error) => return report.error("cdi", &error),
    };
    match (state, is_so) {
        (CdiState::There(program), true) => report.ok(
            "cdi",
            format!("there are devices for the pools, which run {program}"),
        ),
        (CdiState::WithoutPools, true) => report.ok(
            "cdi",
            "there are no pools, and so no devices: the first pool brings them back",
        ),
        (CdiState::Missing(_), true) => {
            report.ok("cdi", "there are no devices: `pinfold cdi` makes them");
        }
        (CdiState::Missing(users), false) => {
            let users: Vec<&str> = users.into_iter().map(Engine::word).collect();
            let users = users.join(" and ");
            let text = format!("there are pools and no devices, which {users} could use");
            report.warn("cdi", text, REMEDY);
        }
        (_, false) => report.fault(
            "cdi",
            "the devices are not those of the pools as they are now",
            REMEDY,
        ),
    }
}
