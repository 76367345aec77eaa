//! The verbs, each with what it finds and what its exit code promises.

use crate::campaign::{Ending, Scene, campaign, short_campaign};
use crate::cases::{Case, plain};
use crate::cgroups::{self, hierarchy};
use crate::needs::Need;
use crate::process::{self, affinity};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;
use std::path::{Path, PathBuf};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("errors::create_runtime", needs, create_runtime),
        plain("errors::prestart", needs, prestart),
        plain("errors::create_runtime_of_others", needs, of_others),
        plain("errors::create_runtime_that_frees", needs, that_frees),
        plain("errors::create_runtime_that_moves", needs, that_moves),
        plain("errors::poststop", needs, poststop),
        plain("errors::poststop_with_a_survivor", needs, survivor),
        plain("errors::release", needs, release),
        plain("errors::release_by_force", needs, force),
        plain("errors::release_that_forgets", needs, forget),
        plain("errors::reconcile", needs, reconcile),
        plain("errors::isolate", needs, isolate),
        plain("errors::pool_add", needs, pool_add),
        plain("errors::pool_remove", needs, pool_remove),
        plain("errors::pool_resize", needs, pool_resize),
        plain("errors::apply", needs, apply),
        plain("errors::init", needs, init),
    ]
}

pub(crate) const POOL: &str = "dp";

pub(crate) fn annotations() -> serde_json::Value {
    json!({ "pinfold.io/pool": POOL })
}

pub(crate) fn victim(world: &World) -> String {
    format!("{}-victim", world.tag)
}

pub(crate) fn fresh(world: &World, lists: &[&str]) {
    world.empty();
    world.pool(POOL, Kind::Exclusive, lists);
}

pub(crate) fn pin(world: &World, id: &str, pid: i32) {
    world
        .hook("createRuntime", &state(id, pid, annotations()))
        .ok();
}

/// Nobody is left; the first to look takes away what is left, and it is as on the first day.
pub(crate) fn all_comes_back(world: &World, groups: &[PathBuf]) {
    world.reconcile();
    world.assert_all_free("at the end");
    for group in groups {
        let is_restored = !group.exists() || cgroups::mask(group) == hierarchy().unnarrowed();
        assert!(
            is_restored,
            "{} keeps {}",
            group.display(),
            cgroups::mask(group)
        );
        let _ = std::fs::remove_dir(group);
    }
}

/// Has the container of this id what it asked for, wholly or not at all?
pub(crate) fn judge_start(world: &World, id: &str, pid: i32, ending: &Ending) {
    let claims = world.claims_of(id);
    let (tasks, runs_on) = (world.tasks(POOL, "1"), affinity(pid));
    if ending.is_success() {
        assert_eq!(claims.len(), 1, "a success without a claim: {ending:?}");
        assert_eq!((tasks, runs_on), (vec![pid], "1".into()), "{ending:?}");
        world.assert_settled("after a success");
    } else {
        if ending.is_clean_failure() {
            assert!(claims.is_empty(), "a failure leaves {claims:?}: {ending:?}");
        }
        if claims.is_empty() {
            assert!(!tasks.contains(&pid), "a failure leaves tasks: {ending:?}");
            assert_ne!(runs_on, "1", "confined to what it does not own: {ending:?}");
        }
    }
}

fn start<'a>(world: &'a World, standin: Standin, groups: Vec<PathBuf>) -> Scene<'a> {
    let (id, pid) = (victim(world), standin.pid);
    let input = state(&id, pid, annotations()).to_string();
    Scene {
        command: world.pinfold(&["hook", "createRuntime"]),
        input,
        judge: Box::new(move |ending| judge_start(world, &id, pid, ending)),
        finish: Box::new(move || {
            let own = standin.die();
            let own = (own != hierarchy().root).then_some(own);
            all_comes_back(world, &groups.into_iter().chain(own).collect::<Vec<_>>());
        }),
    }
}

fn create_runtime(world: &World) {
    campaign(world, "createRuntime", || {
        fresh(world, &["1"]);
        start(world, Standin::new(world, "a"), vec![])
    });
}

/// Older runtimes have this stage alone.
fn prestart(world: &World) {
    short_campaign(world, "prestart", || {
        fresh(world, &["1"]);
        let mut scene = start(world, Standin::new(world, "a"), vec![]);
        scene.command = world.pinfold(&["hook", "prestart"]);
        scene
    });
}

