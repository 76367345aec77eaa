//! Whose a thread is: the kernel's, or of which cgroup.

use std::collections::HashMap;
use std::rc::Rc;

use anyhow::{Result, ensure};

use crate::cgroup::Hierarchy;
use crate::files;
use crate::host::Host;
use crate::process;
use crate::refusal::Refusal;

/// The kernel thread that makes all others (kernel: kernel/kthread.c).
const KTHREADD: i32 = 2;

/// What is known of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// A thread of the kernel.
    Kernel,
    /// A thread of a process.
    User {
        /// The path of its cgroup.
        group: Option<Rc<str>>,
        /// The process that stands for an owner without a cgroup, where it is that or descends from
        /// it.
        kin: Option<i32>,
    },
    /// It ended before anybody could look at it.
    Unknown,
}

/// What is known of all threads.
#[derive(Debug)]
pub(super) struct People<'a> {
    host: &'a Host,
    hierarchy: Option<Hierarchy>,
    /// The number that the kernel has for the hierarchy, once it was seen.
    number: Option<u32>,
    /// Processes that stand for owners without a cgroup.
    stand_ins: Vec<i32>,
    known: HashMap<i32, Who>,
}

impl<'a> People<'a> {
    pub(super) fn new(
        host: &'a Host,
        hierarchy: Option<Hierarchy>,
        stand_ins: Vec<i32>,
    ) -> People<'a> {
        People {
            host,
            hierarchy,
            number: None,
            stand_ins,
            known: HashMap::new(),
        }
    }

    /// Looks at all threads that there are.
    ///
    /// # Errors
    /// They cannot be listed.
    pub(super) fn look_at_all(&mut self) -> Result<()> {
        for pid in processes(self.host)? {
            for tid in threads(self.host, pid)? {
                self.look(tid)?;
            }
        }
        Ok(())
    }

    /// Looks at a thread; `None` where it is gone, or ends: what is known of it stays.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub(super) fn look(&mut self, tid: i32) -> Result<Option<Who>> {
        let Some(stat) = files::read_record_if_there(&self.host.proc_pid(tid, "stat"))? else {
            return Ok(None);
        };
        let Some(seen) = process::thread_in(&stat) else {
            return Ok(None);
        };
        let who = match seen.is_kernels {
            true => Who::Kernel,
            false => {
                let Some(group) = self.group_of(tid)? else {
                    return Ok(None);
                };
                // Asked after the cgroup, which is that of a thread that lived on then.
                let stat = files::read_record_if_there(&self.host.proc_pid(tid, "stat"))?;
                let later = stat.and_then(|stat| process::thread_in(&stat));
                if later.is_none_or(|later| later.is_ending) {
                    return Ok(None);
                }
                // Whom its maker descends from, it descends from: it may be gone by now.
                let kin = match self.known(tid) {
                    Who::User { kin: Some(kin), .. } => Some(kin),
                    _ => self.kin_of(tid)?,
                };
                Who::User { group, kin }
            }
        };
        self.known.insert(tid, who.clone());
        Ok(Some(who))
    }

    /// What is known of a thread.
    pub(super) fn known(&self, tid: i32) -> Who {
        self.known.get(&tid).cloned().unwrap_or(Who::Unknown)
    }

    /// A thread has made another, which is in the same cgroup.
    pub(super) fn fork(&mut self, parent: i32, child: i32) {
        let who = match self.known(parent) {
            // What other kernel threads make are helpers, which are programs.
            Who::Kernel if parent != KTHREADD => Who::Unknown,
            who => who,
        };
        self.known.insert(child, who);
    }

    /// A process was moved; returns whether that is in our hierarchy.
    pub(super) fn moved(&mut self, tid: i32, hierarchy: u32, group: &str) -> bool {
        if self.number != Some(hierarchy) {
            return false;
        }
        let kin = match self.known(tid) {
            Who::User { kin, .. } => kin,
            Who::Kernel | Who::Unknown => None,
        };
        let group = Some(Rc::from(group));
        self.known.insert(tid, Who::User { group, kin });
        true
    }

    /// The path of a thread's cgroup, where there is a hierarchy; `None` where the thread is gone.
    fn group_of(&mut self, tid: i32) -> Result<Option<Option<Rc<str>>>> {
        let Some(hierarchy) = &self.hierarchy else {
            return Ok(Some(None));
        };
        let text = files::read_record_if_there(&self.host.proc_pid(tid, "cgroup"))?;
        let Some((number, path)) = text.as_deref().and_then(|text| hierarchy.line_in(text)) else {
            return Ok(None);
        };
        self.number = number;
        Ok(Some(Some(Rc::from(path))))
    }

    fn kin_of(&self, tid: i32) -> Result<Option<i32>> {
        for pid in &self.stand_ins {
            let own = self.host.proc_pid(*pid, &format!("task/{tid}"));
            if files::metadata_if_there(&own)?.is_some()
                || process::descends_from(self.host, tid, *pid)?
            {
                return Ok(Some(*pid));
            }
        }
        Ok(None)
    }
}

