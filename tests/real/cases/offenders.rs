//! What others do beside an owner that has everything: CPUs that the kernel keeps for it, no
//! interrupts, no limit, no sleep. It keeps them, and when it is gone the whole machine is as
//! before, compared file by file.

use crate::case::{Case, each, plain};
use crate::cases::killpoints_irqs::irqs;
use crate::cgroups::{below, hierarchy};
use crate::engines::{Door, Driver};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{affinity, eventually, run, send};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, Standin, World, claimed_cgroup, state, stopped};
use nix::libc;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

/// Everything that a pool can have set outside of its owners' groups.
const EVERYTHING: [&str; 4] = [
    "isolation=root",
    "irqs=away",
    "quota=lift",
    "resume-latency=n/a",
];

/// systemd's units whose CPUs others narrow.
pub(crate) const UNITS: [&str; 3] = ["system.slice", "user.slice", "init.scope"];

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::V2, Need::Systemd, Need::Cpus(8), Need::Disposable];
    let services = [Client::Podman, Client::Docker, Client::Cri].map(|client| {
        let all = Service::all(client, Door::Hooks).into_iter();
        let systemd = all.filter(|service| service.driver == Driver::Systemd);
        systemd.collect::<Vec<Service>>()
    });
    let mut cases = Vec::new();
    for services in Service::groups(services.concat()) {
        let beside = "offenders::beside_an_owner";
        cases.extend(each(services.clone(), beside, needs, |world, service| {
            beside_an_owner(world, service, &[]);
        }));
        let slice = "offenders::beside_an_owner_in_our_slice";
        // The kubelet, not the container, says where a pod goes, and what its limits are.
        let mut with_options = services.clone();
        with_options.retain(|service| service.client != Client::Cri);
        cases.extend(each(
            with_options.clone(),
            slice,
            needs,
            |world, service| {
                beside_an_owner(world, service, &["--cgroup-parent=pinfold.slice"]);
            },
        ));
        let start = "offenders::while_owners_start";
        cases.extend(each(services.clone(), start, needs, while_owners_start));
        let out = "offenders::every_way_out";
        cases.extend(each(services, out, needs, every_way_out));
        let limit = "offenders::released_by_force_it_has_its_limit";
        cases.extend(each(with_options, limit, needs, limited_again));
    }
    let directories = "offenders::two_pool_directories";
    let needs = &[Need::Partitions, Need::Cpus(8), Need::Disposable];
    cases.push(plain(directories, needs, two_pool_directories));
    cases
}

/// What can be changed outside of owners' groups, each file with its text. Scopes come and go.
pub(crate) fn machine() -> BTreeMap<PathBuf, String> {
    let groups = below(&hierarchy().root).into_iter();
    let lasting = groups.filter(|group| !group.to_string_lossy().contains(".scope"));
    let of_group = |group: PathBuf| {
        let files = [
            "cpuset.cpus",
            "cpuset.cpus.effective",
            "cpuset.cpus.exclusive",
            "cpuset.cpus.partition",
            "cpu.max",
        ];
        files.map(|file| group.join(file))
    };
    let mut files: Vec<PathBuf> = lasting.flat_map(of_group).collect();
    files.push(hierarchy().root.join("cpuset.cpus.effective"));
    for cpu in 0..8 {
        let cpu = PathBuf::from(format!("/sys/devices/system/cpu/cpu{cpu}"));
        files.push(cpu.join("power/pm_qos_resume_latency_us"));
        files.push(cpu.join("cpufreq/scaling_governor"));
    }
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).ok()?;
        Some((file, text))
    };
    let mut all: BTreeMap<PathBuf, String> = files.into_iter().filter_map(read).collect();
    all.extend(irqs());
    for unit in UNITS {
        let told = run(Command::new("systemctl").args(["show", "-p", "AllowedCPUs", unit])).ok();
        all.insert(unit.into(), told.stdout);
    }
    all
}

/// Files that are there no more, and others that are new, are of groups that came and went.
#[track_caller]
pub(crate) fn assert_as_before(before: &BTreeMap<PathBuf, String>, when: &str) {
    assert_same(before, when, |_| true);
}

/// The same of the files that are `meant`.
#[track_caller]
fn assert_same(before: &BTreeMap<PathBuf, String>, when: &str, meant: fn(&Path) -> bool) {
    let now = machine();
    let mut compared = 0;
    for (file, found) in before.iter().filter(|(file, _)| meant(file)) {
        if let Some(text) = now.get(file) {
            assert_eq!(text, found, "{} {when}", file.display());
            compared += 1;
        }
    }
    assert!(compared >= 30, "{compared} files {when}");
}

