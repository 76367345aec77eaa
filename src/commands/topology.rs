//! `pinfold topology`: the machine's parts, and the pools of each core.

mod picture;

use std::io::Write;

use anyhow::{Error, Result};
use serde::Serialize;

use super::output::Output;
use crate::cli::TopologyArgs as Args;
use crate::cpulist::CpuSet;
use crate::files;
use crate::placement::Site;
use crate::pools::{Kind, Pool, PoolDirectory};
use crate::settings::Settings;
use crate::text::one_line;
use crate::topology::{CpuGroup, Part, Topology, What, remarks};

pub(super) fn run(args: &Args, settings: &Settings) -> Result<u8> {
    let site = settings.site();
    let topology = Topology::read(&site.host)?;
    for remark in remarks(&topology)
        .iter()
        .filter(|remark| !remark.is_answered)
    {
        log::warn!("{}", remark.text);
    }
    if let Some(file) = &args.svg {
        return picture::run(file, &topology, site);
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

/// The pools, and the errors of pools that cannot be read. The machine is shown without these.
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

/// The machine's parts, and the pools. CPUs are written as a list such as `4,12` or `0-2`.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
pub(super) struct Document<'a> {
    /// The CPUs that are online.
    online: String,
    /// The CPUs that are present but offline.
    offline: String,
    /// The CPUs that the scheduler does not balance, by `isolcpus=` or an isolated cpuset
    /// partition.
    isolated: String,
    /// The packages (sockets).
    packages: Vec<Group>,
    /// The NUMA nodes, by number; none where the kernel knows none.
    nodes: Vec<NodeEntry>,
    /// The dies, by lowest CPU; none where the kernel does not tell.
    dies: Vec<Group>,
    /// The clusters of cores, by lowest CPU; none where the kernel does not tell.
    clusters: Vec<Group>,
    /// The last-level caches, by lowest CPU; none where the kernel does not tell.
    last_level_caches: Vec<CacheEntry>,
    /// The physical cores, with the CPUs that are their hardware threads.
    cores: Vec<Group>,
    /// The kinds of core of a hybrid machine, largest first; none where all are alike.
    core_kinds: Vec<CoreKindEntry<'a>>,
    /// The pools.
    pools: Vec<PoolEntry<'a>>,
}

/// CPUs that share a part of the machine.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Group {
    /// The kernel's number of a package; of others the lowest of its CPUs.
    id: u32,
    /// Its online CPUs.
    cpus: String,
}

/// A NUMA node.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct NodeEntry {
    /// The kernel's number.
    id: u32,
    /// Its online CPUs; empty for a node of memory alone.
    cpus: String,
    /// Its memory in KiB; 0 where that is not told.
    #[serde(rename = "memoryKiB")]
    memory_kib: u64,
}

/// A last-level cache.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct CacheEntry {
    /// 3 for an L3; 0 where that is not told.
    level: u64,
    /// Its size in KiB; 0 where that is not told.
    #[serde(rename = "sizeKiB")]
    size_kib: u64,
    /// The CPUs that share it.
    cpus: String,
}

/// Cores of one size.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct CoreKindEntry<'a> {
    /// Intel's `core`, `atom` or `lowpower`; or `capacity N`, the work that one core does where the
    /// largest does 1024.
    name: &'a str,
    /// The online CPUs of these cores.
    cpus: String,
}

/// A pool.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "camelCase")]
struct PoolEntry<'a> {
    /// Its name.
    name: &'a str,
    /// Has each of its lists one owner at most?
    exclusive: bool,
    /// Its CPU lists.
    cpu_lists: Vec<&'a str>,
}

fn document<'a>(topology: &'a Topology, pools: &'a [Pool]) -> Document<'a> {
    let groups = |groups: &[CpuGroup]| {
        let groups = groups.iter().map(|group| Group {
            id: group.id,
            cpus: group.cpus.to_string(),
        });
        groups.collect()
    };
    let nodes = topology.nodes.iter().map(|node| NodeEntry {
        id: node.id,
        cpus: node.cpus.to_string(),
        memory_kib: node.memory_kib,
    });
    let caches = topology.caches.iter().map(|cache| CacheEntry {
        level: cache.level,
        size_kib: cache.size_kib,
        cpus: cache.cpus.to_string(),
    });
    let kinds = topology.kinds.iter().map(|kind| CoreKindEntry {
        name: &kind.name,
        cpus: kind.cpus.to_string(),
    });
    let pools = pools.iter().map(|pool| PoolEntry {
        name: &pool.name,
        exclusive: pool.kind == Kind::Exclusive,
        cpu_lists: pool.lists.iter().map(|list| list.name.as_str()).collect(),
    });
    Document {
        online: topology.online.to_string(),
        offline: topology.offline.to_string(),
        isolated: topology.isolated.to_string(),
        packages: groups(&topology.levels.packages),
        nodes: nodes.collect(),
        dies: groups(&topology.dies),
        clusters: groups(&topology.clusters),
        last_level_caches: caches.collect(),
        cores: groups(&topology.levels.cores),
        core_kinds: kinds.collect(),
        pools: pools.collect(),
    }
}

/// The machine as a tree, with each core's label.
fn drawing(topology: &Topology, pools: &[Pool]) -> String {
    let machine = Part::of(topology);
    let mut out = format!("{machine}\n");
    draw_within(&machine, "", &mut out, &|part| match part.what {
        What::Core => core_label(part, topology, pools),
        _ => part.to_string(),
    });
    if !topology.offline.is_empty() {
        out.push_str(&format!("offline: {}\n", topology.offline));
    }
    out
}

fn draw_within(part: &Part, indent: &str, out: &mut String, label: &impl Fn(&Part) -> String) {
    for (index, inner) in part.parts.iter().enumerate() {
        let (branch, below) = match index + 1 == part.parts.len() {
            true => ("└─ ", "   "),
            false => ("├─ ", "│  "),
        };
        out.push_str(&format!("{indent}{branch}{}\n", label(inner)));
        draw_within(inner, &format!("{indent}{below}"), out, label);
    }
}

/// A core's CPUs, what is special about them, and their pools: `core 0,8 (atom, isolated):
/// dataplane`.
fn core_label(core: &Part, topology: &Topology, pools: &[Pool]) -> String {
    let mut label = core.to_string();
    let core = &core.cpus;
    let marks = topology.marks(core);
    if !marks.is_empty() {
        label.push_str(&format!(" ({})", marks.join(", ")));
    }
    let mut memberships = Vec::new();
    for pool in pools {
        let lists: CpuSet = pool.lists.iter().map(|list| &list.cpus).collect();
        let cpus = lists.intersection(core);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::CpuList;
    use crate::topology::{Cache, CoreKind, Levels, Node};

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    fn groups(sets: &str) -> Vec<CpuGroup> {
        let group = |cpus: CpuSet| CpuGroup {
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
        let document = serde_json::to_value(document(&machine(), &pools)).unwrap();
        assert_eq!(document["nodes"][2]["memoryKiB"], 524_288);
        assert_eq!(
            document["pools"][0]["cpuLists"],
            serde_json::json!(["2-3", "4"])
        );
        assert_eq!(document["cores"][1]["cpus"], "2-3");
    }
}
