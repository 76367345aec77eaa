//! Verbs that only read, with pools and claims that are half-made or cannot be read: each shows
//! what it can, says what it cannot, and ends with 1 where that was asked for.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A pool `dp` that is spoilt, and a pool `cp` that stays as it is, on a tree of two CPUs.
struct Site {
    dir: tempfile::TempDir,
    /// Where the pool directory is said to be.
    conf: PathBuf,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let conf = dir.path().join("kcm");
        let site = Site { dir, conf };
        for (path, text) in [
            ("sys/devices/system/cpu/online", "0-1\n"),
            ("kcm/lock", ""),
            ("kcm/pools/dp/exclusive", "1"),
            ("kcm/pools/dp/1/tasks", ""),
            ("kcm/pools/cp/exclusive", "0"),
            ("kcm/pools/cp/0/tasks", ""),
        ] {
            site.put(path, text);
        }
        symlink("/proc", site.path("proc")).unwrap();
        symlink("/sys/fs", site.path("sys/fs")).unwrap();
        site.mode("kcm/lock", 0o600);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        for ancestor in Path::new(name).ancestors().skip(1) {
            self.mode(ancestor.to_str().unwrap(), 0o755);
        }
        self.mode(name, 0o644);
    }

    fn command(&self, program: &Path, line: &str) -> Command {
        let mut command = Command::new(program);
        command.args(line.split(' '));
        command.arg("--host-root").arg(self.dir.path());
        command.arg("--conf-dir").arg(&self.conf);
        command.arg("--run-dir").arg(self.path("run"));
        command.args(["--lock-timeout", "0.2"]);
        command
    }

    fn run(&self, line: &str) -> Output {
        let program = Path::new(env!("CARGO_BIN_EXE_pinfold"));
        self.command(program, line).output().unwrap()
    }
}

/// The verbs, by what they depend on.
const ALL: [&str; 6] = [
    "status",
    "status --json",
    "describe",
    "describe --json",
    "pool show",
    "pool show --json",
];
const MACHINE: [&str; 2] = ["topology", "topology --json"];
const PICTURE: [&str; 1] = ["topology --svg -"];
const OF_DP: [&str; 3] = [
    "pool show dp",
    "pool show dp --json",
    "explain --pool dp --json",
];
const OF_CP: [&str; 3] = [
    "pool show cp",
    "pool show cp --json",
    "explain --pool cp --json",
];

/// Which of them fail.
struct Fails {
    all: bool,
    machine: bool,
    picture: bool,
    dp: bool,
    cp: bool,
}

/// One pool is spoilt: whoever looks at all of them, or asks for that one.
const ONE_POOL: Fails = Fails {
    all: true,
    machine: true,
    picture: true,
    dp: true,
    cp: false,
};
/// Nothing of the pools can be read.
const EVERYTHING: Fails = Fails {
    cp: true,
    ..ONE_POOL
};
/// Nobody's claims can be read, of which the machine's drawing shows none, but its picture all.
const CLAIMS: Fails = Fails {
    machine: false,
    ..EVERYTHING
};

#[track_caller]
fn holds(name: &str, spoils: impl Fn(&mut Site), fails: &Fails) {
    let mut site = Site::new();
    spoils(&mut site);
    for (verbs, is_failure) in [
        (&ALL[..], fails.all),
        (&MACHINE, fails.machine),
        (&PICTURE, fails.picture),
        (&OF_DP, fails.dp),
        (&OF_CP, fails.cp),
    ] {
        for verb in verbs {
            let output = site.run(verb);
            let said = String::from_utf8_lossy(&output.stderr);
            let code = Some(i32::from(is_failure));
            assert_eq!(output.status.code(), code, "{name}: {verb}: {output:?}");
            assert!(!is_failure || !said.is_empty(), "{name}: {verb}: silently");
            // What is not there is said of what is not there alone.
            assert!(!said.contains("there is no pool"), "{name}: {verb}: {said}");
            // A document is one, or the error is.
            if verb.ends_with("--json") {
                let text = match output.stdout.is_empty() {
                    true => &output.stderr,
                    false => &output.stdout,
                };
                let read = serde_json::from_slice::<serde_json::Value>(text);
                assert!(read.is_ok(), "{name}: {verb}: {output:?}");
            }
        }
    }
}

#[test]
fn a_sound_site_fails_nothing() {
    let none = Fails {
        all: false,
        machine: false,
        picture: false,
        dp: false,
        cp: false,
    };
    holds("sound", |_| {}, &none);
}

