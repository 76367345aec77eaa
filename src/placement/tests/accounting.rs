//! What is read of owners while they live, what is kept of it, and what is counted.

use std::time::Duration;

use super::{Machine, group_of};
use crate::account::{Mark, Noise, Source};
use crate::claims::{Claim, OwnerKind};
use crate::counters;
use crate::placement::{Site, readings};
use crate::usage::{Log, Sample, Samples};

/// A site that records usage.
fn site(machine: &Machine) -> Site {
    let log = Log {
        path: machine.path("usage.jsonl"),
        rotate_at: 1 << 20,
    };
    Site {
        usage: Some(log),
        ..machine.site()
    }
}

/// A machine with one owner, whose group has used five seconds.
fn machine() -> (Machine, Claim) {
    let machine = Machine::new();
    machine.pool("dp", "1", &["0"]);
    let claim = machine.pinned("web", 1, "dp", &["0"]);
    has_used(&machine, 5);
    (machine, claim)
}

fn has_used(machine: &Machine, seconds: u64) {
    let group = group_of("web");
    machine.put(
        &format!("sys/fs/cgroup{group}/cpu.stat"),
        &format!("usage_usec {seconds}000000\nuser_usec 3000000\nsystem_usec 2000000\n"),
    );
}

fn reading(machine: &Machine) -> Option<Sample> {
    let mut all = readings(&site(machine)).unwrap();
    assert!(all.len() < 2);
    all.pop().map(|(_, sample)| sample)
}

fn samples(machine: &Machine) -> Samples {
    Samples::of(&machine.site().run_dir)
}

/// Keeps an earlier reading, at a time of the kernel's clock in seconds.
fn keep(machine: &Machine, claim: &Claim, clock: f64) -> Sample {
    let mark = Mark {
        clock,
        total: 2.0,
        user: 2.0,
        system: 0.0,
        source: Source::Group,
        on_its_cpus: None,
        cpus: None,
    };
    let sample = Sample {
        at: 7,
        mark,
        noise: Noise::default(),
        is_final: false,
    };
    let name = claim.marker_name();
    samples(machine).keep(&name, &sample).unwrap();
    sample
}

#[test]
fn an_owner_is_read_until_nobody_is_left_in_its_group() {
    let (machine, claim) = machine();
    let kept = || samples(&machine).of_owner(&claim.marker_name());
    let first = reading(&machine).unwrap();
    let Mark {
        total,
        user,
        system,
        source,
        ..
    } = first.mark;
    assert_eq!((total, user, system), (5.0, 3.0, 2.0));
    assert_eq!((source, first.is_final), (Source::Group, false));
    assert_eq!(kept().as_ref(), Some(&first));
    // It used nothing since, and is read all the same.
    let second = reading(&machine).unwrap();
    assert!(second.mark.clock > first.mark.clock);
    assert_eq!(kept().as_ref(), Some(&second));
    // A smaller sum does not replace a larger one.
    has_used(&machine, 4);
    assert_eq!(reading(&machine).as_ref(), Some(&second));
    // Another of its processes lives on.
    let survivor = machine.process(2);
    machine.live(survivor, &group_of("web"));
    machine.end(claim.owner, &group_of("web"));
    has_used(&machine, 6);
    let last = reading(&machine).unwrap();
    assert_eq!((last.mark.total, last.is_final), (6.0, false));
    machine.end(survivor, &group_of("web"));
    has_used(&machine, 8);
    let end = reading(&machine).unwrap();
    assert_eq!((end.mark.total, end.is_final), (8.0, true));
    has_used(&machine, 9);
    assert_eq!(reading(&machine), Some(end));
}

