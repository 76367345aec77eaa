//! `pinfold status` and `pinfold describe`: what they show of pools and owners, and how it looks on
//! a terminal.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Output};

use pinfold::claims::{Claim, Ledger, OwnerKind, VERSION};
use pinfold::host::Host;
use pinfold::names::Names;
use pinfold::process::{self, Process};
use serde_json::{Value, json};

const LONG_ID: &str = "3f9ac41b0c22d101a341a54fee30a6962c141ce094a217e424eee85b48eec491";

/// An exclusive pool `dataplane` of four lists, a shared one, and a process that can own some.
struct Site {
    dir: tempfile::TempDir,
    waiting: Child,
}

impl Site {
    fn new() -> Site {
        let site = Site {
            dir: tempfile::tempdir().unwrap(),
            waiting: Command::new("sleep").arg("600").spawn().unwrap(),
        };
        // A machine of 16 CPUs with our own processes.
        site.put("root/sys/devices/system/cpu/online", "0-15\n");
        symlink("/proc", site.path("root/proc")).unwrap();
        site.put("kcm/lock", "");
        site.put("kcm/pools/dataplane/exclusive", "1");
        for list in ["4,12", "5,13", "6,14", "7,15"] {
            site.put(&format!("kcm/pools/dataplane/{list}/tasks"), "");
        }
        site.put("kcm/pools/common/exclusive", "0");
        site.put("kcm/pools/common/0-3,8-11/tasks", "");
        site
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
            .take_while(|path| path.starts_with(self.dir.path()))
        {
            let mode = if ancestor.is_dir() { 0o755 } else { 0o644 };
            fs::set_permissions(ancestor, fs::Permissions::from_mode(mode)).unwrap();
        }
    }

    /// Records the waiting process as the owner of these lists.
    fn own(&self, id: &str, names: Names, lists: &[&str]) {
        let host = Host::new("/");
        let pid = self.waiting.id() as i32;
        let owner = Process::with_pid(&host, pid).unwrap().unwrap();
        let claim = Claim {
            version: VERSION,
            id: id.into(),
            kind: OwnerKind::Container,
            names,
            nonce: None,
            awaited: None,
            boot_id: process::boot_id(&host).unwrap(),
            owner,
            processes: vec![owner],
            pool: "dataplane".into(),
            lists: lists.iter().map(|list| (*list).to_owned()).collect(),
            cpus: lists.join(",").parse().unwrap(),
            mems: None,
            cgroup: None,
            isolation: None,
            tuning: Default::default(),
            by_default: id == "plain",
            unit_settings: Vec::new(),
            is_slow: false,
            is_exact: false,
            since: 1_700_000_000,
        };
        Ledger::open(&self.path("run"))
            .unwrap()
            .write(&claim)
            .unwrap();
        for list in lists {
            self.put(
                &format!("kcm/pools/dataplane/{list}/tasks"),
                &pid.to_string(),
            );
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        command.arg("--host-root").arg(self.path("root"));
        command.arg("--conf-dir").arg(self.path("kcm"));
        command.arg("--run-dir").arg(self.path("run"));
        command.args(arguments);
        command
            .env_remove("COLUMNS")
            .env_remove("NO_COLOR")
            .env("TERM", "xterm");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.run(arguments).stdout).unwrap()
    }

    /// What a terminal of so many columns is shown on standard output, and the exit code.
    fn on_terminal(&self, columns: u16, command: &mut Command) -> (String, Option<i32>) {
        let size = libc::winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let (mut main, mut side) = (-1, -1);
        // SAFETY: the two numbers are written, the size is read, and the other pointers may be null
        // (openpty(3)).
        let made = unsafe {
            libc::openpty(
                &raw mut main,
                &raw mut side,
                std::ptr::null_mut(),
                std::ptr::null(),
                &raw const size,
            )
        };
        assert_eq!(made, 0);
        // SAFETY: openpty has just made both, and nobody else has them.
        let (mut main, side) = unsafe { (File::from_raw_fd(main), File::from_raw_fd(side)) };
        let mut child = command.stdout(side).spawn().unwrap();
        let code = child.wait().unwrap().code();
        // The command holds the last copy of our side until it is dropped with its standard output.
        command.stdout(std::process::Stdio::null());
        let mut shown = Vec::new();
        let mut chunk = [0; 4096];
        // EIO says that nobody has the other side any more.
        while let Ok(length @ 1..) = main.read(&mut chunk) {
            shown.extend(&chunk[..length]);
        }
        (String::from_utf8(shown).unwrap().replace('\r', ""), code)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.waiting.kill().unwrap();
        self.waiting.wait().unwrap();
    }
}

