//! Devices that are CPU lists: a hook each, which add up to one claim.

use crate::campaign::{Ending, Scene, campaign, short_campaign};
use crate::cases::{Case, Need, plain};
use crate::process::{Running, affinity};
use crate::verbs::{POOL, all_comes_back, fresh, judge_end, judge_start, victim};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2)];
    vec![
        plain("errors::create_runtime_of_a_list", needs, first),
        plain("errors::create_runtime_of_a_second_list", needs, second),
        plain("errors::poststop_of_two_lists", needs, poststop),
    ]
}

fn give(world: &World, pid: i32, list: &str) {
    let mut command = world.pinfold(&["hook", "createRuntime", "--list", list]);
    let input = state(&victim(world), pid, json!({})).to_string();
    Running::start(&mut command, input.as_bytes()).wait().ok();
}

fn first(world: &World) {
    short_campaign(world, "createRuntime of a list", || {
        fresh(world, &["1"]);
        world.pool("cp", Kind::Shared, &["0"]);
        let standin = Standin::new(world, "a");
        let (id, pid) = (victim(world), standin.pid);
        Scene {
            command: world.pinfold(&["hook", "createRuntime", "--list", "dp:1"]),
            input: state(&id, pid, json!({})).to_string(),
            judge: Box::new(move |ending| judge_start(world, &id, pid, ending)),
            finish: Box::new(move || all_comes_back(world, &[standin.die()])),
        }
    });
}

/// Either it has both, or what it had.
fn judge_second(world: &World, id: &str, pid: i32, ending: &Ending) {
    let claim = world.claim_of(id);
    let (is_wide, runs_on) = (claim["cpus"] == "0-1", affinity(pid));
    assert!(is_wide || claim["cpus"] == "1", "{claim}: {ending:?}");
    assert_eq!(world.tasks(POOL, "1"), [pid], "{ending:?}");
    assert!(
        is_wide || runs_on == "1",
        "wider than its claim: {ending:?}"
    );
    if ending.is_success() {
        assert!(is_wide && runs_on == "0-1", "{claim}: {ending:?}");
        assert_eq!(world.tasks(POOL, "0"), [pid], "{ending:?}");
        world.assert_settled("after a success");
    } else if ending.is_clean_failure() {
        assert!(!is_wide, "a failure leaves {claim}: {ending:?}");
        assert!(world.tasks(POOL, "0").is_empty(), "{ending:?}");
    }
}

fn second(world: &World) {
    campaign(world, "createRuntime of a second list", || {
        fresh(world, &["0", "1"]);
        let standin = Standin::new(world, "a");
        let (id, pid) = (victim(world), standin.pid);
        give(world, pid, "dp:1");
        Scene {
            command: world.pinfold(&["hook", "createRuntime", "--list", "dp:0"]),
            input: state(&id, pid, json!({})).to_string(),
            judge: Box::new(move |ending| judge_second(world, &id, pid, ending)),
            finish: Box::new(move || all_comes_back(world, &[standin.die()])),
        }
    });
}

fn poststop(world: &World) {
    short_campaign(world, "poststop of two lists", || {
        fresh(world, &["0", "1"]);
        let standin = Standin::new(world, "a");
        for list in ["dp:0", "dp:1"] {
            give(world, standin.pid, list);
        }
        let group = standin.die();
        Scene {
            command: world.pinfold(&["hook", "poststop", "--list", "dp:0"]),
            input: stopped(&victim(world), json!({})).to_string(),
            judge: Box::new(|ending| judge_end(world, ending)),
            finish: Box::new(move || all_comes_back(world, &[group])),
        }
    });
}
