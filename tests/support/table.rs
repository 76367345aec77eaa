//! Makes docs/SUPPORT.md: what the tests on real parts have shown, from the reports that they write
//! (`PINFOLD_TEST_REPORT`), a file for each machine. `NAME-brief.jsonl` is that of a brief run, and
//! is left out where `NAME.jsonl`, that of a whole run of the same machine, is given too.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

const DOORS: [&str; 4] = ["hooks", "shim", "cdi", "nri"];
const PROGRAMS: [&str; 7] = [
    "systemd",
    "runc",
    "crun",
    "podman",
    "conmon",
    "dockerd",
    "containerd",
];

/// One line of a report.
#[derive(Deserialize)]
struct Line {
    name: String,
    engine: Option<String>,
    runtime: Option<String>,
    driver: Option<String>,
    door: Option<String>,
    cgroup: u8,
    /// As `PINFOLD_TEST_KILL_EVERY` has it.
    kill_every: String,
    versions: BTreeMap<String, String>,
    outcome: Outcome,
    #[serde(default)]
    missing: Vec<String>,
    /// What was tested, as `git describe` calls it.
    commit: Option<String>,
}

/// Of several outcomes of one test the last one here counts.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// The filters on the command line left it out.
    #[serde(rename = "not chosen")]
    NotChosen,
    Skipped,
    Passed,
    Failed,
}

/// All lines of one report, that is of one machine.
struct Machine {
    name: String,
    lines: Vec<Line>,
}

/// How many tests ended how.
#[derive(Default, Clone, Copy)]
struct Count {
    passed: usize,
    failed: usize,
    skipped: usize,
    not_chosen: usize,
}

fn main() -> Result<()> {
    let mut machines = Vec::new();
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let whole_run = |path: &str| Some(format!("{}.jsonl", path.strip_suffix("-brief.jsonl")?));
    for path in &paths {
        if whole_run(path).is_some_and(|whole| paths.contains(&whole)) {
            continue;
        }
        let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
        machines.push(Machine::read(&text).with_context(|| format!("read {path}"))?);
    }
    ensure!(
        !machines.is_empty(),
        "no reports: run `make test` and `make test-vm` first"
    );
    machines.sort_by(|a, b| a.name.cmp(&b.name));
    print!("{}", document(&machines)?);
    Ok(())
}

fn document(machines: &[Machine]) -> Result<String> {
    let mut text = String::from(
        "# What was tried\n\n\
         `make support` writes this page from the reports of `make test` and `make test-vm`; it is not edited by hand.\n\
         A cell counts the tests that passed; with \u{201c}of\u{201d}, some failed; \u{2013} says that none ran,\n\
         and an empty cell that there is none.\n\n",
    );
    write_machines(&mut text, machines)?;
    write_engines(&mut text, machines)?;
    write_areas(&mut text, machines)?;
    write_exceptions(&mut text, machines)?;
    Ok(text)
}

fn write_machines(text: &mut String, machines: &[Machine]) -> Result<()> {
    text.push_str("## Machines\n\n");
    row(
        text,
        ["machine", "commit", "kernel"].into_iter().chain(PROGRAMS),
    );
    rule(text, 3 + PROGRAMS.len());
    for machine in machines {
        let version = |program: &&str| machine.version(program).unwrap_or("\u{2013}").to_owned();
        let first = [&machine.name, machine.commit(), machine.kernel()].map(str::to_owned);
        row(text, first.into_iter().chain(PROGRAMS.iter().map(version)));
    }
    text.push('\n');
    let commits: BTreeSet<&str> = machines.iter().map(Machine::commit).collect();
    if commits.len() > 1 {
        text.push_str("Not all of them were tested at the same commit.\n\n");
    }
    Ok(())
}

fn write_engines(text: &mut String, machines: &[Machine]) -> Result<()> {
    text.push_str("## Engines and doors\n\n");
    row(
        text,
        ["engine", "runtime", "driver", "machine"]
            .into_iter()
            .chain(DOORS),
    );
    rule(text, 4 + DOORS.len());
    let all = || machines.iter().flat_map(|machine| &machine.lines);
    let engines: BTreeSet<[&str; 3]> = all().filter_map(Line::engine).collect();
    for engine in engines {
        let of_engine = |line: &&Line| line.engine() == Some(engine);
        let exists = |door: &str| all().filter(of_engine).any(|line| line.is_by(door));
        for machine in machines {
            let cells = DOORS.map(|door| {
                let by_door = |line: &&Line| line.is_by(door);
                let count = Count::of(machine.lines.iter().filter(of_engine).filter(by_door));
                // Nothing ran, and nothing could.
                if exists(door) {
                    count.to_string()
                } else {
                    String::new()
                }
            });
            let names = [engine[0], engine[1], engine[2], &machine.name];
            row(text, names.map(str::to_owned).into_iter().chain(cells));
        }
    }
    text.push('\n');
    Ok(())
}

fn write_areas(text: &mut String, machines: &[Machine]) -> Result<()> {
    text.push_str("## What was run\n\n");
    let names = machines.iter().map(|machine| machine.name.as_str());
    row(text, ["tests"].into_iter().chain(names));
    rule(text, 1 + machines.len());
    let all = machines.iter().flat_map(|machine| &machine.lines);
    let areas: BTreeSet<&str> = all.map(Line::area).collect();
    for area in areas {
        let counts = machines.iter().map(|machine| {
            Count::of(machine.lines.iter().filter(|line| line.area() == area)).to_string()
        });
        row(text, [area.to_owned()].into_iter().chain(counts));
    }
    let totals = machines
        .iter()
        .map(|machine| Count::of(&machine.lines).to_string());
    row(text, ["**all**".to_owned()].into_iter().chain(totals));
    text.push('\n');
    Ok(())
}

