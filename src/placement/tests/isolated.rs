//! Owners whose CPUs others are kept off, and what can prevent that.

use std::time::{Duration, Instant};

use super::{Machine, cpus, group_of, open, said};
use crate::cgroup::cpuset;
use crate::claims::{Claim, OwnerKind};
use crate::cpulist::CpuSet;
use crate::isolation::tuning::Tuning;
use crate::isolation::{Kind, Wanted};
use crate::outside::{self, Keeping, PartitionWatch};
use crate::placement::end::Fate;
use crate::placement::{reconcile, survey};

const ROOT: Wanted = Wanted {
    kind: Kind::Root,
    is_needed: false,
};

/// A container on CPU 2 of a machine whose kernel makes partitions.
fn machine() -> (Machine, Claim) {
    let machine = Machine::new();
    machine.pool("dp", "1", &["2", "3"]);
    machine.put("proc/sys/kernel/osrelease", "7.2.0\n");
    machine.put("sys/devices/system/cpu/isolated", "\n");
    let claim = machine.pinned("web", 1, "dp", &["2"]);
    for group in ["/machine.slice".to_owned(), group_of("web")] {
        for (file, content) in [
            ("cpuset.cpus.exclusive", "\n"),
            ("cpuset.cpus.partition", "member\n"),
        ] {
            machine.put(&format!("sys/fs/cgroup{group}/{file}"), content);
        }
    }
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-7\n");
    machine.put("sys/fs/cgroup/machine.slice/cgroup.procs", "");
    (machine, claim)
}

/// Makes what a start leaves: a valid partition, exclusive CPUs in the groups above, and a record
/// of what was there before.
fn keeps_off(machine: &Machine, claim: &Claim, cpus: &str) {
    let group = group_of("web");
    let changes = [("/machine.slice", "exclusive"), (&group, "exclusive")].map(|(group, kind)| {
        format!(r#"{{"target":{{"{kind}":"{group}"}},"found":"","ours":["{cpus}"]}}"#)
    });
    let inode = claim.cgroup.as_ref().unwrap().inode;
    let run_dir = machine.site().run_dir;
    let records = format!(
        r#"{{"version":1,"boot_id":"this-boot","owners":[{{"group":"{group}","inode":{inode},
            "above":["/machine.slice"],"cpus":"{cpus}","kind":"root","run_dir":"{}"}}],
            "changes":[{},
             {{"target":{{"partition":"{group}"}},"found":"member","ours":["root"]}}]}}"#,
        run_dir.display(),
        changes.join(",")
    );
    let path = machine.site().host.machine_dir().join("changes");
    let path = path.strip_prefix(machine.path("")).unwrap();
    machine.put(path.to_str().unwrap(), &records);
    for group in ["/machine.slice", &group] {
        machine.put(
            &format!("sys/fs/cgroup{group}/cpuset.cpus.exclusive"),
            &format!("{cpus}\n"),
        );
    }
    machine.put(
        &format!("sys/fs/cgroup{group}/cpuset.cpus.partition"),
        "root\n",
    );
}

#[test]
fn who_can_do_without_starts_where_the_records_cannot_be_read() {
    let (machine, claim) = machine();
    machine.put("run/pinfold-machine/changes", "{torn");
    let site = machine.site();
    let needed = Wanted {
        is_needed: true,
        ..ROOT
    };
    let mut new = claim.clone();
    let refused = said(open(&site).keep_off(&mut new, Some(needed)));
    assert!(refused.contains("cannot be read"), "{refused}");
    assert!(
        refused.contains("remove the file, and run `pinfold reconcile`"),
        "{refused}"
    );
    assert_eq!(new.isolation, None);
    open(&site).keep_off(&mut new, Some(ROOT)).unwrap();
    // Nothing was changed for it: it ends as others do, and its list is free.
    assert_eq!(new.isolation, None);
    assert_eq!(
        machine.ledger().of_id("web").unwrap()[0].claim(),
        Some(&new)
    );
    machine.end(new.owner, &group_of("web"));
    assert!(open(&site).free_dead(&new).unwrap() == Fate::Freed);
    assert_eq!(machine.tasks("dp", "2"), "");
}

