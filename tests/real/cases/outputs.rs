//! What a verb prints, and what becomes of that: a reader that is gone changes no exit code, an
//! error is never taken for one, and nothing that others named reaches a terminal raw.

use crate::case::{Case, plain};
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, Ran, affinity};
use crate::strace;
use crate::world::{Kind, Standin, World, state};
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let traced = &[Need::Root, Need::Cpus(2), Need::Strace];
    vec![
        plain(
            "outputs::a_reader_that_is_gone_changes_no_exit_code",
            root,
            reader_is_gone,
        ),
        plain(
            "outputs::what_cannot_be_written_is_a_failure_only_of_what_is_there_to_be_read",
            root,
            disk_is_full,
        ),
        plain(
            "outputs::no_error_is_taken_for_a_closed_pipe",
            traced,
            errors_are_no_closed_pipe,
        ),
        plain(
            "outputs::a_process_that_ends_while_it_is_brought_back_is_gone",
            traced,
            gone_is_gone,
        ),
        plain(
            "outputs::what_others_named_is_shown_by_its_number",
            root,
            shown_by_its_number,
        ),
    ]
}

/// A pool `dp` of CPU 1 with a live owner, a claim that cannot be read and a pool that cannot be:
/// there is something to say, and something wrong.
fn owner_and_trouble(world: &World) -> Standin {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let owner = Standin::new(world, "a");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("a", owner.pid, annotations))
        .ok();
    let bad = world.run.join("claims/bad/1-1.json");
    std::fs::create_dir_all(bad.parent().unwrap()).unwrap();
    std::fs::write(bad, "{").unwrap();
    std::fs::create_dir(world.conf.join("pools/half-made")).unwrap();
    owner
}

/// Verbs that only look, with what they exit with.
const LOOKING: [(&[&str], i32); 13] = [
    (&["status"], 1),
    (&["status", "--json"], 1),
    (&["describe"], 1),
    (&["describe", "--json"], 1),
    (&["pool", "show"], 1),
    (&["pool", "show", "--json"], 1),
    (&["topology"], 1),
    (&["topology", "--json"], 1),
    (&["topology", "--svg", "-"], 1),
    (&["check"], 1),
    (&["check", "--json"], 1),
    (&["explain", "--pool", "dp"], 1),
    (&["explain", "--pool", "dp", "--json"], 1),
];

/// It looks too, and does so where there are no pools yet.
const INIT: &[&str] = &["init", "--pool", "x=1:shared", "--dry-run"];

/// Verbs that do something, or refuse to.
const DOING: [(&[&str], i32); 7] = [
    (INIT, 1),
    (&["reconcile"], 1),
    (&["reconcile", "--json"], 1),
    (&["release", "a"], 1),
    (&["release", "never-heard-of"], 1),
    (&["pool", "resize", "dp", "1"], 1),
    (&["pool", "remove", "dp"], 1),
];

fn with_stdout(world: &World, words: &[&str], stdout: impl Into<Stdio>) -> Ran {
    let mut command = world.pinfold(words);
    process::run_into(&mut command, stdout)
}

/// The writing end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (_, writer) = nix::unistd::pipe().expect("make a pipe");
    writer.into()
}

fn reader_is_gone(world: &World) {
    let _owner = owner_and_trouble(world);
    for (words, code) in LOOKING.iter().chain(&DOING) {
        process::run(&mut world.pinfold(words)).exits(*code);
        with_stdout(world, words, closed_pipe()).exits(*code);
    }
    std::fs::remove_dir(world.conf.join("pools/half-made")).unwrap();
    // It held no list, and nobody of its number is there: `reconcile` has ended it.
    assert!(!world.run.join("claims/bad").exists());
    world.pool("other", Kind::Exclusive, &["0"]);
    with_stdout(world, &["pool", "remove", "other"], closed_pipe()).ok();
    assert!(!world.conf.join("pools/other").exists());
    with_stdout(world, &["release", "a", "--force"], closed_pipe()).ok();
    assert!(world.tasks("dp", "1").is_empty());
    // It would go on for ever; once it has something to say, it ends.
    let next = Standin::new(world, "next");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("prestart", &state("next", next.pid, annotations))
        .ok();
    next.die();
    let repeated = with_stdout(world, &["reconcile", "--interval", "1"], closed_pipe());
    repeated.ok();
    std::fs::remove_dir_all(&world.conf).unwrap();
    process::run(&mut world.pinfold(INIT)).ok();
    with_stdout(world, INIT, closed_pipe()).ok();
}