pub(crate) fn systemctl(arguments: &[&str]) {
    run(Command::new("systemctl").args(arguments)).ok();
}

/// Narrows the units and widens them again. The kernel of Debian 13 keeps what an empty value
/// leaves: the CPUs have to be said.
pub(crate) fn allowed_cpus() {
    for cpus in ["AllowedCPUs=0-3", "AllowedCPUs=0-7"] {
        for unit in UNITS {
            systemctl(&["set-property", "--runtime", unit, cpus]);
        }
    }
}

pub(crate) fn text(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.trim().to_owned()
}

pub(crate) fn everything(world: &World, pool: &str) {
    let words = [&["pool", "set", pool], EVERYTHING.as_slice()].concat();
    run(&mut world.pinfold(&words)).ok();
}

fn pinned(name: &str, options: &[&str]) -> Plan {
    let plan = Plan::pinned(name, "dp");
    options
        .iter()
        .fold(plan, |plan, option| plan.option(option))
}

/// An owner, its group, and whether the kernel keeps others off its CPU there.
struct Web<'s> {
    session: &'s Session,
    group: PathBuf,
    is_kept: bool,
}

impl Web<'_> {
    fn start<'s>(session: &'s Session, options: &[&str]) -> Web<'s> {
        session.up(&pinned("web", options).option("--cpus=1.5"));
        session.assert_pinned("web", "dp", "4");
        let claim = session.world().claim_of(&session.id("web"));
        let group = claimed_cgroup(claim["cgroup"]["path"].as_str().unwrap());
        let is_kept = text(&group.join("cpuset.cpus.partition")) == "root";
        assert!(text(&group.join("cpu.max")).starts_with("max "));
        Web {
            session,
            group,
            is_kept,
        }
    }

    #[track_caller]
    fn assert_its_own(&self, when: &str) {
        let effective = text(&self.group.join("cpuset.cpus.effective"));
        assert_eq!(effective, "4", "{when}");
        assert_eq!(affinity(self.session.pid("web")), "4", "{when}");
        if self.is_kept {
            let partition = text(&self.group.join("cpuset.cpus.partition"));
            assert_eq!(partition, "root", "{when}");
        }
    }
}

/// Another container on CPUs of the pool's, first those that it is created with, then others.
fn sibling(session: &Session) {
    let plan = Plan::plain("sibling").option("--cpuset-cpus=4-5");
    session.launch(session.service, &plan);
    for cpus in ["4-5", "3-4", "4", "0-7"] {
        if session.service.client == Client::Cri {
            session.cri().update("sibling", &json!({ "cpus": cpus }));
        } else {
            run(&mut session.command(&["update", "--cpuset-cpus", cpus, "sibling"]));
        }
    }
    session.remove_by_force("sibling");
}

/// A unit on the owner's CPU, in the same slice.
fn unit(slice: &str) {
    let unit = "pinfoldtest-offender.service";
    let mut command = Command::new("systemd-run");
    command.args(["--collect", "--unit", unit, "--slice", slice]);
    command.args(["-p", "AllowedCPUs=4", "--", "/bin/sleep", "60"]);
    run(&mut command);
    run(Command::new("systemctl").args(["stop", unit]));
}

/// Switches a CPU off and on; a kernel may refuse to take the last one of a partition.
pub(crate) fn switch(cpu: u32) {
    let file = format!("/sys/devices/system/cpu/cpu{cpu}/online");
    let _ = std::fs::write(&file, "0");
    std::fs::write(&file, "1").unwrap();
}

/// With options for those who are pinned: in a slice of pinned containers alone the kernel keeps
/// all off, where it has partitions.
fn beside_an_owner(_: &World, service: Service, options: &[&str]) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    everything(world, "dp");
    // The slices are there for the comparison, and what the offenders leave of their own.
    session.up(&Plan::plain("plain"));
    allowed_cpus();
    let before = machine();
    let mut web = Web::start(&session, options);
    let has_partitions = web.group.join("cpuset.cpus.exclusive").exists();
    assert!(web.is_kept || options.is_empty() || !has_partitions);
    assert_ne!(machine(), before);
    let slice = session.service.driver.parent(world);
    let offenders: [(&str, &dyn Fn()); 5] = [
        ("a container on its CPU", &|| sibling(&session)),
        ("a unit on its CPU", &|| unit(&slice)),
        ("AllowedCPUs of slices", &allowed_cpus),
        ("daemon-reload", &|| systemctl(&["daemon-reload"])),
        ("daemon-reexec", &|| systemctl(&["daemon-reexec"])),
    ];
    let absences: [(&str, &dyn Fn()); 2] = [
        ("another CPU's absence", &|| switch(5)),
        ("its CPU's absence", &|| switch(4)),
    ];
    let beside = |web: &Web<'_>, (name, offend): (&str, &dyn Fn())| {
        offend();
        // What is broken is mended by who comes next, and by the one that watches.
        session.up(&pinned("api", options));
        session.remove_by_force("api").ok();
        world.reconcile();
        web.assert_its_own(name);
        println!("{name}: kept by the kernel: {}", web.is_kept);
    };
    let end = || {
        session.remove_by_force("web").ok();
        world.wait_until_free();
        world.reconcile();
    };
    offenders.into_iter().for_each(|one| beside(&web, one));
    end();
    assert_as_before(&before, "after all");

    web = Web::start(&session, options);
    absences.into_iter().for_each(|one| beside(&web, one));
    end();
    // Drivers spread their interrupts anew over the CPUs that are back.
    assert_same(&before, "after absences", |file| {
        !file.starts_with("/proc/irq")
    });
}

