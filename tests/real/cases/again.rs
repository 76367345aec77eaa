//! A container that comes back by its name gets the CPU lists that it had, where they are free.

use crate::case::{Case, each, plain};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let root = &[Need::Root, Need::Cpus(2)];
    let traced = &[Need::Root, Need::Cpus(2), Need::Strace];
    let mut cases = each(Engine::all(), "again::by_its_name", root, by_its_name);
    cases.extend([
        plain(
            "again::only_as_long_as_it_is_wanted",
            root,
            as_long_as_wanted,
        ),
        plain("again::one_small_file_a_start", traced, one_small_file),
    ]);
    cases
}

/// It runs on these CPUs, and ends.
fn runs(world: &World, engine: Engine, name: &str) -> String {
    let container = up(world, engine, name);
    end(container)
}

fn up<'w>(world: &'w World, engine: Engine, name: &str) -> Container<'w> {
    Container::up(world, engine, Plan::pinned(name, "dp"))
}

fn end(container: Container<'_>) -> String {
    let cpus = process::affinity(container.pid());
    container.assert_confined_to(&cpus);
    container.delete_by_force().ok();
    // podman starts no other one while that of its id is there.
    let _ = std::fs::remove_file(container.bundle().join("cid"));
    cpus
}

fn by_its_name(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let (first, web) = (up(world, engine, "first"), up(world, engine, "web"));
    assert_eq!((end(first), end(web)), ("0".into(), "1".into()));
    world.wait_until_free();
    // Without a name it would be the first.
    assert_eq!(runs(world, engine, "web"), "1");
    world.wait_until_free();
    // A boot leaves nothing in /run.
    for entry in std::fs::read_dir(&world.run).expect("list the run directory") {
        let path = entry.expect("list the run directory").path();
        if !path.ends_with("last") {
            let removed = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
            removed.expect("empty the run directory");
        }
    }
    assert_eq!(runs(world, engine, "web"), "1");
    world.wait_until_free();
    let told = forget(world, "web").stdout;
    assert_eq!(told, "forgot that web had 1 of pool dp\n");
    assert_eq!(
        forget(world, "web").stdout,
        "nothing is remembered of web\n"
    );
    assert_eq!(runs(world, engine, "web"), "0");
    world.wait_until_free();
    // Both had the same: who comes second gets another.
    let (first, web) = (up(world, engine, "first"), up(world, engine, "web"));
    assert_eq!((end(first), end(web)), ("0".into(), "1".into()));
    world.wait_until_free();
}

fn forget(world: &World, name: &str) -> Ran {
    process::run(&mut world.pinfold(&["release", "--forget", name])).ok()
}

/// What a hook gives a container of this id, where two are free; it ends at once.
fn gets(world: &World, id: &str, options: &[&str]) -> String {
    let standin = Standin::new(world, id);
    let request = json!({ "pinfold.io/pool": "dp" });
    let hook = |stage: &str, state: &serde_json::Value| {
        let mut command = world.pinfold(&["hook", stage]);
        command.args(options);
        process::Running::start(&mut command, state.to_string().as_bytes())
            .wait()
            .ok()
    };
    hook("createRuntime", &state(id, standin.pid, request.clone()));
    let cpus = standin.mask();
    standin.die();
    hook("poststop", &stopped(id, request));
    cpus
}

fn as_long_as_wanted(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let other = Standin::new(world, "other");
    let request = json!({ "pinfold.io/pool": "dp" });
    world
        .hook("createRuntime", &state("other", other.pid, request))
        .ok();
    assert_eq!(gets(world, "web", &[]), "1");
    other.die();
    world.reconcile();
    assert_eq!(gets(world, "web", &[]), "1");
    let config = world.dir.join("config.toml");
    let write = |text: &str| std::fs::write(&config, text).expect("write a configuration");
    let config = config.display().to_string();
    let options = ["--config", &config];
    write("[last-lists]\ndays = 0\n");
    assert_eq!(gets(world, "web", &options), "0");
    // Nothing was written either.
    write("[last-lists]\ndays = 1\n");
    assert_eq!(gets(world, "web", &options), "1");
    let elsewhere = world.dir.join("elsewhere/last");
    write(&format!("[last-lists]\npath = '{}'\n", elsewhere.display()));
    assert_eq!(gets(world, "web", &options), "0");
    assert_eq!(
        std::fs::read_dir(&elsewhere).expect("it was made").count(),
        1
    );
    // An id that an engine made up is no name.
    let id = "5".repeat(64);
    assert_eq!(gets(world, &id, &options), "0");
    assert_eq!(
        std::fs::read_dir(&elsewhere).expect("it is there").count(),
        1
    );
    // What is odd says nothing, and fails nothing.
    std::fs::remove_dir_all(&elsewhere).expect("remove a directory");
    std::fs::write(&elsewhere, "").expect("write a file");
    assert_eq!(gets(world, "web", &options), "0");
    world.assert_all_free("in the end");
}

/// A start that gets what the one before it got opens one file, and writes none.
fn one_small_file(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let trace = world.dir.join("trace");
    let calls = |id: &str, request: serde_json::Value| {
        let standin = Standin::new(world, id);
        let hook = world.pinfold(&["hook", "createRuntime"]);
        let mut strace = std::process::Command::new("strace");
        strace
            .args(["-f", "-o"])
            .arg(&trace)
            .arg(hook.get_program());
        strace.args(hook.get_args()).env_clear();
        let state = state(id, standin.pid, request);
        process::Running::start(&mut strace, state.to_string().as_bytes())
            .wait()
            .ok();
        standin.die();
        world.reconcile();
        let text = std::fs::read_to_string(&trace).expect("read the trace");
        let ours = text.lines().filter(|line| line.contains("/last"));
        ours.map(str::to_owned).collect::<Vec<String>>()
    };
    let request = || json!({ "pinfold.io/pool": "dp" });
    let first = calls("web", request());
    assert!(
        first.iter().any(|call| call.contains("rename")),
        "{first:?}"
    );
    let again = calls("web", request());
    assert_eq!(again.len(), 1, "{again:?}");
    assert!(
        again[0].contains("O_RDONLY") && again[0].contains("O_NOFOLLOW"),
        "{again:?}"
    );
    let none = calls("web", json!({ "example.com/pool": "dp" }));
    assert!(none.is_empty(), "{none:?}");
}
