//! Containers whose cgroups, or namespaces, are not as usual.

use crate::bundle::Hook;
use crate::case::{Case, each};
use crate::cgroups::hierarchy;
use crate::container::Container;
use crate::engines::{Driver, Engine, Runtime};
use crate::needs::Need;
use crate::plan::Plan;
use crate::world::{Kind, World};
use std::os::unix::fs::PermissionsExt;

pub(crate) fn cases() -> Vec<Case> {
    let two = &[Need::Cpus(2)];
    let systemd = |mut engines: Vec<Engine>| {
        engines.retain(|engine| engine.driver == Driver::Systemd);
        engines
    };
    [
        each(
            systemd(Engine::all()),
            "unusual::where_the_runtime_puts_it",
            &[Need::Cpus(2), Need::V2],
            where_the_runtime_puts_it,
        ),
        each(
            Engine::podman(),
            "unusual::without_conmon_in_a_cgroup",
            two,
            |world, engine| {
                pinned_with(world, engine, "--cgroups=no-conmon");
            },
        ),
        each(
            Engine::podman(),
            "unusual::in_the_hosts_pid_namespace",
            two,
            |world, engine| {
                pinned_with(world, engine, "--pid=host");
            },
        ),
        each(
            Engine::podman(),
            "unusual::in_a_user_namespace",
            &[Need::Cpus(2), Need::SubordinateIds],
            |world, engine| pinned_with(world, engine, "--userns=auto"),
        ),
        each(Engine::podman(), "unusual::in_a_nested_slice", two, nested),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// crun's leaf below the scope, runc's scope itself: the mask is in the one that the process is in.
fn where_the_runtime_puts_it(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let container = Container::up(world, engine, Plan::pinned("a", "dp"));
    container.assert_confined_to("1");
    let cgroup = hierarchy().of(container.pid());
    let ending = match engine.runtime {
        Runtime::Runc => ".scope",
        Runtime::Crun => ".scope/container",
    };
    assert!(cgroup.to_string_lossy().ends_with(ending), "{cgroup:?}");
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}

/// A hook's script: from the container's group up to $0 nobody has the controller any more, as $1
/// then says.
const DISABLE: &str = "set -eu
    pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p')
    group=/sys/fs/cgroup$(sed -n 's/^0:://p' \"/proc/$pid/cgroup\")
    dir=$group
    until [ \"$dir\" = \"$0\" ]; do
        dir=${dir%/*}
        echo -cpuset >\"$dir/cgroup.subtree_control\"
    done
    [ ! -e \"$group/cpuset.cpus\" ]
    echo no controller >\"$1\"";

fn pinned_with(world: &World, engine: Engine, option: &str) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan::pinned("a", "dp").option(option);
    let container = Container::prepare(world, engine, plan);
    // Its root may be nobody here, who can make nothing in the root file system.
    let rootfs = world.dir.join("rootfs");
    std::fs::set_permissions(rootfs.join("out"), PermissionsExt::from_mode(0o777)).unwrap();
    for mounted_on in [
        "etc/hosts",
        "etc/hostname",
        "etc/resolv.conf",
        "run/.containerenv",
    ] {
        std::fs::write(rootfs.join(mounted_on), "").unwrap();
    }
    container.launch().ok();
    assert_eq!(container.affinity(), "1");
    container.assert_confined_to("1");
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}

/// On version 2 none of the groups above has the controller for its children when our hook comes,
/// whatever the engine has had enabled: another hook has disabled it.
fn nested(world: &World, engine: Engine) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let plan = Plan {
        below: Some(match engine.driver {
            Driver::Systemd => "deep-deeper".into(),
            Driver::Cgroupfs => "deep/deeper".into(),
        }),
        ..Plan::pinned("a", "dp")
    };
    let top = hierarchy()
        .root
        .join(engine.driver.parent(world).trim_start_matches('/'));
    let seen = world.dir.join("seen");
    let [top, seen] = [top, seen].map(|path| path.display().to_string());
    let disable = ["/bin/sh", "-c", DISABLE, &top, &seen].map(str::to_owned);
    let mut hooks = vec![
        Hook::pinfold(world, plan.stage),
        Hook::pinfold(world, "poststop"),
    ];
    if Need::V2.is_met() {
        hooks.insert(0, Hook::other(plan.stage, &disable));
    }
    let container = Container::prepare_with_hooks(world, engine, plan, &hooks);
    container.launch().ok();
    assert_eq!(container.affinity(), "1");
    assert!(container.exec().contains("affinity: 1\n"));
    container.assert_confined_to("1");
    if Need::V2.is_met() {
        let seen = std::fs::read_to_string(seen).unwrap();
        assert_eq!(seen, "no controller\n");
    }
    container.delete_by_force().ok();
    world.assert_all_free("after delete");
}
