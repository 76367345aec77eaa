//! I6: a tool that keeps the directory by KCM's rules reads the whole of it while `pool` changes
//! it, and has processes of its own in it.

use crate::case::{Case, plain};
use crate::cases::pools::{assert_follows, lists, pool, the_list};
use crate::needs::{self, Need};
use crate::process::{self, Running, affinity, eventually};
use crate::world::{Kind, Standin, World, state, stopped};
use serde_json::{Value, json};
use std::process::Command;

/// Rounds of eight changes each.
const ROUNDS: usize = 30;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        plain(
            "pools::a_peer_reads_a_sound_directory_at_every_moment",
            &[Need::Root, Need::Cpus(2), Need::Python3],
            beside_a_watcher,
        ),
        plain(
            "pools::a_peers_process_keeps_its_cpus_and_is_told",
            &[Need::Root, Need::Cpus(2)],
            grown_around_a_stranger,
        ),
    ]
}

/// What became of our commands.
#[derive(Default)]
struct Tally {
    done: usize,
    refused: usize,
    waited: usize,
}

fn beside_a_watcher(world: &World) {
    world.has_two_cpus();
    world.pool("common", Kind::Shared, &["0"]);
    world.pool("dp", Kind::Exclusive, &["1"]);
    let stop = world.dir.join("stop");
    let script = world.dir.join("kcm_watcher.py");
    std::fs::write(&script, include_str!("kcm_watcher.py")).unwrap();
    let mut python = Command::new(needs::find("python3").unwrap());
    python.arg(&script).arg(&world.conf).arg(&stop);
    let watcher = Running::start(&mut python, b"");

    let mut tally = Tally::default();
    for number in 0..ROUNDS {
        one_round(world, number, &mut tally);
    }
    std::fs::write(&stop, "").unwrap();
    let said = watcher.wait().ok().stdout;
    let said: Value = serde_json::from_str(&said).unwrap();
    let Tally {
        done,
        refused,
        waited,
    } = tally;
    println!("ours: {done} changes, {refused} refused, waited in {waited}; the watcher: {said}");
    assert_eq!(said["faults"], json!([]), "what the watcher saw");
    let number = |key: &str| said[key].as_u64().unwrap() as usize;
    assert!(number("changes") > ROUNDS, "it looked between our changes");
    assert!(number("followed") > 0, "a list grew under an owner");
    assert!(number("waited") > 0, "the watcher waited for us");
    assert!(waited > 0, "we waited for the watcher");
    assert!(refused > 0, "its processes were in our way");
    world.assert_all_free("after both have finished");
}

/// The two pools begin and end with a CPU each.
fn one_round(world: &World, number: usize, tally: &mut Tally) {
    let id = format!("round{number}");
    let request = json!({ "pinfold.io/pool": "common" });
    let owner = Standin::new(world, "ours");
    world
        .hook("prestart", &state(&id, owner.pid, request.clone()))
        .ok();
    change(world, tally, &["remove", "dp"]);
    change(world, tally, &["resize", "common", "2"]);
    let locked = world.hold_lock();
    assert_follows(world, &id, owner.pid, &the_list(world, "common"));
    drop(locked);
    owner.die();
    world.hook("poststop", &stopped(&id, request)).ok();
    change(world, tally, &["resize", "common", "1"]);
    change(
        world,
        tally,
        &["add", "dp=1:exclusive", "--reserve", "none"],
    );
    change(world, tally, &["remove", "common"]);
    change(world, tally, &["resize", "dp", "2", "--reserve", "none"]);
    assert_eq!(lists(world, "dp"), ["0", "1"]);
    change(world, tally, &["resize", "dp", "1", "--reserve", "none"]);
    change(world, tally, &["add", "common=rest:shared"]);
}

/// Asks until it is done: while the watcher has a process in the list, it is refused, and says so.
fn change(world: &World, tally: &mut Tally, arguments: &[&str]) {
    let arguments = [&["pool"], arguments, &["-v"]].concat();
    eventually(&format!("{arguments:?}"), || {
        let ran = process::run(&mut world.pinfold(&arguments));
        tally.waited += usize::from(ran.stderr.contains("waited"));
        if ran.code() == Some(0) {
            tally.done += 1;
            return Some(());
        }
        let ran = ran.exits(1);
        assert!(ran.stderr.contains("owns"), "{ran}");
        tally.refused += 1;
        None
    });
}

/// Beside a container of ours, whose group is known, a process that only `tasks` knows.
fn grown_around_a_stranger(world: &World) {
    world.has_two_cpus();
    world.pool("common", Kind::Shared, &["0"]);
    let request = json!({ "pinfold.io/pool": "common" });
    let (ours, stranger) = (Standin::new(world, "ours"), Standin::new(world, "stranger"));
    world
        .hook("prestart", &state("ours", ours.pid, request))
        .ok();
    let both = format!("{},{}", ours.pid, stranger.pid);
    std::fs::write(world.tasks_file("common", "0"), both).unwrap();
    let before = affinity(stranger.pid);
    for trial in [&["--dry-run"][..], &[]] {
        let resize = [&["resize", "common", "2"], trial].concat();
        let said = pool(world, &resize).ok().stdout;
        let told = format!(
            "process {} keeps its CPUs: another tool put it into 0, have that tool give it 0,1\n",
            stranger.pid
        );
        assert!(said.ends_with(&told), "{said}");
    }
    assert_follows(world, "ours", ours.pid, "0,1");
    assert_eq!(world.tasks("common", "0,1"), [ours.pid, stranger.pid]);
    assert_eq!(affinity(stranger.pid), before);
    let again = pool(world, &["resize", "common", "2"]).ok();
    assert_eq!(again.stdout, "nothing to change\n");
    ours.die();
    stranger.die();
    world.reconcile();
    world.assert_all_free("after both are gone");
}
