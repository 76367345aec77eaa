//! I2 and its counterpart: never freed early, always freed late, whatever shape an owner takes.

use crate::case::{Case, each, plain};
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Running, is_alive, start_time};
use crate::strace;
use crate::world::{Kind, Standin, World, state, stopped};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use serde_json::{Value, json};
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::{Duration, SystemTime};

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let root = &[Need::Root, Need::Cpus(2)];
    let mut cases = each(
        Engine::direct(),
        "owners::leader_thread_exits",
        two,
        leader_thread_exits,
    );
    cases.extend(each(
        Engine::direct(),
        "owners::descendant_outlives_the_first",
        two,
        descendant_outlives,
    ));
    cases.push(plain(
        "owners::survivor_after_poststop",
        root,
        survivor_after_poststop,
    ));
    cases.push(plain(
        "owners::survivor_in_a_child_cgroup",
        root,
        survivor_in_a_child_cgroup,
    ));
    cases.push(plain(
        "owners::survivor_below_the_cgroup_of_the_next",
        root,
        survivor_below_the_next,
    ));
    cases.push(plain("owners::pid_in_use_again", root, pid_in_use_again));
    cases.push(plain("owners::other_tools_pid", root, other_tools_pid));
    cases.push(plain(
        "owners::books_with_a_time_before_the_boot",
        root,
        books_with_a_time_before_the_boot,
    ));
    cases.push(plain("owners::lock_is_replaced", root, lock_is_replaced));
    cases.push(plain(
        "owners::lock_is_replaced_beside_another_of_its_number",
        root,
        number_of_another,
    ));
    cases.push(plain(
        "owners::groups_too_deep_to_name",
        &[Need::Root, Need::Cpus(2), Need::Python3],
        groups_too_deep_to_name,
    ));
    let traced = &[Need::Root, Need::Strace, Need::Cpus(2)];
    cases.push(plain(
        "owners::process_that_joins_while_being_freed",
        traced,
        joins_while_being_freed,
    ));
    cases
}

fn request() -> Value {
    json!({ "pinfold.io/pool": "dp" })
}

/// Nobody else gets list 1, in any of the ways that could free it.
#[track_caller]
fn assert_still_held(world: &World, id: &str) {
    world.reconcile();
    world.hook("poststop", &stopped(id, request())).ok();
    let rival = Standin::new(world, "rival");
    let refused = world
        .hook("prestart", &state("rival", rival.pid, request()))
        .exits(1);
    assert!(refused.stderr.contains("exhausted"), "{refused}");
    assert_eq!(
        rival.mask(),
        hierarchy().unnarrowed(),
        "a refused container is left as it was"
    );
    assert_eq!(world.claims_of(id).len(), 1, "the owner keeps its claim");
    assert_eq!(world.tasks("dp", "1").len(), 1, "other tools see an owner");
}

/// The list can be had, and is all free afterwards.
#[track_caller]
fn assert_free_when_needed(world: &World) {
    let next = Standin::new(world, "next");
    world
        .hook("prestart", &state("next", next.pid, request()))
        .ok();
    assert_eq!(
        (world.tasks("dp", "1"), next.mask()),
        (vec![next.pid], "1".into())
    );
    next.die();
    world.reconcile();
    world.assert_all_free("after everybody is gone");
}

fn leader_thread_exits(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(
        world,
        engine,
        Plan::pinned("a", "dp").doing(&["--threads", "2"]),
    );
    let pid = world.tasks("dp", "1")[0];
    process::eventually("the leader is a zombie whose threads run", || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        (status.contains("State:\tZ") && status.contains("Threads:\t3")).then_some(())
    });
    assert_still_held(world, "a");
    assert_eq!(world.tasks("dp", "1"), [pid]);
    // The runtime takes the container for dead, and may remove all of it but the threads.
    container.delete_by_force();
    if is_alive(pid) {
        assert_still_held(world, "a");
        process::send(pid, libc::SIGKILL);
    }
    process::eventually("the threads are gone", || (!is_alive(pid)).then_some(()));
    assert_free_when_needed(world);
}

