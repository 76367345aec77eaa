//! The shim killed at every system call, and the hook that takes its reservation over likewise: a
//! bundle's configuration is whole, the CPUs have one owner, and are free when that is gone.

use crate::case::{Case, plain};
use crate::cases::installed::Machine;
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Running, affinity};
use crate::strace::{Reached, Whose, kill_at, points, tried};
use crate::world::{Kind, Standin, World, claimed_cgroup, state};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Strace, Need::Runc, Need::Cpus(2)];
    vec![
        plain("killpoints::the_shim", needs, the_shim),
        plain("killpoints::the_hand_over", needs, the_hand_over),
        plain("killpoints::a_reservation_that_is_gone", needs, gone),
        plain(
            "killpoints::a_runtime_that_had_confined",
            needs,
            confined_and_left,
        ),
        plain("killpoints::a_runtime_that_drops_our_hooks", needs, drops),
    ]
}

/// A container's bundle, and a shim whose runtime is a script: what counts is what happens around
/// it.
struct Scene<'w> {
    world: &'w World,
    machine: Machine<'w>,
    bundle: PathBuf,
}

impl<'w> Scene<'w> {
    fn new(world: &'w World, runtime: &str) -> Scene<'w> {
        world.pool("dp", Kind::Exclusive, &["1"]);
        let engine = Engine::direct()[0];
        let machine = Machine::new(world, engine);
        let script = world.dir.join("runtime");
        std::fs::write(&script, format!("#!/bin/sh\n{runtime}\n")).expect("write a runtime");
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("chmod it");
        let config = "sed -i 's,^path = .*,path = \"'\"$1\"'\",' /etc/pinfold/config.toml";
        let script = script.to_str().expect("the path is UTF-8");
        machine.run("sh", &["-ec", config, "sh", script]).ok();
        let plan = Plan::pinned("a", "dp");
        let bundle = world.dir.join(format!("{}-{}", plan.state_dir, plan.name));
        Container::prepare_with_hooks(world, engine, plan, &[]);
        Scene {
            world,
            machine,
            bundle,
        }
    }

    fn config(&self) -> String {
        std::fs::read_to_string(self.bundle.join("config.json")).expect("read config.json")
    }

    fn create(&self) -> Command {
        let mut command = self.machine.command("/usr/local/bin/pinfold-runtime");
        command.args(["create", "-b"]).arg(&self.bundle).arg("a");
        command
    }

    /// The shim, which has reserved and become its runtime, and the reservation's nonce.
    fn reserved(&self) -> (Running, String) {
        let shim = Running::start(&mut self.create(), b"");
        process::eventually("the shim has become its runtime", || {
            let name = std::fs::read_to_string(format!("/proc/{}/comm", shim.pid())).ok()?;
            (name.trim() == "sleep").then_some(())
        });
        let claim = self.world.claim_of("a");
        assert_eq!(claim["kind"], "reservation");
        assert_eq!(self.world.tasks("dp", "1"), [shim.pid()]);
        (shim, claim["nonce"].as_str().expect("a nonce").to_owned())
    }

    fn take_over(&self, nonce: &str) -> Command {
        let stage = ["hook", "createRuntime", "--shim", "--reservation", nonce];
        self.world.pinfold(&stage)
    }
}

/// The nonce is another each time.
fn without_nonce(config: &str) -> String {
    let word = "\"--reservation\",\"";
    match config.split_once(word) {
        Some((before, rest)) => format!("{before}{word}{}", &rest[36..]),
        None => config.to_owned(),
    }
}

fn the_shim(world: &World) {
    let scene = Scene::new(world, "exit 0");
    let trace = world.dir.join("trace");
    let before = scene.config();
    // Learnt from the second run, which finds every directory made.
    process::run(&mut scene.create()).ok();
    std::fs::write(scene.bundle.join("config.json"), &before).expect("write config.json");
    let all = points(&scene.create(), Whose::Its, b"", &trace);
    let after = without_nonce(&scene.config());
    for written in ["\"cpus\":\"1\"", "KCM_CPUS_ASSIGNED=1", "--reservation"] {
        assert!(after.contains(written), "{written}: {after}");
    }
    let tried = tried(&all);
    let mut killed = 0;
    for (_, point) in &tried {
        std::fs::write(scene.bundle.join("config.json"), &before).expect("write config.json");
        killed += usize::from(kill_at(point, &scene.create(), Whose::Its, b"", &trace));
        let left = scene.config();
        assert!(
            left == before || without_nonce(&left) == after,
            "killed at {point}: {left}"
        );
        process::run(&mut scene.create()).ok();
        assert_eq!(without_nonce(&scene.config()), after, "killed at {point}");
        assert_eq!(files_of_config(&scene.bundle), 2, "killed at {point}");
    }
    let reached = Reached {
        killed,
        tried: tried.len(),
        least: 100,
        percent: 90,
    };
    reached.assert_enough("the shim");
    world.reconcile();
    world.assert_all_free("at the end");
}

/// The configuration, what is kept beside it, and whatever a death left of either.
fn files_of_config(bundle: &Path) -> usize {
    let names = std::fs::read_dir(bundle).expect("list the bundle");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    names
        .filter(|name| name.to_string_lossy().contains("config.json"))
        .count()
}

/// A container of a runtime that has confined it already, as its configuration says.
fn confined(world: &World, name: &str) -> Standin {
    let standin = Standin::new(world, name);
    cgroups::narrow(&standin.cgroup(), "1");
    standin
}

fn the_hand_over(world: &World) {
    let scene = Scene::new(world, "[ \"$1\" = create ] && exec sleep 3600");
    let trace = world.dir.join("trace");
    let input = |standin: &Standin| {
        let annotations = json!({ "pinfold.io/pool": "dp" });
        state("a", standin.pid, annotations).to_string()
    };
    let (shim, nonce) = scene.reserved();
    let standin = confined(world, "a");
    let text = input(&standin);
    let all = points(
        &scene.take_over(&nonce),
        Whose::All,
        text.as_bytes(),
        &trace,
    );
    let claim = world.claim_of("a");
    assert_eq!(
        (&claim["kind"], &claim["nonce"]),
        (&json!("container"), &Value::Null)
    );
    assert_eq!(world.tasks("dp", "1"), [standin.pid]);
    // The runtime's own end changes nothing now.
    shim.kill();
    world.reconcile();
    assert_eq!(world.tasks("dp", "1"), [standin.pid]);
    let group = standin.die();
    world.reconcile();
    world.assert_all_free("after the container's end");
    assert_ne!(cgroups::mask(&group), "1", "its group is as its parent is");

    let tried = tried(&all);
    let mut killed = 0;
    for &(number, point) in &tried {
        let (shim, nonce) = scene.reserved();
        let standin = confined(world, "a");
        let text = input(&standin);
        let command = scene.take_over(&nonce);
        killed += usize::from(kill_at(
            point,
            &command,
            Whose::All,
            text.as_bytes(),
            &trace,
        ));
        // I1: whoever has it, nobody else gets it.
        let rival = Standin::new(world, "rival");
        let annotations = json!({ "pinfold.io/pool": "dp" });
        let asked = state("rival", rival.pid, annotations);
        world.hook("prestart", &asked).exits(1);
        assert_ne!(affinity(rival.pid), "1", "killed at {point}");
        if number % 2 == 0 {
            // An engine may run the hook again.
            let again = Running::start(&mut scene.take_over(&nonce), text.as_bytes());
            again.wait().ok();
            assert_eq!(world.tasks("dp", "1"), [standin.pid], "killed at {point}");
            assert_eq!(affinity(standin.pid), "1", "killed at {point}");
        }
        // A runtime whose hook was killed fails the container.
        standin.die();
        shim.kill();
        world.hook("prestart", &asked).ok();
        assert_eq!(affinity(rival.pid), "1", "killed at {point}");
        rival.die();
        world.reconcile();
        world.assert_all_free(&format!("killed at {point}"));
    }
    let reached = Reached {
        killed,
        tried: tried.len(),
        least: 100,
        percent: 90,
    };
    reached.assert_enough("the hand-over");
}

/// It was taken from the shim: the container does not get it, nor anything else.
fn gone(world: &World) {
    let scene = Scene::new(world, "[ \"$1\" = create ] && exec sleep 3600");
    let (shim, nonce) = scene.reserved();
    process::run(&mut world.pinfold(&["release", "a", "--force"])).ok();
    world.assert_all_free("after a release by force");
    let standin = Standin::new(world, "a");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let text = state("a", standin.pid, annotations).to_string();
    let refused = Running::start(&mut scene.take_over(&nonce), text.as_bytes()).wait();
    let refused = refused.exits(1);
    let said = &refused.stderr;
    assert!(said.contains("reserved for it is gone"), "{refused}");
    assert_eq!(affinity(standin.pid), hierarchy().all_cpus());
    world.assert_all_free("after a refusal");
    shim.kill();
}

/// The runtime is killed between confining the container and running our hook: its CPUs are held
/// while anything is left in there, and the group goes back to what its parent allows.
fn confined_and_left(world: &World) {
    let scene = Scene::new(world, "[ \"$1\" = create ] && exec sleep 3600");
    let (shim, _) = scene.reserved();
    let awaited = world.claim_of("a")["awaited"].clone();
    let group = claimed_cgroup(awaited.as_str().expect("the path is known"));
    let name = group.file_name().expect("a name").to_string_lossy();
    let above = group.parent().expect("a parent");
    let above = match above.exists() {
        true => above.to_owned(),
        false => hierarchy().make(&world.tag),
    };
    hierarchy().make_inside(&above, &name);
    let left = Standin::inside(&group, &["--wait"]);
    cgroups::narrow(&group, "1");
    shim.kill();

    let rival = Standin::new(world, "rival");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let asked = state("rival", rival.pid, annotations.clone());
    world.hook("prestart", &asked).exits(1);
    assert_ne!(affinity(rival.pid), "1");
    world.reconcile();
    assert_eq!(world.tasks("dp", "1"), [left.pid], "other tools see it");
    left.die();
    world.reconcile();
    world.assert_all_free("after what was left is gone");
    assert_ne!(cgroups::mask(&group), "1", "its group is as its parent is");

    // A process of somebody else in a group of that path is not ours.
    let stranger = Standin::inside(&group, &["--wait"]);
    let (shim, _) = scene.reserved();
    assert_eq!(world.claim_of("a")["awaited"], Value::Null);
    shim.kill();
    world.reconcile();
    world.assert_all_free("beside a stranger");
    stranger.die();

    // The next start by a hook of the engine's own finds such a group, and its container alone in
    // it.
    let (shim, _) = scene.reserved();
    cgroups::narrow(&group, "1");
    shim.kill();
    let next = Standin::inside(&group, &["--wait"]);
    world
        .hook("prestart", &state("a", next.pid, annotations))
        .ok();
    assert_eq!(world.claim_of("a")["kind"], "container");
    assert_eq!(affinity(next.pid), "1");
    next.die();
    world.reconcile();
    world.assert_all_free("at the end");
    assert_ne!(cgroups::mask(&group), "1", "its group is as its parent is");
    rival.die();
}

/// A runtime that says it runs hooks, and runs none: its container is confined by its configuration
/// alone. It owns its CPUs for as long as it lives, whatever its runtime did, and `reconcile` says
/// nothing of freeing them.
fn drops(world: &World) {
    let without = "case \"$1\" in create)
            sed -i 's/\"createRuntime\"/\"other\"/; s/\"poststop\"/\"others\"/' \"$3/config.json\";;
        esac
        exec runc \"$@\"";
    let scene = Scene::new(world, without);
    process::run(&mut scene.create()).ok();
    let runc = |arguments: &[&str]| process::run(Command::new("runc").args(arguments));
    runc(&["start", "a"]).ok();
    let told: Value = serde_json::from_str(&runc(&["state", "a"]).ok().stdout).expect("JSON");
    let pid = i32::try_from(told["pid"].as_i64().expect("a pid")).expect("a pid");
    assert_eq!(affinity(pid), "1");
    assert_eq!(world.claim_of("a")["kind"], "reservation", "no hook came");

    // The second look finds it as the first has left it.
    for _ in 0..2 {
        let ran = world.reconcile();
        assert!(!ran.stdout.contains("freed 1"), "{ran}");
        assert_eq!(world.tasks("dp", "1"), [pid], "other tools see it");
        assert_eq!(world.claims_of("a").len(), 1);
    }
    let rival = Standin::new(world, "rival");
    let asked = state("rival", rival.pid, json!({ "pinfold.io/pool": "dp" }));
    world.hook("prestart", &asked).exits(1);
    let released = process::run(&mut world.pinfold(&["release", "a"])).exits(1);
    assert!(released.stderr.contains("--force"), "{released}");

    runc(&["delete", "--force", "a"]).ok();
    let ran = world.reconcile();
    assert!(ran.stdout.contains("freed 1"), "{ran}");
    world.assert_all_free("after the container's end");
    rival.die();
}
