//! `pinfold stats` agrees with the kernel's own account, and sees who else is on an owner's CPUs.

use crate::case::{Case, each, plain};
use crate::cases::metrics::rename_in_claim;
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Running};
use crate::strace;
use crate::world::{Kind, Standin, World, state};
use nix::libc;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let mut cases = each(Engine::all(), "stats::known_loads", root, known_loads);
    cases.extend(each(
        Engine::podman(),
        "stats::podman_says_the_same",
        root,
        podman_says_the_same,
    ));
    cases.extend(each(
        Engine::podman().into_iter().take(1).collect(),
        "stats::podman_says_the_same_for_a_minute",
        root,
        podman_says_the_same_for_a_minute,
    ));
    cases.push(plain("stats::a_noisy_neighbour", root, noisy_neighbour));
    cases.push(plain("stats::a_command_on_its_own", root, command));
    cases.push(plain("stats::an_ambiguous_id", root, ambiguous));
    cases.push(plain("stats::an_ambiguous_name", root, ambiguous_name));
    cases.push(plain("stats::a_picture_tells_loads", root, picture));
    let strace = &[Need::Root, Need::Cpus(2), Need::Strace];
    cases.push(plain("stats::a_sample_is_cheap", strace, a_sample_is_cheap));
    cases
}

/// What is said of an interval of so many seconds; by the owners' ids.
fn stats(world: &World, seconds: &str) -> Value {
    let line = ["stats", "--no-stream", "--json", "--interval", seconds];
    let ran = process::run(&mut world.pinfold(&line)).ok();
    serde_json::from_str(&ran.stdout).expect("it is JSON")
}

fn of<'a>(document: &'a Value, id: &str) -> &'a Value {
    let owners = document["owners"].as_array().expect("owners");
    let owner = owners
        .iter()
        .find(|owner| owner["id"].as_str().is_some_and(|known| known == id) || owner["name"] == id);
    owner.unwrap_or_else(|| panic!("no {id} in {document}"))
}

fn number(owner: &Value, key: &str) -> f64 {
    owner[key]
        .as_f64()
        .unwrap_or_else(|| panic!("no {key} in {owner}"))
}

/// The nanoseconds that a process with one thread has run (proc_pid_schedstat(5)), in seconds.
fn ran_for(pid: i32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it runs");
    let nanoseconds: f64 = text.split(' ').next().unwrap().parse().expect("a number");
    nanoseconds / 1e9
}

/// The seconds that a process with one thread has run, and those that it has waited for a CPU.
fn ran_and_waited(pid: i32) -> [f64; 2] {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).expect("it runs");
    let mut fields = text
        .split(' ')
        .map(|field| field.parse::<f64>().unwrap() / 1e9);
    [fields.next().unwrap(), fields.next().unwrap()]
}

/// Three containers, busy, half busy and idle: each within a twentieth of what the scheduler
/// counted meanwhile, and of its duty cycle. While it waits for a CPU that somebody else has it
/// uses none, and is as busy as it can be.
fn known_loads(world: &World, engine: Engine) {
    world.pool("sh", Kind::Shared, &["0-1"]);
    let up = |name: &str, actions: &[&str]| {
        Container::up(world, engine, Plan::pinned(name, "sh").doing(actions))
    };
    let containers = [
        ("busy", 1.0, up("busy", &["--burn"])),
        ("half", 0.5, up("half", &["--duty", "10"])),
        ("idle", 0.0, up("idle", &["--wait"])),
    ];
    let pids: Vec<i32> = containers.iter().map(|(_, _, one)| one.pid()).collect();
    let before: Vec<_> = pids.iter().map(|pid| ran_and_waited(*pid)).collect();
    let began = Instant::now();
    let document = stats(world, "3");
    let seconds = began.elapsed().as_secs_f64();
    for ((name, duty, _), (pid, before)) in containers.iter().zip(pids.iter().zip(before)) {
        let [ran, waited] = ran_and_waited(*pid);
        let ([before, waited_before], now) = (before, ran);
        let (rate, waited) = ((ran - before) / seconds, (waited - waited_before) / seconds);
        let told = document["owners"].as_array().expect("owners");
        let told = told.iter().find(|owner| owner["pid"] == *pid);
        let told = told.unwrap_or_else(|| panic!("no {pid} in {document}"));
        let said = number(told, "busyCpus");
        assert!(
            (said - rate).abs() <= 0.05 * rate + 0.01,
            "{name} used {rate} of a CPU, and is said to have used {said}: {told}"
        );
        let margin = 0.05 * duty + 0.01;
        assert!(
            said <= duty + margin && said + waited >= duty - margin,
            "{name} is to be busy {duty} of the time: {said}, {waited} waiting: {told}"
        );
        println!("{engine}: {name} of {duty}: {said:.3}, {rate:.3}, waiting {waited:.3}");
        assert!(
            (number(told, "utilization") - said / 2.0).abs() < 0.001,
            "{told}"
        );
        assert_eq!(told["account"], "group", "{told}");
        // The runtime's own first steps are in the group's account as well: seconds where the
        // machine is emulated.
        let total = number(told, "cpuSeconds");
        let is_between = before <= total + 0.02 && total <= now + 5.0;
        assert!(is_between, "{name}: {before} {now}: {told}");
    }
    drop(containers);
    world.wait_until_free();
}

