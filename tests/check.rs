//! `pinfold check` on a tree that stands in for a machine where all is well, and with one thing
//! broken at a time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;

use common::Machine;
use serde_json::{Value, json};

/// A handler as `pinfold install containerd` writes it, for a version that it knows.
const CONTAINERD_BY_HAND: &str = r#"version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.pinfold]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["pinfold.io/*"]
container_annotations = ["pinfold.io/*"]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.pinfold.options]
BinaryName = "/usr/local/bin/pinfold-runtime"
"#;

const CRON: &str = "etc/cron.d/pinfold";

const HOOKS: &str = "usr/share/containers/oci/hooks.d";

/// A machine with two pools and four engines that all know Pinfold.
fn all_is_well() -> Machine {
    let machine = Machine::without_pools();
    for (path, content) in [
        ("etc/kcm/lock", ""),
        ("etc/kcm/pools/dp/exclusive", "1"),
        ("etc/kcm/pools/dp/2/tasks", ""),
        ("etc/kcm/pools/dp/3/tasks", ""),
        ("etc/kcm/pools/cp/exclusive", "0"),
        ("etc/kcm/pools/cp/0-1/tasks", ""),
        (CRON, "*/5 * * * * root /usr/bin/pinfold reconcile\n"),
    ] {
        machine.put(path, content);
    }
    machine.mode("etc/kcm/lock", 0o600);
    for engine in ["podman", "crio", "containerd", "docker"] {
        machine.install(engine);
    }
    machine
}

