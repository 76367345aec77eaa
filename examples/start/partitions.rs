//! What it costs that the kernel keeps others off, and how much of that is the kernel's own time.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

use crate::USUAL;
use crate::crowd::took;
use crate::measure::{Program, Runs, plain};
use crate::site::{POOL, Site};

/// A group for pinned containers alone, where every kernel keeps a partition.
const SLICE: &str = "/pinfold.slice";

/// What the kernel makes a partition of (kernel: cgroup-v2.rst, "Cpuset Interface Files").
const FILES: [&str; 2] = ["/cpuset.cpus.exclusive>", "/cpuset.cpus.partition>"];

const KINDS: [&str; 3] = ["none", "root", "isolated"];

/// Starts and ends under each kind of isolation, by turns; null where the kernel has no remote
/// partitions.
pub(crate) fn measure(pinfold: &Path, rounds: usize) -> Value {
    let site = Site::inside(SLICE, pinfold, USUAL);
    if !site.has_partitions() {
        return Value::Null;
    }
    let mut times = KINDS.map(|kind| (kind, [(); 4].map(|()| Runs::default())));
    for _ in 0..rounds {
        for (kind, of_kind) in &mut times {
            isolate(&site, kind);
            let (start, end) = site.cycle_with(milliseconds);
            let (kernel_start, kernel_end) = site.cycle_with(of_the_kernel);
            let all = [start, end, kernel_start, kernel_end];
            for (runs, time) in of_kind.iter_mut().zip(all) {
                runs.add_time(time);
            }
        }
    }
    let told = times
        .iter()
        .map(|(kind, [start, end, kernel_start, kernel_end])| {
            json!({
                "isolation": kind,
                "start_milliseconds": start.median(),
                "start_kernel_milliseconds": kernel_start.median(),
                "end_milliseconds": end.median(),
                "end_kernel_milliseconds": kernel_end.median(),
            })
        });
    told.collect()
}

fn isolate(site: &Site, kind: &str) {
    let set = Command::new(site.pinfold())
        .args(["pool", "set", POOL, &format!("isolation={kind}")])
        .args(site.options())
        .output()
        .expect("execute pinfold");
    let told = String::from_utf8_lossy(&set.stderr);
    assert!(set.status.success(), "set the isolation: {told}");
}

fn milliseconds(hook: &Program) -> f64 {
    let began = Instant::now();
    hook.under(&mut plain("env"));
    began.elapsed().as_secs_f64() * 1e3
}

/// The time within the writes to the kernel's partition files; strace adds its own to each.
fn of_the_kernel(hook: &Program) -> f64 {
    let told = tempfile::NamedTempFile::new().expect("make a file");
    let mut strace = plain("strace");
    strace.args(["-f", "-y", "-T", "-e", "trace=write,pwrite64", "-o"]);
    hook.under(strace.arg(told.path()));
    let told = std::fs::read_to_string(told.path()).expect("read what strace saw");
    // `4711 write(5</sys/fs/cgroup/a/cpuset.cpus.partition>, "root", 4) = 4 <0.000105>`
    let writes = told
        .lines()
        .filter(|line| FILES.iter().any(|file| line.contains(file)));
    // A sum of none is -0.
    writes.map(took).fold(0.0, |sum, one| sum + one) * 1e3
}
