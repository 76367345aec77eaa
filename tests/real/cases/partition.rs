//! Containers, and a command, in a slice that its operator has made a cpuset partition.

use crate::case::{Case, each};
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
    fn make(slice: String) -> Partition {
        systemctl(&["start", &slice]);
        systemctl(&["set-property", "--runtime", &slice, "AllowedCPUs=4-7"]);
        let partition = Partition { slice };
        eventually("the slice has its CPUs", || {
            let cpus = std::fs::read_to_string(partition.group().join("cpuset.cpus")).ok()?;
            (cpus.trim() == "4-7").then_some(())
        });
        assert_eq!(partition.set("root"), "root");
        partition
    }

    fn group(&self) -> PathBuf {
        hierarchy().root.join(&self.slice)
    }

    /// Writes the kind, which always succeeds, and reads what it is.
    fn set(&self, kind: &str) -> String {
        let file = self.group().join("cpuset.cpus.partition");
        std::fs::write(&file, kind).unwrap();
        std::fs::read_to_string(&file).unwrap().trim().to_owned()
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let file = self.group().join("cpuset.cpus.partition");
        let _ = std::fs::write(file, "member");
        let mut all = Command::new("systemctl");
        let all = all.args(["set-property", "--runtime", &self.slice, "AllowedCPUs=0-7"]);
        let _ = all.status();
        let _ = Command::new("systemctl")
            .args(["stop", &self.slice])
            .status();
    }
}

fn systemctl(arguments: &[&str]) {
    run(Command::new("systemctl").args(arguments)).ok();
}

fn in_its_slice(_: &World, service: Service) {
    let session = Session::with(service);
    let world = session.world();
    world.pool("dp", Kind::Exclusive, &["4", "5"]);
    let partition = Partition::make(service.driver.parent(world));
    session.up(&Plan::pinned("web", "dp"));
    session.assert_pinned("web", "dp", "4");

    // What check says of them agrees: nobody outside has these CPUs, and nobody is to widen
    // anything.
    let told = run(&mut world.pinfold(&["check"])).stdout;
    let says = format!(
        "the CPUs 4-5 of pools are a partition of /{}",
        partition.slice
    );
    assert!(told.contains(&says), "{told}");
    assert!(!told.contains("does not allow the CPUs"), "{told}");
    assert!(!told.contains("in the books alone"), "{told}");
    assert!(!told.contains("neighbours"), "{told}");

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
    assert_eq!(partition.set("root"), "root", "it was never broken");
}
