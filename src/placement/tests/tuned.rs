//! What of the machine is set for owners, and that each of its files is as before when they end.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::{Machine, group_of, open, said};
use crate::cgroup::standin::Standin;
use crate::claims::Claim;
use crate::cpulist::CpuSet;
use crate::isolation::tuning::{Key, Tuning};
use crate::outside;
use crate::placement::end::Fate;

const AWAY: Tuning = Tuning {
    irqs_away: true,
    quota_lifted: false,
    governor: None,
    resume_latency: None,
};

const FILES: [(&str, &str); 4] = [
    ("proc/irq/default_smp_affinity", "ff\n"),
    ("proc/irq/24/smp_affinity_list", "0-7\n"),
    ("proc/irq/25/smp_affinity_list", "2\n"),
    ("proc/irq/26/smp_affinity_list", "4-7\n"),
];

/// Two containers, on CPUs 2 and 3, of a machine with three interrupts.
fn machine() -> (Machine, Claim, Claim) {
    let machine = Machine::new();
    machine.pool("dp", "1", &["2", "3"]);
    for (path, content) in FILES {
        machine.put(path, content);
    }
    for number in [24, 25, 26] {
        machine.put(&format!("proc/irq/{number}/nic-{number}/x"), "");
    }
    machine.put("etc/kcm/pools/dp/irqs", "away\n");
    let one = machine.pinned("one", 1, "dp", &["2"]);
    let other = machine.pinned("other", 2, "dp", &["3"]);
    (machine, one, other)
}

impl Machine {
    /// What the files hold, each a line.
    fn set(&self) -> BTreeMap<&str, String> {
        let line = |path: &str| self.get(path).lines().next().unwrap_or_default().to_owned();
        FILES.iter().map(|(path, _)| (*path, line(path))).collect()
    }

    fn irq(&self, number: u32) -> String {
        let set = self.set();
        set[&*format!("proc/irq/{number}/smp_affinity_list")].clone()
    }
}

#[test]
fn a_start_moves_interrupts_and_the_last_end_puts_each_file_back() {
    let (machine, mut one, mut other) = machine();
    let before = machine.set();
    let site = machine.site();
    open(&site).tune(&mut one, &AWAY);
    assert_eq!(
        machine.ledger().of_id("one").unwrap()[0]
            .claim()
            .unwrap()
            .tuning,
        AWAY
    );
    assert_eq!(
        (machine.irq(24), machine.irq(25)),
        ("0-1,3-7".into(), "0-1,3-7".into())
    );
    assert_eq!(machine.set()["proc/irq/default_smp_affinity"], "FB");
    open(&site).tune(&mut other, &AWAY);
    open(&site).tune(&mut other, &AWAY);
    assert_eq!(machine.irq(24), "0-1,4-7");
    assert_eq!(machine.irq(26), "4-7");
    assert_eq!(outside::tuned(&site.host).len(), 2);
    for (claim, left) in [(&one, "0-2,4-7"), (&other, "0-7")] {
        machine.end(claim.owner, &group_of(&claim.id));
        assert!(open(&site).free_dead(claim).unwrap() == Fate::Freed);
        assert_eq!(machine.irq(24), left);
    }
    assert_eq!(machine.set(), before);
    assert!(outside::tuned(&site.host).is_empty());
}

/// Answers as irqbalance does, and notes what it is told. What it was told shows at once.
fn balance(machine: &Machine, banned: &'static str) -> Arc<Mutex<Vec<String>>> {
    machine.put("run/irqbalance/other", "");
    let path = machine.path("run/irqbalance/irqbalance77.sock");
    let listener = UnixListener::bind(path).unwrap();
    let told = Arc::new(Mutex::new(vec![banned.to_owned()]));
    let heard = Arc::clone(&told);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut text = [0; 100];
            let length = stream.read(&mut text).unwrap();
            let text = std::str::from_utf8(&text[..length]).unwrap();
            let mut heard = heard.lock().unwrap();
            if let Some(cpus) = text.strip_prefix("settings cpus ") {
                heard.push(cpus.to_owned());
            } else if text == "setup" {
                let cpus: CpuSet = heard.last().unwrap().parse().unwrap_or_default();
                let mask = cpus.to_hex_mask();
                write!(stream, "SLEEP 10 IRQ 9 LOAD 0 DIFF 0 CLASS 1 BANNED {mask}").unwrap();
            }
        }
    });
    told
}

