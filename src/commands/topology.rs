//! `pinfold topology`: the machine's parts, and the pools of each core.

mod picture;

use std::io::Write;

use anyhow::{Error, Result};
use serde_json::{Value, json};

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

fn document(topology: &Topology, pools: &[Pool]) -> Value {
    let numbered = |group: &CpuGroup| json!({"id": group.id, "cpus": group.cpus.to_string()});
    let all = |groups: &[CpuGroup]| groups.iter().map(numbered).collect::<Vec<_>>();
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
        let document = document(&machine(), &pools);
        assert_eq!(document["nodes"][2]["memoryKiB"], 524_288);
        assert_eq!(document["pools"][0]["cpuLists"], json!(["2-3", "4"]));
        assert_eq!(document["cores"][1]["cpus"], "2-3");
    }
}
