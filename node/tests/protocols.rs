//! The messages that are written by hand have the numbers and types of those who made them:
//! Kubernetes' `v1beta1/api.proto` of device plugins, containerd's `api.proto` of NRI (v0.12), and
//! ttrpc's `request.proto`. The tables say what those files say of the fields that are used here;
//! bytes made by the tables are read and written by our messages.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use pinfold_node::device_plugin::api as kubelet;
use pinfold_node::nri::api as nri;
use pinfold_node::nri::ttrpc;
use prost::Message;

/// A field's type, as the files write it.
#[derive(Debug, Clone, Copy)]
enum Type {
    /// `string`
    Text,
    /// `repeated string`
    Texts,
    /// `bytes`
    Bytes,
    /// `bool`
    Bool,
    /// `int32`, or an enumeration
    Int32,
    /// `int64`
    Int64,
    /// `map<string, string>`
    Map,
    /// A message of this table.
    One(&'static str),
    /// The same, `repeated`.
    Many(&'static str),
}

use Type::{Bool, Bytes, Int32, Int64, Many, Map, One, Text, Texts};

/// A message with its fields: the name, the number, the type.
type Fact = (&'static str, &'static [(&'static str, u32, Type)]);

const KUBELET: &[Fact] = &[
    ("Empty", &[]),
    (
        "DevicePluginOptions",
        &[
            ("pre_start_required", 1, Bool),
            ("get_preferred_allocation_available", 2, Bool),
        ],
    ),
    (
        "RegisterRequest",
        &[
            ("version", 1, Text),
            ("endpoint", 2, Text),
            ("resource_name", 3, Text),
            ("options", 4, One("DevicePluginOptions")),
        ],
    ),
    ("ListAndWatchResponse", &[("devices", 1, Many("Device"))]),
    (
        "Device",
        &[
            ("ID", 1, Text),
            ("health", 2, Text),
            ("topology", 3, One("TopologyInfo")),
        ],
    ),
    ("TopologyInfo", &[("nodes", 1, Many("NUMANode"))]),
    ("NUMANode", &[("ID", 1, Int64)]),
    (
        "PreferredAllocationRequest",
        &[(
            "container_requests",
            1,
            Many("ContainerPreferredAllocationRequest"),
        )],
    ),
    (
        "ContainerPreferredAllocationRequest",
        &[
            ("available_deviceIDs", 1, Texts),
            ("must_include_deviceIDs", 2, Texts),
            ("allocation_size", 3, Int32),
        ],
    ),
    (
        "PreferredAllocationResponse",
        &[(
            "container_responses",
            1,
            Many("ContainerPreferredAllocationResponse"),
        )],
    ),
    (
        "ContainerPreferredAllocationResponse",
        &[("deviceIDs", 1, Texts)],
    ),
    (
        "AllocateRequest",
        &[("container_requests", 1, Many("ContainerAllocateRequest"))],
    ),
    ("ContainerAllocateRequest", &[("devices_ids", 1, Texts)]),
    (
        "AllocateResponse",
        &[("container_responses", 1, Many("ContainerAllocateResponse"))],
    ),
    (
        "ContainerAllocateResponse",
        &[
            ("envs", 1, Map),
            ("annotations", 4, Map),
            ("cdi_devices", 5, Many("CDIDevice")),
        ],
    ),
    ("CDIDevice", &[("name", 1, Text)]),
];

const NRI: &[Fact] = &[
    ("Empty", &[]),
    (
        "RegisterPluginRequest",
        &[("plugin_name", 1, Text), ("plugin_idx", 2, Text)],
    ),
    (
        "ConfigureRequest",
        &[("runtime_name", 2, Text), ("runtime_version", 3, Text)],
    ),
    ("ConfigureResponse", &[("events", 2, Int32)]),
    (
        "SynchronizeRequest",
        &[
            ("pods", 1, Many("PodSandbox")),
            ("containers", 2, Many("Container")),
            ("more", 3, Bool),
        ],
    ),
    ("SynchronizeResponse", &[("more", 2, Bool)]),
    // The same for CreateContainer, PostStartContainer, StopContainer and RemoveContainer.
    (
        "CreateContainerRequest",
        &[
            ("pod", 1, One("PodSandbox")),
            ("container", 2, One("Container")),
        ],
    ),
    (
        "CreateContainerResponse",
        &[("adjust", 1, One("ContainerAdjustment"))],
    ),
    (
        "UpdateContainerRequest",
        &[
            ("pod", 1, One("PodSandbox")),
            ("container", 2, One("Container")),
            ("linux_resources", 3, One("LinuxResources")),
        ],
    ),
    (
        "UpdateContainerResponse",
        &[("update", 1, Many("ContainerUpdate"))],
    ),
    (
        "StateChangeEvent",
        &[
            ("event", 1, Int32),
            ("pod", 2, One("PodSandbox")),
            ("container", 3, One("Container")),
        ],
    ),
    (
        "PodSandbox",
        &[
            ("id", 1, Text),
            ("name", 2, Text),
            ("namespace", 4, Text),
            ("annotations", 6, Map),
        ],
    ),
    (
        "Container",
        &[
            ("id", 1, Text),
            ("pod_sandbox_id", 2, Text),
            ("name", 3, Text),
            ("state", 4, Int32),
            ("annotations", 6, Map),
            ("hooks", 10, One("Hooks")),
        ],
    ),
    (
        "Hooks",
        &[
            ("prestart", 1, Many("Hook")),
            ("create_runtime", 2, Many("Hook")),
            ("poststop", 6, Many("Hook")),
        ],
    ),
    (
        "Hook",
        &[
            ("path", 1, Text),
            ("args", 2, Texts),
            ("timeout", 4, One("OptionalInt")),
        ],
    ),
    ("OptionalInt", &[("value", 1, Int64)]),
    (
        "ContainerAdjustment",
        &[("annotations", 2, Map), ("hooks", 5, One("Hooks"))],
    ),
    (
        "ContainerUpdate",
        &[
            ("container_id", 1, Text),
            ("linux", 2, One("LinuxContainerUpdate")),
        ],
    ),
    (
        "LinuxContainerUpdate",
        &[("resources", 1, One("LinuxResources"))],
    ),
    (
        "LinuxResources",
        &[("cpu", 2, One("LinuxCPU")), ("unified", 6, Map)],
    ),
    ("LinuxCPU", &[("cpus", 6, Text), ("mems", 7, Text)]),
];

const TTRPC: &[Fact] = &[
    (
        "Request",
        &[
            ("service", 1, Text),
            ("method", 2, Text),
            ("payload", 3, Bytes),
        ],
    ),
    (
        "Response",
        &[("status", 1, One("Status")), ("payload", 2, Bytes)],
    ),
    // google/rpc/status.proto
    ("Status", &[("code", 1, Int32), ("message", 2, Text)]),
];

/// The kinds of a field's bytes (Protocol Buffers: "Encoding").
const VARINT: u32 = 0;
const LENGTH: u32 = 2;
/// The others that are still in use: of 64 and of 32 bits.
const FIXED: [(u32, usize); 2] = [(1, 8), (5, 4)];

/// More than any number of a field in those files.
const MOST_NUMBER: u32 = 64;

/// The smallest number that an `int32` cannot hold whole, and what that keeps of it.
const LONG: (u64, u64) = ((1 << 40) + 5, 5);

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn number(field: u32, value: u64) -> Vec<u8> {
    [varint(u64::from(field << 3 | VARINT)), varint(value)].concat()
}

fn delimited(field: u32, content: &[u8]) -> Vec<u8> {
    let key = varint(u64::from(field << 3 | LENGTH));
    [key, varint(content.len() as u64), content.to_vec()].concat()
}

/// Bytes of a field of this type, and what is written of them once they were read.
fn samples(facts: &[Fact], field: u32, kind: Type) -> Vec<(Vec<u8>, Vec<u8>)> {
    let same = |bytes: Vec<u8>| (bytes.clone(), bytes);
    let two = |content: &[&[u8]]| {
        let all = content.iter().map(|one| delimited(field, one));
        all.collect::<Vec<_>>().concat()
    };
    match kind {
        Text => vec![
            same(delimited(field, b"a")),
            (two(&[b"a", b"b"]), delimited(field, b"b")),
        ],
        Texts => vec![same(two(&[b"a", b"b"]))],
        Bytes => vec![same(delimited(field, b"\xff"))],
        Bool => vec![
            same(number(field, 1)),
            (number(field, LONG.0), number(field, 1)),
        ],
        Int32 => vec![
            same(number(field, 1)),
            (number(field, LONG.0), number(field, LONG.1)),
        ],
        Int64 => vec![same(number(field, LONG.0))],
        Map => vec![same(delimited(
            field,
            &[delimited(1, b"k"), delimited(2, b"v")].concat(),
        ))],
        One(name) => vec![same(delimited(field, &sample(facts, name)))],
        Many(name) => {
            let one = sample(facts, name);
            vec![same(two(&[&one, &one]))]
        }
    }
}

/// Bytes of a message with all of its fields.
fn sample(facts: &[Fact], message: &str) -> Vec<u8> {
    let (_, fields) = facts.iter().find(|(name, _)| *name == message).unwrap();
    let fields = fields.iter();
    let fields = fields.map(|(_, field, kind)| samples(facts, *field, *kind)[0].1.clone());
    fields.collect::<Vec<_>>().concat()
}

/// What is written of bytes once they were read as a message.
fn again<M: Message + Default>(bytes: &[u8]) -> Option<Vec<u8>> {
    M::decode(bytes).ok().map(|message| message.encode_to_vec())
}

/// Is our message that of the table: all of its fields, and no other?
fn is_of<M: Message + Default>(facts: &[Fact], message: &str) {
    let (_, fields) = facts
        .iter()
        .find(|(name, _)| *name == message)
        .unwrap_or_else(|| panic!("{message} is in no table"));
    for (name, field, kind) in *fields {
        for (bytes, expected) in samples(facts, *field, *kind) {
            let written = again::<M>(&bytes);
            assert_eq!(written, Some(expected), "{message}.{name} from {bytes:?}");
        }
    }
    let whole = sample(facts, message);
    assert_eq!(again::<M>(&whole), Some(whole), "{message}");
    // What is not known is passed over: nothing of it is written, and nothing of it is an error.
    let is_known = |bytes: Vec<u8>| again::<M>(&bytes).is_none_or(|written| !written.is_empty());
    let known = (1..MOST_NUMBER).filter(|field| {
        let fixed = FIXED.map(|(kind, length)| {
            let key = varint(u64::from(field << 3 | kind));
            [key, vec![1; length]].concat()
        });
        let [first, second] = fixed;
        let all = [number(*field, 1), delimited(*field, b"a"), first, second];
        all.into_iter().any(is_known)
    });
    let expected: BTreeSet<u32> = fields.iter().map(|(_, field, _)| *field).collect();
    assert_eq!(known.collect::<BTreeSet<_>>(), expected, "{message}");
}

#[test]
fn the_kubelets_messages_are_those_of_kubernetes() {
    is_of::<kubelet::Empty>(KUBELET, "Empty");
    is_of::<kubelet::DevicePluginOptions>(KUBELET, "DevicePluginOptions");
    is_of::<kubelet::RegisterRequest>(KUBELET, "RegisterRequest");
    is_of::<kubelet::ListAndWatchResponse>(KUBELET, "ListAndWatchResponse");
    is_of::<kubelet::Device>(KUBELET, "Device");
    is_of::<kubelet::TopologyInfo>(KUBELET, "TopologyInfo");
    is_of::<kubelet::NumaNode>(KUBELET, "NUMANode");
    is_of::<kubelet::PreferredAllocationRequest>(KUBELET, "PreferredAllocationRequest");
    is_of::<kubelet::ContainerPreferredAllocationRequest>(
        KUBELET,
        "ContainerPreferredAllocationRequest",
    );
    is_of::<kubelet::PreferredAllocationResponse>(KUBELET, "PreferredAllocationResponse");
    is_of::<kubelet::ContainerPreferredAllocationResponse>(
        KUBELET,
        "ContainerPreferredAllocationResponse",
    );
    is_of::<kubelet::AllocateRequest>(KUBELET, "AllocateRequest");
    is_of::<kubelet::ContainerAllocateRequest>(KUBELET, "ContainerAllocateRequest");
    is_of::<kubelet::AllocateResponse>(KUBELET, "AllocateResponse");
    is_of::<kubelet::CdiDevice>(KUBELET, "CDIDevice");
    is_of::<kubelet::ContainerAllocateResponse>(KUBELET, "ContainerAllocateResponse");
    let [registration, plugin] = ["Registration", "DevicePlugin"];
    for (path, service, method) in [
        (kubelet::REGISTER, registration, "Register"),
        (kubelet::OPTIONS, plugin, "GetDevicePluginOptions"),
        (kubelet::LIST_AND_WATCH, plugin, "ListAndWatch"),
        (kubelet::PREFERRED, plugin, "GetPreferredAllocation"),
        (kubelet::ALLOCATE, plugin, "Allocate"),
    ] {
        assert_eq!(path, format!("/v1beta1.{service}/{method}"));
    }
}

#[test]
fn the_engines_messages_are_those_of_nri() {
    is_of::<nri::Empty>(NRI, "Empty");
    is_of::<nri::RegisterPluginRequest>(NRI, "RegisterPluginRequest");
    is_of::<nri::ConfigureRequest>(NRI, "ConfigureRequest");
    is_of::<nri::ConfigureResponse>(NRI, "ConfigureResponse");
    is_of::<nri::SynchronizeRequest>(NRI, "SynchronizeRequest");
    is_of::<nri::SynchronizeResponse>(NRI, "SynchronizeResponse");
    is_of::<nri::ContainerRequest>(NRI, "CreateContainerRequest");
    is_of::<nri::CreateContainerResponse>(NRI, "CreateContainerResponse");
    is_of::<nri::UpdateContainerRequest>(NRI, "UpdateContainerRequest");
    is_of::<nri::UpdateContainerResponse>(NRI, "UpdateContainerResponse");
    is_of::<nri::StateChangeEvent>(NRI, "StateChangeEvent");
    is_of::<nri::PodSandbox>(NRI, "PodSandbox");
    is_of::<nri::Container>(NRI, "Container");
    is_of::<nri::Hooks>(NRI, "Hooks");
    is_of::<nri::Hook>(NRI, "Hook");
    is_of::<nri::Int>(NRI, "OptionalInt");
    is_of::<nri::ContainerAdjustment>(NRI, "ContainerAdjustment");
    is_of::<nri::ContainerUpdate>(NRI, "ContainerUpdate");
    is_of::<nri::LinuxContainerUpdate>(NRI, "LinuxContainerUpdate");
    is_of::<nri::LinuxResources>(NRI, "LinuxResources");
    is_of::<nri::LinuxCpu>(NRI, "LinuxCPU");
    let package = "nri.pkg.api.v1alpha1";
    assert_eq!(nri::PLUGIN_SERVICE, format!("{package}.Plugin"));
    assert_eq!(nri::RUNTIME_SERVICE, format!("{package}.Runtime"));
    for (event, number) in [
        (nri::Event::CreateContainer, 4),
        (nri::Event::PostStartContainer, 7),
        (nri::Event::UpdateContainer, 8),
        (nri::Event::StopContainer, 10),
        (nri::Event::RemoveContainer, 11),
    ] {
        assert_eq!(event as i32, number);
        assert_ne!(nri::EVENTS & 1 << (number - 1), 0, "{event:?}");
    }
    for (state, number) in [
        (nri::ContainerState::Unknown, 0),
        (nri::ContainerState::Created, 1),
        (nri::ContainerState::Paused, 2),
        (nri::ContainerState::Running, 3),
        (nri::ContainerState::Stopped, 4),
    ] {
        assert_eq!(state as i32, number);
    }
}

#[test]
fn calls_are_those_of_ttrpc() {
    is_of::<ttrpc::Request>(TTRPC, "Request");
    is_of::<ttrpc::Response>(TTRPC, "Response");
    is_of::<ttrpc::Status>(TTRPC, "Status");
}

/// The comparison finds a field of another number, of another type, too many and too few.
#[test]
fn another_message_is_told_apart() {
    #[derive(Clone, PartialEq, Message)]
    struct Moved {
        #[prost(string, tag = "2")]
        name: String,
    }
    #[derive(Clone, PartialEq, Message)]
    struct OfAnotherType {
        #[prost(int64, tag = "1")]
        name: i64,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Repeated {
        #[prost(string, repeated, tag = "1")]
        name: Vec<String>,
    }
    #[derive(Clone, PartialEq, Message)]
    struct More {
        #[prost(string, tag = "1")]
        name: String,
        #[prost(fixed32, tag = "9")]
        more: u32,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Short {
        #[prost(int32, tag = "1")]
        id: i32,
    }
    #[derive(Clone, PartialEq, Message)]
    struct Same {
        #[prost(string, tag = "1")]
        name: String,
    }
    is_of::<Same>(KUBELET, "CDIDevice");
    let differs = |is_of: fn()| assert!(std::panic::catch_unwind(is_of).is_err());
    differs(|| is_of::<Moved>(KUBELET, "CDIDevice"));
    differs(|| is_of::<OfAnotherType>(KUBELET, "CDIDevice"));
    differs(|| is_of::<Repeated>(KUBELET, "CDIDevice"));
    differs(|| is_of::<More>(KUBELET, "CDIDevice"));
    differs(|| is_of::<kubelet::Empty>(KUBELET, "CDIDevice"));
    differs(|| is_of::<Short>(KUBELET, "NUMANode"));
    differs(|| is_of::<kubelet::NumaNode>(NRI, "ConfigureResponse"));
}
