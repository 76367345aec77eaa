//! `pinfold metrics`: what another project's parser reads in it, what is counted, and who may ask
//! for it how.

use crate::case::{Case, plain};
use crate::needs::{Need, prometheus_python};
use crate::process::{self, Ran, Running};
use crate::strace;
use crate::world::{Kind, Standin, World, state, stopped};
use nix::libc;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let parser = &[Need::Root, Need::Cpus(2), Need::PrometheusClient];
    let strace = &[Need::Root, Need::Cpus(2), Need::Strace];
    vec![
        plain("metrics::read_by_prometheus_own_parser", parser, parsed),
        plain("metrics::what_is_counted", root, counted),
        plain("metrics::a_plain_start_pays_nothing", strace, pays_nothing),
        plain("metrics::served", root, served),
    ]
}

fn request() -> Value {
    json!({ "pinfold.io/pool": "dp" })
}

fn start(world: &World, id: &str, standin: &Standin) -> Ran {
    world.hook("createRuntime", &state(id, standin.pid, request()))
}

fn metrics(world: &World) -> String {
    process::run(&mut world.pinfold(&["metrics"])).ok().stdout
}

/// A metric without labels, or with these words in its line.
#[track_caller]
fn value(text: &str, name: &str, words: &[&str]) -> f64 {
    let is_it =
        |line: &&str| line.starts_with(name) && words.iter().all(|word| line.contains(word));
    let line = text.lines().find(is_it);
    let line = line.unwrap_or_else(|| panic!("no {name} {words:?}: {text}"));
    let number = line.rsplit(' ').next().and_then(|text| text.parse().ok());
    number.unwrap_or_else(|| panic!("no number: {line}"))
}

/// Every sample as `[family, type, unit, name, labels, value]`.
fn parse(module: &str, text: &str) -> Vec<Value> {
    let script = format!(
        "import sys, json
from {module} import text_string_to_metric_families as parse
print(json.dumps([[f.name, f.type, f.unit, s.name, s.labels, s.value] for f in parse(sys.stdin.read()) for s in f.samples]))"
    );
    let python = prometheus_python().expect("the test needs it");
    let mut command = Command::new(python);
    let ran = Running::start(command.args(["-c", &script]), text.as_bytes())
        .wait()
        .ok();
    serde_json::from_str(&ran.stdout).expect("it is JSON")
}

#[track_caller]
fn sample<'a>(samples: &'a [Value], name: &str, labels: &Value) -> &'a Value {
    let has = |one: &&Value| {
        let mut labels = labels.as_object().expect("labels").iter();
        one[3] == name && labels.all(|(key, value)| one[4][key] == *value)
    };
    let found = samples.iter().find(has);
    found.unwrap_or_else(|| panic!("no {name} {labels}: {samples:?}"))
}

/// Lets a claim have a name that no program of ours would have kept; as older ones wrote it,
/// without a check sum.
pub(crate) fn rename_in_claim(world: &World, id: &str, name: &str) {
    let home = std::fs::read_dir(world.run.join("claims").join(id)).expect("it has claims");
    let file = home.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut claim = world.claim_of(id);
    claim.as_object_mut().expect("a claim").remove("sum");
    claim["names"] = json!({ "name": name });
    std::fs::write(&file, claim.to_string()).expect("write the claim");
}

