//! The whole way of a container on trees that stand in for machines that this one is not: cgroup v2
//! here, a machine after a reboot, one whose tools are in the middle of something.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, SystemTime};

use pinfold::claims::Ledger;
use pinfold::host::Host;
use pinfold::names::Names;
use pinfold::placement::{
    Site, Start, cancel_reservation, pin_container, reconcile, release, reserve,
};
use pinfold::process::affinity;
use pinfold::request::{Locality, Mems, Request, Size};

/// A machine with cgroup v2, whose one container's first process is a real one of ours.
struct Machine {
    dir: tempfile::TempDir,
    waiting: Child,
    /// All CPUs of the real machine: the one list that a real process can be verified to be
    /// confined to.
    cpus: String,
}

impl Machine {
    fn new() -> Machine {
        let waiting = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = waiting.id();
        let cpus = affinity(pid as i32).unwrap().to_string();
        let machine = Machine {
            dir: tempfile::tempdir().unwrap(),
            waiting,
            cpus,
        };
        let cpus = &machine.cpus;
        for (path, content) in [
            (
                "proc/1/mountinfo",
                "40 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            ),
            ("proc/sys/kernel/random/boot_id", "this-boot\n"),
            ("proc/stat", "cpu 1\nbtime 1000000\n"),
            ("sys/devices/system/cpu/online", cpus),
            ("sys/devices/system/node/has_memory", "0\n"),
            ("sys/devices/system/node/node0/cpulist", cpus),
            ("sys/fs/cgroup/cpuset.cpus.effective", cpus),
            (
                "sys/fs/cgroup/cgroup.subtree_control",
                "cpu cpuset memory\n",
            ),
            (
                "sys/fs/cgroup/machine.slice/cgroup.subtree_control",
                "cpu\n",
            ),
            (
                "sys/fs/cgroup/machine.slice/web/cgroup.procs",
                &format!("{pid}\n"),
            ),
            ("sys/fs/cgroup/machine.slice/web/cpuset.cpus", "\n"),
            ("sys/fs/cgroup/machine.slice/web/cpuset.mems", "\n"),
            (
                "sys/fs/cgroup/machine.slice/web/cpuset.cpus.effective",
                cpus,
            ),
            (&format!("proc/{pid}/cgroup"), "0::/machine.slice/web\n"),
            (
                &format!("proc/{}/cgroup", std::process::id()),
                "0::/user.slice\n",
            ),
            (
                &format!("proc/{pid}/stat"),
                &fs::read_to_string(format!("/proc/{pid}/stat")).unwrap(),
            ),
            ("etc/kcm/lock", ""),
            ("etc/kcm/pools/dp/exclusive", "1"),
            (&format!("etc/kcm/pools/dp/{cpus}/tasks"), ""),
        ] {
            machine.put(path, content);
        }
        machine
    }

    fn put(&self, path: &str, content: &str) {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn get(&self, path: &str) -> String {
        fs::read_to_string(self.dir.path().join(path)).unwrap()
    }

    /// What a kernel file would hold: a write to a plain one does not cut off what was there.
    fn value(&self, file: &str) -> String {
        let text = self.get(&format!("{GROUP}/{file}"));
        text.lines().next().unwrap().to_owned()
    }

    fn remove(&self, path: &str) {
        fs::remove_file(self.dir.path().join(path)).unwrap();
    }

    fn tasks(&self) -> String {
        self.get(&format!("etc/kcm/pools/dp/{}/tasks", self.cpus))
    }

    fn site(&self) -> Site {
        let host = Host::new(self.dir.path());
        Site {
            conf_dir: host.default_conf_dir(),
            run_dir: host.default_run_dir(),
            patience: Duration::from_secs(1),
            deadline: None,
            usage: None,
            last: None,
            options: Default::default(),
            confines_host: false,
            host,
        }
    }

    fn pid(&self) -> i32 {
        self.waiting.id() as i32
    }

    fn pin(&self, mems: Mems) -> anyhow::Result<()> {
        let request = Request {
            pool: "dp".into(),
            exact: None,
            size: Size::Lists(1),
            locality: Locality::default(),
            mems,
            tuning: Default::default(),
            by_default: false,
        };
        pin_container(&self.site(), start("web", self.pid()), &request).map(drop)
    }

    fn tasks_file(&self) -> String {
        format!("etc/kcm/pools/dp/{}/tasks", self.cpus)
    }

    /// The machine boots: the clock is right, /run is made anew, and only our directory there is
    /// kept.
    fn boot_now(&self) {
        let written = seconds();
        while seconds() == written {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.put("proc/stat", &format!("btime {}\n", seconds()));
        let path = |name: &str| self.dir.path().join(name);
        fs::create_dir_all(path("run/pinfold")).unwrap();
        fs::rename(path("run/pinfold"), path("kept")).unwrap();
        fs::remove_dir_all(path("run")).unwrap();
        fs::create_dir(path("run")).unwrap();
        fs::rename(path("kept"), path("run/pinfold")).unwrap();
    }

    /// The process of another machine comes to this one, in a cgroup of its own.
    fn adopt(&self, other: &Machine, name: &str) {
        let pid = other.pid();
        self.put(
            &format!("proc/{pid}/stat"),
            &other.get(&format!("proc/{pid}/stat")),
        );
        self.put(
            &format!("proc/{pid}/cgroup"),
            &format!("0::/machine.slice/{name}\n"),
        );
        self.put(
            &format!("sys/fs/cgroup/machine.slice/{name}/cgroup.procs"),
            &format!("{pid}\n"),
        );
    }

    fn pin_other(&self, other: &Machine, name: &str) -> anyhow::Result<()> {
        let request = Request {
            pool: "dp".into(),
            exact: None,
            size: Size::Lists(1),
            locality: Locality::default(),
            mems: Mems::Inherit,
            tuning: Default::default(),
            by_default: false,
        };
        pin_container(&self.site(), start(name, other.pid()), &request).map(drop)
    }

    /// The container's process is gone, as far as this machine's /proc tells.
    fn die(&self) {
        let pid = self.pid();
        fs::remove_dir_all(self.dir.path().join(format!("proc/{pid}"))).unwrap();
        self.put(&format!("{GROUP}/cgroup.procs"), "");
    }

    fn claims(&self) -> Vec<PathBuf> {
        let claims = fs::read_dir(self.dir.path().join("run/pinfold/claims"));
        claims.map_or(vec![], |claims| {
            claims.map(|entry| entry.unwrap().path()).collect()
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.waiting.kill().unwrap();
        self.waiting.wait().unwrap();
    }
}

fn start(id: &str, pid: i32) -> Start<'_> {
    Start {
        id,
        pid,
        names: Names::default(),
        reservation: None,
    }
}

const GROUP: &str = "sys/fs/cgroup/machine.slice/web";

#[test]
fn a_container_is_confined_and_its_group_is_as_before_afterwards() {
    let machine = Machine::new();
    machine.pin(Mems::Local).unwrap();
    assert_eq!(machine.value("cpuset.cpus"), machine.cpus);
    assert_eq!(machine.value("cpuset.mems"), "0");
    assert_eq!(machine.tasks(), machine.pid().to_string());
    // Asked a second time for the same process, it is as it was; a release while it lives keeps it.
    machine.pin(Mems::Local).unwrap();
    assert_eq!(release(&machine.site(), "web").unwrap().kept.len(), 1);
    assert_eq!(machine.tasks(), machine.pid().to_string());
    machine.die();
    assert_eq!(release(&machine.site(), "web").unwrap().freed.len(), 1);
    assert_eq!(machine.value("cpuset.cpus"), "");
    assert_eq!(machine.value("cpuset.mems"), "");
    assert_eq!(
        (machine.tasks(), machine.claims().len()),
        (String::new(), 0)
    );
}

#[test]
fn a_mask_that_does_not_take_effect_is_refused_and_taken_back() {
    let machine = Machine::new();
    machine.put(&format!("{GROUP}/cpuset.cpus.effective"), "77\n");
    let error = format!("{:#}", machine.pin(Mems::Inherit).unwrap_err());
    assert!(
        error.contains("machine.slice/web") && error.contains("77"),
        "{error}"
    );
    assert_eq!(machine.value("cpuset.cpus"), "");
    assert_eq!(
        (machine.tasks(), machine.claims().len()),
        (String::new(), 0)
    );
}

#[test]
fn cpus_that_the_configuration_chose_are_refused() {
    let machine = Machine::new();
    machine.put(&format!("{GROUP}/cpuset.cpus"), "0\n");
    let error = format!("{:#}", machine.pin(Mems::Inherit).unwrap_err());
    assert!(error.contains("--cpuset-cpus"), "{error}");
    assert_eq!(
        (
            machine.get(&format!("{GROUP}/cpuset.cpus")),
            machine.tasks()
        ),
        ("0\n".into(), String::new())
    );
    // Chosen memory nodes are in the way only of a request for others.
    machine.put(&format!("{GROUP}/cpuset.cpus"), "\n");
    machine.put(&format!("{GROUP}/cpuset.mems"), "0\n");
    assert!(machine.pin(Mems::Local).is_err());
    machine.pin(Mems::Inherit).unwrap();
}

#[test]
fn a_parent_that_allows_none_of_the_cpus_is_named() {
    let machine = Machine::new();
    machine.put("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "77\n");
    let error = format!("{:#}", machine.pin(Mems::Inherit).unwrap_err());
    assert!(
        error.contains("(unit machine.slice) allows only the CPUs 77"),
        "{error}"
    );
}

#[test]
fn the_controller_is_enabled_along_the_path() {
    let machine = Machine::new();
    machine.remove(&format!("{GROUP}/cpuset.cpus"));
    machine.remove(&format!("{GROUP}/cpuset.mems"));
    machine.remove(&format!("{GROUP}/cpuset.cpus.effective"));
    // No kernel makes the files appear here, so it fails once the controller was enabled, and is
    // undone.
    let error = format!("{:#}", machine.pin(Mems::Inherit).unwrap_err());
    assert!(error.contains("cpuset.cpus"), "{error}");
    assert_eq!(
        machine
            .get("sys/fs/cgroup/machine.slice/cgroup.subtree_control")
            .trim(),
        "+cpuset"
    );
    assert_eq!(
        machine.get("sys/fs/cgroup/cgroup.subtree_control"),
        "cpu cpuset memory\n"
    );
    assert_eq!(
        (machine.tasks(), machine.claims().len()),
        (String::new(), 0)
    );
}

#[test]
fn another_cgroup_namespace_is_refused() {
    let machine = Machine::new();
    machine.put(&format!("proc/{}/cgroup", machine.pid()), "0::/../other\n");
    let error = format!("{:#}", machine.pin(Mems::Inherit).unwrap_err());
    assert!(error.contains("cgroup namespace"), "{error}");
}

#[test]
fn after_a_reboot_nothing_from_before_counts() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    // The machine boots again; the number of the old owner is in use, by a process of today.
    machine.put("proc/sys/kernel/random/boot_id", "next-boot\n");
    machine.boot_now();
    machine.put(&format!("{GROUP}/cpuset.cpus"), "\n");
    machine.pin(Mems::Inherit).unwrap();
    assert_eq!(machine.tasks(), machine.pid().to_string());
    assert!(machine.get("run/pinfold/boot").starts_with("next-boot "));
    // What another tool wrote since the boot stays, whatever somebody makes of the file's time.
    machine.put(&machine.tasks_file(), "rubbish");
    assert!(machine.pin(Mems::Inherit).is_err());
    machine.remove("run/pinfold/boot");
    machine.put(&machine.tasks_file(), &machine.pid().to_string());
    let tasks = machine.dir.path().join(machine.tasks_file());
    let tasks = fs::File::options().write(true).open(tasks).unwrap();
    tasks.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    reconcile(&machine.site()).unwrap();
    assert_eq!(machine.tasks(), machine.pid().to_string());
}

#[test]
fn a_number_from_before_the_boot_is_nobodys_and_one_from_before_a_clock_was_set_is_somebodys() {
    // Another tool wrote it, and nobody has looked since.
    let machine = Machine::new();
    machine.put(&machine.tasks_file(), &machine.pid().to_string());
    machine.boot_now();
    reconcile(&machine.site()).unwrap();
    assert_eq!(machine.tasks(), "");

    // No clock in the machine: the time was set an hour forward since it booted and the owner was
    // recorded.
    let machine = Machine::new();
    machine.put(&machine.tasks_file(), &machine.pid().to_string());
    machine.put("run/initctl", "");
    machine.put("proc/stat", &format!("btime {}\n", seconds() + 3600));
    reconcile(&machine.site()).unwrap();
    assert_eq!(machine.tasks(), machine.pid().to_string());
}

/// I2: an owner of several lists is confined to all of them together.
#[test]
fn a_number_from_before_the_boot_counts_where_it_runs_on_all_of_its_lists_alone() {
    let machine = Machine::new();
    // More than the process may run on.
    machine.put("sys/devices/system/cpu/online", "0-1023\n");
    machine.put("etc/kcm/pools/many/exclusive", "1");
    let cpus = affinity(machine.pid()).unwrap();
    let tasks = |cpu: u32| format!("etc/kcm/pools/many/{cpu}/tasks");
    for cpu in cpus.iter() {
        machine.put(&tasks(cpu), &machine.pid().to_string());
    }
    machine.boot_now();
    reconcile(&machine.site()).unwrap();
    for cpu in cpus.iter() {
        let named = machine.get(&tasks(cpu));
        assert_eq!(named, machine.pid().to_string(), "{cpu} of {cpus}");
    }
}

fn seconds() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_secs()
}

/// As rsync and configuration management put a file.
fn replace_lock(machine: &Machine) {
    machine.put("etc/kcm/new", "");
    let path = |name: &str| machine.dir.path().join("etc/kcm").join(name);
    fs::rename(path("new"), path("lock")).unwrap();
}

#[test]
fn a_lock_that_was_replaced_is_taken_over() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    let former = machine.get("run/pinfold/boot");
    replace_lock(&machine);
    machine.pin(Mems::Inherit).unwrap();
    assert_eq!(machine.tasks(), machine.pid().to_string());
    assert_ne!(machine.get("run/pinfold/boot"), former);
    replace_lock(&machine);
    machine.die();
    release(&machine.site(), "web").unwrap();
    assert_eq!(
        (machine.tasks(), machine.claims().len()),
        (String::new(), 0)
    );
}

#[test]
fn a_lock_that_was_replaced_is_not_taken_over_from_owners_of_other_pools() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    replace_lock(&machine);
    fs::remove_dir_all(machine.dir.path().join("etc/kcm/pools/dp")).unwrap();
    let error = format!("{:#}", reconcile(&machine.site()).unwrap_err());
    assert!(
        error.contains("was replaced") && error.contains("web"),
        "{error}"
    );
    machine.die();
    reconcile(&machine.site()).unwrap();
    assert_eq!(machine.claims().len(), 0);
}

#[test]
fn a_claim_whose_links_are_lost_holds_its_list() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    let lists = machine.dir.path().join("run/pinfold/lists");
    fs::remove_dir_all(&lists).unwrap();
    reconcile(&machine.site()).unwrap();
    assert_eq!(lists.read_dir().unwrap().count(), 1);

