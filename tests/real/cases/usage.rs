//! What is written down of owners that end: as much as the kernel knew, and never at the cost of
//! anything else.

use crate::case::{Case, each, plain};
use crate::cases::shim::Scene;
use crate::cgroups::{self, hierarchy};
use crate::container::Container;
use crate::engines::{Door, Engine};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran, Running};
use crate::world::{Kind, Standin, World, state, stopped};
use nix::libc;
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A clock tick of the kernel, in seconds.
const TICK: f64 = 0.01;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let shim = Engine::by(Door::Shim, Engine::direct());
    let mut cases = each(shim, "usage::through_the_shim", root, through_the_shim);
    cases.extend(each(Engine::all(), "usage::by_hooks", root, by_hooks));
    for (name, test) in [
        (
            "usage::a_group_that_is_still_there",
            still_there as fn(&World),
        ),
        ("usage::a_command", command),
        ("usage::a_start_that_fails_is_none", failed_start),
        ("usage::of_an_earlier_boot", earlier_boot),
        ("usage::is_never_in_the_way", never_in_the_way),
        ("usage::can_be_switched_off", switched_off),
        ("usage::is_switched_on_for_a_service", switched_on),
    ] {
        cases.push(plain(name, root, test));
    }
    cases
}

fn request() -> Value {
    json!({ "pinfold.io/pool": "dp" })
}

/// What is written down, in order.
fn records(world: &World) -> Vec<Value> {
    let text = std::fs::read_to_string(world.run.join("usage.jsonl")).unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[track_caller]
fn the_record(world: &World, id: &str) -> Value {
    let all = records(world);
    let mut of_id = all.iter().filter(|record| record["id"] == id);
    let record = of_id.next().unwrap_or_else(|| panic!("no {id}: {all:?}"));
    assert!(of_id.next().is_none(), "{all:?}");
    record.clone()
}

#[track_caller]
fn number(record: &Value, key: &str) -> f64 {
    let number = record[key].as_f64();
    number.unwrap_or_else(|| panic!("no {key}: {record}"))
}

/// The kernel's own account of a group, in seconds: in all, outside the kernel, and inside it.
/// `None` where it is gone.
fn account(group: &str) -> Option<[f64; 3]> {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    let field = |text: &str, key: &str| -> Option<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().parse().ok()
    };
    let below = group.trim_start_matches('/');
    if hierarchy().version == 2 {
        let text = read(hierarchy().root.join(below).join("cpu.stat"))?;
        let micros = |key| Some(field(&text, key)? / 1e6);
        return Some([
            micros("usage_usec")?,
            micros("user_usec")?,
            micros("system_usec")?,
        ]);
    }
    let dir = cgroups::mount_with("cpuacct").join(below);
    let total: f64 = read(dir.join("cpuacct.usage"))?.trim().parse().ok()?;
    let parts = read(dir.join("cpuacct.stat"))?;
    Some([
        total / 1e9,
        field(&parts, "user ")? / 100.0,
        field(&parts, "system ")? / 100.0,
    ])
}

fn group_of(world: &World, id: &str) -> String {
    let path = &world.claim_of(id)["cgroup"]["path"];
    path.as_str().expect("a group").to_owned()
}

#[track_caller]
fn assert_is(record: &Value, known: [f64; 3]) {
    for (key, known) in ["cpuSeconds", "userSeconds", "systemSeconds"]
        .iter()
        .zip(known)
    {
        let told = number(record, key);
        assert!((told - known).abs() <= TICK, "{key} is {known}: {record}");
    }
}

/// Lets it use some of its CPU.
fn burn_for(group: &str, seconds: f64) {
    process::eventually("it uses its CPU", || {
        let used = account(group).map(|[total, ..]| total);
        used.is_none_or(|used| used > seconds).then_some(())
    });
}

