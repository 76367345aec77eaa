//! The auditor: do claims, links, `tasks`, cgroups and live processes agree? It reads every file by
//! itself, with parsers of its own, and shares no code with what it judges.
//!
//! It needs no lock: what others are just changing does not stay as it was seen, and is left out.

mod files;
mod machine;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use crate::host::Host;
use crate::text::Shown;

use files::{ClaimFile, List, SiteFiles, listed};
use machine::{Machine, Presence};

/// How often a remark has to be seen before it counts.
const LOOKS: u32 = 4;
/// The time between two looks; longer than a start holds the lock.
const PAUSE: Duration = Duration::from_millis(50);

/// What a disagreement means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Something that no death and no error may ever lead to.
    Broken,
    /// A start or a change of a live owner was cut short. Its list is held.
    Unfinished,
    /// Something that the dead have left. Whoever needs it next, or `reconcile`, removes it.
    Leftover,
}

/// One thing that does not agree with another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Disagreement {
    /// What it means.
    pub kind: Verdict,
    /// A sentence.
    pub text: String,
}

/// The site that is audited.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The pool directory.
    pub conf_dir: &'a Path,
    /// The directory of claims.
    pub run_dir: &'a Path,
}

/// Looks several times, and returns what is seen each time: nobody is halfway through changing
/// that.
pub fn audit(subject: Subject<'_>) -> Vec<Disagreement> {
    let mut stays = look(subject);
    for _ in 1..LOOKS {
        if stays.is_empty() {
            break;
        }
        sleep(PAUSE);
        let again = look(subject);
        stays.retain(|remark| again.contains(remark));
    }
    stays
}

/// Looks once, at a site that nobody changes meanwhile.
pub fn look(subject: Subject<'_>) -> Vec<Disagreement> {
    let mut remarks = Remarks::default();
    let books = SiteFiles::read(subject.conf_dir, subject.run_dir, &mut remarks);
    let machine = match Machine::find(subject.host) {
        Ok(machine) => machine,
        Err(error) => {
            remarks.broken(error);
            return remarks.sorted();
        }
    };
    let lives = books
        .claims
        .iter()
        .map(|claim| match machine.is_alive(claim) {
            Ok(is_alive) => is_alive,
            Err(error) => {
                remarks.broken(format!("{}: {error}", claim.name()));
                true
            }
        });
    let lives: Vec<bool> = lives.collect();
    let look = Inspection {
        books: &books,
        machine: &machine,
        lives,
    };
    look.links(&mut remarks);
    look.tasks(&mut remarks);
    look.owners(&mut remarks);
    look.masks(&mut remarks);
    look.groups(subject.conf_dir, &mut remarks);
    look.ended(&mut remarks);
    look.boot_mark(&mut remarks);
    remarks.sorted()
}

#[derive(Default)]
struct Remarks(BTreeSet<Disagreement>);

impl Remarks {
    fn add(&mut self, kind: Verdict, text: impl Into<String>) {
        let text = text.into();
        self.0.insert(Disagreement { kind, text });
    }

    fn broken(&mut self, text: impl Into<String>) {
        self.add(Verdict::Broken, text);
    }

    fn unfinished(&mut self, text: impl Into<String>) {
        self.add(Verdict::Unfinished, text);
    }

    fn leftover(&mut self, text: impl Into<String>) {
        self.add(Verdict::Leftover, text);
    }

    fn sorted(self) -> Vec<Disagreement> {
        self.0.into_iter().collect()
    }
}

struct Inspection<'a> {
    books: &'a SiteFiles,
    machine: &'a Machine,
    /// For each claim, whether its owner is alive.
    lives: Vec<bool>,
}

impl<'a> Inspection<'a> {
    fn claims(&self) -> impl Iterator<Item = (&'a ClaimFile, bool)> {
        self.books.claims.iter().zip(self.lives.iter().copied())
    }

