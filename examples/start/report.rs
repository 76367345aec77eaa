//! The results as JSON and as a table, and every target beside what was measured.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::measure::Measured;

/// What was measured of each program, beside the median of the empty Rust program.
pub(crate) fn of(measured: &Measured, empty: f64, counts: &BTreeMap<String, (u64, u64)>) -> Value {
    let told = measured.iter().map(|(name, runs)| {
        let count = counts.get(name);
        let value = json!({
            "milliseconds": runs.median(),
            "tenth": runs.quantile(0.1),
            "nine_tenths": runs.quantile(0.9),
            "times_empty_rust": runs.median() / empty,
            "page_faults": runs.faults(),
            "peak_kib": runs.peak_kib(),
            "instructions": count.map(|count| count.0),
            "system_calls": count.map(|count| count.1),
        });
        (name.clone(), value)
    });
    Value::Object(told.collect::<Map<_, _>>())
}

/// Everything as text, the targets last.
pub(crate) fn table(result: &Value) -> String {
    let mut out = String::new();
    // A String takes whatever there is memory for.
    let _ = write_tables(&mut out, result);
    out
}

/// What it costs that the kernel keeps others off, as text.
pub(crate) fn of_partitions(result: &Value) -> String {
    let Some(kinds) = result.as_array() else {
        return "isolation: not measured: it needs cgroup version 2 and Linux 6.7\n".to_owned();
    };
    let mut out = format!(
        "{:<10} {:>9} {:>20} {:>9} {:>20}\n",
        "isolation", "start ms", "of it the kernel's", "end ms", "of it the kernel's"
    );
    for one in kinds {
        let number = |key: &str| one[key].as_f64().unwrap_or(f64::NAN);
        out += &format!(
            "{:<10} {:>9.2} {:>20.2} {:>9.2} {:>20.2}\n",
            one["isolation"].as_str().unwrap_or_default(),
            number("start_milliseconds"),
            number("start_kernel_milliseconds"),
            number("end_milliseconds"),
            number("end_kernel_milliseconds"),
        );
    }
    out
}

fn write_tables(out: &mut String, result: &Value) -> std::fmt::Result {
    writeln!(
        out,
        "{:<32} {:>6} {:>7} {:>15} {:>8} {:>6} {:>6} {:>7}",
        "", "ratio", "ms", "10 % .. 90 %", "instr.", "calls", "faults", "KiB"
    )?;
    for group in ["hooks", "runtimes"] {
        for (name, one) in result[group].as_object().into_iter().flatten() {
            let number = |key: &str| one[key].as_f64().unwrap_or(f64::NAN);
            let count = |key: &str| one[key].as_u64().map_or(String::new(), |n| n.to_string());
            let spread = format!("{:.2} .. {:.2}", number("tenth"), number("nine_tenths"));
            writeln!(
                out,
                "{name:<32} {:>6.2} {:>7.2} {spread:>15} {:>8} {:>6} {:>6.0} {:>7.0}",
                number("times_empty_rust"),
                number("milliseconds"),
                count("instructions"),
                count("system_calls"),
                number("page_faults"),
                number("peak_kib"),
            )?;
        }
        writeln!(out)?;
    }
    writeln!(
        out,
        "{:>6} {:>7} {:>6} | {:>7} {:>9} {:>6} | {:>7} {:>9} {:>6}",
        "lists", "claims", "CPUs", "start ms", "instr.", "calls", "end ms", "instr.", "calls"
    )?;
    for one in result["growth"].as_array().into_iter().flatten() {
        write!(
            out,
            "{:>6} {:>7} {:>6}",
            one["lists"],
            one["claims"],
            one["cpus"].as_u64().map_or("own".into(), |n| n.to_string())
        )?;
        for stage in ["createRuntime", "poststop"] {
            let stage = &one[stage];
            let milliseconds = stage["milliseconds"].as_f64().unwrap_or(f64::NAN);
            let (instructions, calls) = (&stage["instructions"], &stage["system_calls"]);
            write!(out, " | {milliseconds:>8.2} {instructions:>9} {calls:>6}")?;
        }
        writeln!(out)?;
    }
    writeln!(out)?;
    for one in result["crowd"].as_array().into_iter().flatten() {
        writeln!(
            out,
            "{:>3} at once: {:>5.0} starts in a second, {:.1} ms in all, longest wait {:.1} ms",
            one["at_once"],
            one["per_second"].as_f64().unwrap_or(f64::NAN),
            one["milliseconds"].as_f64().unwrap_or(f64::NAN),
            one["longest_wait_milliseconds"]
                .as_f64()
                .unwrap_or(f64::NAN),
        )?;
    }
    writeln!(out)?;
    writeln!(out, "{}", of_partitions(&result["partitions"]))?;
    for (what, most, found) in targets(result) {
        let (verdict, found) = match found {
            Some(found) if found <= most => ("reached", format!("{found:.2}")),
            Some(found) => ("MISSED", format!("{found:.2}")),
            None => ("not measured", String::new()),
        };
        writeln!(out, "{what:<58} {most:>9} {found:>10}  {verdict}")?;
    }
    Ok(())
}

