//! The verbs that only look: whatever fails, they change nothing, and what they say with the exit
//! code of a success is true, or they say what they could not tell.

use crate::campaign::{Ending, Scene, short_campaign};
use crate::cases::{Case, Need, plain};
use crate::process::Ran;
use crate::verbs::{POOL, all_comes_back, annotations, fresh, pin, victim};
use crate::world::{Standin, World, files_below, state, stopped};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("errors::describe", needs, |world| {
            looks(world, &["describe", "--json"], whole);
        }),
        plain("errors::status", needs, |world| {
            looks(world, &["status"], without_times);
        }),
        plain("errors::status_json", needs, |world| {
            looks(world, &["status", "--json"], whole);
        }),
        plain("errors::explain", needs, |world| {
            looks(world, &["explain", "--pool", POOL, "--json"], whole);
        }),
        plain("errors::topology", needs, |world| {
            looks(world, &["topology"], without_memory);
        }),
        plain("errors::topology_json", needs, |world| {
            looks(world, &["topology", "--json"], without_memory);
        }),
        plain("errors::stats", needs, |world| {
            let line = &["stats", "--no-stream", "--interval", "0.1", "--json"];
            looks(world, line, who_is_measured);
        }),
        plain("errors::usage", needs, |world| {
            looks(world, &["usage", "--by", "name", "--json"], whole);
        }),
        plain("errors::metrics", needs, |world| {
            looks(world, &["metrics"], what_is_measured);
        }),
        plain("errors::metrics_textfile", needs, textfile),
        plain("errors::why", needs, |world| {
            looks(world, &["why", "--json"], whole);
        }),
        plain("errors::pool_show", needs, |world| {
            looks(world, &["pool", "show", "--json"], whole);
        }),
        plain("errors::check", needs, check),
        plain("errors::check_deep", needs, |world| {
            looks(world, &["check", "--deep", "--json"], deep);
        }),
    ]
}

/// What the scene of a look has: a live owner of one list, an owner that ended, and a refusal.
fn arrange(world: &World) -> Standin {
    fresh(world, &["0", "1"]);
    let (id, standin) = (victim(world), Standin::new(world, "a"));
    pin(world, &id, standin.pid);
    let ended = Standin::new(world, "ended");
    pin(world, "ended", ended.pid);
    let refused = state("refused", ended.pid, json!({ "pinfold.io/pool": "no" }));
    world.hook("createRuntime", &refused).exits(1);
    let group = ended.die();
    world
        .hook("poststop", &stopped("ended", annotations()))
        .ok();
    let _ = std::fs::remove_dir(group);
    standin
}

/// All files of the books, and what is in them.
fn books(world: &World) -> Vec<(PathBuf, Vec<u8>)> {
    let files = [&world.conf, &world.run].into_iter();
    let files = files.flat_map(|directory| files_below(directory));
    let files = files.filter(|file| !is_a_sample(world, file));
    let mut files: Vec<_> = files
        .map(|file| {
            let bytes = std::fs::read(&file).expect("read a file of the books");
            (file, bytes)
        })
        .collect();
    files.sort();
    files
}

/// What was last read of an owner is no part of the books.
fn is_a_sample(world: &World, file: &Path) -> bool {
    file.starts_with(world.run.join("samples"))
}

/// Runs the campaign of a verb that only looks; `essence` is what of its output is the same each
/// time.
fn looks(world: &World, line: &'static [&'static str], essence: fn(&str) -> String) {
    looking(world, line, |expected, ending| {
        let (expected, said) = (essence(expected), essence(&ending.stdout));
        assert_eq!(said, expected, "silently other: {}", ending.stderr);
    });
}

/// `compare` has the output as it should be, and an ending that has its exit code and said nothing
/// else.
fn looking(world: &World, line: &'static [&'static str], compare: impl Fn(&str, &Ending) + Copy) {
    // Nothing changes: the next trial finds what this one did, unless it failed.
    let arranged = RefCell::new(None::<(Standin, Ran)>);
    let end = |arranged: Option<(Standin, Ran)>| {
        let group = arranged.map(|(standin, _)| standin.die());
        all_comes_back(world, &Vec::from_iter(group));
    };
    short_campaign(world, &line.join(" "), || {
        let mut arranged = arranged.borrow_mut();
        let lives = |one: &&mut (Standin, Ran)| crate::process::is_alive(one.0.pid);
        if arranged.as_mut().filter(lives).is_none() {
            let standin = arrange(world);
            let before = books(world);
            let expected = crate::process::run(&mut world.pinfold(line)).ok();
            assert_eq!(books(world), before, "it changed something");
            *arranged = Some((standin, expected));
        }
        let expected = arranged.as_ref().map(|(_, ran)| ran.stdout.clone());
        let (expected, before) = (expected.unwrap_or_default(), books(world));
        Scene {
            command: world.pinfold(line),
            input: String::new(),
            judge: Box::new(move |ending| {
                assert_eq!(books(world), before, "it changed something: {ending:?}");
                // Whoever hears nothing more is told nothing more.
                if ending.is_success() && ending.stderr.is_empty() && !ending.is_unread {
                    compare(&expected, ending);
                }
            }),
            finish: Box::new(|| {}),
        }
    });
    end(arranged.into_inner());
}