fn disk_is_full(world: &World) {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let _owner = owner_and_trouble(world);
    for (words, _) in LOOKING {
        let failed = with_stdout(world, words, full()).exits(1);
        assert!(failed.stderr.contains("standard output"), "{failed}");
    }
    for (words, code) in DOING {
        with_stdout(world, words, full()).exits(code);
    }
    // It held no list, and nobody of its number is there: `reconcile` has ended it.
    assert!(!world.run.join("claims/bad").exists());
    let told = with_stdout(world, &["release", "a", "--force"], full()).ok();
    assert!(told.stderr.contains("standard output"), "{told}");
    assert!(world.tasks("dp", "1").is_empty());
    std::fs::remove_dir_all(&world.conf).unwrap();
    let failed = with_stdout(world, INIT, full()).exits(1);
    assert!(failed.stderr.contains("standard output"), "{failed}");
}

/// A command of which every write(2) in turn fails with EPIPE, in a world that is made anew for
/// each.
struct Tried<'a, T> {
    /// Makes it; gets the number of the try.
    prepare: &'a dyn Fn(usize) -> T,
    command: &'a dyn Fn(&T) -> Command,
    input: &'a dyn Fn(&T) -> String,
    /// Has it done what it is for?
    is_done: &'a dyn Fn(&T) -> bool,
}

impl<T> Tried<'_, T> {
    /// Whoever exits with 0 did it, and who did it exits with 0.
    fn assert_told_truly(&self, world: &World) {
        let trace = world.dir.join("trace");
        let first = (self.prepare)(0);
        let input = (self.input)(&first);
        let command = (self.command)(&first);
        let points = strace::points(&command, strace::Whose::Its, input.as_bytes(), &trace);
        assert!((self.is_done)(&first));
        let writes = points.iter().filter(|point| point.call == "write");
        let count = writes.count();
        assert!(count > 0, "it writes nothing");
        for nth in 1..=count {
            let prepared = (self.prepare)(nth);
            let inject = format!("-einject=write:error=EPIPE:when={nth}");
            let arguments = ["-qq".into(), "-etrace=write".into(), inject];
            let command = (self.command)(&prepared);
            let mut traced = strace::under(&command, &arguments, &trace);
            let input = (self.input)(&prepared);
            let ran = process::Running::start(&mut traced, input.as_bytes()).wait();
            let is_done = (self.is_done)(&prepared);
            assert_eq!(
                ran.code() == Some(0),
                is_done,
                "write {nth} of {count}: {ran}"
            );
        }
    }
}

