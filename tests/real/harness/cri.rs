//! containerd by its CRI socket, asked as a kubelet asks, by the client of `tests/cri-client`.

use crate::containerd::{Containerd, handler};
use crate::daemon::Daemon;
use crate::engines::Door;
use crate::image;
use crate::node::Node;
use crate::plan::Plan;
use crate::process::{self, Ran};
use crate::service::{Served, Service};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

/// The namespace in which the CRI keeps what it has.
const NAMESPACE: &str = "k8s.io";

/// The client, where it is built.
pub(crate) fn client() -> Option<PathBuf> {
    std::env::var_os("PINFOLD_TEST_CRI_CLIENT").map(PathBuf::from)
}

pub(crate) struct Cri {
    containerd: Containerd,
    pods: RefCell<Vec<Pod>>,
    /// The containers' ids by their names.
    containers: RefCell<BTreeMap<String, String>>,
    /// The NRI plugin, for services by that door.
    node: Option<Node>,
}

/// A pod sandbox that runs.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) id: String,
    config: Value,
}

impl Cri {
    pub(crate) fn start(service: Service) -> Cri {
        let containerd = match service.door {
            Door::Nri => Containerd::with_nri(),
            _ if service.is_installed() => Containerd::installed(service.driver),
            _ => Containerd::start(),
        };
        containerd.import(NAMESPACE);
        let node = (service.door == Door::Nri).then(|| Node::start(&containerd.daemon, &[]));
        let cri = Cri {
            containerd,
            pods: RefCell::default(),
            containers: RefCell::default(),
            node,
        };
        // Its CRI hears of an image by an event, some time after the import.
        process::eventually("its CRI knows the image", || {
            let known = cri.ask("image", &[image::NAME]).ok().stdout;
            (!known.trim().is_empty()).then_some(())
        });
        cri
    }

    fn ask(&self, verb: &str, arguments: &[&str]) -> Ran {
        let client = client().expect("the test needs the client");
        let mut command = Command::new(client);
        command
            .arg(self.daemon().path("socket"))
            .arg(verb)
            .args(arguments);
        process::run(&mut command)
    }

    /// Starts a pod sandbox.
    pub(crate) fn run_pod(
        &self,
        service: Service,
        name: &str,
        annotations: &[(String, String)],
    ) -> Pod {
        let handler = match service.door {
            Door::Shim => "pinfold".to_owned(),
            _ => handler(service.runtime, service.driver),
        };
        self.run_pod_under(&handler, service, name, annotations)
    }

    /// The same under a runtime handler of another name.
    pub(crate) fn run_pod_under(
        &self,
        handler: &str,
        service: Service,
        name: &str,
        annotations: &[(String, String)],
    ) -> Pod {
        let annotations: BTreeMap<_, _> = annotations.iter().cloned().collect();
        let config = json!({
            "name": name,
            "namespace": "telco",
            "uid": format!("uid-of-{name}"),
            "handler": handler,
            "cgroup_parent": service.driver.parent(&self.daemon().world),
            "annotations": annotations,
        });
        let id = self.ask("run-pod", &[&config.to_string()]).ok().stdout;
        let pod = Pod {
            id: id.trim().to_owned(),
            config,
        };
        self.pods.borrow_mut().push(pod.clone());
        pod
    }

    /// Creates and starts a container of a pod.
    pub(crate) fn launch_in(&self, pod: &Pod, plan: &Plan) -> Ran {
        match self.create_in(pod, plan, &[]) {
            created if created.code() == Some(0) => self.begin(&plan.name),
            refused => refused,
        }
    }

    /// Starts a container that was created.
    pub(crate) fn begin(&self, name: &str) -> Ran {
        self.ask("start", &[&self.id(name)])
    }

    /// Creates a container of a pod, with CDI devices.
    pub(crate) fn create_in(&self, pod: &Pod, plan: &Plan, devices: &[&str]) -> Ran {
        let annotations: BTreeMap<_, _> = plan.annotations.iter().cloned().collect();
        let mut command = vec![
            plan.program.clone(),
            "--out".into(),
            format!("/out/{}", plan.name),
        ];
        command.extend(plan.actions.iter().cloned());
        let config = json!({
            "name": plan.name,
            "image": image::NAME,
            "command": command,
            "annotations": annotations,
            "mounts": { "/out": self.daemon().out() },
            "devices": devices,
        });
        let arguments = [&pod.id, &pod.config.to_string(), &config.to_string()];
        let created = self.ask("create", &arguments.map(String::as_str));
        if created.code() == Some(0) {
            let id = created.stdout.trim().to_owned();
            self.containers.borrow_mut().insert(plan.name.clone(), id);
        }
        created
    }

