//! `pinfold install` and `pinfold uninstall` on trees of machines, a directory a case in
//! `tests/install/ENGINE/CASE`:
//!
//! - `before/`: the files of the machine; `arguments`: more options, where there are any;
//! - `after/`: all files of the machine after the install; or `says`: what the refusal says, a part a line;
//! - `changed/`: files that somebody changes then; `left/`: all files after the uninstall, where they are not those of
//!   `before/`; or `uninstall-says`: what its refusal says.
//!
//! `PINFOLD_ACCEPT=1` writes `after/` where a case has none: read it before it is committed.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const BIN: &str = "usr/local/bin";

/// A machine's files below a directory, with our programs in them.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let machine = Machine {
            dir: tempfile::tempdir().unwrap(),
        };
        let program = format!("{BIN}/pinfold");
        machine.put(&program, "#!/bin/sh\n");
        machine.mode(&program, 0o755);
        machine.mode(BIN, 0o755);
        symlink("pinfold", machine.path(&format!("{BIN}/pinfold-runtime"))).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn add(&self, files: &Files) {
        for (name, text) in files {
            self.put(name, text);
        }
    }

    /// All its files but for our programs.
    fn files(&self) -> Files {
        let mut files = files_in(self.dir.path());
        files.retain(|name, _| !name.starts_with(BIN));
        files
    }

    fn pinfold(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .arg("--host-root")
            .arg(self.dir.path())
            .args(arguments)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn install(&self, engine: &str, more: &[&str]) -> String {
        let arguments = [&["install", engine, "--bin-dir", "/usr/local/bin"], more].concat();
        fine(self.pinfold(&arguments))
    }

    #[track_caller]
    fn uninstall(&self, engine: &str, more: &[&str]) -> String {
        fine(self.pinfold(&[&["uninstall", engine], more].concat()))
    }
}

type Files = BTreeMap<String, String>;

