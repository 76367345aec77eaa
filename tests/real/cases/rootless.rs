//! podman without root: as the ordinary user 1000, in whose manager services run what the user
//! would.

use crate::bundle::{self, Hook};
use crate::case::{Case, Columns, Means, each, plain};
use crate::cgroups::hierarchy;
use crate::engines::{Door, Driver, Runtime};
use crate::needs::Need;
use crate::process::{self, Ran, Running};
use crate::syslog::SysLog;
use crate::world::{Kind, World, binary};
use std::path::{Path, PathBuf};
use std::process::Command;

const USER: &str = "1000";
const DROP_IN: &str = "/run/systemd/system/user@.service.d/pinfold-test.conf";

/// podman as the user has it, with one of the runtimes.
#[derive(Clone, Copy)]
struct Rootless(Runtime);

impl Means for Rootless {
    fn needs(self) -> Vec<Need> {
        vec![
            Need::Root,
            Need::V2,
            Need::Systemd,
            Need::Podman,
            self.0.need(),
            Need::OrdinaryUser,
            Need::Disposable,
        ]
    }

    fn columns(self) -> Columns {
        Columns {
            engine: "podman-rootless",
            runtime: self.0.name(),
            door: Door::Hooks.name(),
            driver: Driver::Systemd.name(),
        }
    }
}

impl std::fmt::Display for Rootless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.columns().engine, self.0.name())
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let all = || [Runtime::Runc, Runtime::Crun].map(Rootless).into();
    let two = &[Need::Cpus(2)];
    [
        each(
            all(),
            "rootless::where_the_controller_is_delegated",
            two,
            delegated,
        ),
        each(all(), "rootless::where_it_is_not", two, not_delegated),
        each(
            all(),
            "rootless::one_command_and_it_pins",
            &[Need::Cpus(4)],
            one_command,
        ),
    ]
    .into_iter()
    .flatten()
    .chain([plain(
        "rootless::where_root_has_been_before",
        &[Need::Root, Need::Cpus(2)],
        after_root,
    )])
    .collect()
}

/// Where root uses Pinfold too, its directories are none of a user's business: the user's own pools
/// are made, changed and put in order without a word of them.
fn after_root(world: &World) {
    world.pool("dp", Kind::Exclusive, &["1"]);
    let isolate = ["isolate", "--pool", "dp", "--", "/bin/sleep", "1000"];
    let owner = Running::start(&mut world.pinfold(&isolate), b"");
    let shared = hierarchy().root.join("pinfold");
    process::eventually("root has a group of its own", || {
        (shared.is_dir() && world.tasks("dp", "1").len() == 1).then_some(())
    });

    // Where the binary lies, not everybody may go.
    let copy = world.dir.join("pinfold");
    std::fs::copy(binary(), &copy).unwrap();
    let users = world.dir.join("user");
    std::fs::create_dir(&users).unwrap();
    std::os::unix::fs::chown(&users, Some(65534), Some(65534)).unwrap();
    let as_user = |words: &str| {
        let (copy, users) = (copy.display(), users.display());
        let script = format!(
            "mount -t tmpfs none /run && mkdir -m 700 /run/pinfold-machine && \
             mkdir /run/pinfold-machine/traces && echo '{{}}' >/run/pinfold-machine/units && \
             exec setpriv --reuid 65534 --regid 65534 --clear-groups \
             {copy} {words} --conf-dir {users}/conf --run-dir {users}/run"
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script]);
        process::run(command.current_dir("/")).ok()
    };
    let init = "init --reserve 0 --pool own=1:exclusive";
    let set = "pool set own irqs=away";
    let remove = "pool remove own";
    for words in [init, "reconcile", set, remove, "reconcile"] {
        let ran = as_user(words);
        let said = ran.stderr.lines().find(|line| {
            ["Permission denied", "/run/pinfold-machine"]
                .iter()
                .any(|words| line.contains(words))
        });
        assert_eq!(said, None, "{words}: {ran}");
    }
    assert!(shared.is_dir(), "root's group is still there");
    owner.kill();
    world.reconcile();
}

/// What the user's manager may hand on, until this is dropped.
struct Delegation;

impl Delegation {
    fn of(controllers: &str) -> Delegation {
        let path = Path::new(DROP_IN);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("[Service]\nDelegate={controllers}\n")).unwrap();
        restart_manager(|command| drop(process::run(command).ok()));
        Delegation
    }
}

impl Drop for Delegation {
    fn drop(&mut self) {
        // A failure must not hide the one that is being unwound.
        if let Err(error) = std::fs::remove_file(DROP_IN) {
            eprintln!("remove {DROP_IN}: {error}");
        }
        restart_manager(process::try_to_run);
    }
}