/// An owner of a name that nobody can be trusted with, a refusal, and a list that a dead one holds.
fn parsed(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let owner = Standin::running(world, "a", &["--burn"]);
    start(world, "a", &owner).ok();
    let name = "a\"} 1\\n\\\u{202e}\n# EOF\n";
    rename_in_claim(world, "a", name);
    // Nobody can ask for a pool of such a name, but it is a directory like any other.
    let pool = "b\"} 2\n\\\u{1b}[2J\u{202e}";
    let odd = [pool.as_bytes(), b"\xff\n"];
    let odd = odd.map(|name| {
        world
            .conf
            .join("pools")
            .join(std::ffi::OsStr::from_bytes(name))
    });
    for home in &odd {
        std::fs::create_dir_all(home.join("7")).expect("make a pool");
        std::fs::write(home.join("exclusive"), "1").expect("make a pool");
        std::fs::write(home.join("7/tasks"), "").expect("make a pool");
    }
    let dead = Standin::new(world, "b");
    start(world, "b", &dead).ok();
    let refused = Standin::new(world, "c");
    start(world, "c", &refused).exits(1);
    dead.die();
    process::eventually("it uses its CPU", || {
        let used = value(
            &metrics(world),
            "pinfold_owner_cpu_seconds_total",
            &["\"a\"", "user"],
        );
        (used > 0.2).then_some(())
    });
    let text = metrics(world);
    // Ends of lines are the text's own, and nothing else of it is invisible.
    let is_plain = |character: char| matches!(character, ' '..='~' | '\n');
    assert!(text.chars().all(is_plain), "{text:?}");
    let samples = parse("prometheus_client.openmetrics.parser", &text);
    let told = "b\"} 2\\n\\\\u{1b}[2J\\u{202e}";
    let labels = json!({ "pool": told, "state": "free" });
    assert_eq!(
        sample(&samples, "pinfold_pool_lists", &labels)[5].as_f64(),
        Some(1.0)
    );
    let lists = |state: &str| {
        let labels = json!({ "pool": "dp", "state": state });
        sample(&samples, "pinfold_pool_lists", &labels)[5].as_f64()
    };
    let all = ["free", "owned", "dead"].map(lists);
    assert_eq!(all, [Some(0.0), Some(1.0), Some(1.0)]);
    let refusals = json!({ "reason": "exhausted" });
    let refusals = sample(&samples, "pinfold_refusals_total", &refusals);
    assert_eq!(refusals[1], "counter");
    assert_eq!(refusals[5].as_f64(), Some(1.0));
    let used = json!({ "id": "a", "pool": "dp", "mode": "user" });
    let used = sample(&samples, "pinfold_owner_cpu_seconds_total", &used);
    assert_eq!((&used[1], &used[2]), (&json!("counter"), &json!("seconds")));
    assert_eq!(used[4]["name"], "a\"} 1\\n\\\\u{202e}\\n# EOF\\n", "{used}");
    sample(
        &samples,
        "pinfold_owner_noise_seconds_total",
        &json!({ "id": "a" }),
    );
    sample(&samples, "pinfold_lock_wait_seconds_total", &json!({}));
    sample(&samples, "pinfold_reclaimed_lists_total", &json!({}));

    // node_exporter reads the older format, and takes every file that ends so.
    let dir = world.dir.join("textfiles");
    std::fs::create_dir(&dir).expect("make a directory");
    let file = dir.join("pinfold.prom");
    for _ in 0..2 {
        let line = ["metrics", "--textfile", file.to_str().expect("UTF-8")];
        let ran = process::run(&mut world.pinfold(&line)).ok();
        assert_eq!(ran.stdout, "");
    }
    let text = std::fs::read_to_string(&file).expect("it is written");
    let older = parse("prometheus_client.parser", &text);
    let refusals = sample(
        &older,
        "pinfold_refusals_total",
        &json!({ "reason": "exhausted" }),
    );
    assert_eq!(refusals[1], "counter", "{refusals}");
    assert_eq!(older.len(), samples.len());
    odd.iter()
        .for_each(|home| std::fs::remove_dir_all(home).expect("remove the pool"));
    // Types that it does not know are errors to it.
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    assert!(types.clone().count() > 5);
    for of in types {
        assert!(of.ends_with(" counter") || of.ends_with(" gauge"), "{of}");
    }
    let left = std::fs::read_dir(&dir).expect("list it").count();
    assert_eq!(left, 1, "something else is left beside it");
    let nowhere = ["metrics", "--textfile", "/no/such/directory/a.prom"];
    process::run(&mut world.pinfold(&nowhere)).exits(1);
}

