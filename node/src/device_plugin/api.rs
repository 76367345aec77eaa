//! The kubelet's device plugin API, version v1beta1, as far as it is used here: its messages, by
//! the names and field numbers of Kubernetes (`k8s.io/kubelet`,
//! `pkg/apis/deviceplugin/v1beta1/api.proto`). Written by hand: they are few, and only grow by
//! fields, which a reader that does not know them passes over.

use std::collections::HashMap;

use prost::Message;

/// The version that a plugin registers with (`constants.go`: `Version`).
pub const VERSION: &str = "v1beta1";
/// The health of a device that can be given (`constants.go`: `Healthy`).
pub const HEALTHY: &str = "Healthy";
/// The health of a device that cannot be given (`constants.go`: `Unhealthy`).
pub const UNHEALTHY: &str = "Unhealthy";
/// The directory of the plugins' sockets below the kubelet's own (`constants.go`:
/// `DevicePluginPath`).
pub const DIRECTORY: &str = "device-plugins";
/// The kubelet's socket in that directory (`constants.go`: `KubeletSocket`).
pub const KUBELET_SOCKET: &str = "kubelet.sock";

/// The kubelet's method that takes a registration.
pub const REGISTER: &str = "/v1beta1.Registration/Register";
/// A plugin's method that returns its options.
pub const OPTIONS: &str = "/v1beta1.DevicePlugin/GetDevicePluginOptions";
/// A plugin's method that returns the devices, and again whenever they change.
pub const LIST_AND_WATCH: &str = "/v1beta1.DevicePlugin/ListAndWatch";
/// A plugin's method that says which devices go together best.
pub const PREFERRED: &str = "/v1beta1.DevicePlugin/GetPreferredAllocation";
/// A plugin's method that says what a container with some devices gets.
pub const ALLOCATE: &str = "/v1beta1.DevicePlugin/Allocate";

/// Nothing.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct Empty {}

/// What a plugin wants to be asked.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct DevicePluginOptions {
    /// Before each start of a container.
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    /// Which devices go together best.
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

/// A plugin makes itself known.
#[derive(Clone, PartialEq, Message)]
pub struct RegisterRequest {
    /// [`VERSION`].
    #[prost(string, tag = "1")]
    pub version: String,
    /// The file name of the plugin's socket, beside the kubelet's.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    /// The name of the resource.
    #[prost(string, tag = "3")]
    pub resource_name: String,
    /// What it wants to be asked.
    #[prost(message, optional, tag = "4")]
    pub options: Option<DevicePluginOptions>,
}

/// All devices of a resource.
#[derive(Clone, PartialEq, Message)]
pub struct ListAndWatchResponse {
    /// The devices.
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

/// A device.
#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// Its id, of at most 63 characters.
    #[prost(string, tag = "1")]
    pub id: String,
    /// [`HEALTHY`] or [`UNHEALTHY`].
    #[prost(string, tag = "2")]
    pub health: String,
    /// Where it lies; `None` where that is not known.
    #[prost(message, optional, tag = "3")]
    pub topology: Option<TopologyInfo>,
}

/// Where a device lies.
#[derive(Clone, PartialEq, Message)]
pub struct TopologyInfo {
    /// Its NUMA nodes.
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

/// A NUMA node.
#[derive(Clone, Copy, PartialEq, Message)]
pub struct NumaNode {
    /// Its number.
    #[prost(int64, tag = "1")]
    pub id: i64,
}

/// Asks which devices go together best, for each of some containers.
#[derive(Clone, PartialEq, Message)]
pub struct PreferredAllocationRequest {
    /// The containers.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerPreferredAllocationRequest>,
}

/// Asks the same for one container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerPreferredAllocationRequest {
    /// The ids of the devices that can be chosen.
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    /// The ids of those that must be chosen.
    #[prost(string, repeated, tag = "2")]
    pub must_include: Vec<String>,
    /// How many devices it gets.
    #[prost(int32, tag = "3")]
    pub size: i32,
}

/// Which devices go together best, for each container.
#[derive(Clone, PartialEq, Message)]
pub struct PreferredAllocationResponse {
    /// The containers, in the order of the request.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerPreferredAllocationResponse>,
}