impl Machine {
    fn edit(&self, name: &str, from: &str, to: &str) {
        let text = fs::read_to_string(self.path(name)).unwrap();
        assert!(text.contains(from), "{name}: {text}");
        self.put(name, &text.replace(from, to));
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    fn update_devices(&self) {
        let output = self.pinfold(&["cdi", "--bin-dir", "/usr/local/bin"]);
        assert!(output.status.success(), "{output:?}");
    }

    fn install(&self, engine: &str) {
        let output = self.pinfold(&["install", engine, "--bin-dir", "/usr/local/bin"]);
        assert!(output.status.success(), "{output:?}");
    }

    /// What is found besides what is well, as `level what: text: remedy`; and the exit code.
    fn findings(&self, more: &[&str]) -> (Vec<String>, i32) {
        let output = self.pinfold(&[&["check", "--json"], more].concat());
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = document["findings"].as_array().unwrap().iter();
        let bad = findings
            .filter(|finding| finding["level"] != "ok")
            .map(|finding| {
                let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
                format!(
                    "{} {}: {}: {}",
                    text("level"),
                    text("what"),
                    text("text"),
                    text("remedy")
                )
            });
        // The directories that were named stand in each command; here they are always the same.
        let named = format!(" --host-root {}", self.dir.path().display());
        let bad: Vec<String> = bad.map(|line| line.replace(&named, "")).collect();
        let count = |level: &str| bad.iter().filter(|line| line.starts_with(level)).count();
        assert_eq!(document["faults"], count("fault"));
        assert_eq!(document["warnings"], count("warning"));
        (bad, output.status.code().unwrap())
    }
}

/// Programs that do what a remedy says on the files of the tree alone.
const ON_FILES: [&str; 7] = ["chmod", "chown", "mv", "rm", "install", "printf", "mkdir"];

/// Does the first command of a remedy, as a shell does, where it is about files; was there one?
fn does(machine: &Machine, remedy: &str) -> bool {
    let Some(command) = remedy.split('`').nth(1) else {
        return false;
    };
    let program = command.split_whitespace().next().unwrap_or_default();
    // The verbs that act on processes do so on no tree: `tests/remedies.rs` and `tests/real` do
    // what these say.
    let is_install = |verb: &&str| command.starts_with(&format!("pinfold {verb}"));
    if !ON_FILES.contains(&program) && !["install", "cdi"].iter().any(is_install) {
        return false;
    }
    let own = PathBuf::from(env!("CARGO_BIN_EXE_pinfold"));
    let path = format!("{}:/usr/bin:/bin", own.parent().unwrap().display());
    let mut command = match program {
        // What is shown has the directories that were named, but for the tests' convenience.
        "pinfold" => format!("{command} --host-root {}", machine.dir.path().display()),
        _ => command.to_owned(),
    };
    // Where the programs of the tree are.
    if ["pinfold install ", "pinfold cdi "]
        .iter()
        .any(|verb| command.starts_with(verb))
    {
        command += " --bin-dir /usr/local/bin";
    }
    let output = Command::new("sh")
        .args(["-c", &command])
        .env("PATH", path)
        .output();
    let output = output.unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    true
}

/// Breaks one thing, and expects just one finding: its beginning, and a part of its text or remedy.
/// The command in it is done, and then nothing is found.
#[track_caller]
fn broken(break_it: impl Fn(&Machine), expected: &str, part: &str) {
    let left = after_commands(&all_is_well(), break_it, expected, part);
    assert_eq!(left, [""; 0], "no command helps");
}

/// The same where no command is named, or not for a tree: somebody does in one of these ways what
/// it says, and then nothing is found.
#[track_caller]
fn broken_and_mended(
    break_it: impl Fn(&Machine),
    expected: &str,
    part: &str,
    ways: &[&dyn Fn(&Machine)],
) {
    for mend in ways {
        let machine = all_is_well();
        let left = after_commands(&machine, &break_it, expected, part);
        assert!(!left.is_empty(), "a command helps");
        mend(&machine);
        let (after, _) = machine.findings(&[]);
        assert_eq!(after, [""; 0], "after {left:#?}");
    }
}

/// Of CRI-O, which no test starts.
const NOWHERE: &str = "";

/// The same where it takes real containers or processes: a test in `tests/real` does it.
#[track_caller]
fn broken_as_in(break_it: impl Fn(&Machine), expected: &str, part: &str, test: &str) {
    let left = after_commands(&all_is_well(), break_it, expected, part);
    assert!(!left.is_empty(), "a command helps");
    if test == NOWHERE {
        return;
    }
    let (file, name) = test.split_once("::").unwrap();
    let path = format!("{}/tests/real/cases/{file}.rs", env!("CARGO_MANIFEST_DIR"));
    let tests = fs::read_to_string(path).unwrap();
    let is_there = [test, name]
        .iter()
        .any(|name| tests.contains(&format!("\"{name}\"")));
    assert!(is_there, "no test {test}");
}

/// Breaks one thing, does what is said by commands on files, and returns what is found then.
#[track_caller]
fn after_commands(
    machine: &Machine,
    break_it: impl Fn(&Machine),
    expected: &str,
    part: &str,
) -> Vec<String> {
    break_it(machine);
    let (found, code) = machine.findings(&[]);
    assert_eq!(found.len(), 1, "{expected} {part}: {found:#?}");
    assert!(
        found[0].starts_with(expected) && found[0].contains(part),
        "{expected} {part}: {found:#?}"
    );
    assert_eq!(code, i32::from(expected.starts_with("fault")), "{found:#?}");
    let mut said = found;
    while !said.is_empty() && does(machine, &said[0]) {
        let (after, _) = machine.findings(&[]);
        // One thing after the other: what is moved away, say, has to be made.
        let is_another = after.iter().all(|finding| !said.contains(finding));
        assert!(
            is_another && after.len() <= 1,
            "after {said:#?}: {after:#?}"
        );
        said = after;
    }
    said
}

#[test]
fn where_all_is_well_every_line_is_ok() {
    let machine = all_is_well();
    let output = machine.pinfold(&["check"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.lines().all(|line| line.starts_with("ok ")), "{text}");
    for part in [
        "version 2",
        "257",
        "pool \"dp\", exclusive",
        "machine.slice",
        "isolcpus",
        "podman ",
        "crio ",
        "containerd ",
        "docker ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn other_pools_of_the_same_cpus() {
    broken_and_mended(
        |m| {
            m.put("etc/cmk/pools/dp/exclusive", "1");
            m.put("etc/cmk/pools/dp/3/tasks", "");
            m.put("etc/cmk/lock", "");
        },
        "warning pools",
        "etc/cmk has the CPUs 3 in exclusive pools, too",
        &[
            &|m| fs::remove_dir_all(m.path("etc/cmk/pools/dp")).unwrap(),
            &|m| fs::remove_dir_all(m.path("etc/cmk")).unwrap(),
        ],
    );
    // One that has others is nobody's trouble, and so is one that cannot be read.
    for list in ["1", "no list"] {
        let machine = all_is_well();
        machine.put("etc/cmk/pools/dp/exclusive", "1");
        machine.put(&format!("etc/cmk/pools/dp/{list}/tasks"), "");
        assert_eq!(machine.findings(&[]).0, [""; 0], "{list}");
    }
}

#[test]
fn a_partition_of_the_operators_own() {
    let machine = all_is_well();
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-1\n");
    machine.put("sys/fs/cgroup/fast.slice/cpuset.cpus.effective", "2-3\n");
    let kind = "sys/fs/cgroup/fast.slice/cpuset.cpus.partition";
    for (text, is_one) in [("root\n", true), ("isolated\n", true), ("member\n", false)] {
        machine.put(kind, text);
        let (found, _) = machine.findings(&[]);
        assert_eq!(found.is_empty(), is_one, "{text}: {found:#?}");
    }
    machine.put(
        kind,
        "root invalid (Cpu list in cpuset.cpus not exclusive)\n",
    );
    assert_eq!(machine.findings(&[]).0.len(), 1);
    machine.put(kind, "root\n");
    let text = String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
    assert!(text.contains("--cgroup-parent fast.slice"), "{text}");
}

/// A container's topmost cgroup is its own.
#[test]
fn init_in_a_container() {
    let machine = all_is_well();
    machine.put("sys/fs/cgroup/cpuset.cpus", "1-2\n");
    machine.put("sys/fs/cgroup/cpuset.cpus.effective", "1-2\n");
    let pools = machine.path("pools");
    let pools = pools.to_str().unwrap();
    let init = [
        "init",
        "--conf-dir",
        pools,
        "--dry-run",
        "--pool",
        "all=rest:shared",
    ];
    let ran = machine.pinfold(&init);
    let (said, warned) = (
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr),
    );
    assert!(said.contains("shared  1      1\n"), "{said} {warned}");
    assert!(warned.contains("allows the CPUs 1-2 alone"), "{warned}");
}

#[test]
fn sysfs_that_does_not_tell() {
    let cpu = |file: &str| format!("sys/devices/system/cpu/{file}");
    broken_and_mended(
        |m| m.put(&cpu("online"), "\n"),
        "fault topology",
        "names no CPU",
        &[&|m| m.put(&cpu("online"), "0-3\n")],
    );
    broken_and_mended(
        |m| {
            (0..4).for_each(|n| fs::remove_dir_all(m.path(&cpu(&format!("cpu{n}/cache")))).unwrap())
        },
        "warning topology",
        "cpu*/cache is missing, or tells nothing (0-3)",
        &[&|m| {
            for n in 0..4 {
                for (file, text) in [
                    ("shared_cpu_list", "0-3\n"),
                    ("level", "3\n"),
                    ("size", "16384K\n"),
                ] {
                    m.put(&cpu(&format!("cpu{n}/cache/index3/{file}")), text);
                }
            }
        }],
    );
    // What another file tells is no warning, and is named all the same.
    let machine = all_is_well();
    machine.put("sys/devices/system/node/has_cpu", "\n");
    machine.put(&cpu("isolated"), "(null)\n");
    assert_eq!(machine.findings(&[]).0, [""; 0]);
    let text = String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
    assert!(text.contains("node/has_cpu is empty"), "{text}");
}

#[test]
fn the_machine() {
    broken_and_mended(
        |m| m.put("proc/1/mountinfo", "1 2 0:3 / /proc rw - proc proc rw\n"),
        "fault cgroup",
        "mount cgroup2",
        &[&|m| {
            m.put(
                "proc/1/mountinfo",
                "40 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            );
        }],
    );
    broken_and_mended(
        |m| m.put("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
        "fault cgroup",
        "cgroup_disable",
        &[&|m| m.put("sys/fs/cgroup/cgroup.controllers", "cpuset cpu\n")],
    );
    broken_and_mended(
        |m| m.put("proc/sys/kernel/osrelease", "4.19.0\n"),
        "fault cgroup",
        "5.0",
        &[&|m| m.put("proc/sys/kernel/osrelease", "5.0.0\n")],
    );
    broken_as_in(
        |m| m.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-2\n"),
        "warning pools",
        "/machine.slice does not allow the CPUs 3",
        "masks::a_parent_without_its_cpus_is_named",
    );
    broken_and_mended(
        |m| {
            m.remove("usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so");
            m.put("usr/lib/systemd/libsystemd-shared-239.so", "");
        },
        "warning systemd",
        "239",
        &[&|m| {
            m.remove("usr/lib/systemd/libsystemd-shared-239.so");
            m.put("usr/lib/systemd/libsystemd-shared-244.so", "");
        }],
    );
    broken_and_mended(
        |m| m.put("proc/cmdline", "isolcpus=3\n"),
        "warning isolation",
        "the CPUs 2 of exclusive pools",
        &[&|m| m.put("proc/cmdline", "isolcpus=2,3\n")],
    );
}

/// The owner of list 2 in a pool with `isolation=root`, on a kernel that makes partitions. Its
/// group's partition file has this text.
fn isolated_owner(machine: &Machine, state: &str) {
    machine.put("proc/cmdline", "quiet\n");
    machine.put("proc/sys/kernel/osrelease", "7.2.0\n");
    machine.put("etc/kcm/pools/dp/isolation", "root");
    for file in ["cpuset.cpus", "cpuset.mems", "cpuset.cpus.exclusive"] {
        machine.put(&format!("sys/fs/cgroup/machine.slice/{file}"), "\n");
    }
    claim(machine, "this-boot", "2");
    machine.put(
        "sys/fs/cgroup/machine.slice/web/cpuset.cpus.exclusive",
        "\n",
    );
    machine.put(PARTITION, state);
}

const PARTITION: &str = "sys/fs/cgroup/machine.slice/web/cpuset.cpus.partition";

#[test]
fn a_live_owner_whose_partition_does_not_stand() {
    let alone = "others can run on 2 of pool \"dp\", which \"web\" has by its mask alone: ";
    let stands = |m: &Machine| m.put(PARTITION, "root\n");
    for state in ["root invalid\n", "member\n", "root invalid (x)\n"] {
        broken_and_mended(
            |m| isolated_owner(m, state),
            "warning isolation",
            &format!("{alone}it started before"),
            &[&stands],
        );
    }
    broken_and_mended(
        |m| {
            isolated_owner(m, "root invalid\n");
            m.put("etc/kcm/pools/dp/isolation-needed", "yes");
        },
        "fault isolation",
        alone,
        &[&stands],
    );
    // A kernel on which another container could break it, as runc's are.
    broken_and_mended(
        |m| {
            isolated_owner(m, "member\n");
            m.put("proc/sys/kernel/osrelease", "6.12.1\n");
        },
        "warning isolation",
        &format!("{alone}on Linux 6.12.1 another container of \"/machine.slice\" could break"),
        &[&stands],
    );
    broken_and_mended(
        |m| {
            isolated_owner(m, "root invalid (x)\n");
            m.put("sys/fs/cgroup/machine.slice/other/cpuset.cpus", "2\n");
            m.put("sys/fs/cgroup/machine.slice/other/cpuset.mems", "\n");
        },
        "warning isolation",
        "machine.slice/other/cpuset.cpus names 2: give those CPUs",
        &[&stands],
    );
    let recorded = |m: &Machine| {
        isolated_owner(m, "root invalid (x)\n");
        let owner = json!({
            "group": "/machine.slice/web", "inode": 7, "above": ["/machine.slice"], "cpus": "2",
            "kind": "root", "run_dir": "/run/pinfold",
        });
        let records = json!({
            "version": 1, "boot_id": "this-boot", "owners": [owner], "changes": [],
        });
        m.put("run/pinfold-machine/changes", &records.to_string());
    };
    broken_and_mended(
        recorded,
        "warning isolation",
        "says \"root invalid (x)\": `pinfold reconcile` makes it again",
        &[&stands],
    );
    // Nothing is wrong with the owner, and its end could not be undone.
    broken_and_mended(
        |m| {
            isolated_owner(m, "root\n");
            m.put("run/pinfold-machine/changes", "{torn");
        },
        "fault isolation",
        "run/pinfold-machine/changes",
        &[&|m| m.remove("run/pinfold-machine/changes")],
    );
    // What others are kept off is told of the other list alone.
    let machine = all_is_well();
    isolated_owner(&machine, "root invalid\n");
    let said = |machine: &Machine| String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
    assert!(said(&machine).contains("the kernel keeps others off 3 while"));
    stands(&machine);
    assert!(said(&machine).contains("the kernel keeps others off 2-3 while"));
    // What was isolated at boot is kept for its owner all the same.
    machine.put(PARTITION, "member\n");
    machine.put("proc/cmdline", "isolcpus=2\n");
    machine.put("etc/kcm/pools/dp/isolation", "isolated");
    assert_eq!(machine.findings(&[]).0, [""; 0]);
    let document =
        |verb: &[&str]| -> Value { serde_json::from_slice(&machine.pinfold(verb).stdout).unwrap() };
    let owner = &document(&["status", "--json"])["owners"][0];
    assert_eq!(owner["isolation"], "isolcpus");
    let lists = &document(&["describe", "--json"])["pools"]["dp"]["cpuLists"];
    let said = |list: &str| lists[list]["isolation"].as_str().map(str::to_owned);
    assert_eq!(
        (said("2").as_deref(), said("3").as_deref()),
        (Some("isolcpus"), Some("none"))
    );
    machine.put("proc/cmdline", "quiet\n");
    machine.put("etc/kcm/pools/dp/isolation", "root");
    // A machine that cannot do it for anybody says so once.
    machine.put(PARTITION, "member\n");
    machine.remove("sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive");
    machine.remove("sys/fs/cgroup/machine.slice/web/cpuset.cpus.exclusive");
    let (found, _) = machine.findings(&[]);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].contains("the owners of 2-3 have them by their masks alone: Linux 7.2.0"));
    machine.put("etc/kcm/pools/dp/isolation-needed", "yes");
    assert!(machine.findings(&[]).0[0].starts_with("fault isolation: the owners of 2-3"));
}

/// By a program that died, or one that has not made its partition yet.
#[test]
fn exclusive_cpus_that_are_no_partitions() {
    let file = |group: &str, file: &str| format!("sys/fs/cgroup/{group}/cpuset.cpus.{file}");
    let slice = file("user.slice", "exclusive");
    let held = |m: &Machine| {
        isolated_owner(m, "root\n");
        m.put(&file("machine.slice", "exclusive"), "2\n");
        m.put(&file("machine.slice/web", "exclusive"), "2\n");
        m.put(&slice, "0,3\n");
    };
    let says = "cpuset.cpus.exclusive\" keeps 3 of pool \"dp\" from being its owners' alone";
    let away: &dyn Fn(&Machine) = &|m| m.put(&slice, "0\n");
    // Of a partition somewhere below.
    let partition: &dyn Fn(&Machine) = &|m| {
        m.put(&file("user.slice/rt", "exclusive"), "3\n");
        m.put(&file("user.slice/rt", "partition"), "isolated\n");
        m.put(&file("user.slice/rt", "effective"), "3\n");
    };
    broken_and_mended(held, "warning isolation", says, &[away, partition]);
    // Whoever is below does not find them in its way, whatever its pool needs.
    broken_and_mended(
        |m| {
            held(m);
            m.put("etc/kcm/pools/dp/isolation-needed", "yes");
        },
        "warning isolation",
        "unless their cgroups are below \"/user.slice\"",
        &[away, partition],
    );
    let machine = all_is_well();
    held(&machine);
    let kept_off = |machine: &Machine, cpus: &str| {
        let said = String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
        let others: Vec<&str> = said
            .lines()
            .filter(|one| one.contains("others off"))
            .collect();
        let expected = format!("the kernel keeps others off {cpus} while they are owned");
        assert_eq!(others.len(), 1, "{said}");
        assert!(others[0].contains(&expected), "{said}");
    };
    kept_off(&machine, "2");
    // Where they are in an owner's way, the owner is told of alone.
    machine.put(&file("machine.slice", "exclusive"), "\n");
    machine.put(&file("machine.slice/web", "exclusive"), "\n");
    machine.put(&slice, "2\n");
    machine.put(PARTITION, "root invalid\n");
    let (found, _) = machine.findings(&[]);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains("user.slice/cpuset.cpus.exclusive names 2"));
    kept_off(&machine, "3");
}

/// What is recorded tells whose exclusive CPUs are.
#[test]
fn exclusive_cpus_that_were_found_or_written() {
    let file = |group: &str| format!("sys/fs/cgroup/{group}/cpuset.cpus.exclusive");
    let machine = all_is_well();
    isolated_owner(&machine, "root\n");
    machine.put("etc/kcm/pools/dp/isolation-needed", "yes");
    machine.put(&file("machine.slice"), "2-3\n");
    machine.put(&file("machine.slice/web"), "2\n");
    let owner = r#"{"group":"/machine.slice/web","inode":1,"above":["/machine.slice"],
        "cpus":"2","kind":"root","run_dir":"/run/pinfold"}"#;
    let found_by = |owners: &str, found: &str| {
        let records = format!(
            r#"{{"version":1,"boot_id":"this-boot","owners":[{owners}],"changes":[
            {{"target":{{"exclusive":"/machine.slice"}},"found":"{found}","ours":["2-3"]}},
            {{"target":{{"exclusive":"/machine.slice/web"}},"found":"","ours":["2"]}}]}}"#
        );
        machine.put("run/pinfold-machine/changes", &records);
        let (found, code) = machine.findings(&[]);
        let told = found.iter().map(|one| {
            assert!(one.starts_with("warning isolation"), "{found:#?}");
            let (_, cpus) = one.split_once(".exclusive\" keeps ").unwrap();
            let (cpus, rest) = cpus.split_once(" of pool").unwrap();
            let is_ours = rest.ends_with("`pinfold reconcile` puts it back");
            assert!(
                is_ours || rest.ends_with("who wrote it has to write others there, or nothing")
            );
            format!("{cpus} {}", if is_ours { "ours" } else { "found" })
        });
        let mut told: Vec<String> = told.collect();
        told.sort();
        assert_eq!(code, 0);
        told.join(", ")
    };
    // An operator's slice, above an owner.
    assert_eq!(found_by(owner, "2-3"), "3 found");
    // Nobody's any more, and not put back yet.
    fs::remove_dir_all(machine.path("run/pinfold/claims")).unwrap();
    machine.put("etc/kcm/pools/dp/2/tasks", "");
    machine.put(PARTITION, "root invalid\n");
    assert_eq!(found_by("", "3"), "2 ours, 2 ours, 3 found");
    // One of another pool directory, while its partition is broken.
    assert_eq!(found_by(owner, "3"), "3 found");
    assert_eq!(found_by(owner, ""), "3 ours");
    // What somebody else has written since is left to them.
    machine.put(&file("machine.slice"), "0,2-3\n");
    assert_eq!(found_by(owner, ""), "3 found");
}