/// I4: a container that asks for nothing is started, unless it cannot be read that it asks for
/// nothing.
fn of_others(world: &World) {
    short_campaign(world, "createRuntime of others", || {
        fresh(world, &["1"]);
        let standin = Standin::new(world, "a");
        let (pid, before) = (standin.pid, affinity(standin.pid));
        let asked = state(&victim(world), pid, json!({ "org.example/pool": POOL }));
        Scene {
            command: world.pinfold(&["hook", "createRuntime"]),
            input: asked.to_string(),
            judge: Box::new(move |ending| {
                assert_eq!(affinity(pid), before, "{ending:?}");
                let is_told = !ending.stderr.is_empty() || !ending.is_clean_failure();
                assert!(ending.is_success() || is_told, "{ending:?}");
                world.assert_all_free("it asked for nothing");
                // A refusal is kept.
                let is_written = world.run.exists() && ending.is_success();
                assert!(!is_written, "something of ours is written");
            }),
            finish: Box::new(move || {
                let group = standin.die();
                all_comes_back(world, &[group]);
            }),
        }
    });
}

/// A dead owner has the list.
fn that_frees(world: &World) {
    campaign(world, "createRuntime that frees", || {
        fresh(world, &["1"]);
        let dead = Standin::new(world, "dead");
        pin(world, "dead", dead.pid);
        let dead = dead.die();
        start(world, Standin::new(world, "a"), vec![dead])
    });
}

/// The container has no group of its own.
fn that_moves(world: &World) {
    campaign(world, "createRuntime that moves", || {
        fresh(world, &["1"]);
        let standin = Standin::bare();
        let (id, pid) = (victim(world), standin.pid);
        let input = state(&id, pid, annotations()).to_string();
        Scene {
            command: world.pinfold(&["hook", "createRuntime"]),
            input,
            judge: Box::new(move |ending| judge_start(world, &id, pid, ending)),
            finish: Box::new(move || {
                standin.die();
                all_comes_back(world, &[]);
            }),
        }
    });
}

fn poststop(world: &World) {
    campaign(world, "poststop", || {
        fresh(world, &["1"]);
        let id = victim(world);
        let standin = Standin::new(world, "a");
        pin(world, &id, standin.pid);
        let group = standin.die();
        let input = stopped(&id, annotations()).to_string();
        Scene {
            command: world.pinfold(&["hook", "poststop"]),
            input,
            judge: Box::new(|ending| judge_end(world, ending)),
            finish: Box::new(move || all_comes_back(world, &[group])),
        }
    });
}

/// Who says that it gave back has done so, or says that it cannot tell whether the owner lives, and
/// keeps all.
pub(crate) fn judge_end(world: &World, ending: &Ending) {
    let is_kept = ending.stderr.contains("counts as alive") && !world.claims().is_empty();
    if ending.is_success() && !is_kept {
        assert_eq!(
            world.claims().len(),
            0,
            "a success keeps a claim: {ending:?}"
        );
        let tasks = world.tasks(POOL, "1");
        assert!(tasks.is_empty(), "a success leaves {tasks:?}: {ending:?}");
    }
}

/// I2: another process of the owner's lives on.
fn survivor(world: &World) {
    campaign(world, "poststop with a survivor", || {
        fresh(world, &["1"]);
        let id = victim(world);
        let group = Standin::survived(world, &id, POOL);
        let input = stopped(&id, annotations()).to_string();
        Scene {
            command: world.pinfold(&["hook", "poststop"]),
            input,
            judge: Box::new(move |_| assert_eq!(world.claims_of(&id).len(), 1, "given away")),
            finish: Box::new(move || {
                end_all_in(&group);
                all_comes_back(world, &[group]);
            }),
        }
    });
}

fn end_all_in(group: &Path) {
    process::eventually("the cgroup is empty", || {
        let left = cgroups::processes(group);
        left.iter()
            .for_each(|&pid| process::send(pid, nix::libc::SIGKILL));
        left.is_empty().then_some(())
    });
}

fn release(world: &World) {
    campaign(world, "release", || {
        fresh(world, &["1"]);
        let id = victim(world);
        let standin = Standin::new(world, "a");
        pin(world, &id, standin.pid);
        let group = standin.die();
        Scene {
            command: world.pinfold(&["release", &id]),
            input: String::new(),
            judge: Box::new(|ending| judge_end(world, ending)),
            finish: Box::new(move || all_comes_back(world, &[group])),
        }
    });
}