/// What is slow anyhow is counted, by whoever is slow; what goes as it should counts nothing.
fn counted(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let refusals = |reason: &str| {
        let label = format!("\"{reason}\"");
        value(&metrics(world), "pinfold_refusals_total", &[&label])
    };
    let reclaimed = || value(&metrics(world), "pinfold_reclaimed_lists_total", &[]);
    let a = Standin::new(world, "a");
    start(world, "a", &a).ok();
    let b = Standin::new(world, "b");
    let asking = |annotations: Value| {
        world
            .hook("createRuntime", &state("b", b.pid, annotations))
            .exits(1)
    };
    start(world, "b", &b).exits(1);
    asking(json!({ "pinfold.io/pool": "none-such" }));
    asking(json!({ "pinfold.io/pool": "dp", "pinfold.io/lists": "many" }));
    asking(json!({ "pinfold.io/pool": "dp", "pinfold.io/lists": "2" }));
    let line = ["isolate", "--pool", "dp", "--", "true"];
    process::run(&mut world.pinfold(&line)).exits(125);
    for (reason, count) in [
        ("exhausted", 2.0),
        ("pool", 1.0),
        ("request", 1.0),
        ("unfit", 1.0),
        ("rules", 0.0),
        ("lock", 0.0),
        ("other", 0.0),
    ] {
        assert_eq!(refusals(reason), count, "{reason}");
    }
    // The end of a container is no leak, and that of one that had no end is, whoever finds it.
    a.die();
    world.hook("poststop", &stopped("a", request())).ok();
    assert_eq!(reclaimed(), 0.0);
    let pinned = |id: &str| {
        let standin = Standin::new(world, id);
        start(world, id, &standin).ok();
        standin.die()
    };
    pinned("c");
    world.reconcile();
    assert_eq!(reclaimed(), 1.0);
    pinned("d");
    pinned("e");
    assert_eq!(reclaimed(), 2.0, "the start of e has freed it");
    world.reconcile();
    assert_eq!(reclaimed(), 3.0);

    let waited = || value(&metrics(world), "pinfold_lock_wait_seconds_total", &[]);
    let before = waited();
    let f = Standin::new(world, "f");
    let lock = world.hold_lock();
    let hook = world.hooking("createRuntime", &state("f", f.pid, request()));
    process::eventually("the hook waits", || {
        world
            .hooks_at_the_lock()
            .contains(&hook.pid())
            .then_some(())
    });
    let held = Instant::now();
    std::thread::sleep(Duration::from_millis(300));
    drop(lock);
    let most = held.elapsed().as_secs_f64() + 5.0;
    hook.wait().ok();
    let told = waited() - before;
    assert!((0.2..most).contains(&told), "{told}");
    // Whoever gives up has waited as well.
    let _lock = world.hold_lock();
    let mut hook = world.pinfold(&["hook", "createRuntime"]);
    hook.args(["--lock-timeout", "0.2"]);
    let input = state("g", b.pid, request()).to_string();
    Running::start(&mut hook, input.as_bytes()).wait().exits(1);
    assert!(waited() - before > told + 0.15);
    assert_eq!(refusals("lock"), 1.0);
}

/// A start that goes as it should, and finds the lock free, makes no call for any count or account.
fn pays_nothing(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    world.reconcile();
    let a = Standin::new(world, "a");
    let trace = world.dir.join("trace");
    let command = world.pinfold(&["hook", "createRuntime"]);
    let mut strace = strace::under(&command, &["-f".to_owned()], &trace);
    let input = state("a", a.pid, request()).to_string();
    Running::start(&mut strace, input.as_bytes()).wait().ok();
    let text = std::fs::read_to_string(&trace).expect("read the trace");
    for name in [
        "counters",
        "samples",
        "ended",
        "usage.jsonl",
        "cpuacct",
        "cpu.stat",
        "/proc/stat",
    ] {
        let touching: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
        let touching = touching
            .iter()
            .filter(|line| !line.contains("read(") && !line.contains("execve("));
        assert_eq!(touching.collect::<Vec<_>>(), Vec::<&&str>::new(), "{name}");
    }
    assert!(text.contains("tasks"), "the trace is of a start");
    println!(
        "a plain createRuntime makes {} calls",
        strace::points_in(&text).len()
    );
}