    fn living(&self) -> impl Iterator<Item = &'a ClaimFile> {
        self.claims().filter(|(_, lives)| *lives).map(|(c, _)| c)
    }

    fn on<'s>(&'s self, list: &'s List) -> impl Iterator<Item = (&'a ClaimFile, bool)> + 's {
        let names = |claim: &ClaimFile| claim.pool == list.pool && claim.lists.contains(&list.name);
        self.claims().filter(move |(claim, _)| names(claim))
    }

    /// Checks that each claim has links from its lists and from its group, and that each link leads
    /// to such a claim.
    fn links(&self, remarks: &mut Remarks) {
        for (claim, lives) in self.claims() {
            let mut wanted: Vec<String> = Vec::new();
            wanted.extend(claim.lists.iter().map(|list| claim.list_link(list)));
            wanted.extend(claim.cgroup.as_ref().map(|group| group.link()));
            for link in wanted {
                let target = self.books.links.get(&link);
                let leads_to =
                    |other: &ClaimFile| target.is_some_and(|to| to.ends_with(&other.file()));
                let twin = |other: &&ClaimFile| other.shares_group_with(claim) && leads_to(other);
                if leads_to(claim) || self.books.claims.iter().any(|other| twin(&other)) {
                    continue;
                }
                let text = format!("{} is not found through {link}", claim.name());
                match lives {
                    true => remarks.broken(text),
                    false => remarks.leftover(text),
                }
            }
        }
        for (link, target) in &self.books.links {
            let is_of = |claim: &ClaimFile| {
                let lists = claim.lists.iter();
                target.ends_with(&claim.file())
                    && (lists.map(|list| claim.list_link(list)).any(|l| l == *link)
                        || claim.cgroup.as_ref().is_some_and(|g| g.link() == *link))
            };
            let is_unreadable = self.books.unreadable.iter().any(|f| target.ends_with(f));
            if !is_unreadable && !self.books.claims.iter().any(is_of) {
                remarks.leftover(format!("the link {} leads nowhere", Shown(link)));
            }
        }
    }

    /// Checks that `tasks` has each live owner, so that other tools see it, and that each pid in
    /// `tasks` is an owner's or alive.
    fn tasks(&self, remarks: &mut Remarks) {
        for claim in self.claims().filter(|(_, l)| !l).map(|(claim, _)| claim) {
            remarks.leftover(format!("{} is gone and has a claim", claim.name()));
        }
        for claim in self.living() {
            let lists = claim.lists.iter();
            let there: Vec<&List> = lists.filter_map(|name| self.list(claim, name)).collect();
            if there.is_empty() {
                let text = format!("{} has lists that are not in the pools", claim.name());
                remarks.unfinished(text);
            }
            for list in there {
                let mut pids = claim.processes.iter().map(|process| process.pid);
                if !pids.any(|pid| list.tasks.contains(&pid)) {
                    let text = format!("{} is not in tasks of {}", claim.name(), list.shown());
                    remarks.unfinished(text);
                }
            }
        }
        for list in &self.books.lists {
            for pid in &list.tasks {
                if !self.explains(list, *pid) && self.machine.presence(*pid) == Presence::Gone {
                    let text = format!("process {pid} in tasks of {} is gone", list.shown());
                    remarks.leftover(text);
                }
            }
        }
    }

    /// Checks that no owner with a claim is among those that have ended.
    fn ended(&self, remarks: &mut Remarks) {
        for (claim, _) in self.claims() {
            let ended = (claim.owner_name(), claim.boot_id.clone());
            if self.books.ended.contains(&ended) {
                remarks.broken(format!("{} has ended and has a claim", claim.name()));
            }
        }
    }

    fn list(&self, claim: &ClaimFile, name: &str) -> Option<&'a List> {
        let is_it = |list: &&List| list.pool == claim.pool && list.name == name;
        self.books.lists.iter().find(is_it)
    }

    fn explains(&self, list: &List, pid: i32) -> bool {
        let mut pids = self.on(list).flat_map(|(claim, _)| &claim.processes);
        pids.any(|process| process.pid == pid)
    }

    /// Checks I1: a list of an exclusive pool has one live owner at most, and none of its CPUs is
    /// in another list that has an owner.
    fn owners(&self, remarks: &mut Remarks) {
        let mut owner_of: BTreeMap<u32, String> = BTreeMap::new();
        for list in &self.books.lists {
            let mut owners = self.owners_of(list);
            if !list.is_exclusive {
                owners.truncate(1);
            }
            if owners.len() > 1 {
                let text = format!("{} has the owners {}", list.shown(), owners.join(" and "));
                remarks.broken(text);
            }
            for cpu in list.cpus.iter().filter(|_| !owners.is_empty()) {
                if let Some(other) = owner_of.insert(*cpu, list.shown()) {
                    remarks.broken(format!(
                        "CPU {cpu} is in {other} and in {}, and both have owners",
                        list.shown()
                    ));
                }
            }
        }
    }

    /// The names of a list's live owners. A reservation and the container that takes it over are
    /// one owner, with the same id.
    fn owners_of(&self, list: &List) -> Vec<String> {
        let living: Vec<&ClaimFile> = self.on(list).filter(|(_, l)| *l).map(|(c, _)| c).collect();
        let reserves = |claim: &ClaimFile| claim.kind == "reservation";
        let is_handed_over = |claim: &ClaimFile| {
            let mut others = living.iter();
            reserves(claim) && others.any(|other| other.id == claim.id && !reserves(other))
        };
        let claimed = living.iter().filter(|claim| !is_handed_over(claim));
        let mut owners: Vec<String> = claimed.map(|claim| claim.name()).collect();
        // Live processes in `tasks` that no claim explains are owners too. If a claim of this list
        // cannot be read, they may be its owner's.
        let of_list = format!("lists/{}/", list.name);
        let mut links = self
            .books
            .links
            .iter()
            .filter(|(l, _)| l.starts_with(&of_list));
        let is_unreadable = |to: &String| self.books.unreadable.iter().any(|f| to.ends_with(f));
        if !links.any(|(_, target)| is_unreadable(target)) {
            let pids: BTreeSet<i32> = list.tasks.iter().copied().collect();
            let strangers = pids.iter().filter(|pid| !self.explains(list, **pid));
            let living = strangers.filter(|pid| self.machine.presence(**pid) != Presence::Gone);
            owners.extend(living.map(|pid| format!("process {pid}")));
        }
        owners
    }

    /// Checks that an owner's group has all of its CPUs that are online, and no others.
    fn masks(&self, remarks: &mut Remarks) {
        for claim in self.living() {
            let Some(group) = claim.cgroup.as_ref().filter(|group| group.confined) else {
                continue;
            };
            let Some(cpus) = self.machine.cpus_of_group(group) else {
                continue;
            };
            let mut wanted = claim.cpus.clone();
            wanted.retain(|cpu| self.machine.online.contains(cpu));
            if cpus == wanted {
                self.affinities(claim, remarks);
                continue;
            }
            let is_open = self.machine.cpus_above_group(group) == Some(cpus.clone());
            // If all of its CPUs are offline, the kernel lets it run on the CPUs of the group above
            // (cgroup-v2.rst, "Cpuset Interface Files"). Only whoever puts them online can undo
            // that.
            if wanted.is_empty() && is_open {
                continue;
            }
            let taken = cpus.iter().find_map(|cpu| self.other_owner(claim, *cpu));
            match taken.filter(|_| !is_open) {
                Some(other) => remarks.broken(format!(
                    "{} runs on the CPUs {}, and {other} owns some of them",
                    claim.name(),
                    listed(&cpus)
                )),
                None => remarks.unfinished(format!(
                    "{} owns the CPUs {} and runs on {}",
                    claim.name(),
                    listed(&claim.cpus),
                    listed(&cpus)
                )),
            }
        }
    }

    /// Checks that the processes that stand for the owner may run on its CPUs alone. Left out is
    /// the process that is not confined itself: `isolate` beside its command, or the runtime.
    fn affinities(&self, claim: &ClaimFile, remarks: &mut Remarks) {
        let is_beside = |pid: i32| claim.kind != "container" && pid == claim.owner.pid;
        for process in claim.processes.iter().filter(|p| !is_beside(p.pid)) {
            let cpus = self.machine.affinity(process).unwrap_or_default();
            if !cpus.is_subset(&claim.cpus) {
                remarks.unfinished(format!(
                    "process {} of {} owns the CPUs {} and may run on {}",
                    process.pid,
                    claim.name(),
                    listed(&claim.cpus),
                    listed(&cpus)
                ));
            }
        }
    }

    /// Another live owner of a CPU in an exclusive pool.
    fn other_owner(&self, claim: &ClaimFile, cpu: u32) -> Option<String> {
        let mut exclusive = self.books.lists.iter().filter(|list| list.is_exclusive);
        let list = exclusive.find(|list| list.cpus.contains(&cpu))?;
        let owners = self.owners_of(list).into_iter();
        owners.into_iter().find(|owner| *owner != claim.name())
    }

    /// Checks that each group that Pinfold has made is some claim's. One that was released by force
    /// keeps its processes, but no CPU of another owner.
    fn groups(&self, conf_dir: &Path, remarks: &mut Remarks) {
        let groups = self.machine.groups_of_ours(conf_dir).unwrap_or_default();
        for group in groups {
            let mut claimed = self.books.claims.iter().filter_map(|c| c.cgroup.as_ref());
            if claimed.any(|claimed| claimed.inode == group.inode) {
                continue;
            }
            let path = group.path.display();
            let mut lists = self.books.lists.iter().filter(|list| list.is_exclusive);
            let taken = lists.find(|list| {
                !list.cpus.is_disjoint(&group.cpus) && !self.owners_of(list).is_empty()
            });
            match taken {
                _ if group.is_empty => remarks.leftover(format!("the cgroup {path} is no claim's")),
                Some(list) => remarks.unfinished(format!(
                    "the cgroup {path} is no claim's, and runs on CPUs of {}",
                    list.shown()
                )),
                None => {}
            }
        }
    }

    /// Checks that, if there are live owners, the mark says that the ledger was begun in this boot.
    fn boot_mark(&self, remarks: &mut Remarks) {
        let mark = self.books.boot_mark.as_deref().unwrap_or_default();
        if self.living().next().is_some() && !mark.starts_with(&self.machine.boot_id) {
            remarks.unfinished("there are owners, and the mark of this boot is not there");
        }
    }
}