/// Set when it goes, also by a panic.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The offenders do not wait until a start is over.
fn while_owners_start(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    everything(world, "dp");
    session.up(&Plan::plain("plain"));
    allowed_cpus();
    let before = machine();
    let web = Web::start(&session, &[]);
    let slice = session.service.driver.parent(world);
    let (is_over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                unit(&slice);
                allowed_cpus();
                systemctl(&["daemon-reload"]);
                switch(6);
                rounds.fetch_add(1, Ordering::Relaxed);
                // Whoever starts gets on, too.
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        let _over = Over(&is_over);
        for _ in 0..2 {
            let plan = Plan::plain("sibling").option("--cpuset-cpus=4-5");
            session.launch(session.service, &plan);
            session.up(&pinned("api", &[]));
            session.assert_pinned("api", "dp", "5");
            assert_eq!(affinity(session.pid("web")), "4");
            session.remove_by_force("api").ok();
            session.remove_by_force("sibling");
        }
    });
    world.reconcile();
    web.assert_its_own("after all");
    session.remove_by_force("web").ok();
    world.wait_until_free();
    world.reconcile();
    // Drivers spread their interrupts anew over a CPU that is back.
    assert_same(&before, "after all", |file| !file.starts_with("/proc/irq"));
    let rounds = rounds.into_inner();
    println!(
        "two starts beside {rounds} rounds: kept by the kernel: {}",
        web.is_kept
    );
    assert!(rounds > 0);
}

