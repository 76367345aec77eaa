//! The NUMA nodes near a device.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{major, minor};

use crate::cpulist::{self, CpuSet};
use crate::device::Device;
use crate::files;
use crate::host::Host;
use crate::refusal::{OrRefuse, Refusal};
use crate::text::Shown;

/// Most layers of virtual devices that are followed: a VLAN on a bond of interfaces, a mapping on
/// an array of disks.
const MOST_LAYERS: u32 = 8;

/// The NUMA nodes near a device. For a virtual device: the nodes near the devices that it is made
/// of. Empty where the kernel tells none, as on a machine with one node.
///
/// # Errors
/// There is no such device.
pub fn nodes_near(host: &Host, device: &Device) -> Result<CpuSet> {
    let place = match device {
        Device::Pci(address) => {
            let place = host.pci_device(address);
            ensure!(
                files::metadata_if_there(&place)?.is_some(),
                Refusal::new(
                    format!("there is no PCI device {address}"),
                    "name one that `lspci -D` lists"
                )
            );
            place
        }
        Device::Name(name) => {
            let candidates = [host.network_interface(name), host.block_device(name)];
            let mut place = None;
            for candidate in candidates {
                if place.is_none() && files::metadata_if_there(&candidate)?.is_some() {
                    place = Some(candidate);
                }
            }
            place.with_context(|| {
                Refusal::new(
                    format!("there is no network interface and no block device {name}"),
                    format!(
                        "name one of those in {} and {}",
                        host.network_interface("").display(),
                        host.block_device("").display()
                    ),
                )
            })?
        }
        Device::Node(path) => {
            let (is_block, number) = device_number(host, path).or_refuse(|| {
                Refusal::new(
                    format!("there is no device node {path}"),
                    "name one that is in /dev",
                )
            })?;
            return nodes_near_number(host, is_block, major(number), minor(number));
        }
    };
    nodes_of(host, &place, 0)
}

/// The NUMA nodes near the device with these numbers, as a container's configuration names it.
/// Empty where the kernel tells none.
pub fn nodes_near_number(host: &Host, is_block: bool, major: u64, minor: u64) -> Result<CpuSet> {
    nodes_of(host, &host.device_by_number(is_block, major, minor), 0)
}

/// Whether the device at a path is a block device, and its number. A file that is not a device
/// counts as not there: others can write to directories of `/dev`, so that a link may lead
/// anywhere.
fn device_number(host: &Host, path: &str) -> Result<(bool, u64)> {
    let path = host.path(path).canonicalize()?;
    ensure!(
        path.starts_with(host.path("/dev").canonicalize()?),
        "it leads out of /dev"
    );
    let metadata = fs::metadata(&path)?;
    let is_block = metadata.file_type().is_block_device();
    ensure!(
        is_block || metadata.file_type().is_char_device(),
        "it is not a device"
    );
    Ok((is_block, metadata.rdev()))
}

/// The node of a device, or of the nearest device above it that tells one (kernel:
/// Documentation/ABI/testing/sysfs-bus-pci, `numa_node`; -1 for unknown).
fn nodes_of(host: &Host, place: &Path, layer: u32) -> Result<CpuSet> {
    let place = match place.canonicalize() {
        Err(error) if files::is_gone(&error) => return Ok(CpuSet::new()),
        other => other.with_context(|| format!("look at {}", place.display()))?,
    };
    let devices = host.sys_device("").canonicalize()?;
    for above in place
        .ancestors()
        .take_while(|above| above.starts_with(&devices))
    {
        if let Some(node) = node_in(&above.join("numa_node"))? {
            return Ok(CpuSet::from_iter([node]));
        }
    }
    let mut nodes = CpuSet::new();
    if layer < MOST_LAYERS {
        for part in parts_of(host, &place)? {
            nodes.extend(&nodes_of(host, &part, layer + 1)?);
        }
    }
    Ok(nodes)
}

/// The node that `numa_node` names; `None` where there is no such file, or where it holds -1.
///
/// # Errors
/// The file holds anything else: a request for CPUs near the device must then fail.
fn node_in(path: &Path) -> Result<Option<u32>> {
    let Some(text) = files::read_if_there(path)? else {
        return Ok(None);
    };
    match cpulist::of_kernel(&text) {
        "-1" => Ok(None),
        text => text.parse().map(Some).ok().with_context(|| {
            Refusal::new(
                format!(
                    "{} holds {}, which is not a NUMA node",
                    path.display(),
                    Shown(text)
                ),
                "drop pinfold.io/near",
            )
        }),
    }
}