#[test]
fn pools_that_no_partition_can_be_made_for() {
    let isolation = "etc/kcm/pools/dp/isolation";
    broken_and_mended(
        |m| m.put(isolation, "root"),
        "warning isolation",
        "pool \"dp\" says isolation=root, and isolcpus= has its CPUs 2-3 already, without \
         balancing load there: `pinfold pool set \"dp\" isolation=isolated`",
        &[&|m| {
            let set = m.pinfold(&["pool", "set", "dp", "isolation=isolated"]);
            assert!(set.status.success(), "{set:?}");
        }],
    );
    broken_and_mended(
        |m| {
            m.put("sys/fs/cgroup/cpuset.cpus.effective", "0-2\n");
        },
        "fault isolation",
        "the kernel has lost the CPUs 3: no group has them: reboot",
        &[&|m| m.put("sys/fs/cgroup/cpuset.cpus.effective", "0-3\n")],
    );
    broken_and_mended(
        |m| {
            m.put("proc/cmdline", "quiet\n");
            m.put("etc/kcm/pools/cp/exclusive", "1");
            m.put("etc/kcm/pools/cp/isolation", "root");
            m.put(isolation, "root");
        },
        "warning isolation",
        "pools that keep others off have all CPUs, 0-3: the last of them cannot be kept: leave",
        &[&|m| {
            m.put("etc/kcm/pools/cp/exclusive", "0");
            m.remove("etc/kcm/pools/cp/isolation");
        }],
    );
}

/// It is said when the pool is told, and not only by `check` and each start.
#[test]
fn a_pool_is_told_where_the_kernel_makes_isolated_partitions_alone() {
    let machine = all_is_well();
    let said = |arguments: &[&str]| {
        let output = machine.pinfold(arguments);
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let told =
        "isolcpus= has its CPUs 2-3 already, without balancing load there: `pinfold pool set";
    for (word, is_told) in [("root", true), ("isolated", false), ("none", false)] {
        let said = said(&["pool", "set", "dp", &format!("isolation={word}")]);
        assert_eq!(said.contains(told), is_told, "{word}: {said}");
    }
    machine.put("proc/cmdline", "isolcpus=1\n");
    let said = said(&["pool", "set", "dp", "isolation=root"]);
    assert!(!said.contains("isolcpus"), "{said}");
}

#[test]
fn owners_that_nothing_confines() {
    let confined = r#""confined":true"#;
    broken_and_mended(
        |m| {
            isolated_owner(m, "member\n");
            let path = format!("run/pinfold/claims/web/{}", claim_file(m));
            m.edit(&path, confined, r#""confined":false"#);
        },
        "warning isolation",
        "which \"web\" has in the books alone: it runs with --no-affinity",
        &[&|m| {
            let path = format!("run/pinfold/claims/web/{}", claim_file(m));
            m.edit(&path, r#""confined":false"#, confined);
            m.put(PARTITION, "root\n");
        }],
    );
    broken_and_mended(
        |m| {
            isolated_owner(m, "root\n");
            m.put("etc/kcm/pools/dp/3/tasks", "1");
            m.put(
                "proc/1/stat",
                &format!("1 (x) S 1 {}1 0 5 0\n", "0 ".repeat(15)),
            );
        },
        "warning isolation",
        "in the books alone: another tool gave it these CPUs",
        &[&|m| m.put("etc/kcm/pools/dp/3/tasks", "")],
    );
}

#[test]
fn a_slice_that_is_the_partition() {
    let slice = "sys/fs/cgroup/fast.slice/cpuset.cpus.partition";
    // A kernel that makes no partition of ours.
    let in_a_slice = |m: &Machine| {
        m.put("proc/cmdline", "quiet\n");
        m.put("proc/sys/kernel/osrelease", "6.1.0\n");
        m.put("etc/kcm/pools/dp/isolation", "root");
        m.put("etc/kcm/pools/dp/isolation-needed", "yes");
        for file in ["cpuset.cpus", "cpuset.mems"] {
            m.put(&format!("sys/fs/cgroup/machine.slice/{file}"), "\n");
        }
        m.put("sys/fs/cgroup/fast.slice/cpuset.cpus.effective", "2-3\n");
        m.put(slice, "root\n");
        m.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-1\n");
        m.put("sys/fs/cgroup/cpuset.cpus.effective", "0-1\n");
    };
    let machine = all_is_well();
    in_a_slice(&machine);
    let (found, _) = machine.findings(&[]);
    assert_eq!(found, [""; 0]);
    broken_and_mended(
        |m| {
            in_a_slice(m);
            m.put("etc/kcm/pools/dp/isolation", "isolated");
        },
        "fault isolation",
        "the slice \"/fast.slice\" balances load on its CPUs 2-3",
        &[&|m| m.put(slice, "isolated\n"), &|m| {
            m.put("etc/kcm/pools/dp/isolation", "root");
        }],
    );
}

#[test]
fn the_interrupts() {
    let irq = "proc/irq/24/smp_affinity_list";
    let are_away = |m: &Machine| {
        m.put("etc/kcm/pools/dp/irqs", "away");
        m.put(irq, "0-3\n");
        m.put("proc/irq/24/nic-rx0/x", "");
        m.put("proc/irq/25/smp_affinity_list", "0-3\n");
    };
    // Newer kernels say of which that it cannot be moved.
    broken_and_mended(
        |m| {
            are_away(m);
            m.mode(irq, 0o444);
        },
        "warning irqs",
        "of 2-3 interrupt 24 (nic-rx0) cannot be moved",
        &[&|m| m.put(irq, "0-1\n"), &|m| m.mode(irq, 0o644)],
    );
    // It was started anew since, or told something else by somebody.
    let socket = "run/irqbalance/irqbalance7.sock";
    broken_and_mended(
        |m| {
            are_away(m);
            tuned(m, &json!({"irqs_away": true}), &json!([]));
            m.put(irq, "0-1,3\n");
            m.put("proc/irq/25/smp_affinity_list", "0-1,3\n");
            m.put("run/irqbalance/x", "");
            let listener = UnixListener::bind(m.path(socket)).unwrap();
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let _ = stream.read(&mut [0; 20]).unwrap();
                    let _ = stream.write_all(b"SLEEP 10 BANNED 0000000b");
                }
            });
        },
        "warning irqs",
        "irqbalance runs, and can move interrupts back to 2",
        &[&|m| m.remove(socket)],
    );
    // What an annotation asked for, in a pool that says nothing, with and without the record of it.
    for has_record in [true, false] {
        broken_and_mended(
            |m| {
                are_away(m);
                m.remove("etc/kcm/pools/dp/irqs");
                m.put(irq, "0-3\n");
                m.mode(irq, 0o444);
                m.put("proc/irq/25/smp_affinity_list", "0-1,3\n");
                if has_record {
                    tuned(m, &json!({"irqs_away": true}), &json!([]));
                } else {
                    claim(m, "this-boot", "2");
                    let path = format!("run/pinfold/claims/web/{}", claim_file(m));
                    m.edit(
                        &path,
                        r#""since":1"#,
                        r#""tuning":{"irqs_away":true},"since":1"#,
                    );
                }
            },
            "warning irqs",
            "of 2 interrupt 24 (nic-rx0) cannot be moved",
            &[&|m| m.put(irq, "0-1\n")],
        );
    }
    broken_and_mended(
        |m| m.put("etc/kcm/pools/dp/irqs", "away"),
        "warning irqs",
        "nothing shows the interrupts",
        &[&|m| m.put(irq, "0-3\n")],
    );
    broken_and_mended(
        |m| m.put("etc/kcm/pools/dp/irqs", "off"),
        "warning pools",
        "irqs of pool",
        &[&|m| m.put("etc/kcm/pools/dp/irqs", "keep")],
    );
}

/// Records what is set for an owner of CPU 2.
fn tuned(machine: &Machine, tuning: &Value, limited: &Value) {
    let owner = json!({
        "group": "/machine.slice/web", "inode": 7, "cpus": "2", "run_dir": "/run/pinfold",
        "tuning": tuning, "limited": limited,
    });
    let text = json!({
        "version": 1, "boot_id": "this-boot", "owners": [], "changes": [], "tuned": [owner],
    });
    machine.put("run/pinfold-machine/changes", &text.to_string());
}

#[test]
fn a_limit_that_was_lifted_and_is_back() {
    let file = "sys/fs/cgroup/machine.slice/web/cpu.max";
    broken_and_mended(
        |m| {
            m.put(file, "150000 100000\n");
            let group = m
                .path("sys/fs/cgroup/machine.slice/web")
                .metadata()
                .unwrap();
            let limited = json!([{"path": "/machine.slice/web", "inode": group.ino()}]);
            tuned(m, &json!({"quota_lifted": true}), &limited);
        },
        "warning quota",
        "machine.slice/web/cpu.max to 150000 100000 since",
        &[&|m| m.put(file, "max 100000\n")],
    );
}

const CONFIG: &str = "etc/pinfold/config.toml";

#[test]
fn the_default_pool() {
    let machine = all_is_well();
    let say = |pool: &str| machine.put(CONFIG, &format!("[host]\ndefault-pool = '{pool}'\n"));
    say("cp");
    let (found, code) = machine.findings(&[]);
    let part = "is not run for containers that ask for nothing";
    let of_hooks = found.iter().filter(|line| line.contains(part));
    assert_eq!(
        (of_hooks.count(), found.len(), code),
        (4, 4, 0),
        "{found:#?}"
    );
    for engine in ["podman", "crio"] {
        machine.install(engine);
    }
    assert_eq!(machine.findings(&[]), (vec![], 0));
    for (pool, part) in [
        ("dp", "\"dp\", which is exclusive"),
        (
            "gone",
            "\"gone\", which is not there: containers that ask for nothing start outside",
        ),
    ] {
        say(pool);
        let (found, code) = machine.findings(&[]);
        assert!(found[0].starts_with("fault default-pool: "), "{found:#?}");
        assert!(found[0].contains(part), "{found:#?}");
        assert_eq!((found.len(), code), (1, 1));
    }
    machine.put(
        CONFIG,
        "[host]\ndefault-pool = 'gone'\ndefault-pool-needed = true\n",
    );
    let (found, _) = machine.findings(&[]);
    assert!(
        found[0].contains("no container that asks for nothing starts"),
        "{found:#?}"
    );
}