fn whole(text: &str) -> String {
    text.to_owned()
}

/// How much memory there is may be unknown, and is called so.
fn without_memory(text: &str) -> String {
    let lines = text.lines().map(|line| match line.split_once("memory") {
        Some((before, _)) => before,
        None => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The last column of a table of owners is how long they are owners.
fn without_times(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| match line.trim_end().rsplit_once(' ') {
            Some((rest, since)) if since.ends_with(['s', 'm']) => rest.trim_end(),
            _ => line.trim_end(),
        });
    lines.collect::<Vec<_>>().join("\n")
}

/// Who is there; how much it was differs from one time to the next, and is null where it cannot be
/// told.
fn who_is_measured(text: &str) -> String {
    let document: Value = serde_json::from_str(text).expect("stats prints JSON");
    let owners = document["owners"].as_array().expect("a list of owners");
    let owners = owners.iter().map(|owner| {
        let told = ["id", "name", "pool", "lists", "cpus", "pid"];
        told.map(|key| owner[key].to_string()).join(" ")
    });
    owners.collect::<Vec<_>>().join("\n")
}

/// Every line, but for the value where it is a time; in no order. Others are watched from the
/// second time on.
fn what_is_measured(text: &str) -> String {
    let is_there_always = |line: &&str| !line.contains("_noise_") && !line.contains("_watched_");
    let lines = text
        .lines()
        .filter(is_there_always)
        .map(|line| match line.rsplit_once(' ') {
            Some((name, _)) if name.contains("_seconds_total") => name,
            _ => line,
        });
    let mut lines: Vec<&str> = lines.collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The findings about the books.
fn deep(text: &str) -> String {
    let document: Value = serde_json::from_str(text).expect("check prints JSON");
    let findings = document["findings"].as_array().expect("a list of findings");
    let is_deep = |finding: &&Value| finding["what"] == "books";
    let findings = findings.iter().filter(is_deep).map(Value::to_string);
    findings.collect::<Vec<_>>().join("\n")
}

/// Some hundred files of others are looked at, and what cannot be looked at is not always told:
/// that is counted.
fn check(world: &World) {
    let silent = AtomicUsize::new(0);
    looking(world, &["check", "--json"], |expected, ending| {
        silent.fetch_add(usize::from(ending.stdout != expected), Ordering::Relaxed);
    });
    println!(
        "check said silently other things {} times",
        silent.into_inner()
    );
}

/// Whoever reads the file finds all of it, old or new.
fn textfile(world: &World) {
    let file = world.dir.join("pinfold.prom");
    let line = ["metrics", "--textfile", file.to_str().expect("a path")];
    short_campaign(world, "metrics --textfile", || {
        let standin = arrange(world);
        crate::process::run(&mut world.pinfold(&line)).ok();
        let expected = std::fs::read_to_string(&file).expect("there is a file");
        std::fs::write(&file, "old").expect("write an old file");
        let before = books(world);
        let file = &file;
        Scene {
            command: world.pinfold(&line),
            input: String::new(),
            judge: Box::new(move |ending| {
                let text = std::fs::read_to_string(file).expect("there is a file");
                assert_eq!(books(world), before, "it changed something: {ending:?}");
                // Where nothing else is said, it is what it should be.
                let is_told = !ending.is_success() || !ending.stderr.is_empty();
                let (is_old, expected) = (text == "old", what_is_measured(&expected));
                assert!(!is_old || !ending.is_success(), "not written: {ending:?}");
                assert!(text.ends_with('\n') || is_old, "it is torn: {text}");
                if !is_told {
                    assert_eq!(what_is_measured(&text), expected, "silently other");
                }
            }),
            finish: Box::new(move || {
                let group = standin.die();
                all_comes_back(world, &[group]);
            }),
        }
    });
}
