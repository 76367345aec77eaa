//! The CDI file: has it a device for each pool as they are now, and can its hooks be run?

use super::Report;
use crate::install::{Place, cdi_program, check_program, plan_refresh};
use crate::placement::Site;

pub(super) fn check(site: &Site, report: &mut Report) {
    let place = Place::default_on(&site.host);
    let program = match cdi_program(&place) {
        Ok(None) => return,
        Ok(Some(program)) => program,
        Err(error) => return report.error("cdi", &error),
    };
    if let Err(error) = check_program(&site.host, &program) {
        let text = format!("devices run what cannot be run: {error:#}");
        report.fault("cdi", text, "`pinfold cdi`");
        return;
    }
    match plan_refresh(site, &place) {
        Ok(plan) if plan.changes.is_empty() => {
            report.ok(
                "cdi",
                format!("there are devices for the pools, which run {program}"),
            );
        }
        Ok(_) => report.fault(
            "cdi",
            "the devices are not those of the pools as they are now",
            "`pinfold cdi`",
        ),
        Err(error) => report.error("cdi", &error),
    }
}
