//! What is printed as a remedy is done, by a shell where it is a command, and the complaint is
//! gone.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A pool directory with a shared and an exclusive pool on a tree of four CPUs whose processes are
/// our own.
struct Site {
    dir: tempfile::TempDir,
    others: Vec<Child>,
}

/// How somebody does what a remedy says.
enum Does {
    /// Runs the first command in it.
    Runs,
    /// Runs that one, where there are several to choose from.
    RunsNth(usize),
    /// Follows advice; what a person does.
    Follows(&'static dyn Fn(&mut Site)),
    /// Says it in these other ways.
    Instead(&'static [&'static str]),
}

use Does::{Follows, Instead, Runs, RunsNth};

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let site = Site {
            dir,
            others: Vec::new(),
        };
        for (path, content) in [
            ("sys/devices/system/cpu/online", "0-3\n"),
            ("sys/devices/system/cpu/present", "0-3\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/devices/system/node/has_cpu", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-1\n"),
            ("sys/devices/system/node/node1/cpulist", "2-3\n"),
            ("kcm/lock", ""),
            ("kcm/pools/common/exclusive", "0"),
            ("kcm/pools/common/0,1/tasks", ""),
            ("kcm/pools/dp/exclusive", "1"),
            ("kcm/pools/dp/2/tasks", ""),
            ("kcm/pools/dp/3/tasks", ""),
        ] {
            site.put(path, content);
        }
        for cpu in 0..4 {
            let node = cpu / 2;
            for (file, content) in [
                ("topology/core_cpus_list", format!("{cpu}\n")),
                ("topology/package_cpus_list", "0-3\n".to_owned()),
                ("topology/physical_package_id", "0\n".to_owned()),
                ("cache/index3/level", "3\n".to_owned()),
                ("cache/index3/size", "16384K\n".to_owned()),
                (
                    "cache/index3/shared_cpu_list",
                    format!("{}-{}\n", node * 2, node * 2 + 1),
                ),
            ] {
                site.put(&format!("sys/devices/system/cpu/cpu{cpu}/{file}"), &content);
            }
        }
        symlink("/proc", site.path("proc")).unwrap();
        site.mode("kcm/lock", 0o600);
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        for ancestor in PathBuf::from(name).ancestors().skip(1) {
            self.mode(ancestor.to_str().unwrap(), 0o755);
        }
        self.mode(name, 0o644);
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn pinfold(&self, line: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .args(line.split_whitespace())
            .arg("--conf-dir")
            .arg(self.path("kcm"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--host-root")
            .arg(self.dir.path())
            .args(["--lock-timeout", "0.1"])
            .output()
            .unwrap()
    }

    /// What a verb complains of, and what it says to do.
    fn complaint(&self, line: &str) -> Option<(String, String)> {
        if line.starts_with("check") {
            let output = self.pinfold("check --json");
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            let findings = document["findings"].as_array().unwrap();
            let what = line.split_whitespace().nth(1).unwrap();
            for finding in findings.iter().filter(|finding| finding["level"] != "ok") {
                let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
                assert!(!text("remedy").is_empty(), "no remedy: {finding}");
                if text("what") == what && ["pools", "start", "claims"].contains(&what) {
                    return Some((text("text"), text("remedy")));
                }
            }
            return None;
        }
        let output = self.pinfold(line);
        if output.status.success() {
            return None;
        }
        let said = String::from_utf8(output.stderr).unwrap();
        let said = said.trim_end().trim_start_matches("pinfold: ");
        Some((said.to_owned(), said.to_owned()))
    }

    fn runs(&self, command: &str) {
        let dir = PathBuf::from(env!("CARGO_BIN_EXE_pinfold"));
        let path = format!(
            "{}:{}",
            dir.parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        let output = Command::new("sh")
            .args(["-c", command])
            .env("PATH", path)
            .output()
            .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
    }

    /// Another process that does something for as long as the test runs.
    fn other(&mut self, program: &str, arguments: &[&str]) -> i32 {
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        self.others.push(child);
        pid
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.others {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn commands(remedy: &str) -> Vec<&str> {
    remedy.split('`').skip(1).step_by(2).collect()
}

struct Case {
    spoils: &'static dyn Fn(&mut Site),
    verb: &'static str,
    says: &'static [&'static str],
    does: Does,
}

#[track_caller]
fn holds(case: &Case) {
    let mut site = Site::new();
    (case.spoils)(&mut site);
    let verb = case.verb;
    let (text, remedy) = site
        .complaint(verb)
        .unwrap_or_else(|| panic!("{verb} complains of nothing: {:?}", case.says));
    for part in case.says {
        let all = format!("{text}: {remedy}");
        assert!(all.contains(part), "{verb} should say {part:?}: {all}");
    }
    match case.does {
        Runs => site.runs(
            commands(&remedy)
                .first()
                .unwrap_or_else(|| panic!("no command: {remedy}")),
        ),
        RunsNth(n) => site.runs(commands(&remedy)[n]),
        Follows(does) => does(&mut site),
        Instead(lines) => {
            for line in lines {
                assert_eq!(site.complaint(line), None, "after {remedy}");
            }
            return;
        }
    }
    // A process that was ended is gone once it was waited for.
    for child in &mut site.others {
        let _ = child.try_wait();
    }
    if let Some((after, _)) = site.complaint(verb) {
        assert_ne!(after, text, "{verb}: after {remedy}");
        assert!(verb.starts_with("check"), "{verb}: after {remedy}: {after}");
    }
}

#[test]
fn what_is_said_of_pools_is_done_and_then_all_is_well() {
    let nothing: &dyn Fn(&mut Site) = &|_| {};
    for case in [
        Case {
            spoils: nothing,
            verb: "pool add x=1:exclusive",
            says: &[
                "there are 0",
                "make room first: `pinfold pool resize common 1",
            ],
            does: Runs,
        },
        Case {
            spoils: nothing,
            verb: "pool resize dp 3",
            says: &["pinfold pool resize common 1"],
            does: Runs,
        },
        Case {
            spoils: nothing,
            verb: "pool add dp=1:exclusive",
            says: &["pinfold pool resize dp 1"],
            does: Runs,
        },
        Case {
            spoils: nothing,
            verb: "pool add x:exclusive --list 2",
            says: &["CPU 2 is in list 2 of pool dp", "pinfold pool remove dp"],
            does: RunsNth(1),
        },
        Case {
            spoils: &|site| fs::remove_dir_all(site.path("kcm/pools/dp/3")).unwrap(),
            verb: "explain --pool x",
            says: &["there is no pool \"x\"", "pinfold pool add x=1:exclusive"],
            does: Runs,
        },
    ] {
        holds(&case);
    }
}

#[test]
fn a_node_that_is_not_there_is_named_with_those_there_are() {
    let site = Site::new();
    for (numa, parts) in [
        ("9", ["there is no NUMA node 9", "this machine has 0-1"]),
        ("0", ["2 CPU lists free in dp", "0 of them on node 0"]),
    ] {
        let (said, _) = site
            .complaint(&format!("explain --pool dp --numa {numa}"))
            .unwrap();
        for part in parts {
            assert!(said.contains(part), "{said}");
        }
    }
}

#[test]
fn where_lists_lie_is_told_as_it_is() {
    let site = Site::new();
    site.put("kcm/pools/dp/0/tasks", "");
    fs::remove_dir_all(site.path("kcm/pools/common")).unwrap();
    let (said, _) = site
        .complaint("explain --pool dp --lists 3 --numa single")
        .unwrap();
    let part = "3 CPU lists free in dp, but 1 on node 0, 2 on node 1";
    assert!(said.contains(part), "{said}");
}

#[test]
fn what_check_says_of_the_pool_directory_is_done_and_then_it_is_content() {
    for case in [
        Case {
            spoils: &|site| site.mode("kcm/lock", 0o644),
            verb: "check pools",
            says: &["can be opened", "`chmod 600 "],
            does: Runs,
        },
        Case {
            spoils: &|site| fs::remove_file(site.path("kcm/lock")).unwrap(),
            verb: "check pools",
            says: &["lock", "`install -m 600 /dev/null "],
            does: Runs,
        },
        Case {
            spoils: &|site| site.mode("kcm/pools/dp/2/tasks", 0o666),
            verb: "check pools",
            says: &["can be written by anybody", "`chmod o-w "],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                std::os::unix::fs::chown(site.path("kcm/pools/dp/2/tasks"), Some(1234), None)
                    .unwrap()
            },
            verb: "check pools",
            says: &["belongs to uid 1234", "`chown -h 0 "],
            does: Runs,
        },
        Case {
            spoils: &|site| fs::remove_file(site.path("kcm/pools/dp/2/tasks")).unwrap(),
            verb: "check pools",
            says: &["half-made", "`install -m 644 /dev/null "],
            does: Runs,
        },
        Case {
            spoils: &|site| fs::remove_file(site.path("kcm/pools/dp/exclusive")).unwrap(),
            verb: "check pools",
            says: &["half-made", "`printf 1 > "],
            does: Runs,
        },
        Case {
            spoils: &|site| site.put("kcm/pools/dp/stray/x", ""),
            verb: "check pools",
            says: &["has a directory \"stray\"", "`mv "],
            does: Runs,
        },
        Case {
            spoils: &|site| symlink("2", site.path("kcm/pools/dp/4")).unwrap(),
            verb: "check pools",
            says: &["is a symbolic link", "`rm "],
            does: Runs,
        },
        Case {
            spoils: &|site| site.put("kcm/pools/dp/1/tasks", ""),
            verb: "check pools",
            says: &["overlaps", "`rm -r "],
            does: Runs,
        },
        Case {
            spoils: &|site| site.put("kcm/pools/dp/2/tasks", "x"),
            verb: "check pools",
            says: &["is not a pid", "correct the file by hand"],
            does: Follows(&|site| site.put("kcm/pools/dp/2/tasks", "")),
        },
        Case {
            spoils: &|site| {
                fs::create_dir(site.path("run")).unwrap();
                site.mode("run", 0o777);
            },
            verb: "check start",
            says: &["can be written by others", "`chown 0 "],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                let lock = site.path("kcm/lock").display().to_string();
                site.other("flock", &["--no-fork", &lock, "sleep", "600"]);
                std::thread::sleep(std::time::Duration::from_millis(500));
            },
            verb: "check start",
            says: &[
                "starts have to wait: the lock",
                "is held by process",
                "`kill ",
            ],
            does: Runs,
        },
    ] {
        holds(&case);
    }
}

/// A mount that is gone when it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn over(path: PathBuf, options: &str) -> Mounted {
        fs::create_dir_all(&path).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&path);
        assert!(mount.status().unwrap().success(), "mount needs root");
        Mounted(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

/// That somebody has the lock for a moment is as it should be.
#[test]
fn check_waits_for_whoever_has_the_lock() {
    let mut site = Site::new();
    let lock = site.path("kcm/lock").display().to_string();
    site.other("flock", &["--no-fork", &lock, "sleep", "1"]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(site.complaint("check start"), None);
}

#[test]
fn check_tries_what_a_start_writes() {
    let site = Site::new();
    let start = || site.complaint("check start");
    assert_eq!(start(), None);
    {
        let mounted = Mounted::over(site.path("run"), "mode=700,size=1m,nr_inodes=4");
        let (text, remedy) = start().unwrap();
        assert!(
            text.contains("write a claim") && text.contains("No space left"),
            "{text}"
        );
        assert!(remedy.contains("df -i"), "{remedy}");
        site.runs(&format!(
            "mount -o remount,nr_inodes=100 {}",
            mounted.0.display()
        ));
        assert_eq!(start(), None);
        // Full in bytes, and not in files.
        let full = site.path("run/full").display().to_string();
        site.runs(&format!("head -c 2m /dev/zero > {full} || true"));
        let (text, _) = start().unwrap();
        assert!(text.contains("No space left"), "{text}");
        site.runs(&format!("rm {full}"));
        assert_eq!(start(), None);
    }
    let copy = site.path("copy").display().to_string();
    let list = site.path("kcm/pools/dp/2");
    let mounted = Mounted::over(list, "mode=755");
    site.put("kcm/pools/dp/2/tasks", "");
    for (option, trouble) in [("ro", true), ("rw", false)] {
        site.runs(&format!(
            "mount -o remount,{option} {}",
            mounted.0.display()
        ));
        match start() {
            Some((text, remedy)) if trouble => {
                assert!(text.contains("Read-only file system"), "{text}");
                assert!(remedy.contains("read-write"), "{remedy}");
            }
            other => assert!(other.is_none() && !trouble, "{copy}: {other:?}"),
        }
    }
}

#[test]
fn check_answers_in_json_whatever_is_broken() {
    let site = Site::new();
    site.put("etc/pinfold/config.toml", "colour = 1\n");
    let output = site.pinfold("check --json");
    assert_eq!(output.status.code(), Some(1));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    let finding = &document["findings"][0];
    assert_eq!(
        (&document["faults"], &finding["what"]),
        (&1.into(), &"config".into())
    );
    assert!(finding["remedy"].as_str().unwrap().contains("mend it"));
}

/// Puts a claim that cannot be read on CPU 2, of this process.
fn unreadable(site: &Site, pid: i32, start: u64) {
    site.put(&format!("run/claims/web/{pid}-{start}.json"), "{");
    site.put("run/lists/2/x", "");
    fs::remove_file(site.path("run/lists/2/x")).unwrap();
    let target = format!("../../claims/web/{pid}-{start}.json");
    symlink(target, site.path(&format!("run/lists/2/web@{pid}-{start}"))).unwrap();
    site.put("kcm/pools/dp/2/tasks", &pid.to_string());
    site.put("run/boot", "");
    fs::remove_file(site.path("run/boot")).unwrap();
    site.mode("run", 0o700);
}

#[test]
fn an_unreadable_claim_is_freed_once_its_owner_is_gone_and_never_before() {
    holds(&Case {
        spoils: &|site| unreadable(site, 4_194_303, 77),
        verb: "check claims",
        says: &["4194303-77.json counts as held", "`pinfold reconcile"],
        does: Runs,
    });
    let mut site = Site::new();
    let pid = site.other("sleep", &["600"]);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let start: u64 = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
    unreadable(&site, pid, start);
    for start in [start, 77] {
        // One of another start time stands in tasks all the same.
        let (said, _) = site.complaint("reconcile").unwrap();
        assert!(
            said.contains(&format!("process {pid} may be its owner")),
            "{start}: {said}"
        );
        let tasks = fs::read_to_string(site.path("kcm/pools/dp/2/tasks")).unwrap();
        assert_eq!(tasks, pid.to_string());
        fs::remove_dir_all(site.path("run")).unwrap();
        unreadable(&site, pid, 77);
    }
    let child = &mut site.others[0];
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(site.complaint("reconcile"), None);
    assert!(!site.path("run/claims/web").exists());
    assert_eq!(
        fs::read_to_string(site.path("kcm/pools/dp/2/tasks")).unwrap(),
        ""
    );
}

/// A process that owns a list by another tool's hand, for as long as the test runs.
fn owned(site: &mut Site, list: &str) {
    let pid = site.other("sleep", &["600"]);
    site.put(&format!("kcm/pools/dp/{list}/tasks"), &pid.to_string());
}

fn stops(site: &mut Site) {
    for child in &mut site.others {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_request_that_is_refused_is_put_as_it_says() {
    let nothing: &dyn Fn(&mut Site) = &|_| {};
    let devices: &dyn Fn(&mut Site) = &|site| {
        site.put("sys/class/net/eth0/device/numa_node", "1\n");
        site.put("sys/bus/pci/devices/0000:00:1f.0/numa_node", "1\n");
        symlink("/dev", site.path("dev")).unwrap();
    };
    let no_caches: &dyn Fn(&mut Site) = &|site| {
        for cpu in 0..4 {
            let cache = format!("sys/devices/system/cpu/cpu{cpu}/cache");
            fs::remove_dir_all(site.path(&cache)).unwrap();
        }
    };
    for case in [
        Case {
            spoils: nothing,
            verb: "explain --pool dp --lists 3",
            says: &["too small", "ask for less, or make it larger"],
            does: Instead(&["explain --pool dp --lists 2"]),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --lists 3",
            says: &["`pinfold pool resize --help"],
            does: Follows(&|site| {
                assert_eq!(site.complaint("pool resize common 1"), None);
                assert_eq!(site.complaint("pool resize dp 3"), None);
            }),
        },
        Case {
            spoils: &|site| ["2", "3"].iter().for_each(|list| owned(site, list)),
            verb: "explain --pool dp",
            says: &["exhausted", "stop an owner"],
            does: Follows(&stops),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --numa 9",
            says: &["ask for one that there is, or drop pinfold.io/numa"],
            does: Instead(&["explain --pool dp --numa 1", "explain --pool dp"]),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --numa 0",
            says: &["ask for less, or drop pinfold.io/numa"],
            does: Instead(&["explain --pool dp"]),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool common --lists 2",
            says: &["ask for 1, or use pinfold.io/cpus"],
            does: Instead(&[
                "explain --pool common --lists 1",
                "explain --pool common --cpus 2",
            ]),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --lists 1 --cpus 1",
            says: &["cannot be used with"],
            does: Instead(&["explain --pool dp --lists 1", "explain --pool dp --cpus 1"]),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --numa spread --cache single",
            says: &["exclude each other: drop one"],
            does: Instead(&[
                "explain --pool dp --numa spread",
                "explain --pool dp --cache single",
            ]),
        },
        Case {
            spoils: no_caches,
            verb: "explain --pool dp --lists 2 --cache single",
            says: &["does not tell", "drop pinfold.io/cache"],
            does: Instead(&["explain --pool dp --lists 2"]),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --mems local",
            says: &["which NUMA nodes have memory", "drop pinfold.io/mems"],
            does: Instead(&["explain --pool dp"]),
        },
        Case {
            spoils: devices,
            verb: "explain --pool dp --near eth1",
            says: &["no block device eth1: name one of those in", "class/net"],
            does: Instead(&["explain --pool dp --near eth0"]),
        },
        Case {
            spoils: devices,
            verb: "explain --pool dp --near 0000:00:02.0",
            says: &["no PCI device 0000:00:02.0: name one that `lspci -D` lists"],
            does: Instead(&["explain --pool dp --near 0000:00:1f.0"]),
        },
        Case {
            spoils: devices,
            verb: "explain --pool dp --near /dev/nosuch",
            says: &["no device node /dev/nosuch", "name one that is in /dev"],
            does: Instead(&["explain --pool dp --near /dev/null"]),
        },
        Case {
            spoils: &|site| {
                site.put("sys/devices/card/net/eth0/x", "");
                site.put("sys/devices/card/numa_node", "many\n");
                site.put("sys/class/net/x", "");
                symlink(
                    "../../devices/card/net/eth0",
                    site.path("sys/class/net/eth0"),
                )
                .unwrap();
            },
            verb: "explain --pool dp --near eth0",
            says: &["which is not a NUMA node: drop pinfold.io/near"],
            does: Instead(&["explain --pool dp"]),
        },
        Case {
            spoils: &|site| site.put("sys/devices/system/cpu/online", "0-1\n"),
            verb: "explain --pool dp",
            says: &["put the CPUs 2-3 online"],
            does: Follows(&|site| site.put("sys/devices/system/cpu/online", "0-3\n")),
        },
        Case {
            spoils: nothing,
            verb: "explain --pool dp --lock-timeout 1e9",
            says: &["it must be from 0 to"],
            does: Instead(&["explain --pool dp"]),
        },
    ] {
        holds(&case);
    }
}

#[test]
fn pools_that_cannot_be_as_asked_are_made_as_it_says() {
    let nothing: &dyn Fn(&mut Site) = &|_| {};
    let room: &dyn Fn(&mut Site) = &|site| {
        fs::remove_dir_all(site.path("kcm/pools/dp")).unwrap();
    };
    for case in [
        Case {
            spoils: room,
            verb: "pool add y=1:exclusive --list 2",
            says: &["drop =1"],
            does: Instead(&["pool add y:exclusive --list 2"]),
        },
        Case {
            spoils: room,
            verb: "pool add y:exclusive,numa=pack --list 2",
            says: &["drop numa=, cache= and cores=, or --list"],
            does: Instead(&["pool add y:exclusive --list 2"]),
        },
        Case {
            spoils: room,
            verb: "pool add y:exclusive --list 2 --list 2-3",
            says: &["CPU 2 is in two of the lists: give each CPU to one list"],
            does: Instead(&["pool add y:exclusive --list 2 --list 3"]),
        },
        Case {
            spoils: room,
            verb: "pool add y:exclusive --list 2 --list 5",
            says: &["CPU 5 is not online", "or leave it out"],
            does: Instead(&["pool add y:exclusive --list 2"]),
        },
        Case {
            spoils: &|site| {
                fs::remove_dir_all(site.path("kcm/pools/dp")).unwrap();
                site.put("sys/devices/system/cpu/online", "0-2\n");
            },
            verb: "pool add y:exclusive --list 3",
            says: &["put it online in /sys/devices/system/cpu first"],
            does: Follows(&|site| site.put("sys/devices/system/cpu/online", "0-3\n")),
        },
        Case {
            spoils: &|site| fs::remove_dir_all(site.path("kcm/pools/common")).unwrap(),
            verb: "pool add dp:exclusive --list 1",
            says: &["with other lists: name the new one otherwise, or remove the old one"],
            does: Runs,
        },
        Case {
            spoils: &|site| fs::remove_dir_all(site.path("kcm/pools/common")).unwrap(),
            verb: "pool add dp:exclusive --list 1",
            says: &["name the new one otherwise"],
            does: Instead(&["pool add other:exclusive --list 1"]),
        },
        Case {
            spoils: nothing,
            verb: "pool add dp=1:shared",
            says: &["it is exclusive: name the new one otherwise, or remove the old one"],
            does: Runs,
        },
        Case {
            spoils: nothing,
            verb: "pool remove gone",
            says: &["there is no pool", "dp"],
            does: Instead(&["pool remove gone --if-exists", "pool remove dp"]),
        },
        Case {
            spoils: nothing,
            verb: "pool resize gone 1",
            says: &["there is no pool", "pinfold pool add gone=1:exclusive"],
            does: Instead(&["pool resize dp 1"]),
        },
        Case {
            spoils: &|site| owned(site, "2"),
            verb: "pool remove dp",
            says: &["owns 2 of pool dp", "stop it first"],
            does: Follows(&stops),
        },
        Case {
            spoils: &|site| ["2", "3"].iter().for_each(|list| owned(site, list)),
            verb: "pool resize dp 1",
            says: &["lists with owners stay", "stop them first"],
            does: Follows(&stops),
        },
        Case {
            spoils: nothing,
            verb: "init --pool x=1:exclusive",
            says: &["has other pools already", "add --force"],
            does: Instead(&["init --force --pool x=1:exclusive"]),
        },
        Case {
            spoils: &|site| owned(site, "2"),
            verb: "init --force --pool x=1:exclusive",
            says: &["owns CPUs in", "stop it first"],
            does: Follows(&stops),
        },
        Case {
            spoils: nothing,
            verb: "init --force --pool a=1:exclusive --pool a=1:shared",
            says: &["asked for twice: give each a name of its own"],
            does: Instead(&["init --force --pool a=1:exclusive --pool b=1:shared"]),
        },
        Case {
            spoils: nothing,
            verb: "init --force --pool a=rest:shared --pool b=rest:shared",
            says: &["two pools are to get the rest", "give one a number"],
            does: Instead(&["init --force --pool a=1:shared --pool b=rest:shared"]),
        },
        Case {
            spoils: nothing,
            verb: "init --force --pool a=9:exclusive",
            says: &["too few", "ask for"],
            does: Instead(&["init --force --pool a=2:exclusive"]),
        },
    ] {
        holds(&case);
    }
}

#[test]
fn directories_and_files_are_put_right_as_it_says() {
    let no_pools: &dyn Fn(&mut Site) = &|site| fs::remove_dir_all(site.path("kcm")).unwrap();
    for case in [
        Case {
            spoils: no_pools,
            verb: "status",
            says: &["does not exist: make it: `pinfold init"],
            does: Runs,
        },
        Case {
            spoils: &|site| fs::remove_dir_all(site.path("kcm/pools")).unwrap(),
            verb: "status",
            says: &["half-made", "make it: `pinfold init"],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                let path = site.path("kcm/pools");
                fs::read_dir(path).unwrap().for_each(|pool| {
                    fs::remove_dir_all(pool.unwrap().path()).unwrap();
                });
            },
            verb: "check pools",
            says: &["has no pool: make some: `pinfold init"],
            does: Runs,
        },
        Case {
            spoils: &|site| fs::remove_file(site.path("kcm/lock")).unwrap(),
            verb: "reconcile",
            says: &["half-made", "make its lock: `install -m 600 /dev/null"],
            does: Runs,
        },
        Case {
            spoils: &|site| site.put("run", ""),
            verb: "reconcile",
            says: &["is not a directory", "move it away: `mv "],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                fs::create_dir(site.path("run")).unwrap();
                site.mode("run", 0o777);
            },
            verb: "reconcile",
            says: &["can be written by others: `chown 0 "],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                let exclusive = site.path("kcm/pools/dp/exclusive");
                fs::remove_file(&exclusive).unwrap();
                fs::create_dir(exclusive).unwrap();
                site.mode("kcm/pools/dp/exclusive", 0o755);
            },
            verb: "explain --pool dp",
            says: &["is not a regular file", "`rm -r "],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                site.mode("kcm/pools/dp", 0o775);
                let pool = site.path("kcm/pools/dp");
                std::os::unix::fs::chown(pool, None, Some(1234)).unwrap();
            },
            verb: "check pools",
            says: &["can be written by the group", "`chmod g-w "],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                site.put("real/x", "");
                fs::rename(site.path("kcm"), site.path("real/kcm")).unwrap();
                symlink("real/kcm", site.path("kcm")).unwrap();
                std::os::unix::fs::lchown(site.path("kcm"), Some(1234), None).unwrap();
            },
            verb: "check pools",
            says: &[
                "belongs to uid 1234, who can let it lead elsewhere",
                "`chown -h ",
            ],
            does: Runs,
        },
        Case {
            spoils: &|site| std::os::unix::fs::chown(site.dir.path(), Some(1234), None).unwrap(),
            verb: "check pools",
            says: &["belongs to uid 1234, who can replace what is in it"],
            does: Runs,
        },
        Case {
            spoils: &|site| {
                use std::os::unix::ffi::OsStrExt;
                let name = std::ffi::OsStr::from_bytes(b"kcm/pools/dp/\xff");
                fs::create_dir(site.dir.path().join(name)).unwrap();
            },
            verb: "explain --pool dp",
            says: &["is not UTF-8: move it away"],
            does: Follows(&|site| {
                let path = site.path("kcm/pools/dp").display().to_string();
                site.runs(&format!("rmdir {path}/*[!0-9a-z]"));
            }),
        },
        Case {
            spoils: &|site| symlink("dp", site.path("kcm/pools/other")).unwrap(),
            verb: "status",
            says: &["other is a symbolic link", "or take it away: `rm "],
            does: Runs,
        },
        Case {
            spoils: &|site| site.put("kcm/pools/new/exclusive", "1"),
            verb: "check pools",
            says: &["has no CPU list", "`pinfold pool remove new"],
            does: RunsNth(1),
        },
        Case {
            spoils: &|site| {
                site.put("kcm/pools/new/exclusive", "1");
                fs::remove_dir_all(site.path("kcm/pools/common")).unwrap();
            },
            verb: "check pools",
            says: &["has no CPU list", "`pinfold pool resize new 1"],
            does: Runs,
        },
        Case {
            spoils: &|site| site.put("kcm/pools/dp/2/tasks", "4194303"),
            verb: "check pools",
            says: &["held by dead owners", "`pinfold reconcile"],
            does: Runs,
        },
        Case {
            spoils: &|_| {},
            verb: "status --config /nowhere/pinfold.toml",
            says: &["does not exist: make it, or name another with --config"],
            does: Instead(&["status"]),
        },
        Case {
            spoils: &|_| {},
            verb: "status --config /dev/null",
            says: &["is neither a file nor a directory", "or name another"],
            does: Instead(&["status"]),
        },
        Case {
            spoils: &|site| site.put("etc/pinfold/config.toml", "colour = 1\n"),
            verb: "status",
            says: &["line 1", "mend it there"],
            does: Follows(&|site| site.put("etc/pinfold/config.toml", "lock-timeout = 1\n")),
        },
    ] {
        holds(&case);
    }
}

#[test]
fn what_another_tool_has_is_given_back_by_its_end() {
    let mut site = Site::new();
    owned(&mut site, "2");
    let (said, _) = site.complaint("release nobody").unwrap();
    assert!(said.contains("no owner is called"), "{said}");
    site.runs(commands(&said)[0]);
    let pid = site.others[0].id();
    let (said, _) = site.complaint(&format!("release pid:{pid}")).unwrap();
    assert!(said.contains("let that tool give it back"), "{said}");
    stops(&mut site);
    site.runs(commands(&said)[0]);
    let tasks = fs::read_to_string(site.path("kcm/pools/dp/2/tasks"));
    assert_eq!(tasks.unwrap(), "");
}

#[test]
fn a_pool_with_a_level_for_sockets_is_taken_away() {
    let site = Site::new();
    fs::remove_file(site.path("kcm/pools/dp/2/tasks")).unwrap();
    site.put("kcm/pools/dp/2/3/tasks", "");
    let (said, _) = site.complaint("explain --pool dp").unwrap();
    assert!(said.contains("a level for sockets"), "{said}");
    site.runs(commands(&said)[0]);
    assert_eq!(site.complaint("pool add dp=1:exclusive"), None);
}