/// A container that is busy for half of the time: after a while podman's figures of its whole life
/// are ours.
fn podman_says_the_same(world: &World, engine: Engine) {
    let container = half_busy(world, engine);
    let pid = container.pid();
    process::eventually("it has run for a while", || {
        (ran_for(pid) > 5.0).then_some(())
    });
    side_by_side(world, &container);
    drop(container);
    world.wait_until_free();
}

fn half_busy(world: &World, engine: Engine) -> Container<'_> {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan::pinned("half", "dp").doing(&["--duty", "10"]);
    Container::up(world, engine, plan)
}

/// The same again and again for more than a minute; and over all of it both have seen as much of
/// the CPU used.
fn podman_says_the_same_for_a_minute(world: &World, engine: Engine) {
    let container = half_busy(world, engine);
    let (first, began) = (side_by_side(world, &container), Instant::now());
    let mut last = first;
    while began.elapsed().as_secs() < 65 {
        std::thread::sleep(std::time::Duration::from_secs(10));
        last = side_by_side(world, &container);
    }
    let [ours, podmans] = [0, 1].map(|which| last[which] - first[which]);
    println!(
        "in {:.1} s: {ours:.3} s, podman {podmans:.3} s",
        began.elapsed().as_secs_f64()
    );
    assert!(
        (ours - podmans).abs() <= 0.01 * podmans + 0.2,
        "{ours} {podmans}"
    );
    drop(container);
    world.wait_until_free();
}

/// What we say and what podman says of the CPU seconds of one container's whole life.
fn side_by_side(world: &World, container: &Container<'_>) -> [f64; 2] {
    // Ours before and after: podman's has to be between them.
    let total = || number(&stats(world, "0.1")["owners"][0], "cpuSeconds");
    let before = total();
    let said = container.engine_command(&["stats", "--no-stream", "--format", "json"]);
    let after = total();
    let said: Value = serde_json::from_str(&said.ok().stdout).expect("podman's JSON");
    let text = said[0]["cpu_time"].as_str().expect("a time");
    let podman = humantime::parse_duration(text)
        .unwrap_or_else(|error| panic!("{text}: {error}"))
        .as_secs_f64();
    println!("{before:.3} s, podman {podman:.3} s, {after:.3} s");
    assert!(
        before - 0.01 <= podman && podman <= after + 0.01,
        "{before} {podman} {after}: {said}"
    );
    [before, podman]
}

/// Somebody on an owner's CPU is its noise, and nobody is none.
fn noisy_neighbour(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::new(world, "a");
    let request = json!({ "pinfold.io/pool": "dp" });
    world.hook("prestart", &state("a", owner.pid, request)).ok();
    // What else the machine does on that CPU is noise as well.
    let noise = || {
        let (before, began) = (busy_on(1), Instant::now());
        let document = stats(world, "1");
        let others = (busy_on(1) - before) / began.elapsed().as_secs_f64();
        let owner = of(&document, "a");
        assert!(number(owner, "utilization") < 0.05, "{owner}");
        (number(owner, "noise"), others)
    };
    let is_right = |(heard, others): (f64, f64)| (heard - others).abs() < 0.1;
    process::eventually("it is as noisy as the CPU is busy", || {
        is_right(noise()).then_some(())
    });
    let mut neighbour = std::process::Command::new(crate::probe::path());
    process::under_mask(neighbour.arg("--burn"), &[1]);
    let neighbour = Running::start(&mut neighbour, b"");
    let (heard, _) = noise();
    assert!(heard > 0.8, "{heard}");
    neighbour.kill();
    process::eventually("it is as before", || is_right(noise()).then_some(()));
    println!(
        "noise with a neighbour {heard:.3}, and afterwards {:.3}",
        noise().0
    );
}

