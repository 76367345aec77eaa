//! I5: a request that cannot be met is refused in one sentence, and nothing stays changed.

use crate::case::{Case, plain};
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, affinity};
use crate::world::{Kind, Standin, World, binary, state};
use serde_json::json;
use std::os::unix::process::CommandExt;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let v1 = &[Need::Root, Need::V1, Need::Cpus(2)];
    vec![
        plain(
            "refusals::the_parent_allows_none_of_the_cpus",
            root,
            parent_allows_none,
        ),
        plain(
            "refusals::the_parent_keeps_some_of_the_cpus_away",
            root,
            parent_keeps_some_away,
        ),
        plain("refusals::the_kernel_refuses_the_mask", v1, kernel_refuses),
        plain(
            "refusals::the_pool_directory_is_somebody_elses",
            &[Need::Root],
            somebody_elses,
        ),
    ]
}

/// The hook refuses, with `word` in what it says; the books and the process are as before.
fn assert_refused(world: &World, standin: &Standin, word: &str) {
    let (mask, cpus) = (standin.mask(), affinity(standin.pid));
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let refused = world
        .hook("prestart", &state("a", standin.pid, annotations))
        .exits(1);
    assert!(
        refused.stderr.contains(word),
        "should name {word:?}: {refused}"
    );
    assert_eq!(
        refused.stderr.trim_end().lines().count(),
        1,
        "one sentence: {refused}"
    );
    assert_eq!((standin.mask(), affinity(standin.pid)), (mask, cpus));
    world.assert_all_free("after a refusal");
}

fn parent_allows_none(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let parent = format!("{}-parent", world.tag);
    let path = hierarchy().make(&parent);
    cgroups::narrow(&path, "0");
    let standin = Standin::inside(&hierarchy().make_inside(&path, "child"), &["--wait"]);
    assert_refused(world, &standin, &parent);
}

/// What others see as free is counted, and what the refusal says to do lets the next one start.
fn parent_keeps_some_away(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let path = hierarchy().make(&format!("{}-parent", world.tag));
    cgroups::narrow(&path, "0");
    let start = |name: &str| {
        let standin = Standin::inside(&hierarchy().make_inside(&path, name), &["--wait"]);
        let annotations = json!({ "pinfold.io/pool": "dp" });
        let ran = world.hook("prestart", &state(name, standin.pid, annotations));
        (standin, ran)
    };
    let (_first, ran) = start("first");
    ran.ok();
    let (_second, refused) = start("second");
    let refused = refused.exits(1);
    for part in [
        "0 free, and 1 besides that nobody owns",
        "keeps away: it allows only the CPUs 0",
    ] {
        assert!(refused.stderr.contains(part), "{part}: {refused}");
    }
    let command = refused.stderr.split('`').nth(1).expect("a command");
    process::run(Command::new("sh").args(["-c", command])).ok();
    let (third, ran) = start("third");
    ran.ok();
    assert_eq!(affinity(third.pid), "1");
}

/// Whoever may not lock is told what to do, and may look all the same.
fn somebody_elses(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0"]);
    // Where the binary lies, not everybody may go.
    let copy = world.dir.join("pinfold");
    std::fs::copy(binary(), &copy).unwrap();
    let as_nobody = |verb: &str| {
        let mut command = Command::new(&copy);
        command.arg(verb).args(world.options()).env_clear();
        process::run(command.current_dir("/").uid(65534).gid(65534))
    };
    let refused = as_nobody("reconcile").exits(1);
    for words in ["only its owner may lock", "--conf-dir, --run-dir"] {
        assert!(refused.stderr.contains(words), "{refused}");
    }
    let described = as_nobody("describe").ok();
    assert!(described.stdout.contains("Nobody owns"), "{described}");
    assert!(described.stderr.contains("without the lock"), "{described}");
}

/// The kernel says no to the mask itself, for a cgroup below has other CPUs: what was recorded by
/// then is taken back.
fn kernel_refuses(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let below = hierarchy().make_inside(&standin.cgroup(), "below");
    cgroups::narrow(&below, "0");
    assert_refused(world, &standin, "dp");
}
