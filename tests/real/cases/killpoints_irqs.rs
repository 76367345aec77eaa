//! SIGKILL at every system call of a start and an end that move interrupts: whatever is left of it,
//! after the next `reconcile` each of their files reads as before.

use crate::case::{Case, plain};
use crate::cases::killpoints::{each_point, reconcile_rest};
use crate::needs::Need;
use crate::process::run;
use crate::world::{Kind, Standin, World, state, stopped};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::Strace, Need::Cpus(2), Need::Disposable];
    vec![
        plain("killpoints_irqs::start", needs, start),
        plain("killpoints_irqs::end", needs, end),
    ]
}

/// The machine's interrupts have one such test at a time.
fn alone() -> Flock<File> {
    let file = File::create(std::env::temp_dir().join("pinfold-irqs")).unwrap();
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .unwrap()
}

/// What all their files hold.
pub(crate) fn irqs() -> BTreeMap<PathBuf, String> {
    let directory = Path::new("/proc/irq");
    let numbers = fs::read_dir(directory).unwrap().flatten();
    let files = numbers.map(|entry| entry.path().join("smp_affinity_list"));
    let files = files.chain([directory.join("default_smp_affinity")]);
    files
        .filter_map(|file| Some((file.clone(), fs::read_to_string(&file).ok()?)))
        .collect()
}

fn fresh(world: &World) {
    let _ = fs::remove_dir_all(&world.run);
    let _ = fs::remove_dir_all(world.conf.join("pools"));
    fs::create_dir(world.conf.join("pools")).expect("make the pools directory");
    world.pool("dp", Kind::Exclusive, &["1"]);
    run(&mut world.pinfold(&["pool", "set", "dp", "irqs=away"])).ok();
}

fn asking(pid: i32) -> serde_json::Value {
    state("victim", pid, json!({ "pinfold.io/pool": "dp" }))
}

fn start(world: &World) {
    let _alone = alone();
    let found = irqs();
    let before = || {
        fresh(world);
        let standin = Standin::new(world, "victim");
        let input = asking(standin.pid).to_string();
        (standin, input)
    };
    each_point(
        world,
        &["hook", "createRuntime"],
        before,
        |standin, number| {
            // Should it live on, it has what its claim says as soon as that is looked at.
            world.reconcile();
            assert_eq!(irqs() != found, !world.claims().is_empty());
            // Its runtime kills it, for its hook has died.
            reconcile_rest(world, &standin.die(), number, || assert_eq!(irqs(), found));
        },
    );
}

fn end(world: &World) {
    let _alone = alone();
    let found = irqs();
    let before = || {
        fresh(world);
        let standin = Standin::new(world, "victim");
        world.hook("createRuntime", &asking(standin.pid)).ok();
        let group = standin.die();
        assert_ne!(irqs(), found);
        let input = stopped("victim", json!({ "pinfold.io/pool": "dp" }));
        (group, input.to_string())
    };
    each_point(world, &["hook", "poststop"], before, |group, number| {
        reconcile_rest(world, &group, number, || assert_eq!(irqs(), found));
    });
}
