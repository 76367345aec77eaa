//! Making the pool directory, unless somebody holds anything in it.

use anyhow::{Result, bail};

use super::Site;
use super::life::life_of;
use crate::cgroup::Hierarchy;
use crate::claims::{Entry, Ledger};
use crate::pools::PoolDirectory;
use crate::pools::make::{Found, is_as_planned};
use crate::pools::plan::PlannedPool;
use crate::process;

/// What making the pool directory came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It is new.
    New,
    /// It was so already.
    AlreadyThere,
    /// It was half-made, for this reason, and is whole now.
    Completed(String),
    /// It took the place of other pools.
    Replaced,
}

/// May pools that are there give way to others?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// No: it is an error.
    Keep,
    /// Yes, if nobody owns anything in them.
    Replace,
}

/// Makes the pool directory as planned.
///
/// # Errors
/// Live owners, always; other pools, where they are to be kept; and a directory that cannot be written.
pub fn init(site: &Site, plan: &[PlannedPool], existing: Existing) -> Result<Made> {
    let directory = PoolDirectory::begin(&site.conf_dir)?;
    let lock = directory.lock(&site.host, site.patience)?;
    let made = match directory.found()? {
        Found::Nothing => Made::New,
        Found::Pools(pools) if is_as_planned(&pools, plan) => return Ok(Made::AlreadyThere),
        Found::Pools(_) if existing == Existing::Keep => bail!(
            "{} has other pools already (pinfold describe): keep them, or replace them with --force",
            directory.path().display()
        ),
        Found::Pools(_) => Made::Replaced,
        Found::HalfMade(reason) => Made::Completed(reason),
    };
    refuse_live_owners(site, &directory)?;
    directory.put_pools(&lock, plan)?;
    Ok(made)
}

fn refuse_live_owners(site: &Site, directory: &PoolDirectory) -> Result<()> {
    let path = directory.path().display();
    for pid in directory.all_numbers_in_tasks()? {
        if process::pid_is_alive(&site.host, pid)? {
            bail!("process {pid} owns CPUs in {path}: stop it first (pinfold describe)");
        }
    }
    let Some(ledger) = Ledger::open_if_there(&site.run_dir)? else {
        return Ok(());
    };
    let boot_id = process::boot_id(&site.host)?;
    for entry in ledger.all()? {
        match entry {
            Entry::Claim(claim) => {
                let hierarchy = Hierarchy::discover(&site.host)?;
                if life_of(&claim, &site.host, &hierarchy, &boot_id)?.is_alive() {
                    bail!(
                        "{} owns CPUs in {path}: stop it first (pinfold describe)",
                        claim.id
                    );
                }
            }
            Entry::Opaque { path, reason } => {
                bail!("the claim {} counts as held: {reason}", path.display());
            }
        }
    }
    Ok(())
}
