//! The host's own units, kept off the CPUs of exclusive pools by systemd, and put back.

use crate::case::{Case, plain};
use crate::cgroups::hierarchy;
use crate::needs::Need;
use crate::process::{affinity, eventually, run, try_to_run};
use crate::world::{Kind, World};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The units that are kept off.
const UNITS: [&str; 3] = ["system.slice", "user.slice", "init.scope"];

/// How often it is looked where a service runs.
const LOOKS: usize = 200;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[
        Need::Root,
        Need::V2,
        Need::Systemd,
        Need::Cpus(8),
        Need::Disposable,
    ];
    vec![plain(
        "confine::the_host_leaves_exclusive_cpus_and_has_them_back",
        needs,
        leaves_and_comes_back,
    )]
}

/// A service with two processes that do nothing but compute.
struct Busy {
    unit: String,
}

impl Busy {
    fn start(world: &World) -> Busy {
        let unit = format!("{}-busy.service", world.tag);
        let compute = "(while :; do :; done) & while :; do :; done";
        let mut start = Command::new("systemd-run");
        start.args(["--unit", &unit, "--nice=19", "sh", "-c", compute]);
        run(&mut start).ok();
        let busy = Busy { unit };
        eventually("the service computes", || {
            (busy.pids().len() == 2).then_some(())
        });
        busy
    }

    fn pids(&self) -> Vec<i32> {
        let group = hierarchy().root.join("system.slice").join(&self.unit);
        let text = std::fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        let pids = text.lines().map(|line| line.parse().expect("a pid"));
        pids.collect()
    }

    fn may_run_on(&self, cpus: &str) -> Option<()> {
        let all = self.pids();
        (all.len() == 2 && all.iter().all(|pid| affinity(*pid) == cpus)).then_some(())
    }

    /// The CPUs on which it was seen.
    fn seen_on(&self) -> Vec<u32> {
        let mut seen = Vec::new();
        for _ in 0..LOOKS {
            for pid in self.pids() {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                let after_name = stat.rsplit(')').next().unwrap().split_whitespace();
                // Field 39, `processor`, of proc_pid_stat(5); the name is the second.
                let cpu = after_name.clone().nth(36).unwrap().parse().unwrap();
                seen.push(cpu);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        seen
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        try_to_run(Command::new("systemctl").args(["stop", &self.unit]));
    }
}

/// What a unit has: what systemd says, what the kernel says, and what was set at run time.
#[derive(Debug, PartialEq)]
struct UnitState {
    allowed: String,
    effective: Option<String>,
    mask: Option<String>,
    is_set: bool,
}

fn file(unit: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(hierarchy().root.join(unit).join(name)).ok()?;
    Some(text.trim().to_owned())
}

fn state(unit: &str) -> UnitState {
    let mut show = Command::new("systemctl");
    let said = run(show.args(["show", "--property=AllowedCPUs", "--value", unit])).ok();
    let settings = PathBuf::from("/run/systemd/system.control").join(format!("{unit}.d"));
    UnitState {
        allowed: said.stdout.trim().to_owned(),
        effective: file(unit, "cpuset.cpus.effective"),
        mask: file(unit, "cpuset.cpus"),
        is_set: settings.join("50-AllowedCPUs.conf").exists(),
    }
}

/// All is as before. A kernel up to 6.12 keeps a mask for a group with processes: one of all CPUs
/// stands for none there. And a controller that was switched on stays on.
fn is_as_before(unit: &str, before: &UnitState, all: &str) -> bool {
    let now = state(unit);
    let is_same_mask = match (&before.mask, now.mask.as_deref()) {
        (Some(before), Some(now)) => before == now || (before.is_empty() && now == all),
        (None, now) => now.is_none_or(|now| now.is_empty() || now == all),
        (Some(_), None) => false,
    };
    let is_same_cpus = match &before.effective {
        Some(_) => before.effective == now.effective,
        None => now.effective.as_deref().is_none_or(|now| now == all),
    };
    let is_same = before.allowed == now.allowed && before.is_set == now.is_set;
    is_same && is_same_mask && is_same_cpus
}

#[track_caller]
fn come_back(busy: &Busy, before: &[UnitState; 3], all: &str) {
    eventually("the service may run everywhere again", || {
        busy.may_run_on(all)
    });
    for (unit, before) in UNITS.iter().zip(before) {
        eventually(&format!("{unit} is as before: {before:?}"), || {
            is_as_before(unit, before, all).then_some(())
        });
    }
    assert!(!Path::new("/run/pinfold-machine/units").exists());
}

fn leaves_and_comes_back(world: &World) {
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    let config = world.dir.join("config.toml");
    let confine = |word: &str| {
        let text = format!("[host]\nconfine = \"{word}\"\n");
        std::fs::write(&config, text).expect("write the configuration");
    };
    let config = config.to_str().expect("its path is text");
    let pinfold =
        |words: &[&str]| run(&mut world.pinfold(&[words, &["--config", config]].concat()));
    let all = hierarchy().all_cpus();
    let busy = Busy::start(world);
    let before = UNITS.map(state);

    confine("pools");
    pinfold(&["reconcile"]).ok();
    eventually("the service is off the exclusive CPUs", || {
        busy.may_run_on("0-3,6-7")
    });
    for unit in UNITS {
        eventually(&format!("{unit} is off them"), || {
            // Without sessions there is no group of theirs.
            let now = file(unit, "cpuset.cpus.effective");
            now.is_none_or(|now| now == "0-3,6-7").then_some(())
        });
    }
    let seen = busy.seen_on();
    assert!(!seen.contains(&4) && !seen.contains(&5), "{seen:?}");
    let said = pinfold(&["check"]);
    let well = "system.slice, user.slice, init.scope are kept off 4-5";
    assert!(said.stdout.contains(well), "{said}");
    // What systemd writes again is the same.
    run(Command::new("systemctl").arg("daemon-reload")).ok();
    pinfold(&["reconcile"]).ok();
    assert_eq!(busy.may_run_on("0-3,6-7"), Some(()));
    // An engine that forgets Pinfold is no reason to let the host in: another may know it still.
    std::fs::create_dir_all(world.dir.join("engine/hooks")).expect("make directories");
    let of_engine = |name: &str| world.dir.join("engine").join(name).display().to_string();
    let (conf, hooks) = (of_engine("containers.conf"), of_engine("hooks"));
    let at = ["--engine-config", &conf, "--hooks-dir", &hooks, "--force"];
    pinfold(&[&["uninstall", "podman"], &at[..]].concat()).ok();
    assert_eq!(busy.may_run_on("0-3,6-7"), Some(()));
    let said = pinfold(&["reconcile", "--let-host-in"]).ok();
    assert!(said.stderr.contains("keeps them off, unless"), "{said}");
    come_back(&busy, &before, &all);
    pinfold(&["reconcile"]).ok();
    eventually("the service is off them again", || {
        busy.may_run_on("0-3,6-7")
    });
    confine("none");
    pinfold(&["reconcile"]).ok();
    come_back(&busy, &before, &all);

    // The pools go, while the setting stays.
    confine("pools");
    pinfold(&["pool", "remove", "dp"]).ok();
    world.pool("dp", Kind::Exclusive, &["6"]);
    pinfold(&["reconcile"]).ok();
    eventually("the service is off the other CPU", || {
        busy.may_run_on("0-5,7")
    });
    pinfold(&["pool", "remove", "dp"]).ok();
    come_back(&busy, &before, &all);
}