/// The runtime removes the group before the hook comes; the shim looks before that. Where systemd
/// removes it as soon as it is empty, what the shim has read before the signal counts.
fn through_the_shim(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let scene = Scene::doing(world, engine, &["--burn"]);
    scene.create().ok();
    scene.shim(&["start", "a"]).ok();
    let (pid, group) = (scene.first_process(), group_of(world, "a"));
    burn_for(&group, 0.3);
    let used = || account(&group).map_or(f64::MAX, |[total, ..]| total);
    let before = used();
    world.reconcile();
    let after = used();
    burn_for(&group, after + 0.3);
    let at_signal = used();
    scene.shim(&["kill", "a", "TERM"]).ok();
    process::eventually("it has ended", || (!process::is_alive(pid)).then_some(()));
    let is_gone = || account(&group).is_none();
    let may_vanish = engine.driver == crate::engines::Driver::Systemd && hierarchy().version == 2;
    if may_vanish {
        process::eventually("systemd removes its group", || is_gone().then_some(()));
    }
    let known = account(&group);
    scene.shim(&["delete", "a"]).ok();
    assert!(is_gone(), "the runtime has removed it");
    world.assert_all_free("after delete");
    let record = the_record(world, "a");
    match known {
        Some(known) => {
            assert_eq!(record["exactness"], "exact", "{record}");
            assert!(known[0] > 0.6, "{known:?}");
            assert_is(&record, known);
        }
        None => {
            assert_eq!(record["exactness"], "sampled", "{record}");
            let told = number(&record, "cpuSeconds");
            assert!(
                before <= after && at_signal <= told,
                "{at_signal}: {record}"
            );
        }
    }
    // From `reconcile` on others were watched, up to the last time that it was read.
    assert!(number(&record, "noiseSeconds") >= 0.0, "{record}");
    assert_eq!(
        (&record["pool"], &record["lists"], &record["kind"]),
        (&json!("dp"), &json!(["1"]), &json!("container")),
    );
    assert!(
        record["end"].as_str() >= record["start"].as_str(),
        "{record}"
    );
    println!("{engine}: {record}");
    // What asks for nothing leaves nothing, and a second delete adds nothing.
    scene.shim(&["delete", "-f", "a"]);
    assert_eq!(records(world).len(), 1);
    let left = std::fs::read_dir(world.run.join("samples")).expect("the samples");
    assert_eq!(left.count(), 0, "samples are left");
}

/// Without the shim nobody looks at the end: the last sample counts, and where there is none that
/// is said.
fn by_hooks(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    for (name, is_sampled) in [("a", true), ("b", false)] {
        let container = Container::up(world, engine, Plan::pinned(name, "dp").doing(&["--burn"]));
        let id = container.id();
        let group = group_of(world, &id);
        burn_for(&group, 0.3);
        let before = account(&group).map_or(0.0, |[total, ..]| total);
        if is_sampled {
            world.reconcile();
        }
        container.end_by("TERM");
        container.delete();
        world.wait_until_free();
        process::run(&mut world.pinfold(&["usage"])).ok();
        let record = the_record(world, &id);
        // An engine's own cleanup can be there before its group is gone.
        match record["exactness"].as_str() {
            Some("sampled") => assert!(is_sampled && number(&record, "cpuSeconds") >= before),
            Some("unknown") => assert!(!is_sampled && record["cpuSeconds"].is_null()),
            other => assert_eq!(other, Some("exact"), "{record}"),
        }
        println!("{engine}: {record}");
    }
}

/// Where the group outlives its processes poststop reads it, and so does `reconcile`, before they
/// give it back.
fn still_there(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    for id in ["a", "b"] {
        let standin = Standin::running(world, id, &["--burn"]);
        world
            .hook("prestart", &state(id, standin.pid, request()))
            .ok();
        // On version 1 runtimes make groups of the same path in each hierarchy.
        let group = group_of(world, id);
        let _account = (hierarchy().version == 1).then(|| {
            let dir = cgroups::mount_with("cpuacct").join(group.trim_start_matches('/'));
            std::fs::create_dir(&dir).expect("make a group");
            std::fs::write(dir.join("cgroup.procs"), standin.pid.to_string()).expect("move it");
            RemovedAtTheEnd(dir)
        });
        burn_for(&group, 0.2);
        let cgroup = standin.die();
        let known = account(&group).expect("it is still there");
        match id {
            "a" => drop(world.hook("poststop", &stopped(id, request())).ok()),
            _ => drop(world.reconcile()),
        }
        let record = the_record(world, id);
        assert_eq!(record["exactness"], "exact", "{record}");
        assert_is(&record, known);
        let _ = std::fs::remove_dir(cgroup);
    }
    let summed = process::run(&mut world.pinfold(&["usage", "--json"])).ok();
    let summed: Value = serde_json::from_str(&summed.stdout).expect("it is JSON");
    assert_eq!(summed["usage"][0]["ended"], 2, "{summed}");
    assert_eq!(summed["usage"][0]["exact"], 2, "{summed}");
}

struct RemovedAtTheEnd(PathBuf);

