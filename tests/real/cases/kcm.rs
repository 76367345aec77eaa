//! I6: a tool that keeps the directory by KCM's rules, and our hook, side by side.

use crate::case::{Case, plain};
use crate::needs::{self, Need};
use crate::process::{self, Running};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::{Value, json};
use std::process::Command;

/// Rounds of each side in each of the two tests; the peer does more while it waits for ours.
const ROUNDS: usize = 250;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Cpus(2), Need::Python3];
    vec![
        plain("kcm::a_peer_on_a_shared_pool", needs, |world| {
            side_by_side(world, Kind::Shared)
        }),
        plain("kcm::a_peer_on_an_exclusive_pool", needs, |world| {
            side_by_side(world, Kind::Exclusive)
        }),
    ]
}

fn side_by_side(world: &World, kind: Kind) {
    world.pool("dp", kind, &["0", "1"]);
    let stop = world.dir.join("stop");
    let script = world.dir.join("kcm_peer.py");
    std::fs::write(&script, include_str!("kcm_peer.py")).expect("write the peer");
    let mut python = Command::new(needs::find("python3").expect("python3 is installed"));
    python
        .arg(&script)
        .arg(&world.conf)
        .arg("dp")
        .arg(ROUNDS.to_string())
        .arg(&stop);
    let peer = Running::start(&mut python, b"");

    let waited: usize = (0..ROUNDS)
        .map(|number| one_round(world, kind, number))
        .sum();
    std::fs::write(&stop, "").expect("tell the peer to stop");
    let said = peer.wait().ok().stdout;
    let said: Value = serde_json::from_str(&said).expect("the peer prints JSON");
    println!("ours: {ROUNDS} rounds, waited in {waited}; the peer: {said}");
    assert_eq!(said["faults"], json!([]), "what the peer saw");
    assert_eq!(said["full"], 0, "there was always a list for the peer");
    assert!(said["rounds"].as_u64() >= Some(ROUNDS as u64));
    assert!(said["waited"].as_u64() > Some(0), "the peer waited for us");
    assert!(waited > 0, "we waited for the peer");
    world.assert_all_free("after both have finished");
}

/// A container's life as far as our hooks see it; gives how many of the hooks waited for the lock.
fn one_round(world: &World, kind: Kind, number: usize) -> usize {
    let id = format!("round{number}");
    let annotations = json!({ "pinfold.io/pool": "dp" });
    let standin = Standin::new(world, "ours");
    let begun = hook(
        world,
        "prestart",
        &state(&id, standin.pid, annotations.clone()),
    );
    let list = world.claim_of(&id)["lists"][0]
        .as_str()
        .expect("a claim names its list")
        .to_owned();
    for _ in 0..2 {
        let locked = world.hold_lock();
        let named = world.tasks("dp", &list);
        drop(locked);
        let alone = kind == Kind::Shared || named.len() == 1;
        assert!(
            named.contains(&standin.pid) && alone,
            "{list} of {} names {named:?}",
            standin.pid
        );
    }
    if number % 10 == 0 {
        // Frees what the dead hold, and must not take the peer's for dead.
        process::run(&mut world.pinfold(&["reconcile"])).ok();
        // The peer writes `tasks` in its place: without the lock it can be seen half written.
        let locked = world.hold_lock();
        world.assert_settled("after reconcile");
        drop(locked);
    }
    let pid = standin.pid;
    standin.die();
    let ended = hook(world, "poststop", &stopped(&id, annotations));
    let locked = world.hold_lock();
    assert!(
        !world.tasks("dp", &list).contains(&pid),
        "{list} still names {pid}"
    );
    drop(locked);
    usize::from(begun) + usize::from(ended)
}

/// Whether the hook had to wait, as its log tells.
fn hook(world: &World, verb: &str, state: &Value) -> bool {
    let input = state.to_string();
    let mut command = world.pinfold(&["hook", verb, "-v"]);
    Running::start(&mut command, input.as_bytes())
        .wait()
        .ok()
        .stderr
        .contains("waited")
}