fn descendant_outlives(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan {
        own_pids: false,
        ..Plan::pinned("a", "dp").doing(&["--orphan", "--exit", "0"])
    };
    let container = Container::up(world, engine, plan);
    container.seen("orphan: ");
    let pid = world.claim_of("a")["processes"][0]["pid"].as_i64().unwrap() as i32;
    process::eventually("the first process is gone", || {
        (!is_alive(pid)).then_some(())
    });
    assert_still_held(world, "a");
    let heir = world.tasks("dp", "1")[0];
    assert_ne!(
        heir, pid,
        "the survivor takes the place of the first in tasks"
    );
    assert_eq!(process::affinity(heir), "1");
    process::send(heir, libc::SIGKILL);
    process::eventually("the descendant is gone", || (!is_alive(heir)).then_some(()));
    assert_free_when_needed(world);
    container.delete().ok();
    world.assert_all_free("after a late delete");
}

fn survivor_after_poststop(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let cgroup = Standin::survived(world, "a", "dp");
    assert_still_held(world, "a");
    let survivors = cgroups::processes(&cgroup);
    assert_eq!(world.tasks("dp", "1"), survivors);
    survivors
        .iter()
        .for_each(|&pid| process::send(pid, libc::SIGKILL));
    process::eventually("the survivor is gone", || {
        cgroups::processes(&cgroup).is_empty().then_some(())
    });
    world.hook("poststop", &stopped("a", request())).ok();
    world.assert_all_free("after the last process");
    assert_eq!(cgroups::mask(&cgroup), hierarchy().unnarrowed());
}

/// An owner that moved its descendant into a cgroup below its own.
fn survivor_in_a_child_cgroup(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let cgroup = Standin::survived(world, "a", "dp");
    let survivor = cgroups::processes(&cgroup)[0];
    let child = hierarchy().make_inside(&cgroup, "child");
    cgroups::enter(&child, survivor);
    assert_still_held(world, "a");
    process::send(survivor, libc::SIGKILL);
    process::eventually("the survivor is gone", || {
        cgroups::processes(&cgroup).is_empty().then_some(())
    });
    std::fs::remove_dir(&child).expect("remove the child cgroup");
    assert_free_when_needed(world);
}

/// Another container gets the cgroup while a descendant of the first lives on below it, on the
/// first one's CPUs.
fn survivor_below_the_next(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("zero", Kind::Exclusive, &["0"]);
    let cgroup = Standin::survived(world, "a", "dp");
    let survivor = cgroups::processes(&cgroup)[0];
    cgroups::enter(&hierarchy().make_inside(&cgroup, "child"), survivor);
    let next = Standin::inside(&cgroup, &["--wait"]);
    world.hook(
        "prestart",
        &state("b", next.pid, json!({ "pinfold.io/pool": "zero" })),
    );
    let rival = Standin::new(world, "rival");
    let ran = world.hook("prestart", &state("rival", rival.pid, request()));
    let (owns, cpus) = (ran.code() == Some(0), process::affinity(survivor));
    assert!(
        !owns || cpus == "0",
        "the list was given away, and a process of its owner runs on {cpus}"
    );
}

/// The owner's number is given to a process that has nothing to do with it.
fn pid_in_use_again(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::new(world, "a");
    world
        .hook("prestart", &state("a", owner.pid, request()))
        .ok();
    let (pid, started) = (owner.pid, start_time(owner.pid));
    assert_eq!(world.tasks("dp", "1"), [pid]);
    let cgroup = owner.die();
    let stranger = process::eventually("a stranger with the owner's number", || {
        let stranger = process::probe_with_pid(crate::probe::path(), pid)?;
        (start_time(stranger.0) != started).then_some(stranger)
    });
    assert!(is_alive(pid));
    world.reconcile();
    world.assert_all_free("after reconcile, though a process has the owner's number");
    assert_eq!(cgroups::mask(&cgroup), hierarchy().unnarrowed());
    assert_eq!(
        process::affinity(stranger.0),
        hierarchy().all_cpus(),
        "the stranger is left alone"
    );
    assert_free_when_needed(world);
}

