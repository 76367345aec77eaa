//! `pinfold noise` names who else runs on owned CPUs, and leaves nothing behind in the kernel.

use crate::case::{Case, each, plain};
use crate::cases::isolation::bears_siblings;
use crate::cgroups::hierarchy;
use crate::engines::{Door, Driver, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran, Running, eventually};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let mut cases = vec![
        plain("noise::a_neighbour_is_named", root, neighbour),
        plain("noise::a_neighbour_is_sampled", root, sampled),
        plain("noise::others_are_hidden", root, others_are_hidden),
        plain("noise::however_others_trace", root, however_others_trace),
        plain("noise::nobody_else", root, nobody_else),
        plain("noise::shared_pools_by_name_alone", root, shared_by_name),
        plain("noise::options_of_other_pools", root, options_of_others),
        plain("noise::nothing_to_measure", root, nothing_to_measure),
        plain("noise::killed_leaves_nothing", root, killed),
    ];
    let needs = &[
        Need::Partitions,
        Need::Systemd,
        Need::Cpus(8),
        Need::Disposable,
    ];
    let services = [Client::Podman, Client::Docker, Client::Cri].map(|client| {
        let all = Service::all(client, Door::Hooks).into_iter();
        let systemd = all.filter(|service| service.driver == Driver::Systemd);
        systemd.collect::<Vec<Service>>()
    });
    for services in Service::groups(services.concat()) {
        cases.extend(each(
            services,
            "noise::isolation_keeps_everybody_off",
            needs,
            isolated,
        ));
    }
    cases
}

/// What the burners of this run are called: others may test here.
fn called() -> String {
    format!("nb{}", std::process::id())
}

/// The probe, busy on one CPU, or on any.
fn burner(world: &World, cpus: &[usize]) -> Running {
    let program = world.dir.join(called());
    if !program.exists() {
        std::fs::copy(crate::probe::path(), &program).expect("copy the probe");
    }
    let mut command = Command::new(program);
    command.arg("--burn");
    if !cpus.is_empty() {
        process::under_mask(&mut command, cpus);
    }
    Running::start(&mut command, b"")
}

/// A busy owner of CPU 1.
fn busy_owner(world: &World) -> Standin {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::running(world, "owner", &["--burn"]);
    let request = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("owner", owner.pid, request))
        .ok();
    owner
}

fn document(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran}"))
}

/// The row of the burner, which is alone with its name and in another cgroup than the owner.
#[track_caller]
fn burner_in(document: &Value) -> &Value {
    let rows = document["foreign"].as_array().expect("a list");
    let mut rows = rows.iter().filter(|row| row["name"] == called().as_str());
    let row = rows.next().unwrap_or_else(|| panic!("{document}"));
    assert!(rows.next().is_none(), "{document}");
    row
}

fn neighbour(world: &World) {
    let owner = busy_owner(world);
    let burner = burner(world, &[1]);
    let line = ["noise", "owner", "--seconds", "1", "--json"];
    let ran = process::run(&mut world.pinfold(&line)).exits(1);
    let told = document(&ran);
    assert_eq!(told["means"], "trace", "{ran}");
    assert_eq!(told["lostEvents"], 0, "{told}");
    assert_eq!(told["cpus"], "1");
    let row = burner_in(&told);
    assert_eq!(row["tid"], burner.pid(), "{told}");
    assert_eq!(row["cpus"], "1");
    let seconds = row["seconds"].as_f64().expect("a number");
    assert!((0.05..=1.5).contains(&seconds), "{row}");
    let group = hierarchy().of(burner.pid());
    let path = row["cgroup"].as_str().expect("a cgroup");
    assert!(group.ends_with(path.trim_start_matches('/')), "{row}");
    let interrupts = told["interrupts"].as_array().expect("a list");
    assert!(!interrupts.is_empty(), "{told}");

    // People get a table that fits the line.
    let line = ["noise", "dp", "--seconds", "0.5"];
    let ran = process::run(&mut world.pinfold(&line)).exits(1);
    assert!(ran.stdout.contains("FOREIGN"), "{ran}");
    assert!(ran.stdout.contains("of others ran there, for "), "{ran}");
    let widest = ran.stdout.lines().map(|line| line.chars().count()).max();
    assert!(widest <= Some(80), "{ran}");
    assert_eq!(ran.stderr, "", "progress is for terminals");
    assert_eq!(instances(), Vec::<String>::new());
    burner.kill();
    owner.die();
}

