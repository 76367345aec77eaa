//! Bad input gets one sentence on stderr, exit 1 (2 for usage), and nothing changed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use clap::CommandFactory;
use nix::fcntl::{Flock, FlockArg};

const PINFOLD: &str = env!("CARGO_BIN_EXE_pinfold");

/// A pool directory with an exclusive pool of the CPUs 0 and 1 and a shared one, and a process that
/// waits.
struct Site {
    dir: tempfile::TempDir,
    waiting: Child,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let waiting = Command::new("sleep").arg("600").spawn().unwrap();
        let site = Site { dir, waiting };
        site.put("kcm/lock", "");
        site.mode("kcm/lock", 0o600);
        site.put("kcm/pools/dp/exclusive", "1");
        site.put("kcm/pools/dp/0/tasks", "");
        site.put("kcm/pools/dp/1/tasks", "");
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, content: &str) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
        // Whatever the umask is, a site begins as one that can be trusted.
        for ancestor in Path::new(name).ancestors() {
            let mode = if self.path("").join(ancestor).is_dir() {
                0o755
            } else {
                0o644
            };
            self.mode(ancestor.to_str().unwrap(), mode);
        }
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn pinfold(&self, arguments: &[&str], input: &[u8]) -> Output {
        self.run(Command::new(PINFOLD), arguments, input)
    }

    /// Runs `program`, which becomes pinfold, on the site.
    fn run(&self, mut program: Command, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = program
            .arg("--conf-dir")
            .arg(self.path("kcm"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .args(["--lock-timeout", "0.2"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).unwrap();
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    fn state(&self, annotations: &str) -> String {
        let pid = self.waiting.id();
        format!(
            r#"{{"ociVersion":"1.0.2","id":"web","status":"creating","pid":{pid},"annotations":{{{annotations}}}}}"#
        )
    }

    fn request(&self) -> String {
        self.state(r#""pinfold.io/pool":"dp""#)
    }

    /// Every path below the site with what tells that it was written: inode, time of change, size.
    fn snapshot(&self) -> Vec<(PathBuf, u64, i64, i64, u64)> {
        fn visit(path: &Path, seen: &mut Vec<(PathBuf, u64, i64, i64, u64)>) {
            let meta = path.symlink_metadata().unwrap();
            seen.push((
                path.into(),
                meta.ino(),
                meta.mtime(),
                meta.mtime_nsec(),
                meta.size(),
            ));
            if meta.is_dir() {
                let entries = fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path());
                entries.for_each(|entry| visit(&entry, seen));
            }
        }
        let mut seen = Vec::new();
        visit(&self.path("kcm"), &mut seen);
        seen.sort();
        seen
    }

    /// Refused with this code in one sentence that has each part; nothing in the pool directory is
    /// touched, and no claim is left.
    #[track_caller]
    fn refuses(&self, code: i32, arguments: &[&str], input: &[u8], parts: &[&str]) {
        let before = self.path("kcm").exists().then(|| self.snapshot());
        let output = self.pinfold(arguments, input);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        for part in parts {
            assert!(
                said.contains(part),
                "{arguments:?} should say {part:?}: {said}"
            );
        }
        if code == 1 {
            assert_eq!(said.matches('\n').count(), 1, "one sentence: {said}");
            assert!(said.starts_with("pinfold: "), "{said}");
        }
        assert!(
            !said
                .trim_end()
                .contains(|c: char| c.is_control() && c != '\n'),
            "{said:?}"
        );
        assert_eq!(before, self.path("kcm").exists().then(|| self.snapshot()));
        assert!(!self.path("run/claims/web").exists());
    }

    #[track_caller]
    fn refuses_start(&self, parts: &[&str]) {
        self.refuses(
            1,
            &["hook", "createRuntime"],
            self.request().as_bytes(),
            parts,
        );
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.waiting.kill().unwrap();
        self.waiting.wait().unwrap();
    }
}

#[test]
fn states_that_are_none() {
    let site = Site::new();
    let request = site.request();
    let truncated = &request[..request.len() - 3];
    for (input, part) in [
        ("".to_owned(), "empty"),
        ("web".to_owned(), "not an OCI state"),
        (truncated.to_owned(), "not an OCI state"),
        (request.replace(r#""id":"web","#, ""), "no container id"),
        (request.replace("\"web\"", r#""a/b""#), "cannot be used"),
        (request.replace("\"web\"", r#""..""#), "cannot be used"),
        (
            request.replace("\"web\"", r#""a\u0000b""#),
            "cannot be used",
        ),
        (
            request.replace("\"web\"", r#""a\u001b[31mb""#),
            "cannot be used",
        ),
        (request.replace("web", &"x".repeat(300)), "cannot be used"),
        (
            format!("{request}{}", " ".repeat(5 << 20)),
            "larger than 4194304 bytes",
        ),
        (request.replace("creating", "\u{1b}[2J"), "not an OCI state"),
    ] {
        for stage in ["prestart", "createRuntime", "poststop"] {
            site.refuses(1, &["hook", stage], input.as_bytes(), &[part]);
        }
    }
    site.refuses(1, &["hook", "prestart"], b"\xff\xfe", &["UTF-8"]);
}

/// Some engines leave annotations out at the end: what is not known to have asked must not depend
/// on our files.
#[test]
fn a_broken_configuration_fails_the_end_only_of_what_asked() {
    let site = Site::new();
    site.put("config.toml", "= = =");
    let config = site.path("config.toml").display().to_string();
    for (annotations, device, code) in [
        (r#"{"pinfold.io/pool":"dp"}"#, None, 1),
        ("{}", Some("dp"), 1),
        ("{}", None, 0),
        ("null", None, 0),
        (r#"{"other":"1"}"#, None, 0),
    ] {
        let state = format!(
            r#"{{"ociVersion":"1.0.2","id":"web","status":"stopped","annotations":{annotations}}}"#
        );
        let mut arguments = vec!["hook", "poststop", "--config", &config];
        arguments.extend(device.iter().flat_map(|device| ["--device", device]));
        let output = site.pinfold(&arguments, state.as_bytes());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{annotations}: {said}");
        assert_eq!(
            said.contains("line 1"),
            !annotations.contains("other"),
            "{said}"
        );
    }
}

/// podman without root reads the machine's hook files, and cannot use the machine's books.
#[test]
fn the_default_pools_hook_leaves_the_end_of_a_users_container_alone() {
    let site = Site::new();
    site.put("run/claims", "no directory");
    let arguments = ["hook", "poststop", "--engine", "podman", "--default-pool"];
    let libpod = r#"{"io.container.manager":"libpod"}"#;
    for (is_a_users, annotations, code, is_told) in [
        (false, libpod, 1, true),
        (true, libpod, 0, false),
        // Whether it asked cannot be known.
        (true, "null", 0, true),
        (true, r#"{"pinfold.io/pool":"dp"}"#, 1, true),
    ] {
        let state = format!(
            r#"{{"ociVersion":"1.0.2","id":"web","status":"stopped","annotations":{annotations}}}"#
        );
        let mut command = Command::new(PINFOLD);
        if is_a_users {
            // A user namespace that does not map root.
            command = Command::new("unshare");
            command.args(["--user", "--", PINFOLD]);
        }
        let output = site.run(command, &arguments, state.as_bytes());
        let said = String::from_utf8_lossy(&output.stderr);
        let case = format!("{is_a_users} {annotations}: {said}");
        assert_eq!(output.status.code(), Some(code), "{case}");
        assert_eq!(said.contains("run/claims"), is_told, "{case}");
    }
}

#[test]
fn a_process_that_is_none() {
    let site = Site::new();
    let pid = format!("\"pid\":{}", site.waiting.id());
    for (replacement, parts) in [
        ("\"pid\":0", ["container web", "no pid"]),
        ("\"pid\":null", ["container web", "no pid"]),
        (
            "\"pid\":4194305",
            ["container web", "process 4194305 is gone"],
        ),
    ] {
        let state = site.request().replace(&pid, replacement);
        site.refuses(1, &["hook", "prestart"], state.as_bytes(), &parts);
        let without_request = state.replace("pinfold.io/pool", "example.com/pool");
        let output = site.pinfold(&["hook", "prestart"], without_request.as_bytes());
        assert!(output.status.success(), "{replacement} without a request");
        assert!(!site.path("run/claims").exists());
    }
}

#[test]
fn requests_that_cannot_be_met() {
    let site = Site::new();
    for (annotations, parts) in [
        (
            r#""pinfold.io/pool":"xx""#,
            &[
                "container web",
                "no pool \"xx\"",
                "which has dp",
                "`pinfold pool add xx=1:exclusive",
            ][..],
        ),
        (
            r#""pinfold.io/pool":"../dp""#,
            &["container web", "pinfold.io/pool"],
        ),
        (
            r#""pinfold.io/poool":"dp""#,
            &["container web", "unknown annotation"],
        ),
        (
            r#""pinfold.io/lists":"2""#,
            &["container web", "pinfold.io/pool"],
        ),
        (
            r#""pinfold.io/pool":"dp","pinfold.io/lists":"-1""#,
            &["container web", "1 to 9999"],
        ),
        (
            r#""pinfold.io/pool":"dp","pinfold.io/lists":"3""#,
            &["container web", "dp", "too small", "2 at most"],
        ),
        (
            r#""pinfold.io/pool":"dp","pinfold.io/cpus":"3""#,
            &["container web", "dp", "too small", "2 at most"],
        ),
        (
            r#""pinfold.io/pool":"d\u001b[0mp""#,
            &["container web", r"\u{1b}"],
        ),
    ] {
        let state = site.state(annotations);
        site.refuses(1, &["hook", "createRuntime"], state.as_bytes(), parts);
    }
}

#[test]
fn pool_directories_that_cannot_be_used() {
    for (spoil, parts) in [
        (
            &(|site: &Site| fs::remove_dir_all(site.path("kcm")).unwrap()) as &dyn Fn(&Site),
            &["does not exist", "pinfold init"][..],
        ),
        (
            &|site| fs::remove_dir_all(site.path("kcm/pools")).unwrap(),
            &["half-made", "pinfold init"],
        ),
        (
            &|site| fs::remove_file(site.path("kcm/lock")).unwrap(),
            &["half-made", "`install -m 600 /dev/null"],
        ),
        (
            &|site| fs::remove_file(site.path("kcm/pools/dp/exclusive")).unwrap(),
            &["half-made"],
        ),
        (
            &|site| fs::remove_file(site.path("kcm/pools/dp/1/tasks")).unwrap(),
            &["half-made"],
        ),
        (&|site| site.mode("kcm", 0o777), &["chmod o-w"]),
        (&|site| site.mode("kcm/pools", 0o777), &["chmod o-w"]),
        (&|site| site.mode("kcm/pools/dp", 0o777), &["chmod o-w"]),
        (
            &|site| site.mode("kcm/pools/dp/0/tasks", 0o666),
            &["chmod o-w", "tasks"],
        ),
        (
            &|site| {
                fs::rename(site.path("kcm/pools/dp"), site.path("elsewhere")).unwrap();
                symlink(site.path("elsewhere"), site.path("kcm/pools/dp")).unwrap();
            },
            &["symbolic link"],
        ),
        (
            &|site| {
                fs::remove_dir_all(site.path("kcm/pools/dp/0")).unwrap();
                site.put("kcm/pools/dp/0/0,4/tasks", "");
            },
            &["sockets", "`rm -r "],
        ),
        (
            &|site| site.put("kcm/pools/dp/0/tasks", "12;13"),
            &["dp/0/tasks", "12;13"],
        ),
        (
            &|site| site.put("kcm/pools/dp/0/tasks", "\u{1b}[31m"),
            &["dp/0/tasks", r"\u{1b}"],
        ),
        (
            &|site| site.put("kcm/pools/dp/zero/tasks", ""),
            &["\"zero\"", "not a CPU list"],
        ),
        (
            &|site| site.put("kcm/pools/dp/0-1/tasks", ""),
            &["overlaps", "give each CPU to one list"],
        ),
        (
            &|site| site.put("kcm/pools/cp/1/tasks", ""),
            &["overlaps \"1\" of pool \"cp\""],
        ),
        (
            &|site| {
                for cpu in ["0", "1"] {
                    fs::remove_dir_all(site.path("kcm/pools/dp").join(cpu)).unwrap();
                }
                site.put("kcm/pools/dp/8190/tasks", "");
            },
            &["pool dp", "offline"],
        ),
    ] {
        let site = Site::new();
        spoil(&site);
        let mut all = vec!["container web"];
        all.extend(parts);
        site.refuses_start(&all);
        assert!(!site.path("run/boot").exists() || site.path("kcm/lock").exists());
    }
}

#[test]
fn what_is_wrong_elsewhere_does_not_matter() {
    let mut site = Site::new();
    symlink("/tmp", site.path("kcm/pools/out")).unwrap();
    site.put("kcm/pools/bad/zero/tasks", "rubbish");
    site.put("kcm/pools/file", "");
    let output = site.pinfold(&["hook", "prestart"], site.request().as_bytes());
    assert!(output.status.success(), "{output:?}");
    let own = site.waiting.id().to_string();
    assert_eq!(
        fs::read_to_string(site.path("kcm/pools/dp/0/tasks")).unwrap(),
        own
    );
    let output = site.pinfold(&["release", "web", "--force"], b"");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fs::read_to_string(site.path("kcm/pools/dp/0/tasks")).unwrap(),
        ""
    );
    // The group that was made for it goes when it is empty.
    site.waiting.kill().unwrap();
    site.waiting.wait().unwrap();
    site.pinfold(&["reconcile"], b"");
    let mut left = Command::new("find");
    left.args(["/sys/fs/cgroup", "-path", "*/pinfold/*", "-name"]);
    left.arg(format!("web-{}-*", site.waiting.id()));
    assert!(
        left.output().unwrap().stdout.is_empty(),
        "a cgroup was left"
    );
}

#[test]
fn states_without_a_request_are_never_refused_for_how_they_look() {
    let site = Site::new();
    for state in [
        "{}",
        r#"{"id":"a..b","pid":-1,"status":"asleep","annotations":{"a":"b","c":null}}"#,
        r#"{"id":7,"annotations":null}"#,
        r#"{"id":"web","annotations":{"io.kubernetes.cri.container-type":"sandbox","pinfold.io/pool":"dp"}}"#,
    ] {
        let output = site.pinfold(&["hook", "createRuntime"], state.as_bytes());
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{state}: {output:?}"
        );
        assert!(!site.path("run").exists(), "{state}");
    }
}

#[test]
fn pools_that_are_there_are_kept() {
    let site = Site::new();
    let init = ["init", "--pool", "only=rest:shared"];
    let force = ["init", "--pool", "only=rest:shared", "--force"];
    site.refuses(1, &init, b"", &["other pools", "--force"]);
    // Trouble in them is no reason to take them for half-made, and a live owner is never
    // overlooked.
    site.put("kcm/pools/dp/0/tasks", "rubbish");
    site.refuses(1, &init, b"", &["dp/0/tasks", "--force"]);
    let mut tasks = site.waiting.id().to_string().into_bytes();
    tasks.extend(b",\xff");
    fs::write(site.path("kcm/pools/dp/0/tasks"), tasks).unwrap();
    site.refuses(1, &force, b"", &["owns CPUs", "stop it first"]);
    symlink("/tmp", site.path("kcm/pools/out")).unwrap();
    site.refuses(1, &force, b"", &["pools/out", "remove it"]);
    fs::remove_file(site.path("kcm/pools/out")).unwrap();
    site.put("kcm/pools/dp/0/tasks", "rubbish");
    let output = site.pinfold(&force, b"");
    assert!(output.status.success(), "{output:?}");
    assert!(!site.path("kcm/pools/dp").exists() && site.path("kcm/pools/only").exists());
}

#[test]
fn what_a_killed_maker_left_is_completed() {
    let site = Site::new();
    fs::remove_dir_all(site.path("kcm")).unwrap();
    let init = [
        "init",
        "--pool",
        "dp=1:exclusive",
        "--pool",
        "cp=rest:shared",
    ];
    for (spoil, said) in [
        ("kcm/none", "made"),
        ("kcm/none", "is so already"),
        ("kcm/pools/cp", "completed"),
        ("kcm/pools", "made"),
    ] {
        let _ = fs::remove_dir_all(site.path(spoil));
        let output = site.pinfold(&init, b"");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.lines().next().unwrap().contains(said),
            "{spoil}: {text}"
        );
        assert!(site.path("kcm/pools/cp/exclusive").exists());
    }
}

#[test]
fn reconcile_goes_by_pid_over_all_pools() {
    let site = Site::new();
    // No process has these numbers: they are above the kernel's own limit (proc_sys_kernel(5),
    // pid_max).
    site.put("kcm/pools/dp/0/tasks", "4194310");
    site.put("kcm/pools/dp/1/tasks", "4194308");
    site.put("kcm/pools/other/exclusive", "1");
    site.put("kcm/pools/other/2/tasks", "4194309");
    let output = site.pinfold(&["reconcile", "--json"], b"");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let entry = |cpus, pid, pool| serde_json::json!({"cpus": cpus, "pid": pid, "pool": pool});
    let expected = [
        entry("1", 4_194_308, "dp"),
        entry("2", 4_194_309, "other"),
        entry("0", 4_194_310, "dp"),
    ];
    assert_eq!(
        report["reclaimedCpuLists"],
        serde_json::json!(expected),
        "{output:?}"
    );
}

#[test]
fn a_time_that_somebody_set_frees_nobody() {
    let site = Site::new();
    site.put("kcm/pools/dp/0/tasks", &site.waiting.id().to_string());
    let tasks = fs::File::options()
        .write(true)
        .open(site.path("kcm/pools/dp/0/tasks"))
        .unwrap();
    tasks.set_modified(std::time::UNIX_EPOCH).unwrap();
    let table = String::from_utf8(site.pinfold(&["describe"], b"").stdout).unwrap();
    assert!(
        table.contains("running") && !table.contains(" gone "),
        "{table}"
    );
}

#[test]
fn what_kcm_tolerates_in_tasks_is_read() {
    let site = Site::new();
    let own = site.waiting.id();
    for tasks in [
        format!("{own}\n"),
        format!(",{own},,"),
        format!(" {own} , {own} "),
    ] {
        site.put("kcm/pools/dp/0/tasks", &tasks);
        site.put("kcm/pools/dp/1/tasks", &tasks);
        site.refuses_start(&["pool dp", "exhausted"]);
    }
}

#[test]
fn a_lock_that_is_held_too_long_names_the_holder() {
    let site = Site::new();
    let lock = site.path("kcm/lock");
    let mut holder = Command::new("flock")
        .arg(&lock)
        .args(["sleep", "600"])
        .spawn()
        .unwrap();
    let is_held = || {
        let file = fs::File::open(&lock).unwrap();
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    };
    while !is_held() {
        std::thread::sleep(Duration::from_millis(2));
    }
    site.refuses_start(&["held by process", "\"flock\"", "gave up after"]);
    // A look goes without it.
    for verb in ["describe", "status", "check"] {
        let began = std::time::Instant::now();
        let output = site.pinfold(&[verb], b"");
        // A start waits for ten seconds.
        assert!(began.elapsed() < Duration::from_secs(5), "{verb} waits");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(
            text.contains("without the lock") && text.contains("held by process"),
            "{verb}: {text}"
        );
    }
    let began = std::time::Instant::now();
    site.pinfold(&["explain", "--pool", "dp"], b"");
    assert!(began.elapsed() < Duration::from_secs(5), "explain waits");
    site.refuses(1, &["reconcile"], b"", &["held by process"]);
    Command::new("pkill")
        .args(["-P", &holder.id().to_string()])
        .status()
        .unwrap();
    holder.wait().unwrap();
}

#[test]
fn claims_that_cannot_be_read_count_as_held_and_stay() {
    let site = Site::new();
    let claim = r#"{"version":2,"surprise":true}"#;
    for cpu in ["0", "1"] {
        site.put(&format!("run/claims/old{cpu}/5-5.json"), claim);
        site.put(&format!("run/lists/{cpu}/old{cpu}@5-5"), "");
        fs::remove_file(site.path(&format!("run/lists/{cpu}/old{cpu}@5-5"))).unwrap();
        let target = format!("../../claims/old{cpu}/5-5.json");
        symlink(target, site.path(&format!("run/lists/{cpu}/old{cpu}@5-5"))).unwrap();
    }
    let output = site.pinfold(&["hook", "prestart"], site.request().as_bytes());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        said.contains("version 2") && said.contains("exhausted"),
        "{said}"
    );
    let output = site.pinfold(&["reconcile"], b"");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        fs::read_to_string(site.path("run/claims/old0/5-5.json")).unwrap(),
        claim
    );
}

#[test]
fn a_run_directory_of_others_or_of_another_pool_directory() {
    let site = Site::new();
    fs::create_dir(site.path("run")).unwrap();
    site.mode("run", 0o777);
    site.refuses_start(&["chmod 700"]);
    site.mode("run", 0o700);
    // Whoever can write to the directory above can put another in its place, or in that of the pool
    // directory.
    site.mode("", 0o777);
    site.refuses_start(&["can be written by anybody"]);
    site.mode("", 0o755);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    site.put("run/boot", &format!("{} /elsewhere\n", boot_id.trim()));
    site.put("run/claims/other/5-5.json", "{}");
    site.mode("run", 0o700);
    site.refuses_start(&["/elsewhere", "another --run-dir"]);
}

/// A small file system over a directory of the site, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// Needs root, as the whole suite does.
    fn over(path: PathBuf, options: &str) -> Mounted {
        fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path);
        assert!(
            mount.status().unwrap().success(),
            "mount a tmpfs: are you root?"
        );
        Mounted(path)
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn remount_read_only(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "remount,ro"]).arg(&self.0);
        assert!(mount.status().unwrap().success());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(
            Command::new("umount")
                .arg(&self.0)
                .status()
                .unwrap()
                .success()
        );
    }
}

#[test]
fn disks_that_are_full_or_read_only() {
    let site = Site::new();
    let mounted = Mounted::over(site.path("run"), "size=64k,mode=700");
    mounted.fill();
    site.refuses_start(&["run/", "No space left on device"]);
    mounted.remount_read_only();
    site.refuses_start(&["run", "Read-only file system"]);
    drop(mounted);
    let mut left = Command::new("find");
    left.args([
        "/sys/fs/cgroup",
        "-name",
        &format!("web-{}-*", site.waiting.id()),
    ]);
    assert!(
        left.output().unwrap().stdout.is_empty(),
        "a cgroup was left"
    );

    let site = Site::new();
    let mounted = Mounted::over(site.path("kcm/pools/dp/0"), "size=4k,mode=755,nr_inodes=2");
    fs::write(site.path("kcm/pools/dp/0/tasks"), "").unwrap();
    // The claim is written by then, and is taken back.
    site.refuses_start(&["dp/0/tasks", "No space left on device"]);
    mounted.remount_read_only();
    site.refuses_start(&["dp/0/tasks", "Read-only file system"]);
    let mut held = Command::new("find");
    held.arg(site.path("run")).args(["-name", "web*"]);
    assert!(held.output().unwrap().stdout.is_empty(), "a claim was left");
}

#[test]
fn configuration_files() {
    let site = Site::new();
    let config = site.path("config.toml");
    let named = ["describe", "--config", config.to_str().unwrap()];
    site.refuses(1, &named, b"", &["config.toml", "does not exist"]);
    site.put("config.toml", "\ncolour = 1\n");
    site.refuses(1, &named, b"", &["config.toml", "line 2", "colour"]);
    site.put("config.toml", "lock-timeout = -1\n");
    site.mode("config.toml", 0o666);
    site.refuses(1, &named, b"", &["config.toml", "chmod o-w"]);
}

#[test]
fn command_lines() {
    let site = Site::new();
    for (arguments, parts) in [
        (&["hook"][..], &["Usage"][..]),
        (
            &["hook", "poststart"],
            &["prestart, createRuntime, poststop"],
        ),
        (&["frobnicate"], &["frobnicate"]),
        (&["init", "--pool", "dp"], &["fast=2:exclusive"]),
        (&["init", "--pool", "none=1:shared"], &["none"]),
        (&["init", "--pool", "dp=0:shared"], &["1 to 9999"]),
        (&["init", "--pool", "dp=1:private"], &["fast=2:exclusive"]),
        (&["reconcile", "--interval", "0"], &["1..=86400"]),
        (&["init", "--num-dp-cores", "0"], &["1..=9999"]),
        (&["describe", "--lock-timeout", "1e9"], &["0 to 86400"]),
        (&["release", "isolate", "--bogus"], &["--bogus"]),
        (&["describe", "--lock-timeout", "x"], &["--lock-timeout"]),
    ] {
        site.refuses(2, arguments, b"", parts);
    }
    for (arguments, code, parts) in [
        (
            &["init", "--pool", "dp=1:shared", "--pool", "dp=1:shared"][..],
            2,
            &["asked for twice"][..],
        ),
        (
            &["init", "--pool", "dp=999:exclusive"],
            1,
            &["999 asked for", "there are"],
        ),
        (&["pool", "resize", "xx", "2"], 1, &["no pool \"xx\""]),
        (
            &["pool", "add", "new:exclusive", "--list", "4096"],
            1,
            &["not online"],
        ),
        (
            &["pool", "add", "new:exclusive", "--list", "0"],
            1,
            &["CPU 0 is in list 0 of pool dp"],
        ),
        (
            &["release", "a/b"],
            1,
            &["no owner is called \"a/b\"", "given CPUs to nobody"],
        ),
        (&["release", "\x1b[31m"], 1, &["\\u{1b}[31m"]),
        (&["release", ""], 1, &["no owner is called \"\""]),
        (
            &["pool", "add", "new:exclusive", "--list", "7", "--list", "7"],
            2,
            &["CPU 7 is in two of the lists"],
        ),
        (
            &["pool", "add", "new=1:exclusive", "--list", "7"],
            2,
            &["drop =1:", "as in new:exclusive"],
        ),
        (
            &["pool", "add", "new:exclusive,numa=0", "--list", "7"],
            2,
            &["drop numa="],
        ),
        (
            &["pool", "add", "new:exclusive", "--list", ""],
            2,
            &["--list has no CPU"],
        ),
        (&["pool", "add", "new"], 2, &["fast=2:exclusive"]),
        (
            &["pool", "resize", "dp", "2", "--numa", "x"],
            2,
            &["--numa"],
        ),
        (&["explain", "--pool", "dp", "--numa", "x"], 2, &["--numa"]),
        (&["explain", "--pool", "../x"], 2, &["--pool"]),
        (&["explain", "--pool", "xx"], 1, &["no pool \"xx\""]),
        (
            &["check", "--engine-config", "dcker=/x"],
            2,
            &["podman, crio, containerd, docker"],
        ),
        (
            &["check", "--hooks-dir", "/x"],
            2,
            &["docker=/etc/docker/daemon.json"],
        ),
        (&["pool", "remove", "xx"], 1, &["no pool \"xx\""]),
        (
            &["isolate", "--pool", "xx", "--", "true"],
            125,
            &["no pool \"xx\""],
        ),
        (
            &["isolate", "--pool", "../x", "--", "true"],
            125,
            &["--pool"],
        ),
        (&["isolate", "--pool", "dp"], 125, &["COMMAND"]),
    ] {
        site.refuses(code, arguments, b"", parts);
    }
}

/// What a script has to work on is an object of JSON, whatever is wrong.
#[test]
fn errors_of_a_verb_with_json_are_objects() {
    let site = Site::new();
    site.put("broken.toml", "colour = 1\n");
    let broken = site.path("broken.toml").display().to_string();
    for (arguments, code, message, remedy) in [
        (
            &["explain", "--pool", "xx", "--json"][..],
            1,
            "there is no pool \"xx\"",
            "`pinfold pool add xx=1:exclusive --conf-dir",
        ),
        (
            &["explain", "--pool", "dp", "--numa", "x", "--json"],
            2,
            "\"--numa\" is \"x\"",
            "it must be best",
        ),
        (
            &["pool", "show", "xx", "--json"],
            1,
            "there is no pool \"xx\"",
            "pinfold pool add xx=1:exclusive",
        ),
        (
            &["pool", "show", "--json", "--bogus"],
            2,
            "--bogus",
            "--help",
        ),
        (
            &["describe", "--json", "--config", &broken],
            1,
            "broken.toml: line 1: unknown field `colour`",
            "pinfold(8)",
        ),
        (
            &["why", "nobody", "--json"],
            1,
            "no refusal of \"nobody\" is kept",
            "journalctl -t pinfold",
        ),
        (
            &["topology", "--json", "--lock-timeout", "x"],
            2,
            "--lock-timeout",
            "--help",
        ),
    ] {
        let output = site.pinfold(arguments, b"");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let said: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
        assert_eq!(said["exitCode"], code, "{said}");
        for (key, part) in [("message", message), ("remedy", remedy)] {
            let text = said[key].as_str().unwrap();
            assert!(text.contains(part), "{arguments:?}: {said}");
        }
    }
}

/// Every verb whose help has `--json`, with a configuration that cannot be read.
#[test]
fn no_verb_with_json_fails_in_prose() {
    fn with_json(command: &clap::Command, words: &[String], found: &mut Vec<Vec<String>>) {
        let has_json = |argument: &clap::Arg| argument.get_id() == "json";
        if command.get_arguments().any(has_json) {
            found.push(words.to_vec());
        }
        for below in command.get_subcommands() {
            let words = [words, &[below.get_name().to_owned()]].concat();
            with_json(below, &words, found);
        }
    }
    let site = Site::new();
    site.put("broken.toml", "colour = 1\n");
    let broken = site.path("broken.toml").display().to_string();
    let mut verbs = Vec::new();
    with_json(&pinfold::cli::Cli::command(), &[], &mut verbs);
    assert!(verbs.len() >= 8, "{verbs:?}");
    for mut words in verbs {
        if words == ["explain"] {
            words.extend(["--pool".to_owned(), "dp".to_owned()]);
        }
        words.extend(["--json".to_owned(), "--config".to_owned(), broken.clone()]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let output = site.pinfold(&words, b"");
        // Of `noise` 1 says that somebody else ran.
        let expected = match words[0] {
            "noise" => 125,
            _ => 1,
        };
        let code = output.status.code();
        assert_eq!(code, Some(expected), "{words:?}: {output:?}");
        // `check` has a document all the same.
        let said = match words[0] {
            "check" => &output.stdout,
            _ => &output.stderr,
        };
        let said: serde_json::Value = serde_json::from_slice(said).unwrap();
        assert!(said.to_string().contains("colour"), "{words:?}: {said}");
        let json = words.iter().map(|word| match *word {
            "--json" => "--output=json",
            word => word,
        });
        if ["status", "describe"].contains(&words[0]) {
            let output = site.pinfold(&json.collect::<Vec<_>>(), b"");
            serde_json::from_slice::<serde_json::Value>(&output.stderr).unwrap();
        }
    }
}

#[test]
fn a_pool_that_is_not_there_is_removed_for_scripts_alone() {
    let site = Site::new();
    site.refuses(1, &["pool", "remove", "xx"], b"", &["no pool \"xx\"", "dp"]);
    let output = site.pinfold(&["pool", "remove", "xx", "--if-exists"], b"");
    assert!(output.status.success());
}

#[test]
fn a_verb_of_other_tools_gets_a_tip() {
    let site = Site::new();
    for (words, tip) in [
        (&["ls"][..], "pinfold status"),
        (&["list", "--all"], "pinfold status"),
        (&["ps", "-a"], "pinfold status"),
        (&["create", "dp"], "pinfold pool add"),
        (&["rm", "web"], "pinfold release"),
        (&["remove", "dp"], "pinfold pool remove"),
        (&["pool", "ls"], "pinfold pool show"),
        (&["pool", "delete", "dp"], "pinfold pool remove"),
        (&["-v", "doctor"], "pinfold check"),
    ] {
        let output = site.pinfold(words, b"");
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{words:?}: {said}");
        assert!(
            said.contains(&format!("tip: {tip}")) || said.contains(tip),
            "{words:?}: {said}"
        );
        let misled = said.contains("similar subcommand");
        assert!(
            !misled && said.matches("tip:").count() == 1,
            "{words:?}: {said}"
        );
    }
    // What nobody means anything by has clap's own words.
    let output = site.pinfold(&["statsu"], b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.code() == Some(2) && said.contains("status"),
        "{said}"
    );
}

#[test]
fn a_root_whose_processes_are_not_ours() {
    let site = Site::new();
    fs::create_dir(site.path("captured")).unwrap();
    let root = site.path("captured");
    for verb in [&["reconcile"][..], &["release", "web"]] {
        let mut arguments = verb.to_vec();
        arguments.extend(["--host-root", root.to_str().unwrap()]);
        site.refuses(2, &arguments, b"", &["pid namespace"]);
    }
    let hook = ["hook", "prestart", "--host-root", root.to_str().unwrap()];
    site.refuses(2, &hook, site.request().as_bytes(), &["pid namespace"]);
}

#[test]
fn every_verb_has_help_with_an_example_and_a_place_in_the_manual() {
    let site = Site::new();
    let manual = include_str!("../docs/pinfold.8").replace("\\-", "-");
    for verb in [
        "init",
        "pool",
        "pool add",
        "pool remove",
        "pool resize",
        "pool show",
        "status",
        "describe",
        "hook",
        "reconcile",
        "isolate",
        "release",
        "topology",
        "explain",
        "noise",
        "check",
        "cdi",
        "install",
        "uninstall",
    ] {
        let mut words: Vec<&str> = verb.split(' ').collect();
        words.push("--help");
        let output = site.pinfold(&words, b"");
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && help.contains("Example"),
            "{help}"
        );
        let last = words[words.len() - 2];
        assert!(manual.contains(&format!(".B {last}\n")), "{verb}");
        let options = help
            .split_whitespace()
            .filter(|word| word.starts_with("--") && word.len() > 2);
        for option in options.map(|option| option.trim_end_matches(|c: char| !c.is_alphanumeric()))
        {
            let known = manual.contains(option) || ["--help", "--port"].contains(&option);
            assert!(known, "{option} of {verb} is missing in the manual page");
        }
    }
}

#[test]
fn a_pool_of_some_namespaces_is_for_their_pods_alone() {
    const CONTAINERD: &str = "io.kubernetes.cri.sandbox-namespace";
    const CRIO: &str = "io.kubernetes.pod.namespace";
    let site = Site::new();
    site.put("config.toml", "[pools.dp]\nnamespaces = [\"telco\"]\n");
    let config = site.path("config.toml").display().to_string();
    let refuses = |engine: &[&str], annotations: &str, part: &str| {
        let state = site.state(&format!("\"pinfold.io/pool\":\"dp\"{annotations}"));
        let arguments = [&["hook", "createRuntime", "--config", &config], engine].concat();
        site.refuses(1, &arguments, state.as_bytes(), &[part, "pool dp"]);
    };
    let mark = |key: &str, value: &str| format!(",\"{key}\":\"{value}\"");
    let containerd = &["--engine", "containerd"];
    refuses(&[], &mark(CONTAINERD, "telco"), "add --engine");
    refuses(&["--shim"], &mark(CONTAINERD, "telco"), "runtime.engine");
    refuses(containerd, "", "has no mark");
    refuses(
        containerd,
        &mark(CONTAINERD, "web"),
        "its namespace \"web\" may not use it",
    );
    // A pod's author can write the mark of another engine, but not that of the one which runs it.
    refuses(containerd, &mark(CRIO, "telco"), "has no mark");
    refuses(
        &["--engine", "crio"],
        &mark(CONTAINERD, "telco"),
        "has no mark",
    );
    refuses(
        &["--engine", "podman"],
        &mark(CRIO, "telco"),
        "only pods of Kubernetes",
    );
    refuses(
        &["--engine", "docker"],
        &mark(CRIO, "telco"),
        "only pods of Kubernetes",
    );
    // One that may gets beyond that, to what else is wrong.
    site.mode("kcm/pools/dp", 0o777);
    refuses(containerd, &mark(CONTAINERD, "telco"), "chmod o-w");
    refuses(&["--engine", "crio"], &mark(CRIO, "telco"), "chmod o-w");
}

#[test]
fn a_pool_is_given_by_its_doors_alone() {
    let site = Site::new();
    let config = site.path("config.toml").display().to_string();
    let annotation = r#""pinfold.io/pool":"dp""#;
    // Whoever may gets beyond that, to what else is wrong.
    site.mode("kcm/pools/dp", 0o777);
    let (beyond, no_reservation) = ("chmod o-w", "reserved for it is gone");
    let reservation = ["--reservation", "1-2"];
    let with_device = ["--device", "dp", "--reservation", "1-2"];
    let ways: [(&str, &[&str], &str, &str); 7] = [
        ("annotation", &[], annotation, beyond),
        ("shim", &["--shim"], annotation, beyond),
        ("cdi", &["--device", "dp"], "", beyond),
        ("cdi", &["--list", "dp:2"], "", beyond),
        ("cdi", &["--list", "dp:2"], annotation, beyond),
        // The shim has reserved for it: whichever hook comes takes that over.
        ("shim", &reservation, annotation, no_reservation),
        ("shim", &with_device, annotation, no_reservation),
    ];
    for (door, arguments, annotations, beyond) in ways {
        let state = site.state(annotations);
        let arguments = [&["hook", "createRuntime", "--config", &config], arguments].concat();
        for open in [vec![], vec!["annotation"], vec!["cdi", "shim"]] {
            site.put("config.toml", &format!("[pools.dp]\ndoors = {open:?}\n"));
            let refusal = format!("it may not be asked for by {door}");
            let part = if open.contains(&door) {
                beyond
            } else {
                &refusal
            };
            site.refuses(1, &arguments, state.as_bytes(), &[part, "pool dp"]);
        }
    }
}

#[test]
fn a_reservation_for_what_asks_for_nothing_is_refused() {
    let site = Site::new();
    let state = site.state("");
    let arguments = ["hook", "createRuntime", "--shim", "--reservation", "1-2"];
    site.refuses(1, &arguments, state.as_bytes(), &["start it anew"]);
}

/// The shim has written the CPUs into its configuration: without a claim it does not start, though
/// nobody said that the default pool is needed.
#[test]
fn what_was_reserved_by_default_starts_with_a_claim_or_not_at_all() {
    let site = Site::new();
    site.put("kcm/pools/common/0/tasks", "");
    let config = site.path("config.toml").display().to_string();
    let stage = ["hook", "createRuntime", "--shim", "--default-pool"];
    let arguments = [&stage[..], &["--reservation", "1-2", "--config", &config]].concat();
    for (table, part) in [
        ("[host]\ndefault-pool = 'common'\n", "its configuration: "),
        ("[host]\ndefault-pool = 'gone'\n", "its configuration: "),
        ("", "has no default-pool any more"),
        ("= = =", "line 1"),
    ] {
        site.put("config.toml", table);
        let state = site.state("");
        let again = ["into the default pool", "start it again"];
        site.refuses(
            1,
            &arguments,
            state.as_bytes(),
            &[&again[..], &[part]].concat(),
        );
        let output = site.pinfold(
            &[&stage[..], &["--config", &config]].concat(),
            state.as_bytes(),
        );
        assert!(output.status.success(), "without one: {output:?}");
    }
}

/// An image can carry any annotation, and podman copies it: only the mark that the engine itself
/// sets makes a sandbox.
#[test]
fn no_mark_of_another_engine_leaves_the_default_pool() {
    let site = Site::new();
    // An exclusive pool is refused: whoever is to be in it is told from whoever is not.
    let table = "[host]\ndefault-pool = 'dp'\ndefault-pool-needed = true\n";
    site.put("config.toml", table);
    let config = site.path("config.toml").display().to_string();
    let marks = [
        ("containerd", "io.kubernetes.cri.container-type"),
        ("crio", "io.kubernetes.cri-o.ContainerType"),
    ];
    for engine in ["podman", "docker", "containerd", "crio"] {
        for (of, mark) in marks {
            let state = site.state(&format!("\"{mark}\":\"sandbox\""));
            let arguments = [
                "hook",
                "createRuntime",
                "--default-pool",
                "--config",
                &config,
            ];
            let arguments = [&arguments[..], &["--engine", engine]].concat();
            if engine == of {
                let output = site.pinfold(&arguments, state.as_bytes());
                assert!(output.status.success(), "{engine} {mark}: {output:?}");
            } else {
                let part = "into the default pool dp";
                site.refuses(1, &arguments, state.as_bytes(), &[part]);
            }
        }
    }
}

#[test]
fn a_device_and_annotations_that_disagree_and_devices_that_are_none() {
    let site = Site::new();
    for (device, annotations, code, part) in [
        ("dp.2", r#""pinfold.io/pool":"dp""#, 1, "ask once"),
        ("cp", r#""pinfold.io/pool":"dp""#, 1, "ask once"),
        ("dp.0", "", 2, "from 1 to 9999"),
        ("none", "", 2, "a pool's name"),
        ("../x", "", 2, "a pool's name"),
        ("gone", "", 1, "there is no pool"),
    ] {
        let state = site.state(annotations);
        let arguments = ["hook", "createRuntime", "--device", device];
        site.refuses(code, &arguments, state.as_bytes(), &[part]);
    }
}

#[test]
fn a_device_that_is_no_list_or_is_of_none_or_goes_with_no_annotation() {
    let site = Site::new();
    let pool = r#""pinfold.io/pool":"dp""#;
    let long = format!("dp:{}", "1,".repeat(9000));
    for (list, annotations, code, part) in [
        ("dp", "", 2, "a pool and one of its CPU lists"),
        ("dp:", "", 2, "a pool and one of its CPU lists"),
        ("dp:4_12", "", 2, "a pool and one of its CPU lists"),
        ("dp:0-99999999999", "", 2, "a pool and one of its CPU lists"),
        (&long, "", 2, "a pool and one of its CPU lists"),
        ("../x:4", "", 2, "a pool's name"),
        ("dp:\u{1b}[31m4", "", 2, "a pool and one of its CPU lists"),
        ("gone:4", "", 1, "there is no pool"),
        ("dp:1000", "", 1, "the pool has no CPU list 1000"),
        ("cp:0", pool, 1, "ask once"),
        (
            "dp:4",
            r#""pinfold.io/pool":"dp","pinfold.io/lists":"2""#,
            1,
            "ask once",
        ),
    ] {
        let state = site.state(annotations);
        let arguments = ["hook", "createRuntime", "--list", list];
        site.refuses(code, &arguments, state.as_bytes(), &[part]);
    }
    for other in [["--device", "dp"], ["--reservation", "1-2"]] {
        let arguments = [&["hook", "poststop", "--list", "dp:4"][..], &other].concat();
        let state = site.state("");
        let output = site.pinfold(&arguments, state.as_bytes());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn a_file_is_put_where_its_directory_is() {
    let site = Site::new();
    for arguments in [
        &["cdi", "--output", "/none/x.json"][..],
        &["install", "docker", "--engine-config", "/none/x.json"],
    ] {
        let output = site.pinfold(arguments, b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("No such file"), "{arguments:?}: {said}");
    }
}

/// Whoever reads it later does so from elsewhere.
#[test]
fn a_relative_pool_directory_is_made_absolute_and_refused_in_the_file() {
    let site = Site::new();
    let pinfold = || {
        let mut pinfold = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        pinfold.current_dir(site.path(""));
        pinfold
    };
    let output = pinfold()
        .args([
            "--conf-dir",
            "new",
            "init",
            "--dry-run",
            "--pool",
            "a=rest:shared",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let whole = site.path("new");
    assert!(said.contains(whole.to_str().unwrap()), "{output:?}");
    site.put("config.toml", "conf-dir = 'kcm'\n");
    let output = pinfold()
        .arg("--config")
        .arg(site.path("config.toml"))
        .arg("describe")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("conf-dir in the configuration file is relative"),
        "{said}"
    );
}

#[test]
fn pools_that_cannot_be_as_declared_are_told_and_nothing_is_changed() {
    let site = Site::new();
    let declared =
        "[pools.dp]\nkind = 'exclusive'\nlists = ['0', '1']\n[pools.x]\nkind = 'shared'\n";
    for (rest, parts) in [
        ("lists = ['1']", ["CPU 1", "dp"]),
        ("lists = ['99999']", ["99999", ""]),
        ("lists = ['4000']", ["4000", ""]),
        ("cores = 9999", ["9999", ""]),
        ("lists = ['1', '1']", ["1", ""]),
    ] {
        site.put(
            "config.toml",
            &format!("reserve = 'none'\n{declared}{rest}\n"),
        );
        let config = site.path("config.toml").display().to_string();
        for arguments in [
            &["apply", "--config", &config][..],
            &["apply", "--dry-run", "--config", &config],
        ] {
            site.refuses(1, arguments, b"", &parts);
        }
        assert!(!site.path("kcm/pools/x").exists(), "{rest}");
    }
    site.put(
        "config.toml",
        "[pools.'../x']\nkind = 'shared'\ncores = 1\n",
    );
    let config = site.path("config.toml").display().to_string();
    site.refuses(1, &["apply", "--config", &config], b"", &["../x"]);
    site.put("kcm/pools/dp/exclusive", "");
    site.put("config.toml", &format!("{declared}lists = ['2']\n"));
    site.refuses(1, &["apply", "--config", &config], b"", &["exclusive"]);
}
