//! CPUs that nobody else has: partitions, on the kernels that make them, and the sentence where
//! they do not.

use crate::case::{Case, each};
use crate::cgroups::{below, hierarchy};
use crate::engines::{Door, Driver};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{eventually, run};
use crate::service::{Client, Service, Session};
use crate::syslog::SysLog;
use crate::world::{Kind, World, claimed_cgroup};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[
        Need::Partitions,
        Need::Systemd,
        Need::Cpus(8),
        Need::Disposable,
    ];
    let doors = [
        (Client::Podman, Door::Hooks),
        (Client::Podman, Door::Shim),
        (Client::Docker, Door::Hooks),
    ];
    let services = doors.map(|(client, door)| Service::all(client, door));
    let systemd = |service: &Service| service.driver == Driver::Systemd;
    let services = services.concat().into_iter().filter(systemd).collect();
    let groups: Vec<Vec<Service>> = Service::groups(services);
    let mut cases = Vec::new();
    for services in groups {
        cases.extend(each(
            services.clone(),
            "isolation::others_are_kept_off",
            needs,
            others_are_kept_off,
        ));
        cases.extend(each(
            services,
            "isolation::where_it_cannot_be",
            needs,
            where_it_cannot_be,
        ));
    }
    cases
}

fn set(world: &World, pool: &str, options: &[&str]) {
    let words = [&["pool", "set", pool], options].concat();
    run(&mut world.pinfold(&words)).ok();
}

/// The text of a file of a cgroup; empty where there is none.
fn text(group: &Path, file: &str) -> String {
    let text = std::fs::read_to_string(group.join(file)).unwrap_or_default();
    text.trim().to_owned()
}

/// The CPUs that everybody has.
fn of_everybody() -> String {
    text(&hierarchy().root, "cpuset.cpus.effective")
}

/// What partitions change in the groups that last.
fn lasting() -> BTreeMap<PathBuf, (String, String, String)> {
    let mut all = BTreeMap::new();
    for group in below(&hierarchy().root) {
        if group.to_string_lossy().contains(".scope") {
            continue;
        }
        let now = (
            text(&group, "cpuset.cpus.exclusive"),
            text(&group, "cpuset.cpus.partition"),
            text(&group, "cpuset.cpus.effective"),
        );
        all.insert(group, now);
    }
    all
}

/// Everything is as it was, in the groups that are still there.
#[track_caller]
fn assert_as_before(before: &BTreeMap<PathBuf, (String, String, String)>) {
    assert_eq!(of_everybody(), "0-7");
    for (group, now) in lasting() {
        if let Some(then) = before.get(&group) {
            assert_eq!(&now, then, "{}", group.display());
        }
    }
}

/// Does this kernel leave a partition alone whatever is beside it?
pub(crate) fn bears_siblings() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let major = release.split('.').next().unwrap().parse::<u32>().unwrap();
    major >= 7
}

/// The cgroup of an owner.
fn group_of(session: &Session, name: &str) -> PathBuf {
    let claim = session.world().claim_of(&session.id(name));
    claimed_cgroup(claim["cgroup"]["path"].as_str().unwrap())
}

fn others_are_kept_off(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    let kind = match service.door {
        Door::Shim => "isolated",
        _ => "root",
    };
    set(world, "dp", &[&format!("isolation={kind}")]);
    // The slice is there for the comparison.
    session.up(&Plan::plain("plain"));
    let before = lasting();
    let mut log = SysLog::mark();
    session.up(&Plan::pinned("web", "dp"));
    session.assert_pinned("web", "dp", "4");
    let web = group_of(&session, "web");
    let can_be = bears_siblings() || web.ends_with("container");
    if !can_be {
        log.lines_with(1, &["by its mask alone", "--cgroup-parent pinfold.slice"]);
        assert_eq!(text(&web, "cpuset.cpus.partition"), "member");
        assert_eq!(of_everybody(), "0-7");
        let claim = world.claim_of(&session.id("web"));
        assert!(claim["isolation"].is_null(), "{claim}");
        session.remove_by_force("web").ok();
        world.wait_until_free();
        assert_as_before(&before);
        return;
    }
    assert_eq!(text(&web, "cpuset.cpus.partition"), kind);
    assert_eq!(of_everybody(), "0-3,5-7");
    session.up(&Plan::pinned("api", "dp"));
    session.assert_pinned("api", "dp", "5");
    assert_eq!(
        text(&group_of(&session, "api"), "cpuset.cpus.partition"),
        kind
    );
    assert_eq!(of_everybody(), "0-3,6-7");
    world.reconcile();
    world.assert_sound("two partitions");

    // By every way out the CPUs are everybody's again.
    session.remove_by_force("web").ok();
    eventually("web gives back", || {
        (of_everybody() == "0-4,6-7").then_some(())
    });
    session.up(&Plan::pinned("db", "dp"));
    session.assert_pinned("db", "dp", "4");
    assert_eq!(of_everybody(), "0-3,6-7");
    session.kill("db").ok();
    eventually("db gives back", || {
        (of_everybody() == "0-4,6-7").then_some(())
    });
    session.remove("db").ok();
    // One that lives on loses them by force; the scope that crun made for the shim's has no other
    // CPUs.
    if service.door != Door::Shim {
        let id = session.id("api");
        run(&mut world.pinfold(&["release", &id, "--force"])).ok();
        assert_eq!(of_everybody(), "0-7");
    }
    session.remove_by_force("api").ok();
    world.wait_until_free();
    run(&mut world.pinfold(&["reconcile"])).ok();
    assert_as_before(&before);
}

/// A pool that needs it refuses the start where it cannot be: here since somebody else has the CPU.
fn where_it_cannot_be(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4"]);
    set(world, "dp", &["isolation=root", "isolation-needed=yes"]);
    let parent = hierarchy().root.join("pinfoldtest-other.slice");
    // Engines enable the controller.
    session.up(&Plan::plain("plain"));
    std::fs::create_dir_all(&parent).unwrap();
    std::fs::write(parent.join("cpuset.cpus.exclusive"), "4").unwrap();
    let before = lasting();
    let mut log = SysLog::mark();
    let ran = session.launch(service, &Plan::pinned("refused", "dp"));
    assert_ne!(ran.code(), Some(0), "{ran}");
    log.lines_with(
        1,
        &["others can run on 4 of pool dp", "isolation-needed=no"],
    );
    session.remove_by_force("refused");
    world.wait_until_free();
    assert_eq!(text(&parent, "cpuset.cpus.exclusive"), "4");
    assert_as_before(&before);
    // Where it is not needed the mask holds.
    set(world, "dp", &["isolation-needed=no"]);
    session.up(&Plan::pinned("masked", "dp"));
    session.assert_pinned("masked", "dp", "4");
    session.remove_by_force("masked").ok();
    world.wait_until_free();
    assert_as_before(&before);
    std::fs::remove_dir(&parent).unwrap();
}
