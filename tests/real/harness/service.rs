//! The engines that are daemons: docker, and containerd with either of its clients.

use crate::case::{Columns, Means};
use crate::cgroups::{self, hierarchy};
use crate::command_line::CommandLine;
use crate::cri::Cri;
use crate::ctr::Ctr;
use crate::daemon::Daemon;
use crate::docker::Docker;
use crate::engines::{Door, Driver, Runtime, runtime_path};
use crate::needs::Need;
use crate::plan::Plan;
use crate::podman::Podman;
use crate::process::{self, Ran};
use crate::world::World;
use std::ops::Deref;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Whom a test asks for a container.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    Docker,
    /// `ctr`, containerd's own.
    Ctr,
    /// What a kubelet asks, over containerd's CRI socket.
    Cri,
    /// podman, which is no daemon, but is set up once all the same.
    Podman,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) client: Client,
    pub(crate) runtime: Runtime,
    pub(crate) driver: Driver,
    pub(crate) door: Door,
}

impl Service {
    /// This client by this door, with every runtime and driver; those that share a daemon follow on
    /// each other.
    pub(crate) fn all(client: Client, door: Door) -> Vec<Service> {
        let with = |driver| {
            [Runtime::Runc, Runtime::Crun].map(|runtime| Service {
                client,
                runtime,
                driver,
                door,
            })
        };
        [Driver::Cgroupfs, Driver::Systemd]
            .into_iter()
            .flat_map(with)
            .collect()
    }

    /// Services in groups that share a daemon.
    pub(crate) fn groups(services: Vec<Service>) -> Vec<Vec<Service>> {
        let groups = services.chunk_by(|one, other| one.shares_a_daemon_with(*other));
        groups.map(<[Service]>::to_vec).collect()
    }

    /// Whether one set-up can serve both: docker has one driver for all its containers, and so has
    /// what we install.
    fn shares_a_daemon_with(self, other: Service) -> bool {
        let for_both = self.client != Client::Docker && !self.is_installed();
        self.client == other.client
            && self.is_installed() == other.is_installed()
            && (self.door == Door::Nri) == (other.door == Door::Nri)
            && (for_both || self.driver == other.driver)
    }

    /// Whether `pinfold install` sets it up, and not the test.
    pub(crate) fn is_installed(self) -> bool {
        ![Door::Hooks, Door::Nri].contains(&self.door) || self.client == Client::Podman
    }

    /// The options of docker and podman that ask for what a plan asks for.
    pub(crate) fn request(self, plan: &Plan) -> Vec<String> {
        let option = |(key, value): &(String, String)| match self.door {
            Door::Cdi => ["--device".to_owned(), format!("{key}={value}")],
            Door::Hooks | Door::Shim | Door::Nri => {
                ["--annotation".to_owned(), format!("{key}={value}")]
            }
        };
        plan.annotations.iter().flat_map(option).collect()
    }

    fn start(self) -> Server {
        match self.client {
            Client::Docker => Server::Docker(Docker::start(self)),
            Client::Ctr => Server::Ctr(Ctr::start()),
            Client::Cri => Server::Cri(Cri::start(self)),
            Client::Podman => Server::Podman(Podman::start(self.driver)),
        }
    }

    /// The `cgroupsPath` of a container.
    pub(crate) fn cgroups_path(self, world: &World, name: &str) -> String {
        let parent = self.driver.parent(world);
        match self.driver {
            Driver::Cgroupfs => format!("{parent}/{name}"),
            Driver::Systemd => format!("{parent}:pinfoldtest:{name}"),
        }
    }
}

impl Means for Service {
    fn needs(self) -> Vec<Need> {
        let mut needs = vec![Need::Root, self.runtime.need()];
        needs.extend((self.driver == Driver::Systemd).then_some(Need::Systemd));
        match self.client {
            // Before, docker had no way to hand an annotation to the runtime; CDI devices came one
            // later.
            Client::Docker => {
                needs.push(Need::Docker(if self.door == Door::Cdi { 25 } else { 24 }))
            }
            Client::Podman => needs.push(Need::Podman),
            Client::Ctr => needs.push(Need::Containerd),
            Client::Cri => needs.extend([Need::Containerd, Need::CriClient]),
        }
        needs.extend((self.door == Door::Nri).then_some(Need::Nri));
        needs
    }

    fn columns(self) -> Columns {
        Columns {
            engine: match self.client {
                Client::Docker => "docker",
                Client::Ctr => "containerd-ctr",
                Client::Cri => "containerd-cri",
                Client::Podman => "podman",
            },
            runtime: self.runtime.name(),
            door: self.door.name(),
            driver: self.driver.name(),
        }
    }
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (runtime, driver) = (self.runtime.name(), self.driver.name());
        write!(f, "{}-{runtime}-{driver}", self.columns().engine)?;
        match self.door {
            Door::Hooks => Ok(()),
            door => write!(f, "-{}", door.name()),
        }
    }
}

/// Containers by name, in the words of one client.
pub(crate) trait Served: Send {
    fn daemon(&self) -> &Daemon;

    /// Creates and starts a container; what it says is what a user sees.
    fn launch(&self, service: Service, plan: &Plan) -> Ran;

    /// Runs a container to its end, after which the client removes it; `None` for a client that has
    /// no such way.
    fn run_and_remove(&self, service: Service, plan: &Plan) -> Option<Ran>;

    /// The id under which the hooks know it.
    fn id(&self, name: &str) -> String;