/// The trace that all share shows its lines in another form, and drops what is new.
fn however_others_trace(world: &World) {
    let owner = busy_owner(world);
    let burner = burner(world, &[1]);
    let dir = world.dir.join("tracefs");
    std::fs::create_dir(&dir).expect("make the directory");
    let kind = Some("tracefs");
    mount(kind, &dir, kind, MsFlags::empty(), None::<&str>).expect("mount tracefs");
    let set = |option: &str| std::fs::write(dir.join("trace_options"), option);
    let was_set = set("raw").and(set("nooverwrite"));
    let ran = process::run(&mut world.pinfold(&["noise", "owner", "--seconds", "1", "--json"]));
    let was_put_back = set("noraw").and(set("overwrite"));
    umount(&dir).expect("unmount it");
    was_set.and(was_put_back).expect("set the options");
    let told = document(&ran.exits(1));
    assert_eq!(
        (&told["means"], &told["lostEvents"]),
        (&json!("trace"), &json!(0))
    );
    assert_eq!(burner_in(&told)["tid"], burner.pid(), "{told}");
    burner.kill();
    owner.die();
}

/// Without a trace `/proc` tells it, and that is said.
fn sampled(world: &World) {
    let owner = busy_owner(world);
    let burner = burner(world, &[1]);
    let noise = world.pinfold(&["noise", "--seconds", "1", "--json"]);
    let script = "mount -t tmpfs none /sys/kernel/tracing && \
                  exec setpriv --bounding-set=-sys_admin \"$@\"";
    let mut without = Command::new("unshare");
    without.args(["--mount", "sh", "-c", script, "sh"]);
    without.arg(noise.get_program()).args(noise.get_args());
    let ran = process::run(&mut without).exits(1);
    let told = document(&ran);
    assert_eq!(told["means"], "samples", "{ran}");
    assert!(told["whyNoTrace"].is_string(), "{ran}");
    assert!(ran.stderr.contains("there is no trace: "), "{ran}");
    let row = burner_in(&told);
    assert_eq!(row["tid"], burner.pid(), "{told}");
    let seconds = row["seconds"].as_f64().expect("a number");
    assert!((0.05..=1.5).contains(&seconds), "{row}");
    burner.kill();
    owner.die();
}

/// Whoever is not shown would count as absent: where `/proc` hides others nothing is told, with a
/// trace or without one.
fn others_are_hidden(world: &World) {
    let owner = busy_owner(world);
    let burner = burner(world, &[1]);
    let noise = world.pinfold(&["noise", "--seconds", "0.2"]);
    let ways = [
        (
            &["--pid", "--fork", "--mount-proc"][..],
            "",
            "a pid namespace",
        ),
        (&["--mount"], "mount -t tmpfs none /proc && ", "no procfs"),
        // Root sees all by this capability, or as one of the group 0.
        (
            &["--mount"],
            "mount -t proc -o hidepid=2 none /proc && \
             set -- setpriv --regid 65534 --clear-groups --bounding-set=-sys_ptrace \"$@\" && ",
            "(hidepid)",
        ),
    ];
    for (flags, before, said) in ways {
        for rights in ["", "setpriv --bounding-set=-sys_admin "] {
            let mut hidden = Command::new("unshare");
            let script = format!("{before}exec {rights}\"$@\"");
            hidden.args(flags).args(["sh", "-c", &script, "sh"]);
            hidden.arg(noise.get_program()).args(noise.get_args());
            let ran = process::run(&mut hidden).exits(125);
            assert!(ran.stderr.contains("does not show everybody"), "{ran}");
            assert!(ran.stderr.contains(said), "{ran}");
            assert_eq!(ran.stdout, "", "{ran}");
        }
    }
    process::run(&mut world.pinfold(&["noise", "--seconds", "0.2"])).exits(1);
    burner.kill();
    owner.die();
}