/// The seconds that a CPU was not idle, nor its hypervisor's, since some time (proc_stat(5)).
fn busy_on(cpu: u32) -> f64 {
    let text = std::fs::read_to_string("/proc/stat").expect("read /proc/stat");
    let name = format!("cpu{cpu} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    let fields = line.expect("a line for the CPU").split_whitespace();
    let fields: Vec<f64> = fields
        .map(|field| field.parse().expect("a number"))
        .collect();
    (fields[..3].iter().sum::<f64>()) / 100.0
}

/// What several owners are called is refused, and who they are is said.
fn ambiguous(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let request = json!({ "pinfold.io/pool": "dp" });
    let both = ["web-1", "web-2"].map(|id| {
        let owner = Standin::new(world, id);
        world
            .hook("prestart", &state(id, owner.pid, request.clone()))
            .ok();
        owner
    });
    let line = ["stats", "--no-stream", "--interval", "0.1", "web-"];
    let ran = process::run(&mut world.pinfold(&line)).exits(1);
    for part in ["can be 2 owners", "web-1 on 0 of dp", "web-2 on 1 of dp"] {
        assert!(ran.stderr.contains(part), "{part}: {ran}");
    }
    let mut whole = line;
    whole[4] = "web-2";
    process::run(&mut world.pinfold(&whole)).ok();
    drop(both);
}

/// So is a name that several have, as those of two engines can.
fn ambiguous_name(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let both = ["one", "two"].map(|id| {
        let owner = Standin::new(world, id);
        let request = json!({ "pinfold.io/pool": "dp" });
        world
            .hook("createRuntime", &state(id, owner.pid, request))
            .ok();
        rename_in_claim(world, id, "web");
        owner
    });
    for form in [&[][..], &["--json"], &["-o", "wide"]] {
        let line = [&["stats", "--no-stream", "--interval", "0.1", "web"], form].concat();
        let ran = process::run(&mut world.pinfold(&line)).exits(1);
        for part in [
            "web",
            "can be 2 owners",
            "on 0 of dp",
            "on 1 of dp",
            "by its id",
        ] {
            assert!(ran.stderr.contains(part), "{part}: {ran}");
        }
        assert_eq!(ran.stdout, "", "{ran}");
    }
    let line = ["stats", "--no-stream", "--interval", "0.1", "two"];
    let ran = process::run(&mut world.pinfold(&line)).ok();
    assert!(ran.stdout.contains("web"), "{ran}");
    drop(both);
}

/// What owners do, and who disturbs them, is in the picture of the machine.
fn picture(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::new(world, "idle");
    let request = json!({ "pinfold.io/pool": "dp" });
    let started = state("idle", owner.pid, request);
    world.hook("prestart", &started).ok();
    let mut neighbour = std::process::Command::new(crate::probe::path());
    process::under_mask(neighbour.arg("--burn"), &[1]);
    let neighbour = Running::start(&mut neighbour, b"");
    let ran = process::run(&mut world.pinfold(&["topology", "--svg", "-"])).ok();
    let document = roxmltree::Document::parse(&ran.stdout).expect("it is XML");
    let texts = document
        .descendants()
        .filter(|node| node.has_tag_name("text"));
    let texts: Vec<&str> = texts.filter_map(|node| node.text()).collect();
    let at = texts.iter().rposition(|text| *text == "idle");
    let row = &texts[at.unwrap_or_else(|| panic!("no owner in {texts:?}"))..];
    let share = |index: usize| -> f64 { row[index].parse().expect("a number") };
    assert_eq!(row[1..3], ["dp", "1"], "{row:?}");
    assert!(share(3) < 5.0 && share(4) > 80.0, "{row:?}");
    neighbour.kill();
}

/// On version 2 the command's group keeps an account of it; on version 1 it has none of its own,
/// and processes are added up.
fn command(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let probe = crate::probe::path().to_str().expect("a path in UTF-8");
    let line = ["isolate", "--pool", "dp", "--", probe, "--burn"];
    let isolate = Running::start(&mut world.pinfold(&line), b"");
    process::eventually("the command runs", || {
        (world.tasks("dp", "1").len() == 2).then_some(())
    });
    let document = stats(world, "1");
    let owner = &document["owners"][0];
    let pid = owner["pid"].as_i64().expect("a pid");
    let ran = ran_for(i32::try_from(pid).expect("a pid"));
    let told = number(owner, "cpuSeconds");
    assert!((ran - told).abs() < 0.3, "{ran} {told}");
    assert!(number(owner, "contextSwitchesPerSecond") >= 0.0, "{owner}");
    isolate.signal(libc::SIGTERM);
    isolate.wait();
}

/// So many owners, each in groups of its own in every hierarchy, as containers are.
struct Crowd {
    standins: Vec<Standin>,
    groups: Vec<PathBuf>,
}

impl Crowd {
    fn new(world: &World, count: usize) -> Crowd {
        world.pool("sh", Kind::Shared, &["0-1"]);
        let request = json!({ "pinfold.io/pool": "sh" });
        let mut crowd = Crowd {
            standins: Vec::new(),
            groups: Vec::new(),
        };
        for number in 0..count {
            let id = format!("owner-{number}");
            let standin = Standin::new(world, &id);
            world
                .hook("prestart", &state(&id, standin.pid, request.clone()))
                .ok();
            if hierarchy().version == 1 {
                let cpuset = standin.cgroup();
                let below = cpuset.strip_prefix(&hierarchy().root).expect("it is below");
                for controller in ["cpuacct", "cpu"] {
                    let dir = cgroups::mount_with(controller).join(below);
                    if std::fs::create_dir(&dir).is_ok() {
                        crowd.groups.push(dir.clone());
                    }
                    std::fs::write(dir.join("cgroup.procs"), standin.pid.to_string())
                        .expect("move it");
                }
            }
            crowd.standins.push(standin);
        }
        crowd
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.standins.clear();
        cgroups::clear(&self.groups);
    }
}

/// The CPU time of one sample, in milliseconds: of many, once it goes on as it does for hours.
fn cost_of_a_sample(world: &World, arguments: &[&str]) -> f64 {
    const SAMPLES: usize = 40;
    let line = [&["stats", "--interval", "0.1"], arguments].concat();
    let stats = Running::start(&mut world.pinfold(&line), b"");
    // A document a line, or tables with an empty line behind each.
    let end = match arguments.contains(&"--json") {
        true => "}\n",
        false => "\n\n",
    };
    let at = |count: usize| {
        process::eventually("it has taken samples", || {
            (stats.stdout().matches(end).count() >= count).then_some(())
        });
        (ran_for(stats.pid()), stats.stdout().matches(end).count())
    };
    let (before, first) = at(5);
    let (after, last) = at(5 + SAMPLES);
    stats.kill();
    1e3 * (after - before) / (last - first) as f64
}

/// How many system calls a sample takes: the median of those between two pauses.
fn calls_of_a_sample(world: &World, arguments: &[&str]) -> usize {
    let line = [&["stats", "--interval", "0.1"], arguments].concat();
    let trace = world.dir.join("trace");
    let command = world.pinfold(&line);
    let _ = std::fs::remove_file(&trace);
    let mut strace = strace::under(&command, &["-qq".to_owned()], &trace);
    let pauses = || {
        let text = std::fs::read_to_string(&trace).unwrap_or_default();
        text.matches("nanosleep(").count()
    };
    let stats = Running::start(&mut strace, b"");
    process::eventually("it has taken samples", || (pauses() >= 25).then_some(()));
    // strace hands nothing on to it.
    let of_world = process::processes_mentioning(&world.conf.display().to_string());
    of_world
        .iter()
        .for_each(|pid| process::send(*pid, libc::SIGKILL));
    drop(stats);
    let text = std::fs::read_to_string(&trace).expect("read the trace");
    let mut counts = Vec::new();
    let mut count = 0;
    for line in text.lines() {
        count += 1;
        if line.contains("nanosleep(") {
            counts.push(std::mem::take(&mut count));
        }
    }
    // The first are of its start.
    let mut counts = counts.split_off(5);
    counts.sort_unstable();
    counts[counts.len() / 2]
}

/// A sample of 64 owners costs the host less than a millisecond: what has to be read of each is
/// read by one call a file, of files that stay open.
fn a_sample_is_cheap(world: &World) {
    const OWNERS: usize = 64;
    let _crowd = Crowd::new(world, OWNERS);
    // Nobody is read for little: all of them have to be there, at the end as well.
    let all_are_read = || {
        let document = stats(world, "0.1");
        let owners = document["owners"].as_array().expect("owners");
        let of_groups = owners.iter().filter(|owner| owner["account"] == "group");
        assert_eq!(of_groups.count(), OWNERS, "{document}");
    };
    all_are_read();
    for (arguments, files) in [(&[][..], 2), (&["--json"], 4), (&["-o", "wide"], 4)] {
        let cost = cost_of_a_sample(world, arguments);
        let calls = calls_of_a_sample(world, arguments);
        println!("a sample of {OWNERS} owners {arguments:?}: {cost:.2} ms, {calls} calls");
        // With the machine's own counters, and what is printed. Threads are looked for every
        // twenty seconds: where a sample takes long, as on an emulated machine, more of that falls
        // to each.
        let most = OWNERS * (files + 1) + 40;
        assert!(calls <= most, "{calls} calls, and {most} are enough");
        assert!(
            calls >= 2 * OWNERS,
            "{calls} calls cannot read {OWNERS} owners"
        );
    }
    all_are_read();
}
