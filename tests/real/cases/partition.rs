//! Containers, and a command, in a slice that its operator has made a cpuset partition.

use crate::case::{Case, each};
use crate::cases::offenders::{UNITS, switch, systemctl, text};
use crate::cgroups::hierarchy;
use crate::engines::{Door, Driver};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process::{affinity, eventually, run};
use crate::service::{Client, Service, Session};
use crate::world::{Kind, World};
use std::path::PathBuf;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[Need::V2, Need::Systemd, Need::Cpus(8), Need::Disposable];
    let doors = [
        (Client::Podman, Door::Hooks),
        (Client::Podman, Door::Shim),
        (Client::Docker, Door::Hooks),
        (Client::Docker, Door::Shim),
    ];
    let services = doors.map(|(client, door)| Service::all(client, door));
    let systemd = |service: &Service| service.driver == Driver::Systemd;
    let services = services.concat().into_iter().filter(systemd).collect();
    let groups = Service::groups(services).into_iter();
    groups
        .flat_map(|services| each(services, "partition::of_the_operators", needs, in_its_slice))
        .collect()
}

/// A slice with the CPUs 4 to 7 for its own; what it was like comes back.
struct Partition {
    slice: String,
}

impl Partition {
    /// The units beside it may name none of its CPUs, as other tests have them do.
    fn make(slice: String) -> Partition {
        allow("0-3");
        systemctl(&["start", &slice]);
        systemctl(&["set-property", "--runtime", &slice, "AllowedCPUs=4-7"]);
        let partition = Partition { slice };
        eventually("the slice has its CPUs", || {
            let cpus = std::fs::read_to_string(partition.group().join("cpuset.cpus")).ok()?;
            (cpus.trim() == "4-7").then_some(())
        });
        partition.make_root();
        partition
    }

    fn group(&self) -> PathBuf {
        hierarchy().root.join(&self.slice)
    }

    fn state(&self) -> String {
        text(&self.group().join("cpuset.cpus.partition"))
    }

    /// Writing always succeeds; one that is invalid has to be none first.
    #[track_caller]
    fn make_root(&self) {
        let file = self.group().join("cpuset.cpus.partition");
        for kind in ["member", "root"] {
            std::fs::write(&file, kind).unwrap();
        }
        assert_eq!(self.state(), "root");
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let file = self.group().join("cpuset.cpus.partition");
        let _ = std::fs::write(file, "member");
        for unit in [&*self.slice].into_iter().chain(UNITS) {
            let mut all = Command::new("systemctl");
            let all = all.args(["set-property", "--runtime", unit, "AllowedCPUs=0-7"]);
            let _ = all.status();
        }
        let _ = Command::new("systemctl")
            .args(["stop", &self.slice])
            .status();
    }
}

/// What others do beside an owner in such a slice: it keeps its CPU, and nobody outside has one of
/// the slice's.
fn beside_it(session: &Session, partition: &Partition) {
    let offenders: [(&str, &dyn Fn()); 6] = [
        ("a unit on its CPU", &|| unit_outside(partition)),
        ("other CPUs of the machine's slices", &|| allow("0-3")),
        ("daemon-reload", &|| systemctl(&["daemon-reload"])),
        ("daemon-reexec", &|| systemctl(&["daemon-reexec"])),
        ("another CPU's absence", &|| switch(5)),
        ("its CPU's absence", &|| switch(4)),
    ];
    for (name, offend) in offenders {
        offend();
        session.up(&Plan::pinned("api", "dp"));
        session.remove_by_force("api").ok();
        session.world().reconcile();
        session.assert_pinned("web", "dp", "4");
        assert_eq!(partition.state(), "root", "{name}");
        let outside = text(&hierarchy().root.join("cpuset.cpus.effective"));
        assert_eq!(outside, "0-3", "{name}");
    }
}

/// Gives the units beside the slice these CPUs.
fn allow(cpus: &str) {
    for unit in UNITS {
        let allowed = format!("AllowedCPUs={cpus}");
        systemctl(&["set-property", "--runtime", unit, &allowed]);
    }
}