/// A hook that runs again. The claim keeps saying so, so that the owner's end undoes what may still
/// be changed.
#[test]
fn who_was_kept_for_itself_keeps_its_list_while_the_records_cannot_be_read() {
    let (machine, mut claim) = machine();
    keeps_off(&machine, &claim, "2");
    let records = machine.get("run/pinfold-machine/changes");
    machine.put("run/pinfold-machine/changes", "{torn");
    claim.isolation = Some(ROOT);
    machine.ledger().write(&claim).unwrap();
    let site = machine.site();
    open(&site).keep_off(&mut claim, Some(ROOT)).unwrap();
    assert_eq!(claim.isolation, Some(ROOT));
    machine.end(claim.owner, &group_of("web"));
    assert!(open(&site).free_dead(&claim).is_err());
    machine.put("run/pinfold-machine/changes", &records);
    assert!(open(&site).free_dead(&claim).unwrap() == Fate::Freed);
    assert_eq!(machine.value("/machine.slice", "cpuset.cpus.exclusive"), "");
}

/// A fork of the owner's that was late, and enters the group while its partition is taken down.
#[test]
fn a_late_survivor_keeps_its_cpus_for_itself() {
    let (machine, mut claim) = machine();
    let group = group_of("web");
    keeps_off(&machine, &claim, "2");
    claim.isolation = Some(Wanted {
        kind: Kind::Isolated,
        is_needed: true,
    });
    machine.ledger().write(&claim).unwrap();
    let site = machine.site();
    machine.end(claim.owner, &group);
    machine.live(machine.process(2), &group);
    assert!(open(&site).free_dead(&claim).unwrap() == Fate::Held);
    let partition = machine.value(&group, "cpuset.cpus.partition");
    assert_eq!(partition, "isolated");
    assert_eq!(
        machine.value("/machine.slice", "cpuset.cpus.exclusive"),
        "2"
    );
    assert_eq!(outside::owners(&site.host).len(), 1);
}

#[test]
fn a_late_survivor_that_nobody_can_be_kept_off_again_is_held_all_the_same() {
    let (machine, mut claim) = machine();
    let group = group_of("web");
    keeps_off(&machine, &claim, "2");
    claim.isolation = Some(ROOT);
    machine.ledger().write(&claim).unwrap();
    // Others can run on its CPU already, and what came there is in the way of a new partition.
    machine.group("/machine.slice/other");
    machine.put("sys/fs/cgroup/machine.slice/other/cpuset.cpus", "2\n");
    let site = machine.site();
    machine.end(claim.owner, &group);
    machine.live(machine.process(2), &group);
    assert!(open(&site).keep_off_again(&claim).is_ok());
    assert!(open(&site).free_dead(&claim).unwrap() == Fate::Held);
    assert_eq!(outside::owners(&site.host).len(), 0);
    assert!(open(&site).keep_off_again(&claim).is_err());
    assert_eq!(machine.value(&group, "cpuset.cpus"), "2");
}

/// The groups above are everybody's.
#[test]
fn what_fails_for_another_owner_keeps_nobody_from_its_end() {
    let top = "sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive";
    // The other's CPU is exclusive above no more, and the kernel refuses to have it so again.
    for (above, is_left) in [("2\n", true), ("\n", false)] {
        let (machine, mut claim) = machine();
        keeps_off(&machine, &claim, "2");
        claim.isolation = Some(ROOT);
        let other = machine.pinned("other", 2, "dp", &["3"]);
        let group = group_of("other");
        for (file, content) in [("exclusive", "3\n"), ("partition", "root\n")] {
            machine.put(&format!("sys/fs/cgroup{group}/cpuset.cpus.{file}"), content);
        }
        let owner = format!(
            r#""owners":[{{"group":"{group}","inode":{},"above":["/machine.slice"],"cpus":"3",
                "kind":"root","run_dir":"{}"}},"#,
            other.cgroup.unwrap().inode,
            machine.site().run_dir.display()
        );
        let records = machine.get("run/pinfold-machine/changes");
        let both = records.replace(r#""owners":["#, &owner);
        machine.put("run/pinfold-machine/changes", &both);
        machine.put(top, above);
        let mut mode = machine.path(top).metadata().unwrap().permissions();
        mode.set_readonly(true);
        std::fs::set_permissions(machine.path(top), mode).unwrap();
        // Capabilities belong to a thread: the other tests keep theirs.
        let done = std::thread::scope(|scope| {
            let end = scope.spawn(|| {
                let writes_all = caps::Capability::CAP_DAC_OVERRIDE;
                caps::drop(None, caps::CapSet::Effective, writes_all).unwrap();
                open(&machine.site()).let_in(&claim)
            });
            end.join().unwrap()
        });
        assert_eq!(done.is_err(), is_left, "{done:?}");
        let own = machine.value(&group_of("web"), "cpuset.cpus.exclusive");
        assert_eq!(own, "");
        assert_eq!(outside::owners(&machine.site().host).len(), 1);
    }
}

