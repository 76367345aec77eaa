//! What a container asks for, read from its annotations. Pure.

use std::collections::BTreeMap;
use std::fmt;

use crate::text::Shown;

/// What every key of ours begins with.
pub const PREFIX: &str = "pinfold.io/";

/// Where containerd's CRI plugin and CRI-O write a container's Kubernetes name.
const CONTAINER_NAME: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
];

/// Where they say whether this is a pod's sandbox or a container.
const CONTAINER_TYPE: [&str; 2] = [
    "io.kubernetes.cri.container-type",
    "io.kubernetes.cri-o.ContainerType",
];

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The pool's name, as [`is_pool_name`] allows.
    pub pool: String,
    /// How much of it.
    pub size: Size,
    /// Which NUMA nodes its memory may come from.
    pub mems: Mems,
}

/// How much of a pool is asked for; the numbers are from 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many CPU lists.
    Lists(usize),
    /// At least so many CPUs, in as many CPU lists as that takes.
    Cpus(usize),
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Lists(1) => f.write_str("1 CPU list"),
            Size::Lists(lists) => write!(f, "{lists} CPU lists"),
            Size::Cpus(1) => f.write_str("1 CPU"),
            Size::Cpus(cpus) => write!(f, "{cpus} CPUs"),
        }
    }
}

/// Which NUMA nodes a container's memory may come from (`cpuset.mems`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mems {
    /// Those of its cgroup's parent: nothing is changed.
    Inherit,
    /// Those near the CPUs it was given.
    Local,
}

impl Request {
    /// The request of a device: `dataplane` is one CPU list of that pool, `dataplane.2` are two.
    pub fn for_device(device: &str) -> Result<Request, BadRequest> {
        let (pool, lists) = device.split_once('.').unwrap_or((device, "1"));
        Ok(Request {
            pool: pool_name("--device", pool)?,
            size: Size::Lists(number("--device", lists)?),
            mems: Mems::Inherit,
        })
    }

    /// The request of a command line: so many lists of a pool, memory left alone.
    pub fn for_lists(pool: &str, lists: usize) -> Result<Request, BadRequest> {
        Ok(Request {
            pool: pool_name("--pool", pool)?,
            size: Size::Lists(lists),
            mems: Mems::Inherit,
        })
    }
}

/// Why annotations are no request: which key, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRequest(String);

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadRequest {}

/// May a pool of this name be asked for? `[A-Za-z0-9][A-Za-z0-9_-]{0,62}`, and not `none`.
pub fn is_pool_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    name != "none"
        && (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// Does a request depend on the annotation of this key?
pub fn is_ours(key: &str) -> bool {
    key.starts_with(PREFIX) || CONTAINER_NAME.contains(&key) || CONTAINER_TYPE.contains(&key)
}

/// Reads a container's request; `None` where it has none, is a pod's sandbox, or opted out.
///
/// A key `pinfold.io/KEY.CONTAINER` is for the container of that Kubernetes name and wins over the
/// pod-wide `pinfold.io/KEY`; for any other container it is not there.
pub fn from_annotations(
    annotations: &BTreeMap<String, String>,
) -> Result<Option<Request>, BadRequest> {
    let value_of = |keys: [&str; 2]| keys.iter().find_map(|key| annotations.get(*key));
    if value_of(CONTAINER_TYPE).is_some_and(|kind| kind == "sandbox") {
        return Ok(None);
    }
    let keys = Keys::of(annotations, value_of(CONTAINER_NAME).map(String::as_str))?;
    let Some((key, pool)) = keys.get("pool") else {
        return match keys.without_pool() {
            Some(key) => Err(BadRequest(format!(
                "annotation {} goes with no pool: add {PREFIX}pool",
                Shown(key)
            ))),
            None => Ok(None),
        };
    };
    if pool == "none" {
        return Ok(None);
    }
    let size = match (keys.get("lists"), keys.get("cpus")) {
        (Some((lists, _)), Some((cpus, _))) => {
            return Err(BadRequest(format!(
                "annotations {} and {} exclude each other: drop one",
                Shown(lists),
                Shown(cpus)
            )));
        }
        (Some((key, value)), None) => Size::Lists(number(key, value)?),
        (None, Some((key, value))) => Size::Cpus(number(key, value)?),
        (None, None) => Size::Lists(1),
    };
    let mems = match keys.get("mems") {
        None | Some((_, "inherit")) => Mems::Inherit,
        Some((_, "local")) => Mems::Local,
        Some((key, value)) => return Err(bad_value(key, value, "local or inherit")),
    };
    Ok(Some(Request {
        pool: pool_name(key, pool)?,
        size,
        mems,
    }))
}

/// One of our annotations, as one container sees it.
struct Entry<'a> {
    key: &'a str,
    value: &'a str,
    /// Does the key name this container, or is it pod-wide?
    names_container: bool,
}

