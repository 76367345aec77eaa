//! The remarks of the auditor.

use super::Report;
use crate::auditor::{Subject, Verdict, audit};
use crate::placement::Site;

pub(super) fn check(site: &Site, report: &mut Report) {
    let remarks = audit(Subject {
        host: &site.host,
        conf_dir: &site.conf_dir,
        run_dir: &site.run_dir,
    });
    if remarks.is_empty() {
        report.ok(
            "books",
            "claims, links, tasks, cgroups and live processes agree",
        );
    }
    for remark in remarks {
        match remark.kind {
            Verdict::Broken => report.fault(
                "books",
                remark.text,
                "end the containers it names, then `pinfold reconcile`; it must never happen, so \
                 please report it",
            ),
            Verdict::Unfinished | Verdict::Leftover => {
                report.warn("books", remark.text, "`pinfold reconcile`");
            }
        }
    }
}
