//! The machine: kernel, cgroups, systemd.

use super::Report;
use crate::cgroup::{Group, Hierarchy, Version, cpuset};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::outside;
use crate::placement::{Site, let_through};
use crate::topology::{Topology, remarks};

/// The first kernel with the cpuset controller on cgroup version 2 (kernel: 5.0's cgroup-v2.rst).
const V2_CPUSETS: (u32, u32) = (5, 0);
/// The first systemd with `AllowedCPUs=`, which gives units CPUs on cgroup version 2
/// (systemd.resource-control(5)).
const ALLOWED_CPUS: u32 = 244;

/// The groups right below the root in which engines put their containers: podman, docker,
/// containerd and Kubernetes, with systemd and without it.
const PARENTS: [&str; 7] = [
    "/machine.slice",
    "/system.slice",
    "/kubepods.slice",
    "/libpod_parent",
    "/docker",
    "/kubepods",
    "/k8s.io",
];

/// The remedy where the kernel does not tell where CPUs are.
const SYSFS: &str =
    "see that /sys is the machine's own and whole, or ask for CPUs without what it does not tell";

pub(super) fn check(site: &Site, report: &mut Report) {
    let host = &site.host;
    let release = files::read_if_there(&host.kernel_release());
    let release = release.ok().flatten().unwrap_or_default();
    let kernel = numbers(&release);
    match cpuset::hierarchy(host) {
        Ok(hierarchy) => cgroups(&hierarchy, kernel, release.trim(), report),
        Err(error) => report.error("cgroup", &error),
    }
    systemd(host, report);
    sysfs(host, report);
}

/// Reports what sysfs does not tell. A choice that depends on it is refused, or made without it.
fn sysfs(host: &Host, report: &mut Report) {
    let topology = match Topology::read(host) {
        Ok(topology) => topology,
        Err(error) => return report.error("topology", &error),
    };
    let remarks = remarks(&topology);
    for remark in &remarks {
        match remark.is_answered {
            true => report.ok("topology", &remark.text),
            false => report.warn("topology", &remark.text, SYSFS),
        }
    }
    if remarks.is_empty() {
        report.ok(
            "topology",
            "the kernel tells nodes, packages, caches and cores of all CPUs",
        );
    }
}

fn cgroups(hierarchy: &Hierarchy, kernel: Option<(u32, u32)>, release: &str, report: &mut Report) {
    let Ok(root) = hierarchy.group("/") else {
        report.warn(
            "cgroup",
            "the root of the hierarchy is not mounted here, so that it cannot be looked at",
            "run this on the host itself",
        );
        return;
    };
    let version = match hierarchy.version {
        Version::V1 => "version 1",
        Version::V2 => "version 2",
    };
    let mount = root.dir().display();
    if hierarchy.version == Version::V1 {
        report.ok(
            "cgroup",
            format!("{version}, cpusets at {mount}, Linux {release}"),
        );
        return;
    }
    if kernel.is_some_and(|kernel| kernel < V2_CPUSETS) {
        let text = format!("{version}, and Linux {release} has cpusets on version 1 alone");
        report.fault(
            "cgroup",
            text,
            "boot a kernel from 5.0 on, or with cgroup version 1",
        );
        return;
    }
    let controllers = files::read_if_there(&root.dir().join("cgroup.controllers"));
    let controllers = controllers.ok().flatten().unwrap_or_default();
    if !controllers.split_whitespace().any(|name| name == "cpuset") {
        report.fault(
            "cgroup",
            format!("{version} at {mount} has no cpuset controller"),
            "boot without cgroup_disable=cpuset, and without a cgroup of version 1 that has it",
        );
        return;
    }
    report.ok(
        "cgroup",
        format!("{version} at {mount} with cpusets, Linux {release}"),
    );
    for path in PARENTS {
        let Ok(parent) = hierarchy.group(path) else {
            continue;
        };
        let enabled = files::read_if_there(&parent.dir().join("cgroup.subtree_control"));
        let Ok(Some(enabled)) = enabled else {
            continue;
        };
        if enabled.split_whitespace().any(|name| name == "cpuset") {
            report.ok(
                "cgroup",
                format!("the cpuset controller is enabled below {path}"),
            );
        } else {
            report.ok(
                "cgroup",
                format!(
                    "the cpuset controller is not enabled below {path}: the first start there \
                     with a request enables it"
                ),
            );
        }
    }
}

/// The engines' groups that do not allow all of these CPUs: path, missing CPUs, and remedy.
pub(super) fn narrow_parents(site: &Site, cpus: &CpuSet) -> Vec<(String, CpuSet, String)> {
    let Ok(hierarchy) = cpuset::hierarchy(&site.host) else {
        return Vec::new();
    };
    let groups = PARENTS.iter().filter_map(|path| hierarchy.group(path).ok());
    let lacking = groups.filter_map(|group| {
        let mut allowed = cpuset::effective_cpus(&group).ok()??;
        // CPUs from which owners keep others off come back when the owners end.
        allowed.extend(&outside::kept(&site.host));
        let lacks = cpus.difference(&allowed);
        let path = group.path().to_owned();
        let bound = cpuset::Bound::by(group, allowed);
        (!lacks.is_empty()).then(|| (path, lacks.clone(), let_through(&site.host, &bound, &lacks)))
    });
    lacking.collect()
}

/// The slices that the operator made partitions, with their CPUs.
pub(super) fn partitions(site: &Site) -> Vec<(String, CpuSet)> {
    let top = cpuset::hierarchy(&site.host).and_then(|hierarchy| hierarchy.top());
    let found = top.and_then(|top| cpuset::partitions(&top));
    let named = |(group, cpus): (Group, CpuSet)| (group.path().to_owned(), cpus);
    found.unwrap_or_default().into_iter().map(named).collect()
}

fn systemd(host: &Host, report: &mut Report) {
    match files::metadata_if_there(&host.systemd_mark()) {
        Ok(Some(_)) => {}
        Ok(None) => return report.ok("systemd", "does not run here"),
        Err(error) => return report.error("systemd", &error),
    }
    let names = host.systemd_libraries().into_iter();
    let names = names.flat_map(|dir| files::names_in(&dir).unwrap_or_default());
    let version = names.filter_map(|name| {
        let version = name.strip_prefix("libsystemd-shared-")?;
        version.split(['.', '-']).next()?.parse::<u32>().ok()
    });
    match version.max() {
        Some(version) if version < ALLOWED_CPUS => report.warn(
            "systemd",
            format!(
                "{version} does not know AllowedCPUs=, with which the shim has it confine \
                 containers"
            ),
            "use the hooks, or systemd 244 or newer",
        ),
        Some(version) => report.ok("systemd", version),
        None => report.ok("systemd", "runs, in a version that could not be found out"),
    }
}

/// The first two numbers of a kernel's release, or of another version.
pub(super) fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_kernels() {
        for (text, expected) in [
            ("6.18.44-fc-v657\n", Some((6, 18))),
            ("5.0-rc1", Some((5, 0))),
            ("", None),
            ("x.y", None),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }
}