#[test]
fn where_the_host_may_run() {
    let machine = all_is_well();
    let docker = "docker has its containers in system.slice";
    let of_slice = "sys/fs/cgroup/system.slice/cpuset.cpus.effective";
    machine.put(CONFIG, "[host]\nconfine = 'pools'\n");
    machine.put(of_slice, "0-3\n");
    let (found, _) = machine.findings(&[]);
    let part = "warning confine: \"system.slice\" has the CPUs 2-3 of exclusive pools: `pinfold \
                reconcile`";
    assert!(found.len() == 1 && found[0].starts_with(part), "{found:#?}");
    machine.put(of_slice, "0-1\n");
    let all = ["system.slice", "user.slice", "init.scope"];
    let away = all
        .map(|unit| format!(r#"{{"unit":"{unit}","cpus":"2-3"}}"#))
        .join(",");
    let records = format!(
        r#"{{"version":1,"boot_id":"this-boot","away":[{{"conf_dir":"{}","units":[{away}]}}],
            "narrowed":[]}}"#,
        machine.path("etc/kcm").display()
    );
    machine.put("run/pinfold-machine/units", &records);
    let (found, _) = machine.findings(&[]);
    assert!(found.len() == 1 && found[0].contains(docker), "{found:#?}");
    // pinfold.slice is trusted to hold pinned containers alone: it is no default of an engine.
    let offered = found[0].split("\"cgroup-parent\": ").nth(1);
    let slice = offered.and_then(|rest| rest.split('"').nth(1)).unwrap();
    assert_eq!(slice, "containers.slice", "{found:#?}");
    assert!(found[0].contains("`docker run --cgroup-parent pinfold.slice`"));
    let text = fs::read_to_string(machine.path("etc/docker/daemon.json")).unwrap();
    let mended = text.replacen('{', &format!("{{\"cgroup-parent\": \"{slice}\","), 1);
    machine.put("etc/docker/daemon.json", &mended);
    assert_eq!(machine.findings(&[]), (vec![], 0));
    let text = String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
    let well = "system.slice, user.slice, init.scope are kept off 2-3";
    assert!(text.contains(well), "{text}");
    let says = |part: &str| {
        let (found, _) = machine.findings(&[]);
        found.iter().any(|line| line.contains(part))
    };
    fs::remove_dir_all(machine.path("run/systemd")).unwrap();
    assert!(says(
        "systemd is not the init, and nobody is moved: boot with isolcpus="
    ));
    machine.put(
        "proc/1/mountinfo",
        "40 30 0:28 / /sys/fs/cgroup rw - cgroup cgroup rw,cpuset\n",
    );
    assert!(says("on cgroup version 1, and nobody is moved"));
    machine.put(CONFIG, "");
    assert!(!says("nobody is moved"));
    assert!(says(
        "the host's units are still kept off CPUs of exclusive pools"
    ));
}

#[test]
fn the_power_of_cpus() {
    let of_cpu = "sys/devices/system/cpu/cpu2";
    let governor = format!("{of_cpu}/cpufreq/scaling_governor");
    broken_and_mended(
        |m| m.put("etc/kcm/pools/dp/governor", "performance"),
        "warning power",
        "CPU 2 has no cpufreq",
        &[&|m| m.put(&governor, "powersave\n"), &|m| {
            m.put("etc/kcm/pools/dp/governor", "keep");
        }],
    );
    let available = format!("{of_cpu}/cpufreq/scaling_available_governors");
    broken_and_mended(
        |m| {
            m.put("etc/kcm/pools/dp/governor", "performance");
            m.put(&governor, "powersave\n");
            m.put(&available, "powersave\n");
        },
        "warning power",
        "has no governor \"performance\", but powersave",
        &[&|m| m.put(&available, "performance powersave\n")],
    );
    let latency = format!("{of_cpu}/power/pm_qos_resume_latency_us");
    broken_and_mended(
        |m| m.put("etc/kcm/pools/dp/resume-latency", "n/a"),
        "warning power",
        "how long CPU 2 takes to wake",
        &[&|m| m.put(&latency, "0\n")],
    );
}

/// A request is told beforehand what the start says of others on its CPUs.
#[test]
fn what_explain_says_of_others() {
    let machine = all_is_well();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        machine.put(&format!("sys/fs/cgroup/machine.slice/{file}"), "\n");
    }
    machine.put("etc/kcm/pools/dp/isolation", "root");
    let explained = |more: &[&str]| {
        let output = machine.pinfold(&[&["explain", "--pool", "dp"], more].concat());
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let others = "others can run on 2 of pool dp, which it would have by its mask alone: Linux \
                  6.12.1-amd64 cannot keep others off";
    // CPUs of `isolcpus=` do, where no more is needed.
    let (code, out, _) = explained(&[]);
    assert!(code == Some(0) && !out.contains(others), "{out}");
    machine.put("proc/cmdline", "quiet\n");
    let (code, out, _) = explained(&[]);
    assert!(code == Some(0) && out.contains(others), "{out}");
    machine.put("etc/kcm/pools/dp/isolation-needed", "yes");
    for boot in ["quiet\n", "isolcpus=2-3\n"] {
        machine.put("proc/cmdline", boot);
        let (code, out, said) = explained(&[]);
        assert!(code == Some(1) && !out.contains("can be given"), "{out}");
        assert!(said.contains(others), "{said}");
        assert!(said.contains("Linux 6.7 or later"), "{said}");
        let (code, out, _) = explained(&["--json"]);
        let document: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((code, &document["cpuLists"]), (Some(1), &json!([])));
        let refused = document["refused"].as_str().unwrap();
        assert!(refused.contains(others), "{refused}");
    }
    // What the configuration says is not changed by `pool set`.
    let by_set = "; or `pinfold pool set dp isolation-needed=no";
    let (_, _, said) = explained(&[]);
    assert!(said.contains(by_set), "{said}");
    machine.put(CONFIG, "[pools.dp]\nisolation-needed = true\n");
    let (code, _, said) = explained(&[]);
    assert!(code == Some(1) && !said.contains(by_set), "{said}");
    let rest = said
        .split("; or say `")
        .nth(1)
        .unwrap_or_else(|| panic!("{said}"));
    let (remedy, _) = rest
        .split_once("` of pool dp in the configuration file")
        .unwrap();
    machine.put(CONFIG, &format!("[pools.dp]\n{remedy}\n"));
    let (code, _, said) = explained(&[]);
    assert_eq!(code, Some(0), "{said}");
    machine.remove(CONFIG);
    // What keeps others off is a slice, or the kernel.
    for (file, text) in [
        ("fast.slice/cpuset.cpus.effective", "2-3\n"),
        ("fast.slice/cpuset.cpus.partition", "root\n"),
    ] {
        machine.put(&format!("sys/fs/cgroup/{file}"), text);
    }
    assert_eq!(explained(&[]).0, Some(0));
    machine.put("etc/kcm/pools/dp/isolation", "isolated");
    assert_eq!(explained(&[]).0, Some(1));
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive", "\n");
    assert_eq!(explained(&[]).0, Some(0));
    // An unknown word refuses a start where it is needed.
    machine.put("etc/kcm/pools/dp/isolation", "Root");
    assert_eq!(explained(&[]).0, Some(1));
    let set = machine.pinfold(&["pool", "set", "dp", "isolation-needed=no"]);
    assert!(set.status.success(), "{set:?}");
    let (code, _, said) = explained(&[]);
    assert!(
        code == Some(0) && said.contains("isolation of pool"),
        "{said}"
    );
}

#[test]
fn the_devices() {
    let cdi = "etc/cdi/pinfold.json";
    broken(
        |m| m.remove(cdi),
        "warning cdi",
        "which podman and docker could use: `pinfold cdi`",
    );
    broken(
        |m| {
            m.remove(cdi);
            m.put("etc/docker/daemon.json", "{}");
            m.remove("usr/sbin/dockerd");
        },
        "warning cdi",
        "which podman could use",
    );
    broken_and_mended(
        |m| m.put("etc/kcm/pools/new/exclusive", "0"),
        "warning pools",
        "has no CPU list",
        &[
            &|m| {
                fs::remove_dir_all(m.path("etc/kcm/pools/cp")).unwrap();
                m.put("etc/kcm/pools/new/0-1/tasks", "");
                m.update_devices();
            },
            &|m| fs::remove_dir_all(m.path("etc/kcm/pools/new")).unwrap(),
        ],
    );
    broken(
        |m| fs::rename(m.path("etc/kcm/pools/cp"), m.path("etc/kcm/pools/other")).unwrap(),
        "fault cdi",
        "not those of the pools",
    );
    broken(
        |m| m.edit(cdi, "/usr/local/bin/pinfold", "/opt/pinfold"),
        "fault cdi",
        "cannot be run",
    );
    broken(|m| m.put(cdi, "{}"), "fault cdi", "not of Pinfold");
    // Nobody has a use for them: that is well, and is said.
    let machine = all_is_well();
    machine.remove(cdi);
    machine.edit("etc/docker/daemon.json", "\"cdi\": true", "\"cdi\": false");
    machine.pinfold(&["uninstall", "podman"]);
    machine.remove("usr/bin/podman");
    let text = String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
    assert!(
        text.contains("there are no devices: `pinfold cdi`"),
        "{text}"
    );
}

