//! `pinfold isolate` as the command of a systemd unit: the unit's limits, its end and its restart
//! reach what it runs.

use crate::case::{Case, plain};
use crate::cgroups::{hierarchy, mask, processes};
use crate::needs::Need;
use crate::process::{affinity, eventually, is_alive, run, send};
use crate::world::{Kind, World};
use nix::libc;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::spawn;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::Root, Need::V2, Need::Systemd, Need::Cpus(2)];
    vec![
        plain(
            "supervised::the_units_group_is_the_owners",
            needs,
            the_units_group_is_the_owners,
        ),
        plain(
            "supervised::stopping_leaves_nobody",
            needs,
            stopping_leaves_nobody,
        ),
        plain(
            "supervised::killed_and_restarted_runs_once",
            needs,
            killed_and_restarted_runs_once,
        ),
        plain(
            "supervised::a_delegated_unit_has_it_below",
            needs,
            a_delegated_unit_has_it_below,
        ),
        plain(
            "supervised::the_units_own_cpus_bound_it",
            needs,
            the_units_own_cpus_bound_it,
        ),
        plain(
            "supervised::what_an_operator_tells_systemd_stays",
            needs,
            what_an_operator_tells_systemd_stays,
        ),
        plain(
            "supervised::what_systemd_is_not_told_stays_claimed",
            needs,
            what_systemd_is_not_told_stays_claimed,
        ),
        plain(
            "supervised::a_systemd_that_never_answers_is_noted_and_passed",
            needs,
            a_systemd_that_never_answers_is_noted_and_passed,
        ),
        plain(
            "supervised::without_a_bus_systemd_is_told_itself",
            needs,
            without_a_bus_systemd_is_told_itself,
        ),
        plain(
            "supervised::released_by_force_at_the_start",
            needs,
            released_by_force_at_the_start,
        ),
        plain(
            "supervised::beside_others_it_has_a_group_of_ours",
            needs,
            beside_others_it_has_a_group_of_ours,
        ),
    ]
}

/// A service that is gone at the end of its test.
struct Unit {
    name: String,
}

impl Unit {
    /// Starts a service with `isolate` in pool `dp` as its command, and these further lines.
    fn start(world: &World, name: &str, lines: &str, command: &str) -> Unit {
        let isolate = world.pinfold(&["isolate", "--pool", "dp", "--"]);
        let words = std::iter::once(isolate.get_program()).chain(isolate.get_args());
        let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
        Unit::of_line(name, lines, &format!("{} {command}", words.join(" ")))
    }

    fn of_line(name: &str, lines: &str, line: &str) -> Unit {
        let unit = Unit {
            name: format!("pinfoldtest-{name}.service"),
        };
        let text = format!(
            "[Service]\nMemoryMax=100M\nTimeoutStopSec=20\nRestartSec=0\n{lines}\nExecStart={line}\n"
        );
        std::fs::write(unit.file(), text).unwrap();
        systemctl(&["daemon-reload"]);
        systemctl(&["start", &unit.name]);
        unit
    }

    fn file(&self) -> PathBuf {
        Path::new("/run/systemd/system").join(&self.name)
    }

    fn group(&self) -> PathBuf {
        hierarchy().root.join("system.slice").join(&self.name)
    }

    fn main_pid(&self) -> i32 {
        let mut show = Command::new("systemctl");
        show.args(["show", "--value", "--property=MainPID", &self.name]);
        run(&mut show).stdout.trim().parse().unwrap()
    }

    /// The `sleep`s in a group of the unit, once there are so many.
    #[track_caller]
    fn sleeping(&self, group: &Path, count: usize) -> Vec<i32> {
        eventually("the commands run in their group", || {
            let mut pids = processes(group);
            pids.retain(|pid| name_of(*pid) == "sleep");
            (pids.len() == count).then_some(pids)
        })
    }

    fn stop(&self) {
        systemctl(&["stop", &self.name]);
    }

    /// Everybody in it is killed at once, `isolate` too.
    fn kill(&self) {
        systemctl(&["kill", "--signal=KILL", &self.name]);
        eventually("nobody is left in the unit", || {
            (self.main_pid() == 0 && processes(&self.group()).is_empty()).then_some(())
        });
    }

