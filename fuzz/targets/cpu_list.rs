//! A CPU list that is accepted means the same after it is printed, and is what a plain reading
//! makes of it.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use pinfold::cpulist::CpuSet;

/// The kernel's format without strides, read in the plainest way (cpuset(7), "List format").
fn plain(text: &str) -> Option<BTreeSet<u32>> {
    let mut cpus = BTreeSet::new();
    for part in text.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<u32>().ok()?..=last.parse().ok()?);
    }
    Some(cpus)
}

fuzz_target!(|text: &str| {
    let Ok(cpus) = text.parse::<CpuSet>() else {
        return;
    };
    assert_eq!(cpus.to_string().parse::<CpuSet>().as_ref(), Ok(&cpus));
    assert_eq!(cpus.to_numbers().parse::<CpuSet>().as_ref(), Ok(&cpus));
    if !text.contains(':') && !cpus.is_empty() {
        assert_eq!(plain(text), Some(cpus.iter().collect()), "{text:?}");
    }
});
