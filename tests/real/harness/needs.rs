//! What a test needs of the machine. A test whose needs are not met is skipped, counted and named.

use crate::cgroups::hierarchy;
use nix::libc;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    Root,
    V1,
    V2,
    /// Partitions of groups that are not the root's children: Linux 6.7 or later, version 2.
    Partitions,
    Cpus(usize),
    /// So many NUMA nodes.
    Nodes(usize),
    /// A block device that the kernel says is near this NUMA node.
    DeviceNear(u32),
    Runc,
    Crun,
    Podman,
    PodmanCompose,
    /// podman's generator of units, from 4.4 on.
    Quadlet,
    /// A static program that is many, for images.
    Busybox,
    /// Docker of this major version or a later one, its client and its daemon.
    Docker(u32),
    Containerd,
    /// What `tests/cri-client` builds.
    CriClient,
    /// `pinfold-node`, and a containerd that it can serve: 1.7 or a later one.
    Nri,
    Systemd,
    Irqbalance,
    Strace,
    Python3,
    /// A python3 with the library that Prometheus has for it.
    PrometheusClient,
    HookFiles,
    /// A CPU can be switched off.
    Hotplug,
    /// podman can give a container a user namespace of its own.
    SubordinateIds,
    /// podman can make a pod's infra container.
    PauseImage,
    /// The machine is booted again between tests, and says for the how manyeth time it is up.
    Boots,
    /// A user 1000, whose manager runs.
    OrdinaryUser,
    /// Nobody minds what happens to the machine: CPUs are switched off, a user's manager is
    /// restarted.
    Disposable,
    /// A machine that is not emulated, as one that passes over kill points is.
    Native,
}

impl Need {
    pub(crate) fn is_met(self) -> bool {
        match self {
            Need::Root => nix::unistd::geteuid().is_root(),
            Need::V1 => hierarchy().version == 1,
            Need::V2 => hierarchy().version == 2,
            Need::Partitions => hierarchy().version == 2 && kernel_version() >= Some((6, 7)),
            Need::Cpus(count) => (0..count).all(may_use),
            Need::Nodes(count) => (0..count)
                .all(|node| Path::new(&format!("/sys/devices/system/node/node{node}")).exists()),
            Need::DeviceNear(node) => device_near(node).is_some(),
            Need::Runc => find("runc").is_some(),
            Need::Crun => find("crun").is_some(),
            Need::Podman => find("podman").is_some() && find("conmon").is_some(),
            Need::PodmanCompose => find("podman-compose").is_some(),
            Need::Quadlet => find("quadlet").is_some(),
            Need::Busybox => Path::new("/bin/busybox").exists(),
            Need::Docker(least) => docker_version().is_some_and(|version| version >= least),
            Need::Containerd => {
                let programs = ["containerd", "containerd-shim-runc-v2", "ctr"];
                programs.iter().all(|program| find(program).is_some())
            }
            Need::CriClient => crate::cri::client().is_some(),
            Need::Nri => {
                crate::node::program().is_some()
                    && containerd_version().is_some_and(|version| version >= (1, 7))
            }
            Need::Systemd => Path::new("/run/systemd/system").is_dir(),
            Need::Irqbalance => find("irqbalance").is_some(),
            Need::Strace => find("strace").is_some(),
            Need::Python3 => find("python3").is_some(),
            Need::PrometheusClient => prometheus_python().is_some(),
            Need::Hotplug => Path::new("/sys/devices/system/cpu/cpu5/online").exists(),
            Need::SubordinateIds => std::fs::read_to_string("/etc/subuid")
                .is_ok_and(|text| text.lines().any(|line| line.starts_with("containers:"))),
            Need::PauseImage => ["/usr/libexec/podman/catatonit", "/usr/bin/catatonit"]
                .iter()
                .any(|path| Path::new(path).exists()),
            Need::Boots => std::env::var_os("PINFOLD_VM_BOOT").is_some(),
            Need::OrdinaryUser => Path::new("/run/user/1000/systemd").exists(),
            Need::Disposable => std::env::var_os("PINFOLD_TEST_DISPOSABLE").is_some(),
            Need::Native => crate::strace::kill_every() == crate::strace::KillEvery::Call,
            Need::HookFiles => !crate::cases::hookfiles::files().is_empty(),
        }
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Need::Cpus(count) => write!(f, "cpus>={count}"),
            Need::Nodes(count) => write!(f, "nodes>={count}"),
            Need::DeviceNear(node) => write!(f, "a device near node {node}"),
            Need::Docker(least) => write!(f, "docker>={least}"),
            Need::CriClient => f.write_str("cri-client"),
            Need::HookFiles => f.write_str("hook files"),
            other => f.write_str(&format!("{other:?}").to_lowercase()),
        }
    }
}

/// The kernel's major and minor version.
fn kernel_version() -> Option<(u32, u32)> {
    let told = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut numbers = told.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The version of containerd, asked once.
fn containerd_version() -> Option<(u32, u32)> {
    static ASKED: OnceLock<Option<(u32, u32)>> = OnceLock::new();
    *ASKED.get_or_init(|| {
        let said = crate::process::run(Command::new(find("containerd")?).arg("--version")).stdout;
        let mut words = said.split_whitespace();
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
        let mut parts = version.split('.');
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    })
}

/// The major version of docker, asked once.
fn docker_version() -> Option<u32> {
    static ASKED: OnceLock<Option<u32>> = OnceLock::new();
    *ASKED.get_or_init(|| {
        let docker = find("dockerd").and(find("docker"))?;
        let said = crate::process::run(Command::new(docker).arg("--version")).stdout;
        let version = said
            .split_whitespace()
            .find_map(|word| word.split_once('.'));
        version?.0.parse().ok()
    })
}

/// A python3 with the library that Prometheus has for it.
pub(crate) fn prometheus_python() -> Option<PathBuf> {
    static FOUND: OnceLock<Option<PathBuf>> = OnceLock::new();
    let has_it = |python: &PathBuf| {
        let import = ["-c", "import prometheus_client.openmetrics.parser"];
        let ran = crate::process::run(Command::new(python).args(import));
        ran.code() == Some(0)
    };
    let all = || [find("python3"), Some("/usr/bin/python3".into())];
    let found = FOUND.get_or_init(|| {
        let there = all().into_iter().flatten().filter(|path| path.is_file());
        there.into_iter().find(has_it)
    });
    found.clone()
}

/// The absolute path of a program, as found on PATH or where the system's own programs lie.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(
        [
            "/usr/sbin",
            "/usr/bin",
            "/usr/lib/podman",
            "/usr/libexec/podman",
        ]
        .map(PathBuf::from),
    );
    dirs.map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// Whether this process may run on the CPU.
fn may_use(cpu: usize) -> bool {
    // SAFETY: a CPU set is plain bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most the size given; CPU_ISSET checks its bounds.
    unsafe {
        libc::sched_getaffinity(0, size_of_val(&set), &mut set) == 0 && libc::CPU_ISSET(cpu, &set)
    }
}

/// The name of a block device that the kernel says is near this NUMA node.
pub(crate) fn device_near(node: u32) -> Option<String> {
    let entries = std::fs::read_dir("/sys/class/block").ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names.into_iter().find(|name| {
        let place = Path::new("/sys/class/block").join(name).canonicalize();
        let told = place.ok().and_then(|place| {
            let files = place.ancestors().map(|above| above.join("numa_node"));
            files
                .into_iter()
                .find_map(|file| std::fs::read_to_string(file).ok())
        });
        told.is_some_and(|told| told.trim() == node.to_string())
    })
}
