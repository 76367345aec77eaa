//! Remarks for people about sysfs files that are missing or odd.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use super::told::Oddity;
use super::{Gap, Topology};
use crate::cpulist::CpuSet;

/// Something odd in sysfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Is nothing lost: do other files tell the same, or does this file tell nothing on such a
    /// machine?
    pub is_answered: bool,
    /// What is odd, and its consequence.
    pub text: String,
}

/// The remarks on a machine's sysfs: a sentence for each level, and one for each other file.
pub fn remarks(topology: &Topology) -> Vec<Remark> {
    let gaps = &topology.levels.gaps;
    let levels = [
        (
            &gaps.nodes,
            "NUMA node",
            "a request for one node (pinfold.io/numa), \
             or for local memory (pinfold.io/mems), is not met with them",
        ),
        (
            &gaps.packages,
            "package",
            "they count as one package where CPUs are packed",
        ),
        (
            &gaps.caches,
            "last-level cache",
            "a request for one cache (pinfold.io/cache) is not met with them",
        ),
        (
            &gaps.cores,
            "core",
            "each counts as a core of its own, and two owners may share one",
        ),
    ];
    let level = levels
        .into_iter()
        .filter_map(|(gap, what, effect)| of_level(gap, what, effect));
    let (unread, odd): (Vec<Oddity>, Vec<Oddity>) = topology
        .odd
        .iter()
        .cloned()
        .partition(|oddity| oddity.is_unread);
    let others = gathered(&odd).into_iter().map(|text| Remark {
        is_answered: true,
        text: format!("{text}: it is left out of the picture"),
    });
    let unread = gathered(&unread).into_iter().map(|text| Remark {
        is_answered: false,
        text: format!("{text}: what no other file tells is left out of the picture"),
    });
    level.chain(others).chain(unread).collect()
}

fn of_level(gap: &Gap, what: &str, effect: &str) -> Option<Remark> {
    let is_answered = gap.cpus.is_empty();
    if is_answered && gap.odd.is_empty() {
        return None;
    }
    let odd = gathered(&gap.odd).join("; ");
    let text = match is_answered {
        true => format!("{odd}: other files tell each CPU's {what}"),
        false => format!(
            "the kernel does not tell the {what} of the CPUs {}, so that {effect}: {odd}",
            gap.cpus
        ),
    };
    Some(Remark { is_answered, text })
}

/// One text for the same oddity of many CPUs or nodes: `…/cpu*/cache is missing (0-63)`.
fn gathered(odd: &[Oddity]) -> Vec<String> {
    let mut alike: BTreeMap<(String, &str), CpuSet> = BTreeMap::new();
    for oddity in odd {
        let (path, number) = pattern(&oddity.path);
        let numbers = alike.entry((path, &oddity.what)).or_default();
        if let Some(number) = number {
            numbers.insert(number);
        }
    }
    let sentence = |((path, what), numbers): ((String, &str), CpuSet)| match numbers.is_empty() {
        true => format!("{path} {what}"),
        false => format!("{path} {what} ({numbers})"),
    };
    alike.into_iter().map(sentence).collect()
}

/// A path with `*` in place of its CPU's or node's number, and that number.
fn pattern(path: &Path) -> (String, Option<u32>) {
    let mut number = None;
    let mut parts = Vec::new();
    for part in path.components() {
        let part = match part {
            Component::RootDir => String::new(),
            part => part.as_os_str().to_string_lossy().into_owned(),
        };
        let found = ["cpu", "node"].into_iter().find_map(|kind| {
            let digits = part.strip_prefix(kind)?;
            Some((kind, digits.parse::<u32>().ok()?))
        });
        match found {
            Some((kind, found)) if number.is_none() => {
                number = Some(found);
                parts.push(format!("{kind}*"));
            }
            _ => parts.push(part),
        }
    }
    (parts.join("/"), number)
}
