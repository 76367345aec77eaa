//! `pinfold reconcile --interval`: it waits for pools, says what changed alone, and goes on as the
//! binary that takes its place.

use crate::case::{Case, plain};
use crate::cases::killpoints_isolation::Slice;
use crate::needs::Need;
use crate::process::{Running, eventually, run};
use crate::world::{Kind, World, binary, state};
use nix::libc;
use serde_json::json;
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("intervals::it_waits_for_pools", root, it_waits_for_pools),
        plain(
            "intervals::a_problem_is_said_once_until_it_changes",
            root,
            a_problem_is_said_once_until_it_changes,
        ),
        plain(
            "intervals::a_new_binary_goes_on",
            root,
            a_new_binary_goes_on,
        ),
        plain(
            "intervals::a_swung_link_is_a_new_binary",
            root,
            a_swung_link_is_a_new_binary,
        ),
        plain(
            "intervals::a_partition_that_breaks_is_made_again",
            &[
                Need::Root,
                Need::Partitions,
                Need::Systemd,
                Need::Cpus(8),
                Need::Disposable,
            ],
            a_partition_that_breaks_is_made_again,
        ),
    ]
}

/// At once: the kernel tells of it, and the next round is far away.
fn a_partition_that_breaks_is_made_again(world: &World) {
    let slice = Slice::make();
    world.pool("dp", Kind::Exclusive, &["5", "6"]);
    run(&mut world.pinfold(&["pool", "set", "dp", "isolation=root"])).ok();
    std::fs::write(world.tasks_file("dp", "6"), "4194303").unwrap();
    let mut reconcile = world.pinfold(&["reconcile", "--interval", "3600"]);
    let running = Running::start(&mut reconcile, b"");
    eventually("the first round is over", || {
        (!running.stdout().is_empty()).then_some(())
    });
    // Its owner starts while it waits.
    let standin = slice.container("watched");
    let asked = state("watched", standin.pid, json!({ "pinfold.io/pool": "dp" }));
    world.hook("createRuntime", &asked).ok();
    let partition = standin.cgroup().join("cpuset.cpus.partition");
    let now = || std::fs::read_to_string(&partition).unwrap();
    for _ in 0..2 {
        assert_eq!(now().trim(), "root");
        // By then it waits for the kernel's word alone.
        std::thread::sleep(Duration::from_secs(5));
        std::fs::write(&partition, "member").unwrap();
        eventually("it is made again", || {
            (now().trim() == "root").then_some(())
        });
    }
    running.signal(libc::SIGTERM);
    let group = standin.die();
    world.reconcile();
    std::fs::remove_dir(group).unwrap();
}

/// The packages start it when they are installed, and pools are made later.
fn it_waits_for_pools(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    std::fs::write(world.tasks_file("dp", "1"), "4194303").unwrap();
    let away = world.dir.join("away");
    std::fs::rename(&world.conf, &away).unwrap();
    let mut reconcile = world.pinfold(&["reconcile", "--interval", "1"]);
    let running = Running::start(&mut reconcile, b"");
    let waits = || running.stderr().matches("there are no pools").count();
    eventually("it says what is missing", || (waits() == 1).then_some(()));
    // Some rounds more.
    std::thread::sleep(Duration::from_secs(3));
    std::fs::rename(&away, &world.conf).unwrap();
    eventually("the dead owner is freed", || {
        (running.stdout().lines().count() == 1).then_some(())
    });
    assert_eq!(waits(), 1, "{}", running.stderr());
    assert!(!running.stderr().contains("error"), "{}", running.stderr());
    // They are taken back: it is not in the way, and waits again.
    std::fs::remove_dir_all(&world.conf).unwrap();
    eventually("it waits again", || (waits() == 2).then_some(()));
    assert!(!world.conf.exists(), "it made a pool directory");
    running.signal(libc::SIGTERM);
}