fn restart_manager(run: fn(&mut Command)) {
    let service = format!("user@{USER}.service");
    run(Command::new("systemctl").arg("daemon-reload"));
    run(Command::new("systemctl").args(["restart", &service]));
}

/// A pool of one list in the user's own directories, and how the user starts a container that asks
/// for it.
struct Home {
    world: World,
    script: String,
}

impl Home {
    fn prepare(rootless: Rootless) -> Home {
        let name = |what: &str| format!("pinfold-test-{}-{what}", std::process::id());
        let world = World::in_directories(
            home().join(".config").join(name("kcm")),
            Path::new("/run/user").join(USER).join(name("run")),
        );
        world.pool("dp", Kind::Exclusive, &["1"]);
        bundle::make_rootfs(&world.dir.join("rootfs"));
        let hooks = world.dir.join("hooks.d");
        std::fs::create_dir(&hooks).unwrap();
        let ours = ["createRuntime", "poststop"].map(|stage| Hook::pinfold(&world, stage));
        bundle::write_hook_files(&hooks, &ours);
        let config = world.conf.parent().expect("it is below the user's home");
        for path in [&world.dir, config] {
            process::run(Command::new("chown").arg("-R").arg(USER).arg(path)).ok();
        }
        let (dir, runtime) = (world.dir.display(), rootless.0.name());
        let pinfold = binary().display().to_string();
        let options = world.options().join(" ");
        let script = format!(
            "podman() {{ command podman --storage-driver vfs --events-backend none --root {dir}/storage \
             --runroot {dir}/podman --hooks-dir {dir}/hooks.d --runtime {runtime} \"$@\"; }}\n\
             pinfold() {{ verb=$1; shift; {pinfold} \"$verb\" {options} \"$@\"; }}\n\
             start() {{ name=$1; shift; podman run -d --name $name --network none \
             --security-opt seccomp=unconfined --annotation pinfold.io/pool=dp --rootfs {dir}/rootfs \
             /probe --out /out/$name \"$@\"; }}\n"
        );
        let mut home = Home { world, script };
        home.script += &home.say();
        home
    }

    /// Waits for what a container's probe says, and shows it.
    fn say(&self) -> String {
        let dir = self.world.dir.display();
        format!(
            "say() {{ until [ -s {dir}/rootfs/out/$1 ]; do sleep 0.1; done; cat {dir}/rootfs/out/$1; }}\n"
        )
    }

    /// Runs what the user does, as the user, in a service of the user's manager.
    fn run(&self, what: &str) -> Ran {
        let mut command = Command::new("systemd-run");
        command.args(["--user", "--machine", &format!("{USER}@.host")]);
        command.args(["--quiet", "--wait", "--pipe", "--collect"]);
        // As after a command that a shell ran, the container outlives it.
        command.args(["--property", "KillMode=process"]);
        command.arg("--working-directory").arg(&self.world.dir);
        command.args(["/bin/sh", "-euc", &format!("{}{what}", self.script)]);
        process::run(&mut command)
    }
}

/// The user's home directory (passwd(5)).
fn home() -> PathBuf {
    let text = std::fs::read_to_string("/etc/passwd").expect("read /etc/passwd");
    let mut users = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2) == Some(&USER));
    user.expect("there is such a user")[5].into()
}

fn delegated(_: &World, rootless: Rootless) {
    let _delegation = Delegation::of("cpu cpuset memory pids");
    let home = Home::prepare(rootless);
    let world = &home.world;
    let first = home
        .run("start a --wait >/dev/null; say a; podman exec a /probe --exit 0\n")
        .ok();
    assert_eq!(first.stdout.matches("affinity: 1\n").count(), 2, "{first}");
    let owner = world.tasks("dp", "1");
    assert_eq!(owner.len(), 1, "the books have it: {owner:?}");
    assert_eq!(process::affinity(owner[0]), "1");
    let described = home.run("pinfold status -o wide\n").ok();
    assert!(
        described.stdout.contains(&owner[0].to_string()),
        "{described}"
    );
    let mut log = SysLog::mark();
    let refused = home.run("start b --wait\n");
    assert_ne!(refused.code(), Some(0), "the pool is full: {refused}");
    log.lines_with(1, &["dp", "the pool is exhausted"]);

    home.run("podman stop a\n").ok();
    world.wait_until_free();
    let itself = home.run("start c --exit 3 >/dev/null; say c\n").ok();
    assert!(itself.stdout.contains("affinity: 1\n"), "{itself}");
    world.wait_until_free();
    home.run("start d --wait >/dev/null; podman rm --force --time 0 d; pinfold reconcile\n")
        .ok();
    world.assert_all_free("after rm");
}

