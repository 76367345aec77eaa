//! Pods over the CRI: the sandbox is left alone, and each container gets what the annotations say
//! for it.

use crate::case::{Case, each};
use crate::cgroups::hierarchy;
use crate::engines::{Door, Driver};
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::service::{Client, Service, Session};
use crate::world::{Kind, World};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let mut services = Service::all(Client::Cri, Door::Hooks);
    // No hook of a handler's base specification runs for a sandbox: what the shim does there is
    // another matter.
    let shim = Service::all(Client::Cri, Door::Shim);
    let systemd = |service: &Service| service.driver == Driver::Systemd;
    services.extend(shim.into_iter().filter(systemd));
    services.extend(Service::all(Client::Cri, Door::Nri));
    let groups = Service::groups(services);
    let of = |services: Vec<Service>| {
        let name = "pods::each_container_as_its_annotations_say";
        let each_as_it_says = each(services.clone(), name, two, each_as_it_says);
        let pod_wide = each(
            services,
            "pods::pod_wide_but_for_one",
            two,
            pod_wide_but_for_one,
        );
        each_as_it_says.into_iter().chain(pod_wide)
    };
    groups.into_iter().flat_map(of).collect()
}

fn annotation(key: &str, value: &str) -> (String, String) {
    (key.into(), value.into())
}

/// One pod with a container in each of two pools, said by the pod's author container by container.
fn each_as_it_says(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    world.pool("cp", Kind::Shared, &["0"]);
    let pod = cri.run_pod(
        service,
        "pod",
        &[
            annotation("pinfold.io/pool.worker", "dp"),
            annotation("pinfold.io/pool.control", "cp"),
            annotation("example.com/other", "stays away"),
        ],
    );
    assert_eq!(world.claims().len(), 0, "a pod's sandbox is given nothing");
    cri.launch_in(&pod, &Plan::plain("worker")).ok();
    cri.launch_in(&pod, &Plan::plain("control")).ok();
    session.assert_pinned("worker", "dp", "1");
    session.assert_pinned("control", "cp", "0");
    assert_eq!(world.claims().len(), 2, "one for each container");

    let told = cri.annotations("worker");
    assert_eq!(told["pinfold.io/pool.worker"], "dp");
    assert_eq!(
        told["example.com/other"],
        json!(null),
        "only what the handler names passes"
    );
    assert_eq!(told["io.kubernetes.cri.container-name"], "worker");

    cri.remove_pod(&pod).ok();
    session.world().wait_until_free();
}

/// What the pod asks for holds for its containers, but not for one that opts out, nor for more than
/// there is.
fn pod_wide_but_for_one(_: &World, service: Service) {
    let session = Session::with(service);
    let (cri, world) = (session.cri(), session.world());
    world.pool("dp", Kind::Exclusive, &["1"]);
    let pod = cri.run_pod(
        service,
        "pod",
        &[
            annotation("pinfold.io/pool", "dp"),
            annotation("pinfold.io/pool.sidecar", "none"),
        ],
    );
    cri.launch_in(&pod, &Plan::plain("sidecar")).ok();
    assert_eq!(session.affinity("sidecar"), hierarchy().all_cpus());
    cri.launch_in(&pod, &Plan::plain("worker")).ok();
    session.assert_pinned("worker", "dp", "1");
    let refused = cri.launch_in(&pod, &Plan::plain("late"));
    assert_ne!(refused.code(), Some(0), "the pool is full: {refused}");
    assert_eq!(world.claims().len(), 1);

    let pid = session.pid("worker");
    session.stop("worker").ok();
    assert!(!process::is_alive(pid));
    session.world().wait_until_free();
    // A container can also say it for itself.
    cri.launch_in(&pod, &Plan::plain("own").asking("pinfold.io/pool", "none"))
        .ok();
    assert_eq!(session.affinity("own"), hierarchy().all_cpus());
    cri.remove_pod(&pod).ok();
    world.assert_all_free("after the pod");
}