    /// Where systemd keeps what was set at run time.
    fn settings(&self) -> PathBuf {
        Path::new("/run/systemd/system.control").join(format!("{}.d", self.name))
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let mut stop = Command::new("systemctl");
        let _ = stop.args(["stop", &self.name]).status();
        let _ = std::fs::remove_file(self.file());
        let _ = std::fs::remove_dir_all(self.settings());
        let mut reload = Command::new("systemctl");
        let _ = reload.arg("daemon-reload").status();
    }
}

fn systemctl(arguments: &[&str]) {
    run(Command::new("systemctl").args(arguments)).ok();
}

fn name_of(pid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm"));
    name.unwrap_or_default().trim().to_owned()
}

fn allowed_cpus(unit: &Unit) -> String {
    let mut show = Command::new("systemctl");
    show.args(["show", "--value", "--property=AllowedCPUs", &unit.name]);
    run(&mut show).stdout.trim().to_owned()
}

/// Two forking children and all: they count for the unit's limits, and no reload widens them.
fn the_units_group_is_the_owners(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let script = "/bin/sh -c 'sleep 600 & sleep 600 & wait'";
    let unit = Unit::start(world, "own", "", script);
    let group = unit.group();
    let pids = unit.sleeping(&group, 2);
    systemctl(&["daemon-reload"]);
    for pid in &pids {
        assert_eq!(affinity(*pid), "1");
    }
    assert_eq!(mask(&group), "1");
    assert_eq!(allowed_cpus(&unit), "1");
    let most = std::fs::read_to_string(group.join("memory.max")).unwrap();
    assert_eq!(most.trim(), (100 << 20).to_string());
    let claims = world.claims();
    assert!(
        claims[0]["cgroup"]["path"]
            .as_str()
            .unwrap()
            .ends_with(&unit.name),
        "{claims:?}"
    );
    unit.stop();
    // One that ends after `isolate` is left to whoever looks next.
    eventually("the commands are gone", || {
        (!pids.iter().any(|pid| is_alive(*pid))).then_some(())
    });
    world.reconcile();
    world.assert_all_free("after the unit was stopped");
    assert_eq!(allowed_cpus(&unit), "");
    assert!(!unit.settings().exists(), "a drop-in is left");
}

/// A grandchild in a session of its own ends with the unit, and its list is free.
fn stopping_leaves_nobody(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let script = "/bin/sh -c 'setsid sleep 600 & exec sleep 600'";
    let unit = Unit::start(world, "stop", "", script);
    let pids = unit.sleeping(&unit.group(), 2);
    unit.stop();
    assert!(pids.iter().all(|pid| !is_alive(*pid)), "{pids:?}");
    world.reconcile().ok();
    world.assert_all_free("after the unit was stopped");
}

fn killed_and_restarted_runs_once(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let unit = Unit::start(world, "again", "Restart=always", "/bin/sleep 600");
    for round in 0..3 {
        let pids = unit.sleeping(&unit.group(), 1);
        let before = unit.main_pid();
        // What the first was given is nothing that the next one is bound to.
        assert_eq!(world.claims().len(), 1, "round {round}");
        send(before, libc::SIGKILL);
        eventually("the command of before is gone", || {
            (!is_alive(pids[0])).then_some(())
        });
        eventually("another one is there", || {
            let now = unit.main_pid();
            (now != 0 && now != before).then_some(())
        });
    }
    let pids = unit.sleeping(&unit.group(), 1);
    let claims = world.claims();
    assert_eq!(claims.len(), 1, "{claims:?}");
    assert_eq!(affinity(pids[0]), claims[0]["cpus"].as_str().unwrap());
    unit.stop();
    world.reconcile().ok();
    world.assert_all_free("after the unit was stopped");
}

fn a_delegated_unit_has_it_below(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let unit = Unit::start(world, "delegated", "Delegate=yes", "/bin/sleep 600");
    let group = eventually("the owner's group", || {
        let claim = world.claims().into_iter().next()?;
        let path = claim["cgroup"]["path"].as_str()?.to_owned();
        Some(crate::world::claimed_cgroup(&path))
    });
    assert_eq!(group.parent().unwrap(), unit.group());
    let pids = unit.sleeping(&group, 1);
    systemctl(&["daemon-reload"]);
    assert_eq!(affinity(pids[0]), "1");
    unit.stop();
    assert!(!is_alive(pids[0]));
    world.reconcile().ok();
    world.assert_all_free("after the unit was stopped");
}