#[test]
fn the_pools() {
    broken_and_mended(
        |m| fs::remove_dir_all(m.path("etc/kcm")).unwrap(),
        "fault pools",
        "pinfold init",
        &[&|m| {
            m.put("etc/kcm/lock", "");
            m.mode("etc/kcm/lock", 0o600);
            m.put("etc/kcm/pools/dp/exclusive", "1");
            m.put("etc/kcm/pools/dp/2/tasks", "");
            m.put("etc/kcm/pools/dp/3/tasks", "");
            m.update_devices();
        }],
    );
    let machine = all_is_well();
    machine.put("etc/kcm/pools/cp/3/tasks", "");
    let (found, code) = machine.findings(&[]);
    assert_eq!((found.len(), code), (2, 1), "{found:#?}");
    assert!(
        found
            .iter()
            .all(|line| line.starts_with("fault pools") && line.contains("overlaps")),
        "{found:#?}"
    );
    broken(
        |m| m.mode("etc/kcm/lock", 0o644),
        "warning pools",
        "chmod 600",
    );
    // Of a shared pool nothing does what these say.
    let of_shared = "warning pools: pool \"cp\" is shared: its owners have no CPUs of their own";
    broken(
        |m| {
            m.put("etc/kcm/pools/cp/isolation", "root\n");
            m.put("etc/kcm/pools/cp/irqs", "away\n");
            m.put("etc/kcm/pools/cp/quota", "keep\n");
            m.put("etc/kcm/pools/cp/governor", "performance\n");
        },
        of_shared,
        ", and nothing does isolation=root,irqs=away,governor=performance: `rm ",
    );
    // No start reads it, so that none fails of it.
    broken(
        |m| {
            m.put("etc/kcm/pools/cp/irqs", "away\n");
            m.mode("etc/kcm/pools/cp/irqs", 0o666);
        },
        "warning pools: ",
        "can be written by anybody",
    );
    let config = "etc/pinfold/config.toml";
    broken_and_mended(
        |m| {
            m.put(
                config,
                "[pools.cp]\nisolation = \"root\"\nirqs = \"away\"\n",
            )
        },
        of_shared,
        "nothing does isolation=root,irqs=away: take that out of [pools.cp] in",
        &[&|m| m.put(config, "[pools.cp]\nisolation = \"none\"\n")],
    );
    let machine = all_is_well();
    machine.put("etc/kcm/pools/cp/isolation", "root\n");
    machine.put("etc/kcm/pools/cp/irqs", "away\n");
    let shown = machine.pinfold(&["pool", "show", "cp"]);
    let shown = String::from_utf8(shown.stdout).unwrap();
    let row = shown.lines().nth(1).unwrap().split_whitespace();
    let row: Vec<&str> = row.collect();
    assert_eq!(row[1..5], ["shared", "-", "-", "-"], "{shown}");
    for (words, set) in [
        ("isolation", "allow=none"),
        ("\n", "allow=none"),
        ("irqs, quota\n", "allow=irqs,quota"),
        ("irqs,bogus", "allow=irqs"),
    ] {
        broken_and_mended(
            |m| m.put("etc/kcm/pools/dp/allow", words),
            "warning pools: allow of pool \"dp\" is ",
            &format!("`pinfold pool set \"dp\" {set}`"),
            &[&|m| {
                let set = m.pinfold(&["pool", "set", "dp", set]);
                assert!(set.status.success(), "{set:?}");
            }],
        );
    }
    let machine = all_is_well();
    let shown = |line: &[&str]| {
        let line = [&["pool", "show"], line].concat();
        String::from_utf8(machine.pinfold(&line).stdout).unwrap()
    };
    let allowed = || -> Value {
        let document: Value = serde_json::from_str(&shown(&["dp", "--json"])).unwrap();
        document["pools"][0]["allow"].clone()
    };
    assert_eq!(allowed(), json!([]));
    machine.put("etc/kcm/pools/dp/allow", "irqs,quota\n");
    assert_eq!(allowed(), json!(["irqs", "quota"]));
    assert!(
        shown(&["dp"]).contains(" irqs,quota "),
        "{}",
        shown(&["dp"])
    );
    // Each start in the pool fails of it.
    let option = "etc/kcm/pools/dp/irqs";
    broken(
        |m| {
            m.put(option, "keep");
            m.mode(option, 0o666);
        },
        "fault pools",
        "can be written by anybody",
    );
    let machine = all_is_well();
    machine.put(option, "keep");
    machine.mode(option, 0o666);
    assert_eq!(machine.findings(&[]).1, 1);
    for line in [
        &["explain", "--pool", "dp"][..],
        &["pool", "show"],
        &["pool", "show", "dp"],
        &["status"],
    ] {
        let output = machine.pinfold(line);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line:?}: {said}");
        assert!(
            said.contains("can be written by anybody"),
            "{line:?}: {said}"
        );
    }
    assert!(machine.pinfold(&["pool", "show", "cp"]).status.success());
    machine.remove(option);
    let made = Command::new("mkfifo").arg(machine.path(option)).status();
    assert!(made.unwrap().success());
    let (found, code) = machine.findings(&[]);
    assert_eq!((found.len(), code), (1, 1), "{found:#?}");
    assert!(found[0].starts_with("fault pools"), "{found:#?}");
    broken_and_mended(
        |m| m.put("sys/devices/system/cpu/online", "0-2\n"),
        "warning pools",
        "offline (3)",
        &[&|m| m.put("sys/devices/system/cpu/online", "0-3\n")],
    );
    broken_and_mended(
        |m| m.put("sys/devices/system/cpu/online", "0-1\n"),
        "fault pools",
        "every CPU list of pool \"dp\"",
        &[&|m| m.put("sys/devices/system/cpu/online", "0-3\n"), &|m| {
            fs::remove_dir_all(m.path("etc/kcm/pools/dp")).unwrap();
            fs::remove_dir_all(m.path("etc/kcm/pools/cp")).unwrap();
            m.put("etc/kcm/pools/dp/exclusive", "1");
            m.put("etc/kcm/pools/dp/1/tasks", "");
            m.put("proc/cmdline", "isolcpus=1\n");
            m.update_devices();
        }],
    );
    broken_and_mended(
        |m| {
            fs::rename(m.path("etc/kcm/pools/cp"), m.path("etc/kcm/pools/none")).unwrap();
            m.update_devices();
        },
        "warning pools",
        "cannot be asked for",
        &[&|m| {
            fs::rename(m.path("etc/kcm/pools/none"), m.path("etc/kcm/pools/some")).unwrap();
            m.update_devices();
        }],
    );
    let twice = |m: &Machine| m.findings(&[]).0;
    let machine = all_is_well();
    machine.mode("etc/kcm/pools/dp", 0o777);
    assert!(
        twice(&machine)
            .iter()
            .any(|line| line.starts_with("fault pools") && line.contains("chmod o-w"))
    );
    let machine = all_is_well();
    machine.put("etc/kcm/pools/dp/2/tasks", "77777");
    assert!(
        twice(&machine)
            .iter()
            .any(|line| line.starts_with("warning pools") && line.contains("dead owners"))
    );
}

/// Process 7 is the first of a container whose state a runtime keeps at `place`; these are its
/// annotations.
fn container(machine: &Machine, place: &str, annotations: &[&str]) {
    let rest = "0 ".repeat(18);
    machine.put("proc/7/stat", &format!("7 (sleep) S {rest}500 0 0\n"));
    let labels: Vec<String> = annotations
        .iter()
        .map(|annotation| (*annotation).to_owned())
        .chain(["bundle=/bundle".to_owned()])
        .collect();
    let state = serde_json::json!({
        "init_process_pid": 7, "init_process_start": 500, "config": {"labels": labels},
    });
    machine.put(&format!("{place}/state.json"), &state.to_string());
}

#[test]
fn containers_that_ask_and_have_none() {
    let ask = ["pinfold.io/pool=dp"];
    for (place, annotations, who, remedy, test) in [
        (
            "run/runc/web",
            &ask[..],
            "runc",
            "pinfold-runtime in place of runc",
            "unpinned::a_runtime_without_hooks",
        ),
        (
            "run/docker/runtime-runc/moby/web",
            &ask,
            "docker",
            "`docker run --runtime pinfold`",
            "unpinned::docker_without_the_runtime",
        ),
        (
            "run/containerd/runc/k8s.io/web",
            &ask,
            "Kubernetes",
            "RuntimeClass of the handler pinfold",
            "served::pinned_from_the_first_instruction",
        ),
        (
            "run/containerd/runc/default/web",
            &ask,
            "containerd",
            "`ctr run --runc-binary`",
            "unpinned::ctr_without_the_shim",
        ),
        (
            "run/runc/web",
            &["pinfold.io/pool=dp", "io.container.manager=libpod"],
            "podman",
            "saw it start: `podman restart web`",
            "unpinned::podman_that_forgets_its_hooks",
        ),
        (
            "run/runc/web",
            &["pinfold.io/pool=dp", "io.container.manager=cri-o"],
            "CRI-O",
            "make its pod anew",
            NOWHERE,
        ),
        (
            "run/runc/web",
            &["pinfold.io/pol=dp"],
            "runc",
            "would have been refused: unknown annotation",
            "unpinned::a_runtime_without_hooks",
        ),
    ] {
        let asks = |machine: &Machine| container(machine, place, annotations);
        broken_as_in(
            asks,
            &format!("fault containers: {who} container web "),
            remedy,
            test,
        );
    }
    // Who has not been told of us has to be told first.
    let machine = all_is_well();
    container(&machine, "run/docker/runtime-runc/moby/web", &ask);
    machine.put("etc/docker/daemon.json", "{}");
    let (found, _) = machine.findings(&[]);
    let expected = ": `pinfold install docker`, `systemctl restart docker`, and make it anew with";
    assert!(
        found.iter().any(|line| line.contains(expected)),
        "{found:#?}"
    );
    let described = machine.pinfold(&["describe"]);
    let said = String::from_utf8(described.stderr).unwrap();
    assert!(
        said.contains("docker container web asks for CPUs of pool"),
        "{said}"
    );
    // Those that ask for nothing, or opt out, are nobody's business.
    for annotations in [
        &["a=b"][..],
        &["pinfold.io/pool=none"],
        &["pinfold.io/pool.other=dp"],
    ] {
        let machine = all_is_well();
        container(&machine, "run/runc/web", annotations);
        assert_eq!(machine.findings(&[]), (vec![], 0));
    }
}

#[test]
fn keys_that_look_like_ours() {
    let docker = "run/docker/runtime-runc/moby/web";
    broken_as_in(
        |m| container(m, docker, &["pinfold/pool=dp"]),
        "warning containers: docker container web has the annotation \"pinfold/pool\"",
        "anew with the annotation \"pinfold.io/pool\"",
        "unpinned::docker_without_the_runtime",
    );
    let labelled = |m: &Machine| {
        container(m, docker, &[]);
        let home = m.path("docker/containers/web").display().to_string();
        let config = serde_json::json!({"mounts": [{"source": format!("{home}/hosts")}]});
        m.put("bundle/config.json", &config.to_string());
        let record =
            r#"{"ID":"web","Name":"/front","Config":{"Labels":{"a":"b","pinfold.io/pool":"dp"}}}"#;
        m.put("docker/containers/web/config.v2.json", record);
    };
    let machine = all_is_well();
    labelled(&machine);
    let said = String::from_utf8(machine.pinfold(&["describe"]).stderr).unwrap();
    assert!(
        said.contains("container web has the label \"pinfold.io/pool\""),
        "{said}"
    );
    broken_as_in(
        labelled,
        "warning containers: docker container web has the label \"pinfold.io/pool\"",
        "--annotation pinfold.io/pool=… in place of --label",
        "unpinned::docker_without_the_runtime",
    );
}

#[test]
fn cgroups_that_others_gave_cpus_of_exclusive_pools() {
    let group = |m: &Machine, path: &str, cpus: &str| {
        for (file, text) in [
            ("cpuset.cpus", cpus),
            ("cpuset.mems", ""),
            (
                "cpuset.cpus.effective",
                if cpus.is_empty() { "0-3" } else { cpus },
            ),
            ("cgroup.procs", "7"),
        ] {
            m.put(&format!("sys/fs/cgroup{path}/{file}"), &format!("{text}\n"));
        }
    };
    let scope = "/machine.slice/libpod-1.scope";
    broken_and_mended(
        |m| group(m, "/machine.slice/web.service", "1-2"),
        "warning neighbours: the cgroup \"/machine.slice/web.service\" was given the CPUs 1-2 by others \
         than Pinfold, among them 2 of pool \"dp\": ",
        "AllowedCPUs= of \"web.service\"",
        &[&|m| group(m, "/machine.slice/web.service", "1")],
    );
    // One that cannot be read is not one without CPUs.
    let unread = "sys/fs/cgroup/machine.slice/web.service/cpuset.cpus.effective";
    broken_and_mended(
        |m| {
            group(m, "/machine.slice/web.service", "1-2");
            fs::remove_file(m.path(unread)).unwrap();
            fs::create_dir(m.path(unread)).unwrap();
        },
        "warning neighbours: a cgroup may have CPUs of exclusive pools: ",
        "cpuset.cpus.effective",
        &[&|m| {
            fs::remove_dir(m.path(unread)).unwrap();
            group(m, "/machine.slice/web.service", "1");
        }],
    );
    // Of a container, its own or crun's scope above it.
    for below in ["", "/container"] {
        let hand_kept = |m: &Machine| {
            group(m, scope, "2-3");
            group(m, &format!("{scope}{below}"), "2-3");
            m.put(
                &format!("sys/fs/cgroup{scope}/cgroup.procs"),
                if below.is_empty() { "7" } else { "" },
            );
            container(m, "run/runc/web", &["io.container.manager=libpod"]);
            m.put("proc/7/cgroup", &format!("0::{scope}{below}\n"));
        };
        broken_as_in(
            hand_kept,
            "warning neighbours: podman container web was given the CPUs 2-3 by others than Pinfold, \
             among them 2 of pool \"dp\"; 3 of pool \"dp\": ",
            "without --cpuset-cpus",
            "unpinned::podman_with_a_label_or_a_list_kept_by_hand",
        );
    }
    // One that Pinfold itself pinned, by the pools of another directory.
    broken_as_in(
        |m| {
            let path = "/pinfold/fe00-1/isolate-7-7-1";
            group(m, path, "2");
            m.put(&format!("sys/fs/cgroup{path}/cgroup.procs"), "7");
        },
        "warning neighbours: the cgroup \"/pinfold/fe00-1/isolate-7-7-1\" is an owner of another \
         pool directory, which gave it the CPUs 2, among them 2 of pool \"dp\": ",
        "leave these CPUs out of one of the two",
        NOWHERE,
    );
    // What excludes nothing says nothing, nor does what only others have, nor a group without a
    // process.
    for (path, cpus, procs) in [
        ("/machine.slice/a.scope", "0-3", "7"),
        ("/machine.slice/a.scope", "", "7"),
        ("/machine.slice/a.scope", "0-1", "7"),
        ("/machine.slice/a.scope", "2-3", ""),
    ] {
        let machine = all_is_well();
        group(&machine, path, cpus);
        machine.put(&format!("sys/fs/cgroup{path}/cgroup.procs"), procs);
        assert_eq!(machine.findings(&[]), (vec![], 0), "{cpus} {procs}");
    }
    // A partition, in which conmon runs beside the containers; but not what was given some of its
    // CPUs.
    let machine = all_is_well();
    let fast = "/fast.slice";
    group(&machine, fast, "2-3");
    machine.put("sys/fs/cgroup/fast.slice/cpuset.cpus.partition", "root\n");
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-1\n");
    group(&machine, &format!("{fast}/libpod-conmon-1.scope"), "");
    machine.put(
        "sys/fs/cgroup/fast.slice/libpod-conmon-1.scope/cpuset.cpus.effective",
        "2-3\n",
    );
    assert_eq!(machine.findings(&[]), (vec![], 0));
    group(&machine, &format!("{fast}/web.scope"), "2");
    let (found, _) = machine.findings(&[]);
    assert!(
        found.len() == 1 && found[0].contains("\"/fast.slice/web.scope\" was given the CPUs 2"),
        "{found:#?}"
    );
    let machine = all_is_well();
    group(&machine, "/system.slice/web.service", "2-3");
    for verb in [
        &["explain", "--pool", "dp"][..],
        &["init", "--dry-run", "--pool", "x=2:exclusive"],
    ] {
        let said = String::from_utf8(machine.pinfold(verb).stderr).unwrap();
        assert!(
            said.contains("\"/system.slice/web.service\" was given the CPUs 2-3"),
            "{verb:?} {said}"
        );
    }
}