    /// Changes a container's resources, as a kubelet does it: it tries again where it was refused
    /// because the plugin found no time, as in an emulated machine.
    pub(crate) fn update(&self, name: &str, resources: &Value) -> Ran {
        let id = self.id(name);
        let once = || self.ask("update", &[&id, &resources.to_string()]);
        let mut tries = (0..5).map(|_| once());
        let answered = tries.find(|ran| !ran.stderr.contains(" within 200 ms"));
        answered.unwrap_or_else(once)
    }

    /// Ends containerd by this signal and starts it again; what runs runs on.
    pub(crate) fn restart(&mut self, signal: i32) {
        self.containerd.restart(signal);
        if let Some(node) = &self.node {
            node.wait_until_taken(&self.containerd.daemon, 0);
        }
    }

    /// The NRI plugin.
    pub(crate) fn node(&self) -> &Node {
        self.node.as_ref().expect("the plugin runs")
    }

    /// Kills the NRI plugin.
    pub(crate) fn kill_node(&mut self) {
        let node = self.node.take().expect("the plugin runs");
        node.kill();
    }

    /// Starts another NRI plugin in its place.
    pub(crate) fn start_node(&mut self) {
        self.start_node_with(&[]);
    }

    /// The same with more options.
    pub(crate) fn start_node_with(&mut self, more: &[&str]) {
        self.node = Some(Node::start(&self.containerd.daemon, more));
    }

    /// Ends and removes a pod with all its containers.
    pub(crate) fn remove_pod(&self, pod: &Pod) -> Ran {
        let stopped = self.ask("stop-pod", &[&pod.id]);
        if stopped.code() == Some(0) {
            self.ask("remove-pod", &[&pod.id])
        } else {
            stopped
        }
    }

    /// What the engine tells of a container.
    fn status(&self, name: &str) -> Value {
        let told = self.ask("status", &[&self.id(name)]).ok().stdout;
        serde_json::from_str(&told).expect("the status is JSON")
    }

    /// How many hooks a container has at a stage.
    pub(crate) fn hooks(&self, name: &str, stage: &str) -> usize {
        let hooks = &self.status(name)["runtimeSpec"]["hooks"][stage];
        hooks.as_array().map_or(0, Vec::len)
    }

    /// The annotations that the engine gave to a container.
    pub(crate) fn annotations(&self, name: &str) -> Value {
        self.status(name)["runtimeSpec"]["annotations"].clone()
    }
}

impl Cri {
    /// containerd's own client, in a namespace of containerd's.
    pub(crate) fn ctr(&self, namespace: &str) -> Command {
        self.containerd.ctr(namespace)
    }
}

impl Served for Cri {
    fn daemon(&self) -> &Daemon {
        &self.containerd.daemon
    }

    /// A pod with one container; what it asks for is said at the pod, as users do.
    fn launch(&self, service: Service, plan: &Plan) -> Ran {
        let pod = self.run_pod(service, &plan.name, &plan.annotations);
        let plan = Plan {
            annotations: Vec::new(),
            ..plan.clone()
        };
        self.launch_in(&pod, &plan)
    }

    fn run_and_remove(&self, _: Service, _: &Plan) -> Option<Ran> {
        None
    }

    fn id(&self, name: &str) -> String {
        self.containers
            .borrow()
            .get(name)
            .unwrap_or_else(|| panic!("{name} was launched"))
            .clone()
    }

    fn pid(&self, name: &str) -> i32 {
        let pid = self.status(name)["pid"].as_i64();
        pid.expect("the status tells a pid") as i32
    }

    fn exec(&self, name: &str, command: &[&str]) -> Ran {
        let id = self.id(name);
        self.ask("exec", &[&[id.as_str()], command].concat())
    }

    fn stop(&self, name: &str) -> Ran {
        self.ask("stop", &[&self.id(name)])
    }

    /// The CRI knows no signals: a stop without time to end is one.
    fn kill(&self, name: &str) -> Ran {
        self.stop(name)
    }

    fn remove(&self, name: &str) -> Ran {
        self.ask("remove", &[&self.id(name)])
    }

    /// The CRI removes a container that runs without being told twice; its own pod, as `launch`
    /// makes it, goes with it.
    fn remove_by_force(&self, name: &str) -> Ran {
        let mut pods = self.pods.borrow_mut();
        let own = pods.iter().position(|pod| pod.config["name"] == name);
        match own.map(|nth| pods.remove(nth)) {
            Some(pod) => self.remove_pod(&pod),
            None => self.remove(name),
        }
    }

    fn remove_all(&self) {
        for pod in self.pods.borrow_mut().drain(..) {
            self.remove_pod(&pod);
        }
        self.containers.borrow_mut().clear();
    }
}