type WayOut = (&'static str, fn(&mut Session));

/// How a container ends under this client; those of its daemon come last.
fn ways_out(client: Client) -> Vec<WayOut> {
    let mut ways: Vec<WayOut> = vec![
        ("stop", |session| {
            session.stop("web").ok();
        }),
        ("kill", |session| {
            session.kill("web").ok();
        }),
        ("rm -f", |session| {
            session.remove_by_force("web").ok();
        }),
        ("a crash of the engine's monitor", |session| {
            let pid = session.pid("web");
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
            send(parent.unwrap().trim().parse().unwrap(), libc::SIGKILL);
            send(pid, libc::SIGKILL);
        }),
    ];
    if client != Client::Cri {
        ways.push(("restart", |session| {
            run(&mut session.command(&["restart", "-t", "0", "web"])).ok();
            eventually("it is pinned again", || {
                (affinity(session.pid("web")) == "4").then_some(())
            });
            session.remove_by_force("web").ok();
        }));
    }
    if client != Client::Podman {
        ways.push(("the engine's restart", |session| {
            restarted(session, libc::SIGTERM)
        }));
        ways.push(("the engine's crash", |session| {
            restarted(session, libc::SIGKILL)
        }));
    }
    ways
}

/// Restarts the daemon. What outlives that keeps what it has, and is removed then.
fn restarted(session: &mut Session, signal: i32) {
    let pid = session.pid("web");
    session.restart_daemon(signal);
    if session.service.client == Client::Cri {
        session.world().reconcile();
        assert_eq!(session.pid("web"), pid, "it runs on");
        session.assert_pinned("web", "dp", "4");
    }
    session.remove_by_force("web").ok();
}

fn every_way_out(_: &World, service: Service) {
    let mut session = Session::with(service);
    session.world().pool("dp", Kind::Exclusive, &["4", "5"]);
    everything(session.world(), "dp");
    session.up(&Plan::plain("plain"));
    allowed_cpus();
    let before = machine();
    for (name, leave) in ways_out(service.client) {
        Web::start(&session, &[]);
        leave(&mut session);
        let world = session.world();
        eventually(&format!("everything is back after {name}"), || {
            world.reconcile();
            let all_back = machine()
                .iter()
                .all(|(file, text)| before.get(file).is_none_or(|found| found == text));
            (all_back && world.claims().is_empty()).then_some(())
        });
        assert_as_before(&before, name);
        // podman may not know at once that a container has ended whose monitor is gone.
        for _ in 0..5 {
            if session.remove_by_force("web").code() == Some(0) {
                break;
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

/// The scope that a group is, or is in.
fn scope_of(group: &Path) -> String {
    let names = group.iter().filter_map(|name| name.to_str());
    let mut scopes = names.filter(|name| name.ends_with(".scope"));
    scopes.next().expect("it is in a scope").to_owned()
}

/// What systemd knows of a scope's limit of CPU time.
fn known_limit(scope: &str) -> String {
    let show = ["show", "--value", "--property=CPUQuotaPerSecUSec", scope];
    let shown = run(Command::new("systemctl").args(show)).ok();
    shown.stdout.trim().to_owned()
}

/// A container with the same limit that asks for nothing tells what was asked for.
fn limited_again(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    everything(world, "dp");
    session.up(&Plan::plain("plain").option("--cpus=1.5"));
    let plain = hierarchy().of(session.pid("plain"));
    let (asked, known) = (text(&plain.join("cpu.max")), known_limit(&scope_of(&plain)));
    assert!(!asked.starts_with("max"), "{asked}");
    assert_ne!(known, "infinity");

    let web = Web::start(&session, &[]);
    let scope = scope_of(&web.group);
    assert_eq!(known_limit(&scope), "infinity");
    let release = ["release", "--force", &session.id("web")];
    run(&mut world.pinfold(&release)).ok();
    world.assert_all_free("after a forced release");
    let assert_limited = |when: &str| {
        assert_eq!(known_limit(&scope), known, "{when}");
        assert_eq!(text(&web.group.join("cpu.max")), asked, "{when}");
        // crun gives its scope the same.
        if let Some(above) = web.group.parent().filter(|above| above.ends_with(&scope)) {
            assert_eq!(text(&above.join("cpu.max")), asked, "{when}");
        }
    };
    assert_limited("right after the release");
    // Each of these has systemd write what it knows.
    systemctl(&["daemon-reload"]);
    assert_limited("after daemon-reload");
    systemctl(&["set-property", "--runtime", &scope, "CPUWeight=200"]);
    assert_limited("after set-property");
    session.remove_by_force("web").ok();
}

/// Two pool directories share the machine: each end puts back what the other does not want.
fn two_pool_directories(world: &World) {
    let other = World::new();
    let root = &hierarchy().root;
    std::fs::write(root.join("cgroup.subtree_control"), "+cpuset").unwrap();
    // A slice of pinned containers alone, where any kernel that has partitions keeps them.
    let slice = root.join("pinfold.slice");
    std::fs::create_dir_all(&slice).unwrap();
    std::fs::write(slice.join("cgroup.subtree_control"), "+cpuset").unwrap();
    world.pool("dp", Kind::Exclusive, &["4"]);
    other.pool("dp", Kind::Exclusive, &["5"]);
    let before = machine();
    let start = |world: &World, name: &str| {
        everything(world, "dp");
        hierarchy().make_inside(&slice, name);
        let standin = Standin::inside(&slice.join(name), &["--wait"]);
        let asking = state(name, standin.pid, json!({ "pinfold.io/pool": "dp" }));
        world.hook("createRuntime", &asking).ok();
        let partition = text(&slice.join(name).join("cpuset.cpus.partition"));
        assert_eq!(partition, "root", "{name}");
        standin
    };
    let end = |world: &World, name: &str, standin: Standin| {
        let group = standin.die();
        let stopped = stopped(name, json!({ "pinfold.io/pool": "dp" }));
        world.hook("poststop", &stopped).ok();
        std::fs::remove_dir(group).unwrap();
    };
    let of_everybody = || text(&root.join("cpuset.cpus.effective"));
    let one = start(world, "one");
    let between = machine();
    let two = start(&other, "two");
    assert_eq!(of_everybody(), "0-3,6-7");
    end(&other, "two", two);
    assert_eq!(of_everybody(), "0-3,5-7");
    assert_as_before(&between, "when one is alone again");
    let two = start(&other, "two");
    end(world, "one", one);
    assert_eq!(of_everybody(), "0-4,6-7");
    assert_eq!(text(&slice.join("two/cpuset.cpus.partition")), "root");
    end(&other, "two", two);
    assert_eq!(of_everybody(), "0-7");
    assert_as_before(&before, "when nobody is there");
    std::fs::remove_dir(&slice).unwrap();
}
