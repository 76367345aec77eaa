//! Tries what a start does, with no more capabilities than a start has: takes the lock, and writes
//! where a start writes. Nothing stays changed.

use std::time::Duration;

use super::Report;
use crate::claims::Ledger;
use crate::limits;
use crate::placement::Site;
use crate::pools::{LockError, PoolDirectory};
use crate::refusal::Refusal;

/// The longest wait for the lock. Others may hold it, but nobody for so long. A start waits longer,
/// but a person wants an answer.
const BRIEF: Duration = Duration::from_secs(3);

/// The refusal where nobody keeps the lock, and it still cannot be had.
fn crowded() -> Refusal {
    Refusal::new(
        format!(
            "others had the lock one after the other for {} s",
            BRIEF.as_secs()
        ),
        "look again when fewer containers start and end",
    )
}

/// Tries it and reports.
pub(super) fn check(site: &Site, directory: &PoolDirectory, report: &mut Report) {
    if !site.host.is_running_root() && !site.host.shares_our_processes() {
        return;
    }
    let tried = std::thread::scope(|scope| {
        // Capabilities belong to a thread (capabilities(7)): this thread gets those of a hook.
        let start = scope.spawn(|| {
            limits::drop_capabilities().map_err(LockError::Unusable)?;
            directory.ensure_let_go(&site.host, BRIEF)?;
            // The lock is taken as a start takes it, which no other check needs. Somebody who keeps
            // a shared lock is in the way of starts only.
            let before = directory.holder(&site.host);
            let lock = directory.lock_in_turn(&site.host, BRIEF, &site.run_dir);
            let lock = lock.map_err(|error| match error {
                LockError::Held(_)
                    if before.is_none() || before != directory.holder(&site.host) =>
                {
                    LockError::Held(crowded().into())
                }
                other => other,
            })?;
            let written = directory.try_writing(&lock);
            Ok::<_, LockError>((written, Ledger::try_writing(&site.run_dir)))
        });
        start.join()
    });
    let cannot = |error: &anyhow::Error| {
        let refusal = Refusal::of(error);
        (
            format!("a start would fail: {}", refusal.what),
            refusal.remedy,
        )
    };
    match tried {
        Ok(Ok((pools, claims))) => {
            let failed = [pools, claims].into_iter().filter_map(Result::err);
            let failed: Vec<_> = failed.map(|error| cannot(&error)).collect();
            if failed.is_empty() {
                report.ok(
                    "start",
                    "the lock can be taken, and pools and claims be written",
                );
            }
            for (text, remedy) in failed {
                report.fault("start", text, remedy);
            }
        }
        // The check of the claims says that the lock is not ours, and that of the pools that it is
        // broken.
        Ok(Err(LockError::Denied(_))) => {}
        Ok(Err(LockError::Held(error))) => {
            let refusal = Refusal::of(&error);
            let text = format!("starts have to wait: {}", refusal.what);
            report.warn("start", text, refusal.remedy);
        }
        Ok(Err(LockError::Unusable(error))) => {
            let (text, remedy) = cannot(&error);
            report.fault("start", text, remedy);
        }
        Err(_) => {
            report.fault(
                "start",
                "trying it broke off",
                "report that as a fault of Pinfold's",
            );
        }
    }
}
