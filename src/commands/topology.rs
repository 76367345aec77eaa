//! `pinfold topology`: what the machine is made of, and which pool each core is in.

use std::cmp::Reverse;
use std::io::Write;

use anyhow::{Error, Result};
use serde_json::{Value, json};

use super::Settings;
use super::output::Output;
use crate::cli::Topology as Args;
use crate::cpulist::CpuSet;
use crate::files;
use crate::placement::Site;
use crate::pools::{Kind, Pool, PoolDirectory};
use crate::text::one_line;
use crate::topology::{Group, Topology, remarks};

pub(super) fn run(args: &Args, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let topology = Topology::read(&site.host)?;
    for remark in remarks(&topology)
        .iter()
        .filter(|remark| !remark.is_answered)
    {
        log::warn!("{}", remark.text);
    }
    let (pools, problems) = pools(site);
    for problem in &problems {
        log::warn!("{problem:#}");
    }
    let mut out = Output::product();
    if args.json {
        out.json(&document(&topology, &pools))?;
    } else {
        out.write_all(drawing(&topology, &pools).as_bytes())?;
    }
    Ok(u8::from(!problems.is_empty()))
}

/// The pools, where there are any, and why others cannot be read: a machine has a topology without them too.
fn pools(site: &Site) -> (Vec<Pool>, Vec<Error>) {
    let (mut pools, mut problems) = (Vec::new(), Vec::new());
    let names = || -> Result<_> {
        if files::metadata_if_there(&site.conf_dir)?.is_none() {
            return Ok(None);
        }
        let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
        let (names, others) = (directory.pool_names()?, directory.not_pools()?);
        Ok(Some((directory, names, others)))
    };
    match names() {
        Ok(None) => {}
        Ok(Some((directory, names, others))) => {
            problems.extend(others);
            for name in names {
                match directory.readable_part(&name) {
                    Ok((pool, unread)) => {
                        pools.push(pool);
                        problems.extend(unread);
                    }
                    Err(error) => problems.push(error),
                }
            }
        }
        Err(error) => problems.push(error),
    }
    (pools, problems)
}

fn document(topology: &Topology, pools: &[Pool]) -> Value {
    let numbered = |group: &Group| json!({"id": group.id, "cpus": group.cpus.to_string()});
    let all = |groups: &[Group]| groups.iter().map(numbered).collect::<Vec<_>>();
    let nodes = topology.nodes.iter().map(
        |node| json!({"id": node.id, "cpus": node.cpus.to_string(), "memoryKiB": node.memory_kib}),
    );
    let caches = topology.caches.iter().map(|cache| {
        json!({"level": cache.level, "sizeKiB": cache.size_kib, "cpus": cache.cpus.to_string()})
    });
    let kinds = topology
        .kinds
        .iter()
        .map(|kind| json!({"name": kind.name, "cpus": kind.cpus.to_string()}));
    let pools = pools.iter().map(|pool| {
        let lists: Vec<&str> = pool.lists.iter().map(|list| list.name.as_str()).collect();
        json!({"name": pool.name, "exclusive": pool.kind == Kind::Exclusive, "cpuLists": lists})
    });
    json!({
        "online": topology.online.to_string(),
        "offline": topology.offline.to_string(),
        "isolated": topology.isolated.to_string(),
        "packages": all(&topology.levels.packages),
        "nodes": nodes.collect::<Vec<_>>(),
        "dies": all(&topology.dies),
        "clusters": all(&topology.clusters),
        "lastLevelCaches": caches.collect::<Vec<_>>(),
        "cores": all(&topology.levels.cores),
        "coreKinds": kinds.collect::<Vec<_>>(),
        "pools": pools.collect::<Vec<_>>(),
    })
}

/// Something that has CPUs, with what lies within it.
struct Part {
    label: String,
    cpus: CpuSet,
    parts: Vec<Part>,
}

impl Part {
    /// Puts a part into the innermost one that has all its CPUs.
    fn take_in(&mut self, part: Part) {
        let holds = |own: &&mut Part| part.cpus.is_subset(&own.cpus);
        match self.parts.iter_mut().find(holds) {
            Some(own) => own.take_in(part),
            None => self.parts.push(part),
        }
    }

    fn draw(&self, indent: &str, out: &mut String) {
        for (index, part) in self.parts.iter().enumerate() {
            let (branch, below) = match index + 1 == self.parts.len() {
                true => ("└─ ", "   "),
                false => ("├─ ", "│  "),
            };
            out.push_str(&format!("{indent}{branch}{}\n", part.label));
            part.draw(&format!("{indent}{below}"), out);
        }
    }
}