/// What to do about records that cannot be read is to remove them. The claim says what was changed.
#[test]
fn where_the_records_were_removed_the_end_undoes_what_was_changed_all_the_same() {
    let after = |is_reconciled: bool, has_come: bool, is_there: bool| {
        let (machine, mut claim) = machine();
        keeps_off(&machine, &claim, "2");
        claim.isolation = Some(ROOT);
        machine.ledger().write(&claim).unwrap();
        machine.remove("run/pinfold-machine/changes");
        let site = machine.site();
        let mut other = machine.pinned("other", 2, "dp", &["3"]);
        for (file, content) in [("exclusive", "\n"), ("partition", "member\n")] {
            let path = format!("sys/fs/cgroup{}/cpuset.cpus.{file}", group_of("other"));
            machine.put(&path, content);
        }
        if has_come {
            let isolated = Wanted {
                kind: Kind::Isolated,
                is_needed: true,
            };
            open(&site).keep_off(&mut other, Some(isolated)).unwrap();
            let all = machine.value("/machine.slice", "cpuset.cpus.exclusive");
            assert_eq!(all, "2-3");
        }
        if is_reconciled {
            assert_eq!(reconcile(&site).unwrap().problems, []);
            let owners = outside::owners(&site.host);
            assert_eq!(owners.len(), 1 + usize::from(has_come));
        }
        let group = group_of("web");
        if !is_there {
            let path = machine.path(&format!("sys/fs/cgroup{group}"));
            std::fs::remove_dir_all(path).unwrap();
        }
        open(&site).let_in(&claim).unwrap();
        if is_there {
            assert_eq!(machine.value(&group, "cpuset.cpus.exclusive"), "");
            assert_eq!(machine.value(&group, "cpuset.cpus.partition"), "member");
        }
        if has_come {
            open(&site).let_in(&other).unwrap();
        }
        machine.value("/machine.slice", "cpuset.cpus.exclusive")
    };
    for is_reconciled in [false, true] {
        for has_come in [false, true] {
            for is_there in [false, true] {
                let left = after(is_reconciled, has_come, is_there);
                assert_eq!(left, "", "{is_reconciled} {has_come} {is_there}");
            }
        }
    }
}

/// Whoever comes first writes new records. A runtime removes the groups before its last hook.
#[test]
fn where_the_records_were_removed_the_end_of_one_forgets_nobody_else() {
    #[derive(Debug, PartialEq)]
    enum First {
        End,
        Reconcile,
        /// Of one whose pool asks for something else of the machine.
        Tuned,
    }
    let top = "sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive";
    let exclusive = |machine: &Machine| -> CpuSet {
        let text = machine.value("/machine.slice", "cpuset.cpus.exclusive");
        text.parse().unwrap()
    };
    for first in [First::End, First::Reconcile, First::Tuned] {
        for are_there in [false, true] {
            let (machine, mut web) = machine();
            keeps_off(&machine, &web, "2");
            let mut other = machine.pinned("other", 2, "dp", &["3"]);
            for (file, content) in [("exclusive", "3\n"), ("partition", "root\n")] {
                let path = format!("sys/fs/cgroup{}/cpuset.cpus.{file}", group_of("other"));
                machine.put(&path, content);
            }
            // These were found there. A file, unlike the kernel's, keeps the rest of a longer text.
            let found = if are_there { "" } else { "5-7" };
            machine.put(top, format!("2-3,{found}").trim_end_matches(','));
            machine.remove("run/pinfold-machine/changes");
            for claim in [&mut web, &mut other] {
                claim.isolation = Some(ROOT);
                machine.ledger().write(claim).unwrap();
            }
            machine.pool("common", "1", &["4"]);
            let third = machine.pinned("third", 3, "common", &["4"]);
            let site = machine.site();
            for claim in [&web, &other].into_iter().filter(|_| !are_there) {
                let group = group_of(claim.id.as_str());
                machine.end(claim.owner, &group);
                let group = machine.path(&format!("sys/fs/cgroup{group}"));
                std::fs::remove_dir_all(group).unwrap();
            }
            match first {
                First::End => {}
                First::Reconcile => assert_eq!(reconcile(&site).unwrap().problems, []),
                First::Tuned => {
                    let tuning = Tuning {
                        irqs_away: true,
                        ..Tuning::default()
                    };
                    open(&site).tune(&mut third.clone(), &tuning);
                    assert!(machine.is_there("run/pinfold-machine/changes"));
                }
            }
            open(&site).let_in(&web).unwrap();
            if are_there {
                // Who lives keeps its CPUs for itself.
                assert_eq!(exclusive(&machine), cpus("3"));
                let group = group_of("other");
                assert_eq!(machine.value(&group, "cpuset.cpus.partition"), "root");
                assert_eq!(outside::owners(&site.host).len(), 1);
            }
            open(&site).let_in(&other).unwrap();
            assert_eq!(exclusive(&machine), cpus(found), "{first:?} {are_there}");
        }
    }
}

