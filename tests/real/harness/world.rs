//! What one test has to itself: a directory, a pool directory, a run directory, and a prefix for
//! its cgroups.

use crate::cgroups::{self, hierarchy};
use crate::process::{self, Ran, Running};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use pinfold::auditor::{self, Disagreement, Subject, Verdict as RemarkKind};
use pinfold::host::Host;
use serde_json::{Value, json};
use std::fs::File;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct World {
    /// The prefix of every cgroup and slice of this test.
    pub(crate) tag: String,
    pub(crate) dir: PathBuf,
    pub(crate) conf: PathBuf,
    pub(crate) run: PathBuf,
    /// The root of a machine that is ours but for what it says of its CPUs.
    host: OnceLock<PathBuf>,
}

/// The prefix of every cgroup that this run of the tests makes.
pub(crate) fn run_tag() -> String {
    format!("pinfoldtest{}n", std::process::id())
}

impl World {
    pub(crate) fn new() -> World {
        let dir = World::own_directory();
        World::of(dir.join("conf"), dir.join("run"), dir)
    }

    /// One whose books are elsewhere, as a user's are who is not root; they go with it.
    pub(crate) fn in_directories(conf: PathBuf, run: PathBuf) -> World {
        World::of(conf, run, World::own_directory())
    }