/// Refuses where `/proc` does not show every thread of the machine: whoever is not shown would
/// count as absent, and the numbers of a trace would be those of others.
///
/// # Errors
/// It does not, or cannot be looked at.
pub fn ensure_all_are_shown(host: &Host) -> Result<()> {
    let hides = |why: &str| {
        Refusal::new(
            format!("/proc does not show everybody who runs on this machine: {why}"),
            "run this as root, on the machine itself",
        )
    };
    let is_own = host.shares_our_processes();
    ensure!(is_own, hides("it is no procfs of our own pid namespace"));
    let is_first = process::pid_namespace(host).as_deref() == Some(process::FIRST_PIDS);
    ensure!(is_first, hides("this is in a pid namespace of its own"));
    // Of a mount with `hidepid=` nobody sees it who does not see all (proc(5)).
    let kthreadd = files::read_record_if_there(&host.proc_pid(KTHREADD, "stat"));
    let is_seen = kthreadd.is_ok_and(|stat| stat.is_some());
    ensure!(is_seen, hides("its mount hides them (hidepid)"));
    Ok(())
}

/// The processes of the machine.
pub(super) fn processes(host: &Host) -> Result<Vec<i32>> {
    numbers_in(files::names_in(&host.processes()))
}

/// The threads of a process; none where it is gone.
pub(super) fn threads(host: &Host, pid: i32) -> Result<Vec<i32>> {
    match files::names_in(&host.proc_pid(pid, "task")) {
        Err(error) if files::says_gone(&error) => Ok(Vec::new()),
        names => numbers_in(names),
    }
}

fn numbers_in(names: Result<Vec<String>>) -> Result<Vec<i32>> {
    let numbers = names?.into_iter().filter_map(|name| name.parse().ok());
    Ok(numbers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Durability, replace};

    #[test]
    fn where_others_are_hidden_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        let error = ensure_all_are_shown(&Host::new(dir.path())).unwrap_err();
        let refusal = Refusal::of(&error);
        assert!(refusal.what.contains("no procfs"), "{refusal}");
        assert!(
            refusal.remedy.contains("on the machine itself"),
            "{refusal}"
        );
    }

    /// On version 1 whoever ends is shown in the root group.
    #[test]
    fn whoever_ends_stays_whose_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        let mut people = People::new(&host, None, Vec::new());
        let seen = Who::User {
            group: None,
            kin: None,
        };
        std::fs::create_dir_all(dir.path().join("proc/7")).unwrap();
        for (state, flags, expected) in [('S', 4, None), ('Z', 0, None), ('S', 0, Some(seen))] {
            let stat = format!(
                "7 (sh) {state} 1 2 3 4 5 {flags} 7 8 9 10 1 2 13 14 15 16 5 0 1 0 0 0 0 0 0 0 0 0 \
                 0 0 0 0 0 0 17 4 0 0\n"
            );
            replace(
                &dir.path().join("proc/7/stat"),
                stat.as_bytes(),
                0o444,
                Durability::Crash,
            )
            .unwrap();
            assert_eq!(people.look(7).unwrap(), expected, "{state} {flags}");
            let known = expected.unwrap_or(Who::Unknown);
            assert_eq!(people.known(7), known);
        }
    }
}