/// The same for one container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerPreferredAllocationResponse {
    /// The ids of the devices.
    #[prost(string, repeated, tag = "1")]
    pub devices: Vec<String>,
}

/// Asks what some containers with devices get.
#[derive(Clone, PartialEq, Message)]
pub struct AllocateRequest {
    /// The containers.
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerAllocateRequest>,
}

/// Asks the same for one container.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerAllocateRequest {
    /// The ids of its devices.
    #[prost(string, repeated, tag = "1")]
    pub devices: Vec<String>,
}

/// What containers with devices get.
#[derive(Clone, PartialEq, Message)]
pub struct AllocateResponse {
    /// The containers, in the order of the request.
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerAllocateResponse>,
}

/// The same for one container. Its mounts (2) and device nodes (3) are not used here.
#[derive(Clone, PartialEq, Message)]
pub struct ContainerAllocateResponse {
    /// Variables of its environment.
    #[prost(map = "string, string", tag = "1")]
    pub envs: HashMap<String, String>,
    /// Annotations that the engine is given, not the pod.
    #[prost(map = "string, string", tag = "4")]
    pub annotations: HashMap<String, String>,
    /// CDI devices.
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

/// A CDI device.
#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    /// Its whole name: `vendor.com/class=name`.
    #[prost(string, tag = "1")]
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes are what Kubernetes' own code makes of the same values: a field's number and kind
    /// are in the byte before it (Protocol Buffers: "Encoding").
    #[test]
    fn messages_have_kubernetes_field_numbers() {
        let register = RegisterRequest {
            version: VERSION.to_owned(),
            endpoint: "e".to_owned(),
            resource_name: "r".to_owned(),
            options: Some(DevicePluginOptions {
                pre_start_required: false,
                get_preferred_allocation_available: true,
            }),
        };
        assert_eq!(
            register.encode_to_vec(),
            b"\x0a\x07v1beta1\x12\x01e\x1a\x01r\x22\x02\x10\x01"
        );
        let devices = ListAndWatchResponse {
            devices: vec![Device {
                id: "4_12".to_owned(),
                health: HEALTHY.to_owned(),
                topology: Some(TopologyInfo {
                    nodes: vec![NumaNode { id: 1 }],
                }),
            }],
        };
        assert_eq!(
            devices.encode_to_vec(),
            b"\x0a\x15\x0a\x044_12\x12\x07Healthy\x1a\x04\x0a\x02\x08\x01"
        );
        let asked: &[u8] = b"\x0a\x0b\x0a\x01a\x0a\x01b\x12\x01b\x18\x02";
        assert_eq!(
            PreferredAllocationRequest::decode(asked).unwrap(),
            PreferredAllocationRequest {
                container_requests: vec![ContainerPreferredAllocationRequest {
                    available: vec!["a".to_owned(), "b".to_owned()],
                    must_include: vec!["b".to_owned()],
                    size: 2,
                }],
            }
        );
        let allocated = AllocateResponse {
            container_responses: vec![ContainerAllocateResponse {
                envs: HashMap::from([("K".to_owned(), "v".to_owned())]),
                annotations: HashMap::from([("a".to_owned(), "b".to_owned())]),
                cdi_devices: vec![CdiDevice {
                    name: "n".to_owned(),
                }],
            }],
        };
        assert_eq!(
            allocated.encode_to_vec(),
            b"\x0a\x15\x0a\x06\x0a\x01K\x12\x01v\x22\x06\x0a\x01a\x12\x01b\x2a\x03\x0a\x01n"
        );
        let asked: &[u8] = b"\x0a\x03\x0a\x01a";
        let asked = AllocateRequest::decode(asked).unwrap();
        assert_eq!(asked.container_requests[0].devices, ["a"]);
    }

    #[test]
    fn a_later_kubelets_fields_are_passed_over() {
        let asked: &[u8] = b"\x0a\x03\x0a\x01a\x7a\x02hi";
        assert!(AllocateRequest::decode(asked).is_ok());
        for bytes in [&b"\x0a\xff"[..], b"\xff\xff\xff", b"\x0a\x03\x0a\x01\xff"] {
            assert!(AllocateRequest::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}