/// Its cgroup was empty when `reconcile` looked, and is not when it comes to be removed: a command
/// that forks, and is slow to enter the cgroup that `isolate` made for it before it was killed,
/// does just this.
fn joins_while_being_freed(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::bare();
    world
        .hook("prestart", &state("late-joiner", owner.pid, request()))
        .ok();
    let cgroup = owner.die();
    let joiner = Standin::bare();
    let trace = world.dir.join("trace");
    let slowly = ["-einject=rmdir:delay_enter=2000000:when=1".to_owned()];
    let mut reconcile = strace::under(&world.pinfold(&["reconcile"]), &slowly, &trace);
    let reconcile = Running::start(&mut reconcile, b"");
    process::eventually("reconcile is about to remove the cgroup", || {
        std::fs::read_to_string(&trace)
            .ok()?
            .contains("rmdir(")
            .then_some(())
    });
    cgroups::enter(&cgroup, joiner.pid);
    reconcile.wait();
    assert_eq!(process::affinity(joiner.pid), "1", "it joined in time");
    assert_still_held(world, "late-joiner");
    joiner.die();
    assert_free_when_needed(world);
    assert!(!cgroup.exists(), "{} is removed", cgroup.display());
}

/// A pid without a claim was written by another tool: it holds the list while its process exists.
fn other_tools_pid(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.reconcile();
    let mut command = Command::new(crate::probe::path());
    let other = Running::start(command.arg("--wait"), b"");
    for text in [
        format!("{}", other.pid()),
        format!(" {} ,,", other.pid()),
        format!("{}\n", other.pid()),
    ] {
        std::fs::write(world.tasks_file("dp", "1"), &text).expect("write tasks");
        world.reconcile();
        let rival = Standin::new(world, "rival");
        let refused = world
            .hook("prestart", &state("rival", rival.pid, request()))
            .exits(1);
        assert!(
            refused.stderr.contains("exhausted"),
            "tasks hold {text:?}: {refused}"
        );
        let left = std::fs::read_to_string(world.tasks_file("dp", "1")).expect("read tasks");
        assert!(
            left.contains(&other.pid().to_string()),
            "the other tool's pid was lost: {left:?}"
        );
    }
    other.kill();
    assert_free_when_needed(world);
}

/// A process that lives keeps its list, whatever time somebody gives the file: `reboot` has those
/// from before a boot.
fn books_with_a_time_before_the_boot(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let mut command = Command::new(crate::probe::path());
    let living = Running::start(command.arg("--wait"), b"");
    write_before_the_boot(world, living.pid());
    let rival = Standin::new(world, "rival");
    let refused = world
        .hook("prestart", &state("rival", rival.pid, request()))
        .exits(1);
    assert!(refused.stderr.contains("exhausted"), "{refused}");
    world.reconcile();
    assert_eq!(world.tasks("dp", "1"), [living.pid()]);
    living.kill();
    assert_free_when_needed(world);
}

/// Who is in no group that a path can name, is nobody; and who is in one, is somebody.
fn groups_too_deep_to_name(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let cgroup = Standin::survived(world, "a", "dp");
    let survivor = cgroups::processes(&cgroup)[0];
    let script = "import os, sys\n\
                  fd = os.open(sys.argv[1], os.O_RDONLY)\n\
                  for _ in range(25):\n    \
                      os.mkdir('n' * 250, dir_fd=fd)\n    \
                      fd = os.open('n' * 250, os.O_RDONLY, dir_fd=fd)\n";
    let mut python = Command::new("python3");
    process::run(python.args(["-c", script]).arg(&cgroup)).ok();
    assert_still_held(world, "a");
    process::send(survivor, libc::SIGKILL);
    process::eventually("the survivor is gone", || {
        (!is_alive(survivor)).then_some(())
    });
    world.reconcile();
    world.assert_all_free("after the last process is gone");
    let script = "import os, sys\n\
                  fds = [os.open(sys.argv[1], os.O_RDONLY)]\n\
                  for _ in range(25):\n    \
                      fds.append(os.open('n' * 250, os.O_RDONLY, dir_fd=fds[-1]))\n\
                  for fd in fds[-2::-1]:\n    \
                      os.rmdir('n' * 250, dir_fd=fd)\n";
    let mut python = Command::new("python3");
    process::run(python.args(["-c", script]).arg(&cgroup)).ok();
}