/// Our annotations as one container sees them.
struct Keys<'a> {
    /// By short key (`pool`), the container's own winning.
    effective: BTreeMap<&'a str, Entry<'a>>,
    /// Does any container of the pod name a pool of its own?
    some_container_has_a_pool: bool,
}

impl<'a> Keys<'a> {
    fn of(
        annotations: &'a BTreeMap<String, String>,
        container: Option<&str>,
    ) -> Result<Keys<'a>, BadRequest> {
        let mut keys = Keys {
            effective: BTreeMap::new(),
            some_container_has_a_pool: false,
        };
        let ours = annotations.iter().filter_map(|(key, value)| {
            let short = key.strip_prefix(PREFIX)?;
            Some((key.as_str(), short, value.as_str()))
        });
        // A pod-wide key sorts before the same key with a container's name, which then replaces it.
        for (key, short, value) in ours {
            let (short, named) = match short.split_once('.') {
                Some((short, name)) => (short, Some(name)),
                None => (short, None),
            };
            if named == Some("") {
                return Err(BadRequest(format!(
                    "annotation {} ends in a dot: write the container's name behind it, or drop it",
                    Shown(key)
                )));
            }
            if !["pool", "lists", "cpus", "mems"].contains(&short) {
                return Err(BadRequest(format!(
                    "unknown annotation {}: {PREFIX} has the keys pool, lists, cpus and mems",
                    Shown(key)
                )));
            }
            keys.some_container_has_a_pool |= short == "pool" && named.is_some();
            if named.is_none() || named == container {
                let names_container = named.is_some();
                let entry = Entry {
                    key,
                    value,
                    names_container,
                };
                keys.effective.insert(short, entry);
            }
        }
        Ok(keys)
    }

    fn get(&self, short: &str) -> Option<(&'a str, &'a str)> {
        self.effective
            .get(short)
            .map(|entry| (entry.key, entry.value))
    }

    /// A key of this container that no pool goes with. Beside pools of single containers a pod-wide
    /// key may be meant for those: it asks nothing of a container that has none.
    fn without_pool(&self) -> Option<&'a str> {
        let mut entries = self.effective.values();
        let orphan = entries.find(|entry| entry.names_container || !self.some_container_has_a_pool);
        orphan.map(|entry| entry.key)
    }
}

fn pool_name(key: &str, value: &str) -> Result<String, BadRequest> {
    if is_pool_name(value) {
        Ok(value.to_owned())
    } else {
        Err(bad_value(
            key,
            value,
            "a pool's name: up to 63 letters, digits, - and _, beginning with a letter or digit",
        ))
    }
}

fn number(key: &str, value: &str) -> Result<usize, BadRequest> {
    let digits = value.bytes().all(|b| b.is_ascii_digit()) && !value.starts_with('0');
    match value.parse() {
        Ok(number) if digits && value.len() <= 4 => Ok(number),
        _ => Err(bad_value(key, value, "a number from 1 to 9999")),
    }
}

