//! The host's well-known places, under a root that tests and captured trees replace.

use std::io;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::statfs::{PROC_SUPER_MAGIC, statfs};

/// How many symbolic links a path may lead through (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// The tables of users (crontab(1)).
const CRONTABS: &str = "var/spool/cron/crontabs";

/// The root below which `/sys`, `/proc`, `/run`, `/etc` and `/dev` are looked for.
///
/// Only this type names those directories: everything else asks it.
#[derive(Debug, Clone)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// The host seen under `root`; `/` is the running machine.
    pub fn new(root: impl Into<PathBuf>) -> Host {
        Host { root: root.into() }
    }

    /// Is this the running machine's own root?
    pub fn is_running_root(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Do the pids in this root's `/proc` mean the processes that we see and can act on?
    ///
    /// They do if it is a procfs (statfs(2), `PROC_SUPER_MAGIC`) whose `self` is our own pid, which
    /// holds only for a procfs of our own pid namespace (proc(5)).
    pub fn shares_our_processes(&self) -> bool {
        let proc = self.root.join("proc");
        let is_procfs = statfs(&proc).is_ok_and(|fs| fs.filesystem_type() == PROC_SUPER_MAGIC);
        let own_pid = PathBuf::from(std::process::id().to_string());
        is_procfs && std::fs::read_link(proc.join("self")).is_ok_and(|target| target == own_pid)
    }

    /// The place below this root of an absolute path that the kernel reports, such as a mount
    /// point.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// Like [`Host::path`], with every symbolic link followed inside this root: an absolute target
    /// begins at it. A missing file gets the path where it would be.
    ///
    /// # Errors
    /// More than 40 links, the kernel's own bound (path_resolution(7)); a link that cannot be read.
    pub fn resolve(&self, absolute: &str) -> io::Result<PathBuf> {
        let mut pending: Vec<String> = absolute.rsplit('/').map(str::to_owned).collect();
        let mut found = self.root.clone();
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name.as_str() {
                "" | "." => continue,
                ".." if found == self.root => continue,
                ".." => drop(found.pop()),
                name => found.push(name),
            }
            match found.symlink_metadata() {
                Ok(metadata) if metadata.is_symlink() => {}
                Ok(_) => continue,
                Err(error) if is_nowhere(&error) => continue,
                Err(error) => return Err(error),
            }
            links += 1;
            if links > MOST_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = std::fs::read_link(&found)?;
            let target = target.to_str().ok_or(io::ErrorKind::InvalidData)?;
            found.pop();
            if target.starts_with('/') {
                found.clone_from(&self.root);
            }
            pending.extend(target.rsplit('/').map(str::to_owned));
        }
        Ok(found)
    }

    /// The user as whom root's files are shown to us, if not as 0: our user namespace does not map
    /// root (user_namespaces(7), "Unmapped user and group IDs").
    pub fn unknown_root(&self) -> Option<u32> {
        let map = std::fs::read_to_string(self.root.join("proc/self/uid_map")).ok()?;
        let knows_root = |line: &str| line.split_whitespace().nth(1) == Some("0");
        if map.lines().any(knows_root) {
            return None;
        }
        let unknown = self.root.join("proc/sys/kernel/overflowuid");
        std::fs::read_to_string(unknown).ok()?.trim().parse().ok()
    }

    /// `/proc/<pid>/<file>` (proc(5)).
    pub fn proc_pid(&self, pid: i32, file: &str) -> PathBuf {
        self.root.join(format!("proc/{pid}/{file}"))
    }

    /// The mounts of this root (proc_pid_mountinfo(5)). For a root other than `/` they are those of
    /// its init: our own table would give the places where *we* see them.
    pub fn mountinfo(&self) -> PathBuf {
        let process = if self.is_running_root() { "self" } else { "1" };
        self.root.join("proc").join(process).join("mountinfo")
    }

    /// `/proc`, whose directories with a number for a name are the processes (proc(5)).
    pub fn processes(&self) -> PathBuf {
        self.root.join("proc")
    }

    /// The directories of cron's tables (cron(8)), beside `/etc/crontab`.
    pub fn cron_directories(&self) -> Vec<PathBuf> {
        let directories = ["etc/cron.d", "etc/cron.hourly", "etc/cron.daily", CRONTABS];
        let directories = directories
            .iter()
            .map(|directory| self.root.join(directory));
        directories.collect()
    }

    /// The machine's own cron table (crontab(5)).
    pub fn crontab(&self) -> PathBuf {
        self.root.join("etc/crontab")
    }

    /// The timers that systemd starts at boot (systemd.special(7)).
    pub fn enabled_timers(&self) -> PathBuf {
        self.root.join("etc/systemd/system/timers.target.wants")
    }

    /// The places where a unit's file can be (systemd.unit(5)).
    pub fn unit_files(&self, name: &str) -> [PathBuf; 3] {
        let directories = [
            "etc/systemd/system",
            "usr/lib/systemd/system",
            "lib/systemd/system",
        ];
        directories.map(|directory| self.root.join(directory).join(name))
    }

    /// The time that the machine's processes waited for a CPU (kernel:
    /// Documentation/accounting/psi.rst).
    pub fn proc_pressure(&self) -> PathBuf {
        self.root.join("proc/pressure/cpu")
    }

    /// `/proc/stat`, whose `btime` line is the time of boot in seconds since the epoch
    /// (proc_stat(5)).
    pub fn proc_stat(&self) -> PathBuf {
        self.root.join("proc/stat")
    }

    /// The counts of interrupts and of soft interrupts (proc_interrupts(5), proc_softirqs(5)).
    pub fn interrupt_counts(&self) -> [PathBuf; 2] {
        ["proc/interrupts", "proc/softirqs"].map(|file| self.root.join(file))
    }

    /// The place of tracefs (kernel: Documentation/trace/ftrace.rst, "The File System").
    pub fn tracefs(&self) -> PathBuf {
        self.root.join("sys/kernel/tracing")
    }

    /// What a descriptor of whichever process asks leads to (proc_pid_fd(5)).
    pub fn own_descriptor(&self, number: i32) -> PathBuf {
        self.root.join(format!("proc/self/fd/{number}"))
    }

    /// Where it is written down which instances of the kernel's tracer are ours, for all pool
    /// directories.
    pub fn trace_records(&self) -> PathBuf {
        self.machine_dir().join("traces")
    }

    /// `/proc/cmdline`, the kernel's command line (proc_cmdline(5)).
    pub fn kernel_command_line(&self) -> PathBuf {
        self.root.join("proc/cmdline")
    }

    /// `/proc/locks`, the file locks held now (proc_locks(5)).
    pub fn proc_locks(&self) -> PathBuf {
        self.root.join("proc/locks")
    }

    /// What names the pid namespace of this process (namespaces(7)).
    pub fn own_pid_namespace(&self) -> PathBuf {
        self.root.join("proc/self/ns/pid")
    }

    /// The random identity of this boot (random(4)).
    pub fn boot_id(&self) -> PathBuf {
        self.root.join("proc/sys/kernel/random/boot_id")
    }

    /// A random UUID, a new one at each read (random(4)).
    pub fn random_uuid(&self) -> PathBuf {
        self.root.join("proc/sys/kernel/random/uuid")
    }

    /// A file below `/sys/devices/system/cpu` (kernel: Documentation/admin-guide/cputopology.rst).
    pub fn sys_cpu(&self, file: &str) -> PathBuf {
        self.root.join("sys/devices/system/cpu").join(file)
    }

    /// A file below `/sys/devices/system/node` (kernel:
    /// Documentation/ABI/stable/sysfs-devices-node).
    pub fn sys_node(&self, file: &str) -> PathBuf {
        self.root.join("sys/devices/system/node").join(file)
    }

    /// A file below `/sys/devices` (kernel:
    /// Documentation/ABI/testing/sysfs-bus-event_source-devices-hybrid for `cpu_core` and the
    /// like).
    pub fn sys_device(&self, file: &str) -> PathBuf {
        self.root.join("sys/devices").join(file)
    }

    /// The directories of interrupts, one each by its number (proc(5), kernel:
    /// Documentation/core-api/irq/irq-affinity.rst).
    pub fn irqs(&self) -> PathBuf {
        self.root.join("proc/irq")
    }

    /// Where irqbalance has its socket.
    pub fn irqbalance(&self) -> PathBuf {
        self.root.join("run/irqbalance")
    }

    /// `/proc/sys/kernel/osrelease`, the kernel's version (proc_sys_kernel(5)).
    pub fn kernel_release(&self) -> PathBuf {
        self.root.join("proc/sys/kernel/osrelease")
    }

    /// Directories that every boot makes anew, early on.
    pub fn boots_own_directories(&self) -> [PathBuf; 2] {
        [self.root.join("run"), self.root.join("run/systemd")]
    }

    /// The directory that exists where systemd is the init (sd_booted(3)).
    pub fn systemd_mark(&self) -> PathBuf {
        self.root.join("run/systemd/system")
    }

    /// The system's message bus (D-Bus Specification, "Well-known Message Bus Instances").
    pub fn system_bus(&self) -> PathBuf {
        self.root.join("run/dbus/system_bus_socket")
    }

    /// The socket on which systemd itself speaks D-Bus, with root alone (systemd(1),
    /// "/run/systemd/private").
    pub fn systemd_socket(&self) -> PathBuf {
        self.root.join("run/systemd/private")
    }

    /// Where systemd keeps a unit's run-time settings (systemd.unit(5), "Unit File Load Path").
    pub fn systemd_runtime_settings(&self, unit: &str) -> PathBuf {
        let settings = self.root.join("run/systemd/system.control");
        settings.join(format!("{unit}.d"))
    }

    /// The directories that can hold systemd's private library, whose file name has systemd's
    /// version.
    pub fn systemd_libraries(&self) -> Vec<PathBuf> {
        let dirs = ["usr/lib/systemd", "usr/lib64/systemd", "lib/systemd"];
        let plain = dirs.iter().map(|dir| self.root.join(dir));
        let multiarch = std::fs::read_dir(self.root.join("usr/lib"));
        let multiarch = multiarch.into_iter().flatten().flatten();
        let multiarch = multiarch.map(|entry| entry.path().join("systemd"));
        plain.chain(multiarch).collect()
    }

    /// The path of a system's program, looked for where engines are installed. A program that
    /// cannot be looked at counts as there: running it says what is wrong.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let dirs = [
            "/usr/bin",
            "/usr/sbin",
            "/usr/local/bin",
            "/usr/local/sbin",
            "/opt/bin",
        ];
        let paths = dirs
            .iter()
            .map(|dir| self.resolve(&format!("{dir}/{name}")));
        let is_there = |path: &PathBuf| match path.metadata() {
            Ok(metadata) => metadata.is_file(),
            Err(error) => !is_nowhere(&error),
        };
        paths.flatten().find(is_there)
    }

    /// A PCI device by its address with domain (kernel: Documentation/ABI/testing/sysfs-bus-pci).
    pub fn pci_device(&self, address: &str) -> PathBuf {
        self.root.join("sys/bus/pci/devices").join(address)
    }

    /// A network interface (kernel: Documentation/ABI/testing/sysfs-class-net).
    pub fn network_interface(&self, name: &str) -> PathBuf {
        self.root.join("sys/class/net").join(name)
    }

    /// A block device, or a partition of one.
    pub fn block_device(&self, name: &str) -> PathBuf {
        self.root.join("sys/class/block").join(name)
    }

    /// A device by its numbers (kernel: Documentation/ABI/testing/sysfs-dev).
    pub fn device_by_number(&self, is_block: bool, major: u64, minor: u64) -> PathBuf {
        let kind = if is_block { "block" } else { "char" };
        self.root.join(format!("sys/dev/{kind}/{major}:{minor}"))
    }

    /// The IOMMU groups (kernel: Documentation/ABI/testing/sysfs-kernel-iommu_groups).
    pub fn iommu_groups(&self) -> PathBuf {
        self.root.join("sys/kernel/iommu_groups")
    }

    /// The default pool directory: KCM's own.
    pub fn default_conf_dir(&self) -> PathBuf {
        self.root.join("etc/kcm")
    }

    /// The pool directory of KCM's older releases, which called themselves CMK.
    pub fn older_conf_dir(&self) -> PathBuf {
        self.root.join("etc/cmk")
    }

    /// The CPUs that the machine can ever have (kernel: Documentation/admin-guide/cputopology.rst).
    pub fn possible_cpus(&self) -> PathBuf {
        self.sys_cpu("possible")
    }

    /// The directory of records about our changes to the machine, for all pool directories. It must
    /// not outlive a boot.
    pub fn machine_dir(&self) -> PathBuf {
        self.root.join("run/pinfold-machine")
    }

    /// The default directory of our records. It must not outlive a boot.
    pub fn default_run_dir(&self) -> PathBuf {
        self.root.join("run/pinfold")
    }

    /// The default usage log, for the default run directory. It outlives boots.
    pub fn default_usage_log(&self) -> PathBuf {
        self.root.join("var/log/pinfold/usage.jsonl")
    }

    /// The default directory of containers' last CPU lists, for the default run directory. It
    /// outlives boots.
    pub fn default_last_lists(&self) -> PathBuf {
        self.root.join("var/lib/pinfold/last")
    }

    /// The record of what `pinfold setup` did, for its `--undo`.
    pub fn setup_record(&self) -> PathBuf {
        self.root.join("var/lib/pinfold/setup.json")
    }

    /// The default configuration file.
    pub fn default_config(&self) -> PathBuf {
        self.root.join("etc/pinfold/config.toml")
    }

    /// The system log's socket (syslog(3)) and, for machines without one, the kernel's log
    /// (kmsg(4)).
    pub fn system_logs(&self) -> (PathBuf, PathBuf) {
        (self.root.join("dev/log"), self.root.join("dev/kmsg"))
    }
}

/// Does this error say that a path leads nowhere, or through a file that is no directory?
fn is_nowhere(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_are_followed_inside_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir_all(root.join("etc/real")).unwrap();
        for (target, link) in [
            ("/etc/real", "etc/absolute"),
            ("../etc/real", "etc/relative"),
            ("../../../etc/real", "etc/beyond"),
            ("loop", "etc/loop"),
            ("file.json", "etc/real/link.json"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        let host = Host::new(root);
        for (path, expected) in [
            ("/etc/real/x", "etc/real/x"),
            ("/etc/absolute/x", "etc/real/x"),
            ("/etc/relative/../y", "etc/y"),
            ("/etc/beyond/link.json", "etc/real/file.json"),
            ("/none/x", "none/x"),
        ] {
            assert_eq!(host.resolve(path).unwrap(), root.join(expected), "{path}");
        }
        assert!(host.resolve("/etc/loop").is_err());
    }
}
