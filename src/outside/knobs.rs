//! Pure: what has to be written to files of the machine's own so that they are as its live owners
//! want them, whatever was left half done. Each value follows from what was found and what all
//! owners want; what holds neither that nor ours is somebody else's.

use serde::{Deserialize, Serialize};

use super::records::{LimitedGroup, Reading, Records, Tuned};
use crate::cgroup::cpu;
use crate::cpulist::CpuSet;

/// A file of the machine that is set for owners.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Knob {
    /// The CPUs of interrupts that are set up from now on: `default_smp_affinity`.
    NewIrqs,
    /// The CPUs that irqbalance moves no interrupt to.
    Banned,
    /// The CPUs of one interrupt: its `smp_affinity_list`.
    Irq(u32),
    /// The governor of some CPUs that share one: `scaling_governor`.
    Governor(String),
    /// How long a CPU may take to wake: its `pm_qos_resume_latency_us`.
    Latency(u32),
    /// The limit of CPU time of a group.
    Quota(LimitedGroup),
}

/// One that may not be as it was found, and how to turn it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Turned {
    /// Which.
    pub(super) knob: Knob,
    /// What was there before the first change.
    pub(super) found: String,
    /// What we have written, or may have: before a write both the last and the next. All of it for
    /// irqbalance, which heeds later what it was told.
    pub(super) ours: Vec<String>,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) knob: Knob,
    pub(super) value: String,
    /// Is it what was found, which nobody wants otherwise any more?
    pub(super) puts_back: bool,
}

/// What is to be written once the changes are recorded.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) turned: Vec<Turned>,
    pub(super) writes: Vec<Write>,
    /// What somebody else has set since, and is not as the owners want it.
    pub(super) foreign: Vec<(Knob, String)>,
}

/// What a plan depends on.
pub(super) struct Situation<'a> {
    pub(super) records: &'a Records,
    pub(super) online: &'a CpuSet,
    /// The online CPUs of each NUMA node.
    pub(super) nodes: &'a [CpuSet],
    /// An owner that has come now: for it what others have set is changed once more.
    pub(super) is_new: &'a dyn Fn(&Tuned) -> bool,
}

