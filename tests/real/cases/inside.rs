//! `pinfold init` where only a part of the machine can be seen: as in a container.

use crate::case::{Case, plain};
use crate::cgroups::{hierarchy, narrow};
use crate::needs::Need;
use crate::process::run;
use crate::world::World;
use std::process::Command;

pub(crate) fn cases() -> Vec<Case> {
    vec![plain(
        "inside::pools_are_cut_from_what_is_allowed",
        &[Need::Root, Need::Cpus(2)],
        pools_are_cut_from_what_is_allowed,
    )]
}

/// A cgroup namespace of its own, whose root has CPU 1 alone.
fn pools_are_cut_from_what_is_allowed(world: &World) {
    let group = hierarchy().make(&format!("{}-inside", world.tag));
    narrow(&group, "1");
    let mount = match hierarchy().version {
        1 => "mount -t cgroup -o cpuset cpuset",
        _ => "mount -t cgroup2 cgroup2",
    };
    let init = world.pinfold(&["init", "--dry-run", "--pool", "all=rest:shared"]);
    let words = std::iter::once(init.get_program()).chain(init.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let within = format!(
        "umount -R -l /sys/fs/cgroup && {mount} /sys/fs/cgroup && exec {}",
        words.join(" ")
    );
    let script = format!(
        "echo $$ > {}/cgroup.procs && exec unshare --cgroup --mount sh -c '{within}'",
        group.display()
    );
    let ran = run(Command::new("sh").args(["-c", &script])).ok();
    assert!(ran.stdout.contains("all   shared  1      1\n"), "{ran}");
    assert!(ran.stderr.contains("allows the CPUs 1 alone"), "{ran}");
}
