//! SIGKILL at every system call of a start and an end that keep everybody else off, and interrupts
//! away: whatever is left of it, the next `reconcile` puts back, as does the end of the owner.

use crate::case::{Case, plain};
use crate::cases::killpoints::{each_point, reconcile_rest};
use crate::cases::killpoints_irqs::irqs;
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
        Need::Cpus(8),
        Need::Disposable,
    ];
    vec![
        plain("killpoints_isolation::start", needs, start),
        plain("killpoints_isolation::further_list", needs, further_list),
        plain("killpoints_isolation::end", needs, end),
    ]
}

/// A slice of pinned containers alone, where any kernel that has partitions keeps them.
struct Slice {
    path: PathBuf,
    /// Which CPUs interrupts go to while nobody has any.
    irqs: BTreeMap<PathBuf, String>,
}

impl Slice {
    fn make() -> Slice {
        let root = &hierarchy().root;
        std::fs::write(root.join("cgroup.subtree_control"), "+cpuset").unwrap();
        let path = root.join("pinfold.slice");
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(path.join("cgroup.subtree_control"), "+cpuset").unwrap();
        Slice { path, irqs: irqs() }
    }

    fn container(&self, name: &str) -> Standin {
        let group = self.path.join(name);
        if !group.exists() {
            hierarchy().make_inside(&self.path, name);
        }
        Standin::inside(&group, &["--wait"])
    }

    /// Nobody is kept off, whatever is left of the owner's group.
    fn assert_open(&self, name: &str, when: &str) {
        let read = |path: &Path, file: &str| {
            let text = std::fs::read_to_string(path.join(file)).unwrap_or_default();
            text.trim().to_owned()
        };
        let group = self.path.join(name);
        assert_eq!(read(&self.path, "cpuset.cpus.exclusive"), "", "{when}");
        assert_eq!(read(&group, "cpuset.cpus.exclusive"), "", "{when}");
        let partition = read(&group, "cpuset.cpus.partition");
        assert!(["", "member"].contains(&&*partition), "{when}: {partition}");
        let all = read(&hierarchy().root, "cpuset.cpus.effective");
        assert_eq!(all, "0-7", "{when}");
        assert_eq!(irqs(), self.irqs, "{when}");
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.path);
    }
}

fn fresh(world: &World, lists: &[&str]) {
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
    let (standin, _) = before();
    give(world, &standin, "dp:6");
    let read = |file: &str| {
        let text = std::fs::read_to_string(standin.cgroup().join(file)).unwrap();
        text.trim().to_owned()
    };
    assert_eq!(read("cpuset.cpus.partition"), "root");
    assert_eq!(read("cpuset.cpus.effective"), "5-6");
    assert_ne!(irqs(), slice.irqs);
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
        let standin = slice.container("victim");
        let state = state("victim", standin.pid, json!({ "pinfold.io/pool": "dp" }));
        world.hook("createRuntime", &state).ok();
        let group = standin.die();
        let partition = std::fs::read_to_string(group.join("cpuset.cpus.partition"));
        assert_eq!(partition.unwrap().trim(), "root");
        assert_ne!(irqs(), slice.irqs);
        let input = stopped("victim", json!({ "pinfold.io/pool": "dp" }));
        (group, input.to_string())
    };
    each_point(world, &["hook", "poststop"], before, |group, number| {
        reconcile_rest(world, &group, number, || {
            slice.assert_open("victim", "after reconcile")
        });
    });
}