/// AllowedCPUs= of the unit is a limit like its others, and is as it was at the end.
fn the_units_own_cpus_bound_it(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let unit = Unit::start(world, "bound", "AllowedCPUs=1", "/bin/sleep 600");
    let pids = unit.sleeping(&unit.group(), 1);
    assert_eq!(affinity(pids[0]), "1");
    unit.stop();
    world.wait_until_free();
    assert_eq!(allowed_cpus(&unit), "1");
    assert!(!unit.settings().exists(), "a drop-in is left");
}

/// What was set at run time before the start is there after the end; what is set while a dead
/// owner's claim is there, too.
fn what_an_operator_tells_systemd_stays(world: &World) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let unit = Unit::start(world, "told", "", "/bin/sleep 600");
    unit.sleeping(&unit.group(), 1);
    unit.stop();
    world.wait_until_free();
    for (killed, cpus, owned) in [(1, "0-1", "0"), (2, "1", "1")] {
        let setting = format!("AllowedCPUs={cpus}");
        systemctl(&["set-property", "--runtime", &unit.name, &setting]);
        systemctl(&["start", &unit.name]);
        let pids = unit.sleeping(&unit.group(), 1);
        assert_eq!(affinity(pids[0]), owned);
        unit.stop();
        eventually("systemd knows the operator's again", || {
            (allowed_cpus(&unit) == cpus).then_some(())
        });
        let kept = unit.settings().join("50-AllowedCPUs.conf");
        let kept = std::fs::read_to_string(kept).unwrap();
        assert!(kept.contains(&format!("\n{setting}\n")), "{kept}");
        // One that is killed leaves its claim, and its CPUs with systemd.
        systemctl(&["start", &unit.name]);
        unit.sleeping(&unit.group(), 1);
        unit.kill();
        assert_eq!(world.claims().len(), killed);
    }
    world.reconcile();
    world.assert_all_free("after the unit was killed");
    assert_eq!(allowed_cpus(&unit), "1");
}

/// Where systemd is reached: over the bus, and by itself.
const BUS: &str = "/run/dbus/system_bus_socket";
const SYSTEMD: &str = "/run/systemd/private";

/// A socket that another file stands in for, for everybody, while this lives.
struct Covered(&'static str);

impl Covered {
    fn by(socket: &'static str, other: &Path) -> Covered {
        run(Command::new("mount").arg("--bind").arg(other).arg(socket)).ok();
        Covered(socket)
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0).status();
    }
}

/// While systemd cannot be told, the next start of the service would be confined to what its last
/// one owned.
fn what_systemd_is_not_told_stays_claimed(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let unit = Unit::start(world, "untold", "", "/bin/sleep 600");
    unit.sleeping(&unit.group(), 1);
    unit.kill();
    assert_eq!(allowed_cpus(&unit), "1");
    let nobody = world.dir.join("nobody");
    std::fs::write(&nobody, "").unwrap();
    let covered = [BUS, SYSTEMD].map(|socket| Covered::by(socket, &nobody));
    let refused = run(&mut world.pinfold(&["reconcile"])).exits(1);
    assert!(refused.stderr.contains("systemd"), "{refused}");
    assert_eq!(world.claims().len(), 1, "{refused}");
    drop(covered);
    world.reconcile();
    world.assert_all_free("after systemd could be told");
    assert_eq!(allowed_cpus(&unit), "");
    assert!(!unit.settings().exists(), "a drop-in is left");
}

/// As on a machine that has no message bus.
fn without_a_bus_systemd_is_told_itself(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let nobody = world.dir.join("nobody");
    std::fs::write(&nobody, "").unwrap();
    let covered = Covered::by(BUS, &nobody);
    let unit = Unit::start(world, "busless", "", "/bin/sleep 600");
    unit.sleeping(&unit.group(), 1);
    assert_eq!(allowed_cpus(&unit), "1");
    unit.kill();
    world.reconcile();
    world.assert_all_free("after the unit was killed");
    assert_eq!(allowed_cpus(&unit), "");
    drop(covered);
}