/// At the first start of a boot there are no records yet, as if they had been removed.
#[test]
fn a_start_that_was_killed_before_it_changed_anything_takes_nothing_that_was_found() {
    let top = "sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive";
    for is_reconciled in [false, true] {
        let (machine, mut claim) = machine();
        // Somebody else's.
        machine.put(top, "2-7\n");
        let site = machine.site();
        let hierarchy = cpuset::hierarchy(&site.host).unwrap();
        let group = hierarchy.group(&group_of("web")).unwrap();
        let run_dir = site.run_dir.clone();
        let owner = outside::owner_of(&group, &claim.cpus, Kind::Root, run_dir).unwrap();
        let killed = open(&site).outside().keep_off(&owner, || {
            claim.isolation = Some(ROOT);
            machine.ledger().write(&claim)?;
            anyhow::bail!("killed")
        });
        assert!(said(killed).starts_with("killed"));
        machine.end(claim.owner, &group_of("web"));
        if is_reconciled {
            assert_eq!(reconcile(&site).unwrap().problems, []);
        } else {
            assert!(open(&site).free_dead(&claim).unwrap() == Fate::Freed);
        }
        assert_eq!(machine.get(top), "2-7\n");
    }
}

/// A restored group must not name what others may be kept off.
#[test]
fn whatever_the_records_do_not_rule_out_is_spared() {
    let (machine, claim) = machine();
    let records = "run/pinfold-machine/changes";
    let spared = || {
        open(&machine.site())
            .exclusive_where_isolated()
            .unwrap()
            .to_string()
    };
    assert_eq!(spared(), "");
    machine.put(
        records,
        r#"{"version":1,"boot_id":"this-boot","owners":[],"changes":[]}"#,
    );
    assert_eq!(spared(), "");
    machine.put(records, "{torn");
    assert_eq!(spared(), "2-3");
    keeps_off(&machine, &claim, "2");
    assert_eq!(spared(), "2-3");
}

/// The last owner's end must not leave a group that keeps the next one from its partition.
#[test]
fn what_a_pool_wants_isolated_is_spared_with_and_without_owners() {
    let (machine, claim) = machine();
    machine.pool("common", "0", &["4-5"]);
    machine.put("etc/kcm/pools/common/isolation", "root\n");
    let spared = || {
        let spared = open(&machine.site()).exclusive_where_isolated();
        spared.unwrap().to_string()
    };
    assert_eq!(spared(), "");
    for (isolation, expected) in [("root\n", "2-3"), ("none\n", "")] {
        machine.put("etc/kcm/pools/dp/isolation", isolation);
        assert_eq!(spared(), expected, "{isolation}");
    }
    // An owner of another pool directory.
    keeps_off(&machine, &claim, "2,7");
    assert_eq!(spared(), "2-3,7");
}