fn bad_value(key: &str, value: &str, wanted: &str) -> BadRequest {
    BadRequest(format!(
        "{} is {}: it must be {wanted}",
        Shown(key),
        Shown(value)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `key=value` words; a key without a domain is one of ours.
    fn annotations(words: &str) -> BTreeMap<String, String> {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').unwrap();
            let prefix = if key.starts_with("io.") { "" } else { PREFIX };
            (format!("{prefix}{key}"), value.to_owned())
        };
        words.split_whitespace().map(pair).collect()
    }

    fn request(pool: &str, size: Size, mems: Mems) -> Option<Request> {
        let pool = pool.to_owned();
        Some(Request { pool, size, mems })
    }

    #[test]
    fn requests_that_are_met() {
        use Mems::{Inherit, Local};
        use Size::{Cpus, Lists};
        const WEB: &str = "io.kubernetes.cri.container-name=web";
        for (words, expected) in [
            ("", None),
            ("io.kubernetes.cri.container-name=web", None),
            ("pool=dp", request("dp", Lists(1), Inherit)),
            (
                "pool=dp lists=9999 mems=local",
                request("dp", Lists(9999), Local),
            ),
            (
                "pool=dp cpus=3 mems=inherit",
                request("dp", Cpus(3), Inherit),
            ),
            ("pool=none lists=2", None),
            ("pool=dp io.kubernetes.cri.container-type=sandbox", None),
            ("nonsense=1 io.kubernetes.cri-o.ContainerType=sandbox", None),
            (
                "pool=dp io.kubernetes.cri.container-type=container",
                request("dp", Lists(1), Inherit),
            ),
            (
                &format!("pool=dp pool.web=fast {WEB}"),
                request("fast", Lists(1), Inherit),
            ),
            (
                "pool=dp pool.web=fast io.kubernetes.container.name=web",
                request("fast", Lists(1), Inherit),
            ),
            (&format!("pool=dp pool.web=none {WEB}"), None),
            (
                &format!("pool=dp pool.db=fast {WEB}"),
                request("dp", Lists(1), Inherit),
            ),
            (&format!("pool.db=fast {WEB}"), None),
            (&format!("pool.db=fast lists=2 {WEB}"), None),
            ("pool.web=fast lists.web=2", None),
            (
                &format!("pool=dp lists=1 lists.web=2 lists.db=x {WEB}"),
                request("dp", Lists(2), Inherit),
            ),
            (
                "pool.a.b=fast io.kubernetes.container.name=a.b",
                request("fast", Lists(1), Inherit),
            ),
        ] {
            assert_eq!(
                from_annotations(&annotations(words)),
                Ok(expected),
                "{words}"
            );
        }
    }

    #[test]
    fn bad_requests_name_the_key() {
        for (words, part) in [
            ("poool=dp", "pinfold.io/poool"),
            ("pool=dp color.web=red", "pinfold.io/color.web"),
            ("=dp", "\"pinfold.io/\""),
            ("pool=", "pinfold.io/pool"),
            ("pool.=dp", "ends in a dot"),
            ("pool=../etc", "pinfold.io/pool"),
            ("pool=-dp", "pinfold.io/pool"),
            ("pool=dp lists=0", "pinfold.io/lists"),
            ("pool=dp lists=01", "pinfold.io/lists"),
            ("pool=dp lists=+1", "pinfold.io/lists"),
            ("pool=dp lists=10000", "pinfold.io/lists"),
            ("pool=dp lists=", "pinfold.io/lists"),
            ("pool=dp cpus=-1", "pinfold.io/cpus"),
            ("pool=dp mems=0", "local or inherit"),
            ("pool=dp lists=1 cpus=1", "drop one"),
            ("lists=1", "pinfold.io/pool"),
            ("mems=local", "pinfold.io/pool"),
            (
                "pool.db=dp lists.web=2 io.kubernetes.container.name=web",
                "pinfold.io/lists.web",
            ),
        ] {
            let error = from_annotations(&annotations(words))
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{words}: {error}");
        }
    }

    #[test]
    fn devices_are_a_pool_and_a_number_of_lists() {
        for (device, expected) in [
            ("dp", Some(("dp", 1))),
            ("dp.2", Some(("dp", 2))),
            ("dp.0", None),
            ("dp.", None),
            ("dp.2.3", None),
            ("dp.99999", None),
            (".2", None),
            ("none", None),
            ("a/b", None),
        ] {
            let request = Request::for_device(device).ok();
            let expected = expected.map(|(pool, lists)| Request::for_lists(pool, lists).unwrap());
            assert_eq!(request, expected, "{device}");
        }
    }

    #[test]
    fn pool_names() {
        for name in ["a", "dataplane", "DP_1-x", "0", &"x".repeat(63)] {
            assert!(is_pool_name(name), "{name}");
        }
        for name in [
            "",
            "none",
            "_a",
            "-",
            ".",
            "a.b",
            "a/b",
            "é",
            &"x".repeat(64),
        ] {
            assert!(!is_pool_name(name), "{name}");
        }
    }
}