impl Drop for RemovedAtTheEnd {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Of a command `isolate` knows by itself what it used, with those of its descendants that were
/// waited for, and from the beginning on what others did.
fn command(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; (exec sh -c 'j=0
        while [ $j -lt 100000 ]; do j=$((j+1)); done'); times";
    let line = ["isolate", "--pool", "dp", "--", "sh", "-c", script];
    let ran = process::run(&mut world.pinfold(&line)).ok();
    let id = records(world)[0]["id"].as_str().expect("an id").to_owned();
    let record = the_record(world, &id);
    let exactness = ["waited", "exact"][usize::from(hierarchy().version == 2)];
    assert_eq!(record["exactness"], exactness, "{record}");
    assert_eq!(record["kind"], "process");
    // What the shell and its children had used before it ended (POSIX, "times"): 0m0.12s.
    let told: f64 = ran.stdout.split_whitespace().map(seconds).sum();
    let used = number(&record, "cpuSeconds");
    assert!(
        told > 0.05 && (used - told).abs() < 0.1 + 0.2 * told,
        "{told}: {record}"
    );
    assert!(number(&record, "watchedSeconds") > 0.0, "{record}");
    assert!(number(&record, "noiseSeconds") < 1.0 + told, "{record}");
}

fn seconds(text: &str) -> f64 {
    let (minutes, rest) = text.split_once('m').expect("minutes");
    let seconds = rest.trim_end_matches('s').parse::<f64>();
    60.0 * minutes.parse::<f64>().expect("a number") + seconds.expect("a number")
}

/// Nobody was an owner.
fn failed_start(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    process::send(standin.pid, libc::SIGKILL);
    process::eventually("it is dead", || {
        (!process::is_alive(standin.pid)).then_some(())
    });
    world
        .hook("prestart", &state("a", standin.pid, request()))
        .exits(1);
    let line = ["isolate", "--pool", "dp", "--", "/no/such/program"];
    process::run(&mut world.pinfold(&line)).exits(127);
    world.assert_all_free("nobody is an owner");
    assert!(
        records(world)
            .iter()
            .all(|record| record["kind"] == "process")
    );
}

/// Who ended with a boot, nobody knows when.
fn earlier_boot(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    world
        .hook("prestart", &state("a", standin.pid, request()))
        .ok();
    let home = world.run.join("claims/a");
    let file = std::fs::read_dir(&home)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let text = std::fs::read_to_string(&file).expect("read the claim");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot");
    let other = "00000000-0000-4000-8000-000000000000";
    // As older programs wrote it: without a check sum.
    let (claim, _) = text.split_once(",\"sum\"").expect("a check sum");
    std::fs::write(&file, format!("{}}}", claim.replace(boot.trim(), other))).unwrap();
    std::fs::remove_file(world.run.join("boot")).expect("remove the mark");
    standin.die();
    world.reconcile();
    let record = the_record(world, "a");
    assert!(
        record["end"].is_null() && record["cpuSeconds"].is_null(),
        "{record}"
    );
    assert_eq!(record["exactness"], "unknown", "{record}");
}

/// A directory that is not ours, one that is full, a file that somebody keeps locked, and one that
/// is no file: each is a sentence, the owner is let go in time, and what it used is written down
/// later.
fn never_in_the_way(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let log = world.dir.join("log");
    let config = world.dir.join("config.toml");
    let file = log.join("usage.jsonl");
    std::fs::write(&config, format!("[usage]\npath = \"{}\"\n", file.display())).unwrap();
    let pinfold = |verbs: &[&str], input: &Value| -> Ran {
        let mut command = world.pinfold(verbs);
        command.arg("--config").arg(&config);
        Running::start(&mut command, input.to_string().as_bytes()).wait()
    };
    let mode = |mode| std::fs::set_permissions(&log, PermissionsExt::from_mode(mode)).unwrap();
    let mount = |options: &str| {
        let line = ["-t", "tmpfs", "-o", options, "none"];
        process::run(Command::new("mount").args(line).arg(&log)).ok();
    };
    let full = || {
        mount("size=4k,mode=755");
        std::fs::write(log.join("filler"), [b'x'; 4096]).expect("fill it");
    };
    let locked = || -> Option<nix::fcntl::Flock<std::fs::File>> {
        // Records of owners before are in it.
        let file = std::fs::File::open(&file).unwrap();
        let how = nix::fcntl::FlockArg::LockExclusive;
        nix::fcntl::Flock::lock(file, how).ok()
    };
    std::fs::create_dir(&log).unwrap();
    for (number, (part, arrange)) in [
        ("can be written by others", 0),
        ("write ", 1),
        ("lock ", 2),
        ("usage.jsonl", 3),
    ]
    .into_iter()
    .enumerate()
    {
        let mut held = None;
        match arrange {
            0 => mode(0o777),
            1 => full(),
            2 => held = locked(),
            _ => {
                std::fs::rename(&file, log.join("kept")).unwrap();
                std::fs::create_dir(&file).unwrap();
            }
        }
        let id = format!("owner-{number}");
        let standin = Standin::new(world, &id);
        pinfold(&["hook", "prestart"], &state(&id, standin.pid, request())).ok();
        let group = standin.die();
        let ran = pinfold(&["hook", "poststop"], &stopped(&id, request())).ok();
        assert!(
            ran.stderr.contains("are not accounted for yet") && ran.stderr.contains(part),
            "{part}: {ran}"
        );
        assert!(ran.took < Duration::from_secs(15), "{ran}");
        world.assert_all_free(part);
        // Nor is a start, nor `reconcile`.
        let next = Standin::new(world, "next");
        pinfold(&["hook", "prestart"], &state("next", next.pid, request())).ok();
        next.die();
        pinfold(&["reconcile"], &Value::Null).ok();
        world.assert_settled(part);
        drop(held);
        match arrange {
            0 => mode(0o755),
            1 => drop(process::run(Command::new("umount").arg(&log)).ok()),
            2 => {}
            _ => {
                std::fs::remove_dir(&file).unwrap();
                std::fs::rename(log.join("kept"), &file).unwrap();
            }
        }
        let summed = pinfold(&["usage", "--json"], &Value::Null).ok();
        let summed: Value = serde_json::from_str(&summed.stdout).expect("it is JSON");
        assert_eq!(
            summed["usage"][0]["ended"],
            2 * (number + 1),
            "{part}: {summed}"
        );
        let _ = std::fs::remove_dir(group);
    }
    let mode = file.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    assert!(is_empty(&world.run.join("ended")));
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).expect("list it").next().is_none()
}

fn switched_off(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let config = world.dir.join("config.toml");
    std::fs::write(&config, "[usage]\nenabled = false\n").unwrap();
    let hook = |stage: &str, input: &Value| {
        let mut command = world.pinfold(&["hook", stage]);
        command.arg("--config").arg(&config);
        Running::start(&mut command, input.to_string().as_bytes())
            .wait()
            .ok();
    };
    let standin = Standin::new(world, "a");
    hook("prestart", &state("a", standin.pid, request()));
    standin.die();
    hook("poststop", &stopped("a", request()));
    world.assert_all_free("it has ended");
    for name in ["ended", "samples", "usage.jsonl"] {
        assert!(!world.run.join(name).exists(), "{name}");
    }
}

/// A service that runs on goes by the configuration as it is by now, and by the former one while it
/// makes no sense.
fn switched_on(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("other", Kind::Exclusive, &["0"]);
    let config = world.dir.join("config.toml");
    let put = |text: &str| {
        let beside = world.dir.join("config.new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(&beside, &config).unwrap();
    };
    put("[usage]\nenabled = false\n");
    let with_config = |arguments: &[&str], input: &str| {
        let mut command = world.pinfold(arguments);
        command.arg("--config").arg(&config);
        Running::start(&mut command, input.as_bytes())
    };
    let standin = Standin::new(world, "a");
    let given = state("a", standin.pid, request()).to_string();
    with_config(&["hook", "prestart"], &given).wait().ok();
    let service = with_config(&["reconcile", "--interval", "1"], "");
    // A dead owner that is freed shows that a round has begun since.
    let mut freed = 0;
    let mut goes_round = || {
        freed += 1;
        std::fs::write(world.tasks_file("other", "0"), "4194303").unwrap();
        process::eventually("a dead owner is freed", || {
            (service.stdout().lines().count() == freed).then_some(())
        });
    };
    goes_round();
    put("torn [");
    let complaint = "until then the settings are the former ones";
    let complaints = || service.stderr().matches(complaint).count();
    process::eventually("it complains", || (complaints() == 1).then_some(()));
    goes_round();
    goes_round();
    assert_eq!(complaints(), 1, "{}", service.stderr());
    assert!(!world.run.join("samples").exists());
    put("");
    process::eventually("it reads what the owner uses", || {
        world.run.join("samples").exists().then_some(())
    });
    service.signal(libc::SIGTERM);
    standin.die();
    let ended = stopped("a", request()).to_string();
    with_config(&["hook", "poststop"], &ended).wait().ok();
    world.assert_all_free("it has ended");
}
