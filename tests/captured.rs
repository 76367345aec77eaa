//! Verbs that only read, and every `--dry-run`, on a tree that was captured of a machine: it has
//! what `capture-topology` copies, and pools; neither mounts nor processes.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    /// Two CPUs, of which one is in an exclusive pool.
    fn new() -> Tree {
        let tree = Tree::without_pools();
        tree.put("etc/kcm/lock", "");
        tree.put("etc/kcm/pools/dp/exclusive", "1");
        tree.put("etc/kcm/pools/dp/1/tasks", "");
        tree.put("etc/kcm/pools/cp/exclusive", "0");
        tree.put("etc/kcm/pools/cp/0/tasks", "");
        tree
    }

    fn without_pools() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let archive = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/topologies/real-2-cpus.tar.gz"
        );
        let mut tar = Command::new("tar");
        tar.arg("-xzf").arg(archive).arg("-C").arg(dir.path());
        assert!(tar.status().unwrap().success());
        let tree = Tree { dir };
        assert!(
            !tree.path("proc/1").exists(),
            "nothing of processes was captured"
        );
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        for ancestor in path
            .ancestors()
            .take_while(|path| path.starts_with(self.path("etc")))
        {
            let mode = if ancestor.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(ancestor, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        command
            .arg("--host-root")
            .arg(self.dir.path())
            .args(arguments);
        command.output().unwrap()
    }

    /// Every path with what tells that it was written.
    fn snapshot(&self) -> Vec<(PathBuf, u64, i64, i64)> {
        fn visit(path: &Path, seen: &mut Vec<(PathBuf, u64, i64, i64)>) {
            let meta = path.symlink_metadata().unwrap();
            seen.push((path.into(), meta.ino(), meta.mtime(), meta.mtime_nsec()));
            if meta.is_dir() {
                let entries = fs::read_dir(path).unwrap();
                entries.for_each(|entry| visit(&entry.unwrap().path(), seen));
            }
        }
        let mut seen = Vec::new();
        visit(self.dir.path(), &mut seen);
        seen.sort();
        seen
    }

    /// What it says on standard output, with this exit code; nothing in the tree is touched.
    #[track_caller]
    fn says(&self, code: i32, arguments: &[&str]) -> String {
        let before = self.snapshot();
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        assert_eq!(self.snapshot(), before, "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(
            !said.contains("mountinfo") && !said.contains("boot_id"),
            "{arguments:?}: {said}"
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

#[test]
fn what_only_reads_works() {
    let tree = Tree::new();
    for (arguments, part) in [
        (&["status"][..], "Nobody owns any CPUs."),
        (&["status", "--json"], "\"isWhole\": true"),
        (&["describe"], "dp"),
        (&["describe", "--json"], "\"cpuLists\""),
        (&["pool", "show"], "exclusive"),
        (&["topology"], "package 0"),
        (&["topology", "--svg", "-"], "</svg>"),
        (&["explain", "--pool", "dp"], "1"),
    ] {
        let said = tree.says(0, arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
    // That it is no whole machine is a fault; the rest is said all the same.
    let output = tree.run(&["check", "--json"]);
    let findings: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        findings["findings"].as_array().unwrap().len() > 3,
        "{findings}"
    );
}

/// A picture takes a file's place as a whole, and nothing else's.
#[test]
fn a_picture_replaces_a_file_and_nothing_else() {
    let tree = Tree::new();
    tree.put("etc/kcm/pools/dp/1/tasks", "4711");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let draws = |name: &str| tree.run(&["topology", "--svg", path(name).to_str().unwrap()]);
    let is_picture = |name: &str| {
        let text = fs::read_to_string(path(name)).unwrap();
        text.starts_with("<svg ") && text.ends_with("</svg>\n") && text.contains(">pid:4711<")
    };
    let mode = |name: &str| path(name).metadata().unwrap().mode() & 0o777;
    let output = draws("new.svg");
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
    assert!(is_picture("new.svg") && mode("new.svg") == 0o644);
    // Whoever has the old one open keeps it whole, and who could not read it still cannot.
    fs::write(path("old.svg"), "old").unwrap();
    fs::set_permissions(path("old.svg"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::hard_link(path("old.svg"), path("kept")).unwrap();
    assert!(draws("old.svg").status.success());
    assert!(is_picture("old.svg") && mode("old.svg") == 0o600);
    assert_eq!(fs::read_to_string(path("kept")).unwrap(), "old");
    // A file in the directory where the command runs.
    let mut here = Command::new(env!("CARGO_BIN_EXE_pinfold"));
    here.arg("--host-root").arg(tree.dir.path());
    here.args(["topology", "--svg", "here.svg"])
        .current_dir(dir.path());
    assert!(here.status().unwrap().success() && is_picture("here.svg"));

    std::os::unix::fs::symlink("old.svg", path("link")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::create_dir(path("directory")).unwrap();
    let names = || {
        let entries = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    for (name, part) in [
        ("link", "is a symbolic link"),
        ("fifo", "is not a regular file"),
        ("directory", "is not a regular file"),
        ("no-directory/x.svg", "No such file or directory"),
        ("old.svg/x.svg", "Not a directory"),
    ] {
        let output = draws(name);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(
            said.contains(part) && output.stdout.is_empty(),
            "{name}: {said}"
        );
    }
    assert_eq!(names(), before);
    assert!(path("link").is_symlink() && is_picture("old.svg"));
    let both = tree.run(&["topology", "--json", "--svg", "-"]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

#[test]
fn every_trial_works() {
    let tree = Tree::new();
    let add = ["pool", "add", "new:exclusive", "--list", "1", "--dry-run"];
    let output = tree.run(&add);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && said.contains("of pool dp"),
        "{said}"
    );
    fs::remove_dir_all(tree.path("etc/kcm/pools/cp")).unwrap();
    fs::create_dir_all(tree.path("usr/bin")).unwrap();
    for program in ["pinfold", "pinfold-runtime"] {
        let path = tree.path("usr/bin").join(program);
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (arguments, part) in [
        (
            &["pool", "add", "new=1:shared", "--reserve", "1"][..],
            "would add 0",
        ),
        (&["pool", "remove", "dp"], "would remove 1"),
        (
            &["pool", "resize", "dp", "2", "--reserve", ""],
            "would add 0",
        ),
        (&["install", "podman", "--bin-dir", "/usr/bin"], ""),
        (&["uninstall", "podman"], ""),
        (&["cdi", "--bin-dir", "/usr/bin"], "dp"),
    ] {
        let arguments = [arguments, &["--dry-run"]].concat();
        let said = tree.says(0, &arguments);
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

/// The number of an owner may mean nobody; but who can tell?
#[test]
fn whoever_may_own_counts_as_an_owner() {
    let tree = Tree::new();
    tree.put("etc/kcm/pools/dp/1/tasks", "4711");
    let row = tree.says(0, &["status"]);
    assert!(row.contains("pid:4711") && row.contains("unknown"), "{row}");
    let output = tree.run(&["pool", "remove", "dp", "--dry-run"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(1) && said.contains("process 4711"),
        "{said}"
    );
}

/// A trial says what `init` says, and ends as it does.
#[test]
fn a_trial_of_init_says_what_init_would() {
    let plan = [
        "init",
        "--pool",
        "dp=1:exclusive",
        "--pool",
        "cp=rest:shared",
    ];
    let other = ["init", "--pool", "only=rest:shared"];

    let tree = Tree::without_pools();
    assert!(tree.says(0, &trial_of(&plan)).starts_with("would make "));
    assert!(!tree.path("etc").exists());

    let tree = Tree::new();
    assert!(tree.says(0, &trial_of(&plan)).contains(" is so already:"));
    let replace = [&other[..], &["--force"]].concat();
    assert!(
        tree.says(0, &trial_of(&replace))
            .contains("in place of other pools")
    );
    for arguments in [&other[..], &["init", "--pool", "x=9:exclusive"]] {
        let (trial, real) = (tree.run(&trial_of(arguments)), tree.run(arguments));
        assert_eq!(trial.status.code(), Some(1), "{trial:?}");
        assert_eq!((trial.status, &trial.stderr), (real.status, &real.stderr));
    }
    fs::remove_dir_all(tree.path("etc/kcm/pools/cp")).unwrap();
    assert!(
        tree.says(0, &trial_of(&plan))
            .starts_with("would complete ")
    );
}

fn trial_of<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--dry-run"]].concat()
}

#[test]
fn no_trial_waits_for_the_lock() {
    let tree = Tree::new();
    let lock = fs::File::open(tree.path("etc/kcm/lock")).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let replace = ["init", "--pool", "only=rest:shared", "--force", "--dry-run"];
    for (arguments, says) in [
        (&["pool", "remove", "dp", "--dry-run"][..], "would remove 1"),
        (&replace, "in place of other pools"),
    ] {
        let began = Instant::now();
        let output = tree.run(arguments);
        assert!(began.elapsed() < Duration::from_secs(20), "{arguments:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && said.contains(says),
            "{arguments:?}: {said}"
        );
        // Whoever has it may be changing the pools.
        let warned = String::from_utf8(output.stderr).unwrap();
        assert!(warned.contains("read without the lock"), "{warned}");
        assert!(!warned.contains("--lock-timeout"), "{warned}");
    }
    drop(held);
    let output = tree.run(&["pool", "remove", "dp", "--dry-run"]);
    assert!(output.status.success() && output.stderr.is_empty());
}