impl Situation<'_> {
    /// Plans for these knobs and what they hold. Of others everything stays as it is recorded.
    pub(super) fn plan(&self, seen: &[(Knob, String)]) -> Plan {
        let mut plan = Plan::default();
        let is_seen = |turned: &&Turned| seen.iter().any(|(knob, _)| *knob == turned.knob);
        let others = self.records.turned.iter();
        plan.turned = others.filter(|turned| !is_seen(turned)).cloned().collect();
        for (knob, now) in seen {
            self.plan_one(knob, now, &mut plan);
        }
        plan
    }

    fn plan_one(&self, knob: &Knob, now: &str, plan: &mut Plan) {
        let known = self.known(knob).cloned();
        let known = known.or_else(|| self.born_since(knob, now));
        let mut turned = known.unwrap_or_else(|| Turned::found(knob, now));
        if self.is_foreign(&turned, now) {
            let all = self.wanted(knob, now, &|_| true);
            if self.wanted(knob, now, self.is_new).is_none() {
                if all.is_some() {
                    plan.foreign.push((knob.clone(), now.to_owned()));
                }
                if self.is_wanted(knob) {
                    plan.turned.push(turned);
                }
                return;
            }
            turned = Turned::found(knob, now);
        }
        let wanted = self.wanted(knob, &turned.found, &|_| true);
        let puts_back = wanted.is_none();
        if puts_back && self.is_of_offline_cpus(&turned) {
            plan.turned.push(turned);
            return;
        }
        let value = wanted.unwrap_or_else(|| turned.found.clone());
        // What was told last counts, whatever shows yet. A kill may have come between the record
        // and the telling: nothing is forgotten that was not told again.
        let is_told = match puts_back {
            true => turned.was_told_nothing_but(&value),
            false => turned.is_told_last(&value).unwrap_or(true),
        };
        if !knob.is_same(&value, now) || !is_told {
            turned.forget_before(now);
            if !puts_back || *knob == Knob::Banned {
                turned.ours.push(value.clone());
            }
            plan.writes.push(Write {
                knob: knob.clone(),
                value,
                puts_back,
            });
        }
        if !turned.ours.is_empty() {
            plan.turned.push(turned);
        }
    }

    /// What is still to be remembered, of what these hold now. A CPU that comes back has the
    /// governor that it had.
    pub(super) fn still_turned(&self, now: &dyn Fn(&Knob) -> Reading) -> Vec<Turned> {
        let is_turned = |turned: &&Turned| {
            let now = match now(&turned.knob) {
                Reading::Gone => return self.is_offline(&turned.knob),
                Reading::Unread => return true,
                Reading::Holds(now) => now,
            };
            let is_wanted = self.is_wanted(&turned.knob);
            // Something else was told last, and will show.
            if turned.is_told_last(&turned.found) == Some(false) || is_wanted && turned.is_told() {
                return true;
            }
            let is_left = self.is_foreign(turned, &now) && !is_wanted;
            !turned.holds_found(&now) && !is_left
        };
        let turned = self.records.turned.iter();
        turned.filter(is_turned).cloned().collect()
    }

    fn is_offline(&self, knob: &Knob) -> bool {
        match knob {
            Knob::Governor(cpus) => cpus
                .parse::<CpuSet>()
                .is_ok_and(|cpus| cpus.is_disjoint(self.online)),
            _ => false,
        }
    }

    /// Were all CPUs that were found switched off since? The kernel takes no such value for an
    /// interrupt (write_irq_affinity in kernel/irq/proc.c): it is put back when one is back.
    fn is_of_offline_cpus(&self, turned: &Turned) -> bool {
        if turned.knob == Knob::Banned {
            return false;
        }
        let found = turned.knob.cpus(&turned.found);
        !turned.ours.is_empty() && found.is_some_and(|found| found.is_disjoint(self.online))
    }

    fn known(&self, knob: &Knob) -> Option<&Turned> {
        let mut turned = self.records.turned.iter();
        turned.find(|turned| turned.knob == *knob)
    }

    /// An interrupt that was set up while new ones had to keep away has what was ours for them, and
    /// would have had what was found.
    fn born_since(&self, knob: &Knob, now: &str) -> Option<Turned> {
        let Knob::Irq(number) = knob else {
            return None;
        };
        let of_new = self.known(&Knob::NewIrqs)?;
        if self.records.irqs.contains(number) {
            return None;
        }
        let cpus = |mask: &str| Knob::NewIrqs.cpus(mask);
        let now_set = knob.cpus(now)?;
        let mut ours = of_new.ours.iter().filter_map(|ours| cpus(ours));
        let given = ours.find_map(|ours| self.given_of(&ours).position(|set| set == now_set))?;
        // The kernel would have narrowed what was found in the same way.
        let found = cpus(&of_new.found)?;
        let narrowed = self.given_of(&found).nth(given);
        let found = narrowed.filter(|set| !set.is_empty()).unwrap_or(found);
        Some(Turned {
            knob: knob.clone(),
            found: found.to_string(),
            ours: vec![now.to_owned()],
        })
    }

    /// What the kernel makes of a mask when it sets an interrupt up: the mask, its CPUs that are
    /// online, or those of them that are on the device's node (kernel: irq_setup_affinity in
    /// kernel/irq/manage.c).
    fn given_of(&self, mask: &CpuSet) -> impl Iterator<Item = CpuSet> {
        let online = mask.intersection(self.online);
        let nodes = self.nodes.iter();
        let near: Vec<CpuSet> = nodes.map(|node| online.intersection(node)).collect();
        [mask.clone(), online].into_iter().chain(near)
    }

    /// Has somebody else set it since? Of ours an interrupt can have the CPUs that are online. One
    /// with those of a node alone was set up again by the kernel, or set so by somebody: nothing
    /// tells which, so that it is left.
    fn is_foreign(&self, turned: &Turned, now: &str) -> bool {
        if !turned.is_foreign(now) {
            return false;
        }
        let Knob::Irq(_) = turned.knob else {
            return true;
        };
        let now_set = turned.knob.cpus(now);
        let mut ours = turned.ours.iter().filter_map(|ours| turned.knob.cpus(ours));
        !ours.any(|ours| Some(ours.intersection(self.online)) == now_set)
    }

    /// Does any owner want it to be in some way?
    pub(super) fn is_wanted(&self, knob: &Knob) -> bool {
        self.records.tuned.iter().any(|tuned| knob.is_for(tuned))
    }

    /// What these owners want in place of this value; `None` where it is well with them.
    fn wanted(&self, knob: &Knob, value: &str, counts: &dyn Fn(&Tuned) -> bool) -> Option<String> {
        let owners = self.records.tuned.iter();
        let owners: Vec<&Tuned> = owners.filter(|tuned| knob.is_for(tuned)).collect();
        let counting = owners.iter().filter(|tuned| counts(tuned));
        let in_question: CpuSet = counting.map(|tuned| &tuned.cpus).collect();
        if in_question.is_empty() {
            return None;
        }
        let wanted = match knob {
            Knob::NewIrqs | Knob::Irq(_) => {
                let cpus = knob.cpus(value)?;
                let left = spared(&owners, self.online);
                let mut away = cpus.difference(&left);
                if away.is_disjoint(self.online) {
                    away = self.online.difference(&left);
                }
                (!cpus.is_disjoint(&in_question) && !away.is_empty()).then(|| knob.print(&away))
            }
            Knob::Banned => {
                let there = knob.cpus(value)?;
                Some(knob.print(&banned(&owners, self.online, &there)))
            }
            // Who came first, where two of them share it.
            Knob::Governor(_) => owners[0].tuning.governor.clone(),
            Knob::Latency(_) => owners[0].tuning.resume_latency.clone(),
            Knob::Quota(_) => cpu::without_quota(value),
        };
        wanted.filter(|wanted| !knob.is_same(wanted, value))
    }
}