/// What is asked, and what is answered.
fn ask(address: &str, request: &[u8]) -> String {
    let mut client = TcpStream::connect(address).expect("connect");
    client
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // Whoever does not like it may close at once.
    let _ = client.write_all(request);
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// A thousand that connect at once and say nothing, or a letter now and then, or for ever the
/// same: a few threads, little memory, and who asks properly is answered once those are given up.
fn many_at_once(address: &str, pid: i32) {
    let status = |key: &str| -> usize {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|number| number.parse().ok()).expect(key)
    };
    let before = status("VmRSS:");
    // A listener's queue has room for some, and the others are kept waiting by the kernel.
    let connect = |_| TcpStream::connect_timeout(&address.parse().unwrap(), CONNECTED_WITHIN);
    let mut crowd: Vec<TcpStream> = (0..1000).map_while(|number| connect(number).ok()).collect();
    assert!(crowd.len() >= 100, "{}", crowd.len());
    for (number, client) in crowd.iter_mut().enumerate() {
        client.set_nonblocking(true).unwrap();
        let said: &[u8] = match number % 3 {
            0 => b"",
            1 => b"G",
            _ => &[b'x'; 6000],
        };
        let _ = client.write(said);
    }
    let drips = Instant::now();
    while drips.elapsed() < Duration::from_secs(3) {
        crowd.iter_mut().for_each(|client| drop(client.write(b"y")));
        let (threads, memory) = (status("Threads:"), status("VmRSS:"));
        assert!(threads <= 10, "{threads} threads");
        assert!(memory < before + 20_000, "{before} and then {memory} kB");
        std::thread::sleep(Duration::from_millis(200));
    }
    drop(crowd);
}

/// How long a connection may take that the kernel has room for.
const CONNECTED_WITHIN: Duration = Duration::from_millis(300);

fn served(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let line = ["metrics", "--listen", "127.0.0.1:0", "-v"];
    let server = Running::start(&mut world.pinfold(&line), b"");
    let address = process::eventually("it listens", || {
        let said = server.stderr();
        let (_, rest) = said.split_once("listening on ")?;
        rest.lines().next().map(str::to_owned)
    });
    let get = |path: &str| {
        ask(
            &address,
            format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(),
        )
    };
    let answer = get("/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("application/openmetrics-text; version=1.0.0"),
        "{answer}"
    );
    assert!(
        answer.ends_with("# EOF\n") && answer.contains("pinfold_pool_lists"),
        "{answer}"
    );
    assert!(get("/metrics?x=1").contains("200 OK"));
    assert!(get("/").contains(" 404 "));
    for (request, status) in [
        (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], " 405 "),
        (b"nonsense\r\n\r\n", " 400 "),
        (b"GET /metrics\r\n\r\n", " 400 "),
        (b"\xff\0\r\n\r\n", " 400 "),
        (&[b'x'; 20_000], " 400 "),
    ] {
        let answer = ask(&address, request);
        // One who still sends when it is answered may lose the answer.
        assert!(
            answer.contains(status) || request.len() > 10_000,
            "{answer}"
        );
    }
    // Nobody who asks slowly, or reads nothing, keeps others out.
    let mut slow = TcpStream::connect(&address).expect("connect");
    slow.write_all(b"GET /met").expect("begin to ask");
    let deaf = TcpStream::connect(&address).expect("connect");
    let began = Instant::now();
    assert!(get("/metrics").contains("200 OK"));
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    drop((slow, deaf));
    many_at_once(&address, server.pid());
    assert!(get("/metrics").contains("200 OK"));
    // A site that cannot be read is an answer, too.
    std::fs::rename(&world.conf, world.dir.join("away")).expect("move it");
    assert!(get("/metrics").contains(" 500 "));
    std::fs::rename(world.dir.join("away"), &world.conf).expect("move it back");
    assert!(get("/metrics").contains("200 OK"));
    let taken = ["metrics", "--listen", &address];
    process::run(&mut world.pinfold(&taken)).exits(1);
    server.signal(libc::SIGTERM);
    server.wait();
}