    // Its first process is gone, others live on, and nobody has put the link back: a start does.
    let other = Machine::new();
    machine.adopt(&other, "db");
    fs::remove_dir_all(&lists).unwrap();
    let pid = machine.pid();
    fs::remove_dir_all(machine.dir.path().join(format!("proc/{pid}"))).unwrap();
    let survivor = other.pid();
    machine.put(
        &format!("{GROUP}/below/cgroup.procs"),
        &format!("{survivor}\n"),
    );
    machine.put(&format!("{GROUP}/cgroup.procs"), "");
    let error = machine.pin_other(&other, "db").unwrap_err();
    assert!(format!("{error:#}").contains("exhausted"), "{error:#}");
    assert_eq!(machine.claims().len(), 1);
}

#[test]
fn a_claim_of_another_boot_than_the_mark_holds_its_list() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    // As older programs wrote it: nothing but the boot tells that a bit was flipped.
    let home = &machine.claims()[0];
    let file = home.read_dir().unwrap().next().unwrap().unwrap().path();
    let text = fs::read_to_string(&file).unwrap();
    let (content, _) = text.split_once(",\"sum\"").unwrap();
    fs::write(
        &file,
        format!("{content}}}").replace("this-boot", "thir-boot"),
    )
    .unwrap();
    machine.put(&machine.tasks_file(), "");
    let other = Machine::new();
    machine.adopt(&other, "db");
    let error = machine.pin_other(&other, "db").unwrap_err();
    assert!(format!("{error:#}").contains("exhausted"), "{error:#}");
    assert!(file.exists());
}