/// A file can be unreadable for a moment, as where too many are open.
#[test]
fn what_cannot_be_read_for_a_moment_is_undone_later_and_until_then_that_is_said() {
    let group = group_of("web");
    for (group, file, is_own) in [
        ("/machine.slice", "cpuset.cpus.exclusive", false),
        (&*group, "cpuset.cpus.exclusive", true),
        (&*group, "cpuset.cpus.partition", true),
    ] {
        let (machine, mut claim) = machine();
        keeps_off(&machine, &claim, "2");
        claim.isolation = Some(ROOT);
        let path = format!("sys/fs/cgroup{group}/{file}");
        let site = machine.site();
        // While it lives.
        let text = machine.spoil(&path);
        let converged = open(&site).converge_machine().unwrap();
        assert!(!converged.problems.is_empty(), "{path}");
        assert_eq!(outside::owners(&site.host).len(), 1);
        // When it ends, and again.
        for _ in 0..if is_own { 2 } else { 1 } {
            let told = said(open(&site).let_in(&claim));
            assert!(told.contains(file), "{told}");
        }
        machine.heal(&path, &text);
        open(&site).let_in(&claim).unwrap();
        for group in ["/machine.slice", &group_of("web")] {
            let exclusive = machine.value(group, "cpuset.cpus.exclusive");
            assert_eq!(exclusive, "", "{path} {group}");
        }
        let partition = machine.value(&group_of("web"), "cpuset.cpus.partition");
        assert_eq!(partition, "member", "{path}");
        let records = machine.get("run/pinfold-machine/changes");
        assert!(records.contains(r#""changes":[]"#), "{records}");
    }
}

/// The link from its cgroup says that it has a claim.
#[test]
fn an_owner_whose_link_was_lost_keeps_its_cpus_for_itself() {
    let (machine, claim) = machine();
    keeps_off(&machine, &claim, "2");
    let effective = format!("sys/fs/cgroup{}/cpuset.cpus.effective", group_of("web"));
    machine.put(&effective, "2\n");
    let inode = claim.cgroup.as_ref().unwrap().inode;
    let link = format!("run/pinfold/cgroups/{inode}");
    machine.remove(&link);
    let partition = || machine.value(&group_of("web"), "cpuset.cpus.partition");
    let owners = || outside::owners(&machine.site().host).len();
    let report = reconcile(&machine.site()).unwrap();
    assert_eq!(report.problems, []);
    assert!(machine.is_there(&link));
    assert_eq!((owners(), partition()), (1, "root".to_owned()));
    // Of one without a claim this may be said only where each claim has its links: this one names a
    // list that was renamed, and gets none.
    let old = machine.start(2, &group_of("old"));
    let old = machine.claim("old", old, "dp", &["6"]);
    machine.ledger().write(&old).unwrap();
    machine.ledger().remove(&claim).unwrap();
    let report = reconcile(&machine.site()).unwrap();
    assert!(!report.problems.is_empty());
    assert_eq!((owners(), partition()), (1, "root".to_owned()));
    machine.ledger().remove(&old).unwrap();
    reconcile(&machine.site()).unwrap();
    assert_eq!((owners(), partition()), (0, "member".to_owned()));
}

#[test]
fn nobody_is_kept_off_the_cpus_of_a_shared_pool() {
    let (machine, _) = machine();
    machine.pool("common", "0", &["4-5"]);
    for (pool, isolation) in [("dp", Some(ROOT)), ("common", None)] {
        machine.put(&format!("etc/kcm/pools/{pool}/isolation"), "root\n");
        let site = machine.site();
        assert_eq!(
            open(&site).isolation_now(pool).unwrap(),
            isolation,
            "{pool}"
        );
    }
}

#[test]
fn a_partition_that_lacks_what_is_offline_stands() {
    let (machine, claim) = machine();
    keeps_off(&machine, &claim, "2-3");
    let effective = format!("sys/fs/cgroup{}/cpuset.cpus.effective", group_of("web"));
    for (online, now, problems) in [("0-7", "2-3", 0), ("0-2,4-7", "2", 0), ("0-7", "2", 1)] {
        machine.put("sys/devices/system/cpu/online", &format!("{online}\n"));
        machine.put(&effective, &format!("{now}\n"));
        // A sibling names the CPUs, so nothing can be mended here.
        machine.group("/machine.slice/other");
        machine.put("sys/fs/cgroup/machine.slice/other/cpuset.cpus", "3\n");
        let found = open(&machine.site()).converge_machine().unwrap().problems;
        assert_eq!(found.len(), problems, "{online} {now}: {found:?}");
    }
}

#[test]
fn an_owner_that_something_came_in_the_way_of_leaves_no_record() {
    let (machine, mut claim) = machine();
    keeps_off(&machine, &claim, "2");
    claim.isolation = Some(ROOT);
    let group = group_of("web");
    machine.put(
        &format!("sys/fs/cgroup{group}/cpuset.cpus.partition"),
        "root invalid (x)\n",
    );
    // A kernel on which a container beside it could lose the CPUs.
    machine.put("proc/sys/kernel/osrelease", "6.12.0\n");
    machine.group("/machine.slice/other");
    let site = machine.site();
    open(&site).keep_off(&mut claim, Some(ROOT)).unwrap();
    assert_eq!(claim.isolation, None);
    assert_eq!(outside::owners(&site.host), []);
    assert_eq!(machine.value("/machine.slice", "cpuset.cpus.exclusive"), "");
    assert_eq!(machine.value(&group, "cpuset.cpus.exclusive"), "");
    assert_eq!(outside::kept(&site.host), cpus(""));
}

/// Where a start beside somebody would succeed, so does making its partition again. From Linux 7.0
/// on the kernel gives a partition's CPUs to nobody else, whatever the groups beside it name.
#[test]
fn a_broken_partition_is_made_again_beside_whoever_a_start_is_possible_beside() {
    let state = format!("sys/fs/cgroup{}/cpuset.cpus.partition", group_of("web"));
    for (beside, is_made) in [
        ("", true),
        ("0-1", true),
        ("2-3", true),
        ("0-7", true),
        ("2", false),
    ] {
        let (machine, claim) = machine();
        keeps_off(&machine, &claim, "2");
        let hotplug = "root invalid (No cpu available due to hotplug)\n";
        machine.put(&state, hotplug);
        machine.group("/machine.slice/other");
        let mask = "sys/fs/cgroup/machine.slice/other/cpuset.cpus";
        machine.put(mask, &format!("{beside}\n"));
        let problems = open(&machine.site()).converge_machine().unwrap().problems;
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let is_left = machine.get(&state).starts_with("root invalid");
        assert_eq!(!is_left, is_made, "{beside}: {said:?}");
        let names = said
            .iter()
            .any(|said| said.contains("other/cpuset.cpus names"));
        assert_eq!(names, !is_made, "{beside}: {said:?}");
    }
}

/// The kernel lets nobody without `CAP_SYS_ADMIN` make a partition.
#[test]
fn who_may_not_make_a_broken_partition_again_leaves_it_as_it_is() {
    let (machine, claim) = machine();
    keeps_off(&machine, &claim, "2");
    machine.put("sys/fs/cgroup/cpuset.cpus.effective", "0-7\n");
    let file = format!("sys/fs/cgroup{}/cpuset.cpus.partition", group_of("web"));
    let broken = "root invalid (Parent is not a partition root)";
    // Capabilities belong to a thread: the other tests keep theirs.
    let converge = |has_admin: bool| {
        std::thread::scope(|scope| {
            let done = scope.spawn(|| {
                let admin = caps::Capability::CAP_SYS_ADMIN;
                if !has_admin {
                    caps::drop(None, caps::CapSet::Effective, admin).unwrap();
                    caps::drop(None, caps::CapSet::Permitted, admin).unwrap();
                }
                let may = caps::has_cap(None, caps::CapSet::Permitted, admin).unwrap();
                machine.put(&file, broken);
                let problems = open(&machine.site()).converge_machine().unwrap().problems;
                let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
                (may, problems)
            });
            done.join().unwrap()
        })
    };
    for has_admin in [false, true] {
        let (may, problems) = converge(has_admin);
        let text = machine.get(&file);
        assert_eq!(text.starts_with("root invalid"), !may, "{text}");
        let is_told = problems.iter().any(|one| one.contains("CAP_SYS_ADMIN"));
        assert_eq!(is_told, !may, "{problems:?}");
    }
}

/// How long a wait of at most `interval` took.
fn took(watch: &mut PartitionWatch<'_>, interval: Duration) -> Duration {
    let began = Instant::now();
    watch.wait(interval);
    began.elapsed()
}

#[test]
fn a_partition_that_does_not_stand_ends_the_wait_once() {
    let (machine, claim) = machine();
    keeps_off(&machine, &claim, "2");
    let state = "sys/fs/cgroup/machine.slice/web/cpuset.cpus.partition";
    let (soon, late) = (Duration::from_millis(700), Duration::from_secs(60));
    let host = machine.site().host;
    let mut watch = PartitionWatch::new(&host);
    assert!(took(&mut watch, soon) >= soon);
    // It broke after the last look.
    machine.put(state, "root invalid (x)\n");
    assert!(took(&mut watch, late) < late / 2);
    // A round could not make it again.
    assert!(took(&mut watch, soon) >= soon);
    machine.put(state, "root\n");
    assert!(took(&mut watch, soon) >= soon);
    machine.put(state, "member\n");
    assert!(took(&mut watch, late) < late / 2);
}

/// A round takes a while: what it has made again can be broken when the wait begins.
#[test]
fn what_breaks_again_in_the_same_round_ends_the_wait_and_what_cannot_be_mended_does_not() {
    let (machine, claim) = machine();
    keeps_off(&machine, &claim, "2");
    let state = "sys/fs/cgroup/machine.slice/web/cpuset.cpus.partition";
    let (soon, late) = (Duration::from_millis(700), Duration::from_secs(60));
    let host = machine.site().host;
    let mut watch = PartitionWatch::new(&host);
    machine.put(state, "root invalid (x)\n");
    assert!(took(&mut watch, late) < late / 2);
    // The round made it again, and it broke.
    watch.round_is_over(Vec::new());
    assert!(took(&mut watch, late) < late / 2);
    // The next one cannot, for somebody is in the way.
    machine.group("/machine.slice/other");
    machine.put("sys/fs/cgroup/machine.slice/other/cpuset.cpus", "2\n");
    for _ in 0..2 {
        let report = reconcile(&machine.site()).unwrap();
        assert_eq!(report.broken.as_ref().map(Vec::len), Some(1));
        watch.round_is_over(report.broken.unwrap());
        assert!(took(&mut watch, soon) >= soon);
    }
}

#[test]
fn an_owner_that_starts_during_a_wait_is_watched() {
    for has_directory in [false, true] {
        let (machine, claim) = machine();
        machine.put("run/other", "");
        if has_directory {
            machine.put("run/pinfold-machine/lock", "");
        }
        let host = machine.site().host;
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                keeps_off(&machine, &claim, "2");
                let state = "sys/fs/cgroup/machine.slice/web/cpuset.cpus.partition";
                machine.put(state, "root invalid (x)\n");
            });
            PartitionWatch::new(&host).wait(Duration::from_secs(60));
        });
        let took = began.elapsed();
        assert!(took < Duration::from_secs(30), "{has_directory}: {took:?}");
    }
}