#[test]
fn rules_of_the_configuration() {
    let configure = |text: &'static str| move |m: &Machine| m.put("etc/pinfold/config.toml", text);
    broken_and_mended(
        configure("[pools.gone]\ndoors = [\"shim\"]\n"),
        "warning rules",
        "pool \"gone\", which is not there",
        &[
            &|m| {
                m.put("etc/kcm/pools/gone/exclusive", "0");
                m.put("etc/kcm/pools/gone/0/tasks", "");
                fs::rename(m.path("etc/kcm/pools/cp/0-1"), m.path("etc/kcm/pools/cp/1")).unwrap();
                m.update_devices();
            },
            &|m| m.put("etc/pinfold/config.toml", ""),
        ],
    );
    broken_and_mended(
        configure("[pools.dp]\ndoors = []\n"),
        "warning rules",
        "nobody can ask for pool \"dp\"",
        &[
            &|m| {
                m.put(
                    "etc/pinfold/config.toml",
                    "[pools.dp]\ndoors = [\"shim\"]\n",
                )
            },
            &|m| m.put("etc/pinfold/config.toml", "[pools.dp]\n"),
        ],
    );
    broken_and_mended(
        configure("[runtime]\nengine = \"lxc\"\n"),
        "fault runtime",
        "make it podman, crio, containerd or docker",
        &[&|m| {
            m.put(
                "etc/pinfold/config.toml",
                "[runtime]\nengine = \"podman\"\n",
            )
        }],
    );
    broken_and_mended(
        configure("[pools.dp]\nnamespaces = [\"telco\"]\n"),
        "warning runtime",
        "set runtime.engine",
        &[&|m| {
            m.put(
                "etc/pinfold/config.toml",
                "[pools.dp]\nnamespaces = [\"telco\"]\n[runtime]\nengine = \"containerd\"\n",
            )
        }],
    );
}

#[test]
fn hook_files() {
    let create = &format!("{HOOKS}/pinfold-createRuntime.json");
    let stop = &format!("{HOOKS}/pinfold-poststop.json");
    broken(|m| m.remove(stop), "warning podman", "poststop");
    broken(|m| m.remove(create), "fault podman", "createRuntime");
    broken(
        |m| m.edit(create, "\"timeout\": 30", "\"timeout\": 5"),
        "warning podman",
        "timeout",
    );
    broken(
        |m| m.edit(create, "/usr/local/bin/pinfold", "/gone/pinfold"),
        "fault podman",
        "there is no /gone/pinfold",
    );
    broken_and_mended(
        |m| {
            m.edit(
                create,
                "\"createRuntime\"\n  ]",
                "\"createRuntime\", \"prestart\"\n  ]",
            )
        },
        "fault podman",
        "once too often, at two stages",
        &[&|m| m.edit(create, ", \"prestart\"", "")],
    );
    broken(
        |m| {
            m.put(
                "etc/pinfold/config.toml",
                "[pools.dp]\nnamespaces = [\"telco\"]\n[runtime]\nengine = \"containerd\"\n",
            );
            m.edit(create, "\"--engine\",", "\"--verbose\",");
        },
        "fault podman",
        "does not name its engine",
    );
    let second = |m: &Machine| {
        let text = fs::read_to_string(m.path(create)).unwrap();
        m.put(
            "usr/share/containers/oci/hooks.d/other.json",
            &text.replace("\"createRuntime\"\n  ]", "\"prestart\"\n  ]"),
        );
    };
    // CRI-O reads the directory too, and finds podman's file of that name behind its own.
    let machine = all_is_well();
    second(&machine);
    let (found, code) = machine.findings(&[]);
    assert_eq!(code, 1);
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("fault podman") && line.contains("once too often")),
        "{found:#?}"
    );
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("fault crio") && line.contains("once too often")),
        "{found:#?}"
    );
    let machine = all_is_well();
    machine.put(&format!("{HOOKS}/broken.json"), "{");
    let (found, code) = machine.findings(&[]);
    assert_eq!(code, 1);
    assert!(
        found
            .iter()
            .all(|line| line.contains("broken.json") && line.contains("stops every start")),
        "{found:#?}"
    );
}

#[test]
fn programs() {
    let machine = all_is_well();
    machine.mode("usr/local/bin/pinfold", 0o644);
    let (found, code) = machine.findings(&[]);
    assert_eq!(code, 1);
    for engine in ["podman", "crio", "containerd", "docker"] {
        let is_about = |line: &&String| {
            line.starts_with(&format!("fault {engine}")) && line.contains("chmod a+x")
        };
        assert!(
            found.iter().any(|line| is_about(&line)),
            "{engine}: {found:#?}"
        );
    }
}

#[test]
fn engines() {
    let drop_in = "etc/containers/containers.conf.d/99-pinfold.conf";
    broken_and_mended(
        |m| {
            m.put(
                "etc/containers/containers.conf.d/99-zz.conf",
                "[engine]\nruntime_supports_json = [\"crun\"]\n",
            )
        },
        "warning podman",
        "replaces",
        &[&|m| {
            let all =
                "[engine]\nruntime_supports_json = [\"crun\", \"pinfold\", \"pinfold-runtime\"]\n";
            m.put("etc/containers/containers.conf.d/99-zz.conf", all);
        }],
    );
    broken(
        |m| {
            m.put(
                "etc/containers/containers.conf",
                "[engine]\nruntime_supports_json = [\"new\"]\n",
            )
        },
        "warning podman",
        "pinfold install podman",
    );
    broken_and_mended(
        |m| m.put("etc/containers/containers.conf", "[engine"),
        "fault podman",
        "not TOML",
        &[&|m| m.put("etc/containers/containers.conf", "[engine]\n")],
    );
    broken(
        |m| {
            m.put("etc/crio/crio.conf", "[crio.runtime]\ndefault_runtime = \"crun\"\n[crio.runtime.runtimes.crun]\nmonitor_path = \"/x\"\n")
        },
        "warning crio",
        "pinfold install crio",
    );
    broken(
        |m| {
            m.edit(
                "etc/containerd/config.toml",
                "container_annotations",
                "x_annotations",
            )
        },
        "fault containerd",
        "annotations",
    );
    broken_and_mended(
        |m| m.put("etc/containerd/config.toml", "version = 9\n"),
        "fault containerd",
        "version 9",
        &[&|m| m.put("etc/containerd/config.toml", CONTAINERD_BY_HAND)],
    );
    broken(
        |m| m.put("etc/containerd/config.toml", "version = 2\n"),
        "warning containerd",
        "pinfold install containerd",
    );
    broken_and_mended(
        |m| m.put("etc/docker/daemon.json", "{"),
        "fault docker",
        "not JSON",
        &[&|m| {
            m.put("etc/docker/daemon.json", "{}");
            m.install("docker");
        }],
    );
    broken(
        |m| m.put("etc/docker/daemon.json", "{}"),
        "warning docker",
        "pinfold install docker",
    );
    broken_and_mended(
        |m| m.edit("etc/docker/daemon.json", "\"cdi\": true", "\"cdi\": false"),
        "warning docker",
        "features.cdi",
        &[&|m| m.edit("etc/docker/daemon.json", "\"cdi\": false", "\"cdi\": true")],
    );
    broken(
        |m| m.put("etc/crio/crio.conf.d/.99-pinfold.conf.a1b2c3", "[half"),
        "fault crio",
        "half-written",
    );
    broken(
        |m| {
            m.edit(
                "etc/containerd/config.toml",
                "version = 2",
                "version = 2\nimports = [\"conf.d/*.toml\"]",
            );
            m.put(
                "etc/containerd/conf.d/a.toml",
                "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"p\"\n",
            );
        },
        "warning containerd",
        "containerd 1.x takes that table alone",
    );
    let machine = all_is_well();
    for file in [
        drop_in,
        &format!("{HOOKS}/pinfold-createRuntime.json"),
        &format!("{HOOKS}/pinfold-poststop.json"),
    ] {
        machine.remove(file);
    }
    let (found, code) = machine.findings(&[]);
    assert_eq!((found.len(), code), (1, 0), "{found:#?}");
    assert!(found[0].starts_with("warning podman: does not know Pinfold"));
    // An engine that is not there is not looked at, unless its file is named.
    machine.remove("usr/bin/podman");
    assert_eq!(machine.findings(&[]).0.len(), 0);
    machine.put("opt/docker.json", "[]");
    let (found, code) = machine.findings(&["--engine-config", "docker=/opt/docker.json"]);
    assert_eq!((found.len(), code), (1, 1), "{found:#?}");
    assert!(found[0].contains("opt/docker.json"));
}

