//! Pure: the name of a device, for a request for CPUs near it.

use std::fmt;
use std::str::FromStr;

use crate::text::Shown;

/// Longest path below `/dev` that is accepted, in bytes.
const LONGEST_PATH: usize = 255;

/// Longest name, in bytes: a block device's (kernel: `DISK_NAME_LEN`); an interface's is shorter.
const LONGEST_NAME: usize = 31;

/// A device by one of its names. No name can lead out of the directory that it is looked up in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// A PCI address with its domain, in lower case: `0000:3b:00.0`.
    Pci(String),
    /// A path below `/dev`.
    Node(String),
    /// The name of a network interface or a block device.
    Name(String),
}

/// Why a text names no device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadDevice(String);

impl BadDevice {
    /// The names that are accepted, for messages.
    pub const WANTED: &str = "a PCI address (0000:3b:00.0), a network interface (eth0), \
        a block device (nvme0n1) or a path below /dev";
}

impl fmt::Display for BadDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names no device", Shown(&self.0))
    }
}

impl std::error::Error for BadDevice {}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Device::Pci(name) | Device::Node(name) | Device::Name(name)) = self;
        f.write_str(name)
    }
}

impl FromStr for Device {
    type Err = BadDevice;

    fn from_str(text: &str) -> Result<Device, BadDevice> {
        if let Some(path) = text.strip_prefix("/dev/") {
            let is_plain = path
                .split('/')
                .all(|part| is_made_of(part, b"._:+@=,-") && part != "." && part != "..");
            if is_plain && text.len() <= LONGEST_PATH {
                return Ok(Device::Node(text.to_owned()));
            }
        } else if let Some(address) = pci_address(text) {
            return Ok(Device::Pci(address));
        } else if text.len() <= LONGEST_NAME
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && is_made_of(text, b"._-")
        {
            return Ok(Device::Name(text.to_owned()));
        }
        Err(BadDevice(text.to_owned()))
    }
}

/// Is the text one or more letters, digits or bytes of `others`?
fn is_made_of(text: &str, others: &[u8]) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

/// Parses `[DOMAIN:]BUS:DEVICE.FUNCTION`, in hexadecimal as sysfs writes it.
fn pci_address(text: &str) -> Option<String> {
    let is_hex = |part: &str, lengths: std::ops::RangeInclusive<usize>| {
        lengths.contains(&part.len()) && part.bytes().all(|b| b.is_ascii_hexdigit())
    };
    let (rest, function) = text.rsplit_once('.')?;
    let (rest, device) = rest.rsplit_once(':')?;
    let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0000", rest));
    let is_address = is_hex(domain, 4..=8)
        && is_hex(bus, 2..=2)
        && is_hex(device, 2..=2)
        && is_hex(function, 1..=1);
    is_address.then(|| format!("{domain}:{bus}:{device}.{function}").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_and_what_is_none() {
        use Device::{Name, Node, Pci};
        for (text, device) in [
            ("0000:3b:00.0", Pci("0000:3b:00.0".into())),
            ("3B:00.1", Pci("0000:3b:00.1".into())),
            ("10000:e1:00.0", Pci("10000:e1:00.0".into())),
            ("eth0", Name("eth0".into())),
            ("enp59s0f0.100", Name("enp59s0f0.100".into())),
            ("nvme0n1", Name("nvme0n1".into())),
            ("/dev/nvme0n1", Node("/dev/nvme0n1".into())),
            (
                "/dev/disk/by-path/pci-0000:00:1f.2-ata-1",
                Node("/dev/disk/by-path/pci-0000:00:1f.2-ata-1".into()),
            ),
        ] {
            assert_eq!(text.parse(), Ok(device), "{text}");
        }
        for text in [
            "",
            ".",
            "..",
            "../net",
            "a/b",
            "/etc/passwd",
            "/dev/",
            "/dev/../etc/passwd",
            "/dev/./sda",
            "/dev//sda",
            "/dev",
            "dev/sda",
            "3b:00",
            "0000:3b:00.00",
            "000:3b:00.0",
            "g0:00.0",
            "-eth0",
            ".eth0",
            "eth0 ",
            "eth0\n",
            "eth0:1",
            "/dev/a b",
            "/dev/\u{1b}",
            "é",
            &"x".repeat(32),
            &format!("/dev/{}", "x".repeat(251)),
        ] {
            let error = text.parse::<Device>().unwrap_err().to_string();
            assert!(
                error.contains("names no device") && !error.contains('\n'),
                "{error}"
            );
        }
    }
}
