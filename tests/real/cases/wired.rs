//! Engines as `pinfold install` sets them up: by hooks directory, by the shim, by CDI devices.

use crate::case::{Case, each};
use crate::cases::served;
use crate::engines::{Door, Driver};
use crate::service::{Client, Service, Session};
use crate::world::World;

/// The engines by the doors that `install` opens for them.
const WIRED: [(Client, Door); 6] = [
    (Client::Podman, Door::Hooks),
    (Client::Podman, Door::Shim),
    (Client::Podman, Door::Cdi),
    (Client::Docker, Door::Shim),
    (Client::Docker, Door::Cdi),
    (Client::Cri, Door::Shim),
];

pub(crate) fn cases() -> Vec<Case> {
    let services = WIRED
        .map(|(client, door)| Service::all(client, door))
        .concat();
    // What install writes knows of no driver; it is tried with the one that machines of today have.
    let systemd = |service: &Service| service.driver == Driver::Systemd;
    let groups = Service::groups(services.into_iter().filter(systemd).collect());
    groups.into_iter().flat_map(of).collect()
}

/// The last test of a group takes back what was installed.
fn of(services: Vec<Service>) -> Vec<Case> {
    let last = services[services.len() - 1];
    let mut cases = served::life("wired", services);
    cases.extend(each(
        vec![last],
        "wired::uninstall_leaves_the_files_as_they_were",
        &[],
        uninstall,
    ));
    cases
}

fn uninstall(_: &World, service: Service) {
    let session = Session::with(service);
    let site = session.daemon().site.as_ref().expect("it is on a site");
    site.assert_uninstalls(match service.client {
        Client::Docker => "docker",
        Client::Podman => "podman",
        Client::Ctr | Client::Cri => "containerd",
    });
    session.close();
}