    fn own_directory() -> PathBuf {
        let dir = tempfile::Builder::new()
            .prefix("pinfold-test-")
            .tempdir()
            .expect("make a temporary directory");
        let dir = dir.keep();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))
            .expect("let containers look inside");
        dir
    }

    fn of(conf: PathBuf, run: PathBuf, dir: PathBuf) -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("{}{}x", run_tag(), COUNT.fetch_add(1, Ordering::Relaxed));
        World {
            conf,
            run,
            host: OnceLock::new(),
            tag,
            dir,
        }
        .with_a_lock()
    }

    /// One that is found again after a reboot, with its claims in /run as a user's are; whoever
    /// drops it ends it.
    pub(crate) fn lasting(name: &str) -> World {
        let dir = PathBuf::from(format!("/var/lib/pinfold-test-{name}"));
        let world = World {
            tag: format!("pinfoldtest{name}"),
            conf: dir.join("conf"),
            run: format!("/run/pinfold-test-{name}").into(),
            host: OnceLock::new(),
            dir,
        };
        if world.conf.join("lock").exists() {
            world
        } else {
            world.with_a_lock()
        }
    }

    fn with_a_lock(self) -> World {
        let world = self;
        world.make_dir(&world.conf.join("pools"), 0o755);
        let lock = world.conf.join("lock");
        std::fs::write(&lock, "").expect("make the lock");
        std::fs::set_permissions(&lock, PermissionsExt::from_mode(0o600)).expect("chmod the lock");
        world
    }

    /// Makes a pool by hand, in KCM's form.
    pub(crate) fn pool(&self, name: &str, kind: Kind, lists: &[&str]) {
        let pool = self.conf.join("pools").join(name);
        for list in lists {
            self.make_dir(&pool.join(list), 0o755);
            std::fs::write(pool.join(list).join("tasks"), "").expect("make tasks");
        }
        let byte = if kind == Kind::Exclusive { "1" } else { "0" };
        std::fs::write(pool.join("exclusive"), byte).expect("make exclusive");
    }

    /// Takes away all pools and all that is recorded of owners.
    pub(crate) fn empty(&self) {
        let pools = self.conf.join("pools");
        std::fs::remove_dir_all(&pools).expect("remove the pools");
        self.make_dir(&pools, 0o755);
        let _ = std::fs::remove_dir_all(&self.run);
    }

    fn make_dir(&self, path: &Path, mode: u32) {
        std::fs::create_dir_all(path).expect("make a directory");
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("chmod a directory");
    }

    /// From now on pinfold sees two cores of one thread, CPUs 0 and 1, as were captured of such a
    /// machine: for tests that count what is left.
    pub(crate) fn has_two_cpus(&self) {
        let root = self.dir.join("two-cpus");
        self.make_dir(&root, 0o755);
        let captured = include_bytes!("../../topologies/real-2-cpus.tar.gz");
        let mut tar = Command::new("tar");
        let only = ["-xz", "./sys/devices/system"];
        Running::start(tar.arg("-C").arg(&root).args(only), captured)
            .wait()
            .ok();
        for real in [Path::new("/proc"), Path::new("/dev"), &hierarchy().root] {
            let seen = root.join(real.strip_prefix("/").expect("it is absolute"));
            self.make_dir(seen.parent().expect("it is below the root"), 0o755);
            symlink(real, seen).expect("make a link");
        }
        self.host.set(root).expect("once is enough");
    }

    /// The arguments that lead pinfold to this world.
    pub(crate) fn options(&self) -> Vec<String> {
        let option = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
        let host = self.host.get().map(|root| option("--host-root", root));
        let own = [
            option("--conf-dir", &self.conf),
            option("--run-dir", &self.run),
        ];
        own.into_iter().chain(host).flatten().collect()
    }

    /// The product, with this world's directories and an empty environment, as the strictest
    /// runtimes start a hook.
    pub(crate) fn pinfold(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.env_clear();
        let (verbs, rest) = arguments.split_at(if arguments[0] == "hook" { 2 } else { 1 });
        command
            .args(verbs)
            .args(self.options())
            .args(rest)
            .current_dir("/");
        command
    }

    /// Runs a hook verb on a state.
    pub(crate) fn hook(&self, verb: &str, state: &Value) -> Ran {
        let ran = self.hooking(verb, state).wait();
        self.assert_sound(&format!("after {ran}"));
        ran
    }

    pub(crate) fn hooking(&self, verb: &str, state: &Value) -> Running {
        Running::start(
            &mut self.pinfold(&["hook", verb]),
            state.to_string().as_bytes(),
        )
    }

    pub(crate) fn reconcile(&self) -> Ran {
        let ran = process::run(&mut self.pinfold(&["reconcile"])).ok();
        self.assert_settled("after reconcile");
        ran
    }

    /// Holds the pool directory's lock, as another tool would.
    pub(crate) fn hold_lock(&self) -> Flock<File> {
        let file = File::open(self.conf.join("lock")).expect("open the lock");
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .expect("take the lock")
    }

    pub(crate) fn tasks_file(&self, pool: &str, list: &str) -> PathBuf {
        self.conf.join("pools").join(pool).join(list).join("tasks")
    }

    /// The pids that `tasks` names.
    pub(crate) fn tasks(&self, pool: &str, list: &str) -> Vec<i32> {
        let path = self.tasks_file(pool, list);
        let text = std::fs::read_to_string(&path).expect("read tasks");
        let pid = |part: &str| {
            part.parse()
                .unwrap_or_else(|_| panic!("{}: {text:?}", path.display()))
        };
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(pid)
            .collect()
    }

    /// What the auditor remarks.
    fn remarks(&self, kinds: &[RemarkKind]) -> Vec<Disagreement> {
        let root = self.host.get().map_or(Path::new("/"), PathBuf::as_path);
        let subject = Subject {
            host: &Host::new(root),
            conf_dir: &self.conf,
            run_dir: &self.run,
        };
        let of_kinds = |mut remarks: Vec<Disagreement>| {
            remarks.retain(|remark| kinds.contains(&remark.kind));
            remarks
        };
        // Where nobody changes anything, once is enough.
        match of_kinds(auditor::look(subject)) {
            remarks if remarks.is_empty() => remarks,
            _ => of_kinds(auditor::audit(subject)),
        }
    }

    /// Nothing is as it may never be, whatever died or failed.
    #[track_caller]
    pub(crate) fn assert_sound(&self, when: &str) {
        let remarks = self.remarks(&[RemarkKind::Broken]);
        assert!(remarks.is_empty(), "{when}: {remarks:?}");
    }

    /// Everything that is recorded agrees with everything that lives.
    #[track_caller]
    pub(crate) fn assert_settled(&self, when: &str) {
        let all = [
            RemarkKind::Broken,
            RemarkKind::Unfinished,
            RemarkKind::Leftover,
        ];
        let remarks = self.remarks(&all);
        assert!(remarks.is_empty(), "{when}: {remarks:?}");
    }

    /// All claims, in whatever order.
    pub(crate) fn claims(&self) -> Vec<Value> {
        let files = files_below(&self.run.join("claims"));
        let claims = files.iter().filter(|file| !is_hidden(file)).map(|file| {
            let text = std::fs::read_to_string(file).expect("read a claim");
            serde_json::from_str(&text)
                .unwrap_or_else(|error| panic!("claim {}: {error}", file.display()))
        });
        claims.collect()
    }

    pub(crate) fn claims_of(&self, id: &str) -> Vec<Value> {
        self.claims()
            .into_iter()
            .filter(|claim| claim["id"] == id)
            .collect()
    }

    /// The one claim of a container.
    #[track_caller]
    pub(crate) fn claim_of(&self, id: &str) -> Value {
        let mut claims = self.claims_of(id);
        assert_eq!(claims.len(), 1, "claims of {id}: {claims:?}");
        claims.remove(0)
    }

    /// Every list is free, no claim is left, and no temporary file.
    #[track_caller]
    pub(crate) fn assert_all_free(&self, when: &str) {
        if let Some(left) = self.what_is_left() {
            panic!("{when}: {left}");
        }
    }

    /// Waits until all is free: an engine may notice an end late.
    #[track_caller]
    pub(crate) fn wait_until_free(&self) {
        process::eventually("everything is given back", || {
            self.what_is_left().is_none().then_some(())
        });
    }

    /// What keeps this world from being all free.
    fn what_is_left(&self) -> Option<String> {
        let claims = files_below(&self.run.join("claims"));
        if !claims.is_empty() {
            return Some(format!("claims are left: {claims:?}"));
        }
        let mut files = files_below(&self.conf);
        files.extend(files_below(&self.run));
        if let Some(file) = files.iter().find(|file| is_hidden(file)) {
            return Some(format!("a temporary file is left: {}", file.display()));
        }
        let mut tasks = files.into_iter().filter(|file| file.ends_with("tasks"));
        let held = tasks.find(|file| !std::fs::read(file).expect("read tasks").is_empty());
        held.map(|file| {
            format!(
                "{} is not empty: {:?}",
                file.display(),
                std::fs::read_to_string(&file)
            )
        })
    }

    /// The hook processes of this world that have the lock open: they hold it or wait for it.
    pub(crate) fn hooks_at_the_lock(&self) -> Vec<i32> {
        let hooks = process::processes_mentioning(&self.conf.display().to_string());
        let lock = self.conf.join("lock");
        hooks
            .into_iter()
            .filter(|&pid| process::has_open(pid, &lock))
            .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let made: Vec<PathBuf> = files_below(&self.run.join("claims"))
            .iter()
            .filter_map(|file| {
                serde_json::from_str::<Value>(&std::fs::read_to_string(file).ok()?).ok()
            })
            .filter(|claim| claim["cgroup"]["made"] == true)
            .filter_map(|claim| Some(claimed_cgroup(claim["cgroup"]["path"].as_str()?)))
            .collect();
        let ours = process::processes_mentioning(&self.dir.display().to_string());
        ours.iter()
            .for_each(|&pid| process::send(pid, libc::SIGKILL));
        cgroups::clear(&made);
        for parent in made.iter().filter_map(|cgroup| cgroup.parent()) {
            // Where others have cgroups in it, it stays.
            let _ = std::fs::remove_dir(parent);
        }
        cgroups::clear(&cgroups::named(&self.tag));
        unmount_below(&self.dir);
        for dir in [&self.conf, &self.run, &self.dir] {
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Exclusive,
    Shared,
}

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("PINFOLD_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_pinfold").into(), PathBuf::from)
}

