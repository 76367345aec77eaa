//! Trying what a start does, with no more rights than it has: taking the lock, and writing where it
//! writes. Nothing stays.

use std::time::Duration;

use super::Report;
use crate::claims::Ledger;
use crate::limits;
use crate::placement::Site;
use crate::pools::{LockError, PoolDirectory};
use crate::refusal::Refusal;

/// How long the lock is waited for: that somebody has it is as it should be, and that one has it
/// for so long is not. A start waits for longer; but whoever looks wants an answer.
const BRIEF: Duration = Duration::from_secs(3);

/// Nobody keeps the lock, and it is not to be had all the same.
fn crowded() -> Refusal {
    Refusal::new(
        format!(
            "others had the lock one after the other for {} s",
            BRIEF.as_secs()
        ),
        "look again when fewer containers start and end",
    )
}

/// Tries it.
pub(super) fn check(site: &Site, directory: &PoolDirectory, report: &mut Report) {
    if !site.host.is_running_root() && !site.host.shares_our_processes() {
        return;
    }
    let tried = std::thread::scope(|scope| {
        // Capabilities are a thread's own (capabilities(7)): this one has those of a hook.
        let start = scope.spawn(|| {
            limits::drop_capabilities().map_err(LockError::Unusable)?;
            directory.is_let_go(&site.host, BRIEF)?;
            // Tried as a start takes it, which nothing else that is checked needs. Whoever shares
            // the lock and keeps it is in the way of starts alone.
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
        // What is not ours to lock is told of with the claims, and a broken lock with the pools.
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
