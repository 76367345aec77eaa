//! podman without root: as the ordinary user 1000, in whose manager a service runs the whole of a container's life.

use crate::bundle::{self, Hook};
use crate::cases::{Case, plain};
use crate::needs::Need;
use crate::process::{self, Ran};
use crate::syslog::SysLog;
use crate::world::{Kind, World};
use std::path::Path;
use std::process::Command;

const USER: &str = "1000";
const DROP_IN: &str = "/run/systemd/system/user@.service.d/pinfold-test.conf";

pub(crate) fn cases() -> Vec<Case> {
    let needs = &[
        Need::Root,
        Need::V2,
        Need::Systemd,
        Need::Podman,
        Need::OrdinaryUser,
        Need::Cpus(2),
    ];
    vec![
        plain(
            "rootless::where_the_controller_is_delegated",
            needs,
            delegated,
        ),
        plain("rootless::where_it_is_not", needs, not_delegated),
    ]
}

/// What the user's manager may hand on, until this is dropped.
struct Delegation;

impl Delegation {
    fn of(controllers: &str) -> Delegation {
        let path = Path::new(DROP_IN);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("[Service]\nDelegate={controllers}\n")).unwrap();
        restart_manager();
        Delegation
    }
}

impl Drop for Delegation {
    fn drop(&mut self) {
        std::fs::remove_file(DROP_IN).unwrap();
        restart_manager();
    }
}

fn restart_manager() {
    let run = |arguments: &[&str]| process::run(Command::new("systemctl").args(arguments)).ok();
    run(&["daemon-reload"]);
    run(&["restart", &format!("user@{USER}.service")]);
}

/// Runs the script as the user, in a service of the user's manager; the world is the user's.
fn as_user(world: &World, script: &str) -> Ran {
    let dir = world.dir.display().to_string();
    process::run(Command::new("chown").args(["-R", USER, &dir])).ok();
    let mut command = Command::new("systemd-run");
    command.args([
        "--user",
        "--machine",
        &format!("{USER}@.host"),
        "--quiet",
        "--wait",
        "--pipe",
    ]);
    command.args(["--collect", "--working-directory", &dir, "/bin/sh", "-euc"]);
    process::run(command.arg(script))
}

fn prepare(world: &World) -> String {
    world.pool("dp", Kind::Exclusive, &["1"]);
    bundle::make_rootfs(&world.dir.join("rootfs"));
    let hooks = world.dir.join("hooks.d");
    std::fs::create_dir(&hooks).unwrap();
    let ours = ["createRuntime", "poststop"].map(|stage| Hook::pinfold(world, stage));
    bundle::write_hook_files(&hooks, &ours);
    let dir = world.dir.display();
    format!(
        "podman() {{ command podman --storage-driver vfs --events-backend none --root {dir}/storage \
         --runroot {dir}/podman --hooks-dir {dir}/hooks.d --runtime crun \"$@\"; }}\n\
         podman run -d --name a --network none --security-opt seccomp=unconfined --cidfile {dir}/cid \
         --annotation pinfold.io/pool=dp --rootfs {dir}/rootfs /probe --out /out/a --wait\n"
    )
}

fn delegated(world: &World) {
    let _delegation = Delegation::of("cpu cpuset memory pids");
    let start = prepare(world);
    let dir = world.dir.display();
    let rest = format!(
        "until [ -s {dir}/rootfs/out/a ]; do sleep 0.1; done\n\
         cat {dir}/rootfs/out/a; cat {dir}/conf/pools/dp/1/tasks; echo\n\
         podman exec a /probe --exit 0\n\
         podman rm --force --time 0 a\n"
    );
    let ran = as_user(world, &format!("{start}{rest}")).ok();
    assert_eq!(ran.stdout.matches("affinity: 1\n").count(), 2, "{ran}");
    let owner = ran.stdout.lines().any(|line| line.parse::<u32>().is_ok());
    assert!(owner, "an owner is recorded: {ran}");
    world.assert_all_free("after rm");
}

fn not_delegated(world: &World) {
    let _delegation = Delegation::of("cpu memory pids");
    let start = prepare(world);
    let mut log = SysLog::mark();
    let ran = as_user(world, &start);
    assert_ne!(ran.code(), Some(0), "{ran}");
    log.lines_with(1, &["cpuset", "Delegate"]);
    world.assert_all_free("after a refusal");
}
