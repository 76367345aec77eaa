//! `podman kube play`: the annotations of a pod come to each of its containers, and not to its
//! infra container.

use crate::case::{Case, each};
use crate::container::Container;
use crate::engines::Engine;
use crate::needs::Need;
use crate::plan::Plan;
use crate::process;
use crate::world::{Kind, World};
use std::collections::BTreeSet;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    each(
        Engine::podman(),
        "kube::annotations_of_the_pod",
        &[Need::Cpus(2), Need::PauseImage],
        of_the_pod,
    )
}

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: pod
  annotations:
    pinfold.io/pool: dp
    pinfold.io/pool.worker: none
spec:
  containers:
  - name: worker
    image: localhost/probe:1
    imagePullPolicy: Never
    args: [\"--wait\"]
  - name: other
    image: localhost/probe:1
    imagePullPolicy: Never
    args: [\"--wait\"]
";

/// podman tells hooks no container's name: a key for one container alone is then no request, and no
/// refusal either.
fn of_the_pod(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["0", "1"]);
    let container = Container::prepare(world, engine, Plan::plain("pod-worker"));
    let (tar, pod) = (world.dir.join("image.tar"), world.dir.join("pod.yaml"));
    let mut packing = Command::new("tar");
    packing.arg("-cf").arg(&tar).arg("-C");
    process::run(packing.arg(world.dir.join("rootfs")).arg(".")).ok();
    let import = ["import", "--quiet", "--change", "ENTRYPOINT [\"/probe\"]"];
    process::run(
        container
            .podman()
            .args(import)
            .arg(&tar)
            .arg("localhost/probe:1"),
    )
    .ok();
    std::fs::write(&pod, POD).unwrap();
    let play = [
        "play",
        "kube",
        "--network",
        "none",
        "--log-driver",
        "k8s-file",
    ];
    process::run(container.podman().args(play).arg(&pod)).ok();

    let other = Container::prepare(world, engine, Plan::plain("pod-other"));
    let mut owned = BTreeSet::new();
    for one in [&container, &other] {
        let cpus = first_seen(one);
        one.assert_confined_to(&cpus);
        assert_eq!(world.tasks("dp", &cpus), [one.pid()]);
        owned.insert(cpus);
    }
    assert_eq!(owned.len(), 2, "each has a list of its own: {owned:?}");
    assert_eq!(
        world.claims().len(),
        2,
        "the infra container is given nothing"
    );
    let remove = ["pod", "rm", "--force", "--time", "0", "pod"];
    process::run(container.podman().args(remove)).ok();
    world.assert_all_free("after the pod is removed");
}

/// What the first process saw as its very first act, and wrote to its standard output.
fn first_seen(container: &Container) -> String {
    process::eventually("the probe writes what it saw", || {
        let logged = container.engine_command(&["logs"]).ok().stdout;
        let mut lines = logged.lines();
        lines.find_map(|line| line.strip_prefix("affinity: ").map(str::to_owned))
    })
}