fn names(name: &str, pod: Option<&str>) -> Names {
    Names {
        engine: Some("containerd".into()),
        name: Some(name.into()),
        pod: pod.map(str::to_owned),
        namespace: pod.map(|_| "prod".into()),
        unit: None,
    }
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn one_row_an_owner_fits_80_columns() {
    let site = Site::new();
    let pod = "checkout-frontend-7fb96c846b-x2x9k";
    site.own(
        LONG_ID,
        names("nginx", Some(pod)),
        &["4,12", "5,13", "6,14"],
    );
    for verb in ["status", "describe"] {
        let output = site.run(&[verb]);
        assert!(output.status.success(), "{output:?}");
        let shown = text(&output);
        let rows: Vec<&str> = shown
            .lines()
            .filter(|line| line.contains("3f9ac41b0c22"))
            .collect();
        let [row] = rows[..] else { panic!("{shown}") };
        let cells: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(cells.len(), 7, "{row}");
        assert_eq!(
            (cells[0], cells[2], cells[3]),
            ("3f9ac41b0c22", "containerd", "dataplane")
        );
        assert!(cells[1].starts_with("checkout-fro"), "{row}");
        assert!(
            shown.lines().all(|line| line.chars().count() <= 80),
            "{shown}"
        );
        assert!(
            shown.contains("7,15") && shown.contains("shared"),
            "what is free: {shown}"
        );

        let whole = text(&site.run(&[verb, "--no-trunc"]));
        let wide = text(&site.run(&[verb, "-o", "wide"]));
        for shown in [&whole, &wide] {
            assert!(shown.contains(LONG_ID), "{shown}");
            assert!(shown.contains(&format!("{pod}/nginx")), "{shown}");
            assert!(shown.contains("4,12,5,13,6,14"), "{shown}");
        }
        assert!(
            wide.contains("RUNS-ON") && wide.contains("2023-11-14T22:13:20Z"),
            "{wide}"
        );
    }
}

#[test]
fn the_document_has_all_that_is_known_of_owners() {
    let site = Site::new();
    site.own(LONG_ID, names("nginx", Some("web")), &["4,12", "5,13"]);
    let pid = site.waiting.id();
    let document = site.json(&["status", "--json"]);
    assert_eq!(document, site.json(&["describe", "-o", "json"]));
    let allowed = process::allowed_cpus(&Host::new("/"), pid as i32).unwrap();
    assert_eq!(
        document["owners"],
        json!([{
            "byDefault": false, "cpus": "4-5,12-13", "engine": "containerd", "id": LONG_ID, "isolation": "none",
            "lists": ["4,12", "5,13"], "name": "nginx", "namespace": "prod", "pid": pid,
            "pod": "web", "pool": "dataplane", "runsOn": allowed.to_string(),
            "since": "2023-11-14T22:13:20Z", "state": "running", "tuning": {}, "unit": null,
        }])
    );
    let lists = document["pools"][1]["lists"].as_array().unwrap();
    let states: Vec<&Value> = lists.iter().map(|list| &list["state"]).collect();
    assert_eq!(states, ["owned", "owned", "free", "free"]);
    assert_eq!(document["isWhole"], true);
}

#[test]
fn who_is_in_a_pool_by_default_is_marked() {
    let site = Site::new();
    site.own("plain", names("nginx", None), &["4,12"]);
    let shown = text(&site.run(&["status"]));
    assert!(shown.contains("dataplane (default)"), "{shown}");
    let owner = &site.json(&["status", "--json"])["owners"][0];
    assert_eq!(
        (&owner["byDefault"], &owner["pool"]),
        (&json!(true), &json!("dataplane"))
    );
}

#[test]
fn who_shares_its_cpus_against_its_pools_wish_is_marked() {
    let site = Site::new();
    site.own("plain", names("nginx", None), &["4,12"]);
    for (isolation, is_marked) in [("root", true), ("none", false)] {
        site.put("kcm/pools/dataplane/isolation", isolation);
        for verb in ["status", "describe"] {
            let shown = text(&site.run(&[verb]));
            assert_eq!(shown.contains("running*"), is_marked, "{shown}");
            let remarks = shown
                .lines()
                .filter(|line| line.starts_with("* others can run on its CPUs"));
            assert_eq!(remarks.count(), usize::from(is_marked), "{shown}");
            assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
        }
        let lists = &site.json(&["describe", "--json"])["pools"]["dataplane"]["cpuLists"];
        let said = is_marked.then_some("none");
        assert_eq!(lists["4,12"]["isolation"].as_str(), said);
        assert_eq!(lists["7,15"]["isolation"].as_str(), said);
    }
}

#[test]
fn kcms_document_is_kcms_byte_for_byte() {
    let mut site = Site::new();
    fs::remove_dir_all(site.path("kcm/pools/common")).unwrap();
    for list in ["5,13", "6,14"] {
        fs::remove_dir_all(site.path(&format!("kcm/pools/dataplane/{list}"))).unwrap();
    }
    site.put("kcm/pools/dataplane/4,12/tasks", "2000");
    let path = site.path("kcm").canonicalize().unwrap();
    let expected = format!(
        r#"{{
  "path": "{}",
  "pools": {{
    "dataplane": {{
      "cpuLists": {{
        "4,12": {{
          "cpus": "4,12",
          "tasks": [
            2000
          ]
        }},
        "7,15": {{
          "cpus": "7,15",
          "tasks": []
        }}
      }},
      "exclusive": true,
      "name": "dataplane"
    }}
  }}
}}
"#,
        path.display()
    );
    let output = site.run(&["describe", "--json"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(text(&output), expected);
    site.waiting.kill().unwrap();
}

#[test]
fn what_does_not_belong_there_hides_nothing_else() {
    for stray in [
        "kcm/pools/dataplane/stray/file",
        "kcm/pools/dataplane/16/other/tasks",
        "kcm/pools/odd/file",
    ] {
        let site = Site::new();
        site.own(LONG_ID, names("nginx", None), &["4,12"]);
        site.put(stray, "");
        for arguments in [
            &["status"][..],
            &["status", "--json"],
            &["describe"],
            &["describe", "--json"],
        ] {
            let output = site.run(arguments);
            assert_eq!(output.status.code(), Some(1), "{stray}: {output:?}");
            let said = String::from_utf8(output.stderr.clone()).unwrap();
            assert!(said.contains("/kcm") || said.contains("stray"), "{said}");
            let shown = text(&output);
            for part in ["4,12", "5,13", "dataplane", "common"] {
                assert!(shown.contains(part), "{stray}, {arguments:?}: {shown}");
            }
        }
        assert!(text(&site.run(&["status"])).contains("3f9ac41b0c22"));
    }
}

#[test]
fn an_owner_of_a_pool_that_cannot_be_read_is_shown() {
    let site = Site::new();
    site.own("web", names("nginx", None), &["4,12"]);
    fs::remove_file(site.path("kcm/pools/dataplane/exclusive")).unwrap();
    let output = site.run(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output);
    let row = shown.lines().find(|line| line.contains("nginx")).unwrap();
    assert!(row.contains("running"), "{row}");
}

#[test]
fn a_claim_that_cannot_be_read_is_an_owner() {
    let site = Site::new();
    site.own("web", names("nginx", None), &["4,12"]);
    let dir = site.path("run/claims/web");
    let file = fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    fs::write(&file, "{").unwrap();
    let shown = text(&site.run(&["status"]));
    let rows: Vec<&str> = shown
        .lines()
        .filter(|line| line.starts_with("web "))
        .collect();
    assert!(rows.len() == 1 && rows[0].contains("unreadable"), "{shown}");
    let lists = site.json(&["status", "--json"])["pools"][1]["lists"].clone();
    assert_eq!(lists[0]["state"], "owned");
}

#[test]
fn what_another_tool_recorded_is_shown_by_its_process() {
    let site = Site::new();
    let pid = site.waiting.id();
    for list in ["4,12", "5,13"] {
        site.put(
            &format!("kcm/pools/dataplane/{list}/tasks"),
            &pid.to_string(),
        );
    }
    let shown = text(&site.run(&["status"]));
    let rows: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("sleep"))
        .collect();
    let [row] = rows[..] else { panic!("{shown}") };
    assert!(row.starts_with(&format!("pid:{pid} ")), "{row}");
    assert!(
        row.contains("4,12,5,13") && row.contains("running"),
        "{row}"
    );
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let site = Site::new();
    site.own(LONG_ID, names("nginx", None), &["4,12"]);
    let green = "\x1b[32mrunning\x1b[0m";
    let (shown, code) = site.on_terminal(100, &mut site.command(&["status"]));
    assert!(shown.contains(green) && code == Some(0), "{shown:?}");
    let mut plain = site.command(&["status"]);
    let (shown, _) = site.on_terminal(100, plain.env("NO_COLOR", "1"));
    assert!(
        shown.contains("running") && !shown.contains('\x1b'),
        "{shown:?}"
    );
    assert!(!text(&site.run(&["status"])).contains('\x1b'));

    let (shown, code) = site.on_terminal(200, &mut site.command(&["check"]));
    assert!(
        code.is_some() && shown.contains("\x1b[32mok\x1b[0m"),
        "{shown:?}"
    );
    let mut plain = site.command(&["check"]);
    let (shown, _) = site.on_terminal(200, plain.env("NO_COLOR", "1"));
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn a_narrow_terminal_is_kept_to() {
    let site = Site::new();
    site.put("kcm/pools/dataplane/stray/file", "");
    let mut check = site.command(&["check"]);
    let (shown, code) = site.on_terminal(60, check.env("NO_COLOR", "1"));
    assert_eq!(code, Some(1));
    let longest = |line: &&str| line.split_whitespace().map(str::len).max() < Some(30);
    let lines = || shown.lines().filter(longest);
    assert!(lines().all(|line| line.chars().count() <= 60), "{shown}");
    assert!(
        shown.lines().any(|line| line.starts_with("         ")),
        "{shown}"
    );
    // Scripts get a line a finding.
    let unwrapped = text(&site.run(&["check"]));
    assert!(
        unwrapped.lines().all(|line| !line.starts_with(' ')),
        "{unwrapped}"
    );

    site.own(
        LONG_ID,
        names("a-name-of-some-length", None),
        &["4,12", "5,13", "6,14"],
    );
    let (shown, _) = site.on_terminal(80, &mut site.command(&["status"]));
    let row = shown
        .lines()
        .find(|line| line.contains("3f9ac41b0c22"))
        .unwrap();
    let visible = row.replace("\x1b[32m", "").replace("\x1b[0m", "");
    assert!(visible.chars().count() <= 80, "{row}");
}

/// Shortened as it is there, by id and by name.
#[test]
fn what_is_shown_of_an_owner_is_what_release_takes() {
    let site = Site::new();
    let pod = "checkout-frontend-7fb96c846b-x2x9k";
    site.own(LONG_ID, names("nginx", Some(pod)), &["4,12"]);
    site.own(
        "isolate-4194304",
        names("forwarder-of-packets", None),
        &["5,13"],
    );
    let chosen = "an-id-that-somebody-chose-for-a-container-of-runc-4711";
    site.own(chosen, Names::default(), &["6,14"]);
    let other = site.waiting.id().to_string();
    site.put("kcm/pools/dataplane/7,15/tasks", &other);
    for verb in ["status", "describe"] {
        for width in ["40", "80", "300"] {
            let shown = text(
                &site
                    .command(&[verb])
                    .env("COLUMNS", width)
                    .output()
                    .unwrap(),
            );
            let (_, owners) = shown.split_once("\nID ").unwrap();
            let rows: Vec<&str> = owners.lines().skip(1).collect();
            assert_eq!(rows.len(), 4, "{shown}");
            for row in rows {
                let cells: Vec<&str> = row.split_whitespace().collect();
                // What another tool recorded has a process for a name, which is no owner's.
                let count = if row.starts_with("pid:") { 1 } else { 2 };
                for cell in cells.iter().take(count).filter(|cell| **cell != "-") {
                    let output = site.run(&["release", cell]);
                    let said = String::from_utf8(output.stderr).unwrap();
                    assert_eq!(output.status.code(), Some(1), "{cell}: {said}");
                    let part = match cell.starts_with("pid:") {
                        true => "another tool's hand",
                        false => "still runs on",
                    };
                    assert!(said.contains(part), "{cell} of {row}: {said}");
                }
            }
        }
    }
}