/// The CPUs of `first`, and of each owner in the order in which they came that leaves enough: none
/// loses what it has because of one that comes later.
fn joined(first: &CpuSet, owners: &[&Tuned], leaves_enough: impl Fn(&CpuSet) -> bool) -> CpuSet {
    let mut joined = first.clone();
    for tuned in owners {
        let more = [&joined, &tuned.cpus].into_iter().collect();
        if leaves_enough(&more) {
            joined = more;
        }
    }
    joined
}

/// The owned CPUs that interrupts are kept off. They need one that is online.
fn spared(owners: &[&Tuned], online: &CpuSet) -> CpuSet {
    let has_other = |cpus: &CpuSet| !online.is_subset(cpus);
    joined(&CpuSet::new(), owners, has_other)
}

/// What irqbalance bans, of what it bans by itself.
fn banned(owners: &[&Tuned], online: &CpuSet, there: &CpuSet) -> CpuSet {
    joined(there, owners, |cpus| !leaves_few(online, cpus))
}

/// The CPUs of owners that want interrupts away, and that cannot be kept off them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LeftToIrqs {
    /// No other CPU would be left for interrupts.
    pub(super) by_all: CpuSet,
    /// irqbalance, where it runs, would be left too few.
    pub(super) by_irqbalance: CpuSet,
}

impl LeftToIrqs {
    /// Those of the recorded owners. `there` is what irqbalance bans by itself.
    pub(super) fn of(records: &Records, online: &CpuSet, there: Option<&CpuSet>) -> LeftToIrqs {
        let owners = records.tuned.iter();
        let owners: Vec<&Tuned> = owners.filter(|tuned| Knob::NewIrqs.is_for(tuned)).collect();
        let owned: CpuSet = owners.iter().map(|tuned| &tuned.cpus).collect();
        let by_irqbalance = there.map(|there| owned.difference(&banned(&owners, online, there)));
        LeftToIrqs {
            by_all: owned.difference(&spared(&owners, online)),
            by_irqbalance: by_irqbalance.unwrap_or_default(),
        }
    }
}

impl Turned {
    fn found(knob: &Knob, now: &str) -> Turned {
        Turned {
            knob: knob.clone(),
            found: now.to_owned(),
            ours: Vec::new(),
        }
    }

    /// Is it told, and heeds that later, as irqbalance does?
    fn is_told(&self) -> bool {
        self.knob == Knob::Banned
    }

    /// Is this what it was told last? `None` where it was told nothing, or shows at once what was
    /// written.
    fn is_told_last(&self, value: &str) -> Option<bool> {
        let last = self.ours.last().filter(|_| self.is_told())?;
        Some(self.knob.is_same(last, value))
    }

    fn was_told_nothing_but(&self, value: &str) -> bool {
        !self.is_told() || self.ours.iter().all(|ours| self.knob.is_same(ours, value))
    }

    /// Of what we have written, forgets what cannot show any more.
    fn forget_before(&mut self, now: &str) {
        if !self.is_told() || self.is_told_last(now) == Some(true) {
            let knob = self.knob.clone();
            self.ours.retain(|ours| knob.is_same(ours, now));
        }
    }

    /// The last of what was recorded was not told after all.
    pub(super) fn was_not_told(&mut self) {
        self.ours.pop();
    }

    fn holds_found(&self, now: &str) -> bool {
        self.knob.is_same(&self.found, now)
    }

    fn is_foreign(&self, now: &str) -> bool {
        let is_ours = self.ours.iter().any(|ours| self.knob.is_same(ours, now));
        !is_ours && !self.holds_found(now)
    }
}

impl Knob {
    /// Does an owner want it to be in some way?
    fn is_for(&self, tuned: &Tuned) -> bool {
        match self {
            Knob::NewIrqs | Knob::Banned | Knob::Irq(_) => tuned.tuning.irqs_away,
            Knob::Governor(cpus) => {
                let cpus: CpuSet = cpus.parse().unwrap_or_default();
                tuned.tuning.governor.is_some() && !cpus.is_disjoint(&tuned.cpus)
            }
            Knob::Latency(cpu) => {
                tuned.tuning.resume_latency.is_some() && tuned.cpus.contains(*cpu)
            }
            Knob::Quota(group) => tuned.tuning.quota_lifted && tuned.limited.contains(group),
        }
    }