/// The `lock` is replaced while one owner lives and another is dead: the books are taken over, and
/// no list has two owners.
fn lock_is_replaced(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let owner = |name| {
        let owner = Standin::new(world, name);
        let start = state(name, owner.pid, request());
        world.hook("prestart", &start).ok();
        owner
    };
    let (living, dead) = (owner("living"), owner("dead"));
    dead.die();
    let former = world.hold_lock();
    let new = world.conf.join("lock.new");
    std::fs::write(&new, "").expect("make another lock");
    std::fs::rename(&new, world.conf.join("lock")).expect("replace the lock");
    let refused = Standin::new(world, "refused");
    let refused = world
        .hook("prestart", &state("refused", refused.pid, request()))
        .exits(1);
    assert!(
        refused.stderr.contains("still uses the former one"),
        "{refused}"
    );
    let checked = process::run(&mut world.pinfold(&["check"]));
    assert!(checked.stdout.contains("was replaced since"), "{checked}");
    drop(former);
    let next = owner("next");
    let full = Standin::new(world, "full");
    let full = world
        .hook("prestart", &state("full", full.pid, request()))
        .exits(1);
    assert!(full.stderr.contains("exhausted"), "{full}");
    assert_ne!(living.mask(), next.mask());
    living.die();
    next.die();
    world.reconcile();
    world.assert_all_free("after everybody is gone");
}

/// On every tmpfs there is an inode of the former lock's number: whoever holds that one does not
/// use the former lock.
fn number_of_another(world: &World) {
    let memory = |name: &str| {
        let path = world.dir.join(name);
        std::fs::create_dir_all(&path).expect("make a directory");
        let mount = ["-t", "tmpfs", "-o", "mode=0755", "none"];
        process::run(Command::new("mount").args(mount).arg(&path)).ok();
        path
    };
    let (conf, other) = (memory("conf"), memory("other"));
    std::fs::write(conf.join("lock"), "").expect("make the lock");
    std::fs::create_dir(conf.join("pools")).expect("make pools");
    world.pool("dp", Kind::Exclusive, &["1"]);
    let number = |path: &std::path::Path| path.metadata().expect("look at a file").ino();
    let former = number(&conf.join("lock"));
    let held = (0..100)
        .map(|name| other.join(name.to_string()))
        .find(|path| {
            std::fs::write(path, "").expect("make a file");
            number(path) == former
        });
    let held = std::fs::File::open(held.expect("a file of that number")).expect("open it");
    let held = Flock::lock(held, FlockArg::LockExclusive).map_err(|(_, errno)| errno);
    let start = |name: &str| {
        let owner = Standin::new(world, name);
        let ran = world.hook("prestart", &state(name, owner.pid, request()));
        ran.ok();
        owner
    };
    let first = start("first");
    first.die();
    std::fs::write(conf.join("new"), "").expect("make another lock");
    std::fs::rename(conf.join("new"), conf.join("lock")).expect("replace the lock");
    start("next").die();
    drop(held.expect("hold it"));
    world.reconcile();
    world.assert_all_free("after everybody is gone");
}

fn write_before_the_boot(world: &World, pid: i32) {
    let tasks = world.tasks_file("dp", "1");
    std::fs::write(&tasks, pid.to_string()).expect("write tasks");
    let file = std::fs::File::options()
        .write(true)
        .open(&tasks)
        .expect("open tasks");
    file.set_modified(boot_time() - Duration::from_secs(3600))
        .expect("date tasks back");
}

fn boot_time() -> SystemTime {
    let stat = std::fs::read_to_string("/proc/stat").expect("read /proc/stat");
    let seconds = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime ")?.parse().ok());
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.expect("btime is there"))
}
