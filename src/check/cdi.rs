//! The CDI files: whether they have the devices of the present pools, and whether their hooks can
//! be run.

use super::Report;
use crate::engines::Engine;
use crate::install::{CdiState, DeviceKind, Place, cdi_state, check_program, plan_refresh};
use crate::placement::Site;
use crate::pools::PoolDirectory;

pub(super) fn check(site: &Site, report: &mut Report) {
    check_kind(site, DeviceKind::Pools, report);
    // Few have those, and whoever has none does not miss them.
    check_kind(site, DeviceKind::Lists, report);
}

fn check_kind(site: &Site, kind: DeviceKind, report: &mut Report) {
    let of_what = match kind {
        DeviceKind::Pools => "pools",
        DeviceKind::Lists => "CPU lists",
    };
    let remedy = kind.remedy();
    let place = Place::default_on(&site.host);
    let state = match cdi_state(&place, kind) {
        Ok(state) => state,
        Err(error) => return report.error("cdi", &error),
    };
    if let CdiState::There(program) = &state {
        if let Err(error) = check_program(&site.host, program) {
            let text = format!("devices run what cannot be run: {error:#}");
            return report.fault("cdi", text, remedy);
        }
    }
    // The check of the pools has said what is wrong with them.
    if PoolDirectory::open(&site.host, &site.conf_dir).is_err() {
        return;
    }
    let planned = plan_refresh(site, &place, kind).and_then(|plan| {
        plan.ensure_whole()?;
        Ok(plan.changes.is_empty())
    });
    let is_so = match planned {
        Ok(is_so) => is_so,
        Err(error) => return report.error("cdi", &error),
    };
    match (state, is_so) {
        (CdiState::There(program), true) => report.ok(
            "cdi",
            format!("there are devices for the {of_what}, which run {program}"),
        ),
        (CdiState::WithoutPools, true) => report.ok(
            "cdi",
            "there are no pools, and so no devices: the first pool brings them back",
        ),
        (CdiState::Missing(_), _) if kind == DeviceKind::Lists => {}
        (CdiState::Missing(_), true) => {
            report.ok("cdi", "there are no devices: `pinfold cdi` makes them");
        }
        (CdiState::Missing(users), false) => {
            let users: Vec<&str> = users.into_iter().map(Engine::word).collect();
            let users = users.join(" and ");
            let text = format!("there are pools and no devices, which {users} could use");
            report.warn("cdi", text, remedy);
        }
        (_, false) => report.fault(
            "cdi",
            format!("the devices are not those of the {of_what} as they are now"),
            remedy,
        ),
    }
}
