//! Where on the machine CPUs are asked for. Pure.

use super::bad_value;
use crate::cpulist::CpuSet;
use crate::device::{BadDevice, Device};
use crate::refusal::Refusal;
use crate::text::Shown;

/// Where on the machine: wherever it fits best, if not said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Locality {
    /// On which NUMA nodes.
    pub numa: Numa,
    /// Under one last-level cache, or not at all.
    pub one_cache: bool,
    /// Near this device, if that takes no more nodes.
    pub near: Option<Device>,
    /// The NUMA nodes of the devices in its configuration, which the shim sees: better those than others.
    pub rather_near: CpuSet,
}

/// On which NUMA nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Numa {
    /// On as few as it can be.
    #[default]
    Best,
    /// On one, or not at all.
    Single,
    /// The same from each of two or more, where it can be.
    Spread,
    /// On the one of this number, or not at all.
    Node(u32),
}

impl Locality {
    /// Reads the values of `numa`, `cache` and `near`, each with the key that an error names.
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

/// `best`, `single`, `spread`, or the number of a node: at most four digits, without a leading zero.
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