#[test]
fn a_pool_that_is_half_made_fails_who_asks_for_it_or_for_all() {
    let remove = |site: &Site, name: &str| fs::remove_file(site.path(name)).unwrap();
    let tasks = "kcm/pools/dp/1/tasks";
    let exclusive = "kcm/pools/dp/exclusive";
    holds("no kind", |site| remove(site, exclusive), &ONE_POOL);
    holds("no tasks", |site| remove(site, tasks), &ONE_POOL);
    holds("no pids", |site| site.put(tasks, "junk"), &ONE_POOL);
    holds(
        "a stray directory",
        |site| site.put("kcm/pools/dp/stray/x", ""),
        &ONE_POOL,
    );
    holds(
        "a directory for the kind",
        |site| {
            remove(site, exclusive);
            site.put(&format!("{exclusive}/x"), "");
        },
        &ONE_POOL,
    );
    holds(
        "a directory for tasks",
        |site| {
            remove(site, tasks);
            site.put(&format!("{tasks}/x"), "");
        },
        &ONE_POOL,
    );
    holds(
        "tasks that lead nowhere",
        |site| {
            remove(site, tasks);
            symlink("tasks", site.path(tasks)).unwrap();
        },
        &ONE_POOL,
    );
    holds(
        "a link for a list",
        |site| symlink("1", site.path("kcm/pools/dp/0")).unwrap(),
        &ONE_POOL,
    );
    holds(
        "a link for the pool",
        |site| {
            fs::remove_dir_all(site.path("kcm/pools/dp")).unwrap();
            symlink("cp", site.path("kcm/pools/dp")).unwrap();
        },
        &ONE_POOL,
    );
    holds(
        "an empty directory for the pool",
        |site| {
            fs::remove_dir_all(site.path("kcm/pools/dp")).unwrap();
            fs::create_dir(site.path("kcm/pools/dp")).unwrap();
            site.mode("kcm/pools/dp", 0o755);
        },
        &ONE_POOL,
    );
}

#[test]
fn a_directory_that_cannot_be_read_fails_all_that_shows_it() {
    let gone = |site: &Site| fs::remove_dir_all(site.path("kcm/pools")).unwrap();
    holds("no pools", |site| gone(site), &EVERYTHING);
    holds(
        "a file for pools",
        |site| {
            gone(site);
            site.put("kcm/pools", "");
        },
        &EVERYTHING,
    );
    holds(
        "a file for the parent",
        |site| {
            site.put("file", "");
            site.conf = site.path("file/kcm");
        },
        &EVERYTHING,
    );
    holds(
        "a parent that leads to itself",
        |site| {
            symlink("loop", site.path("loop")).unwrap();
            site.conf = site.path("loop/kcm");
        },
        &EVERYTHING,
    );
    // A machine without pools has a topology, and a picture.
    holds(
        "no pool directory",
        |site| site.conf = site.path("none"),
        &Fails {
            picture: false,
            ..CLAIMS
        },
    );
    holds("a file for the claims", |site| site.put("run", ""), &CLAIMS);
    holds(
        "claims that lead to themselves",
        |site| {
            site.put("run/x", "");
            site.mode("run", 0o700);
            symlink("claims", site.path("run/claims")).unwrap();
        },
        &CLAIMS,
    );
}

/// Which root cannot be kept from: whoever may not look into a parent is told that, and nothing
/// else.
#[test]
fn a_parent_that_only_root_may_read_is_told_to_others() {
    let site = Site::new();
    site.mode("", 0o711);
    site.mode("kcm", 0);
    let program = site.path("pinfold");
    // By a process of its own: what another test forks meanwhile would hold the file open for
    // writing, and the kernel starts no such program (ETXTBSY).
    let built = env!("CARGO_BIN_EXE_pinfold");
    let copied = Command::new("cp").arg(built).arg(&program).status();
    assert!(copied.unwrap().success());
    site.mode("pinfold", 0o755);
    let hook = "hook createRuntime";
    for verb in ALL.iter().chain(&OF_DP).chain(&["check", hook]) {
        let mut command = site.command(&program, verb);
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.current_dir("/");
        let state = site.path("state");
        fs::write(
            &state,
            r#"{"id": "web", "pid": 1, "annotations": {"pinfold.io/pool": "dp"}}"#,
        )
        .unwrap();
        site.mode("state", 0o644);
        command.stdin(fs::File::open(&state).unwrap());
        let output = command.output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
        assert!(said.contains("Permission denied"), "{verb}: {said}");
        assert!(
            !said.contains("does not exist") && !said.contains("pinfold init"),
            "{verb}: {said}"
        );
        assert!(said.contains("root"), "{verb}: {said}");
    }
    site.mode("kcm", 0o755);
}