/// A claim of the container `web` on list 2, whose process is this test's own.
fn claim(machine: &Machine, boot: &str, cpus: &str) {
    let pid = std::process::id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let start: u64 = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(19)
        .unwrap()
        .parse()
        .unwrap();
    let process = serde_json::json!({"pid": pid, "start": start});
    let group = "sys/fs/cgroup/machine.slice/web";
    machine.put(
        &format!("{group}/cpuset.cpus.effective"),
        &format!("{cpus}\n"),
    );
    machine.put(&format!("{group}/cgroup.procs"), &format!("{pid}\n"));
    machine.put(&format!("proc/{pid}/stat"), &stat);
    machine.put(&format!("proc/{pid}/comm"), "web\n");
    let inode = std::os::unix::fs::MetadataExt::ino(&machine.path(group).metadata().unwrap());
    let claim = serde_json::json!({
        "version": 1, "id": "web", "kind": "container", "boot_id": boot,
        "owner": process, "processes": [process], "pool": "dp", "lists": ["2"], "cpus": "2", "mems": "",
        "cgroup": {"path": "/machine.slice/web", "inode": inode, "made": false, "confined": true,
            "before": {"cpus": "", "mems": ""}, "moved_from": null},
        "since": 1,
    });
    machine.put(
        &format!("run/pinfold/claims/web/{pid}-{start}.json"),
        &claim.to_string(),
    );
    let lists = machine.path("run/pinfold/lists/2");
    fs::create_dir_all(&lists).unwrap();
    let target = format!("../../claims/web/{pid}-{start}.json");
    symlink(target, lists.join(format!("web@{pid}-{start}"))).unwrap();
    let key = key(&machine.path("etc/kcm/lock"));
    let conf = machine.path("etc/kcm").canonicalize().unwrap();
    machine.put(
        "run/pinfold/boot",
        &format!("this-boot {key} {}\n", conf.display()),
    );
    machine.put("etc/kcm/pools/dp/2/tasks", &pid.to_string());
}

/// What the mark and the groups of a pool directory call its lock.
fn key(lock: &std::path::Path) -> String {
    let lock = lock.metadata().unwrap();
    format!("{:x}-{}", lock.dev(), lock.ino())
}

#[test]
fn what_others_can_change_is_named_with_its_parents() {
    for (path, bits, part) in [
        (
            "etc/kcm/pools/dp/2",
            0o757,
            "pools/dp/2 can be written by anybody",
        ),
        (
            "etc/kcm/pools/dp/2/tasks",
            0o646,
            "dp/2/tasks can be written",
        ),
        (
            "etc",
            0o757,
            "etc can be written by anybody, who can replace",
        ),
        (
            "run",
            0o757,
            "run can be written by anybody, who can replace",
        ),
    ] {
        let machine = all_is_well();
        machine.put("run/pinfold/boot", "");
        machine.mode("run/pinfold", 0o700);
        machine.mode(path, bits);
        let (found, code) = machine.findings(&[]);
        assert_eq!(code, 1, "{path}: {found:#?}");
        let told = found.iter().filter(|line| line.contains(part)).count();
        assert_eq!(told, 1, "{path}: {found:#?}");
    }
}

#[test]
fn claims() {
    let machine = all_is_well();
    claim(&machine, "this-boot", "2");
    assert_eq!(machine.findings(&[]).0, [""; 0]);
    broken_as_in(
        |m| claim(m, "this-boot", "0-3"),
        "warning claims",
        "holds the CPUs 2 and may run on 0-3",
        "masks::widened_by_others_and_confined_again",
    );
    broken_as_in(
        |m| {
            claim(m, "this-boot", "2");
            m.put("etc/kcm/pools/dp/2/tasks", "");
        },
        "warning claims",
        "other tools do not see it",
        "owners::other_tools_pid",
    );
    let machine = all_is_well();
    claim(&machine, "another-boot", "2");
    let (found, code) = machine.findings(&[]);
    assert_eq!(code, 0);
    assert!(
        found
            .iter()
            .any(|line| line.contains("counts as held: it is of another boot")),
        "{found:#?}"
    );
    broken_as_in(
        |m| {
            claim(m, "this-boot", "2");
            let lock = m.path("etc/kcm/lock");
            fs::write(m.path("etc/kcm/new"), "").unwrap();
            m.mode("etc/kcm/new", 0o600);
            fs::rename(m.path("etc/kcm/new"), lock).unwrap();
        },
        "warning pools",
        "was replaced since its claims were made",
        "owners::lock_is_replaced",
    );
    broken_as_in(
        |m| {
            let key = key(&m.path("etc/kcm/lock"));
            m.put("run/pinfold/boot", "this-boot");
            m.put(
                &format!("sys/fs/cgroup/pinfold/{key}/web-1-2/cgroup.procs"),
                "",
            );
        },
        "warning claims",
        "left over",
        "killpoints::prestart_that_makes_a_cgroup",
    );
}

/// The same with its link by group, and a way to give somebody else a hold on it.
fn whole_claim(machine: &Machine) {
    claim(machine, "this-boot", "2");
    let group = machine.path("sys/fs/cgroup/machine.slice/web");
    let inode = std::os::unix::fs::MetadataExt::ino(&group.metadata().unwrap());
    let link = machine.path(&format!("run/pinfold/cgroups/{inode}"));
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(format!("../claims/web/{}", claim_file(machine)), link).unwrap();
}

fn claim_file(machine: &Machine) -> String {
    let mut files = fs::read_dir(machine.path("run/pinfold/claims/web")).unwrap();
    let file = files.next().unwrap().unwrap().file_name();
    file.into_string().unwrap()
}

#[test]
fn the_auditor() {
    let machine = all_is_well();
    whole_claim(&machine);
    assert_eq!(machine.findings(&["--deep"]).0, [""; 0]);
    let break_it = |how: &dyn Fn(&Machine), level: &str, part: &str| {
        let machine = all_is_well();
        whole_claim(&machine);
        how(&machine);
        let (found, code) = machine.findings(&["--deep"]);
        let start = format!("{level} books");
        let told = |line: &String| line.starts_with(&start) && line.contains(part);
        assert!(found.iter().any(told), "{level} {part}: {found:#?}");
        assert_eq!(code, i32::from(level == "fault"), "{part}: {found:#?}");
    };
    let stranger = |m: &Machine| {
        let stat = "77 (x) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 1 0 777 0 0";
        m.put("proc/77/stat", stat);
    };
    let claim_path = |m: &Machine| format!("run/pinfold/claims/web/{}", claim_file(m));
    break_it(
        &|m| fs::remove_dir_all(m.path("run/pinfold/lists")).unwrap(),
        "fault",
        "is not found through lists/2/web@",
    );
    break_it(
        &|m| fs::remove_dir_all(m.path("run/pinfold/cgroups")).unwrap(),
        "fault",
        "is not found through cgroups/",
    );
    break_it(
        &|m| {
            stranger(m);
            let own = std::process::id();
            m.put("etc/kcm/pools/dp/2/tasks", &format!("{own},77"));
        },
        "fault",
        "has the owners \"web\"",
    );
    break_it(
        &|m| {
            stranger(m);
            m.put("etc/kcm/pools/dp/3/tasks", "77");
            let effective = "sys/fs/cgroup/machine.slice/web/cpuset.cpus.effective";
            m.put(effective, "2-3\n");
        },
        "fault",
        "process 77 owns some of them",
    );
    break_it(
        &|m| m.edit(&claim_path(m), "\"web\"", "\"wex\""),
        "fault",
        "is the claim web/",
    );
    break_it(
        &|m| m.edit(&claim_path(m), "\"version\"", "\"version"),
        "fault",
        "the claim",
    );
    break_it(
        &|m| m.put("etc/kcm/pools/dp/2/tasks", ""),
        "warning",
        "is not in tasks of \"2\" of pool \"dp\"",
    );
    break_it(
        &|m| m.put("etc/kcm/pools/dp/3/tasks", "78"),
        "warning",
        "process 78 in tasks of \"3\" of pool \"dp\" is gone",
    );
    break_it(
        &|m| m.put("etc/kcm/pools/dp/3/.tasks.abcdef", "78"),
        "warning",
        "was never put into its place",
    );
    break_it(
        &|m| m.put("run/pinfold/boot", ""),
        "warning",
        "the mark of this boot is not there",
    );
    break_it(
        &|m| {
            let link = m.path("run/pinfold/lists/3/web@1-1");
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            symlink("../../claims/web/1-1.json", link).unwrap();
        },
        "warning",
        "leads nowhere",
    );
}

/// podman reads that file in place of all others; whoever unsets the variable has what was looked
/// at.
#[test]
fn a_file_of_podmans_that_a_variable_names() {
    let machine = all_is_well();
    let check = |variable: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        command.arg("--host-root").arg(machine.dir.path());
        for other in ["CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE"] {
            command.env_remove(other);
        }
        if let Some(variable) = variable {
            command.env(variable, "/home/a/containers.conf");
        }
        let output = command.arg("check").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    for variable in ["CONTAINERS_CONF", "CONTAINERS_CONF_OVERRIDE"] {
        let said = check(Some(variable));
        let named = format!("{variable} is set: podman reads \"/home/a/containers.conf\" then");
        assert!(said.contains(&named), "{said}");
        assert!(said.contains(&format!("`unset {variable}`")), "{said}");
        assert!(!check(None).contains(variable));
    }
}

#[test]
fn that_nothing_reconciles_is_told() {
    let machine = all_is_well();
    machine.remove(CRON);
    let (found, code) = machine.findings(&[]);
    let [line] = &found[..] else {
        panic!("{found:?}");
    };
    assert!(
        line.starts_with("warning reconcile: nothing runs `pinfold reconcile`"),
        "{line}"
    );
    assert!(
        line.contains("`systemctl enable --now pinfold-reconcile`"),
        "{line}"
    );
    assert_eq!(code, 0);
    let kept: [(&str, &str); 4] = [
        (
            "proc/77/cmdline",
            "/usr/bin/pinfold\0reconcile\0--interval\x0060\0",
        ),
        (CRON, "*/5 * * * * root /usr/bin/pinfold reconcile\n"),
        (
            "var/spool/cron/crontabs/root",
            "@hourly pinfold reconcile --json\n",
        ),
        (
            "usr/lib/systemd/system/tidy.service",
            "[Service]\nExecStart=/usr/bin/pinfold reconcile\n",
        ),
    ];
    for (path, text) in kept {
        machine.put(path, text);
        machine.put("etc/systemd/system/timers.target.wants/tidy.timer", "");
        assert_eq!(machine.findings(&[]).0, [""; 0], "{path}");
        machine.remove(path);
        assert_eq!(machine.findings(&[]).0.len(), 1, "{path}");
    }
    for (path, text) in [
        ("proc/77/cmdline", "/usr/bin/pinfold\0reconcile\0"),
        ("proc/78/cmdline", "vi\0pinfold\0reconcile\0--interval\0"),
        (CRON, "# */5 * * * * root /usr/bin/pinfold reconcile\n"),
        (
            "usr/lib/systemd/system/other.service",
            "ExecStart=/usr/bin/pinfold reconcile\n",
        ),
    ] {
        machine.put(path, text);
        assert_eq!(machine.findings(&[]).0.len(), 1, "{path}");
        machine.remove(path);
    }
}

#[test]
fn pools_that_are_not_as_declared_are_told() {
    let machine = all_is_well();
    let config = "etc/pinfold/config.toml";
    machine.put(
        config,
        "[pools.dp]\nkind = 'exclusive'\nlists = ['2', '3']\n",
    );
    assert_eq!(machine.findings(&[]).0, [""; 0]);
    machine.put(
        config,
        "reserve = 'none'\n[pools.dp]\nkind = 'exclusive'\nlists = ['2']\n[pools.cp]\nkind = 'shared'\nlists = ['0-1']\n",
    );
    let (found, code) = machine.findings(&[]);
    assert_eq!(
        (&found[..], code),
        (
            &["warning declared: not as the configuration says: pool \"dp\": `pinfold apply` makes it so; with --dry-run it shows the difference".to_owned()][..],
            0
        )
    );
}

/// The `status` of a process of root's.
const OF_ROOT: &str = "Name:\tx\nUid:\t0\t0\t0\t0\n";

