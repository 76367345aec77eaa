//! Names the group that keeps CPUs from an owner, and the remedy: widen its unit, or start inside
//! the partition that has them (kernel: cgroup-v2.rst, "cpuset.cpus.partition").

use super::refusal::counted_cpus;
use crate::cgroup::cpuset::Bound;
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::outside::{self, UnitCpus};
use crate::text::{Shown, shell_word};

/// A group's path, with its systemd unit if it has one.
pub(crate) fn shown_group(path: &str) -> String {
    match unit(path) {
        Some(unit) => format!("the cgroup {} (unit {unit})", Shown(path)),
        None => format!("the cgroup {}", Shown(path)),
    }
}

fn unit(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    let is_unit = [".slice", ".scope", ".service"]
        .iter()
        .any(|kind| name.ends_with(kind));
    let is_plain = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-_.@:".contains(&b));
    (is_unit && is_plain).then_some(name)
}

/// The remedy that gives a bounded group the CPUs that it lacks.
pub fn let_through(host: &Host, bound: &Bound, lacks: &CpuSet) -> String {
    let origin = bound.origin();
    let is_origin = |unit: &UnitCpus| origin.path() == format!("/{}", unit.unit);
    let mut confined = outside::kept_off(host).into_iter().filter(is_origin);
    if confined.any(|unit| !unit.cpus.is_disjoint(lacks)) {
        return "the configuration's confine keeps that off them: start it elsewhere, a container \
                with `--cgroup-parent pinfold.slice` and a command below `systemd-run \
                --slice=pinfold.slice`, or say confine = \"none\" and `pinfold reconcile`"
            .to_owned();
    }
    let partitions = bound.partitions();
    // No group outside of a partition can have its CPUs, however wide.
    if let Some((slice, _)) = partitions.iter().find(|(_, cpus)| !cpus.is_disjoint(lacks)) {
        let path = slice.path();
        let name = shell_word(path.rsplit('/').next().unwrap_or_default().as_ref());
        return format!(
            "those are a partition of {}: start it there, a container with \
             `--cgroup-parent {name}` and a command below `systemd-run --slice={name}`, \
             or use another pool",
            Shown(path)
        );
    }
    let mut all = bound.cpus.clone();
    all.extend(lacks);
    match unit(origin.path()) {
        Some(unit) => format!(
            "let it have {}: `systemctl set-property --runtime {unit} AllowedCPUs={all}`, or use \
             another pool",
            counted_cpus(lacks)
        ),
        None => format!(
            "let it have {}: `echo {all} > {}`, or use another pool",
            counted_cpus(lacks),
            shell_word(&origin.dir().join("cpuset.cpus"))
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_shown_with_its_unit() {
        for (path, shown) in [
            (
                "/a.slice/b.slice",
                "the cgroup \"/a.slice/b.slice\" (unit b.slice)",
            ),
            ("/docker/x", "the cgroup \"/docker/x\""),
            ("/a;b.slice", "the cgroup \"/a;b.slice\""),
            ("/", "the cgroup \"/\""),
        ] {
            assert_eq!(shown_group(path), shown);
        }
    }
}
