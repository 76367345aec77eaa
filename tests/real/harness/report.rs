//! `PINFOLD_TEST_REPORT`: one line of JSON for each test, from which the table of what is supported
//! is made.

use crate::case::Case;
use crate::cgroups::hierarchy;
use crate::needs::{self, Need};
use libtest_mimic::Arguments;
use serde_json::{Value, json};
use std::io::Write;
use std::process::Command;
use std::sync::OnceLock;

/// A test under way: dropped without having passed, it has failed.
pub(crate) struct Record {
    line: Value,
    passed: bool,
}

impl Record {
    pub(crate) fn begin(case: &Case) -> Record {
        Record {
            line: line(case),
            passed: false,
        }
    }

    pub(crate) fn passed(mut self) {
        self.passed = true;
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.line["outcome"] = json!(if self.passed { "passed" } else { "failed" });
        append(&self.line.to_string());
    }
}

/// Records the tests that do not run: those that the command line's filters leave out, and those
/// that cannot run here.
pub(crate) fn left_out(cases: &[Case], arguments: &Arguments) {
    // They are many, and the file can lie on another machine: it is written once.
    let lines: Vec<String> = cases
        .iter()
        .filter_map(|case| {
            let missing = case.missing();
            let outcome = match case.is_chosen(arguments) {
                false => "not chosen",
                true if !missing.is_empty() => "skipped",
                true => return None,
            };
            let mut line = line(case);
            line["outcome"] = json!(outcome);
            line["missing"] = json!(missing);
            Some(line.to_string())
        })
        .collect();
    if !lines.is_empty() {
        append(&lines.join("\n"));
    }
}

fn line(case: &Case) -> Value {
    if std::env::var_os("PINFOLD_TEST_REPORT").is_none() {
        return Value::Null;
    }
    json!({
        "name": case.name,
        "engine": case.columns.map(|columns| columns.engine),
        "runtime": case.columns.map(|columns| columns.runtime),
        "door": case.columns.map(|columns| columns.door),
        "driver": case.columns.map(|columns| columns.driver),
        "cgroup": hierarchy().version,
        "kill_every": crate::strace::kill_every().to_string(),
        "versions": versions(),
        "commit": std::env::var("PINFOLD_TEST_COMMIT").ok().filter(|name| !name.is_empty()),
    })
}

fn append(text: &str) {
    let Some(path) = std::env::var_os("PINFOLD_TEST_REPORT") else {
        return;
    };
    let file = std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&path);
    let mut file = file.unwrap_or_else(|error| panic!("open the report {path:?}: {error}"));
    file.write_all(format!("{text}\n").as_bytes())
        .expect("write the report");
}

/// The version of everything that takes part, asked once.
fn versions() -> &'static Value {
    static ASKED: OnceLock<Value> = OnceLock::new();
    ASKED.get_or_init(|| {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .expect("read the kernel's release");
        let mut versions = json!({ "system": system(), "kernel": kernel.trim() });
        let programs = ["runc", "crun", "podman", "conmon", "dockerd", "containerd"];
        let asked = programs.map(|program| (program, program));
        let systemd = Need::Systemd.is_met().then_some(("systemd", "systemctl"));
        for (name, program) in asked.into_iter().chain(systemd) {
            let Some(path) = needs::find(program) else {
                continue;
            };
            let said = crate::process::run(Command::new(path).arg("--version")).stdout;
            versions[name] = json!(said.lines().next().and_then(version_in));
        }
        versions
    })
}

/// The distribution's name for itself (os-release(5)).
fn system() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches('"').to_owned()
}

/// The first word that begins with a digit.
fn version_in(line: &str) -> Option<&str> {
    line.split_whitespace()
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
}
