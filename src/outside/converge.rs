//! Pure: the writes that bring a machine to what its live owners want, from any half-done state.
//! Each value is computed anew, as the value found before the first change plus what all owners
//! want. It is never the current value plus or minus something.

use std::collections::{BTreeMap, BTreeSet};

use super::records::{Change, Owner, Reading, Records, Target};
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

/// What each of the [`targets`] holds now.
pub(super) type Seen = BTreeMap<Target, Reading>;

/// A target with its current value, its recorded change and the owners that need it.
struct Look<'a> {
    change: Change,
    now: String,
    owners: Vec<&'a Owner>,
}

/// Plans for `records`, whose owners are all alive. A partition is made or healed only for the
/// owners that `makes` accepts, and groups get exclusive CPUs only for these and for those whose
/// partition is valid; both are taken down whatever `makes` says.
///
/// What could not be read stays as it is recorded. Below it nothing is made, which would be invalid
/// at once, and above it nothing shrinks, which would break what may stand there.
pub(super) fn plan(records: &Records, seen: &Seen, makes: &dyn Fn(&Owner) -> bool) -> Plan {
    let mut plan = Plan::default();
    let (mut down, mut shrink, mut grow, mut up) = (vec![], vec![], vec![], vec![]);
    let unread = seen.iter().filter(|(_, now)| **now == Reading::Unread);
    let unread: Vec<&str> = unread.map(|(target, _)| target.group()).collect();
    for (target, now) in seen {
        let now = match now {
            Reading::Gone => continue,
            Reading::Unread => {
                plan.changes.extend(known(records, target).cloned());
                continue;
            }
            Reading::Holds(now) => now.clone(),
        };
        let may_grow = !unread.iter().any(|above| is_within(target.group(), above));
        let may_shrink = !unread.iter().any(|below| is_within(below, target.group()));
        let look = Look::at(records, target.clone(), now);
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
                let (lowered, raised) = look.kinds(&|owner| may_grow && makes(owner));
                for (kind, writes) in [(lowered, &mut down), (raised, &mut up)] {
                    writes.extend(kind.map(|kind| look.noted(&mut change, kind)));
                }
            }
            Target::Exclusive(_) => {
                let (now, wanted) = (set(&look.now), look.wanted(&|_| true));
                let fewer = now.intersection(&wanted);
                if fewer != now && may_shrink {
                    shrink.push(look.noted(&mut change, fewer.to_string()));
                }
                // What the kernel refuses one owner must not keep it from another.
                let more = look.wanted(&|owner| makes(owner) || stands(owner, seen));
                if !more.is_subset(&now) && may_grow {
                    let kept = if may_shrink { &fewer } else { &now };
                    let grown: CpuSet = [kept, &more].into_iter().collect();
                    grow.push(look.noted(&mut change, grown.to_string()));
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

/// Is the owner's partition valid?
fn stands(owner: &Owner, seen: &Seen) -> bool {
    let state = seen.get(&Target::Partition(owner.group.clone()));
    matches!(state, Some(Reading::Holds(state)) if state == owner.kind.word())
}

/// The groups where something is left that no recorded owner wants, or may be.
pub(super) fn left_over(records: &Records, seen: &Seen) -> BTreeSet<String> {
    let is_left = |change: &&Change| match seen.get(&change.target) {
        Some(Reading::Gone) => false,
        None | Some(Reading::Unread) => true,
        Some(Reading::Holds(now)) => {
            let look = Look::at(records, change.target.clone(), now.clone());
            match change.target {
                Target::Exclusive(_) => !set(now).is_subset(&look.wanted(&|_| true)),
                Target::Partition(_) => look.owners.is_empty() && !look.is_as_found(),
            }
        }
    };
    let left = records.changes.iter().filter(is_left);
    left.map(|change| change.target.group().to_owned())
        .collect()
}

/// The recorded changes that are still needed after a plan was carried out: those of a live owner,
/// those that could not be undone, and those of which that is not known.
pub(super) fn still_changed(records: &Records, seen: &Seen) -> Vec<Change> {
    let is_changed = |change: &&Change| match seen.get(&change.target) {
        Some(Reading::Gone) => false,
        None | Some(Reading::Unread) => true,
        Some(Reading::Holds(now)) => {
            let look = Look::at(records, change.target.clone(), now.clone());
            !look.owners.is_empty() || !look.is_as_found()
        }
    };
    records.changes.iter().filter(is_changed).cloned().collect()
}

/// Enters what was changed for an owner of which there is no record any more, as what its files
/// hold now shows. Its CPUs are ours wherever they are exclusive: they were not found there, even
/// if somebody who came since has recorded that.
pub(super) fn enter_lost(records: &mut Records, owner: &Owner, seen: &Seen) {
    for (target, now) in seen {
        let Reading::Holds(now) = now else {
            continue;
        };
        let mut changes = records.changes.iter_mut();
        let known = changes.find(|change| change.target == *target);
        let (found, ours) = match (target, known) {
            (Target::Exclusive(_), Some(change)) => {
                change.found = set(&change.found).difference(&owner.cpus).to_string();
                continue;
            }
            (Target::Partition(_), Some(_)) => continue,
            (Target::Partition(_), None) => (MEMBER.to_owned(), kind_in(now)),
            (Target::Exclusive(group), None) => {
                let owners = records.owners.iter().chain([owner]);
                let owners = owners.filter(|owner| owner.is_at_or_below(group));
                let owned: CpuSet = owners.map(|owner| &owner.cpus).collect();
                (set(now).difference(&owned).to_string(), now.as_str())
            }
        };
        if found != ours {
            records.changes.push(Change {
                target: target.clone(),
                found,
                ours: vec![ours.to_owned()],
            });
        }
    }
}

/// What has to be looked at: all that is recorded as changed, and all that owners need.
pub(super) fn targets(records: &Records) -> BTreeSet<Target> {
    let changed = records.changes.iter().map(|change| change.target.clone());
    let mut all: BTreeSet<Target> = changed.collect();
    all.extend(records.owners.iter().flat_map(targets_of));
    all
}

/// What an owner needs.
pub(super) fn targets_of(owner: &Owner) -> BTreeSet<Target> {
    let groups = owner.above.iter().chain([&owner.group]);
    let exclusive = groups.map(|group| Target::Exclusive(group.clone()));
    exclusive
        .chain([Target::Partition(owner.group.clone())])
        .collect()
}

fn known<'r>(records: &'r Records, target: &Target) -> Option<&'r Change> {
    let mut changes = records.changes.iter();
    changes.find(|change| change.target == *target)
}

/// Is this the group `above`, or below it?
fn is_within(group: &str, above: &str) -> bool {
    let rest = group.strip_prefix(above);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
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
        Look {
            owners: owners.collect(),
            change: known(records, &target).cloned().unwrap_or_else(|| Change {
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
    /// or below it that count.
    fn wanted(&self, counts: &dyn Fn(&Owner) -> bool) -> CpuSet {
        let owners = self.owners.iter().filter(|owner| counts(owner));
        let owned = owners.map(|owner| &owner.cpus);
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

        fn read(&self, target: &Target) -> Reading {
            match self.files.get(target) {
                Some(text) => Reading::Holds(text.clone()),
                None => Reading::Gone,
            }
        }

        /// What the targets hold, of which those of `unread` cannot be read.
        fn seen_without(&self, unread: &[Target]) -> Seen {
            let read = |target: &Target| match unread.contains(target) {
                true => Reading::Unread,
                false => self.read(target),
            };
            let all = targets(&self.records).into_iter();
            all.map(|target| (target.clone(), read(&target))).collect()
        }

        fn seen(&self) -> Seen {
            self.seen_without(&[])
        }

        fn plan(&self) -> Plan {
            plan(&self.records, &self.seen(), &|_| true)
        }

        /// Converges while some targets cannot be read: before the writes, or after them.
        fn converge_without(&mut self, before: &[Target], after: &[Target]) {
            let plan = plan(&self.records, &self.seen_without(before), &|_| true);
            self.records.changes = plan.changes;
            for write in plan.writes {
                assert!(!before.contains(&write.target), "{write:?}");
                self.files.insert(write.target, write.value);
            }
            self.records.changes = still_changed(&self.records, &self.seen_without(after));
        }

        /// Converges, and is killed before write number `kill_at`; returns whether it got to the
        /// end.
        fn converge_until(&mut self, kill_at: usize) -> bool {
            let plan = self.plan();
            self.records.changes = plan.changes;
            for (index, write) in plan.writes.iter().enumerate() {
                if index == kill_at {
                    return false;
                }
                self.files.insert(write.target.clone(), write.value.clone());
            }
            self.records.changes = still_changed(&self.records, &self.seen());
            true
        }

        fn converge(&mut self) {
            assert!(self.converge_until(usize::MAX));
        }

        fn writes(&self) -> Vec<String> {
            let plan = self.plan();
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
        assert_eq!(tree.plan().foreign.len(), 1);
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
            let left = plan(&tree.records, &tree.seen(), &|_| false);
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

    /// A file can be unreadable for a moment: too many files are open, or a signal came.
    #[test]
    fn what_cannot_be_read_once_is_neither_forgotten_nor_taken_for_found() {
        let none = Tree::new(&GROUPS);
        let mut both = none.clone();
        both.records.owners = vec![owner("/m/a", "4"), owner("/m/b", "5")];
        both.converge();
        for unread in targets(&both.records) {
            let unread = &[unread];
            for (before, after) in [(&unread[..], &[][..]), (&[], unread), (unread, unread)] {
                // While all live.
                let mut tree = both.clone();
                tree.converge_without(before, after);
                assert_eq!(tree, both, "{before:?} {after:?}");
                // When one ends, and when the last does.
                tree.records.owners.remove(0);
                tree.converge_without(before, after);
                tree.converge();
                assert_eq!(tree.get(&partition("/m/a")), MEMBER);
                assert_eq!(tree.get(&partition("/m/b")), "root");
                assert_eq!(tree.get(&exclusive("/m")), "5");
                tree.records.owners.clear();
                tree.converge_without(before, after);
                tree.converge();
                assert_eq!(tree, none, "{before:?} {after:?}");
                // When one starts.
                tree.records.owners = both.records.owners.clone();
                tree.converge_without(before, after);
                tree.converge();
                assert_eq!(tree, both, "{before:?} {after:?}");
            }
        }
    }

    /// Its CPUs may be what the kernel refuses.
    #[test]
    fn for_an_owner_whose_partition_is_broken_nothing_grows_until_it_is_made_again() {
        let mut tree = Tree::new(&GROUPS);
        tree.records.owners = vec![owner("/m/a", "4"), owner("/m/b", "5")];
        tree.converge();
        tree.files.insert(exclusive("/m"), "4".to_owned());
        let changes = &mut tree.records.changes;
        let top = changes.iter_mut().find(|one| one.target == exclusive("/m"));
        top.unwrap().ours = vec!["4".to_owned()];
        let writes = |tree: &Tree, made: &str| {
            let plan = plan(&tree.records, &tree.seen(), &|owner| owner.group == made);
            let writes = plan.writes.into_iter();
            let writes = writes.map(|write| format!("{:?}={}", write.target, write.value));
            writes.collect::<Vec<_>>()
        };
        let all = ["Exclusive(\"/m\")=4-5"];
        assert_eq!(writes(&tree, ""), all);
        tree.files
            .insert(partition("/m/b"), "root invalid".to_owned());
        assert_eq!(writes(&tree, ""), [""; 0]);
        assert_eq!(writes(&tree, "/m/a"), [""; 0]);
        assert!(writes(&tree, "/m/b").contains(&all[0].to_owned()));
        // Nor is anything taken from it.
        tree.files.insert(exclusive("/m"), "4-5".to_owned());
        tree.converge();
        tree.files
            .insert(partition("/m/b"), "root invalid".to_owned());
        assert_eq!(writes(&tree, ""), [""; 0]);
    }

    #[test]
    fn left_over_is_what_no_owner_wants() {
        let mut tree = Tree::new(&GROUPS);
        tree.records.owners = vec![owner("/m/a", "4"), owner("/m/b", "5")];
        tree.converge();
        let left = |tree: &Tree| Vec::from_iter(left_over(&tree.records, &tree.seen()));
        assert_eq!(left(&tree), Vec::<String>::new());
        tree.records.owners.remove(0);
        assert_eq!(left(&tree), ["/m", "/m/a"]);
        tree.files.insert(exclusive("/m"), String::new());
        assert_eq!(left(&tree), ["/m/a"]);
        tree.files.insert(exclusive("/m/a"), String::new());
        assert_eq!(left(&tree), ["/m/a"]);
        tree.files.insert(partition("/m/a"), MEMBER.to_owned());
        assert_eq!(left(&tree), Vec::<String>::new());
        let unread = left_over(&tree.records, &tree.seen_without(&[exclusive("/m")]));
        assert_eq!(Vec::from_iter(unread), ["/m"]);
    }

    /// The file of the records was removed while owners were alive.
    #[test]
    fn of_owners_whose_record_was_lost_nothing_counts_as_found() {
        let mut before = Tree::new(&GROUPS);
        before.files.insert(exclusive("/m"), "8".to_owned());
        let owners = [owner("/m/a", "4"), owner("/m/b", "5")];
        let mut whole = before.clone();
        whole.records.owners = owners.to_vec();
        whole.converge();
        let enter = |tree: &mut Tree, lost: &Owner| {
            let seen = targets_of(lost).into_iter();
            let seen = seen.map(|target| (target.clone(), tree.read(&target)));
            let seen = seen.collect();
            enter_lost(&mut tree.records, lost, &seen);
        };
        for comes in [false, true] {
            for order in [[0, 1], [1, 0]] {
                let mut tree = whole.clone();
                tree.records = Records::none("boot");
                if comes {
                    // Before anybody looks, one more starts and takes theirs for found.
                    for target in [exclusive("/m/c"), partition("/m/c")] {
                        tree.files.insert(target, String::new());
                    }
                    tree.files.insert(partition("/m/c"), MEMBER.to_owned());
                    tree.records.owners.push(owner("/m/c", "6"));
                    tree.converge();
                }
                for index in order {
                    enter(&mut tree, &owners[index]);
                    tree.records.owners.push(owners[index].clone());
                    tree.converge();
                    assert!(tree.plan().foreign.is_empty());
                }
                let all = if comes { "4-6,8" } else { "4-5,8" };
                assert_eq!(tree.get(&exclusive("/m")), all);
                // Done twice it is done once.
                let once = tree.clone();
                enter(&mut tree, &owners[0]);
                assert_eq!(tree, once);
                tree.records.owners.clear();
                tree.converge();
                for target in before.files.keys() {
                    assert_eq!(tree.get(target), before.get(target), "{comes} {order:?}");
                }
                assert!(tree.records.changes.is_empty());
            }
        }
        // One that has ended as well, whose group is gone.
        let mut tree = whole.clone();
        tree.records = Records::none("boot");
        tree.files.remove(&exclusive("/m/a"));
        tree.files.remove(&partition("/m/a"));
        enter(&mut tree, &owners[0]);
        assert_eq!(tree.writes(), ["/m exclusive=5,8"]);
    }

    /// A partition whose groups above do not name its CPUs would be invalid at once, and so would
    /// one that stands below a group that gives them up.
    #[test]
    fn nothing_is_made_below_what_cannot_be_read_and_nothing_shrinks_above_it() {
        let planned = |tree: &Tree, unread: Target| {
            let plan = plan(&tree.records, &tree.seen_without(&[unread]), &|_| true);
            let writes = plan.writes.into_iter();
            let writes = writes.map(|write| format!("{:?}={}", write.target, write.value));
            writes.collect::<Vec<_>>()
        };
        let mut tree = Tree::new(&GROUPS);
        tree.records.owners.push(owner("/m/a", "4"));
        assert_eq!(planned(&tree, exclusive("/m")), [""; 0]);
        tree.converge();
        tree.records.owners = vec![owner("/m/b", "5")];
        let made = [
            "Exclusive(\"/m\")=4-5",
            "Exclusive(\"/m/b\")=5",
            "Partition(\"/m/b\")=root",
        ];
        assert_eq!(planned(&tree, partition("/m/a")), made);
    }
}
