//! Pure: the parts of the machine, nested, for a drawing of it.

use std::cmp::Reverse;
use std::fmt;

use super::Topology;
use crate::cpulist::CpuSet;

/// A part of the machine, with the parts within it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub what: What,
    /// Its online CPUs; none for a NUMA node of memory alone.
    pub cpus: CpuSet,
    /// The parts within it: the most CPUs first, then the lowest CPU first.
    pub parts: Vec<Part>,
}

/// What a part of the machine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The whole machine.
    Machine,
    /// A package, by its number.
    Package(u32),
    /// A NUMA node, by its number, with its memory in KiB.
    Node(u32, u64),
    /// A die.
    Die,
    /// A last-level cache: its level, and its size in KiB; 0 where they are not told.
    Cache(u64, u64),
    /// Cores that share something below the last-level cache.
    Cluster,
    /// A physical core with its SMT siblings.
    Core,
}

impl Part {
    /// The whole machine. A part with more CPUs encloses a part with fewer. Of parts with the same
    /// CPUs, the outer one is the first of: package, node, die, cache, cluster, core; a die or
    /// cluster with the CPUs of another part is left out. Nodes without CPUs come last.
    pub fn of(topology: &Topology) -> Part {
        let levels = &topology.levels;
        let alone = |what, cpus: &CpuSet| Part {
            what,
            cpus: cpus.clone(),
            parts: Vec::new(),
        };
        let mut parts: Vec<Part> = Vec::new();
        for package in &levels.packages {
            parts.push(alone(What::Package(package.id), &package.cpus));
        }
        for node in topology.nodes.iter().filter(|node| !node.cpus.is_empty()) {
            parts.push(alone(What::Node(node.id, node.memory_kib), &node.cpus));
        }
        for cache in &topology.caches {
            let what = What::Cache(cache.level, cache.size_kib);
            parts.push(alone(what, &cache.cpus));
        }
        for core in &levels.cores {
            parts.push(alone(What::Core, &core.cpus));
        }
        for (what, groups) in [
            (What::Die, &topology.dies),
            (What::Cluster, &topology.clusters),
        ] {
            for group in groups {
                if !parts.iter().any(|part| part.cpus == group.cpus) {
                    parts.push(alone(what.clone(), &group.cpus));
                }
            }
        }
        parts.sort_by_key(|part| {
            (
                Reverse(part.cpus.len()),
                part.what.rank(),
                part.cpus.first(),
            )
        });
        let mut machine = alone(What::Machine, &topology.online);
        for part in parts {
            machine.take_in(part);
        }
        for node in topology.nodes.iter().filter(|node| node.cpus.is_empty()) {
            let what = What::Node(node.id, node.memory_kib);
            machine.parts.push(alone(what, &node.cpus));
        }
        machine
    }

    /// Puts a part into the innermost part that has all its CPUs.
    fn take_in(&mut self, part: Part) {
        let holds = |own: &&mut Part| part.cpus.is_subset(&own.cpus);
        match self.parts.iter_mut().find(holds) {
            Some(own) => own.take_in(part),
            None => self.parts.push(part),
        }
    }
}

impl What {
    fn rank(&self) -> usize {
        match self {
            What::Machine => 0,
            What::Package(_) => 1,
            What::Node(..) => 2,
            What::Die => 3,
            What::Cache(..) => 4,
            What::Cluster => 5,
            What::Core => 6,
        }
    }
}

/// `node 0, memory 2.0 GiB`; a die, a cluster or a core is named by its CPUs.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Machine => write!(f, "machine, CPUs {}", self.cpus),
            What::Package(number) => write!(f, "package {number}"),
            What::Node(number, memory) => {
                write!(f, "node {number}, memory {}", Kib(*memory))?;
                match self.cpus.is_empty() {
                    true => f.write_str(", no CPUs"),
                    false => Ok(()),
                }
            }
            What::Die => write!(f, "die {}", self.cpus),
            What::Cache(level, size) => write!(f, "L{level} cache, {}", Kib(*size)),
            What::Cluster => write!(f, "cluster {}", self.cpus),
            What::Core => write!(f, "core {}", self.cpus.to_numbers()),
        }
    }
}

/// A size in KiB, shown in a unit that people read easily.
struct Kib(u64);

impl fmt::Display for Kib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("of unknown size"),
            kib @ 1..1024 => write!(f, "{kib} KiB"),
            kib @ 1024..1_048_576 => write!(f, "{} MiB", kib / 1024),
            kib => write!(f, "{:.1} GiB", kib as f64 / 1_048_576.0),
        }
    }
}