#[test]
fn irqbalance_keeps_off_what_is_owned_and_what_it_kept_off_before() {
    for (banned, expected) in [
        ("5", ["5", "2,5", "2-3,5", "3,5", "5"]),
        ("NULL", ["NULL", "2", "2-3", "3", "NULL"]),
    ] {
        let (machine, mut one, mut other) = machine();
        let told = balance(&machine, banned);
        let site = machine.site();
        open(&site).tune(&mut one, &AWAY);
        open(&site).tune(&mut other, &AWAY);
        for claim in [&one, &other] {
            machine.end(claim.owner, &group_of(&claim.id));
            assert!(open(&site).free_dead(claim).unwrap() == Fate::Freed);
        }
        assert_eq!(*told.lock().unwrap(), expected);
        assert_eq!(machine.irq(24), "0-7");
    }
}

/// With one CPU left it would end itself. It is told of those who came before.
#[test]
fn an_irqbalance_that_would_be_left_one_cpu_is_not_told_of_who_comes_and_that_is_said() {
    let (machine, mut one, mut other) = machine();
    let told = balance(&machine, "0-1,4-6");
    let last = || told.lock().unwrap().last().unwrap().clone();
    let site = machine.site();
    let said = "run/pinfold-machine/told-irqbalance-few-cpus";
    open(&site).tune(&mut one, &AWAY);
    assert_eq!(last(), "0-2,4-6");
    assert!(!machine.is_there(said));
    open(&site).tune(&mut other, &AWAY);
    assert_eq!(last(), "0-2,4-6");
    assert!(machine.is_there(said));
    assert_eq!(machine.irq(24), "0-1,4-7");
    // It came first, however often it is set.
    open(&site).tune(&mut one, &AWAY);
    assert_eq!(last(), "0-2,4-6");
    assert_eq!(told.lock().unwrap().len(), 2);
    open(&site).let_in(&one).unwrap();
    assert_eq!(last(), "0-1,3-6");
}

#[test]
fn that_no_cpu_is_left_for_interrupts_is_said() {
    let (machine, mut one, mut other) = machine();
    machine.put("sys/devices/system/cpu/online", "2-3\n");
    let site = machine.site();
    let said = "run/pinfold-machine/told-no-cpu-for-irqs";
    open(&site).tune(&mut one, &AWAY);
    let set = machine.set();
    assert!(!machine.is_there(said));
    open(&site).tune(&mut other, &AWAY);
    assert_eq!(machine.set(), set);
    assert!(machine.is_there(said));
    // `check` says the same, and not that they came back.
    let (cpus, obstacle) = outside::no_cpu_for_irqs(&site.host).unwrap().unwrap();
    assert_eq!(cpus, super::cpus("3"), "the first has none on its own");
    assert!(obstacle.what.contains("no other CPU is left"), "{obstacle}");
    open(&site).let_in(&other).unwrap();
    assert_eq!(outside::no_cpu_for_irqs(&site.host).unwrap(), None);
}