/// What a runtime tells a hook at the start.
pub(crate) fn state(id: &str, pid: i32, annotations: Value) -> Value {
    json!({ "ociVersion": "1.0.2", "id": id, "status": "creating", "pid": pid, "bundle": "/", "annotations": annotations })
}

/// What a runtime tells a hook at the end: no pid.
pub(crate) fn stopped(id: &str, annotations: Value) -> Value {
    json!({ "ociVersion": "1.0.2", "id": id, "status": "stopped", "bundle": "/", "annotations": annotations })
}

/// The directory of a claim's cgroup, which may be written with or without the mount point.
pub(crate) fn claimed_cgroup(path: &str) -> PathBuf {
    let root = &hierarchy().root;
    if Path::new(path).starts_with(root) {
        path.into()
    } else {
        root.join(path.trim_start_matches('/'))
    }
}

/// A process of our own in a cgroup of its own, as a runtime leaves a container when it calls the
/// hook.
pub(crate) struct Standin {
    process: Running,
    pub(crate) pid: i32,
}

impl Standin {
    pub(crate) fn new(world: &World, name: &str) -> Standin {
        Standin::running(world, name, &["--wait"])
    }

    /// A stand-in whose probe does `actions` after it is in its cgroup.
    pub(crate) fn running(world: &World, name: &str, actions: &[&str]) -> Standin {
        let name = format!("{}-{name}", world.tag);
        let cgroup = hierarchy().root.join(&name);
        if !cgroup.exists() {
            hierarchy().make(&name);
        }
        Standin::inside(&cgroup, actions)
    }