/// The devices that a virtual device is made of: an interface's `lower_…`, a block device's
/// `slaves`, and the devices of the IOMMU group that a VFIO device gives access to.
fn parts_of(host: &Host, place: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut parts = Vec::new();
    for name in files::names_in(place)? {
        if name.starts_with("lower_") {
            parts.push(place.join(name));
        }
    }
    let mut directories = vec![place.join("slaves")];
    if let (Some(true), Some(group)) = (
        place.parent().map(|above| above.ends_with("vfio")),
        place.file_name(),
    ) {
        directories.push(host.iommu_groups().join(group).join("devices"));
    }
    for directory in directories {
        let names = files::names_in(&directory)?;
        parts.extend(names.into_iter().map(|name| directory.join(name)));
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::tests::{set, tree};
    use super::*;

    fn link(host: &Host, at: &str, to: &str) {
        let at = host.path(at);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(to, at).unwrap();
    }

    fn machine() -> (tempfile::TempDir, Host) {
        let (dir, host) = tree(&[
            ("sys/devices/pci0000:00/0000:00:03.0/numa_node", "1\n"),
            (
                "sys/devices/pci0000:00/0000:00:03.0/virtio0/net/eth0/mtu",
                "1500\n",
            ),
            ("sys/devices/pci0000:80/0000:80:01.0/numa_node", "-1\n"),
            ("sys/devices/pci0000:80/numa_node", "2\n"),
            (
                "sys/devices/pci0000:80/0000:80:01.0/block/sda/sda1/size",
                "1\n",
            ),
            ("sys/devices/virtual/net/bond0/mtu", "1500\n"),
            ("sys/devices/virtual/net/lo/mtu", "65536\n"),
            ("sys/devices/virtual/block/dm-0/size", "1\n"),
            ("sys/devices/virtual/vfio/7/dev", "240:0\n"),
        ]);
        link(
            &host,
            "sys/bus/pci/devices/0000:00:03.0",
            "../../../devices/pci0000:00/0000:00:03.0",
        );
        link(
            &host,
            "sys/class/net/eth0",
            "../../devices/pci0000:00/0000:00:03.0/virtio0/net/eth0",
        );
        link(
            &host,
            "sys/class/net/bond0",
            "../../devices/virtual/net/bond0",
        );
        link(&host, "sys/class/net/lo", "../../devices/virtual/net/lo");
        link(
            &host,
            "sys/devices/virtual/net/bond0/lower_eth0",
            "../../../pci0000:00/0000:00:03.0/virtio0/net/eth0",
        );
        link(&host, "sys/devices/virtual/net/bond0/lower_bond0", ".");
        link(
            &host,
            "sys/class/block/sda1",
            "../../devices/pci0000:80/0000:80:01.0/block/sda/sda1",
        );
        link(
            &host,
            "sys/class/block/dm-0",
            "../../devices/virtual/block/dm-0",
        );
        link(
            &host,
            "sys/devices/virtual/block/dm-0/slaves/sda1",
            "../../../../pci0000:80/0000:80:01.0/block/sda/sda1",
        );
        link(&host, "sys/dev/char/240:0", "../../devices/virtual/vfio/7");
        link(
            &host,
            "sys/kernel/iommu_groups/7/devices/0000:00:03.0",
            "../../../../devices/pci0000:00/0000:00:03.0",
        );
        link(
            &host,
            "sys/dev/block/8:1",
            "../../devices/pci0000:80/0000:80:01.0/block/sda/sda1",
        );
        (dir, host)
    }

    #[test]
    fn a_device_has_the_node_of_what_it_hangs_on_or_is_made_of() {
        let (_dir, host) = machine();
        for (device, nodes) in [
            ("00:03.0", "1"),
            ("eth0", "1"),
            ("bond0", "1"),
            ("lo", ""),
            ("sda1", "2"),
            ("dm-0", "2"),
        ] {
            let found = nodes_near(&host, &device.parse().unwrap()).unwrap();
            assert_eq!(found, set(nodes), "{device}");
        }
        assert_eq!(nodes_near_number(&host, false, 240, 0).unwrap(), set("1"));
        assert_eq!(nodes_near_number(&host, true, 8, 1).unwrap(), set("2"));
        assert_eq!(nodes_near_number(&host, true, 8, 9).unwrap(), set(""));
    }

    #[test]
    fn a_device_that_is_not_there_is_refused_and_links_out_of_dev_are_not_followed() {
        let (_dir, host) = machine();
        link(&host, "dev/shm/out", "/etc/passwd");
        link(&host, "dev/null-too", "/dev/null");
        fs::create_dir_all(host.path("/dev/dir")).unwrap();
        for device in [
            "0000:00:1f.0",
            "eth1",
            "/dev/sdz",
            "/dev/shm/out",
            "/dev/null-too",
            "/dev/dir",
        ] {
            let error = nodes_near(&host, &device.parse().unwrap()).unwrap_err();
            assert!(
                format!("{error:#}").contains("there is no"),
                "{device}: {error:#}"
            );
        }
    }
}
