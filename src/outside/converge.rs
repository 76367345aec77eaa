//! Pure: the writes that bring a machine to what its live owners want, from any half-done state.
//! Each value is computed anew, as the value found before the first change plus what all owners
//! want. It is never the current value plus or minus something.

use std::collections::BTreeSet;

use super::records::{Change, Owner, Records, Target};
use crate::cgroup::partition::{MEMBER, kind_in};
use crate::cpulist::CpuSet;

/// A value to write to a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) target: Target,
    pub(super) value: String,
}

/// The writes, in their order. `changes` must be recorded before the first write.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) changes: Vec<Change>,
    pub(super) writes: Vec<Write>,
    /// Targets that hold neither the value found nor a value of ours, with what they hold. Somebody
    /// else wrote it, so it is left alone.
    pub(super) foreign: Vec<Write>,
}

/// Reads the current value of a target; `None` where its group is gone.
pub(super) type Read<'a> = &'a dyn Fn(&Target) -> Option<String>;

/// A target with its current value, its recorded change and the owners that need it.
struct Look<'a> {
    change: Change,
    now: String,
    owners: Vec<&'a Owner>,
}

/// Plans for `records`, whose owners are all alive. A partition is made or healed only for the
/// owners that `makes` accepts; it is taken down whatever `makes` says.
pub(super) fn plan(records: &Records, read: Read<'_>, makes: &dyn Fn(&Owner) -> bool) -> Plan {
    let mut plan = Plan::default();
    let (mut down, mut shrink, mut grow, mut up) = (vec![], vec![], vec![], vec![]);
    for target in targets(records) {
        let Some(now) = read(&target) else {
            continue;
        };
        let look = Look::at(records, target, now);
        if look.is_foreign() {
            plan.foreign.push(look.write(look.now.clone()));
            // While an owner needs it the change stays recorded; afterwards the target is somebody
            // else's for good.
            if !look.owners.is_empty() && !look.change.ours.is_empty() {
                plan.changes.push(look.change);
            }
            continue;
        }
        let mut change = look.change.clone();
        match &look.change.target {
            Target::Partition(_) => {
                let (lowered, raised) = look.kinds(makes);
                for (kind, writes) in [(lowered, &mut down), (raised, &mut up)] {
                    writes.extend(kind.map(|kind| look.noted(&mut change, kind)));
                }
            }
            Target::Exclusive(_) => {
                let (now, wanted) = (set(&look.now), look.wanted());
                let fewer = now.intersection(&wanted);
                if fewer != now {
                    shrink.push(look.noted(&mut change, fewer.to_string()));
                }
                if fewer != wanted {
                    grow.push(look.noted(&mut change, wanted.to_string()));
                }
            }
        }
        if !look.is_as_found() || !look.owners.is_empty() || change.ours != look.change.ours {
            plan.changes.push(change);
        }
    }
    // The kernel wants a child's exclusive CPUs to be its parent's too: shrink from leaf to top,
    // grow from top to leaf.
    shrink.sort_by_key(|write| std::cmp::Reverse(depth(write)));
    grow.sort_by_key(depth);
    plan.writes = [down, shrink, grow, up].concat();
    plan
}

/// The recorded changes that are still needed after a plan was carried out: those of a live owner,
/// and those that could not be undone.
pub(super) fn still_changed(records: &Records, read: Read<'_>) -> Vec<Change> {
    let is_changed = |change: &&Change| {
        let Some(now) = read(&change.target) else {
            return false;
        };
        let look = Look::at(records, change.target.clone(), now);
        !look.owners.is_empty() || !look.is_as_found()
    };
    records.changes.iter().filter(is_changed).cloned().collect()
}

fn targets(records: &Records) -> BTreeSet<Target> {
    let changed = records.changes.iter().map(|change| change.target.clone());
    let mut all: BTreeSet<Target> = changed.collect();
    for owner in &records.owners {
        let groups = owner.above.iter().chain([&owner.group]);
        all.extend(groups.map(|group| Target::Exclusive(group.clone())));
        all.insert(Target::Partition(owner.group.clone()));
    }
    all
}

fn depth(write: &Write) -> usize {
    write.target.group().matches('/').count()
}

fn set(text: &str) -> CpuSet {
    text.parse().unwrap_or_default()
}