/// A machine of these CPUs, with an exclusive pool `dp` without a list, on which this process can
/// reserve.
fn reserving(cpus: &str) -> Machine {
    let machine = Machine::new();
    let own = std::process::id();
    machine.put("proc/sys/kernel/random/uuid", "a-nonce\n");
    machine.put(
        &format!("proc/{own}/stat"),
        &fs::read_to_string(format!("/proc/{own}/stat")).unwrap(),
    );
    for file in [
        "devices/system/cpu/online",
        "fs/cgroup/cpuset.cpus.effective",
    ] {
        machine.put(&format!("sys/{file}"), &format!("{cpus}\n"));
    }
    fs::remove_dir_all(machine.dir.path().join("etc/kcm/pools/dp")).unwrap();
    machine.put("etc/kcm/pools/dp/exclusive", "1");
    machine
}

#[test]
fn a_start_frees_no_more_of_the_dead_than_it_needs() {
    let machine = reserving("0-4095");
    let lists = || (0..600).map(|cpu| format!("etc/kcm/pools/dp/{cpu}/tasks"));
    // Numbers that no process can have.
    lists().for_each(|tasks| machine.put(&tasks, "2147483000"));
    let request = Request {
        pool: "dp".into(),
        exact: None,
        size: Size::Lists(2),
        locality: Locality::default(),
        mems: Mems::Inherit,
        tuning: Default::default(),
        by_default: false,
    };
    let claim = reserve(&machine.site(), "many", Names::default(), None, &request).unwrap();
    assert_eq!(claim.lists.len(), 2);
    let dead = lists().filter(|tasks| machine.get(tasks) == "2147483000");
    assert_eq!(dead.count(), 598);
    reconcile(&machine.site()).unwrap();
    let left = lists().filter(|tasks| machine.get(tasks) == "2147483000");
    assert_eq!(left.count(), 0);
}