/// An owner without a cgroup is known by its process: what descends from it is its own, also what
/// comes and goes. Everybody descends from process 1.
fn nobody_else(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    std::fs::write(world.tasks_file("dp", "1"), "1").expect("write tasks");
    let mut children = Command::new("sh");
    children.args(["-c", "while :; do /bin/true; done"]);
    process::under_mask(&mut children, &[1]);
    let children = Running::start(&mut children, b"");
    let line = ["noise", "pid:1", "--seconds", "1", "--json"];
    let ran = process::run(&mut world.pinfold(&line)).ok();
    let told = document(&ran);
    assert_eq!(told["foreign"], json!([]), "{ran}");
    assert_eq!(told["means"], "trace", "{ran}");
    let threads = told["kernelThreads"].as_array().expect("a list");
    assert!(!threads.is_empty(), "{told}");
    let line = ["noise", "--seconds", "0.5"];
    let ran = process::run(&mut world.pinfold(&line)).ok();
    let verdict = "Nobody but the owners and the kernel ran there.\n";
    assert!(ran.stdout.ends_with(verdict), "{ran}");
    children.kill();
}

/// On the CPUs of a shared pool somebody else runs by design.
fn shared_by_name(world: &World) {
    world.pool("common", Kind::Shared, &["0"]);
    let common = Standin::running(world, "common", &["--burn"]);
    let request = json!({ "pinfold.io/pool": "common" });
    world
        .hook("prestart", &state("common", common.pid, request))
        .ok();
    let ran = process::run(&mut world.pinfold(&["noise"])).exits(125);
    assert!(ran.stderr.contains("of an exclusive pool: "), "{ran}");
    let cpus = |line: &[&str]| {
        let line = [&["noise", "--seconds", "0.1", "--json"], line].concat();
        document(&process::run(&mut world.pinfold(&line)))["cpus"].clone()
    };
    assert_eq!(cpus(&["common"]), "0");
    let owner = busy_owner(world);
    assert_eq!(cpus(&[]), "1");
    owner.die();
    common.die();
}

/// An option that cannot be read keeps nobody's CPUs from being known.
fn options_of_others(world: &World) {
    world.pool("other", Kind::Exclusive, &["0"]);
    let owner = busy_owner(world);
    for pool in ["other", "dp"] {
        let option = world.conf.join("pools").join(pool).join("irqs");
        std::fs::write(&option, "keep").expect("write the option");
        let anybody = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&option, anybody).expect("let anybody write it");
        let line = ["noise", "dp", "--seconds", "0.1", "--json"];
        let ran = process::run(&mut world.pinfold(&line));
        assert!(matches!(ran.code(), Some(0 | 1)), "{ran}");
        assert_eq!(document(&ran)["cpus"], "1", "{ran}");
        std::fs::remove_file(&option).expect("remove it");
    }
    owner.die();
}

fn nothing_to_measure(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    for (line, said) in [
        (&["noise"][..], "nobody owns CPUs of an exclusive pool"),
        (&["noise", "dp"], "nobody owns CPUs of \"dp\""),
        (&["noise", "who"], "no owner is called \"who\""),
    ] {
        let ran = process::run(&mut world.pinfold(line)).exits(125);
        assert!(ran.stderr.contains(said), "{ran}");
    }
    process::run(&mut world.pinfold(&["noise", "--seconds", "0"])).exits(2);
    assert_eq!(instances(), Vec::<String>::new());
}

/// By a signal it takes its trace back itself; killed, its watcher does; and where both are killed,
/// whoever looks next.
fn killed(world: &World) {
    let owner = busy_owner(world);
    let begin = || {
        let noise = Running::start(&mut world.pinfold(&["noise", "--seconds", "600"]), b"");
        eventually("it traces", || (instances().len() == 1).then_some(()));
        noise
    };
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let noise = begin();
        noise.signal(signal);
        assert_eq!(noise.wait().signal(), Some(signal));
        assert_eq!(instances(), Vec::<String>::new(), "signal {signal}");
    }
    // A signal that it was told to ignore ends it not.
    let noise = world.pinfold(&["noise", "--seconds", "600"]);
    let mut deaf = Command::new("sh");
    deaf.args(["-c", "trap '' INT && exec \"$@\"", "sh"]);
    let noise = Running::start(deaf.arg(noise.get_program()).args(noise.get_args()), b"");
    eventually("it traces", || (instances().len() == 1).then_some(()));
    noise.signal(libc::SIGINT);
    assert!(!noise.ends_within(Duration::from_millis(500)));
    noise.signal(libc::SIGTERM);
    assert_eq!(noise.wait().signal(), Some(libc::SIGTERM));

    begin().kill();
    eventually("the watcher removes it", || {
        instances().is_empty().then_some(())
    });
    assert_eq!(records(), Vec::<PathBuf>::new());

    for next in [&["reconcile"][..], &["noise", "--seconds", "0.1"]] {
        let noise = begin();
        let pid = noise.pid();
        let watcher = child_of(pid);
        process::send(watcher, libc::SIGKILL);
        noise.kill();
        assert_eq!(instances().len(), 1);
        process::try_to_run(&mut world.pinfold(next));
        assert_eq!(instances(), Vec::<String>::new(), "{next:?}");
        assert_eq!(records(), Vec::<PathBuf>::new(), "{next:?}");
    }
    // One that goes on is nobody else's to remove.
    let noise = begin();
    world.reconcile();
    assert_eq!(instances().len(), 1);
    noise.signal(libc::SIGTERM);
    noise.wait();
    owner.die();
}