/// On a kernel that makes no partition of ours, too, and where isolation is needed.
#[test]
fn a_slice_that_is_the_partition_needs_none_of_ours() {
    let needed = |kind| Wanted {
        kind,
        is_needed: true,
    };
    let isolated = needed(Kind::Isolated);
    for (slice, effective, wanted, refused) in [
        ("root", "2-3", needed(Kind::Root), None),
        ("isolated", "2-3", needed(Kind::Root), None),
        ("isolated", "2-3", isolated, None),
        // 3 is offline.
        ("root", "2", needed(Kind::Root), None),
        (
            "root",
            "2-3",
            isolated,
            Some("in the partition \"/machine.slice\", which keeps others off as isolation=root"),
        ),
        (
            "root",
            "3",
            needed(Kind::Root),
            Some("in the partition \"/machine.slice\" of somebody else"),
        ),
        (
            "root invalid (x)",
            "2-3",
            needed(Kind::Root),
            Some("Linux 6.1.0 cannot keep others off a container's CPUs"),
        ),
    ] {
        for has_exclusive in [false, true] {
            let (machine, mut claim) = machine();
            machine.put("proc/sys/kernel/osrelease", "6.1.0\n");
            let exclusive = format!("sys/fs/cgroup{}/cpuset.cpus.exclusive", group_of("web"));
            if !has_exclusive {
                machine.remove(&exclusive);
            } else if refused.is_some_and(|refused| refused.contains("Linux")) {
                continue;
            }
            if effective == "2" {
                claim.cpus = cpus("2-3");
                machine.put("sys/devices/system/cpu/online", "0-2,4-7\n");
            }
            for (file, text) in [("partition", slice), ("effective", effective)] {
                let path = format!("sys/fs/cgroup/machine.slice/cpuset.cpus.{file}");
                machine.put(&path, &format!("{text}\n"));
            }
            // As a reservation that is adopted.
            claim.isolation = Some(wanted);
            machine.ledger().write(&claim).unwrap();
            let site = machine.site();
            let done = open(&site).keep_off(&mut claim, Some(wanted));
            match refused {
                None => {
                    done.unwrap();
                    assert_eq!(claim.isolation, None, "{slice} {wanted:?}");
                    assert_eq!(outside::owners(&site.host), []);
                    assert!(!machine.is_there("run/pinfold-machine/changes"));
                    let owner = survey(&site).unwrap().owners.remove(0);
                    let kind = Kind::by_word(slice).unwrap().unwrap();
                    let path = "/machine.slice".to_owned();
                    assert_eq!(owner.keeping, Keeping::Above { path, kind });
                }
                Some(refused) => {
                    let said = said(done);
                    assert!(said.contains(refused), "{slice} {wanted:?}: {said}");
                }
            }
        }
    }
}

