//! What tests in several files stand on.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

/// A tree that stands in for a machine with cgroup version 2, systemd, and four engines that do not
/// know Pinfold yet.
pub(crate) struct Machine {
    /// Where it is.
    pub(crate) dir: tempfile::TempDir,
}

impl Machine {
    /// Four cores of one thread each, of which two are isolated; no pools.
    pub(crate) fn without_pools() -> Machine {
        let machine = Machine {
            dir: tempfile::tempdir().unwrap(),
        };
        for (path, content) in [
            (
                "proc/1/mountinfo",
                "40 30 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            ),
            ("proc/sys/kernel/random/boot_id", "this-boot\n"),
            ("proc/sys/kernel/osrelease", "6.12.1-amd64\n"),
            ("proc/stat", "btime 1000000\n"),
            ("proc/cmdline", "quiet isolcpus=2-3\n"),
            ("run/systemd/system/x", ""),
            (
                "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so",
                "",
            ),
            ("sys/devices/system/cpu/online", "0-3\n"),
            (
                "sys/fs/cgroup/cgroup.controllers",
                "cpuset cpu io memory pids\n",
            ),
            ("sys/fs/cgroup/cpuset.cpus.effective", "0-3\n"),
            (
                "sys/fs/cgroup/machine.slice/cgroup.subtree_control",
                "cpuset cpu\n",
            ),
            ("sys/fs/cgroup/machine.slice/cpuset.cpus.effective", "0-3\n"),
            ("etc/docker/daemon.json", "{}"),
            ("usr/local/bin/pinfold", ""),
            ("usr/bin/podman", ""),
            ("usr/bin/crio", ""),
            ("usr/bin/containerd", ""),
            ("usr/sbin/dockerd", ""),
        ] {
            machine.put(path, content);
        }
        for (file, content) in [
            ("cpu/present", "0-3\n"),
            ("node/online", "0\n"),
            ("node/has_cpu", "0\n"),
            ("node/has_memory", "0\n"),
            ("node/node0/cpulist", "0-3\n"),
            ("node/node0/meminfo", "Node 0 MemTotal: 1048576 kB\n"),
        ] {
            machine.put(&format!("sys/devices/system/{file}"), content);
        }
        for cpu in 0..4 {
            for (file, content) in [
                ("topology/package_cpus_list", "0-3\n"),
                ("topology/physical_package_id", "0\n"),
                ("topology/core_cpus_list", &format!("{cpu}\n")),
                ("cache/index3/shared_cpu_list", "0-3\n"),
                ("cache/index3/level", "3\n"),
                ("cache/index3/size", "16384K\n"),
            ] {
                let path = format!("sys/devices/system/cpu/cpu{cpu}/{file}");
                machine.put(&path, content);
            }
        }
        machine.mode("usr/local/bin/pinfold", 0o755);
        symlink("pinfold", machine.path("usr/local/bin/pinfold-runtime")).unwrap();
        machine
    }

    /// A file of it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file, and the directories above it.
    pub(crate) fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        // Whatever the umask is, what is here can be trusted.
        for ancestor in PathBuf::from(name).ancestors().skip(1) {
            self.mode(ancestor.to_str().unwrap(), 0o755);
        }
        self.mode(name, 0o644);
    }

    /// Sets the mode of a file.
    pub(crate) fn mode(&self, name: &str, mode: u32) {
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Runs the program on it.
    pub(crate) fn pinfold(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .arg("--host-root")
            .arg(self.dir.path())
            .args(arguments)
            .output()
            .unwrap()
    }
}