/// The group of its path is the next container's, or cannot be looked at.
#[test]
fn of_an_owner_whose_group_is_not_there_the_last_reading_counts() {
    let (machine, mut claim) = machine();
    claim.cgroup.as_mut().unwrap().inode += 1_000_000;
    machine.ledger().write(&claim).unwrap();
    assert_eq!(reading(&machine), None);
    let before = keep(&machine, &claim, 1.0);
    assert_eq!(reading(&machine), Some(before.clone()));
    std::os::unix::fs::symlink("loop", machine.path("sys/fs/cgroup/loop")).unwrap();
    claim.cgroup.as_mut().unwrap().path = "/loop/web".to_owned();
    machine.ledger().write(&claim).unwrap();
    assert_eq!(reading(&machine), Some(before));
}

#[test]
fn a_later_reading_of_somebody_elses_is_not_written_over() {
    let (machine, claim) = machine();
    let later = keep(&machine, &claim, 1e12);
    assert_eq!(reading(&machine).as_ref(), Some(&later));
    let kept = samples(&machine).of_owner(&claim.marker_name());
    assert_eq!(kept, Some(later));
}

#[test]
fn nothing_is_read_of_reservations_and_of_another_boot() {
    for (kind, boot_id, is_read) in [
        (OwnerKind::Container, super::BOOT, true),
        (OwnerKind::Container, "another-boot", false),
        (OwnerKind::Reservation, super::BOOT, false),
    ] {
        let (machine, mut claim) = machine();
        claim.kind = kind;
        claim.boot_id = boot_id.to_owned();
        machine.ledger().write(&claim).unwrap();
        assert_eq!(reading(&machine).is_some(), is_read, "{kind:?} {boot_id}");
    }
}

#[test]
fn what_was_read_of_owners_that_are_accounted_for_is_forgotten() {
    let (machine, claim) = machine();
    let mut ended = claim.clone();
    ended.id = "ended".to_owned();
    let mut gone = claim.clone();
    gone.id = "gone".to_owned();
    for one in [&claim, &ended, &gone] {
        keep(&machine, one, 1.0);
    }
    machine.put(&format!("run/pinfold/ended/{}", ended.marker_name()), "");
    let names_after_a_look = || {
        let seen = readings(&site(&machine)).unwrap().len();
        let mut names = samples(&machine).names().unwrap();
        names.sort();
        (seen, names)
    };
    let (ended, lives, gone) = (ended.marker_name(), claim.marker_name(), gone.marker_name());
    let file = super::unreadable::torn(&machine, &claim);
    let all = vec![ended.clone(), gone, lives.clone()];
    assert_eq!(names_after_a_look(), (0, all), "each can be its owner's");
    machine.remove(&file);
    machine.ledger().write(&claim).unwrap();
    assert_eq!(names_after_a_look(), (1, vec![ended, lives]));
}

/// A reading at the command's beginning is not final, nor is one while children of it live.
#[test]
fn the_last_reading_of_a_command_is_that_of_its_end() {
    let (machine, claim) = machine();
    let site = site(&machine);
    let first = site.read_command(&claim, None).unwrap();
    assert_eq!((first.mark.total, first.is_final), (5.0, false));
    let end = site.read_command(&claim, Some(&first)).unwrap();
    assert!(end.is_final);
    machine.live(machine.process(2), &group_of("web"));
    let end = site.read_command(&claim, Some(&first)).unwrap();
    assert!(!end.is_final);
}

#[test]
fn waits_for_the_lock_and_freed_lists_are_counted() {
    let machine = Machine::new();
    let site = machine.site();
    machine.ledger();
    let counted = || {
        let counters = counters::read(&site.run_dir).unwrap();
        let seconds = counters.lock_wait_seconds;
        (counters.lock_waits, seconds, counters.reclaimed_lists)
    };
    site.count(None, 0);
    assert_eq!(counted(), (0, 0.0, 0));
    let wait = Some(Duration::from_millis(1500));
    for (waited, reclaimed, expected) in [
        (wait, 0, (1, 1.5, 0)),
        (None, 2, (1, 1.5, 2)),
        (wait, 1, (2, 3.0, 3)),
    ] {
        site.count(waited, reclaimed);
        assert_eq!(counted(), expected);
    }
}
