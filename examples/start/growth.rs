//! How the cost of a start and of an end grows with lists, with claims, and with the machine.

use std::path::Path;

use serde_json::{Value, json};

use crate::measure::{Program, Runs, Tools};
use crate::site::{Site, Size};

/// What grows, and the size of the site each time.
fn sizes() -> Vec<(&'static str, Size)> {
    let size = |lists, claims, cpus| Size {
        lists,
        claims,
        cpus,
    };
    let mut sizes = Vec::new();
    for lists in [8, 64, 512, 4096] {
        sizes.push(("lists", size(lists, 0, None)));
    }
    for claims in [0, 100, 1000, 10_000] {
        sizes.push(("claims", size(64, claims, None)));
    }
    for cpus in [64, 4096] {
        sizes.push(("CPUs", size(64, 100, Some(cpus))));
    }
    sizes
}

pub(crate) fn measure(pinfold: &Path, rounds: usize, tools: &Tools) -> Vec<Value> {
    let sites: Vec<(&str, Size, Site)> = sizes()
        .into_iter()
        .map(|(what, size)| (what, size, Site::new(pinfold, size)))
        .collect();
    let mut runs = vec![(Runs::default(), Runs::default()); sites.len()];
    for _ in 0..rounds {
        for ((_, _, site), (starts, ends)) in sites.iter().zip(&mut runs) {
            let (start, end) = site.cycle(Some(tools)).expect("it is measured");
            starts.add(start);
            ends.add(end);
        }
    }
    let told = sites
        .iter()
        .zip(&runs)
        .map(|((what, size, site), (starts, ends))| {
            let (start, end) = site.cycle_with(Program::instructions);
            let (start_calls, end_calls) = site.cycle_with(Program::system_calls);
            let told = |runs: &Runs, instructions, calls| {
                json!({
                    "milliseconds": runs.median(),
                    "instructions": instructions,
                    "system_calls": calls,
                })
            };
            json!({
                "what": what,
                "lists": size.lists,
                "claims": size.claims,
                "cpus": size.cpus,
                "createRuntime": told(starts, start, start_calls),
                "poststop": told(ends, end, end_calls),
            })
        });
    told.collect()
}