/// What is remembered is gone, or said not to be; no owner is touched.
fn forget(world: &World) {
    short_campaign(world, "release --forget", || {
        fresh(world, &["1"]);
        let id = victim(world);
        let standin = Standin::new(world, "a");
        pin(world, &id, standin.pid);
        let pid = standin.pid;
        let claimed = id.clone();
        Scene {
            command: world.pinfold(&["release", "--forget", &id]),
            input: String::new(),
            judge: Box::new(move |ending| {
                let left = std::fs::read_dir(world.run.join("last")).unwrap().count();
                let is_told = ending.stdout.contains("nothing is remembered");
                assert!(
                    left == 0 || !ending.is_success() || is_told,
                    "a success forgets nothing: {ending:?}"
                );
                assert_eq!(world.claims_of(&claimed).len(), 1, "{ending:?}");
                assert_eq!(world.tasks(POOL, "1"), [pid], "{ending:?}");
            }),
            finish: Box::new(move || {
                let group = standin.die();
                all_comes_back(world, &[group]);
            }),
        }
    });
}

fn force(world: &World) {
    campaign(world, "release --force", || {
        fresh(world, &["1"]);
        let id = victim(world);
        let standin = Standin::new(world, "a");
        pin(world, &id, standin.pid);
        let pid = standin.pid;
        Scene {
            command: world.pinfold(&["release", &id, "--force"]),
            input: String::new(),
            judge: Box::new(move |ending| {
                judge_end(world, ending);
                if world.claims().is_empty() {
                    assert_ne!(affinity(pid), "1", "runs on what it gave up: {ending:?}");
                }
            }),
            finish: Box::new(move || {
                let group = standin.die();
                world.reconcile();
                world.assert_all_free("at the end");
                let _ = std::fs::remove_dir(group);
            }),
        }
    });
}

fn reconcile(world: &World) {
    campaign(world, "reconcile", || {
        fresh(world, &["0", "1"]);
        let id = victim(world);
        let survived = Standin::survived(world, &id, POOL);
        let dead = Standin::new(world, "dead");
        pin(world, "dead", dead.pid);
        let dead = dead.die();
        Scene {
            command: world.pinfold(&["reconcile"]),
            input: String::new(),
            judge: Box::new(move |ending| {
                assert_eq!(world.claims_of(&id).len(), 1, "given away: {ending:?}");
                if ending.is_success() {
                    world.assert_settled("after a success");
                }
            }),
            finish: Box::new(move || {
                end_all_in(&survived);
                all_comes_back(world, &[survived, dead]);
            }),
        }
    });
}

fn isolate(world: &World) {
    campaign(world, "isolate", || {
        fresh(world, &["1"]);
        let out = world.dir.join("out");
        let _ = std::fs::remove_file(&out);
        let script = "grep Cpus_allowed_list /proc/self/status > \"$0\"";
        let line = [
            "isolate",
            "--pool",
            POOL,
            "--",
            "/bin/sh",
            "-c",
            script,
            out.to_str().unwrap(),
        ];
        Scene {
            command: world.pinfold(&line),
            input: String::new(),
            judge: Box::new(move |ending| {
                let said = std::fs::read_to_string(&out).unwrap_or_default();
                if ending.is_success() {
                    assert_eq!(said, "Cpus_allowed_list:\t1\n", "{ending:?}");
                }
                let is_confined = said.is_empty() || said == "Cpus_allowed_list:\t1\n";
                assert!(is_confined, "it ran elsewhere: {said}: {ending:?}");
            }),
            finish: Box::new(|| {
                process::eventually("the command has ended", || {
                    let left = process::processes_mentioning(&world.dir.display().to_string());
                    left.is_empty().then_some(())
                });
                all_comes_back(world, &[]);
            }),
        }
    });
}

/// A change of the pools: done where it says so, and done by doing it again where it does not.
fn change(world: &World, name: &str, line: &'static [&'static str], arrange: fn(&World)) {
    let wanted = {
        arrange(world);
        process::run(&mut world.pinfold(line)).ok();
        layout(world)
    };
    campaign(world, name, || {
        arrange(world);
        let wanted = wanted.clone();
        Scene {
            command: world.pinfold(line),
            input: String::new(),
            judge: Box::new(move |ending| {
                if ending.is_success() {
                    assert_eq!(layout(world), wanted, "{ending:?}");
                }
                process::run(&mut world.pinfold(line)).ok();
                assert_eq!(layout(world), wanted, "done again");
            }),
            finish: Box::new(|| all_comes_back(world, &[])),
        }
    });
}