/// What the numbers leave out: tests that did not run, kill points that were passed over, and tests
/// that failed.
fn write_exceptions(text: &mut String, machines: &[Machine]) -> Result<()> {
    text.push_str("## What the numbers leave out\n\n");
    for machine in machines {
        let count = Count::of(&machine.lines);
        writeln!(
            text,
            "- **{}**: {}{} skipped{}.",
            machine.name,
            match count.not_chosen {
                0 => String::new(),
                tests => format!("{tests} not chosen (a brief run), "),
            },
            count.skipped,
            machine.reasons()
        )?;
        let every = machine.lines.first().map(|line| line.kill_every.as_str());
        match every {
            None | Some("call") => {}
            Some("change") => writeln!(
                text,
                "  It was killed at each system call that may change something."
            )?,
            Some(every) => writeln!(text, "  Of the kill points one in {every} was tried.")?,
        }
        let failed = machine
            .lines
            .iter()
            .filter(|line| line.outcome == Outcome::Failed);
        for line in failed {
            writeln!(text, "  Failed: `{}`.", line.name)?;
        }
    }
    Ok(())
}

impl Machine {
    fn read(text: &str) -> Result<Machine> {
        let mut lines: BTreeMap<String, Line> = BTreeMap::new();
        for line in text.lines() {
            let line: Line = serde_json::from_str(line).context("parse a line of a report")?;
            // The tests are called several times, for some of them each, and some go on after a
            // reboot: each counts once.
            let counts_less = lines
                .get(&line.name)
                .is_some_and(|other| line.outcome < other.outcome);
            if !counts_less {
                lines.insert(line.name.clone(), line);
            }
        }
        let lines: Vec<Line> = lines.into_values().collect();
        let first = lines.first().context("an empty report")?;
        let system = first.versions.get("system").context("no system named")?;
        let system = system.replace("GNU/Linux ", "");
        let cgroup = first.cgroup;
        let mut machine = Machine {
            name: String::new(),
            lines,
        };
        let kernel: Vec<&str> = machine.kernel().split('.').take(2).collect();
        machine.name = format!("{system}, Linux {}, cgroup v{cgroup}", kernel.join("."));
        Ok(machine)
    }

    /// The version as its makers count: a distribution's own revision says little to others.
    fn version(&self, program: &str) -> Option<&str> {
        let version = self.lines.first()?.versions.get(program)?;
        version
            .split(|c: char| !c.is_ascii_digit() && c != '.')
            .find(|part| !part.is_empty())
    }

    fn kernel(&self) -> &str {
        self.version("kernel").unwrap_or("\u{2013}")
    }

    fn commit(&self) -> &str {
        let first = self.lines.first();
        let commit = first.and_then(|line| line.commit.as_deref());
        commit.unwrap_or("\u{2013}")
    }

    /// What was missing, with how many tests wanted it.
    fn reasons(&self) -> String {
        let mut wanted: BTreeMap<&str, usize> = BTreeMap::new();
        let skipped = |line: &&Line| line.outcome == Outcome::Skipped;
        let lines = self.lines.iter().filter(skipped);
        for need in lines.flat_map(|line| &line.missing) {
            *wanted.entry(need).or_default() += 1;
        }
        let parts: Vec<String> = wanted
            .iter()
            .map(|(need, count)| format!("{count} want {need}"))
            .collect();
        if parts.is_empty() {
            String::new()
        } else {
            format!(" ({})", parts.join(", "))
        }
    }
}

impl Line {
    fn engine(&self) -> Option<[&str; 3]> {
        Some([
            self.engine.as_deref()?,
            self.runtime.as_deref()?,
            self.driver.as_deref()?,
        ])
    }

    fn is_by(&self, door: &str) -> bool {
        self.door.as_deref() == Some(door)
    }

    /// The first part of the test's name.
    fn area(&self) -> &str {
        self.name.split("::").next().unwrap_or(&self.name)
    }
}

impl Count {
    fn of<'a>(lines: impl IntoIterator<Item = &'a Line>) -> Count {
        let mut count = Count::default();
        for line in lines {
            match line.outcome {
                Outcome::Passed => count.passed += 1,
                Outcome::Failed => count.failed += 1,
                Outcome::Skipped => count.skipped += 1,
                Outcome::NotChosen => count.not_chosen += 1,
            }
        }
        count
    }

    fn ran(self) -> usize {
        self.passed + self.failed
    }
}

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.passed, self.failed) {
            (0, 0) => f.write_str("\u{2013}"),
            (passed, 0) => write!(f, "{passed}"),
            (passed, _) => write!(f, "{passed} of {}", self.ran()),
        }
    }
}

fn row(text: &mut String, cells: impl IntoIterator<Item = impl AsRef<str>>) {
    for cell in cells {
        text.push_str("| ");
        text.push_str(cell.as_ref());
        text.push(' ');
    }
    text.push_str("|\n");
}

fn rule(text: &mut String, columns: usize) {
    row(text, std::iter::repeat_n("---", columns));
}