fn errors_are_no_closed_pipe(world: &World) {
    let annotations = || json!({ "pinfold.io/pool": "dp" });
    let fresh = || {
        world.empty();
        world.pool("dp", Kind::Exclusive, &["1"]);
    };
    Tried {
        prepare: &|nth| {
            fresh();
            Standin::new(world, &format!("hooked{nth}"))
        },
        command: &|_| world.pinfold(&["hook", "createRuntime"]),
        input: &|standin: &Standin| state("a", standin.pid, annotations()).to_string(),
        is_done: &|standin| affinity(standin.pid) == "1" && world.tasks("dp", "1") == [standin.pid],
    }
    .assert_told_truly(world);

    let mark = world.dir.join("mark");
    let path = mark.to_str().expect("a path in UTF-8");
    Tried {
        prepare: &|_| {
            fresh();
            let _ = std::fs::remove_file(&mark);
        },
        command: &|()| world.pinfold(&["isolate", "--pool", "dp", "--", "touch", path]),
        input: &|()| String::new(),
        is_done: &|()| mark.exists(),
    }
    .assert_told_truly(world);

    Tried {
        prepare: &|nth| {
            fresh();
            let owner = Standin::new(world, &format!("owner{nth}"));
            let started = state("owner", owner.pid, annotations());
            world.hook("prestart", &started).ok();
            owner
        },
        command: &|_| world.pinfold(&["release", "owner", "--force"]),
        input: &|_: &Standin| String::new(),
        is_done: &|_| world.tasks("dp", "1").is_empty() && world.claims().is_empty(),
    }
    .assert_told_truly(world);

    Tried {
        prepare: &|nth| {
            fresh();
            let owner = Standin::new(world, &format!("dead{nth}"));
            let started = state("owner", owner.pid, annotations());
            world.hook("prestart", &started).ok();
            owner.die();
        },
        command: &|()| world.pinfold(&["reconcile"]),
        input: &|()| String::new(),
        is_done: &|()| world.tasks("dp", "1").is_empty() && world.claims().is_empty(),
    }
    .assert_told_truly(world);

    let programs = world.dir.join("bin");
    std::fs::create_dir(&programs).expect("make a directory");
    for program in ["pinfold", "pinfold-runtime"] {
        let to = programs.join(program);
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_pinfold"), to).expect("link a program");
    }
    let config = world.dir.join("containerd.toml");
    let path = config.to_str().expect("a path in UTF-8");
    let programs = programs.to_str().expect("a path in UTF-8");
    let install = [
        "install",
        "containerd",
        "--engine-config",
        path,
        "--bin-dir",
        programs,
    ];
    Tried {
        prepare: &|_| std::fs::write(&config, "version = 2\n").expect("write a configuration"),
        command: &|()| world.pinfold(&install),
        input: &|()| String::new(),
        is_done: &|()| std::fs::read_to_string(&config).is_ok_and(|text| text.contains("pinfold")),
    }
    .assert_told_truly(world);

    Tried {
        prepare: &|_| fresh(),
        command: &|()| world.pinfold(&["pool", "add", "new:exclusive", "--list", "0"]),
        input: &|()| String::new(),
        is_done: &|()| world.conf.join("pools/new").exists(),
    }
    .assert_told_truly(world);
}

/// An owner that another tool moved to the group above is brought back; ESRCH says that it has
/// ended meanwhile.
fn gone_is_gone(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let above = hierarchy().make(&format!("{}-above", world.tag));
    let group = hierarchy().make_inside(&above, "own");
    let owner = Standin::inside(&group, &["--wait"]);
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let started = state("a", owner.pid, annotations);
    world.hook("prestart", &started).ok();
    let procs = group.join("cgroup.procs");
    for errno in ["ESRCH", "ENODEV"] {
        cgroups::enter(&above, owner.pid);
        let inject = format!("-einject=write:error={errno}");
        let path = procs.to_str().expect("a path in UTF-8").to_owned();
        let arguments = [
            "-qq".into(),
            "-P".into(),
            path,
            "-etrace=write".into(),
            inject,
        ];
        let trace = world.dir.join("trace");
        let command = world.pinfold(&["reconcile"]);
        process::run(&mut strace::under(&command, &arguments, &trace)).ok();
        let text = std::fs::read_to_string(&trace).expect("read the trace");
        assert!(
            text.contains("INJECTED"),
            "nothing was brought back: {text}"
        );
    }
    world.reconcile();
    assert_eq!(owner.cgroup(), group);
    assert_eq!(affinity(owner.pid), "1");
}

/// A character of each kind that a terminal acts on, hides, or draws over others.
const UNSEEN: &str =
    "\x1b\x07\u{9b}\u{202e}\u{2066}\u{200b}\u{200d}\u{feff}\u{2028}\u{ad}\u{e000}\u{e0041}\u{301}";

fn assert_seen(ran: &Ran) {
    for text in [&ran.stdout, &ran.stderr] {
        let raw = text.chars().find(|one| UNSEEN.contains(*one));
        assert_eq!(raw, None, "{ran:?}", ran = ran.to_string());
    }
}

