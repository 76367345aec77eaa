//! What Pinfold costs a container's start and its end: `make bench`.
//!
//! Everything is measured in one go and by turns, so that what else the machine does meets all of
//! it alike; medians and ratios are what counts. Run as root, on a machine whose cpusets can be
//! written: it makes groups of its own, and containers.

#![allow(clippy::disallowed_methods)] // It makes files of its own, as the tests do.

mod budget;
mod chart;
mod crowd;
mod growth;
mod measure;
mod partitions;
mod report;
mod runtimes;
mod site;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};

use measure::{Measured, Program, Tools};
use site::{Site, Size};

/// What a start is judged by.
const USUAL: Size = Size {
    lists: 64,
    claims: 100,
    cpus: None,
};
/// The same on a large machine.
const LARGE: Size = Size {
    lists: 512,
    claims: 1000,
    cpus: None,
};

const HELP: &str = "\
Measures what Pinfold costs a container's start and its end.

Usage: start [--counts FILE [--update] | --partitions] [--rounds N] [--out DIR] PINFOLD

  --counts FILE  only count instructions and system calls, and compare them with FILE;
                 exit 1 where one is over by 5 %
  --update       write FILE instead
  --partitions   only measure what it costs that the kernel keeps others off
  --rounds N     how often each is run (default 200; runtimes a tenth of that)
  --out DIR      where bench.json and the charts go (default target/bench)

Example: cargo run --example start -- --rounds 50 target/dist/pinfold
";

struct Arguments {
    pinfold: PathBuf,
    counts: Option<PathBuf>,
    updates: bool,
    only_partitions: bool,
    rounds: usize,
    out: PathBuf,
}

impl Arguments {
    fn parse() -> Option<Arguments> {
        let mut words = std::env::args().skip(1);
        let (mut pinfold, mut counts, mut updates) = (None, None, false);
        let mut only_partitions = false;
        let (mut rounds, mut out) = (200, PathBuf::from("target/bench"));
        while let Some(word) = words.next() {
            match word.as_str() {
                "--counts" => counts = Some(words.next()?.into()),
                "--update" => updates = true,
                "--partitions" => only_partitions = true,
                "--rounds" => rounds = words.next()?.parse().ok()?,
                "--out" => out = words.next()?.into(),
                _ if !word.starts_with('-') => pinfold = Some(PathBuf::from(word)),
                _ => return None,
            }
        }
        Some(Arguments {
            pinfold: pinfold?.canonicalize().ok()?,
            counts,
            updates,
            only_partitions,
            rounds,
            out,
        })
    }
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse() else {
        eprint!("{HELP}");
        return ExitCode::from(2);
    };
    if arguments.only_partitions {
        let result = partitions::measure(&arguments.pinfold, arguments.rounds);
        print!("{}", report::of_partitions(&result));
        return ExitCode::SUCCESS;
    }
    let dir = tempfile::tempdir_in("/dev/shm").expect("make a directory in memory");
    let tools = Tools::build(dir.path());
    let site = Site::new(&arguments.pinfold, USUAL);
    match &arguments.counts {
        Some(file) => budget::compare(&counts(&tools, &site), file, arguments.updates),
        None => {
            let result = all(&arguments, dir.path(), &tools, &site);
            std::fs::create_dir_all(&arguments.out).expect("make the directory for results");
            let text = serde_json::to_string_pretty(&result).expect("write JSON");
            std::fs::write(arguments.out.join("bench.json"), text).expect("write the results");
            chart::draw(&result, &arguments.out);
            print!("{}", report::table(&result));
            ExitCode::SUCCESS
        }
    }
}

/// Instructions and system calls, which are the same each time.
fn counts(tools: &Tools, site: &Site) -> BTreeMap<String, (u64, u64)> {
    let count = |program: &Program| (program.instructions(), program.system_calls());
    let mut counts: BTreeMap<String, (u64, u64)> = empty_programs(tools)
        .iter()
        .map(|(name, program)| (name.clone(), count(program)))
        .collect();
    for stage in ["createRuntime", "poststop"] {
        let hook = site.hook(stage, 1, false);
        counts.insert(format!("{stage}: no request"), count(&hook));
    }
    let (start, end) = site.cycle_with(Program::instructions);
    let (start_calls, end_calls) = site.cycle_with(Program::system_calls);
    counts.insert("createRuntime: pinned".into(), (start, start_calls));
    counts.insert("poststop: pinned".into(), (end, end_calls));
    counts
}

fn empty_programs(tools: &Tools) -> Vec<(String, Program)> {
    let nothing = Path::new("/dev/null");
    let program = |name: &str, path: &Path| {
        let path = path.to_str().expect("UTF-8");
        (name.to_owned(), Program::new(&[path], nothing))
    };
    vec![
        program("empty C", &tools.empty_c),
        program("empty Rust", &tools.empty_rust),
        program("/bin/true", Path::new("/bin/true")),
    ]
}

fn all(arguments: &Arguments, dir: &Path, tools: &Tools, site: &Site) -> Value {
    let counts = counts(tools, site);
    let large = Site::new(&arguments.pinfold, LARGE);
    let mut hooks = Measured::new();
    let mut plain = empty_programs(tools);
    for stage in ["createRuntime", "poststop"] {
        plain.push((format!("{stage}: no request"), site.hook(stage, 1, false)));
    }
    for _ in 0..arguments.rounds {
        runtimes::alternate(&plain, 1, tools, &mut hooks);
        for (site, of) in [(site, ""), (&large, ", 512 lists")] {
            let (start, end) = site.cycle(Some(tools)).expect("it is measured");
            for (stage, run) in [("createRuntime", start), ("poststop", end)] {
                let name = format!("{stage}: pinned{of}");
                hooks.entry(name).or_default().add(run);
            }
        }
    }
    drop(large);
    let growth = growth::measure(&arguments.pinfold, arguments.rounds / 10, tools);
    let crowd: Vec<Value> = [1, 8, 64]
        .map(|at_once| crowd::starts(site, at_once))
        .into();
    let (held, _) = site.cycle_with(|hook| crowd::lock_held(hook).0);
    let partitions = partitions::measure(&arguments.pinfold, arguments.rounds / 10);
    runtimes::enter_own_mounts(dir);
    let mut starts = Measured::new();
    for name in ["crun", "runc"] {
        let Some(bundles) = runtimes::Bundles::new(dir, name, &arguments.pinfold, tools, site)
        else {
            continue;
        };
        runtimes::alternate(
            &bundles.programs(),
            arguments.rounds / 10,
            tools,
            &mut starts,
        );
        bundles.with_held(|| {
            let rounds = arguments.rounds / 4;
            runtimes::alternate(&bundles.passed_through(), rounds, tools, &mut starts);
        });
    }
    let empty = hooks["empty Rust"].median();
    json!({
        "hooks": report::of(&hooks, empty, &counts),
        "growth": growth,
        "crowd": crowd,
        "lock_held_milliseconds": held,
        "partitions": partitions,
        "runtimes": report::of(&starts, empty, &BTreeMap::new()),
    })
}
