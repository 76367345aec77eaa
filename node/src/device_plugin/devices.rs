//! Pure: CPU lists as the kubelet's devices, and what a container with some of them gets.

use std::collections::HashMap;

use pinfold::cpulist::CpuSet;
use pinfold::placement::{DevicePool, ListDevice, ListDevices};
use pinfold::refusal::Refusal;

use crate::cdi::Known;

use super::api::{
    CdiDevice, ContainerAllocateResponse, Device, HEALTHY, NumaNode, TopologyInfo, UNHEALTHY,
};

/// The domain of our resources.
const DOMAIN: &str = "pinfold.io";
/// The kind of the CDI devices of single lists.
const LIST_KIND: &str = "pinfold.io/list";
/// The annotation in which an engine looks for CDI devices (CDI: SPEC.md, "Annotations"; its key
/// may end as its writer likes). A kubelet before 1.29 does not pass on the devices by themselves,
/// and the container would have no CPUs of its own, unnoticed; engines that are told twice apply
/// a device once (containerd: `WithCDI`).
const ANNOTATION: &str = "cdi.k8s.io/pinfold_list";

/// The name of a pool's resource; `None` where Kubernetes allows no such name (labels of a
/// qualified name begin and end with a letter or a digit).
pub fn resource_name(pool: &str) -> Option<String> {
    let is_edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let bytes = pool.as_bytes();
    let is_name = bytes.len() <= 63
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && bytes.iter().all(is_inner);
    is_name.then(|| format!("{DOMAIN}/{pool}"))
}

/// The devices of a pool, and why some of its lists are none. `cdi` are those that engines find.
pub fn devices(books: &ListDevices, pool: &DevicePool, cdi: &Known) -> (Vec<Device>, Vec<Refusal>) {
    let mut devices = Vec::new();
    let mut left_out = Vec::new();
    for list in &pool.lists {
        let can_be_given = list.offline.is_empty()
            && cdi.ensure_has(list).is_ok()
            && books.stranger_on(list).is_none();
        match list.exact.device_id() {
            Ok(id) => devices.push(device(id, list, can_be_given)),
            Err(refusal) => left_out.push(refusal),
        }
    }
    (devices, left_out)
}

/// Why a pool cannot be a resource; `None` if it can.
pub fn not_a_resource(pool: &str) -> Option<Refusal> {
    let no = || {
        Refusal::new(
            format!("pool {pool} is no resource: Kubernetes allows no {DOMAIN}/{pool}"),
            "give it a name that ends with a letter or a digit",
        )
    };
    resource_name(pool).is_none().then(no)
}

fn device(id: String, list: &ListDevice, can_be_given: bool) -> Device {
    let nodes = list.nodes.iter();
    let nodes: Vec<NumaNode> = nodes.map(|node| NumaNode { id: node.into() }).collect();
    Device {
        id,
        health: if can_be_given { HEALTHY } else { UNHEALTHY }.to_owned(),
        topology: (!nodes.is_empty()).then_some(TopologyInfo { nodes }),
    }
}

/// What a container with these lists gets; they are in the order of their first CPU.
///
/// # Errors
/// A list is too long to be a device.
pub fn allocation(lists: &[&ListDevice]) -> Result<ContainerAllocateResponse, Refusal> {
    let names = lists.iter().map(|list| {
        let name = list.exact.device_name()?;
        Ok(format!("{LIST_KIND}={name}"))
    });
    let names: Vec<String> = names.collect::<Result<_, Refusal>>()?;
    let assigned: Vec<&str> = lists.iter().map(|list| list.name.as_str()).collect();
    let cpus: CpuSet = lists.iter().map(|list| &list.exact.cpus).collect();
    Ok(ContainerAllocateResponse {
        envs: HashMap::from([
            ("KCM_CPUS_ASSIGNED".to_owned(), assigned.join(",")),
            ("KCM_CPUS_ASSIGNED_MASK".to_owned(), cpus.to_hex_mask()),
        ]),
        annotations: HashMap::from([(ANNOTATION.to_owned(), names.join(","))]),
        cdi_devices: names.into_iter().map(|name| CdiDevice { name }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold::placement::ListState;
    use pinfold::request::ExactList;

    fn list(cpus: &str, nodes: &str) -> ListDevice {
        ListDevice {
            exact: ExactList {
                pool: "dataplane".to_owned(),
                cpus: cpus.parse().unwrap(),
            },
            name: cpus.to_owned(),
            nodes: nodes.parse().unwrap(),
            offline: CpuSet::new(),
            state: ListState::Free,
        }
    }

    #[test]
    fn which_pools_are_resources() {
        let longest = "x".repeat(63);
        for pool in ["dataplane", "0", "a-b_c.d", &longest] {
            assert_eq!(resource_name(pool), Some(format!("pinfold.io/{pool}")));
        }
        for pool in [
            "",
            "a-",
            "a_",
            "-a",
            ".a",
            "a b",
            "a/b",
            "ü",
            &"x".repeat(64),
        ] {
            assert_eq!(resource_name(pool), None, "{pool}");
        }
    }

    #[test]
    fn a_device_says_where_it_lies_and_whether_it_can_be_given() {
        let near = device("4_12".to_owned(), &list("4,12", "1"), true);
        let nodes = vec![NumaNode { id: 1 }];
        assert_eq!(near.topology, Some(TopologyInfo { nodes }));
        assert_eq!(near.health, HEALTHY);
        let untold = device("4_12".to_owned(), &list("4,12", ""), false);
        assert_eq!((untold.topology, untold.health.as_str()), (None, UNHEALTHY));
    }

    #[test]
    fn a_container_gets_its_lists_as_cdi_devices_and_in_its_environment() {
        let lists = [list("1,9", "0"), list("4-5,12-13", "1")];
        let allocated = allocation(&[&lists[0], &lists[1]]).unwrap();
        let names: Vec<&str> = allocated
            .cdi_devices
            .iter()
            .map(|one| one.name.as_str())
            .collect();
        let expected = [
            "pinfold.io/list=dataplane.1_9",
            "pinfold.io/list=dataplane.4-5_12-13",
        ];
        assert_eq!(names, expected);
        assert_eq!(allocated.annotations[ANNOTATION], expected.join(","));
        assert_eq!(allocated.envs["KCM_CPUS_ASSIGNED"], "1,9,4-5,12-13");
        assert_eq!(allocated.envs["KCM_CPUS_ASSIGNED_MASK"], "3232");
        assert_eq!(allocated.envs.len(), 2);
    }
}