#[test]
fn what_waited_in_vain_to_be_freed_comes_after_all_others() {
    let machine = reserving("0-7");
    for cpu in 1..=3 {
        machine.put(
            &format!("etc/kcm/pools/dp/{cpu}/tasks"),
            &format!("214748300{cpu}"),
        );
    }
    let request = Request {
        pool: "dp".into(),
        exact: None,
        size: Size::Lists(1),
        locality: Locality::default(),
        mems: Mems::Inherit,
        tuning: Default::default(),
        by_default: false,
    };
    let reserve = |id: &str| reserve(&machine.site(), id, Names::default(), None, &request);
    // All are of dead owners; that of the first, which is chosen first, could not be freed before.
    let mut claim = reserve("first").unwrap();
    assert_eq!(claim.lists, ["1"]);
    cancel_reservation(&machine.site(), &claim).unwrap();
    claim.owner.pid = 2147483001;
    claim.processes = vec![claim.owner];
    claim.id = "slow".to_owned();
    claim.is_slow = true;
    machine.put("etc/kcm/pools/dp/1/tasks", "2147483001");
    let run_dir = machine.site().run_dir;
    Ledger::open(&run_dir).unwrap().write(&claim).unwrap();
    for (id, list) in [("second", "2"), ("third", "3"), ("last", "1")] {
        assert_eq!(reserve(id).unwrap().lists, [list]);
    }
}