/// The tree: what holds more CPUs is further out, and of two that hold the same, the package, the node, the die, the
/// cache, the cluster, the core, in this order. A die or a cluster that is the same as something else is left out.
fn drawing(topology: &Topology, pools: &[Pool]) -> String {
    let levels = &topology.levels;
    let mut parts: Vec<(usize, String, CpuSet)> = Vec::new();
    for package in &levels.packages {
        parts.push((0, format!("package {}", package.id), package.cpus.clone()));
    }
    for node in topology.nodes.iter().filter(|node| !node.cpus.is_empty()) {
        let label = format!("node {}, memory {}", node.id, size(node.memory_kib));
        parts.push((1, label, node.cpus.clone()));
    }
    for cache in &topology.caches {
        let label = format!("L{} cache, {}", cache.level, size(cache.size_kib));
        parts.push((3, label, cache.cpus.clone()));
    }
    for core in &levels.cores {
        parts.push((
            5,
            core_label(topology, pools, &core.cpus),
            core.cpus.clone(),
        ));
    }
    for (rank, word, groups) in [
        (2, "die", &topology.dies),
        (4, "cluster", &topology.clusters),
    ] {
        for group in groups {
            if !parts.iter().any(|(_, _, cpus)| *cpus == group.cpus) {
                parts.push((rank, format!("{word} {}", group.cpus), group.cpus.clone()));
            }
        }
    }
    parts.sort_by_key(|(rank, _, cpus)| (Reverse(cpus.len()), *rank, cpus.first()));
    let mut machine = Part {
        label: String::new(),
        cpus: topology.online.clone(),
        parts: Vec::new(),
    };
    for (_, label, cpus) in parts {
        machine.take_in(Part {
            label,
            cpus,
            parts: Vec::new(),
        });
    }
    let mut out = format!("machine, CPUs {}\n", topology.online);
    for node in topology.nodes.iter().filter(|node| node.cpus.is_empty()) {
        machine.parts.push(Part {
            label: format!(
                "node {}, memory {}, no CPUs",
                node.id,
                size(node.memory_kib)
            ),
            cpus: CpuSet::new(),
            parts: Vec::new(),
        });
    }
    machine.draw("", &mut out);
    if !topology.offline.is_empty() {
        out.push_str(&format!("offline: {}\n", topology.offline));
    }
    out
}

/// A core's CPUs, what is special about them, and the pools that they are in: `core 0,8 (atom, isolated): dataplane`.
fn core_label(topology: &Topology, pools: &[Pool], core: &CpuSet) -> String {
    let mut label = format!("core {}", core.to_numbers());
    let kinds = topology.kinds.iter();
    let mut marks: Vec<&str> = kinds
        .filter(|kind| core.is_subset(&kind.cpus))
        .map(|kind| kind.name.as_str())
        .collect();
    if core.is_subset(&topology.isolated) {
        marks.push("isolated");
    }
    if !marks.is_empty() {
        label.push_str(&format!(" ({})", marks.join(", ")));
    }
    let mut memberships = Vec::new();
    for pool in pools {
        let mut cpus = CpuSet::new();
        for list in &pool.lists {
            cpus.extend(&list.cpus.intersection(core));
        }
        if cpus == *core {
            memberships.push(one_line(&pool.name));
        } else if !cpus.is_empty() {
            memberships.push(format!(
                "{} (CPU {})",
                one_line(&pool.name),
                cpus.to_numbers()
            ));
        }
    }
    if !memberships.is_empty() {
        label.push_str(&format!(": {}", memberships.join(", ")));
    }
    label
}

/// KiB as a person says it.
fn size(kib: u64) -> String {
    match kib {
        0 => "of unknown size".to_owned(),
        1..1024 => format!("{kib} KiB"),
        1024..1_048_576 => format!("{} MiB", kib / 1024),
        _ => format!("{:.1} GiB", kib as f64 / 1_048_576.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::CpuList;
    use crate::topology::{Cache, CoreKind, Levels, Node};

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn groups(sets: &str) -> Vec<Group> {
        let group = |cpus: CpuSet| Group {
            id: cpus.first().unwrap(),
            cpus,
        };
        sets.split_whitespace()
            .map(|cpus| group(set(cpus)))
            .collect()
    }

    fn machine() -> Topology {
        Topology {
            online: set("0-6"),
            offline: set("7"),
            isolated: set("2-3"),
            levels: Levels {
                nodes: groups("0-3 4-6"),
                packages: groups("0-6"),
                caches: groups("0-3 4-6"),
                cores: groups("0-1 2-3 4 5 6"),
                ..Levels::default()
            },
            odd: Vec::new(),
            nodes: vec![
                Node {
                    id: 0,
                    cpus: set("0-3"),
                    memory_kib: 1 << 21,
                },
                Node {
                    id: 1,
                    cpus: set("4-6"),
                    memory_kib: 0,
                },
                Node {
                    id: 2,
                    cpus: set(""),
                    memory_kib: 524_288,
                },
            ],
            dies: groups("0-3 4-6"),
            clusters: groups("0-1 2-3 4-5 6"),
            caches: vec![Cache {
                level: 3,
                size_kib: 16384,
                cpus: set("0-3"),
            }],
            kinds: vec![CoreKind {
                name: "atom".into(),
                cpus: set("4-6"),
            }],
        }
    }

    #[test]
    fn the_tree_nests_by_what_holds_what_and_marks_pools() {
        let pool = |name: &str, lists: &str| Pool {
            name: name.into(),
            kind: Kind::Exclusive,
            lists: lists
                .split_whitespace()
                .map(|name| CpuList {
                    name: name.into(),
                    cpus: set(name),
                    tasks: vec![],
                })
                .collect(),
        };
        let pools = [pool("dp", "2-3 4"), pool("half", "0")];
        let expected = "\
machine, CPUs 0-6
├─ package 0
│  ├─ node 0, memory 2.0 GiB
│  │  └─ L3 cache, 16 MiB
│  │     ├─ core 0,1: half (CPU 0)
│  │     └─ core 2,3 (isolated): dp
│  └─ node 1, memory of unknown size
│     ├─ cluster 4-5
│     │  ├─ core 4 (atom): dp
│     │  └─ core 5 (atom)
│     └─ core 6 (atom)
└─ node 2, memory 512 MiB, no CPUs
offline: 7
";
        assert_eq!(drawing(&machine(), &pools), expected);
        let document = document(&machine(), &pools);
        assert_eq!(document["nodes"][2]["memoryKiB"], 524_288);
        assert_eq!(document["pools"][0]["cpuLists"], json!(["2-3", "4"]));
        assert_eq!(document["cores"][1]["cpus"], "2-3");
    }
}