/// The owner's own partition may still be recorded: its end has to look.
#[test]
fn within_a_partition_a_claim_keeps_what_unreadable_records_may_say() {
    for (records, kept) in [("{torn", Some(ROOT)), ("", None)] {
        let (machine, mut claim) = machine();
        for (file, text) in [("partition", "root"), ("effective", "2-3")] {
            let path = format!("sys/fs/cgroup/machine.slice/cpuset.cpus.{file}");
            machine.put(&path, &format!("{text}\n"));
        }
        claim.isolation = Some(ROOT);
        machine.ledger().write(&claim).unwrap();
        if !records.is_empty() {
            machine.put("run/pinfold-machine/changes", records);
        }
        let site = machine.site();
        open(&site).keep_off(&mut claim, Some(ROOT)).unwrap();
        assert_eq!(claim.isolation, kept, "{records}");
        // Nor does who mends lost records make another partition, or complain.
        claim.isolation = Some(ROOT);
        open(&site).keep_off_again(&claim).unwrap();
        assert_eq!(outside::owners(&site.host), []);
    }
}

/// A command of `isolate --no-affinity` runs on any CPU.
#[test]
fn who_is_not_confined_is_refused_where_isolation_is_needed() {
    let (machine, mut claim) = machine();
    claim.kind = OwnerKind::Process;
    claim.cgroup.as_mut().unwrap().confined = false;
    let site = machine.site();
    for (is_needed, is_refused) in [(true, true), (false, false)] {
        let wanted = Wanted { is_needed, ..ROOT };
        let done = open(&site).keep_off(&mut claim, Some(wanted));
        assert_eq!(claim.isolation, None);
        if is_refused {
            let said = said(done);
            assert_eq!(
                said,
                "others can run on 2 of pool dp, which web has in the books alone: it runs with \
                 --no-affinity, and so on any CPU: run it without --no-affinity; or `pinfold pool \
                 set dp isolation-needed=no`"
            );
        } else {
            done.unwrap();
        }
    }
    open(&site).keep_off(&mut claim, None).unwrap();
}

