//! SIGKILL at every system call of a start and an end that keep everybody else off, and interrupts
//! away: whatever is left of it, the next `reconcile` puts back, as does the end of the owner.

use crate::case::{Case, plain};
use crate::cases::killpoints::{each_point, reconcile_rest};
use crate::cases::killpoints_irqs::irqs;
use crate::cases::offenders::{assert_as_before, machine};
use crate::cgroups::hierarchy;
use crate::needs::Need;
use crate::process::{Running, run};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[
        Need::Root,
        Need::Strace,
        Need::Partitions,
        Need::Systemd,
        Need::Cpus(8),
        Need::Disposable,
    ];
    vec![
        plain("killpoints_isolation::start", needs, start),
        plain("killpoints_isolation::further_list", needs, further_list),
        plain("killpoints_isolation::end", needs, end),
        plain("killpoints_isolation::mending", needs, mending),
        plain("killpoints_isolation::freeing", needs, freeing),
        plain("killpoints_isolation::releasing", needs, releasing),
    ]
}

/// A slice of pinned containers alone, where any kernel that has partitions keeps them.
pub(crate) struct Slice {
    path: PathBuf,
    /// The machine while nobody owns anything.
    before: BTreeMap<PathBuf, String>,
}

impl Slice {
    pub(crate) fn make() -> Slice {
        let root = &hierarchy().root;
        std::fs::write(root.join("cgroup.subtree_control"), "+cpuset").unwrap();
        let path = root.join("pinfold.slice");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("cgroup.subtree_control"), "+cpuset").unwrap();
        let before = machine();
        Slice { path, before }
    }

    pub(crate) fn container(&self, name: &str) -> Standin {
        let group = self.path.join(name);
        if !group.exists() {
            hierarchy().make_inside(&self.path, name);
        }
        Standin::inside(&group, &["--wait"])
    }

    /// Nobody is kept off, whatever is left of the owner's group.
    fn assert_open(&self, name: &str, when: &str) {
        let group = self.path.join(name);
        assert_eq!(read(&group, "cpuset.cpus.exclusive"), "", "{when}");
        let partition = read(&group, "cpuset.cpus.partition");
        assert!(["", "member"].contains(&&*partition), "{when}: {partition}");
        assert_as_before(&self.before, when);
    }

    /// A victim that has everything, confined by its hook.
    fn owner(&self, world: &World) -> Standin {
        let standin = self.container("victim");
        let state = state("victim", standin.pid, json!({ "pinfold.io/pool": "dp" }));
        world.hook("createRuntime", &state).ok();
        assert_eq!(read(&standin.cgroup(), "cpuset.cpus.partition"), "root");
        assert_ne!(machine(), self.before);
        standin
    }
}

/// The text of a file of a group; empty where there is none.
fn read(group: &Path, file: &str) -> String {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    text.trim().to_owned()
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// As on the machine's first day: what is made once is made each time.
fn fresh(world: &World, lists: &[&str]) {
    let _ = std::fs::remove_dir_all("/run/pinfold-machine");
    let _ = std::fs::remove_dir_all(&world.run);
    let _ = std::fs::remove_dir_all(world.conf.join("pools"));
    std::fs::create_dir(world.conf.join("pools")).expect("make the pools directory");
    world.pool("dp", Kind::Exclusive, lists);
    run(&mut world.pinfold(&["pool", "set", "dp", "isolation=root", "irqs=away"])).ok();
}

fn asking(pid: i32) -> String {
    state("victim", pid, json!({ "pinfold.io/pool": "dp" })).to_string()
}

fn start(world: &World) {
    let slice = Slice::make();
    let before = || {
        fresh(world, &["5"]);
        let standin = slice.container("victim");
        let input = asking(standin.pid);
        (standin, input)
    };
    each_point(
        world,
        &["hook", "createRuntime"],
        before,
        |standin, number| {
            // Its runtime kills it, for its hook has died.
            reconcile_rest(world, &standin.die(), number, || {
                slice.assert_open("victim", "after reconcile")
            });
        },
    );
}

/// Runs the hook of a device of the victim's that is one CPU list.
fn give(world: &World, standin: &Standin, list: &str) {
    let mut command = world.pinfold(&["hook", "createRuntime", "--list", list]);
    let input = state("victim", standin.pid, json!({})).to_string();
    Running::start(&mut command, input.as_bytes()).wait().ok();
}

/// A further device widens the partition, which is made anew.
fn further_list(world: &World) {
    let slice = Slice::make();
    let before = || {
        fresh(world, &["5", "6"]);
        let standin = slice.container("victim");
        give(world, &standin, "dp:5");
        let input = state("victim", standin.pid, json!({}));
        (standin, input.to_string())
    };
    let irqs_before = irqs();
    let (standin, _) = before();
    give(world, &standin, "dp:6");
    let group = standin.cgroup();
    assert_eq!(read(&group, "cpuset.cpus.partition"), "root");
    assert_eq!(read(&group, "cpuset.cpus.effective"), "5-6");
    assert_ne!(irqs(), irqs_before);
    reconcile_rest(world, &standin.die(), 0, || {
        slice.assert_open("victim", "after both")
    });
    let verb = ["hook", "createRuntime", "--list", "dp:6"];
    each_point(world, &verb, before, |standin, number| {
        reconcile_rest(world, &standin.die(), number, || {
            slice.assert_open("victim", "after reconcile")
        });
    });
}

fn end(world: &World) {
    let slice = Slice::make();
    let before = || {
        fresh(world, &["5"]);
        let group = slice.owner(world).die();
        let input = stopped("victim", json!({ "pinfold.io/pool": "dp" }));
        (group, input.to_string())
    };
    each_point(world, &["hook", "poststop"], before, |group, number| {
        reconcile_rest(world, &group, number, || {
            slice.assert_open("victim", "after reconcile")
        });
    });
}

/// `reconcile` that makes a broken partition again.
fn mending(world: &World) {
    let slice = Slice::make();
    let before = || {
        fresh(world, &["5"]);
        let standin = slice.owner(world);
        std::fs::write(standin.cgroup().join("cpuset.cpus.partition"), "member").unwrap();
        (standin, String::new())
    };
    each_point(world, &["reconcile"], before, |standin, number| {
        world.reconcile();
        assert_eq!(read(&standin.cgroup(), "cpuset.cpus.partition"), "root");
        reconcile_rest(world, &standin.die(), number, || {
            slice.assert_open("victim", "after the end")
        });
    });
}

/// `reconcile` that finds an owner dead.
fn freeing(world: &World) {
    let slice = Slice::make();
    let before = || {
        fresh(world, &["5"]);
        (slice.owner(world).die(), String::new())
    };
    each_point(world, &["reconcile"], before, |group, number| {
        reconcile_rest(world, &group, number, || {
            slice.assert_open("victim", "after reconcile")
        });
    });
}

/// `release --force` of an owner that lives on.
fn releasing(world: &World) {
    let slice = Slice::make();
    let before = || {
        fresh(world, &["5"]);
        (slice.owner(world), String::new())
    };
    let verb = ["release", "victim", "--force"];
    each_point(world, &verb, before, |standin, number| {
        world.reconcile();
        // It owns its list and nobody else is there, or all is as before.
        if world.claims().is_empty() {
            slice.assert_open("victim", "after release");
        } else {
            assert_eq!(read(&standin.cgroup(), "cpuset.cpus.partition"), "root");
        }
        reconcile_rest(world, &standin.die(), number, || {
            slice.assert_open("victim", "after the end")
        });
    });
}