/// Giving back waits in vain once, and the list is had by force all the same.
fn a_systemd_that_never_answers_is_noted_and_passed(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let unit = Unit::start(world, "unanswered", "", "/bin/sleep 600");
    unit.sleeping(&unit.group(), 1);
    unit.kill();
    let silent = world.dir.join("silent");
    let _listener = UnixListener::bind(&silent).unwrap();
    let covered = Covered::by(BUS, &silent);
    let claims = world.claims();
    let id = claims[0]["id"].as_str().unwrap();
    run(&mut world.pinfold(&["release", id])).exits(1);
    assert_eq!(world.claim_of(id)["is_slow"], true);
    let freed = run(&mut world.pinfold(&["release", id, "--force"])).ok();
    assert!(freed.stderr.contains("is not undone"), "{freed}");
    assert!(world.tasks("dp", "1").is_empty());
    assert_eq!(world.claims().len(), 1, "what is left to undo is known");
    drop(covered);
    world.reconcile();
    world.assert_all_free("after systemd answers again");
    assert_eq!(allowed_cpus(&unit), "");
    assert!(!unit.settings().exists(), "a drop-in is left");
}

/// The system's bus, but that the first change of a unit is held until it is released.
struct HeldBus {
    socket: PathBuf,
    is_holding: Arc<AtomicBool>,
    is_released: Arc<AtomicBool>,
}

impl HeldBus {
    fn below(directory: &Path) -> HeldBus {
        // The bus itself, whatever covers its path later.
        let real = directory.join("bus");
        run(Command::new("touch").arg(&real)).ok();
        run(Command::new("mount").args(["--bind", BUS]).arg(&real)).ok();
        // Or what covers the one would cover the other (mount_namespaces(7)).
        run(Command::new("mount").arg("--make-private").arg(&real)).ok();
        let socket = directory.join("held");
        let listener = UnixListener::bind(&socket).unwrap();
        let held = HeldBus {
            socket,
            is_holding: Arc::default(),
            is_released: Arc::default(),
        };
        let (holding, released) = (held.is_holding.clone(), held.is_released.clone());
        spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                let bus = UnixStream::connect(&real).unwrap();
                let back = (bus.try_clone().unwrap(), client.try_clone().unwrap());
                spawn(move || pass(back.0, back.1, |_| {}));
                let (holding, released) = (holding.clone(), released.clone());
                spawn(move || {
                    pass(client, bus, |message| {
                        let is_change =
                            message.windows(17).any(|word| word == b"SetUnitProperties");
                        if is_change && !holding.swap(true, Relaxed) {
                            eventually("it is let go", || released.load(Relaxed).then_some(()));
                        }
                    });
                });
            }
        });
        held
    }
}

impl Drop for HeldBus {
    fn drop(&mut self) {
        let real = self.socket.with_file_name("bus");
        let _ = Command::new("umount").arg("--lazy").arg(real).status();
    }
}

/// Passes on what is written, up to the end; each piece is looked at first.
fn pass(mut from: UnixStream, mut to: UnixStream, look: impl Fn(&[u8])) {
    let mut bytes = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        look(&bytes[..length]);
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// Released while systemd is told of it: what systemd knows at the end is what the unit's own file
/// says.
fn released_by_force_at_the_start(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let held = HeldBus::below(&world.dir);
    let covered = Covered::by(BUS, &held.socket);
    let unit = Unit::start(world, "forced", "AllowedCPUs=0-1", "/bin/sleep 600");
    eventually("systemd is being told", || {
        held.is_holding.load(Relaxed).then_some(())
    });
    let claims = world.claims();
    let id = claims[0]["id"].as_str().unwrap();
    run(&mut world.pinfold(&["release", id, "--force"])).ok();
    held.is_released.store(true, Relaxed);
    eventually("it is not started", || (unit.main_pid() == 0).then_some(()));
    drop(covered);
    world.assert_all_free("after it was released");
    assert_eq!(allowed_cpus(&unit), "0-1");
    assert!(!unit.settings().exists(), "a drop-in is left");
}

fn beside_others_it_has_a_group_of_ours(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let isolate = world.pinfold(&["isolate", "--pool", "dp", "--", "/bin/sleep", "600"]);
    let words = std::iter::once(isolate.get_program()).chain(isolate.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let line = format!("/bin/sh -c 'sleep 600 & {}; true'", words.join(" "));
    let unit = Unit::of_line("beside", "", &line);
    let group = eventually("the owner's group", || {
        let claim = world.claims().into_iter().next()?;
        Some(claim["cgroup"]["path"].as_str()?.to_owned())
    });
    assert!(group.starts_with("/pinfold/"), "{group}");
    unit.stop();
    world.reconcile().ok();
}