    /// A stand-in in a cgroup that is there already.
    pub(crate) fn inside(cgroup: &Path, actions: &[&str]) -> Standin {
        let mut command = Command::new("/bin/sh");
        let script = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        command
            .args(["-c", script])
            .arg(cgroup)
            .arg(crate::probe::path())
            .args(actions);
        let process = Running::start(&mut command, b"");
        let pid = process.pid();
        let standin = Standin { process, pid };
        standin.says("affinity: ");
        standin
    }

    /// A process in the very cgroup of the test, as a container is that has no cgroup of its own.
    pub(crate) fn bare() -> Standin {
        let process = Running::start(Command::new(crate::probe::path()).arg("--wait"), b"");
        let pid = process.pid();
        let standin = Standin { process, pid };
        standin.says("affinity: ");
        standin
    }

    /// Waits until the probe has written `text`.
    pub(crate) fn says(&self, text: &str) {
        let wanted = format!("the stand-in says {text:?}");
        process::eventually(&wanted, || {
            self.process.stdout().contains(text).then_some(())
        });
    }

    /// An owner of CPUs of `pool` whose first process is gone, and whose descendant lives on in the
    /// cgroup given back.
    pub(crate) fn survived(world: &World, id: &str, pool: &str) -> PathBuf {
        let owner = Standin::running(world, id, &["--when-told", "--orphan", "--wait"]);
        owner.says("waiting to be told");
        world
            .hook(
                "prestart",
                &state(id, owner.pid, json!({ "pinfold.io/pool": pool })),
            )
            .ok();
        process::send(owner.pid, libc::SIGUSR1);
        owner.says("orphan: ready");
        owner.die()
    }

    /// The cgroup that it is in now.
    pub(crate) fn cgroup(&self) -> PathBuf {
        hierarchy().of(self.pid)
    }

    pub(crate) fn mask(&self) -> String {
        cgroups::mask(&self.cgroup())
    }

    /// Kills the first process; gives its cgroup, where what it left behind lives on.
    pub(crate) fn die(self) -> PathBuf {
        let cgroup = self.cgroup();
        self.process.kill();
        cgroup
    }
}

/// All files below a directory, links not among them: an index that leads nowhere is harmless.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files.extend(files_below(&entry.path())),
            Ok(kind) if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn unmount_below(dir: &Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(dir));
    for path in below {
        let path = std::ffi::CString::new(path).expect("a mount point without NUL");
        // SAFETY: the path is a string that lives through the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}