fn shown_by_its_number(world: &World) {
    world.pool("dp", Kind::Shared, &["1"]);
    let hostile = format!("a{UNSEEN}b");
    // A process that calls itself so, as another tool's owner.
    let name = "\x1b\u{202e}\u{200b}\u{9b}x";
    let script = format!("printf '%s' '{name}' >/proc/$$/comm; while sleep 1; do :; done");
    let mut command = Command::new("/bin/sh");
    let child = process::Running::start(command.args(["-c", &script]), b"");
    let comm = format!("/proc/{}/comm", child.pid());
    process::eventually("the process has its name", || {
        (std::fs::read_to_string(&comm).ok()?.trim_end() == name).then_some(())
    });
    std::fs::write(world.tasks_file("dp", "1"), child.pid().to_string()).unwrap();
    // Files of others, in every place that has names.
    world.pool(&hostile, Kind::Exclusive, &["0"]);
    let bad = world.run.join("claims").join(&hostile);
    std::fs::create_dir_all(&bad).unwrap();
    std::fs::set_permissions(
        &world.run,
        std::os::unix::fs::PermissionsExt::from_mode(0o700),
    )
    .unwrap();
    std::fs::write(bad.join(format!("{hostile}.json")), &hostile).unwrap();
    for words in [
        &["describe"][..],
        &["describe", "--json"],
        &["pool", "show"],
        &["pool", "show", "--json"],
        &["pool", "show", &hostile],
        &["pool", "remove", &hostile],
        &["topology"],
        &["topology", "--json"],
        &["topology", "--svg", "-"],
        &["check"],
        &["check", "--json"],
        &["reconcile"],
        &["reconcile", "--json"],
        &["explain", "--pool", &hostile],
        &["explain", "--pool", "dp", "--json"],
        &["explain", "--pool", "dp", "--near", &hostile],
        &["release", &hostile],
        &["isolate", "--pool", &hostile, "--", "true"],
        &["isolate", "--pool", "dp", "--", &hostile],
        &["init", "--pool", &hostile],
        &["no-verb", &hostile],
        &[&hostile],
    ] {
        let ran = process::run(&mut world.pinfold(words));
        assert_seen(&ran);
        if words.contains(&"--json") && ran.stdout.starts_with('{') {
            serde_json::from_str::<Value>(&ran.stdout).expect("a JSON document");
        }
    }
    let table = process::run(&mut world.pinfold(&["status", "-o", "wide"])).stdout;
    assert!(table.contains(r"\u{1b}\u{202e}\u{200b}\u{9b}x"), "{table}");
    table.split("\n\n").for_each(assert_columns);
    std::fs::remove_dir_all(&bad).unwrap();
    let standin = Standin::new(world, "a");
    for annotations in [
        json!({ "pinfold.io/pool": hostile }),
        json!({ format!("pinfold.io/{hostile}"): "dp" }),
        json!({ "pinfold.io/pool": "dp", "pinfold.io/near": hostile }),
    ] {
        assert_seen(
            &world
                .hook("prestart", &state("a", standin.pid, annotations))
                .exits(1),
        );
    }
    let plain = json!({ "pinfold.io/pool": "dp" });
    assert_seen(
        &world
            .hook("prestart", &state(&hostile, standin.pid, plain))
            .exits(1),
    );
    let odd = world.dir.join(&hostile);
    let mut elsewhere = Command::new(crate::world::binary());
    elsewhere.arg("describe").arg("--conf-dir").arg(&odd);
    assert_seen(&process::run(&mut elsewhere).exits(1));
    assert!(!Path::new(&odd).exists());
}

/// In each row of a table the columns begin where the heading's do.
fn assert_columns(table: &str) {
    let mut rows = table.lines();
    let heading = rows.next().expect("a heading");
    let starts: Vec<usize> = heading
        .char_indices()
        .filter(|(at, one)| *one != ' ' && *at > 0 && heading[..*at].ends_with("  "))
        .map(|(at, _)| at)
        .collect();
    for row in rows {
        let row: Vec<char> = row.chars().collect();
        for at in &starts {
            // An ellipsis is one column, and more than one byte.
            let begins = matches!(row.get(at - 1..=*at), Some([' ', cell]) if *cell != ' ');
            assert!(begins, "column {at} of {row:?} in {table}");
        }
    }
}
