//! I4: a container without a request is none of pinfold's business, even while somebody else holds
//! the lock.

use crate::case::{Case, each, plain};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::snapshot::Snapshot;
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = each(
        Engine::all(),
        "untouched::starts_while_the_lock_is_held",
        &[],
        starts_while_the_lock_is_held,
    );
    let needs = &[Need::Root, Need::Strace];
    cases.push(plain(
        "untouched::opens_nothing_of_ours",
        needs,
        opens_nothing_of_ours,
    ));
    cases
}

/// Had any hook waited for the lock, it would have taken longer, or given up and failed the start.
fn starts_while_the_lock_is_held(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.reconcile();
    let plan = |name: &str| Plan::plain(name).asking("example.com/pool", "dp");
    let usual = Container::prepare(world, engine, plan("before"))
        .launch()
        .ok()
        .took;
    let before = Snapshot::of(&[&world.conf, &world.run]);
    let _held = world.hold_lock();
    let container = Container::prepare(world, engine, plan("a"));
    let took = container.launch().ok().took;
    assert!(
        took < 2 * usual + Duration::from_secs(1),
        "took {took:?}, and {usual:?} usually"
    );
    assert_eq!(container.affinity(), crate::cgroups::hierarchy().all_cpus());
    container.end_by("TERM");
    container.delete();
    before.assert_same(
        &Snapshot::of(&[&world.conf, &world.run]),
        "after a container without a request",
    );
}

fn opens_nothing_of_ours(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let standin = Standin::new(world, "a");
    let opted_out = json!({ "pinfold.io/pool": "none" });
    let sandbox = json!({ "pinfold.io/pool": "dp", "io.kubernetes.cri.container-type": "sandbox" });
    let others =
        json!({ "pinfold.io/pool.other": "dp", "io.kubernetes.cri.container-name": "this" });
    for annotations in [json!({}), Value::Null, opted_out, sandbox, others] {
        let id = "a";
        for (verb, state) in [
            ("prestart", state(id, standin.pid, annotations.clone())),
            ("poststop", stopped(id, annotations.clone())),
        ] {
            // At the end of a container the ledger may be asked for its id; the pool directory may
            // not.
            let off_limits = if verb == "poststop" {
                vec![&world.conf]
            } else {
                vec![&world.conf, &world.run]
            };
            let trace = world.dir.join("trace");
            let hook = world.pinfold(&["hook", verb]);
            // As crun does it, whose engine hears nothing of a hook.
            let mut strace = Command::new("/bin/sh");
            strace
                .args(["-c", "exec \"$0\" \"$@\" 2>/dev/null", "strace"])
                .args(["-f", "-e", "trace=all", "-o"])
                .arg(&trace)
                .arg(hook.get_program())
                .args(hook.get_args());
            process::Running::start(&mut strace, state.to_string().as_bytes())
                .wait()
                .ok();
            let text = std::fs::read_to_string(&trace).expect("read the trace");
            let calls = text.lines().filter(|line| !line.contains("execve("));
            let ours = |line: &&str| {
                off_limits
                    .iter()
                    .any(|dir| line.contains(&dir.display().to_string()))
            };
            let touching: Vec<&str> = calls.clone().filter(ours).collect();
            assert!(
                touching.is_empty(),
                "{verb} with {annotations}: {touching:#?}"
            );
            assert!(
                !world.run.exists(),
                "{verb} with {annotations} made a run directory"
            );
            // Its parent's stderr is for telling why a start is refused.
            let may_tell = annotations.to_string().contains("pinfold.io");
            assert!(
                may_tell || !text.contains("/fd/2"),
                "{verb} with {annotations} opened its parent's stderr"
            );
            assert!(
                !text.contains("flock("),
                "{verb} with {annotations} took a lock"
            );
        }
    }
    assert_eq!(standin.mask(), crate::cgroups::hierarchy().unnarrowed());
}