/// Slices that name its CPUs break it on most kernels, and systemd would say them again at each
/// reload. The owner has its mask, and `check` names the slice's partition no more.
fn broken(session: &Session, partition: &Partition) {
    allow("0-7");
    session.assert_pinned("web", "dp", "4");
    let told = check(session.world());
    let stands = partition.state() == "root";
    assert_eq!(told.contains(&is_kept(partition)), stands, "{told}");
    // Of this owner, or of all where the kernel makes no other partitions.
    let by_mask = ["by its mask alone", "by their masks alone"];
    let is_told = by_mask.iter().any(|words| told.contains(words));
    assert_eq!(is_told, !stands, "{told}");
    allow("0-3");
    partition.make_root();
    assert!(check(session.world()).contains(&is_kept(partition)));
}

fn check(world: &World) -> String {
    run(&mut world.pinfold(&["check"])).stdout
}

/// What check says while it stands.
fn is_kept(partition: &Partition) -> String {
    format!(
        "the CPUs 4-5 of pools are a partition of /{}",
        partition.slice
    )
}

/// A unit elsewhere on the owner's CPU: the kernel gives it others.
fn unit_outside(partition: &Partition) {
    let unit = "pinfoldtest-offender.service";
    let mut command = Command::new("systemd-run");
    command.args(["--collect", "--unit", unit, "-p", "AllowedCPUs=4"]);
    run(command.args(["--", "/bin/sleep", "60"]));
    let group = hierarchy().root.join("system.slice").join(unit);
    let has = text(&group.join("cpuset.cpus.effective"));
    assert!(!has.contains('4'), "{has} beside {}", partition.slice);
    run(Command::new("systemctl").args(["stop", unit]));
}

fn in_its_slice(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    let partition = Partition::make(service.driver.parent(world));
    // The slice is what keeps others off, also where the kernel makes no partition in it.
    let set = [
        "pool",
        "set",
        "dp",
        "isolation=root",
        "isolation-needed=yes",
    ];
    run(&mut world.pinfold(&set)).ok();
    session.up(&Plan::pinned("web", "dp"));
    session.assert_pinned("web", "dp", "4");

    // What check says of them agrees: nobody outside has these CPUs, and nobody is to widen
    // anything.
    let told = check(world);
    assert!(told.contains(&is_kept(&partition)), "{told}");
    assert!(!told.contains("does not allow the CPUs"), "{told}");
    assert!(!told.contains("in the books alone"), "{told}");
    assert!(!told.contains("neighbours"), "{told}");

    beside_it(&session, &partition);
    broken(&session, &partition);

    // A command there gets the other list; one elsewhere is told where to go.
    let isolate = world.pinfold(&["isolate", "--pool", "dp", "--", "/bin/sleep", "600"]);
    let refused = run(&mut world.pinfold(&["isolate", "--pool", "dp", "--", "/bin/true"]));
    assert!(
        refused
            .stderr
            .contains(&format!("systemd-run --slice={}`", partition.slice)),
        "{refused}"
    );
    let mut command = Command::new("systemd-run");
    let unit = "pinfoldtest-partition.service";
    command.args(["--collect", "--unit", unit, "--slice", &partition.slice]);
    run(command.arg(isolate.get_program()).args(isolate.get_args())).ok();
    let pid = eventually("the command has its claim", || {
        let claims = world.claims();
        let claim = claims
            .iter()
            .find(|claim| claim["names"]["engine"].is_null())?;
        Some(claim["owner"]["pid"].as_i64()? as i32)
    });
    eventually("the command is on its CPU", || {
        (affinity(pid) == "5").then_some(())
    });
    systemctl(&["stop", unit]);
    session.remove_by_force("web").ok();
    run(&mut world.pinfold(&["reconcile"])).ok();
    world.wait_until_free();
    assert_eq!(partition.state(), "root");
}