impl<'a> Look<'a> {
    fn at(records: &'a Records, target: Target, now: String) -> Look<'a> {
        let owners = records.owners.iter().filter(|owner| match &target {
            Target::Exclusive(group) => owner.is_at_or_below(group),
            Target::Partition(group) => owner.group == *group,
        });
        let known = records
            .changes
            .iter()
            .find(|change| change.target == target);
        Look {
            owners: owners.collect(),
            change: known.cloned().unwrap_or_else(|| Change {
                target,
                found: now.clone(),
                ours: Vec::new(),
            }),
            now,
        }
    }

    /// Is `text` the value that the target holds? CPU lists are compared as sets and partitions by
    /// their kind, because the kernel prints them in its own way.
    fn holds(&self, text: &str) -> bool {
        match self.change.target {
            Target::Exclusive(_) => match (text.parse::<CpuSet>(), self.now.parse::<CpuSet>()) {
                (Ok(text), Ok(now)) => text == now,
                _ => false,
            },
            Target::Partition(_) => kind_in(text) == kind_in(&self.now),
        }
    }

    fn is_as_found(&self) -> bool {
        self.holds(&self.change.found)
    }

    fn is_foreign(&self) -> bool {
        let is_ours = self.change.ours.iter().any(|ours| self.holds(ours));
        let is_of_others = match self.change.target {
            // Somebody made it a partition before us.
            Target::Partition(_) => kind_in(&self.now) != MEMBER,
            Target::Exclusive(_) => self.now.parse::<CpuSet>().is_err(),
        };
        !is_ours && (!self.is_as_found() || (self.change.ours.is_empty() && is_of_others))
    }

    /// The exclusive CPUs that the group shall have: those found there, and those of all owners at
    /// or below it.
    fn wanted(&self) -> CpuSet {
        let owned = self.owners.iter().map(|owner| &owner.cpus);
        owned.chain([&set(&self.change.found)]).collect()
    }

    /// The kinds to write to the partition file, first and second. An invalid partition becomes a
    /// member first: Linux 6.12 makes it worse if `root` is written straight away.
    fn kinds(&self, makes: &dyn Fn(&Owner) -> bool) -> (Option<String>, Option<String>) {
        let is_member = self.now == MEMBER;
        let Some(owner) = self.owners.first() else {
            let found = kind_in(&self.change.found).to_owned();
            return ((!self.is_as_found()).then_some(found), None);
        };
        let kind = owner.kind.word();
        if !makes(owner) || self.now == kind {
            return (None, None);
        }
        let lowered = (!is_member).then(|| MEMBER.to_owned());
        (lowered, Some(kind.to_owned()))
    }

    fn write(&self, value: String) -> Write {
        Write {
            target: self.change.target.clone(),
            value,
        }
    }

    /// Returns the write, and notes its value in `change`. Until the write is done, the target
    /// holds the value that we wrote before, so `change` keeps that one too.
    fn noted(&self, change: &mut Change, value: String) -> Write {
        if change.ours == self.change.ours {
            change.ours.retain(|ours| self.holds(ours));
        }
        if !change.ours.contains(&value) {
            change.ours.push(value.clone());
        }
        self.write(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolation::Kind;
    use std::collections::BTreeMap;

    /// The files of the groups, and the records on disk.
    #[derive(Clone, Debug, PartialEq)]
    struct Tree {
        files: BTreeMap<Target, String>,
        records: Records,
    }

    fn exclusive(group: &str) -> Target {
        Target::Exclusive(group.to_owned())
    }

    fn partition(group: &str) -> Target {
        Target::Partition(group.to_owned())
    }

    fn owner(group: &str, cpus: &str) -> Owner {
        let above = group.match_indices('/').skip(1);
        Owner {
            group: group.to_owned(),
            inode: 7,
            above: above.map(|(end, _)| group[..end].to_owned()).collect(),
            cpus: cpus.parse().unwrap(),
            kind: Kind::Root,
            run_dir: "/run/pinfold".into(),
        }
    }

    impl Tree {
        fn new(groups: &[&str]) -> Tree {
            let mut files = BTreeMap::new();
            for group in groups {
                files.insert(exclusive(group), String::new());
                files.insert(partition(group), MEMBER.to_owned());
            }
            Tree {
                files,
                records: Records::none("boot"),
            }
        }

        fn get(&self, target: &Target) -> String {
            self.files[target].clone()
        }

        /// Converges, and is killed before write number `kill_at`; returns whether it got to the
        /// end.
        fn converge_until(&mut self, kill_at: usize) -> bool {
            let read = |target: &Target| self.files.get(target).cloned();
            let plan = plan(&self.records, &read, &|_| true);
            self.records.changes = plan.changes;
            for (index, write) in plan.writes.iter().enumerate() {
                if index == kill_at {
                    return false;
                }
                self.files.insert(write.target.clone(), write.value.clone());
            }
            let read = |target: &Target| self.files.get(target).cloned();
            self.records.changes = still_changed(&self.records, &read);
            true
        }

        fn converge(&mut self) {
            assert!(self.converge_until(usize::MAX));
        }

        fn writes(&self) -> Vec<String> {
            let read = |target: &Target| self.files.get(target).cloned();
            let plan = plan(&self.records, &read, &|_| true);
            let shown = |write: &Write| {
                let what = match write.target {
                    Target::Exclusive(_) => "exclusive",
                    Target::Partition(_) => "partition",
                };
                format!("{} {what}={}", write.target.group(), write.value)
            };
            plan.writes.iter().map(shown).collect()
        }
    }

    const GROUPS: [&str; 3] = ["/m", "/m/a", "/m/b"];

    #[test]
    fn it_grows_from_the_top_and_shrinks_from_the_leaf() {
        let mut tree = Tree::new(&GROUPS);
        let before = tree.clone();
        tree.records.owners.push(owner("/m/a", "4-5"));
        let up = [
            "/m exclusive=4-5",
            "/m/a exclusive=4-5",
            "/m/a partition=root",
        ];
        assert_eq!(tree.writes(), up);
        tree.converge();
        assert!(tree.writes().is_empty());
        tree.records.owners.clear();
        let down = ["/m/a partition=member", "/m/a exclusive=", "/m exclusive="];
        assert_eq!(tree.writes(), down);
        tree.converge();
        assert_eq!(tree, before);
    }

    #[test]
    fn what_each_owner_wants_is_joined_with_what_was_found() {
        let mut tree = Tree::new(&GROUPS);
        tree.files.insert(exclusive("/m"), "8".to_owned());
        tree.records.owners.push(owner("/m/a", "4"));
        tree.converge();
        tree.records.owners.push(owner("/m/b", "5"));
        tree.converge();
        assert_eq!(tree.get(&exclusive("/m")), "4-5,8");
        tree.records.owners.remove(0);
        // The owner's group is gone too.
        tree.files.remove(&exclusive("/m/a"));
        tree.files.remove(&partition("/m/a"));
        assert_eq!(tree.writes(), ["/m exclusive=5,8"]);
        tree.converge();
        tree.records.owners.clear();
        tree.converge();
        assert_eq!(tree.get(&exclusive("/m")), "8");
        assert!(tree.records.changes.is_empty());
    }

    #[test]
    fn whatever_write_it_is_killed_at_the_next_one_mends_it() {
        let mut whole = Tree::new(&GROUPS);
        whole.records.owners.push(owner("/m/a", "4"));
        whole.converge();
        let none = Tree::new(&GROUPS);
        for kill_at in 0..8 {
            for again_at in 0..8 {
                // Killed while the second of two partitions is made, and again while both are taken
                // down.
                let mut tree = whole.clone();
                tree.records.owners.push(owner("/m/b", "5"));
                tree.converge_until(kill_at);
                tree.records.owners.clear();
                tree.converge_until(again_at);
                tree.converge();
                assert_eq!(tree, none, "{kill_at} {again_at}");
                // Killed twice while the second partition is made, then finished.
                let mut tree = whole.clone();
                tree.records.owners.push(owner("/m/b", "5"));
                tree.converge_until(kill_at);
                tree.converge_until(again_at);
                tree.converge();
                assert_eq!(tree.get(&exclusive("/m")), "4-5");
                assert_eq!(tree.get(&partition("/m/b")), "root");
            }
        }
    }

    #[test]
    fn what_somebody_else_has_set_since_is_left() {
        let mut tree = Tree::new(&GROUPS);
        tree.records.owners.push(owner("/m/a", "4"));
        tree.converge();
        tree.files.insert(exclusive("/m"), "4,6".to_owned());
        let read = |target: &Target| tree.files.get(target).cloned();
        let planned = plan(&tree.records, &read, &|_| true);
        assert_eq!(planned.foreign.len(), 1);
        assert!(tree.writes().is_empty());
        tree.records.owners.clear();
        tree.converge();
        assert_eq!(tree.get(&exclusive("/m")), "4,6");
        assert_eq!(tree.get(&partition("/m/a")), MEMBER);
        assert!(tree.records.changes.is_empty());
        // We do not change a partition that somebody else made.
        tree.files.insert(partition("/m/b"), "isolated".to_owned());
        tree.records.owners.push(owner("/m/b", "5"));
        let writes = tree.writes();
        assert!(
            !writes.iter().any(|write| write.contains("partition")),
            "{writes:?}"
        );
    }

    #[test]
    fn an_invalid_one_becomes_a_member_first_and_only_if_it_may() {
        let mut tree = Tree::new(&GROUPS);
        tree.records.owners.push(owner("/m/a", "4"));
        tree.converge();
        for broken in ["root invalid", "root invalid (some reason)"] {
            tree.files.insert(partition("/m/a"), broken.to_owned());
            assert_eq!(
                tree.writes(),
                ["/m/a partition=member", "/m/a partition=root"]
            );
            let read = |target: &Target| tree.files.get(target).cloned();
            let left = plan(&tree.records, &read, &|_| false);
            assert!(left.writes.is_empty(), "{left:?}");
            // When the owner ends, it is taken down although `makes` refuses.
            let mut ended = tree.clone();
            ended.records.owners.clear();
            assert_eq!(ended.writes()[0], "/m/a partition=member");
        }
        // The container itself wrote `member`.
        tree.files.insert(partition("/m/a"), MEMBER.to_owned());
        assert_eq!(tree.writes(), ["/m/a partition=root"]);
    }
}