/// The one child of a process, in whatever state it is: `pid (name) state ppid`
/// (proc_pid_stat(5)).
fn child_of(parent: i32) -> i32 {
    let parent = parent.to_string();
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit_once(") ").map(|(_, fields)| fields);
        behind_name.is_some_and(|fields| fields.split(' ').nth(1) == Some(&parent))
    };
    let all = std::fs::read_dir("/proc").expect("read /proc").flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.find(is_child).expect("it has a watcher")
}

/// What is written down of instances.
fn records() -> Vec<PathBuf> {
    let records = std::fs::read_dir("/run/pinfold-machine/traces");
    let records = records.into_iter().flatten().flatten();
    records.map(|entry| entry.path()).collect()
}

/// The instances of ours that the kernel has.
fn instances() -> Vec<String> {
    let usual = Path::new("/sys/kernel/tracing/instances");
    let names = match usual.is_dir() {
        true => process::run(Command::new("ls").arg(usual)),
        false => {
            let script = "mount -t tracefs none /mnt && ls /mnt/instances";
            process::run(Command::new("unshare").args(["--mount", "sh", "-c", script]))
        }
    };
    let names = names.ok().stdout;
    let ours = names.lines().filter(|name| name.starts_with("pinfold-"));
    ours.map(str::to_owned).collect()
}

/// Under eight burners: in ten seconds no user's task on the CPUs of a partition, and many where
/// there is none.
/// Where a partition bears no sibling, runc's container has the kernel's help in our slice; a pod is
/// where its kubelet puts it.
fn isolated(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    let is_in_our_slice = service.runtime == Runtime::Runc && service.client != Client::Cri;
    let plan = match is_in_our_slice {
        true => Plan::pinned("web", "dp").option("--cgroup-parent=pinfold.slice"),
        false => Plan::pinned("web", "dp"),
    };
    let is_kept = is_in_our_slice || service.runtime == Runtime::Crun || bears_siblings();
    let burners: Vec<Running> = (0..8).map(|_| burner(world, &[])).collect();
    // So does a container that asks for nothing.
    let plain = Plan::plain("plain").doing(&["--burn"]);
    session.up(&plain);
    let measure = |isolation: &str| {
        process::run(&mut world.pinfold(&["pool", "set", "dp", isolation])).ok();
        session.up(&plan);
        session.assert_pinned("web", "dp", "4");
        let line = ["noise", "dp", "--seconds", "10", "--json"];
        let ran = process::run(&mut world.pinfold(&line));
        session.remove_by_force("web").ok();
        world.wait_until_free();
        ran
    };
    let others = |told: &Value| {
        assert_eq!(told["means"], "trace", "{told}");
        let rows = told["foreign"].as_array().expect("a list").iter();
        // A busy one stays where it is while every CPU has one.
        let busy = rows.filter(|row| row["name"] == called().as_str() || row["name"] == "probe");
        let seconds: f64 = busy.filter_map(|row| row["seconds"].as_f64()).sum();
        assert!(seconds > 1.0, "{told}");
        seconds
    };
    let without = document(&measure("isolation=none").exits(1));
    let without = others(&without);

    let with = measure("isolation=root");
    let told = document(&with);
    if is_kept {
        with.ok();
        assert_eq!(told["means"], "trace", "{told}");
        assert_eq!(told["foreign"], json!([]), "{told}");
        assert_eq!(told["lostEvents"], 0, "{told}");
        assert_eq!(told["owners"][0]["isolation"], "root", "{told}");
        println!("others ran {without:.1} s without isolation, never with it");
    } else {
        with.exits(1);
        let with = others(&told);
        assert!(told["owners"][0]["isolation"].is_null(), "{told}");
        println!("others ran {without:.1} s without isolation, {with:.1} s where it cannot be");
    }
    drop(burners);
}