fn files_in(dir: &Path) -> Files {
    fn visit(root: &Path, dir: &Path, files: &mut Files) {
        for entry in fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                visit(root, &path, files);
            } else if path.is_file() {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap();
                files.insert(name.to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut files = Files::new();
    visit(dir, dir, &mut files);
    files
}

#[track_caller]
fn fine(output: Output) -> String {
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(output: &Output, parts: &str) {
    let said = std::str::from_utf8(&output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.matches('\n').count(), 1, "one sentence: {said}");
    for part in parts.lines() {
        assert!(said.contains(part), "it should say {part:?}: {said}");
    }
}

#[track_caller]
fn same(found: &Files, expected: &Files, when: &str) {
    let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "the files {when}");
    for (name, text) in expected {
        assert_eq!(&found[name], text, "{name} {when}:\n{}", found[name]);
    }
}

/// Goes through one case.
fn check(engine: &str, case: &Path) {
    let text = |name: &str| fs::read_to_string(case.join(name)).ok();
    let before = files_in(&case.join("before"));
    let machine = Machine::new();
    machine.add(&before);
    let arguments = text("arguments").unwrap_or_default();
    let arguments: Vec<&str> = arguments.split_whitespace().collect();
    if let Some(parts) = text("says") {
        let words = [
            &["install", engine, "--bin-dir", "/usr/local/bin"],
            &arguments[..],
        ]
        .concat();
        refused(&machine.pinfold(&words), &parts);
        same(&machine.files(), &before, "after a refused install");
        return;
    }
    let dry = machine.install(engine, &[&arguments[..], &["--dry-run"]].concat());
    same(&machine.files(), &before, "after a dry run");
    machine.install(engine, &arguments);
    let after = files_in(&case.join("after"));
    if std::env::var_os("PINFOLD_ACCEPT").is_some() && after.is_empty() {
        for (name, text) in machine.files() {
            let path = case.join("after").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        return;
    }
    same(&machine.files(), &after, "after the install");
    let is_shown =
        |name: &&String| before.get(*name) != after.get(*name) && !after[*name].is_empty();
    for name in after.keys().filter(is_shown) {
        assert!(
            dry.contains(&format!("+++ {}", machine.path(name).display())),
            "{dry}"
        );
    }
    let twice = machine.install(engine, &arguments);
    assert!(twice.contains("knows Pinfold already"), "{twice}");
    same(&machine.files(), &after, "after a second install");
    machine.add(&files_in(&case.join("changed")));
    if let Some(parts) = text("uninstall-says") {
        refused(
            &machine.pinfold(&[&["uninstall", engine], &arguments[..]].concat()),
            &parts,
        );
        same(&machine.files(), &after, "after a refused uninstall");
        return;
    }
    machine.uninstall(engine, &[&arguments[..], &["--dry-run"]].concat());
    machine.uninstall(engine, &arguments);
    let left = case.join("left");
    let left = if left.exists() {
        files_in(&left)
    } else {
        before
    };
    same(&machine.files(), &left, "after the uninstall");
    assert!(!machine.path("etc/pinfold/crio-hooks.d").exists());
    let twice = machine.uninstall(engine, &arguments);
    assert!(twice.contains("has nothing of Pinfold's"), "{twice}");
}

fn check_all(engine: &str) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/install")
        .join(engine);
    let mut cases: Vec<PathBuf> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    assert!(!cases.is_empty());
    for case in cases {
        eprintln!("{}", case.display());
        check(engine, &case);
    }
}

#[test]
fn podman() {
    check_all("podman");
}

#[test]
fn crio() {
    check_all("crio");
}

#[test]
fn containerd() {
    check_all("containerd");
}

#[test]
fn docker() {
    check_all("docker");
}

#[test]
fn a_file_keeps_its_mode_and_owner_and_so_does_the_copy() {
    let machine = Machine::new();
    machine.put("etc/docker/daemon.json", "{}\n");
    machine.mode("etc/docker/daemon.json", 0o600);
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(machine.path("etc/docker/daemon.json"), Some(7), Some(8)).unwrap();
    }
    let looks = |name: &str| {
        let metadata = machine.path(name).metadata().unwrap();
        (metadata.mode() & 0o777, metadata.uid(), metadata.gid())
    };
    let before = looks("etc/docker/daemon.json");
    assert_eq!(before.0, 0o600);
    machine.install("docker", &[]);
    assert_eq!(looks("etc/docker/daemon.json"), before);
    assert_eq!(looks("etc/docker/daemon.json.before-pinfold"), before);
    machine.uninstall("docker", &[]);
    assert_eq!(looks("etc/docker/daemon.json"), before);
}

#[test]
fn a_link_stays_a_link_and_leads_no_further_than_the_root() {
    let machine = Machine::new();
    machine.put("etc/elsewhere/daemon.json", "{}\n");
    fs::create_dir_all(machine.path("etc/docker")).unwrap();
    symlink(
        "/etc/elsewhere/daemon.json",
        machine.path("etc/docker/daemon.json"),
    )
    .unwrap();
    machine.install("docker", &[]);
    let link = machine.path("etc/docker/daemon.json");
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let text = fs::read_to_string(machine.path("etc/elsewhere/daemon.json")).unwrap();
    assert!(text.contains("pinfold-runtime"));
    machine.uninstall("docker", &[]);
    assert!(link.symlink_metadata().unwrap().is_symlink());
    let text = fs::read_to_string(machine.path("etc/elsewhere/daemon.json")).unwrap();
    assert_eq!(text, "{}\n");
}

#[test]
fn programs_that_are_missing_or_that_others_can_change_are_refused() {
    let arguments = ["install", "podman", "--bin-dir", "/usr/local/bin"];
    let machine = Machine::new();
    fs::remove_file(machine.path("usr/local/bin/pinfold")).unwrap();
    refused(
        &machine.pinfold(&arguments),
        "there is no /usr/local/bin/pinfold\n--bin-dir",
    );
    for (mode, parts) in [(0o644, "chmod a+x"), (0o777, "can be written by anybody")] {
        let machine = Machine::new();
        machine.mode("usr/local/bin/pinfold", mode);
        refused(&machine.pinfold(&arguments), parts);
        assert!(machine.files().is_empty());
    }
}

#[test]
fn without_the_shim_there_are_hooks_and_engines_without_hooks_are_refused() {
    let machine = Machine::new();
    fs::remove_file(machine.path("usr/local/bin/pinfold-runtime")).unwrap();
    for engine in ["containerd", "docker"] {
        let arguments = ["install", engine, "--bin-dir", "/usr/local/bin"];
        refused(
            &machine.pinfold(&arguments),
            "there is no pinfold-runtime beside /usr/local/bin/pinfold",
        );
        assert!(machine.files().is_empty());
    }
    machine.install("podman", &[]);
    assert_eq!(
        machine.files().len(),
        2,
        "hook files alone: podman reads the directory by default"
    );
    machine.install("crio", &[]);
    let files = machine.files();
    assert!(files.values().all(|text| !text.contains("pinfold-runtime")));
    assert!(files["etc/crio/crio.conf.d/99-pinfold.conf"].contains("crio-hooks.d"));
    machine.uninstall("podman", &[]);
    machine.uninstall("crio", &[]);
    assert!(machine.files().is_empty());
}

#[test]
fn a_new_place_of_the_programs_replaces_the_old_one_and_the_original_comes_back() {
    for engine in ["podman", "crio", "containerd", "docker"] {
        let machine = Machine::new();
        machine.put("etc/containerd/config.toml", "version = 2\n");
        machine.put("etc/docker/daemon.json", "{\"debug\":true}");
        let before = machine.files();
        machine.install(engine, &[]);
        fs::create_dir_all(machine.path("opt")).unwrap();
        fs::rename(machine.path("usr/local/bin"), machine.path("opt/bin")).unwrap();
        fine(machine.pinfold(&["install", engine, "--bin-dir", "/opt/bin"]));
        let files = machine.files();
        assert!(
            files
                .values()
                .any(|text| text.contains("/opt/bin/pinfold-runtime"))
        );
        let is_old = |name: &&String| {
            !name.ends_with(".before-pinfold") && files[*name].contains("/usr/local/bin")
        };
        assert_eq!(files.keys().find(is_old), None, "{engine}");
        machine.uninstall(engine, &[]);
        let mut left = machine.files();
        left.retain(|name, _| !name.starts_with("opt/bin"));
        same(&left, &before, engine);
    }
}

#[test]
fn hooks_are_given_the_options_of_the_install() {
    let machine = Machine::new();
    let options = [
        "--conf-dir",
        "/pools",
        "--run-dir",
        "/claims",
        "install",
        "podman",
        "--bin-dir",
        "/usr/local/bin",
    ];
    fine(machine.pinfold(&options));
    let file = &machine.files()["usr/share/containers/oci/hooks.d/pinfold-poststop.json"];
    let file: serde_json::Value = serde_json::from_str(file).unwrap();
    let args: Vec<&str> = file["hook"]["args"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|arg| arg.as_str())
        .collect();
    assert_eq!(args[5..], ["--conf-dir", "/pools", "--run-dir", "/claims"]);
}

#[test]
fn without_the_copy_just_ours_is_taken_out_of_containerds_file() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/install/containerd");
    let mut tried = 0;
    for case in fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
    {
        // Without the copy nobody knows what went by our name.
        let is_other = case.ends_with("namesake")
            || ["says", "uninstall-says", "left"]
                .iter()
                .any(|name| case.join(name).exists());
        let before = files_in(&case.join("before"));
        if is_other || before.is_empty() {
            continue;
        }
        let machine = Machine::new();
        machine.add(&before);
        machine.install("containerd", &[]);
        for name in machine
            .files()
            .keys()
            .filter(|name| name.ends_with(".before-pinfold"))
        {
            fs::remove_file(machine.path(name)).unwrap();
        }
        machine.uninstall("containerd", &[]);
        let left = machine.files();
        assert!(left.keys().eq(before.keys()), "{}", case.display());
        for (name, text) in &before {
            let parse = |text: &str| text.parse::<toml::Table>().unwrap();
            assert_eq!(
                parse(&left[name]),
                parse(text),
                "{}: {}",
                case.display(),
                left[name]
            );
            // Where nothing is left but a blank line's difference, comments and order have stayed
            // too.
            let lines = |text: &str| {
                text.lines()
                    .filter(|line| !line.trim().is_empty())
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let is_edited_inside = case.ends_with("inline");
            assert!(
                is_edited_inside || lines(&left[name]) == lines(text),
                "{}",
                case.display()
            );
        }
        tried += 1;
    }
    assert!(tried > 8, "{tried}");
}

/// podman without root: in the user's own directories, over what the machine's files say, and
/// nothing of the machine's is touched.
#[test]
fn a_user_installs_in_the_users_own_directories() {
    let machine = Machine::new();
    let config = "home/me/.config";
    machine.put(
        &format!("{config}/containers/containers.conf"),
        "[engine]\nhooks_dir = [\"/home/me/hooks\"]\n",
    );
    machine.put(
        "usr/share/containers/oci/hooks.d/pinfold-poststop.json",
        "{}",
    );
    let before = machine.files();
    let pinfold = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        command
            .arg("--host-root")
            .arg(machine.dir.path())
            .args(words);
        command.env("XDG_CONFIG_HOME", "/home/me/.config");
        command
            .env("XDG_RUNTIME_DIR", "/run/user/7")
            .output()
            .unwrap()
    };
    let install = ["install", "podman", "--user", "--bin-dir", "/usr/local/bin"];
    fine(pinfold(&install));
    let files = machine.files();
    let drop_in = &files[&format!("{config}/containers/containers.conf.d/99-pinfold.conf")];
    let expected = r#"hooks_dir = ["/home/me/hooks", "/home/me/.config/containers/oci/hooks.d"]"#;
    assert!(drop_in.contains(expected), "{drop_in}");
    assert!(!drop_in.contains("runtime"), "{drop_in}");
    for stage in ["createRuntime", "poststop"] {
        let file = &files[&format!("{config}/containers/oci/hooks.d/pinfold-{stage}.json")];
        let file: serde_json::Value = serde_json::from_str(file).unwrap();
        let args = file["hook"]["args"].as_array().unwrap();
        let args: Vec<&str> = args.iter().filter_map(|arg| arg.as_str()).collect();
        assert_eq!(
            args[5..],
            [
                "--conf-dir",
                "/home/me/.config/pinfold/kcm",
                "--run-dir",
                "/run/user/7/pinfold"
            ]
        );
    }
    assert_eq!(files.len(), before.len() + 3);
    assert!(fine(pinfold(&install)).contains("knows Pinfold already"));
    fine(pinfold(&["uninstall", "podman", "--user"]));
    same(&machine.files(), &before, "after the uninstall");
    let output = pinfold(&["install", "docker", "--user"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("`pinfold install podman --user"), "{said}");
    let output = pinfold(&["uninstall", "docker", "--user"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("`pinfold uninstall podman --user"), "{said}");
    let relative = Command::new(env!("CARGO_BIN_EXE_pinfold"))
        .args(["--host-root", "/nowhere"])
        .args(install)
        .env("XDG_CONFIG_HOME", "config")
        .output();
    refused(&relative.unwrap(), "not an absolute path");
}

/// CRI-O reads every file of its directory: what makes room for ours leaves it, and nothing there
/// is lost.
#[test]
fn what_makes_room_is_not_in_force_any_more() {
    const DROP_IN: &str = "etc/crio/crio.conf.d/99-pinfold.conf";
    let machine = Machine::new();
    for text in ["# one\n", "# another\n"] {
        machine.add(&Files::from([(DROP_IN.to_owned(), text.to_owned())]));
        let words = ["install", "crio", "--bin-dir", "/usr/local/bin"];
        let output = machine.pinfold(&words);
        refused(&output, "move it away");
        let said = String::from_utf8(output.stderr).unwrap();
        let command = said
            .split('`')
            .find(|part| part.starts_with("mv "))
            .unwrap();
        assert!(
            Command::new("sh")
                .args(["-c", command])
                .status()
                .unwrap()
                .success()
        );
        machine.install("crio", &[]);
        let files = machine.files();
        let in_force = files
            .keys()
            .filter(|name| name.starts_with("etc/crio/crio.conf.d/"));
        assert_eq!(in_force.collect::<Vec<_>>(), [DROP_IN]);
    }
    let kept: Vec<String> = machine.files().into_values().collect();
    assert!(kept.contains(&"# one\n".to_owned()) && kept.contains(&"# another\n".to_owned()));
}

/// The devices that an engine's install brings follow the pools and go with the last engine that
/// uses them; those that were asked for by themselves stay.
#[test]
fn devices_come_and_go_with_the_engines_that_use_them() {
    const FILE: &str = "etc/cdi/pinfold.json";
    let machine = || {
        let machine = Machine::new();
        machine.put("etc/kcm/lock", "");
        machine.put("etc/kcm/pools/dp/exclusive", "1");
        machine.put("etc/kcm/pools/dp/1/tasks", "");
        machine
    };
    let has = |machine: &Machine| machine.files().contains_key(FILE);
    let cdi = |machine: &Machine| fine(machine.pinfold(&["cdi", "--bin-dir", "/usr/local/bin"]));
    for engine in ["containerd", "crio"] {
        let machine = machine();
        machine.install(engine, &[]);
        assert!(!has(&machine), "{engine}");
    }
    for engine in ["podman", "docker"] {
        let machine = machine();
        let before = machine.files();
        let said = machine.install(engine, &[]);
        assert!(said.contains("made ") && said.contains(FILE), "{said}");
        assert!(machine.files()[FILE].contains("\"name\": \"dp\""));
        assert!(
            machine
                .install(engine, &[])
                .contains("knows Pinfold already")
        );
        machine.uninstall(engine, &[]);
        same(&machine.files(), &before, engine);
        // By itself first, or afterwards: then it stays.
        for is_first in [true, false] {
            if is_first {
                cdi(&machine);
            }
            let by_itself = machine.files();
            machine.install(engine, &[]);
            if !is_first {
                cdi(&machine);
            }
            machine.uninstall(engine, &[]);
            assert!(has(&machine), "{engine}");
            if is_first {
                same(&machine.files(), &by_itself, engine);
            }
            machine.uninstall("cdi", &[]);
            same(&machine.files(), &before, engine);
        }
    }
    let machine = machine();
    machine.install("podman", &[]);
    machine.install("docker", &[]);
    machine.uninstall("podman", &[]);
    assert!(has(&machine), "docker uses it");
    machine.uninstall("docker", &[]);
    assert!(!has(&machine));

    // Where docker has been told to have none, none are written; and somebody else's file is left
    // alone.
    machine.put("etc/docker/daemon.json", r#"{"features":{"cdi":false}}"#);
    machine.install("docker", &[]);
    assert!(!has(&machine));
    machine.uninstall("docker", &[]);
    machine.put("etc/docker/daemon.json", "{}");
    machine.put(FILE, r#"{"kind":"example.com/other"}"#);
    machine.install("docker", &[]);
    machine.uninstall("docker", &[]);
    assert!(machine.files()[FILE].contains("example.com/other"));
}

/// Devices that are CPU lists have a file of their own, for whoever asks for it.
#[test]
fn devices_of_single_lists_are_in_a_file_of_their_own() {
    const POOLS: &str = "etc/cdi/pinfold.json";
    const LISTS: &str = "etc/cdi/pinfold-lists.json";
    let machine = Machine::new();
    machine.put("etc/kcm/lock", "");
    let long: Vec<String> = (50..75).map(|half| (2 * half).to_string()).collect();
    let pools = ["dp/4,12", "dp/0-2,8-10", "cp/5", "none/6"].map(str::to_owned);
    for list in pools.into_iter().chain([format!("dp/{}", long.join(","))]) {
        let (pool, _) = list.split_once('/').unwrap();
        machine.put(&format!("etc/kcm/pools/{pool}/exclusive"), "1");
        machine.put(&format!("etc/kcm/pools/{list}/tasks"), "");
    }
    let before = machine.files();
    let cdi = |more: &[&str]| {
        let arguments = [&["cdi", "--bin-dir", "/usr/local/bin"], more].concat();
        machine.pinfold(&arguments)
    };
    let names = |file: &str| -> Vec<String> {
        let value: serde_json::Value = serde_json::from_str(&machine.files()[file]).unwrap();
        let devices = value["devices"].as_array().unwrap().clone();
        let name = |device: serde_json::Value| device["name"].as_str().unwrap().to_owned();
        devices.into_iter().map(name).collect()
    };
    fine(cdi(&[]));
    assert!(!machine.files().contains_key(LISTS));
    let made = cdi(&["--lists"]);
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(
        said.contains("is no device") && said.contains("63"),
        "{said}"
    );
    fine(made);
    assert_eq!(names(LISTS), ["cp.5", "dp.0-2_8-10", "dp.4_12"]);
    assert!(!names(POOLS).contains(&"dp.4_12".to_owned()));
    let text = machine.files()[LISTS].clone();
    assert!(text.contains("\"kind\": \"pinfold.io/list\""), "{text}");
    assert!(text.contains("\"dp:4,12\"") && text.contains("PINFOLD_POOL=dp"));
    let again = machine.install("cdi-lists", &[]);
    assert!(again.contains("the CDI file of lists knows Pinfold already"));
    // Those of changed pools, and of none.
    fs::remove_dir_all(machine.path("etc/kcm/pools/dp")).unwrap();
    fine(cdi(&["--lists"]));
    assert_eq!(names(LISTS), ["cp.5"]);
    fs::remove_dir_all(machine.path("etc/kcm/pools/cp")).unwrap();
    fine(cdi(&["--lists"]));
    let without = format!("{LISTS}.without-pools");
    assert!(machine.files().contains_key(&without) && !machine.files().contains_key(LISTS));
    machine.uninstall("cdi-lists", &[]);
    assert!(!machine.files().contains_key(&without) && machine.files().contains_key(POOLS));
    // Those of the pools take them along; those of somebody else stay.
    machine.add(&before);
    fine(cdi(&["--lists"]));
    machine.uninstall("cdi", &[]);
    same(&machine.files(), &before, "both are gone");
    machine.put(LISTS, r#"{"kind":"pinfold.io/pool"}"#);
    refused(&cdi(&["--lists"]), "is there and is not of Pinfold\nmv ");
}

/// A device that vanishes fails the pods that have it, so that of a pool that cannot be read all is
/// kept, and the others are written; the exit status tells.
#[test]
fn a_pool_that_cannot_be_read_keeps_its_devices_and_stops_no_other() {
    for (option, file) in [
        (&[][..], "etc/cdi/pinfold.json"),
        (&["--lists"], "etc/cdi/pinfold-lists.json"),
    ] {
        let machine = Machine::new();
        machine.put("etc/kcm/lock", "");
        let add = |list: &str| {
            let (pool, _) = list.split_once('/').unwrap();
            machine.put(&format!("etc/kcm/pools/{pool}/exclusive"), "1");
            machine.put(&format!("etc/kcm/pools/{list}/tasks"), "");
        };
        ["cp/5", "dp/0-2", "dp/4", "ep/6"].into_iter().for_each(add);
        let cdi = || {
            let arguments = [&["cdi", "--bin-dir", "/usr/local/bin"], option].concat();
            machine.pinfold(&arguments)
        };
        let spoil = |pool: &str| machine.put(&format!("etc/kcm/pools/{pool}/exclusive"), "?");
        let live = || machine.files().get(file).cloned();
        // Nothing is known of any pool: there is no file, not even one without devices.
        ["cp", "dp", "ep"].into_iter().for_each(spoil);
        refused(&cdi(), "pool cp: \npool dp: \npool ep: ");
        let made = machine.files();
        assert!(made.keys().all(|name| !name.contains("cdi")), "{made:?}");
        // The others are written.
        ["cp/5", "ep/6"].into_iter().for_each(add);
        refused(&cdi(), "pool dp: \nits CDI devices stay as they were");
        let text = live().unwrap();
        assert!(text.contains("PINFOLD_POOL=cp") && !text.contains("PINFOLD_POOL=dp"));
        // What is known of one stays, to the last byte, also where all cannot be read.
        add("dp/0-2");
        fine(cdi());
        let whole = live().unwrap();
        spoil("dp");
        refused(&cdi(), "pool dp: ");
        assert_eq!(live().unwrap(), whole);
        ["cp", "ep"].into_iter().for_each(spoil);
        refused(&cdi(), "pool cp: \npool dp: \npool ep: ");
        assert_eq!(live().unwrap(), whole);
        // The others follow the pools meanwhile.
        ["cp/5", "ep/6", "ep/7"].into_iter().for_each(add);
        refused(&cdi(), "pool dp: ");
        let text = live().unwrap();
        assert!(
            text.len() > whole.len() && text.contains("PINFOLD_POOL=dp"),
            "{text}"
        );
        fs::remove_dir_all(machine.path("etc/kcm/pools/dp")).unwrap();
        fine(cdi());
        assert!(!live().unwrap().contains("PINFOLD_POOL=dp"));
    }
}

/// Stops an install, as a kill would, before its last changes: what it would have written is
/// written but for those.
#[test]
fn an_install_that_was_killed_is_completed_or_taken_back() {
    for engine in ["podman", "crio", "containerd", "docker"] {
        let before = Machine::new();
        before.put("etc/containerd/config.toml", "version = 2\n");
        before.put("etc/docker/daemon.json", "{\"debug\":true}");
        let original = before.files();
        before.install(engine, &[]);
        let whole = before.files();
        let written: Vec<&String> = whole
            .keys()
            .filter(|name| original.get(*name) != whole.get(*name))
            .collect();
        // The copy is made first, so any of the others can be missing.
        for missing in written
            .iter()
            .filter(|name| !name.ends_with(".before-pinfold"))
        {
            let machine = Machine::new();
            machine.add(&whole);
            match original.get(*missing) {
                Some(text) => machine.put(missing, text),
                None => fs::remove_file(machine.path(missing)).unwrap(),
            }
            // Of a file in a directory that is read as a whole, the half-written one has to go as
            // well.
            let (dir, name) = missing.rsplit_once('/').unwrap();
            if dir.ends_with("conf.d") {
                machine.put(&format!("{dir}/.{name}.a1b2c3"), "[half");
            }
            machine.uninstall(engine, &[]);
            same(
                &machine.files(),
                &original,
                &format!("{engine}: taken back without {missing}"),
            );

            let machine = Machine::new();
            machine.add(&whole);
            match original.get(*missing) {
                Some(text) => machine.put(missing, text),
                None => fs::remove_file(machine.path(missing)).unwrap(),
            }
            machine.install(engine, &[]);
            same(
                &machine.files(),
                &whole,
                &format!("{engine}: completed without {missing}"),
            );
        }
    }
}