#[test]
fn a_start_on_version_1_says_that_it_keeps_nobody_else_off() {
    let (machine, mut claim) = machine();
    machine.put(
        "proc/1/mountinfo",
        "40 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n",
    );
    for (file, text) in [("cpuset.cpus", "2\n"), ("cpuset.effective_cpus", "2\n")] {
        machine.put(
            &format!("sys/fs/cgroup/cpuset/machine.slice/web/{file}"),
            text,
        );
    }
    claim.cgroup = Some(machine.claimed_at("sys/fs/cgroup/cpuset", "/machine.slice/web"));
    let needed = Wanted {
        is_needed: true,
        ..ROOT
    };
    let site = machine.site();
    let said = said(open(&site).keep_off(&mut claim, Some(needed)));
    assert_eq!(
        said,
        "others can run on 2 of pool dp, which web has by its mask alone: cgroup version 1 keeps \
         nobody else off: boot with version 2, or keep the host off with isolcpus=; or `pinfold \
         pool set dp isolation-needed=no`"
    );
    // What the configuration says is not changed by that.
    let mut configured = site.clone();
    let options = configured.options.entry("dp".to_owned()).or_default();
    options.set("isolation-needed", "yes").unwrap();
    let told = self::said(open(&configured).keep_off(&mut claim, Some(needed)));
    assert!(
        told.ends_with(
            "; or say `isolation-needed = false` of pool dp in the configuration file, which \
             counts before `pinfold pool set`"
        ),
        "{told}"
    );
    open(&site).keep_off(&mut claim, Some(ROOT)).unwrap();
    assert_eq!(claim.isolation, None);
}
