//! What docker's command line is to docker and to podman alike.

use crate::daemon::Daemon;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Served, Service};
use std::process::Command;

/// A client with docker's command line.
pub(crate) trait CommandLine: Send {
    /// The arguments that remove a container that runs.
    const REMOVE_BY_FORCE: &[&str];

    fn daemon(&self) -> &Daemon;

    fn command(&self, arguments: &[&str]) -> Command;

    /// `run`, with `how` as its first option.
    fn run_command(&self, service: Service, plan: &Plan, how: &str) -> Command;

    fn run(&self, arguments: &[&str]) -> Ran {
        process::run(&mut self.command(arguments))
    }

    /// A field of what `inspect` tells of a container.
    fn inspect(&self, field: &str, name: &str) -> String {
        let format = format!("{{{{.{field}}}}}");
        let told = self.run(&["inspect", "--format", &format, name]).ok();
        told.stdout.trim().to_owned()
    }

    fn by_force(&self, names: &[&str]) -> Command {
        let mut command = self.command(Self::REMOVE_BY_FORCE);
        command.args(names);
        command
    }
}

impl<Client: CommandLine> Served for Client {
    fn daemon(&self) -> &Daemon {
        CommandLine::daemon(self)
    }

    fn launch(&self, service: Service, plan: &Plan) -> Ran {
        process::run(&mut self.run_command(service, plan, "--detach"))
    }

    fn run_and_remove(&self, service: Service, plan: &Plan) -> Option<Ran> {
        Some(process::run(&mut self.run_command(service, plan, "--rm")))
    }

    fn id(&self, name: &str) -> String {
        self.inspect("Id", name)
    }

    fn pid(&self, name: &str) -> i32 {
        let told = self.inspect("State.Pid", name);
        told.parse().expect("inspect tells a pid")
    }

    fn exec(&self, name: &str, command: &[&str]) -> Ran {
        process::run(self.command(&["exec", name]).args(command))
    }

    fn stop(&self, name: &str) -> Ran {
        self.run(&["stop", name])
    }

    fn kill(&self, name: &str) -> Ran {
        self.run(&["kill", name])
    }

    fn remove(&self, name: &str) -> Ran {
        self.run(&["rm", name])
    }

    fn remove_by_force(&self, name: &str) -> Ran {
        process::run(&mut self.by_force(&[name]))
    }

    fn remove_all(&self) {
        let all = self.run(&["ps", "--all", "--quiet"]).stdout;
        let all: Vec<&str> = all.split_whitespace().collect();
        if !all.is_empty() {
            process::try_to_run(&mut self.by_force(&all));
        }
    }
}
