//! The messages of NRI, by hand, with the fields that are used here; the numbers are those of
//! containerd/nri v0.12.2, pkg/api/api.proto (Apache-2.0). Other fields are passed over. Pure.

use std::collections::BTreeMap;

/// The service that we have, and the engine calls.
pub const PLUGIN_SERVICE: &str = "nri.pkg.api.v1alpha1.Plugin";
/// The service that the engine has, and we call.
pub const RUNTIME_SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";

/// What an engine tells of, by its number; [`ConfigureResponse`] has a bit for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum Event {
    /// None.
    Unknown = 0,
    /// A container is made.
    CreateContainer = 4,
    /// A container has been started.
    PostStartContainer = 7,
    /// A container's resources are changed.
    UpdateContainer = 8,
    /// A container has ended, or is to end.
    StopContainer = 10,
    /// A container has been removed.
    RemoveContainer = 11,
}

/// Which events we want to be told of, as [`ConfigureResponse`] says it.
pub const EVENTS: i32 = bit(Event::CreateContainer)
    | bit(Event::PostStartContainer)
    | bit(Event::UpdateContainer)
    | bit(Event::StopContainer)
    | bit(Event::RemoveContainer);

const fn bit(event: Event) -> i32 {
    1 << (event as i32 - 1)
}

/// The result of a call that tells nothing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Empty {}

/// Who we are.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RegisterPluginRequest {
    /// By this name an engine's `required_plugins` means us.
    #[prost(string, tag = "1")]
    pub plugin_name: String,
    /// Two digits: plugins are called in their order.
    #[prost(string, tag = "2")]
    pub plugin_idx: String,
}

/// Who the engine is.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfigureRequest {
    /// `containerd`, `cri-o` or another.
    #[prost(string, tag = "2")]
    pub runtime_name: String,
    /// Its version.
    #[prost(string, tag = "3")]
    pub runtime_version: String,
}

/// What we want to be told.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ConfigureResponse {
    /// A bit for each event; none means all.
    #[prost(int32, tag = "2")]
    pub events: i32,
}

/// What is there already, or a part of it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SynchronizeRequest {
    /// The pods.
    #[prost(message, repeated, tag = "1")]
    pub pods: Vec<PodSandbox>,
    /// The containers.
    #[prost(message, repeated, tag = "2")]
    pub containers: Vec<Container>,
    /// Are more parts to follow?
    #[prost(bool, tag = "3")]
    pub more: bool,
}

/// That a part has come.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SynchronizeResponse {
    /// That of the request: we take parts.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// A container that is being made, or of which an event tells; a message that many calls share.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerRequest {
    /// Its pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
    /// The container.
    #[prost(message, optional, tag = "2")]
    pub container: Option<Container>,
}

/// How a container is to be made.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CreateContainerResponse {
    /// What is to be added to it.
    #[prost(message, optional, tag = "1")]
    pub adjust: Option<ContainerAdjustment>,
}

/// A change of a container's resources.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UpdateContainerRequest {
    /// Its pod.
    #[prost(message, optional, tag = "1")]
    pub pod: Option<PodSandbox>,
    /// The container.
    #[prost(message, optional, tag = "2")]
    pub container: Option<Container>,
    /// The values that it is to get.
    #[prost(message, optional, tag = "3")]
    pub linux_resources: Option<LinuxResources>,
}

/// How a container's resources are to be changed instead.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct UpdateContainerResponse {
    /// The values that replace those of the request.
    #[prost(message, repeated, tag = "1")]
    pub update: Vec<ContainerUpdate>,
}

/// An event, as NRI before 0.12 tells of those that ask nothing.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StateChangeEvent {
    /// Which.
    #[prost(enumeration = "Event", tag = "1")]
    pub event: i32,
    /// The pod.
    #[prost(message, optional, tag = "2")]
    pub pod: Option<PodSandbox>,
    /// The container; none where the event is of a pod.
    #[prost(message, optional, tag = "3")]
    pub container: Option<Container>,
}

/// A pod.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PodSandbox {
    /// The sandbox's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// The pod's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its Kubernetes namespace.
    #[prost(string, tag = "4")]
    pub namespace: String,
    /// All of its annotations.
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
}

/// A container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Container {
    /// Its id, which its runtime has too.
    #[prost(string, tag = "1")]
    pub id: String,
    /// Its pod's sandbox.
    #[prost(string, tag = "2")]
    pub pod_sandbox_id: String,
    /// Its name in the pod.
    #[prost(string, tag = "3")]
    pub name: String,
    /// A [`ContainerState`].
    #[prost(enumeration = "ContainerState", tag = "4")]
    pub state: i32,
    /// Its annotations, with those that the engine made.
    #[prost(btree_map = "string, string", tag = "6")]
    pub annotations: BTreeMap<String, String>,
    /// The hooks of its OCI configuration.
    #[prost(message, optional, tag = "10")]
    pub hooks: Option<Hooks>,
}

/// How far a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub enum ContainerState {
    /// Not known.
    Unknown = 0,
    /// Made, and not started.
    Created = 1,
    /// Paused.
    Paused = 2,
    /// Running.
    Running = 3,
    /// Ended.
    Stopped = 4,
}

/// Hooks by the stage at which they run.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hooks {
    /// The older name of createRuntime.
    #[prost(message, repeated, tag = "1")]
    pub prestart: Vec<Hook>,
    /// Before the container's process begins.
    #[prost(message, repeated, tag = "2")]
    pub create_runtime: Vec<Hook>,
    /// After its end.
    #[prost(message, repeated, tag = "6")]
    pub poststop: Vec<Hook>,
}

/// A hook.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Hook {
    /// Its program.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Its arguments, of which the first is the name by which it is called.
    #[prost(string, repeated, tag = "2")]
    pub args: Vec<String>,
    /// How long it may run, in seconds.
    #[prost(message, optional, tag = "4")]
    pub timeout: Option<Int>,
}

/// A number that may be left out.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Int {
    /// The number.
    #[prost(int64, tag = "1")]
    pub value: i64,
}

/// What is added to a container that is being made.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerAdjustment {
    /// Annotations.
    #[prost(btree_map = "string, string", tag = "2")]
    pub annotations: BTreeMap<String, String>,
    /// Hooks, which come after those that are there.
    #[prost(message, optional, tag = "5")]
    pub hooks: Option<Hooks>,
}

/// Values for a container.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ContainerUpdate {
    /// Its id.
    #[prost(string, tag = "1")]
    pub container_id: String,
    /// The values.
    #[prost(message, optional, tag = "2")]
    pub linux: Option<LinuxContainerUpdate>,
}

/// Values for a container on Linux.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LinuxContainerUpdate {
    /// Its resources.
    #[prost(message, optional, tag = "1")]
    pub resources: Option<LinuxResources>,
}

/// Resources; those that are left out stay as they are.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LinuxResources {
    /// Of the CPUs.
    #[prost(message, optional, tag = "2")]
    pub cpu: Option<LinuxCpu>,
    /// Files of cgroup v2 and their values.
    #[prost(btree_map = "string, string", tag = "6")]
    pub unified: BTreeMap<String, String>,
}

/// Which CPUs and memory nodes; empty where they stay as they are.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct LinuxCpu {
    /// CPUs, in the kernel's list format.
    #[prost(string, tag = "6")]
    pub cpus: String,
    /// Memory nodes, in the kernel's list format.
    #[prost(string, tag = "7")]
    pub mems: String,
}
