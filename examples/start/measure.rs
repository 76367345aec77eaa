//! Running a program once, many times, and counting what it does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A program that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) words: Vec<String>,
    /// The file that is its standard input.
    pub(crate) input: PathBuf,
}

/// What one run took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) milliseconds: f64,
    pub(crate) faults: f64,
    pub(crate) peak_kib: f64,
}

/// What many runs took: the values of each, sorted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Runs {
    milliseconds: Vec<f64>,
    faults: Vec<f64>,
    peak_kib: Vec<f64>,
}

/// By name, in the order of the alphabet.
pub(crate) type Measured = BTreeMap<String, Runs>;

/// The programs that were built for the measuring.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    launcher: PathBuf,
    pub(crate) empty_c: PathBuf,
    pub(crate) empty_rust: PathBuf,
}

impl Program {
    pub(crate) fn new(words: &[&str], input: &Path) -> Program {
        Program {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            input: input.to_owned(),
        }
    }

    /// Runs it; it has to succeed.
    pub(crate) fn run(&self, tools: &Tools) -> Run {
        let mut command = plain(&tools.launcher);
        command.arg(&self.input).args(&self.words);
        let told = output(&mut command);
        let numbers: Vec<f64> = told
            .split_whitespace()
            .map(|word| word.parse().expect("the launcher prints numbers"))
            .collect();
        let [nanoseconds, faults, peak_kib, status] = numbers[..] else {
            panic!("the launcher said {told:?}");
        };
        assert!(status == 0.0, "{:?} failed: {status}", self.words);
        Run {
            milliseconds: nanoseconds / 1e6,
            faults,
            peak_kib,
        }
    }

    /// How many instructions it executes outside the kernel (valgrind's callgrind).
    pub(crate) fn instructions(&self) -> u64 {
        let mut valgrind = plain("valgrind");
        valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
        let told = self.under(&mut valgrind).stderr;
        let told = String::from_utf8_lossy(&told);
        let collected = told.lines().find_map(|line| line.split_once("Collected :"));
        let (_, count) = collected.unwrap_or_else(|| panic!("callgrind said: {told}"));
        count.trim().parse().expect("callgrind counts")
    }

    /// How many system calls it makes, with all its children.
    pub(crate) fn system_calls(&self) -> u64 {
        let told = tempfile::NamedTempFile::new().expect("make a file");
        let mut strace = plain("strace");
        strace.args(["-f", "-c", "-o"]).arg(told.path());
        self.under(&mut strace);
        let told = std::fs::read_to_string(told.path()).expect("read what strace counted");
        // `100.00    0.000000           1        41         7 total`
        let total = told.lines().find(|line| line.ends_with(" total"));
        let total = total.unwrap_or_else(|| panic!("strace said: {told}"));
        let count = total.split_whitespace().nth(3).expect("four columns");
        count.parse().expect("strace counts")
    }

    /// Runs it under another program, to its end, which has to be success.
    pub(crate) fn under(&self, watcher: &mut Command) -> Output {
        let input = std::fs::File::open(&self.input).expect("open the input");
        let done = watcher.args(&self.words).stdin(input).output();
        let done = done.unwrap_or_else(|error| panic!("execute {watcher:?}: {error}"));
        let told = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{:?} failed: {told}", self.words);
        done
    }
}

impl Runs {
    pub(crate) fn add(&mut self, run: Run) {
        for (values, value) in [
            (&mut self.milliseconds, run.milliseconds),
            (&mut self.faults, run.faults),
            (&mut self.peak_kib, run.peak_kib),
        ] {
            let at = values.partition_point(|before| *before <= value);
            values.insert(at, value);
        }
    }

    /// Adds a run of which only the time is known, in milliseconds.
    pub(crate) fn add_time(&mut self, milliseconds: f64) {
        self.add(Run {
            milliseconds,
            faults: 0.0,
            peak_kib: 0.0,
        });
    }

    /// The time that half of the runs took at most.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The time that this part of the runs took at most.
    pub(crate) fn quantile(&self, part: f64) -> f64 {
        of(&self.milliseconds, part)
    }

    pub(crate) fn faults(&self) -> f64 {
        of(&self.faults, 0.5)
    }

    pub(crate) fn peak_kib(&self) -> f64 {
        of(&self.peak_kib, 0.5)
    }
}

fn of(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

impl Tools {
    /// Builds them. A compiler for C is there where Rust's is: it is what links.
    pub(crate) fn build(dir: &Path) -> Tools {
        let path = |name: &str| dir.join(name);
        let put =
            |name: &str, text: &str| std::fs::write(path(name), text).expect("write a source");
        put("launcher.c", include_str!("launcher.c"));
        put("empty.c", "int main(void) { return 0; }\n");
        put("empty.rs", "fn main() {}\n");
        for (source, program) in [("launcher.c", "launcher"), ("empty.c", "empty-c")] {
            let mut cc = Command::new("cc");
            cc.args(["-O2", "-static", "-s", "-o"]);
            output(cc.arg(path(program)).arg(path(source)));
        }
        let mut rustc = Command::new("rustc");
        rustc.args([
            "--edition",
            "2024",
            "-O",
            "-C",
            "target-feature=+crt-static",
        ]);
        rustc.args(["-C", "panic=abort", "-C", "strip=symbols", "-o"]);
        output(rustc.arg(path("empty-rust")).arg(path("empty.rs")));
        Tools {
            launcher: path("launcher"),
            empty_c: path("empty-c"),
            empty_rust: path("empty-rust"),
        }
    }
}

/// What a command says, which has to succeed.
pub(crate) fn output(command: &mut Command) -> String {
    let done = command.stdin(Stdio::null()).output();
    let done = done.unwrap_or_else(|error| panic!("execute {command:?}: {error}"));
    let told = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?} failed: {told}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

/// A command without the environment of whoever measures: engines give hooks none, or nearly so,
/// and with `RUST_BACKTRACE` each error is expensive.
pub(crate) fn plain(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var_os("PATH").unwrap_or_default();
    command.env_clear().env("PATH", path);
    command
}
