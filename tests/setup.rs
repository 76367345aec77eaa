//! `pinfold setup` on a tree that stands in for a machine: from nothing to where all is well, and
//! back to nothing.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Output;
use std::time::UNIX_EPOCH;

use common::Machine;

/// What is in each file below a directory.
fn files(directory: &Path) -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.display().to_string();
        if path.symlink_metadata().unwrap().is_dir() {
            files.extend(self::files(&path));
        } else {
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
    files
}

/// The same of what `setup` may change.
fn changeable(machine: &Machine) -> BTreeMap<String, String> {
    let mut all = files(&machine.path("etc"));
    for directory in ["var", "usr/share"] {
        let path = machine.path(directory);
        if path.exists() {
            all.extend(files(&path));
        }
    }
    all
}

fn set_up(machine: &Machine, more: &[&str]) -> Output {
    machine.pinfold(&[&["setup", "--bin-dir", "/usr/local/bin"], more].concat())
}

fn said(output: &Output) -> String {
    let bytes = [output.stdout.as_slice(), &output.stderr].concat();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn from_nothing_to_where_all_is_well_and_back() {
    let machine = Machine::without_pools();
    machine.put("proc/1/cmdline", "/sbin/init\0");
    let before = changeable(&machine);
    let output = set_up(&machine, &["--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let text = said(&output);
    for part in [
        "machine: 4 cores, 4 CPUs, in 1 package and 1 NUMA node",
        // containerd is docker's own.
        "engines: podman, crio, docker\n",
        "podman run --rm --annotation pinfold.io/pool=dataplane docker.io/library/busybox grep Cpus_allowed_list",
        "docker run --rm --runtime pinfold --annotation pinfold.io/pool=dataplane docker.io/library/busybox grep Cpus_allowed_list",
        "systemctl restart docker",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("fault"), "{text}");
    // Processes can be seen, and none of them frees what dead owners hold.
    if nix::unistd::geteuid().is_root() {
        assert!(
            text.contains("systemctl enable --now pinfold-reconcile"),
            "{text}"
        );
    }

    let once = changeable(&machine);
    let again = set_up(&machine, &["--yes"]);
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert_eq!(
        changeable(&machine),
        once,
        "the second time changes nothing"
    );

    let trial = machine.pinfold(&["setup", "--undo", "--dry-run"]);
    assert_eq!(trial.status.code(), Some(0), "{}", said(&trial));
    assert_eq!(changeable(&machine), once, "a trial changes nothing");
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert_eq!(changeable(&machine), before);
    assert!(!machine.path("etc/kcm").exists());
    let twice = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(twice.status.code(), Some(1), "{}", said(&twice));
}

/// A user's own pools are not: no user can keep anybody off.
#[test]
fn others_are_kept_off_what_root_makes_exclusive() {
    let is_root = nix::unistd::geteuid().is_root();
    for (isolated, pool, expected) in [
        ("", "mine=1:exclusive", is_root.then_some("root")),
        ("", "mine=1:exclusive,isolation=none", Some("none")),
        ("", "mine=1:shared", None),
        (" isolcpus=2-3", "mine=1:exclusive", None),
    ] {
        let machine = Machine::without_pools();
        machine.put("proc/cmdline", &format!("quiet{isolated}\n"));
        let init = ["init", "--pool", pool];
        // The second time it is so already.
        for _ in 0..2 {
            let made = machine.pinfold(&init);
            assert_eq!(made.status.code(), Some(0), "{}", said(&made));
            let option = std::fs::read_to_string(machine.path("etc/kcm/pools/mine/isolation"));
            assert_eq!(option.ok().as_deref(), expected, "{isolated} {pool}");
        }
    }
}

/// On kernels where another container beside an owner's can break its partition.
#[test]
fn where_the_kernel_can_keep_others_off_is_said_of_the_engine() {
    let slice = "add --cgroup-parent pinfold.slice to each that asks for CPUs (docs/recipes.md)";
    let pods = "the cgroup parent of a pod is the kubelet's (docs/recipes.md)";
    let exclusive = "sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive";
    for (release, makes, more, pool, engine, expected) in [
        ("6.12.1", true, "", "root", "docker", Some(slice)),
        (
            "6.12.1",
            true,
            "usr/bin/runc",
            "root",
            "podman",
            Some(slice),
        ),
        ("6.12.1", true, "", "root", "containerd", Some(pods)),
        ("6.12.1", true, "", "root", "crio", Some(pods)),
        ("6.12.1", true, "usr/bin/crun", "root", "podman", None),
        ("6.12.1", true, "usr/bin/crun", "root", "docker", None),
        ("6.12.1", true, "", "none", "docker", None),
        // Kernels that make none, and those that siblings do not break.
        ("6.1.0", false, "", "root", "docker", None),
        ("7.0.2", true, "", "root", "docker", None),
    ] {
        let machine = Machine::without_pools();
        machine.put("proc/cmdline", "quiet\n");
        machine.put("proc/sys/kernel/osrelease", &format!("{release}\n"));
        if makes {
            machine.put(exclusive, "\n");
        }
        if !more.is_empty() {
            machine.put(more, "");
            machine.mode(more, 0o755);
        }
        let pool = format!("mine=1:exclusive,isolation={pool}");
        assert!(machine.pinfold(&["init", "--pool", &pool]).status.success());
        let install = ["install", engine, "--bin-dir", "/usr/local/bin"];
        let case = format!("{release} {more} {pool} {engine}");
        let said = |output: &Output| {
            assert!(output.status.success(), "{case}: {output:?}");
            let said = said(output);
            let lines = said
                .lines()
                .filter(|line| line.contains("others are kept off"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let lines = said(&machine.pinfold(&install));
        match expected {
            Some(expected) => {
                assert_eq!(lines.len(), 1, "{case}: {lines:?}");
                let begin = format!("on Linux {release} others are kept off a container's CPUs ");
                assert!(lines[0].starts_with(&begin), "{case}: {lines:?}");
                assert!(lines[0].ends_with(expected), "{case}: {lines:?}");
            }
            None => assert_eq!(lines, [""; 0], "{case}"),
        }
        // Once it knows Pinfold, nothing is left to say.
        assert_eq!(said(&machine.pinfold(&install)), [""; 0], "{case}");
    }
    let machine = Machine::without_pools();
    machine.put(exclusive, "\n");
    let pool = ["--pool", "mine=1:exclusive,isolation=root"];
    let set = set_up(
        &machine,
        &[&["--yes", "--engine", "docker"], &pool[..]].concat(),
    );
    assert_eq!(
        said(&set).matches("others are kept off").count(),
        1,
        "{}",
        said(&set)
    );
}

/// KCM's form reserves nothing, unless somebody says so.
#[test]
fn what_the_configuration_reserves_is_so_for_kcms_form_too() {
    let machine = Machine::without_pools();
    for (config, option, expected) in [
        ("", None, "2"),
        ("reserve = '2'", None, "3"),
        ("reserve = 'none'", None, "2"),
        ("reserve = '2'", Some("3"), "2"),
    ] {
        machine.put("etc/pinfold/config.toml", config);
        let mut arguments = vec!["init", "--num-dp-cores", "1", "--dry-run"];
        arguments.extend(option.into_iter().flat_map(|cpus| ["--reserve", cpus]));
        let output = machine.pinfold(&arguments);
        let text = said(&output);
        let rows = text.lines().map(|line| line.split_whitespace().collect());
        let row = rows.filter(|row: &Vec<&str>| row.first() == Some(&"dataplane"));
        let cpus: Vec<&str> = row.map(|row| row[3]).collect();
        assert_eq!(cpus, [expected], "{config} {option:?}: {text}");
    }
}

#[test]
fn nothing_is_done_without_a_yes() {
    let machine = Machine::without_pools();
    let before = changeable(&machine);
    for (more, code) in [(&["--dry-run"][..], 0), (&[][..], 2)] {
        let output = set_up(&machine, more);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
        assert!(said(&output).contains("would make"), "{}", said(&output));
        let shows = said(&output).contains("+++ ");
        assert_eq!(
            shows,
            code == 0,
            "a trial shows the files: {}",
            said(&output)
        );
        assert_eq!(changeable(&machine), before);
    }
}

#[test]
fn pools_that_were_there_outlive_the_undoing() {
    let machine = Machine::without_pools();
    let made = machine.pinfold(&["init", "--pool", "mine=1:exclusive"]);
    assert!(made.status.success(), "{}", said(&made));
    let pools = files(&machine.path("etc/kcm"));
    let output = set_up(&machine, &["--yes", "--engine", "docker"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("pools: those in"),
        "{}",
        said(&output)
    );
    assert!(
        said(&output).contains("pinfold.io/pool=mine"),
        "{}",
        said(&output)
    );
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert_eq!(files(&machine.path("etc/kcm")), pools);

    // So does what an engine was told by hand.
    let by_hand = machine.pinfold(&["install", "podman", "--bin-dir", "/usr/local/bin"]);
    assert!(by_hand.status.success(), "{}", said(&by_hand));
    let told = files(&machine.path("usr/share"));
    let output = set_up(&machine, &["--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert_eq!(files(&machine.path("usr/share")), told);
}

/// Somebody replaced the pools that setup made.
#[test]
fn pools_that_others_made_at_the_same_place_outlive_the_undoing() {
    let machine = Machine::without_pools();
    let output = set_up(&machine, &["--yes", "--engine", "docker"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    // The old one is kept aside, so that its inode is not used again at once.
    fs::rename(machine.path("etc/kcm"), machine.path("etc/kcm.old")).unwrap();
    let made = machine.pinfold(&["init", "--pool", "mine=1:exclusive"]);
    assert!(made.status.success(), "{}", said(&made));
    let pools = files(&machine.path("etc/kcm"));
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert!(
        said(&back).contains("made by others, and stay"),
        "{}",
        said(&back)
    );
    assert_eq!(files(&machine.path("etc/kcm")), pools);
}

/// The number of a device is another after a boot, so it is not what the pools are known by.
#[test]
fn pools_are_known_by_the_inode_and_birth_of_their_lock() {
    let machine = Machine::without_pools();
    let output = set_up(&machine, &["--yes", "--engine", "docker"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let record = fs::read(machine.path("var/lib/pinfold/setup.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let lock = fs::metadata(machine.path("etc/kcm/lock")).unwrap();
    let born = lock.created().map_or(0, |time| {
        time.duration_since(UNIX_EPOCH).unwrap().as_nanos()
    });
    assert_eq!(record["lock"], format!("{}-{born}", lock.ino()));
}

/// Nobody can tell then whose they are.
#[test]
fn pools_without_their_lock_stay_and_the_rest_is_undone() {
    let machine = Machine::without_pools();
    let before = files(&machine.path("etc/docker"));
    let output = set_up(&machine, &["--yes", "--engine", "docker"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    fs::remove_file(machine.path("etc/kcm/lock")).unwrap();
    let pools = files(&machine.path("etc/kcm"));
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert!(said(&back).contains(" stay: "), "{}", said(&back));
    assert_eq!(files(&machine.path("etc/kcm")), pools);
    assert_eq!(files(&machine.path("etc/docker")), before);
}

/// A setup that was killed before it noted the mark of its pools does not know them again.
#[test]
fn pools_whose_mark_was_not_noted_outlive_the_undoing() {
    let machine = Machine::without_pools();
    let output = set_up(&machine, &["--yes", "--engine", "docker"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let record = "var/lib/pinfold/setup.json";
    let text = fs::read_to_string(machine.path(record)).unwrap();
    let mut noted: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert!(noted.as_object_mut().unwrap().remove("lock").is_some());
    fs::write(machine.path(record), noted.to_string()).unwrap();
    let pools = files(&machine.path("etc/kcm"));
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert!(said(&back).contains("setup was cut off"), "{}", said(&back));
    assert_eq!(files(&machine.path("etc/kcm")), pools);
}

/// What is declared is made, in place of what would fit.
#[test]
fn pools_that_are_declared_are_those_that_setup_makes() {
    let machine = Machine::without_pools();
    machine.put(
        "etc/pinfold/config.toml",
        "[pools.fast]\nkind = 'exclusive'\ncores = 1\n",
    );
    let before = changeable(&machine);
    let output = set_up(&machine, &["--yes"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("pinfold.io/pool=fast"),
        "{}",
        said(&output)
    );
    assert!(!machine.path("etc/kcm/pools/dataplane").exists());
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(0), "{}", said(&back));
    assert_eq!(changeable(&machine), before);
}

#[test]
fn an_owner_of_another_tool_keeps_everything_in_its_place() {
    let machine = Machine::without_pools();
    let output = set_up(&machine, &["--yes", "--engine", "docker"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let list = fs::read_dir(machine.path("etc/kcm/pools/dataplane")).unwrap();
    let list = list.map(|entry| entry.unwrap().path());
    let list = list.filter(|path| path.is_dir()).min().unwrap();
    machine.put("proc/77/stat", &format!("77 (a) S {}0\n", "0 ".repeat(48)));
    fs::write(list.join("tasks"), "77").unwrap();
    let before = changeable(&machine);
    let back = machine.pinfold(&["setup", "--undo", "--yes"]);
    assert_eq!(back.status.code(), Some(1), "{}", said(&back));
    assert!(said(&back).contains("77"), "{}", said(&back));
    assert_eq!(changeable(&machine), before);
}

#[test]
fn what_it_did_is_believed_of_root_alone() {
    let machine = Machine::without_pools();
    let output = set_up(&machine, &["--yes", "--engine", "podman"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    for (content, mode) in [("{", 0o644), ("{\"engines\":[]}", 0o666)] {
        machine.put("var/lib/pinfold/setup.json", content);
        machine.mode("var/lib/pinfold/setup.json", mode);
        let output = machine.pinfold(&["setup", "--undo", "--yes"]);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("setup.json"), "{}", said(&output));
        assert!(machine.path("etc/kcm/pools").exists());
    }
}