/// What has to be reached: what it is, the most that it may be, and what was found.
fn targets(result: &Value) -> Vec<(String, f64, Option<f64>)> {
    let of = |group: &str, name: &str, key: &str| result[group][name][key].as_f64();
    let ratio = |name: &str| of("hooks", name, "times_empty_rust");
    let time = |name: String| of("runtimes", &name, "milliseconds");
    let mut targets = vec![
        (
            "no request, times the empty Rust program".to_owned(),
            1.15,
            ratio("createRuntime: no request"),
        ),
        (
            "no request, instructions".to_owned(),
            150_000.0,
            of("hooks", "createRuntime: no request", "instructions"),
        ),
        (
            "pinned, times the empty Rust program".to_owned(),
            1.5,
            ratio("createRuntime: pinned"),
        ),
        (
            "poststop, times the empty Rust program".to_owned(),
            1.4,
            ratio("poststop: pinned"),
        ),
        (
            "pinned at 512 lists, 1,000 claims".to_owned(),
            2.0,
            ratio("createRuntime: pinned, 512 lists"),
        ),
        (
            "poststop at 512 lists, 1,000 claims".to_owned(),
            2.0,
            ratio("poststop: pinned, 512 lists"),
        ),
        (
            "pinned, system calls".to_owned(),
            120.0,
            of("hooks", "createRuntime: pinned", "system_calls"),
        ),
        (
            "pinned, peak memory in KiB".to_owned(),
            3072.0,
            of("hooks", "createRuntime: pinned", "peak_kib"),
        ),
        (
            "the lock is held, in ms".to_owned(),
            0.3,
            result["lock_held_milliseconds"].as_f64(),
        ),
    ];
    for stage in ["createRuntime", "poststop"] {
        let at = |claims: u64| {
            let mut growth = result["growth"].as_array().into_iter().flatten();
            let found = growth.find(|one| one["what"] == "claims" && one["claims"] == claims);
            found.and_then(|one| one[stage]["instructions"].as_f64())
        };
        let growth = at(10_000).zip(at(100)).map(|(many, few)| many / few);
        targets.push((
            format!("{stage} with 10,000 claims, times 100"),
            1.1,
            growth,
        ));
    }
    for name in ["crun", "runc"] {
        let way = |way: &str| time(format!("{name} run: {way}"));
        let added = |what: &str| way(what).zip(way("bare")).map(|(with, bare)| with - bare);
        let pair = added("hooks-pinned")
            .zip(added("true-pair"))
            .map(|(ours, pair)| ours / pair);
        targets.push((
            format!("{name}: what a pinning pair adds, times a true pair"),
            1.4,
            pair,
        ));
        let shim = way("shim-pinned")
            .zip(way("hooks-pinned"))
            .map(|(shim, hooks)| shim - hooks);
        targets.push((format!("{name}: the shim beyond hooks, in ms"), 1.5, shim));
        let passed =
            time(format!("{name} --version: shim")).zip(time(format!("{name} --version: bare")));
        let passed = passed.map(|(shim, bare)| shim / bare);
        targets.push((
            format!("{name} --version through the shim, times without"),
            1.15,
            passed,
        ));
    }
    targets
}
