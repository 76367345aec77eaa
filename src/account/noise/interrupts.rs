//! Pure: `/proc/interrupts` and `/proc/softirqs` (proc_interrupts(5), proc_softirqs(5)), and what
//! happened between two readings.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cpulist::CpuSet;

/// What the interrupts of one source came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interrupts {
    /// The number, or the word for it: text of the kernel.
    pub source: String,
    /// What the kernel and the driver call it: empty for soft interrupts.
    pub what: String,
    /// The CPUs that had any.
    #[serde(with = "crate::cpulist::as_text")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub cpus: CpuSet,
    /// How many on all of them.
    pub count: u64,
}

/// All sources, by their words, with the counts of CPUs.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: BTreeMap<String, Row>,
}

#[derive(Debug, Default)]
struct Row {
    what: String,
    counts: BTreeMap<u32, u64>,
}

impl Table {
    /// Reads either file. Rows that have no count for each CPU, as of errors, are none of a CPU's.
    pub(super) fn parse(text: &str) -> Table {
        let mut lines = text.lines();
        let heads = lines.next().unwrap_or_default().split_whitespace();
        let cpus = heads.map(|head| head.strip_prefix("CPU")?.parse().ok());
        let Some(cpus) = cpus.collect::<Option<Vec<u32>>>() else {
            return Table::default();
        };
        let rows = lines.filter_map(|line| {
            let (source, rest) = line.split_once(':')?;
            let mut words = rest.split_whitespace();
            let mut counts = BTreeMap::new();
            for cpu in &cpus {
                counts.insert(*cpu, words.next()?.parse().ok()?);
            }
            let what = words.collect::<Vec<_>>().join(" ");
            Some((source.trim().to_owned(), Row { what, counts }))
        });
        Table {
            rows: rows.collect(),
        }
    }

    /// What came since an earlier reading on these CPUs, the most first.
    pub(super) fn since(&self, before: &Table, cpus: &CpuSet) -> Vec<Interrupts> {
        let none = Row::default();
        let more = |(source, row): (&String, &Row)| {
            let earlier = before.rows.get(source).unwrap_or(&none);
            let (mut had, mut count) = (CpuSet::new(), 0u64);
            for (cpu, now) in row.counts.iter().filter(|(cpu, _)| cpus.contains(**cpu)) {
                let then = earlier.counts.get(cpu).copied().unwrap_or_default();
                let more = now.saturating_sub(then);
                count = count.saturating_add(more);
                if more > 0 {
                    had.insert(*cpu);
                }
            }
            (count > 0).then(|| Interrupts {
                source: source.clone(),
                what: row.what.clone(),
                cpus: had,
                count,
            })
        };
        let mut all: Vec<_> = self.rows.iter().filter_map(more).collect();
        all.sort_by_key(|one| std::cmp::Reverse(one.count));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_between_two_readings_is_told_for_these_cpus() {
        let before = Table::parse(
            "           CPU0       CPU1       CPU4\n  9:   1   2   3   IO-APIC   9-fasteoi   acpi\n\
             LOC:   10   20   30   Local timer interrupts\nERR:   7\nMIS:  x\n",
        );
        let now = Table::parse(
            "           CPU0       CPU1       CPU4\n  9:   1   5   5   IO-APIC   9-fasteoi   acpi\n\
             LOC:   99   20   70   Local timer interrupts\nERR:   9\n \
             24:   0   4   0  PCI-MSI eth0-rx\n",
        );
        let cpus: CpuSet = "1,4".parse().unwrap();
        let told: Vec<_> = now
            .since(&before, &cpus)
            .into_iter()
            .map(|one| (one.source, one.what, one.cpus.to_string(), one.count))
            .collect();
        let row = |source: &str, what: &str, cpus: &str, count: u64| {
            (source.to_owned(), what.to_owned(), cpus.to_owned(), count)
        };
        assert_eq!(
            told,
            [
                row("LOC", "Local timer interrupts", "4", 40),
                row("9", "IO-APIC 9-fasteoi acpi", "1,4", 5),
                row("24", "PCI-MSI eth0-rx", "1", 4),
            ]
        );
        // A CPU that came between has no count before.
        let soft = Table::parse("   CPU4\n TIMER:  5\n  RCU:  0\n");
        let told = soft.since(&Table::default(), &cpus);
        assert_eq!((told.len(), told[0].count), (1, 5));
        for odd in ["", "CPUx\n 1: 2\n", "nothing\n"] {
            assert!(
                Table::parse(odd).since(&before, &cpus).is_empty(),
                "{odd:?}"
            );
        }
    }
}
