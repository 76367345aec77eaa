//! Gives the owners of a shared list the CPUs that it grows by: their claims change, and their
//! groups.

use anyhow::{Result, bail, ensure};

use crate::cgroup::cpuset;
use crate::claims::{Claim, Entry};
use crate::cpulist::CpuSet;
use crate::placement::end::Fate;
use crate::placement::{Books, View};
use crate::pools::plan::list_name;
use crate::pools::{CpuList, Pool};
use crate::refusal::Refusal;

impl Books<'_> {
    /// Renames a shared list after its CPUs `to`, and gives its owners those. A kill in between
    /// leaves owners within their old CPUs; the next try finishes.
    pub(crate) fn follow(&self, pool: &Pool, list: &CpuList, to: &CpuSet) -> Result<()> {
        let name = if *to == list.cpus {
            list.name.clone()
        } else {
            list_name(to)
        };
        for claim in self.claims_to_follow(pool, &list.name, to)? {
            // While the list is renamed its claims name both: release finds the owner under either.
            let mut both = claim.clone();
            both.lists = vec![list.name.clone(), name.clone()];
            both.lists.dedup();
            self.ledger.rewrite(&claim, &both)?;
        }
        if name != list.name {
            self.directory
                .rename_list(&self.lock, &pool.name, &list.name, &name)?;
        }
        let mut errors = Vec::new();
        for entry in self.ledger.on_list(&name)? {
            match entry {
                Entry::Claim(claim) if claim.pool == pool.name => {
                    let given = self.give_list(&claim, &name, to);
                    // An owner that ended meanwhile needs no new CPUs.
                    if given.is_err() && self.free_if_dead(&claim)? == Fate::Freed {
                        continue;
                    }
                    errors.extend(
                        given
                            .err()
                            .map(|error| format!("{}: {error:#}", claim.shown())),
                    );
                }
                Entry::Claim(_) => {}
                Entry::Unreadable(one) => {
                    errors.push(format!("the claim {}: {}", one.path.display(), one.reason));
                }
            }
        }
        ensure!(
            errors.is_empty(),
            Refusal::new(
                format!(
                    "the pool has its new size, and not all of its owners have: {}",
                    errors.join("; ")
                ),
                "do it again"
            )
        );
        Ok(())
    }

    /// Changes the claim first, and then the kernel.
    fn give_list(&self, claim: &Claim, list: &str, cpus: &CpuSet) -> Result<()> {
        let mut after = claim.clone();
        after.lists = vec![list.to_owned()];
        after.cpus = cpus.clone();
        if claim.mems.is_some() {
            after.mems = self.local_memory_nodes(cpus)?;
        }
        if after != *claim {
            self.ledger.rewrite(claim, &after)?;
        }
        let Some(group) = self.confined_group_of(&after)? else {
            return Ok(());
        };
        // Nothing to tell systemd: that takes time while others wait for the lock.
        if after == *claim && cpuset::effective_cpus(&group)?.as_ref() == Some(cpus) {
            return Ok(());
        }
        self.set_cpus(&group, cpus, after.mems.as_ref())
    }
}

impl View<'_> {
    /// The claims of live owners on a list of this pool that have other CPUs than `cpus`, or name
    /// another list.
    pub(crate) fn claims_to_follow(
        &self,
        pool: &Pool,
        list: &str,
        cpus: &CpuSet,
    ) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for entry in self.ledger.on_list(list)? {
            match entry {
                Entry::Claim(claim) if claim.pool != pool.name => {}
                Entry::Claim(claim) if claim.cpus == *cpus && claim.lists == [list] => {}
                Entry::Claim(claim) if !self.life_of(&claim)?.is_alive() => {}
                Entry::Claim(claim) => claims.push(*claim),
                Entry::Unreadable(one) => bail!("{one}"),
            }
        }
        Ok(claims)
    }

    /// The live processes that another tool put into a list. No claim tells how they are confined.
    pub(crate) fn strangers_in(&self, list: &CpuList) -> Result<Vec<i32>> {
        let mut strangers = list.tasks.clone();
        for entry in self.ledger.on_list(&list.name)? {
            let claimed = entry.claim().map(Claim::pids).unwrap_or_default();
            strangers.retain(|pid| !claimed.contains(pid));
        }
        strangers.retain(|pid| self.is_pid_alive(*pid));
        Ok(strangers)
    }
}
