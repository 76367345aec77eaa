//! I3 when the runtime itself is killed in the middle of create: nobody calls poststop, and the
//! cgroup stays behind with our mask in it.

use crate::case::{Case, each};
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::{Driver, Engine};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, is_alive};
use crate::world::{Kind, World, claimed_cgroup};
use nix::libc;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let mut cases = each(
        Engine::all(),
        "wreckage::reconcile_restores",
        two,
        reconcile_restores,
    );
    cases.extend(each(
        Engine::direct(),
        "wreckage::next_create_is_right",
        two,
        next_create_is_right,
    ));
    cases
}

/// Without a request the next container of that path is not narrowed by what was left.
fn reconcile_restores(world: &World, engine: Engine) {
    world.pool("zero", Kind::Exclusive, &["0"]);
    let (_wrecked, leftover) = wreck(world, engine);
    world.reconcile();
    world.assert_all_free("after reconcile");
    assert!(
        !leftover.exists() || cgroups::mask(&leftover) == hierarchy().unnarrowed(),
        "the mask is given back"
    );
    let next = Container::up(
        world,
        engine,
        Plan {
            cgroup: Some("again".into()),
            ..Plan::plain("b")
        },
    );
    assert_eq!(next.affinity(), hierarchy().all_cpus());
}

/// The next container of that path gets what it asks for, and not what was left.
fn next_create_is_right(world: &World, engine: Engine) {
    world.pool("zero", Kind::Exclusive, &["0"]);
    world.pool("one", Kind::Exclusive, &["1"]);
    let (_wrecked, leftover) = wreck(world, engine);
    let next = Container::up(
        world,
        engine,
        Plan {
            cgroup: Some("again".into()),
            ..Plan::pinned("b", "one")
        },
    );
    assert_eq!(next.affinity(), "1");
    next.assert_confined_to("1");
    world.reconcile();
    next.assert_confined_to("1");
    assert_eq!(
        (world.tasks("zero", "0"), world.tasks("one", "1")),
        (vec![], vec![next.pid()])
    );
    assert_eq!(
        world.claims().len(),
        1,
        "the claim that was superseded is gone"
    );
    next.end_by("TERM");
    next.delete();
    world.assert_all_free("after the next one's delete");
    assert!(!leftover.exists() || cgroups::mask(&leftover) == hierarchy().unnarrowed());
}

/// Begins a container in pool `zero`, kills its runtime while a hook after ours is under way, and
/// gives what is left: the container that never came to be, and its cgroup.
fn wreck(world: &World, engine: Engine) -> (Container<'_>, PathBuf) {
    let (fifo, note) = (world.dir.join("fifo"), world.dir.join("runtime-pid"));
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).expect("make a fifo");
    let script = "echo $PPID > \"$0.new\" && mv \"$0.new\" \"$0\" && read line < \"$1\"";
    let hook = [
        "/bin/sh",
        "-c",
        script,
        note.to_str().unwrap(),
        fifo.to_str().unwrap(),
    ]
    .map(String::from);
    let plan = Plan {
        later_hook: Some(hook.into()),
        cgroup: Some("again".into()),
        ..Plan::pinned("a", "zero")
    };

    let container = Container::prepare(world, engine, plan);
    let creating = container.creating();
    let runtime = process::eventually("the hook after ours runs", || {
        std::fs::read_to_string(&note)
            .ok()?
            .trim()
            .parse::<i32>()
            .ok()
    });
    let claim = world.claim_of(&container.id());
    let pid = claim["processes"][0]["pid"]
        .as_i64()
        .expect("a claim names its process") as i32;
    let cgroup = claimed_cgroup(
        claim["cgroup"]["path"]
            .as_str()
            .expect("a claim names its cgroup"),
    );
    assert_eq!(
        (world.tasks("zero", "0"), cgroups::mask(&cgroup)),
        (vec![pid], "0".into())
    );

    process::send(runtime, libc::SIGKILL);
    process::eventually("the runtime is dead", || (!is_alive(runtime)).then_some(()));
    let writer = process::eventually("the hook waits at the fifo", || {
        let mut options = std::fs::OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        options.open(&fifo).ok()
    });
    drop(writer);
    creating.wait();
    process::eventually("the container's process dies with its runtime", || {
        (!is_alive(pid)).then_some(())
    });
    if engine.driver == Driver::Cgroupfs {
        assert_eq!(
            cgroups::mask(&cgroup),
            "0",
            "{} is left with our mask in it",
            cgroup.display()
        );
    }
    (container, cgroup)
}