/// One that was killed leaves its socket; one that answers nothing keeps nobody waiting for long.
#[test]
fn an_irqbalance_that_does_not_answer_keeps_no_container_from_its_start() {
    let (machine, mut one, mut other) = machine();
    machine.put("run/irqbalance/other", "");
    let path = machine.path("run/irqbalance/irqbalance7.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let site = machine.site();
    let began = Instant::now();
    open(&site).tune(&mut one, &AWAY);
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(machine.irq(24), "0-1,3-7");
    drop(listener);
    open(&site).tune(&mut other, &AWAY);
    assert_eq!(machine.irq(24), "0-1,4-7");
}

/// Files of the power of CPUs 2 and 3, which share a governor, and the limit of a container.
const POWER: [(&str, &str); 4] = [
    (
        "sys/devices/system/cpu/cpu2/cpufreq/scaling_governor",
        "powersave\n",
    ),
    (
        "sys/devices/system/cpu/cpu2/power/pm_qos_resume_latency_us",
        "0\n",
    ),
    (
        "sys/devices/system/cpu/cpu3/power/pm_qos_resume_latency_us",
        "20\n",
    ),
    ("sys/fs/cgroup/machine.slice/one/cpu.max", "150000 100000\n"),
];

#[test]
fn power_and_a_limit_are_set_while_the_owner_lives() {
    let (machine, mut one, mut other) = machine();
    let cpufreq = "sys/devices/system/cpu/cpu2/cpufreq";
    for (path, content) in POWER {
        machine.put(path, content);
    }
    machine.put(&format!("{cpufreq}/related_cpus"), "2 3\n");
    machine.put(
        &format!("{cpufreq}/scaling_available_governors"),
        "performance powersave\n",
    );
    let now = || POWER.map(|(path, _)| machine.get(path).lines().next().unwrap().to_owned());
    let before = now();
    let fast = Tuning {
        quota_lifted: true,
        governor: Some("performance".to_owned()),
        resume_latency: Some("n/a".to_owned()),
        ..Tuning::default()
    };
    let site = machine.site();
    open(&site).tune(&mut one, &fast);
    assert_eq!(now(), ["performance", "n/a", "20", "max 100000"]);
    assert_eq!(outside::tuned(&site.host)[0].tuning, fast);
    // A governor that there is not is no obstacle to the rest, nor is a group without a limit.
    let odd = Tuning {
        governor: Some("schedutil".to_owned()),
        ..fast.clone()
    };
    machine.put(
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
        "x\n",
    );
    machine.put(
        "sys/devices/system/cpu/cpu3/cpufreq/scaling_available_governors",
        "performance powersave\n",
    );
    open(&site).tune(&mut other, &odd);
    assert_eq!(now(), ["performance", "n/a", "n/a", "max 100000"]);
    assert_eq!(outside::tuned(&site.host)[1].tuning.governor, None);
    open(&site).let_in(&one).unwrap();
    open(&site).let_in(&other).unwrap();
    assert_eq!(now(), before);
}

/// The kernel refuses to read a frequency policy whose CPUs are all offline; so does a directory.
#[test]
fn a_policy_that_cannot_be_read_keeps_nobody_from_its_end() {
    let (machine, mut one, mut other) = machine();
    let policy = "sys/devices/system/cpu/cpu2/cpufreq";
    machine.put(&format!("{policy}/scaling_governor"), "powersave\n");
    machine.put(&format!("{policy}/related_cpus"), "2\n");
    let before = machine.set();
    let fast = Tuning {
        governor: Some("performance".to_owned()),
        ..Tuning::default()
    };
    let site = machine.site();
    open(&site).tune(&mut one, &fast);
    open(&site).tune(&mut other, &AWAY);
    machine.remove(&format!("{policy}/related_cpus"));
    machine.put(&format!("{policy}/related_cpus/x"), "");
    assert!(open(&site).converge_machine().unwrap().problems.is_empty());
    open(&site).let_in(&other).unwrap();
    assert_eq!(machine.set(), before);
    open(&site).let_in(&one).unwrap();
    let governor = machine.get(&format!("{policy}/scaling_governor"));
    assert_eq!(governor.lines().next(), Some("powersave"));
}

#[test]
fn a_machine_without_cpufreq_says_so_once_and_sets_the_rest() {
    let (machine, mut one, mut other) = machine();
    let wanted = Tuning {
        governor: Some("performance".to_owned()),
        ..AWAY
    };
    let site = machine.site();
    open(&site).tune(&mut one, &wanted);
    assert!(machine.is_there("run/pinfold-machine/told-no-cpufreq"));
    assert_eq!(machine.irq(24), "0-1,3-7");
    open(&site).tune(&mut other, &wanted);
    assert_eq!(outside::tuned(&site.host)[1].tuning, AWAY);
}

#[test]
fn who_has_no_limit_of_its_own_is_told_so_once_and_given_the_rest() {
    let (machine, mut one, mut other) = machine();
    let wanted = Tuning {
        quota_lifted: true,
        ..AWAY
    };
    let site = machine.site();
    let told = "run/pinfold-machine/told-no-own-limit";
    open(&site).tune(&mut one, &wanted);
    assert!(!machine.is_there(told), "its group has one");
    other.cgroup.as_mut().unwrap().made = true;
    open(&site).tune(&mut other, &wanted);
    assert!(machine.is_there(told));
    assert_eq!(outside::tuned(&site.host)[1].tuning, AWAY);
    assert_eq!(machine.irq(25), "0-1,4-7");
}

#[test]
fn reconcile_puts_back_what_a_killed_start_left_and_sets_again_what_is_not_recorded() {
    let (machine, mut one, mut other) = machine();
    let before = machine.set();
    let site = machine.site();
    open(&site).tune(&mut one, &AWAY);
    open(&site).tune(&mut other, &AWAY);
    // Of one the claim is gone, and of the other the records.
    open(&site).ledger.remove(&one).unwrap();
    assert!(open(&site).converge_machine().unwrap().problems.is_empty());
    assert_eq!(machine.irq(24), "0-2,4-7");
    machine.remove("run/pinfold-machine/changes");
    open(&site).keep_off_again(&other).unwrap();
    assert_eq!(
        outside::tuned(&site.host)[0].inode,
        other.cgroup.unwrap().inode
    );
    assert_ne!(machine.set(), before);
}

#[test]
fn what_somebody_has_set_since_stays_at_the_end() {
    let (machine, mut one, _) = machine();
    let site = machine.site();
    open(&site).tune(&mut one, &AWAY);
    machine.put("proc/irq/24/smp_affinity_list", "6\n");
    open(&site).let_in(&one).unwrap();
    assert_eq!((machine.irq(24), machine.irq(25)), ("6".into(), "2".into()));
}

/// A file can be unreadable for a moment, as where too many are open.
#[test]
fn what_cannot_be_read_for_a_moment_is_put_back_later() {
    let (machine, mut one, _) = machine();
    let limit = "sys/fs/cgroup/machine.slice/one/cpu.max";
    machine.put(limit, "150000 100000\n");
    let before = machine.set();
    let site = machine.site();
    let tuning = Tuning {
        quota_lifted: true,
        ..AWAY
    };
    open(&site).tune(&mut one, &tuning);
    let of_limit = || machine.value(&group_of("one"), "cpu.max");
    assert_eq!(of_limit(), "max 100000");
    let unread = [FILES[0].0, FILES[1].0, limit];
    let texts = unread.map(|path| machine.spoil(path));
    open(&site).let_in(&one).unwrap();
    let problems = open(&site).converge_machine().unwrap().problems;
    assert_eq!(problems.len(), unread.len(), "{problems:?}");
    for (path, text) in unread.iter().zip(&texts) {
        machine.heal(path, text);
    }
    assert!(open(&site).converge_machine().unwrap().problems.is_empty());
    assert_eq!(machine.set(), before);
    assert_eq!(of_limit(), "150000 100000");
}

/// With its directory unreadable nobody knows whether it runs.
#[test]
fn a_ban_is_not_forgotten_where_irqbalance_cannot_be_found_for_a_moment() {
    let (machine, mut one, _) = machine();
    let told = balance(&machine, "5");
    let site = machine.site();
    open(&site).tune(&mut one, &AWAY);
    assert_eq!(*told.lock().unwrap(), ["5", "2,5"]);
    let (directory, aside) = ("run/irqbalance", "run/aside");
    std::fs::rename(machine.path(directory), machine.path(aside)).unwrap();
    machine.put(directory, "");
    open(&site).let_in(&one).unwrap();
    machine.remove(directory);
    std::fs::rename(machine.path(aside), machine.path(directory)).unwrap();
    assert!(open(&site).converge_machine().unwrap().problems.is_empty());
    assert_eq!(*told.lock().unwrap(), ["5", "2,5", "5"]);
}

#[test]
fn damaged_records_keep_no_container_from_its_start_or_its_end() {
    let (machine, mut one, _) = machine();
    let before = machine.set();
    machine.put("run/pinfold-machine/changes", "{torn");
    let site = machine.site();
    open(&site).tune(&mut one, &AWAY);
    assert_eq!(machine.set(), before);
    machine.end(one.owner, &group_of("one"));
    assert!(open(&site).free_dead(&one).unwrap() == Fate::Freed);
    assert!(!machine.knows("one"));
    assert!(open(&site).converge_machine().is_err());
}

#[test]
fn the_configuration_counts_first_and_what_nobody_understands_is_not_set() {
    let (machine, ..) = machine();
    let mut site = machine.site();
    let tuning = |site: &crate::placement::Site| {
        let books = open(site);
        let pool = books
            .directory
            .offered_pool("dp", || Ok(Default::default()));
        books.tuning_of(&pool.unwrap(), &BTreeMap::new()).unwrap()
    };
    assert_eq!(tuning(&site), AWAY);
    let mut keep = crate::isolation::Options::default();
    keep.set("irqs", "keep").unwrap();
    site.options.insert("dp".to_owned(), keep);
    assert!(tuning(&site).is_none());
    site.options.clear();
    machine.put("etc/kcm/pools/dp/irqs", "off\n");
    assert!(tuning(&site).is_none());
}

#[test]
fn a_container_chooses_itself_what_its_pool_allows() {
    let (machine, ..) = machine();
    machine.pool("common", "0", &["4-5"]);
    let site = machine.site();
    let tuning = |pool: &str, key: Key, word: &str| {
        let asked = BTreeMap::from([(key.name(), word.to_owned())]);
        let books = open(&site);
        let pool = books
            .directory
            .offered_pool(pool, || Ok(Default::default()));
        books.tuning_of(&pool.unwrap(), &asked)
    };
    let refused = said(tuning("dp", Key::Irqs, "keep"));
    assert!(refused.contains("asks for irqs=\"keep\", and pool dp allows no irqs"));
    assert!(
        refused.contains("`pinfold pool set dp allow=irqs`"),
        "{refused}"
    );
    machine.put("etc/kcm/pools/dp/allow", "irqs,quota\n");
    assert!(tuning("dp", Key::Irqs, "keep").unwrap().is_none());
    let both = tuning("dp", Key::Quota, "lift").unwrap();
    assert!(both.quota_lifted && both.irqs_away);
    let refused = said(tuning("dp", Key::Irqs, "off"));
    assert!(refused.contains("irqs is keep or away"), "{refused}");
    let refused = said(tuning("dp", Key::Governor, "performance"));
    assert!(refused.contains("allow=irqs,quota,governor`"), "{refused}");
    // A shell takes what is behind a blank for another word.
    machine.put("etc/kcm/pools/dp/allow", "irqs, quota, bogus\n");
    let refused = said(tuning("dp", Key::Quota, "lift"));
    assert!(refused.contains("dp allow=irqs,quota`"), "{refused}");
    assert!(said(tuning("common", Key::Irqs, "away")).contains("drop the annotation"));
}

/// A container in a scope whose limit systemd knows, and which is lifted.
fn in_scope() -> (Machine, Claim, Standin) {
    let machine = Machine::new();
    machine.pool("dp", "1", &["2", "3"]);
    let mut claim = machine.pinned("web.scope", 1, "dp", &["2"]);
    machine.put(
        "sys/fs/cgroup/machine.slice/web.scope/cpu.max",
        "150000 100000\n",
    );
    let site = machine.site();
    let standin = Standin::on(&site.host, &[("web.scope", "")]);
    let limits = [("web.scope".to_owned(), 1_500_000)];
    standin.units().limits = limits.into();
    let lifted = Tuning {
        quota_lifted: true,
        ..Tuning::default()
    };
    open(&site).tune(&mut claim, &lifted);
    (machine, claim, standin)
}

fn limit(standin: &Standin) -> u64 {
    standin.units().limits["web.scope"]
}

#[test]
fn systemd_knows_the_limit_again_once_its_owner_was_released() {
    let (machine, claim, standin) = in_scope();
    let site = machine.site();
    // The start was killed before it told systemd.
    assert_eq!(limit(&standin), 1_500_000);
    open(&site).keep_off_again(&claim).unwrap();
    assert_eq!(limit(&standin), u64::MAX);
    // It knows, and is not asked again.
    open(&site).keep_off_again(&claim).unwrap();
    assert_eq!(standin.units().set.len(), 1);
    open(&site).let_in(&claim).unwrap();
    assert_eq!(limit(&standin), 1_500_000);
    assert_eq!(
        machine.value("/machine.slice/web.scope", "cpu.max"),
        "150000 100000"
    );
    let records = machine.get("run/pinfold-machine/changes");
    assert!(!records.contains("lifted"), "{records}");
}

/// What is recorded is not done yet: a start can be killed in between.
#[test]
fn systemd_is_told_what_was_recorded_and_not_told() {
    let (machine, claim, standin) = in_scope();
    let site = machine.site();
    standin.units().most_changes = Some(0);
    open(&site).keep_off_again(&claim).unwrap_err();
    let records = machine.get("run/pinfold-machine/changes");
    assert!(records.contains("\"found\":1500000"), "{records}");
    assert_eq!(limit(&standin), 1_500_000);
    standin.units().most_changes = None;
    open(&site).keep_off_again(&claim).unwrap();
    assert_eq!(limit(&standin), u64::MAX);
    open(&site).let_in(&claim).unwrap();
    assert_eq!(limit(&standin), 1_500_000);
}

#[test]
fn a_limit_that_somebody_has_told_systemd_since_stays() {
    let (machine, claim, standin) = in_scope();
    let site = machine.site();
    open(&site).keep_off_again(&claim).unwrap();
    let limits = [("web.scope".to_owned(), 700_000)];
    standin.units().limits = limits.into();
    open(&site).let_in(&claim).unwrap();
    assert_eq!(limit(&standin), 700_000);
}

#[test]
fn a_limit_that_systemd_could_not_be_told_is_told_later() {
    let (machine, claim, standin) = in_scope();
    let site = machine.site();
    open(&site).keep_off_again(&claim).unwrap();
    standin.units().most_changes = Some(1);
    open(&site).let_in(&claim).unwrap();
    assert_eq!(limit(&standin), u64::MAX);
    standin.units().most_changes = None;
    assert!(open(&site).converge_machine().unwrap().problems.is_empty());
    assert_eq!(limit(&standin), 1_500_000);
}