    /// Do these two texts say the same of it?
    fn is_same(&self, one: &str, other: &str) -> bool {
        match (self.cpus(one), self.cpus(other)) {
            (Some(one), Some(other)) => one == other,
            _ => one == other,
        }
    }

    /// The CPUs that a text of it names.
    fn cpus(&self, text: &str) -> Option<CpuSet> {
        match self {
            Knob::NewIrqs | Knob::Banned => CpuSet::from_hex_mask(text),
            Knob::Irq(_) => text.parse().ok(),
            Knob::Governor(_) | Knob::Latency(_) | Knob::Quota(_) => None,
        }
    }

    fn print(&self, cpus: &CpuSet) -> String {
        match self {
            Knob::NewIrqs | Knob::Banned => grouped(&cpus.to_hex_mask()),
            _ => cpus.to_string(),
        }
    }
}

/// Does banning these leave irqbalance too few CPUs? With fewer than two to choose from it ends
/// itself (irqbalance.c: `main`).
pub fn leaves_few(online: &CpuSet, banned: &CpuSet) -> bool {
    online.difference(banned).len() < 2
}

/// A mask as the kernel takes it: in groups of 32 bits.
fn grouped(mask: &str) -> String {
    let first = mask.len() % 8;
    let (first, rest) = mask.split_at(first);
    let rest = rest.as_bytes().chunks(8).map(String::from_utf8_lossy);
    let groups = (!first.is_empty()).then(|| first.into()).into_iter();
    groups.chain(rest).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isolation::tuning::Tuning;
    use std::collections::BTreeMap;

    /// Files of a machine of eight CPUs, and what is on disk of the records.
    #[derive(Clone, Debug, PartialEq)]
    struct Tree {
        files: BTreeMap<Knob, String>,
        records: Records,
        new: Vec<u64>,
        online: CpuSet,
        nodes: Vec<CpuSet>,
    }

    fn away(inode: u64, cpus: &str) -> Tuned {
        Tuned {
            group: format!("/m/{inode}"),
            inode,
            cpus: cpus.parse().unwrap(),
            tuning: Tuning {
                irqs_away: true,
                ..Tuning::default()
            },
            limited: Vec::new(),
            run_dir: "/run/pinfold".into(),
        }
    }

    impl Tree {
        fn new(irqs: &[(u32, &str)]) -> Tree {
            let irqs = irqs.iter();
            let irqs = irqs.map(|(number, cpus)| (Knob::Irq(*number), (*cpus).to_owned()));
            Tree {
                files: irqs.chain([(Knob::NewIrqs, "ff".to_owned())]).collect(),
                records: Records::none("boot"),
                new: Vec::new(),
                online: "0-7".parse().unwrap(),
                nodes: Vec::new(),
            }
        }

        fn get(&self, knob: &Knob) -> &str {
            &self.files[knob]
        }

        fn irq(&self, number: u32) -> &str {
            self.get(&Knob::Irq(number))
        }

        fn set_irq(&mut self, number: u32, cpus: &str) {
            self.files.insert(Knob::Irq(number), cpus.to_owned());
        }

        fn situation<T>(&self, ask: impl Fn(&Situation<'_>) -> T) -> T {
            ask(&Situation {
                records: &self.records,
                online: &self.online,
                nodes: &self.nodes,
                is_new: &|tuned| self.new.contains(&tuned.inode),
            })
        }

        fn read(&self, knob: &Knob) -> Reading {
            match self.files.get(knob) {
                Some(text) => Reading::Holds(text.clone()),
                None => Reading::Gone,
            }
        }

        /// As the machine does it: what is for new ones first. Killed before one of the writes.
        fn converge_until(&mut self, kill_at: usize) -> Vec<(Knob, String)> {
            self.converge_without(&[], &[], kill_at)
        }

        /// The same while some cannot be read: before the writes, or after them.
        fn converge_without(
            &mut self,
            before: &[Knob],
            after: &[Knob],
            kill_at: usize,
        ) -> Vec<(Knob, String)> {
            let mut left = kill_at;
            let mut foreign = Vec::new();
            for first in [true, false] {
                let seen = self.files.clone().into_iter();
                let seen: Vec<_> = seen
                    .filter(|(knob, _)| (*knob == Knob::NewIrqs) == first)
                    .filter(|(knob, _)| !before.contains(knob))
                    .collect();
                self.records.note_irqs(self.numbers());
                let plan = self.situation(|situation| situation.plan(&seen));
                self.records.turned = plan.turned;
                foreign.extend(plan.foreign);
                for write in plan.writes {
                    if left == 0 {
                        return foreign;
                    }
                    left -= 1;
                    self.files.insert(write.knob, write.value);
                }
            }
            let now = |knob: &Knob| match after.contains(knob) {
                true => Reading::Unread,
                false => self.read(knob),
            };
            self.records.turned = self.situation(|situation| situation.still_turned(&now));
            self.records.note_irqs(self.numbers());
            foreign
        }

        fn numbers(&self) -> Vec<u32> {
            let numbers = self.files.keys().filter_map(|knob| match knob {
                Knob::Irq(number) => Some(*number),
                _ => None,
            });
            numbers.collect()
        }

        fn converge(&mut self) -> Vec<(Knob, String)> {
            self.converge_until(usize::MAX)
        }

        fn start(&mut self, tuned: Tuned) {
            self.new = vec![tuned.inode];
            self.records.tuned.push(tuned);
            self.converge();
            self.new.clear();
        }

        fn end(&mut self, inode: u64) -> Vec<(Knob, String)> {
            self.records.tuned.retain(|tuned| tuned.inode != inode);
            self.converge()
        }
    }

    const IRQS: [(u32, &str); 4] = [(1, "0-7"), (2, "4"), (3, "0-3"), (4, "4-5")];

    /// irqbalance shows what it was told when it next looks around.
    #[test]
    fn a_ban_is_remembered_until_it_is_heeded() {
        let mut tree = Tree::new(&[(1, "0-7")]);
        let heed = |tree: &mut Tree, mask: &str| {
            tree.files.insert(Knob::Banned, mask.to_owned());
        };
        heed(&mut tree, "00000001");
        tree.start(away(7, "4-5"));
        assert_eq!(tree.get(&Knob::Banned), "31");
        heed(&mut tree, "00000001");
        tree.start(away(8, "6"));
        assert_eq!(tree.get(&Knob::Banned), "71");
        // It heeds the first only now.
        heed(&mut tree, "00000031");
        assert_eq!(tree.converge(), []);
        assert_eq!(tree.get(&Knob::Banned), "71");
        // Started again it has what its configuration says.
        heed(&mut tree, "00000001");
        tree.converge();
        assert_eq!(tree.get(&Knob::Banned), "71");
        tree.end(7);
        assert_eq!(tree.get(&Knob::Banned), "41");
        heed(&mut tree, "00000071");
        // It is told, and shows what it was told before until it looks around.
        tree.records.tuned.clear();
        tree.converge_until(0);
        let of_ban = |turned: &Turned| turned.knob == Knob::Banned;
        assert!(tree.records.turned.iter().any(of_ban));
        tree.converge();
        assert_eq!(tree.get(&Knob::Banned), "00000001");
        assert!(tree.records.turned.is_empty());

        // An owner that has ended before the first was heeded, and one that comes right after.
        tree.start(away(7, "4-5"));
        heed(&mut tree, "00000001");
        tree.records.tuned.clear();
        let plan = tree.situation(|situation| situation.plan(&[(Knob::Banned, "00000001".into())]));
        let told = |plan: &Plan| plan.writes.first().map(|write| write.value.clone());
        assert_eq!(told(&plan).as_deref(), Some("00000001"));
        tree.records.turned = plan.turned;
        // Killed before that was told.
        let plan = tree.situation(|situation| situation.plan(&[(Knob::Banned, "00000001".into())]));
        assert_eq!(told(&plan).as_deref(), Some("00000001"));
        tree.records.tuned.push(away(8, "4-5"));
        let plan = tree.situation(|situation| situation.plan(&[(Knob::Banned, "00000031".into())]));
        assert_eq!(told(&plan).as_deref(), Some("31"));
        tree.records.turned = plan.turned;
        // It could not be told: then it has not been.
        let ban = tree.records.turned.iter_mut();
        ban.for_each(|turned| {
            if turned.knob == Knob::Banned {
                turned.was_not_told()
            }
        });
        let again =
            tree.situation(|situation| situation.plan(&[(Knob::Banned, "00000001".into())]));
        assert_eq!(told(&again).as_deref(), Some("31"));
        tree.end(8);
        assert_eq!(tree.get(&Knob::Banned), "00000001");
        assert!(tree.records.turned.is_empty());

        // What its operator says meanwhile stays.
        tree.start(away(7, "4-5"));
        heed(&mut tree, "00000080");
        assert_eq!(tree.converge().len(), 1);
        tree.end(7);
        assert_eq!(tree.get(&Knob::Banned), "00000080");
        assert!(tree.records.turned.is_empty());

        // Two CPUs have to be left.
        tree.start(away(7, "1-6"));
        assert_eq!(tree.get(&Knob::Banned), "00000080");
        tree.end(7);
        heed(&mut tree, "00000000");
        tree.start(away(7, "2-7"));
        assert_eq!(tree.get(&Knob::Banned), "FC");
        tree.end(7);
        assert_eq!(tree.get(&Knob::Banned), "00000000");
        assert!(tree.records.turned.is_empty());
    }

    #[test]
    fn an_owner_that_comes_later_takes_no_ban_from_one_that_was_there() {
        let mut tree = Tree::new(&[]);
        tree.files.insert(Knob::Banned, "1".to_owned());
        let left = |tree: &Tree| {
            let there = "0".parse().unwrap();
            let left = LeftToIrqs::of(&tree.records, &tree.online, Some(&there));
            assert!(left.by_all.is_empty());
            left.by_irqbalance.to_string()
        };
        for (inode, cpus, banned, left_out) in [
            (7, "1-4", "1F", ""),
            // Two CPUs have to be left, and then there are two.
            (8, "5-6", "1F", "5-6"),
            (9, "7", "9F", "5-6"),
        ] {
            tree.start(away(inode, cpus));
            assert_eq!(tree.get(&Knob::Banned), banned, "{inode}");
            assert_eq!(left(&tree), left_out, "{inode}");
        }
        tree.end(7);
        assert_eq!((tree.get(&Knob::Banned), &*left(&tree)), ("E1", ""));
        tree.end(8);
        tree.end(9);
        assert_eq!(tree.get(&Knob::Banned), "1");
        assert!(tree.records.turned.is_empty());
    }

    #[test]
    fn the_owner_of_the_last_cpus_brings_no_interrupts_back_to_the_others() {
        let mut tree = Tree::new(&IRQS);
        let before = tree.clone();
        tree.start(away(7, "0-4"));
        let one = tree.clone();
        assert_eq!((tree.irq(1), tree.irq(3)), ("5-7", "5-7"));
        tree.start(away(8, "5-7"));
        let left = LeftToIrqs::of(&tree.records, &tree.online, None);
        assert_eq!(left.by_all.to_string(), "5-7");
        assert_eq!(tree.files, one.files);
        // Now the other has them away.
        tree.end(7);
        assert_eq!((tree.irq(1), tree.irq(3)), ("0-4", "0-3"));
        tree.end(8);
        assert_eq!(tree, before);
    }

    /// The kernel sets an interrupt up on the CPUs of a mask that are online, and of those on the
    /// ones of its device's node.
    #[test]
    fn interrupts_that_are_set_up_meanwhile_come_back() {
        let mut tree = Tree::new(&[(1, "0-15"), (2, "0-7"), (3, "0-7")]);
        tree.nodes = ["0-3", "4-7"].map(|cpus| cpus.parse().unwrap()).into();
        tree.files.insert(Knob::NewIrqs, "ffff".to_owned());
        tree.start(away(7, "4-5"));
        assert_eq!(tree.get(&Knob::NewIrqs), "FFCF");
        for (number, given) in [(9, "0-3"), (10, "6-7"), (11, "0-3,6-7"), (12, "0-3,6-15")] {
            tree.set_irq(number, given);
        }
        // Set up again; and set by somebody else, to the CPUs of a node, too.
        tree.set_irq(1, "0-3,6-7");
        tree.set_irq(2, "5");
        tree.set_irq(3, "0-3");
        let foreign = tree.converge();
        assert_eq!(foreign, [(Knob::Irq(2), "5".to_owned())]);
        tree.end(7);
        let came_back = [1, 2, 3, 9, 10, 11, 12].map(|number| tree.irq(number).to_owned());
        let expected = ["0-15", "5", "0-3", "0-3", "4-7", "0-7", "0-15"];
        assert_eq!(came_back, expected);
        assert_eq!(tree.get(&Knob::NewIrqs), "ffff");
    }

    #[test]
    fn what_was_found_on_offline_cpus_waits_for_them() {
        let mut tree = Tree::new(&[(1, "4-5"), (2, "0-3")]);
        tree.start(away(7, "4-5"));
        tree.online = "0-3,6-7".parse().unwrap();
        tree.end(7);
        assert_eq!((tree.irq(1), tree.irq(2)), ("0-3,6-7", "0-3"));
        tree.online = "0-7".parse().unwrap();
        tree.converge();
        assert_eq!(tree.irq(1), "4-5");
        assert!(tree.records.turned.is_empty());
    }

    #[test]
    fn interrupts_leave_and_come_back() {
        let mut tree = Tree::new(&IRQS);
        let before = tree.clone();
        tree.start(away(7, "4-5"));
        assert_eq!(tree.irq(1), "0-3,6-7");
        // One that has no other CPU gets all that are left.
        assert_eq!(tree.irq(2), "0-3,6-7");
        assert_eq!(tree.irq(3), "0-3");
        assert_eq!(tree.get(&Knob::NewIrqs), "CF");
        tree.end(7);
        assert_eq!(tree, before);
    }

    #[test]
    fn what_two_owners_want_is_joined_whoever_ends_first() {
        for first in [7, 8] {
            let mut tree = Tree::new(&IRQS);
            let before = tree.clone();
            // Their pools, of two directories, share CPU 5.
            tree.start(away(7, "4-5"));
            tree.start(away(8, "5-6"));
            assert_eq!(tree.irq(1), "0-3,7");
            tree.end(first);
            let (left, new) = if first == 7 {
                ("0-4,7", "9F")
            } else {
                ("0-3,6-7", "CF")
            };
            assert_eq!(tree.irq(1), left);
            assert_eq!(tree.get(&Knob::NewIrqs), new);
            tree.end(15 - first);
            assert_eq!(tree, before);
        }
    }

    #[test]
    fn whatever_write_it_is_killed_at_the_next_one_mends_it() {
        let none = Tree::new(&IRQS);
        for kill_at in 0..6 {
            for again_at in 0..6 {
                let mut tree = none.clone();
                tree.start(away(7, "4-5"));
                tree.records.tuned.push(away(8, "6"));
                tree.converge_until(kill_at);
                tree.records.tuned.clear();
                tree.converge_until(again_at);
                tree.converge();
                assert_eq!(tree, none, "{kill_at} {again_at}");
            }
        }
    }

    #[test]
    fn what_somebody_else_has_set_since_is_left() {
        let mut tree = Tree::new(&IRQS);
        tree.start(away(7, "4-5"));
        tree.set_irq(1, "5");
        tree.set_irq(2, "2");
        // That it is not as the owner wants it is told; what is well with it is not.
        let foreign = tree.converge();
        assert_eq!(foreign, [(Knob::Irq(1), "5".to_owned())]);
        assert_eq!((tree.irq(1), tree.irq(2)), ("5", "2"));
        // Whoever comes next wants it again, and puts back what it found.
        tree.start(away(8, "6"));
        assert_eq!(tree.irq(1), "5");
        tree.set_irq(1, "6");
        tree.start(away(9, "3"));
        assert_eq!(tree.irq(1), "6");
        tree.end(8);
        tree.start(away(8, "6"));
        assert_eq!(tree.irq(1), "0-2,7");
        for inode in [7, 8, 9] {
            tree.end(inode);
        }
        assert_eq!((tree.irq(1), tree.irq(2)), ("6", "2"));
        assert_eq!((tree.irq(4), tree.get(&Knob::NewIrqs)), ("4-5", "ff"));
        assert!(tree.records.turned.is_empty());
    }

    #[test]
    fn one_that_was_set_up_meanwhile_gets_what_it_would_have_had() {
        for is_seen in [true, false] {
            let mut tree = Tree::new(&IRQS);
            tree.start(away(7, "4-5"));
            tree.set_irq(5, "0-3,6-7");
            // Another by its driver's own choice.
            tree.set_irq(6, "6-7");
            if is_seen {
                tree.converge();
            }
            tree.end(7);
            assert_eq!((tree.irq(5), tree.irq(6)), ("0-7", "6-7"), "{is_seen}");
            assert!(tree.records.turned.is_empty() && tree.records.irqs.is_empty());
        }
    }

    #[test]
    fn one_that_does_not_move_is_not_remembered() {
        let mut tree = Tree::new(&IRQS);
        tree.records.tuned.push(away(7, "4-5"));
        let seen: Vec<_> = tree.files.clone().into_iter().collect();
        tree.records.turned = tree.situation(|situation| situation.plan(&seen)).turned;
        let now = |knob: &Knob| tree.read(knob);
        assert_eq!(tree.situation(|situation| situation.still_turned(&now)), []);
    }

    #[test]
    fn power_is_set_for_each_owner_and_put_back_after_the_last() {
        let governor = Knob::Governor("4-5".to_owned());
        let mut tree = Tree::new(&[]);
        tree.files.insert(governor.clone(), "powersave".to_owned());
        for cpu in 4..8 {
            tree.files.insert(Knob::Latency(cpu), "0".to_owned());
        }
        let before = tree.clone();
        let fast = |inode, cpus: &str, latency: &str| {
            let mut tuned = away(inode, cpus);
            tuned.tuning = Tuning {
                governor: Some("performance".to_owned()),
                resume_latency: Some(latency.to_owned()),
                ..Tuning::default()
            };
            tuned
        };
        tree.start(fast(7, "4", "n/a"));
        tree.start(fast(8, "5-6", "20"));
        tree.start(fast(9, "4", "30"));
        assert_eq!(tree.get(&governor), "performance");
        assert_eq!(tree.get(&Knob::Latency(4)), "n/a");
        assert_eq!(tree.get(&Knob::Latency(6)), "20");
        assert_eq!(tree.get(&Knob::Latency(7)), "0");
        tree.end(7);
        assert_eq!(tree.get(&governor), "performance");
        assert_eq!(tree.get(&Knob::Latency(4)), "30");
        tree.end(9);
        assert_eq!(tree.get(&Knob::Latency(4)), "0");
        // Somebody has another governor by now.
        tree.files.insert(governor.clone(), "ondemand".to_owned());
        assert_eq!(tree.converge(), [(governor.clone(), "ondemand".to_owned())]);
        tree.end(8);
        assert_eq!(tree.get(&governor), "ondemand");
        tree.files.insert(governor, "powersave".to_owned());
        assert_eq!(tree, before);
    }

    #[test]
    fn a_limit_is_lifted_and_is_back_at_the_end() {
        for (found, lifted) in [("150000 100000", "max 100000"), ("150000", "-1")] {
            let group = LimitedGroup {
                path: "/m/7".to_owned(),
                inode: 7,
            };
            let knob = Knob::Quota(group.clone());
            let mut tree = Tree::new(&[]);
            tree.files.insert(knob.clone(), found.to_owned());
            let before = tree.clone();
            let mut tuned = away(7, "4");
            tuned.tuning = Tuning {
                quota_lifted: true,
                ..Tuning::default()
            };
            tuned.limited = vec![group];
            tree.start(tuned);
            assert_eq!(tree.get(&knob), lifted);
            // Whoever sets another since means it.
            let mut other = tree.clone();
            other.files.insert(knob.clone(), "50000 100000".to_owned());
            other.end(7);
            assert_eq!(other.get(&knob), "50000 100000");
            tree.end(7);
            assert_eq!(tree, before);
        }
    }

    #[test]
    fn the_governor_of_cpus_that_are_offline_is_put_back_once_they_are_not() {
        let governor = Knob::Governor("8-9".to_owned());
        let mut tree = Tree::new(&[]);
        tree.records.turned = vec![Turned {
            knob: governor.clone(),
            found: "powersave".to_owned(),
            ours: vec!["performance".to_owned()],
        }];
        tree.converge();
        assert_eq!(tree.records.turned.len(), 1);
        tree.files
            .insert(governor.clone(), "performance".to_owned());
        tree.converge();
        assert_eq!(tree.get(&governor), "powersave");
        assert!(tree.records.turned.is_empty());
    }

    /// A file can be unreadable for a moment: too many files are open, or a signal came.
    #[test]
    fn what_cannot_be_read_once_is_neither_forgotten_nor_taken_for_found() {
        let limit = LimitedGroup {
            path: "/m/7".to_owned(),
            inode: 7,
        };
        let mut none = Tree::new(&IRQS);
        let others = [
            (Knob::Governor("4-5".to_owned()), "powersave"),
            (Knob::Latency(4), "0"),
            (Knob::Quota(limit.clone()), "150000 100000"),
            (Knob::Banned, "1"),
        ];
        for (knob, found) in others {
            none.files.insert(knob, found.to_owned());
        }
        let mut everything = away(7, "4");
        everything.tuning = Tuning {
            irqs_away: true,
            quota_lifted: true,
            governor: Some("performance".to_owned()),
            resume_latency: Some("n/a".to_owned()),
        };
        everything.limited = vec![limit];
        // The order of what is recorded tells nothing.
        let sorted = |tree: &Tree| {
            let mut tree = tree.clone();
            let turned = &mut tree.records.turned;
            turned.sort_by(|one, other| one.knob.cmp(&other.knob));
            tree
        };
        let mut whole = none.clone();
        whole.start(everything.clone());
        let whole = sorted(&whole);
        let mut compared = 0;
        for knob in none
            .files
            .keys()
            .filter(|knob| none.get(knob) != whole.get(knob))
        {
            let (unread, none_of_it): (&[Knob], &[Knob]) = (std::slice::from_ref(knob), &[]);
            for (before, after) in [(unread, none_of_it), (none_of_it, unread), (unread, unread)] {
                let mut tree = whole.clone();
                // While it lives, and when it ends.
                tree.converge_without(before, after, usize::MAX);
                assert_eq!(sorted(&tree), whole, "{before:?} {after:?}");
                tree.records.tuned.clear();
                tree.converge_without(before, after, usize::MAX);
                tree.converge();
                assert_eq!(tree, none, "{before:?} {after:?}");
                // When it starts.
                tree.records.tuned.push(everything.clone());
                tree.converge_without(before, after, usize::MAX);
                tree.converge();
                assert_eq!(sorted(&tree), whole, "{before:?} {after:?}");
                compared += 1;
            }
        }
        assert_eq!(compared, 3 * 8);
    }

    #[test]
    fn where_all_cpus_are_owned_nothing_moves() {
        let mut tree = Tree::new(&IRQS);
        let files = tree.files.clone();
        tree.start(away(7, "0-7"));
        assert_eq!(tree.files, files);
    }

    #[test]
    fn masks_are_in_groups_of_32_bits() {
        for (mask, said) in [
            ("1", "1"),
            ("FFFFFFFF", "FFFFFFFF"),
            ("1FFFFFFFF", "1,FFFFFFFF"),
            ("10000000200000003", "1,00000002,00000003"),
        ] {
            assert_eq!(grouped(mask), said);
            assert!(CpuSet::from_hex_mask(said).is_some(), "{said}");
        }
    }
}