/// A kubelet that gives CPUs of exclusive pools to its pods, or writes those of pinned containers.
#[test]
fn the_kubelets_cpu_manager() {
    const CONFIG: &str = "var/lib/kubelet/config.yaml";
    let none = |m: &Machine| m.put(CONFIG, "cpuManagerPolicy: none\n");
    let is_static = "cpuManagerPolicy: static\nreservedSystemCPUs: ";
    for (more, expected, part) in [
        ("\"0-1\"", "fault kubelet", "can give pods 2-3"),
        ("2", "fault kubelet", "reservedSystemCPUs 2-3; then remove"),
        ("x-y", "fault kubelet", "reservedSystemCPUs"),
        ("0-3", "warning kubelet", "again and again"),
        (
            "0-3\ncpuManagerPolicyOptions:\n  strict-cpu-reservation: \"true\"",
            "fault kubelet",
            "with strict-cpu-reservation",
        ),
        ("[", "fault kubelet", "is not YAML"),
    ] {
        let text = format!("{is_static}{more}\n");
        broken_and_mended(|m| m.put(CONFIG, &text), expected, part, &[&none]);
    }
    // The kubelet that runs says where its configuration is, and more; JSON will do.
    let json = "etc/kubelet.json";
    let runs = |m: &Machine, more: &str| {
        m.put("proc/4711/comm", "kubelet\n");
        m.put("proc/4711/status", OF_ROOT);
        let line = format!("/usr/bin/kubelet\0--config=/{json}\0{more}");
        m.put("proc/4711/cmdline", &line);
        m.put(json, r#"{"cpuManagerPolicy": "static"}"#);
    };
    broken_and_mended(
        |m| runs(m, ""),
        "fault kubelet",
        "cpuManagerPolicy none in \"/etc/kubelet.json\"",
        &[&|m| m.put(json, "{}")],
    );
    broken_and_mended(
        |m| runs(m, "--reserved-cpus=2-3\0"),
        "warning kubelet",
        "again and again",
        &[&|m| runs(m, "--cpu-manager-policy\0none\0")],
    );
    // What it names may be a device.
    broken_and_mended(
        |m| {
            runs(m, "");
            fs::remove_file(m.path(json)).unwrap();
            fs::create_dir(m.path(json)).unwrap();
        },
        "fault kubelet",
        "\"/etc/kubelet.json\" is not a regular file",
        &[&|m| {
            fs::remove_dir(m.path(json)).unwrap();
            m.put(json, "{}");
        }],
    );
    // The worst of several counts, and none of a user's or a container's.
    let others = |m: &Machine| {
        runs(m, "--cpu-manager-policy\0none\0");
        m.put("proc/99/comm", "kubelet\n");
        m.put("proc/99/cmdline", "kubelet\0--cpu-manager-policy=static\0");
    };
    for uids in ["0\t0\t0\t1000", "1000\t0\t0\t0", "1000\t1000\t1000\t1000"] {
        broken_and_mended(
            |m| {
                others(m);
                m.put("proc/99/status", OF_ROOT);
            },
            "fault kubelet",
            "can give pods 2-3",
            &[&|m| m.put("proc/99/status", &format!("Name:\tkubelet\nUid:\t{uids}\n"))],
        );
    }
    let machine = all_is_well();
    none(&machine);
    let text = String::from_utf8(machine.pinfold(&["check"]).stdout).unwrap();
    assert!(text.contains("leaves CPUs alone"), "{text}");
}

/// Appends to containerd's configuration.
fn containerd_says(machine: &Machine, more: &str) {
    let path = "etc/containerd/config.toml";
    let text = fs::read_to_string(machine.path(path)).unwrap();
    machine.put(path, &format!("{text}\n{more}\n"));
}

#[test]
fn nri_fails_open_unless_the_engine_requires_the_plugin() {
    const SERVED: (&str, &str) = ("proc/77/cmdline", "/usr/bin/pinfold-node\0run\0--nri\0");
    const NRI: &str = "[plugins.\"io.containerd.nri.v1.nri\"]\n";
    const VALIDATOR: &str = "[plugins.\"io.containerd.nri.v1.nri\".default_validator]\n\
                             enable = true\n";
    let asks = |m: &Machine| {
        containerd_says(m, &format!("{VALIDATOR}required_plugins = [\"pinfold\"]"));
    };
    // No containerd before 2.3 takes version 4 of its file.
    let is_new = |m: &Machine| {
        let file = "etc/containerd/config.toml";
        m.edit(file, "version = 2", "version = 4");
        m.edit(
            file,
            "io.containerd.grpc.v1.cri",
            "io.containerd.cri.v1.runtime",
        );
    };
    let requires = |m: &Machine| {
        asks(m);
        is_new(m);
    };
    let table = |m: &Machine, flags: &str| {
        let head = "Num       RefCount Protocol Flags    Type St Inode Path\n";
        let line = format!("0000: 00000002 00000000 {flags} 0001 01 4711 /run/nri/nri.sock\n");
        m.put("proc/1/net/unix", &format!("{head}{line}"));
    };
    let has_socket = |m: &Machine| {
        m.put("run/nri/other", "");
        drop(UnixListener::bind(m.path("run/nri/nri.sock")).unwrap());
        m.put("var/other", "");
        if !m.path("var/run").is_symlink() {
            symlink("/run", m.path("var/run")).unwrap();
        }
        table(m, "00010000");
    };
    let served = |m: &Machine| {
        m.put(SERVED.0, SERVED.1);
        m.put("proc/77/status", OF_ROOT);
        has_socket(m);
    };
    let no_socket = |m: &Machine| m.remove("run/nri/nri.sock");
    let elsewhere = |m: &Machine| {
        m.put(
            SERVED.0,
            "pinfold-node\0run\0--nri\0--nri-socket\0/var/run/nri/nri.sock\0",
        );
    };
    let by_a_user = |m: &Machine| m.put("proc/77/status", "Uid:\t1000\t1000\t1000\t1000\n");
    broken_and_mended(
        served,
        "warning nri",
        "containerd has NRI on, which fails open",
        &[&requires, &by_a_user],
    );
    // An older one has no validator, and takes no notice of what is asked of it.
    broken_and_mended(
        |m| {
            served(m);
            asks(m);
        },
        "warning nri",
        "requires pinfold if it is 2.2 or later, and which it is could not be found out",
        &[&is_new],
    );
    // An engine that was killed leaves its socket; a name in the table is not yet a listener.
    for line in ["00000000", ""] {
        broken_and_mended(
            |m| {
                served(m);
                requires(m);
                match line {
                    "" => m.put("proc/1/net/unix", "Num       RefCount Protocol\n"),
                    flags => table(m, flags),
                }
            },
            "fault nri",
            "nobody listens at \"/var/run/nri/nri.sock\"",
            &[&|m| table(m, "00010000"), &|m| m.remove("proc/1/net/unix")],
        );
    }
    broken_and_mended(
        |m| {
            served(m);
            requires(m);
            containerd_says(m, &format!("{NRI}disable = true"));
        },
        "fault nri",
        "has NRI off",
        &[&|m| {
            m.edit(
                "etc/containerd/config.toml",
                "disable = true",
                "disable = false",
            )
        }],
    );
    broken_and_mended(
        |m| {
            served(m);
            requires(m);
            let rejecting = "reject_oci_hook_adjustment = true\nrequired_plugins";
            m.edit("etc/containerd/config.toml", "required_plugins", rejecting);
        },
        "fault nri",
        "refuses each container",
        &[&|m| {
            let fine = "reject_oci_hook_adjustment = false";
            let bad = "reject_oci_hook_adjustment = true";
            m.edit("etc/containerd/config.toml", bad, fine);
        }],
    );
    // No file tells which containerd it is; its socket does.
    broken_and_mended(
        |m| {
            served(m);
            requires(m);
            no_socket(m);
        },
        "fault nri",
        "containerd 1.7 has NRI off by default, 2.x has it on: set disable = false",
        &[&has_socket],
    );
    broken_and_mended(
        |m| {
            served(m);
            requires(m);
            m.put(
                SERVED.0,
                "pinfold-node\0run\0--nri\0--nri-socket=/run/other.sock\0",
            );
            containerd_says(
                m,
                &format!("{NRI}disable = false\nsocket_path = '/var/run/nri/nri.sock'"),
            );
        },
        "fault nri",
        "no NRI socket at \"/run/other.sock\"",
        &[&elsewhere],
    );
    broken_and_mended(
        |m| {
            served(m);
            requires(m);
            no_socket(m);
            containerd_says(m, &format!("{NRI}disable = false"));
        },
        "fault nri",
        "restart containerd",
        &[&has_socket],
    );
    // CRI-O runs pods wherever it runs, and has words of its own.
    let crio = |m: &Machine| {
        served(m);
        m.put("proc/78/cmdline", "/usr/bin/crio\0");
        m.put("proc/78/status", OF_ROOT);
    };
    let crio_says = |m: &Machine, text: &str| m.put("etc/crio/crio.conf.d/50-nri.conf", text);
    let crio_is = |m: &Machine, version: &str| m.put("run/crio/version", version);
    let crio_asks = |m: &Machine| {
        let validator = "[crio.nri.default_validator]\nnri_enable_default_validator = true\n\
                         nri_validator_required_plugins = ['pinfold']\n";
        crio_says(m, validator);
    };
    let crio_requires = |m: &Machine| {
        crio_asks(m);
        crio_is(m, "\"1.34.1\"");
    };
    for (version, part) in [
        (
            "\"1.33.9\"",
            "CRI-O 1.33 has no validator, so its configuration requires pinfold in vain",
        ),
        ("\"x\"", "requires pinfold if it is 1.34 or later"),
    ] {
        broken_and_mended(
            |m| {
                crio(m);
                crio_asks(m);
                crio_is(m, version);
            },
            "warning nri",
            part,
            &[&crio_requires],
        );
    }
    // Nor does it refuse any hooks.
    broken_and_mended(
        |m| {
            crio(m);
            crio_requires(m);
            let reject = "true\nnri_validator_reject_oci_hook_adjustment = true";
            m.edit(
                "etc/crio/crio.conf.d/50-nri.conf",
                "= true",
                &format!("= {reject}"),
            );
        },
        "fault nri",
        "CRI-O's validator refuses",
        &[&crio_requires],
    );
    let old_and_rejecting = |m: &Machine| {
        crio(m);
        let reject = "nri_validator_reject_oci_hook_adjustment = true";
        let enable = "nri_enable_default_validator = true";
        crio_says(
            m,
            &format!("[crio.nri.default_validator]\n{enable}\n{reject}\n"),
        );
        crio_is(m, "\"1.33.9\"");
    };
    broken_and_mended(
        old_and_rejecting,
        "warning nri",
        "fails open",
        &[&crio_requires],
    );
    broken_and_mended(
        |m| {
            crio(m);
            requires(m);
        },
        "warning nri",
        "nri_validator_required_plugins",
        &[&crio_requires],
    );
    broken_and_mended(
        |m| {
            crio(m);
            crio_says(m, "[crio.nri]\nenable_nri = false\n");
        },
        "fault nri",
        "CRI-O has NRI off",
        &[&crio_requires],
    );
    broken_and_mended(
        |m| {
            crio(m);
            crio_requires(m);
            no_socket(m);
        },
        "fault nri",
        "CRI-O has NRI on by default from 1.30 on: set enable_nri = true",
        &[&has_socket],
    );
    // Where nobody serves it, it is nobody's concern.
    let machine = all_is_well();
    served(&machine);
    machine.put(
        "proc/77/cmdline",
        "/usr/bin/pinfold-node\0run\0--device-plugin\0",
    );
    assert_eq!(machine.findings(&[]).0, [""; 0]);
}
