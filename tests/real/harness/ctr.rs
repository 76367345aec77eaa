//! containerd by `ctr`: the whole specification of a container, hooks included, is its `--config`.

use crate::bundle;
use crate::containerd::Containerd;
use crate::daemon::Daemon;
use crate::engines::{Driver, runtime_path};
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Served, Service};
use std::process::Command;

pub(crate) struct Ctr {
    containerd: Containerd,
}

impl Ctr {
    pub(crate) fn start() -> Ctr {
        Ctr {
            containerd: Containerd::start(),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut ctr = self.containerd.ctr("default");
        ctr.args(arguments);
        ctr
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        process::run(&mut self.command(arguments))
    }

    /// An annotation on the command line would be of no use: `ctr` leaves it out where there is a
    /// `--config`.
    fn run_command(&self, service: Service, plan: &Plan, how: &str) -> Command {
        let daemon = self.daemon();
        let cgroup = service.cgroups_path(&daemon.world, &plan.name);
        let mut process = vec![
            plan.program.clone(),
            "--out".into(),
            format!("/out/{}", plan.name),
        ];
        process.extend(plan.actions.iter().cloned());
        let config = bundle::config(&daemon.rootfs(), plan, &cgroup, &process, &daemon.hooks());
        let file = daemon.path(&format!("{}.json", plan.name));
        std::fs::write(&file, config).expect("write a specification");
        let mut ctr = self.command(&["run", how, "--config", &file, "--cgroup", &cgroup]);
        ctr.arg("--runc-binary")
            .arg(runtime_path(&daemon.world, service.runtime));
        if service.driver == Driver::Systemd {
            ctr.arg("--runc-systemd-cgroup");
        }
        ctr.arg(&plan.name);
        ctr
    }

    /// The names and pids of all tasks, running or not.
    fn tasks(&self) -> Vec<(String, i32)> {
        let told = self.run(&["tasks", "list"]).ok().stdout;
        let task = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
        };
        told.lines().filter_map(task).collect()
    }

    /// Has the first process signalled, and waits for its end.
    fn send(&self, signal: &str, name: &str) -> Ran {
        let pid = self.pid(name);
        let sent = self.run(&["tasks", "kill", "--signal", signal, name]);
        process::eventually("the first process ends", || {
            (!process::is_alive(pid)).then_some(())
        });
        sent
    }

    /// Removes the task and, where that went well, the container.
    fn remove_both(&self, options: &[&str], name: &str) -> Ran {
        let removed = process::run(self.command(&["tasks", "rm"]).args(options).arg(name));
        if removed.code() == Some(0) {
            self.run(&["containers", "rm", name])
        } else {
            removed
        }
    }
}

impl Served for Ctr {
    fn daemon(&self) -> &Daemon {
        &self.containerd.daemon
    }

    fn launch(&self, service: Service, plan: &Plan) -> Ran {
        process::run(&mut self.run_command(service, plan, "--detach"))
    }

    fn run_and_remove(&self, service: Service, plan: &Plan) -> Option<Ran> {
        Some(process::run(&mut self.run_command(service, plan, "--rm")))
    }

    fn id(&self, name: &str) -> String {
        name.to_owned()
    }

    fn pid(&self, name: &str) -> i32 {
        let tasks = self.tasks();
        let found = tasks.iter().find(|(id, _)| id == name);
        found
            .unwrap_or_else(|| panic!("{name} is none of {tasks:?}"))
            .1
    }

    fn exec(&self, name: &str, command: &[&str]) -> Ran {
        process::run(
            self.command(&["tasks", "exec", "--exec-id", "second", name])
                .args(command),
        )
    }

    fn stop(&self, name: &str) -> Ran {
        self.send("SIGTERM", name)
    }

    fn kill(&self, name: &str) -> Ran {
        self.send("SIGKILL", name)
    }

    fn remove(&self, name: &str) -> Ran {
        process::eventually("containerd notices the end", || {
            let removed = self.remove_both(&[], name);
            (removed.code() == Some(0)).then_some(removed)
        })
    }

    fn remove_by_force(&self, name: &str) -> Ran {
        self.remove_both(&["--force"], name)
    }

    fn remove_all(&self) {
        for name in self
            .run(&["containers", "list", "--quiet"])
            .stdout
            .split_whitespace()
        {
            self.remove_both(&["--force"], name);
            process::try_to_run(&mut self.command(&["containers", "rm", name]));
        }
    }
}
