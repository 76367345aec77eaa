//! I1 and I5 under contention: sixteen starts at the same moment on two CPU lists.

use crate::bundle::Hook;
use crate::case::{Case, each};
use crate::container::Container;
use crate::engines::{Driver, Engine, Front, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::syslog::SysLog;
use crate::world::{Kind, World, files_below};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const CROWD: usize = 16;

pub(crate) fn cases() -> Vec<Case> {
    let name = "crowd::sixteen_at_once_on_two_lists";
    let mut cases = each(Engine::direct(), name, &[Need::Cpus(2)], sixteen_at_once);
    let mut podman = Engine::podman();
    podman.retain(|one| one.driver == Driver::Cgroupfs || one.runtime == Runtime::Crun);
    for engine in podman {
        // Emulated, sixteen of podman take minutes: one kind will do there.
        let native = (engine.driver == Driver::Cgroupfs).then_some(Need::Native);
        let needs: Vec<Need> = native.into_iter().chain([Need::Cpus(2)]).collect();
        cases.extend(each(vec![engine], name, &needs, sixteen_at_once));
    }
    cases
}

/// Where containers wait, in a hook of their own before pinfold's, until all are there: engines
/// take longer to come so far than a hook waits for a lock.
struct Gate {
    dir: PathBuf,
    fifo: File,
}

impl Gate {
    fn shut(world: &World) -> Gate {
        let dir = world.dir.join("gate");
        std::fs::create_dir(&dir).expect("make the gate's directory");
        let path = dir.join("fifo");
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).expect("make a fifo");
        // Open both ways, it is there for readers from the start.
        let fifo = File::options().read(true).write(true).open(&path);
        Gate {
            dir,
            fifo: fifo.expect("open the fifo"),
        }
    }

    fn hook(&self) -> Hook {
        let script = "echo > \"$0/at-$$\" && read -r line < \"$0/fifo\"";
        let dir = self.dir.display().to_string();
        let args = ["/bin/sh", "-c", script, &dir].map(str::to_owned);
        Hook::other("createRuntime", &args)
    }

    fn arrived(&self) -> usize {
        files_below(&self.dir).len()
    }

    /// A shell reads a line byte by byte: each takes its own.
    fn open(&mut self) {
        self.fifo
            .write_all(&[b'\n'; CROWD])
            .expect("write to the fifo");
    }
}

/// Why one is refused. Where starts are emulated, each takes so long that the last of a crowd may
/// give up on the lock.
fn reasons() -> &'static [&'static str] {
    let all = &["exhausted", "gave up after"];
    if Need::Native.is_met() {
        &all[..1]
    } else {
        all
    }
}

fn sixteen_at_once(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let mut log = SysLog::mark();
    let names: Vec<String> = (0..CROWD).map(|number| format!("crowd{number}")).collect();
    let mut gate = Gate::shut(world);
    let hooks = [
        gate.hook(),
        Hook::pinfold(world, "createRuntime"),
        Hook::pinfold(world, "poststop"),
    ];
    let prepare = |name: &String| {
        Container::prepare_with_hooks(world, engine, Plan::pinned(name, "dp"), &hooks)
    };
    let containers: Vec<Container> = names.iter().map(prepare).collect();

    let start = |container| (container, Container::launching(container));
    let launches: Vec<_> = containers.iter().map(start).collect();
    process::eventually("all are at the gate", || {
        (gate.arrived() == CROWD).then_some(())
    });
    // All hooks come to a lock that is held, or as many as do before the first gives up on it.
    let lock = world.hold_lock();
    gate.open();
    let mut first_seen = None;
    let waiting = process::eventually("all hooks wait at the lock", || {
        let waiting = world.hooks_at_the_lock().len();
        if waiting > 0 {
            first_seen.get_or_insert_with(Instant::now);
        }
        let long = first_seen.is_some_and(|seen| seen.elapsed() > Duration::from_secs(2));
        (waiting == CROWD || long).then_some(waiting)
    });
    assert!(waiting > 2, "only {waiting} came at once");
    drop(lock);
    let ended: Vec<_> = launches
        .into_iter()
        .map(|(container, launch)| (container, launch.wait()))
        .collect();

    // Before anything reaps: two owners, on different lists, and no more.
    let holders: Vec<i32> = [world.tasks("dp", "0"), world.tasks("dp", "1")].concat();
    assert_eq!(holders.len(), 2, "each list has one owner: {holders:?}");
    let claims = world.claims();
    assert_eq!(claims.len(), 2, "claims: {claims:?}");
    assert_ne!(claims[0]["lists"], claims[1]["lists"]);
    let hidden = |path: &std::path::PathBuf| {
        path.file_name()
            .is_some_and(|name| name.as_encoded_bytes()[0] == b'.')
    };
    assert!(
        !files_below(&world.conf).iter().any(hidden),
        "no temporary file is left"
    );

    let (run, refused): (Vec<_>, Vec<_>) = ended
        .into_iter()
        .partition(|(_, ran)| ran.code() == Some(0));
    assert_eq!(
        (run.len(), refused.len()),
        (2, CROWD - 2),
        "two run, the others are refused"
    );
    let mut seen: Vec<String> = run
        .iter()
        .map(|(container, _)| container.affinity())
        .collect();
    seen.sort();
    assert_eq!(seen, ["0", "1"]);
    for (container, _) in &run {
        let cpus = container.affinity();
        container.assert_confined_to(&cpus);
        assert_eq!(world.claim_of(&container.id())["cpus"], *cpus);
        assert_eq!(world.tasks("dp", &cpus), [container.pid()]);
    }

    // Each refusal says why: on stderr, where the engine shows a hook's, and in the system log.
    for (container, ran) in &refused {
        if engine.front == Front::Direct && engine.runtime == Runtime::Runc {
            let id = container.id();
            let said = |word: &str| ran.stderr.contains(word);
            assert!(
                reasons().iter().any(|reason| said(reason)) && said("dp") && said(&id),
                "should say why: {ran}"
            );
        }
    }
    let lines = log.lines_with(CROWD - 2, &["cannot start container", "dp"]);
    let has_reason = |line: &String| reasons().iter().any(|reason| line.contains(reason));
    assert!(lines.iter().all(has_reason), "{lines:#?}");
    let is_exhausted = |line: &String| line.contains("exhausted");
    assert!(lines.iter().any(is_exhausted), "{lines:#?}");
    for (container, _) in &refused {
        // A line has the id as engines print it: the first 12 digits of a long one.
        let id = container.id();
        let shown = if id.len() == 64 { &id[..12] } else { &id };
        let names = |line: &String| {
            let mut words = line.split(|one: char| !one.is_alphanumeric());
            words.any(|word| word == shown)
        };
        let named = lines.iter().any(names);
        assert!(named, "no line names {id}: {lines:#?}");
    }
}