fn a_problem_is_said_once_until_it_changes(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0"]);
    world.pool("other", Kind::Exclusive, &["1"]);
    let tasks = world.tasks_file("dp", "0");
    std::fs::write(&tasks, "no number").unwrap();
    let mut reconcile = world.pinfold(&["reconcile", "--interval", "1"]);
    let running = Running::start(&mut reconcile, b"");
    let complaints = || running.stderr().matches("dp/0").count();
    eventually("it complains", || (complaints() == 1).then_some(()));
    // A dead owner in the other pool is a change: by then it has looked again.
    for round in 0..2 {
        std::fs::write(world.tasks_file("other", "1"), "4194303").unwrap();
        eventually("the dead owner is freed", || {
            (running.stdout().lines().count() == round + 1).then_some(())
        });
    }
    assert_eq!(complaints(), 1, "{}", running.stderr());
    assert!(
        !running.stdout().contains("nothing"),
        "{}",
        running.stdout()
    );
    std::fs::write(&tasks, "still no number").unwrap();
    eventually("it complains anew", || (complaints() == 2).then_some(()));
    running.signal(libc::SIGTERM);
    std::fs::write(&tasks, "").unwrap();
}

fn a_new_binary_goes_on(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let own = world.dir.join("pinfold");
    let put = || {
        let beside = world.dir.join("pinfold.new");
        std::fs::copy(binary(), &beside).unwrap();
        std::fs::rename(&beside, &own).unwrap();
    };
    put();
    let of_world = world.pinfold(&["reconcile", "--interval", "1"]);
    let mut reconcile = std::process::Command::new(&own);
    let running = Running::start(reconcile.args(of_world.get_args()), b"");
    let runs = || std::fs::read_link(format!("/proc/{}/exe", running.pid())).ok();
    eventually("it runs", || (runs()? == own).then_some(()));
    std::fs::write(world.tasks_file("dp", "1"), "4194303").unwrap();
    eventually("it looks", || (!running.stdout().is_empty()).then_some(()));
    put();
    eventually("it says so", || {
        running.stderr().contains("was replaced").then_some(())
    });
    // The name of one that was replaced ends in (deleted).
    eventually("the new one runs", || (runs()? == own).then_some(()));
    std::fs::write(world.tasks_file("dp", "1"), "4194303").unwrap();
    eventually("it goes on", || {
        (running.stdout().lines().count() == 2).then_some(())
    });
    running.signal(libc::SIGTERM);
}

/// As `/usr/bin/pinfold` is a link to another file after an update, with the former one still
/// there.
fn a_swung_link_is_a_new_binary(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let link = world.dir.join("bin/pinfold");
    std::fs::create_dir(world.dir.join("bin")).unwrap();
    let swing = |version: &str| {
        let file = world.dir.join(version);
        std::fs::copy(binary(), &file).unwrap();
        let beside = world.dir.join("beside");
        std::os::unix::fs::symlink(&file, &beside).unwrap();
        std::fs::rename(&beside, &link).unwrap();
        file
    };
    let of_world = world.pinfold(&["reconcile", "--interval", "1"]);
    for (name, version) in [(link.clone(), "2"), ("pinfold".into(), "4")] {
        let first = swing(&format!("pinfold-{version}"));
        let mut reconcile = std::process::Command::new("env");
        let path = format!("{}:/usr/bin:/bin", world.dir.join("bin").display());
        reconcile.arg(format!("PATH={path}")).arg(&name);
        let running = Running::start(reconcile.args(of_world.get_args()), b"");
        let runs = || std::fs::read_link(format!("/proc/{}/exe", running.pid())).ok();
        eventually("it runs", || (runs()? == first).then_some(()));
        std::fs::write(world.tasks_file("dp", "1"), "4194303").unwrap();
        eventually("it looks", || (!running.stdout().is_empty()).then_some(()));
        let second = swing(&format!("pinfold-{version}-new"));
        eventually("the new one runs", || (runs()? == second).then_some(()));
        running.signal(libc::SIGTERM);
    }
}
