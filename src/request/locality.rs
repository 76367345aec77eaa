//! Where on the machine the requested CPUs should be. Pure.

use super::bad_value;
use crate::cpulist::CpuSet;
use crate::device::{BadDevice, Device};
use crate::refusal::Refusal;
use crate::text::Shown;

/// Where on the machine CPUs should be; by default, wherever they fit best.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locality {
    /// The NUMA nodes to take CPUs from.
    pub numa: Numa,
    /// Are CPUs under one last-level cache required?
    pub one_cache: bool,
    /// The device to be near, if that takes no more nodes.
    pub near: Option<Device>,
    /// The NUMA nodes of the devices in the container's configuration, which the shim reads:
    /// preferred to others.
    pub rather_near: CpuSet,
}

/// Which NUMA nodes to take CPUs from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Numa {
    /// As few as possible.
    #[default]
    Best,
    /// One; otherwise refused.
    Single,
    /// As many CPUs from each of two or more, if possible.
    Spread,
    /// The node of this number; otherwise refused.
    Node(u32),
}

impl Locality {
    /// Parses the values of `numa`, `cache` and `near`; `get` returns a value and the key that
    /// errors name.
    pub(super) fn parse<'a>(
        get: impl Fn(&str) -> Option<(&'a str, &'a str)>,
    ) -> Result<Locality, Refusal> {
        let numa = match get("numa") {
            None => Numa::Best,
            Some((key, value)) => parse_numa(value).ok_or_else(|| {
                bad_value(
                    key,
                    value,
                    "best, single, spread or the number of a NUMA node",
                )
            })?,
        };
        let one_cache = match get("cache") {
            None | Some((_, "any")) => false,
            Some((_, "single")) => true,
            Some((key, value)) => return Err(bad_value(key, value, "single or any")),
        };
        if let (Numa::Spread, true, Some((numa, _)), Some((cache, _))) =
            (numa, one_cache, get("numa"), get("cache"))
        {
            return Err(Refusal::new(
                format!(
                    "{} spread and {} single exclude each other",
                    Shown(numa),
                    Shown(cache)
                ),
                "drop one",
            ));
        }
        let near = match get("near") {
            None => None,
            Some((key, value)) => {
                let device = value.parse().map_err(|error: BadDevice| {
                    Refusal::new(
                        format!("{}: {error}", Shown(key)),
                        format!("it must be {}", BadDevice::WANTED),
                    )
                })?;
                Some(device)
            }
        };
        Ok(Locality {
            numa,
            one_cache,
            near,
            rather_near: CpuSet::new(),
        })
    }
}

/// `best`, `single`, `spread`, or the number of a node: at most four digits, without a leading
/// zero.
fn parse_numa(value: &str) -> Option<Numa> {
    match value {
        "best" => Some(Numa::Best),
        "single" => Some(Numa::Single),
        "spread" => Some(Numa::Spread),
        number => {
            let is_number = (1..=4).contains(&number.len())
                && number.bytes().all(|b| b.is_ascii_digit())
                && (number == "0" || !number.starts_with('0'));
            is_number
                .then(|| number.parse().ok().map(Numa::Node))
                .flatten()
        }
    }
}
