//! Machines to choose on: captured ones (`tests/topologies`, where README.md says what each is),
//! and shapes that no machine at hand has, which are made up here.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use pinfold::cpulist::CpuSet;
use pinfold::host::Host;
use pinfold::topology::{CpuGroup, Gaps, Levels};

/// A tree of sysfs that lives as long as this.
pub(crate) struct Tree {
    pub(crate) host: Host,
    pub(crate) dir: tempfile::TempDir,
}

/// A captured machine, by the name of its archive.
pub(crate) fn captured(name: &str) -> Tree {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/topologies")
        .join(format!("{name}.tar.gz"));
    let dir = tempfile::tempdir().unwrap();
    let status = Command::new("tar")
        .arg("-xzf")
        .arg(&archive)
        .arg("-C")
        .arg(dir.path())
        .status()
        .unwrap();
    assert!(status.success(), "unpack {}", archive.display());
    Tree {
        host: Host::new(dir.path()),
        dir,
    }
}

/// Where one CPU of a made-up machine is. Numbers of caches and cores are the machine's, not a
/// package's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu {
    pub(crate) package: u32,
    pub(crate) node: u32,
    pub(crate) cache: u32,
    pub(crate) core: u32,
}

/// A made-up machine.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    pub(crate) cpus: BTreeMap<u32, Cpu>,
}

impl Shape {
    /// `packages` of `nodes` of `caches` of `cores` of `threads`; as Linux usually numbers them,
    /// the first threads of all cores come before all second ones.
    pub(crate) fn regular([packages, nodes, caches, cores, threads]: [u32; 5]) -> Shape {
        let all = packages * nodes * caches * cores;
        let cpu = |core: u32| Cpu {
            package: core / (nodes * caches * cores),
            node: core / (caches * cores),
            cache: core / cores,
            core,
        };
        let cpus = (0..all * threads).map(|number| (number, cpu(number % all)));
        Shape {
            cpus: cpus.collect(),
        }
    }

    /// The same machine with some CPUs offline.
    pub(crate) fn without(mut self, offline: &str) -> Shape {
        let offline = set(offline);
        self.cpus.retain(|cpu, _| !offline.contains(*cpu));
        self
    }

    pub(crate) fn online(&self) -> CpuSet {
        self.cpus.keys().copied().collect()
    }

    fn groups(&self, cpus: &CpuSet, key: impl Fn(&Cpu) -> u32) -> BTreeMap<u32, CpuSet> {
        let mut groups: BTreeMap<u32, CpuSet> = BTreeMap::new();
        for (number, cpu) in self
            .cpus
            .iter()
            .filter(|(number, _)| cpus.contains(**number))
        {
            groups
                .entry(key(cpu))
                .or_default()
                .extend(&CpuSet::from_iter([*number]));
        }
        groups
    }

    /// What reading its tree gives.
    pub(crate) fn levels(&self) -> Levels {
        let all = self.online();
        let level = |key: fn(&Cpu) -> u32, numbered: bool| {
            let groups = self.groups(&all, key);
            let mut groups: Vec<CpuGroup> = groups
                .into_iter()
                .map(|(number, cpus)| CpuGroup {
                    id: if numbered {
                        number
                    } else {
                        cpus.first().unwrap()
                    },
                    cpus,
                })
                .collect();
            groups.sort_by_key(|group| group.cpus.first());
            groups
        };
        let mut nodes = level(|cpu| cpu.node, true);
        nodes.sort_by_key(|node| node.id);
        Levels {
            nodes,
            packages: level(|cpu| cpu.package, true),
            caches: level(|cpu| cpu.cache, false),
            cores: level(|cpu| cpu.core, false),
            gaps: Gaps::default(),
        }
    }

    /// Its tree.
    pub(crate) fn tree(&self) -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: String, content: String| {
            let path = dir.path().join("sys/devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content + "\n").unwrap();
        };
        let online = self.online();
        put("cpu/online".into(), online.to_string());
        put("cpu/present".into(), online.to_string());
        let nodes = self.groups(&online, |cpu| cpu.node);
        let numbers: CpuSet = nodes.keys().copied().collect();
        for file in ["online", "has_cpu", "has_memory"] {
            put(format!("node/{file}"), numbers.to_string());
        }
        for (node, cpus) in &nodes {
            put(format!("node/node{node}/cpulist"), cpus.to_string());
            put(
                format!("node/node{node}/meminfo"),
                format!("Node {node} MemTotal: 1048576 kB"),
            );
        }
        let packages = self.groups(&online, |cpu| cpu.package);
        let caches = self.groups(&online, |cpu| cpu.cache);
        let cores = self.groups(&online, |cpu| cpu.core);
        for (number, cpu) in &self.cpus {
            for (file, content) in [
                (
                    "topology/package_cpus_list",
                    packages[&cpu.package].to_string(),
                ),
                ("topology/physical_package_id", cpu.package.to_string()),
                ("topology/core_cpus_list", cores[&cpu.core].to_string()),
                ("cache/index2/shared_cpu_list", cores[&cpu.core].to_string()),
                (
                    "cache/index3/shared_cpu_list",
                    caches[&cpu.cache].to_string(),
                ),
                ("cache/index3/level", "3".into()),
                ("cache/index3/size", "16384K".into()),
            ] {
                put(format!("cpu/cpu{number}/{file}"), content);
            }
        }
        Tree {
            host: Host::new(dir.path()),
            dir,
        }
    }
}

pub(crate) fn set(text: &str) -> CpuSet {
    text.parse().unwrap()
}