fn not_delegated(_: &World, rootless: Rootless) {
    let _delegation = Delegation::of("cpu memory pids");
    let home = Home::prepare(rootless);
    let mut log = SysLog::mark();
    let ran = home.run("start a --wait\n");
    assert_ne!(ran.code(), Some(0), "{ran}");
    log.lines_with(1, &["cpuset", "Delegate"]);
    home.world.assert_all_free("after a refusal");
}

/// What the user types, and nothing else: `pinfold install podman --user` takes the place of all
/// that is written by hand.
fn one_command(_: &World, rootless: Rootless) {
    let _delegation = Delegation::of("cpu cpuset memory pids");
    let home = Home::prepare(rootless);
    let world = &home.world;
    let config = world.conf.parent().expect("it is below the user's home");
    let xdg = config.join(format!("pinfold-test-{}-xdg", std::process::id()));
    let bin = world.dir.join("bin");
    for dir in [&xdg, &bin] {
        std::fs::create_dir_all(dir).unwrap();
    }
    std::fs::copy(binary(), bin.join("pinfold")).unwrap();
    process::run(Command::new("chown").args(["-R", USER]).args([&xdg, &bin])).ok();
    let (dir, runtime, xdg_dir) = (world.dir.display(), rootless.0.name(), xdg.display());
    let user = |what: &str| {
        let script = format!(
            "export XDG_CONFIG_HOME={xdg_dir} PATH={dir}/bin:$PATH\n\
             pod() {{ podman --storage-driver vfs --events-backend none --root {dir}/storage \
             --runroot {dir}/podman --runtime {runtime} \"$@\"; }}\n\
             launch() {{ name=$1; shift; pod run -d --name $name --network none \
             --security-opt seccomp=unconfined --annotation pinfold.io/pool=dp --rootfs {dir}/rootfs \
             /probe --out /out/$name \"$@\"; }}\n{what}\n"
        );
        let mut command = Command::new("systemd-run");
        command.args(["--user", "--machine", &format!("{USER}@.host")]);
        command.args(["--quiet", "--wait", "--pipe", "--collect"]);
        command.args(["--property", "KillMode=process"]);
        command.arg("--working-directory").arg(&world.dir);
        process::run(command.args(["/bin/sh", "-euc", &format!("{}{script}", home.say())]))
    };
    let before = user("find $XDG_CONFIG_HOME -type f").ok().stdout;
    let unknown = user("command pinfold check || true");
    assert!(unknown.stdout.contains("podman --user"), "{unknown}");
    let installed = user("command pinfold install podman --user").ok();
    assert!(installed.stderr.contains("pinfold init"), "{installed}");
    user(
        "command pinfold init --conf-dir $XDG_CONFIG_HOME/pinfold/kcm --run-dir $XDG_RUNTIME_DIR/pinfold \
         --pool dp=1:exclusive --reserve 0",
    )
    .ok();
    let check = user("command pinfold check || true");
    for line in [
        "hooks.d/pinfold-createRuntime.json runs",
        "pool \"dp\", exclusive",
    ] {
        assert!(check.stdout.contains(line), "{line}: {check}");
    }
    let first = user("launch a --wait >/dev/null; say a").ok();
    assert!(first.stdout.contains("affinity: 2-3\n"), "{first}");
    // A start that this podman makes by itself is pinned too: its configuration names the
    // directory.
    let again = user("pod stop -t 1 a; rm -f rootfs/out/a; pod start a; say a").ok();
    assert!(again.stdout.contains("affinity: 2-3\n"), "{again}");
    let refused = user("command pinfold uninstall podman --user").exits(1);
    assert!(refused.stderr.contains("--force"), "{refused}");

    let gone = user("rm $XDG_CONFIG_HOME/containers/oci/hooks.d/*; command pinfold check");
    assert_ne!(gone.code(), Some(0), "{gone}");
    assert!(gone.stdout.contains("no hook file of Pinfold's"), "{gone}");
    user("pod rm -f -t 1 a; command pinfold install podman --user").ok();
    user("launch b --wait >/dev/null; say b; pod rm -f -t 1 b").ok();
    user("command pinfold uninstall podman --user; rm -r $XDG_CONFIG_HOME/pinfold").ok();
    let after = user("find $XDG_CONFIG_HOME -type f").ok().stdout;
    assert_eq!(after, before);
    user("rm -rf $XDG_CONFIG_HOME $XDG_RUNTIME_DIR/pinfold").ok();
}