    /// The pid of the first process, as the engine tells it.
    fn pid(&self, name: &str) -> i32;

    /// Runs a command in the container.
    fn exec(&self, name: &str, command: &[&str]) -> Ran;

    /// Has the first process told to end, as gently as the client does it by itself.
    fn stop(&self, name: &str) -> Ran;

    /// Has the first process killed.
    fn kill(&self, name: &str) -> Ran;

    /// Removes a container that has ended.
    fn remove(&self, name: &str) -> Ran;

    /// Removes a container that runs.
    fn remove_by_force(&self, name: &str) -> Ran;

    /// Removes whatever is there, and fails at nothing.
    fn remove_all(&self);
}

enum Server {
    Docker(Docker),
    Ctr(Ctr),
    Cri(Cri),
    Podman(Podman),
}

/// The daemon that is up. Tests take turns, and the next one that wants another daemon ends this
/// one.
static UP: Mutex<Option<(Service, Server)>> = Mutex::new(None);

/// A daemon for the time of one test, with nothing of an earlier test in it.
pub(crate) struct Session {
    up: MutexGuard<'static, Option<(Service, Server)>>,
    pub(crate) service: Service,
}

impl Session {
    pub(crate) fn with(service: Service) -> Session {
        let mut up = UP.lock().unwrap_or_else(PoisonError::into_inner);
        if !up
            .as_ref()
            .is_some_and(|(other, _)| service.shares_a_daemon_with(*other))
        {
            *up = None;
            *up = Some((service, service.start()));
        }
        let session = Session { up, service };
        let world = session.world();
        world.empty();
        if let Some(site) = &session.daemon().site {
            site.configure(world, Some(&runtime_path(world, service.runtime)));
        }
        session
    }

    fn server(&self) -> &Server {
        &self.up.as_ref().expect("a session has a daemon").1
    }

    /// The same, to end what it stands on.
    pub(crate) fn cri_mut(&mut self) -> &mut Cri {
        match self.up.as_mut().map(|(_, server)| server) {
            Some(Server::Cri(cri)) => cri,
            _ => panic!("{} is not the CRI", self.service),
        }
    }

    /// Ends the engine's daemon by this signal and starts it again.
    pub(crate) fn restart_daemon(&mut self, signal: i32) {
        match self.up.as_mut().map(|(_, server)| server) {
            Some(Server::Cri(cri)) => cri.restart(signal),
            Some(Server::Docker(docker)) => docker.restart(signal),
            _ => panic!("{} has no daemon of its own", self.service),
        }
    }

    /// The CRI's client, for what it alone can do.
    pub(crate) fn cri(&self) -> &Cri {
        match self.server() {
            Server::Cri(cri) => cri,
            _ => panic!("{} is not the CRI", self.service),
        }
    }

    /// A command line of docker or podman.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        match self.server() {
            Server::Docker(docker) => docker.command(arguments),
            Server::Podman(podman) => podman.command(arguments),
            _ => panic!("{} has no such command line", self.service),
        }
    }

    pub(crate) fn podman(&self) -> &Podman {
        match self.server() {
            Server::Podman(podman) => podman,
            _ => panic!("{} is not podman", self.service),
        }
    }

    pub(crate) fn docker(&self) -> &Docker {
        match self.server() {
            Server::Docker(docker) => docker,
            _ => panic!("{} is not docker", self.service),
        }
    }

    pub(crate) fn world(&self) -> &World {
        &self.daemon().world
    }

    /// Ends the daemon, which the next test is to find as it was at first.
    pub(crate) fn close(mut self) {
        *self.up = None;
    }

    /// Launches a container, which must succeed.
    #[track_caller]
    pub(crate) fn up(&self, plan: &Plan) {
        self.launch(self.service, plan).ok();
    }

    /// What the first process of a container saw as its very first act.
    pub(crate) fn affinity(&self, name: &str) -> String {
        let file = self.daemon().out().join(name);
        process::eventually(&format!("{name} writes what it saw"), || {
            let text = std::fs::read_to_string(&file).ok()?;
            text.lines()
                .find_map(|line| line.strip_prefix("affinity: "))
                .map(str::to_owned)
        })
    }

    /// The mask of its cgroup, the CPUs of its first process, then and now, and the books.
    #[track_caller]
    pub(crate) fn assert_pinned(&self, name: &str, pool: &str, cpus: &str) {
        assert_eq!(self.affinity(name), cpus, "the first system call of {name}");
        let pid = self.pid(name);
        assert_eq!(process::affinity(pid), cpus, "CPUs of {name}");
        assert_eq!(cgroups::mask(&hierarchy().of(pid)), cpus, "mask of {name}");
        let claim = self.world().claim_of(&self.id(name));
        assert_eq!(
            (&claim["pool"], &claim["cpus"]),
            (&pool.into(), &cpus.into())
        );
        assert_eq!(self.world().tasks(pool, cpus), [pid]);
    }
}

impl Deref for Session {
    type Target = dyn Served;

    fn deref(&self) -> &Self::Target {
        match self.server() {
            Server::Docker(docker) => docker,
            Server::Ctr(ctr) => ctr,
            Server::Cri(cri) => cri,
            Server::Podman(podman) => podman,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.up.is_none() {
            return;
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log ends with\n{}", self.daemon().log());
        }
        self.remove_all();
    }
}

/// Ends the daemon that is up.
pub(crate) fn end() {
    *UP.lock().unwrap_or_else(PoisonError::into_inner) = None;
}