/// The pool directory's files and their contents.
pub(crate) fn layout(world: &World) -> Vec<(PathBuf, Vec<u8>)> {
    let files = crate::world::files_below(&world.conf.join("pools"));
    let mut files: Vec<_> = files
        .into_iter()
        .map(|file| {
            (
                file.clone(),
                std::fs::read(file).expect("read a file of pools"),
            )
        })
        .collect();
    files.sort();
    files
}

fn pool_add(world: &World) {
    let line = &["pool", "add", "new:exclusive", "--list", "1"];
    change(world, "pool add", line, |world| {
        world.empty();
        world.pool("cp", Kind::Shared, &["0"]);
    });
}

fn pool_remove(world: &World) {
    change(
        world,
        "pool remove",
        &["pool", "remove", "--if-exists", "old"],
        |world| {
            world.empty();
            world.pool("cp", Kind::Shared, &["0"]);
            world.pool("old", Kind::Exclusive, &["1"]);
        },
    );
}

/// A shared list grows under its owner.
fn pool_resize(world: &World) {
    world.has_two_cpus();
    campaign(world, "pool resize", || {
        world.empty();
        world.pool("common", Kind::Shared, &["0"]);
        let (id, standin) = (victim(world), Standin::new(world, "a"));
        let request = json!({ "pinfold.io/pool": "common" });
        world
            .hook("createRuntime", &state(&id, standin.pid, request))
            .ok();
        let pid = standin.pid;
        let line = ["pool", "resize", "common", "2"];
        Scene {
            command: world.pinfold(&line),
            input: String::new(),
            judge: Box::new(move |ending| {
                let has_grown = || (affinity(pid), world.claim_of(&id)["cpus"].clone());
                if ending.is_success() {
                    assert_eq!(has_grown(), ("0-1".into(), json!("0-1")), "{ending:?}");
                    world.assert_settled("after a success");
                }
                process::run(&mut world.pinfold(&line)).ok();
                assert_eq!(has_grown(), ("0-1".into(), json!("0-1")), "done again");
            }),
            finish: Box::new(move || {
                let group = standin.die();
                all_comes_back(world, &[group]);
            }),
        }
    });
}

/// An owner stays where it is whatever fails, and who says that all is as declared has made it so.
fn apply(world: &World) {
    let path = world.dir.join("declared.toml");
    let config = "reserve = 'none'\n[pools.dp]\nkind = 'exclusive'\nlists = ['0']\n\
                  [pools.common]\nkind = 'shared'\nlists = ['1']\n";
    std::fs::write(&path, config).expect("write a configuration");
    let path = path.display().to_string();
    let line = ["apply", "--prune", "--config", &path];
    let is_so = |world: &World| {
        let pools = world.conf.join("pools");
        let list = |list: &str| pools.join(list).join("tasks").exists();
        list("common/1") && list("dp/0") && !pools.join("old").exists()
    };
    campaign(world, "apply", || {
        world.empty();
        world.pool(POOL, Kind::Exclusive, &["0"]);
        world.pool("old", Kind::Exclusive, &["1"]);
        let (id, standin) = (victim(world), Standin::new(world, "a"));
        pin(world, &id, standin.pid);
        let pid = standin.pid;
        Scene {
            command: world.pinfold(&line),
            input: String::new(),
            judge: Box::new(move |ending| {
                assert!(!ending.is_success() || is_so(world), "{ending:?}");
                let owned = || (world.tasks(POOL, "0"), affinity(pid));
                assert_eq!(owned(), (vec![pid], "0".into()), "{ending:?}");
                process::run(&mut world.pinfold(&line)).ok();
                assert!(is_so(world), "done again");
                assert_eq!(owned(), (vec![pid], "0".into()), "done again");
            }),
            finish: Box::new(move || {
                let group = standin.die();
                all_comes_back(world, &[group]);
            }),
        }
    });
}

fn init(world: &World) {
    let line = &["init", "--pool", "a=1:exclusive", "--reserve", "none"];
    let remove = |world: &World| {
        world.empty();
        std::fs::remove_dir_all(&world.conf).expect("remove the pool directory");
    };
    remove(world);
    process::run(&mut world.pinfold(line)).ok();
    let wanted = layout(world);
    campaign(world, "init", || {
        remove(world);
        let wanted = wanted.clone();
        Scene {
            command: world.pinfold(line),
            input: String::new(),
            judge: Box::new(move |ending| {
                if ending.is_success() {
                    assert_eq!(layout(world), wanted, "{ending:?}");
                } else {
                    process::run(&mut world.pinfold(line)).ok();
                    assert_eq!(layout(world), wanted, "done again");
                }
            }),
            finish: Box::new(|| all_comes_back(world, &[])),
        }
    });
}