#[test]
fn a_survivor_stands_for_the_owner_and_the_last_one_frees_the_list() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    let mut survivor = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = survivor.id();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    machine.die();
    machine.put(&format!("proc/{pid}/stat"), &stat);
    machine.put(&format!("{GROUP}/below/cgroup.procs"), &format!("{pid}\n"));
    assert_eq!(release(&machine.site(), "web").unwrap().kept.len(), 1);
    assert_eq!(machine.tasks(), pid.to_string());
    machine.remove(&format!("proc/{pid}/stat"));
    machine.put(&format!("{GROUP}/below/cgroup.procs"), "");
    assert_eq!(reconcile(&machine.site()).unwrap().reclaimed.len(), 1);
    assert_eq!(
        (machine.tasks(), machine.claims().len()),
        (String::new(), 0)
    );
    survivor.kill().unwrap();
    survivor.wait().unwrap();
}

/// A look is taken until two see the same; what each of them would say is said once.
#[test]
fn what_looks_have_to_say_is_said_once() {
    let machine = Machine::new();
    machine.pin(Mems::Local).unwrap();
    machine.die();
    let procs = machine.dir.path().join(GROUP).join("cgroup.procs");
    fs::remove_file(&procs).unwrap();
    fs::create_dir(&procs).unwrap();
    for verb in ["status", "describe", "check"] {
        let output = Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .arg("--host-root")
            .arg(machine.dir.path())
            .arg(verb)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.matches("counts as alive").count(), 1, "{verb}: {said}");
    }
}

#[test]
fn a_pid_that_another_tool_dropped_is_put_back_and_its_list_never_given() {
    let machine = Machine::new();
    machine.pin(Mems::Inherit).unwrap();
    machine.put(&format!("etc/kcm/pools/dp/{}/tasks", machine.cpus), "");
    let other = Machine::new();
    let pid = other.pid();
    for file in ["stat", "cgroup"] {
        machine.put(
            &format!("proc/{pid}/{file}"),
            &other.get(&format!("proc/{pid}/{file}")),
        );
    }
    machine.put(&format!("proc/{pid}/cgroup"), "0::/machine.slice/db\n");
    machine.put(
        "sys/fs/cgroup/machine.slice/db/cgroup.procs",
        &format!("{pid}\n"),
    );
    let request = Request {
        pool: "dp".into(),
        exact: None,
        size: Size::Lists(1),
        locality: Locality::default(),
        mems: Mems::Inherit,
        tuning: Default::default(),
        by_default: false,
    };
    let error = format!(
        "{:#}",
        pin_container(&machine.site(), start("db", pid), &request).unwrap_err()
    );
    assert!(error.contains("exhausted"), "{error}");
    assert_eq!(machine.tasks(), machine.pid().to_string());
}
