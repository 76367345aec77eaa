//! A container's request, read from its annotations. Pure.

mod exact;
mod locality;
mod near_miss;

use std::collections::BTreeMap;
use std::fmt;

pub use exact::{ExactList, LONGEST_ID};
pub use locality::{Locality, Numa};
pub use near_miss::meant;

use crate::cpulist::CpuSet;
use crate::engines::Engine;
use crate::refusal::{Reason, Refusal};
use crate::text::Shown;

/// The beginning of every key of ours.
pub const PREFIX: &str = "pinfold.io/";
/// Occurs in every text that contains a key of ours; some runtimes escape the `/` after it as `\/`.
pub const DOMAIN: &str = "pinfold.io";

/// The annotations in which containerd's CRI plugin and CRI-O give a container's Kubernetes name.
const CONTAINER_NAME: [&str; 2] = [
    "io.kubernetes.cri.container-name",
    "io.kubernetes.container.name",
];

/// The annotations in which they tell a pod's sandbox from a container.
const CONTAINER_TYPE: [&str; 2] = [CONTAINERD_TYPE, CRIO_TYPE];
const CONTAINERD_TYPE: &str = "io.kubernetes.cri.container-type";
const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";

/// The annotation in which containerd gives a pod's namespace. Where annotations are passed on, a
/// pod's author can write another engine's: only the one of the engine that runs the hook counts.
pub const CONTAINERD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
/// The annotation in which CRI-O gives a pod's namespace.
pub const CRIO_NAMESPACE: &str = "io.kubernetes.pod.namespace";

/// What a container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The pool's name, as [`is_pool_name`] allows.
    pub pool: String,
    /// The CPUs of the list that it has to be; `None` for any lists.
    pub exact: Option<CpuSet>,
    /// How much of the pool.
    pub size: Size,
    /// Where on the machine.
    pub locality: Locality,
    /// Which NUMA nodes its memory may come from.
    pub mems: Mems,
    /// Options of the pool that it chooses itself, by key. Who knows what the pool allows checks
    /// their values.
    pub tuning: BTreeMap<&'static str, String>,
    /// Did nobody ask, so that it is the configuration's default?
    pub by_default: bool,
}

/// What the annotations of a container without a request say of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Nothing.
    Plain,
    /// It is a pod's sandbox, which holds no program of anybody's.
    Sandbox,
    /// It wants none: `pinfold.io/pool` is `none`.
    OptOut,
}

/// The keys behind [`PREFIX`].
const KEYS: [&str; 11] = [
    "pool", "lists", "cpus", "numa", "cache", "near", "mems", TUNING[0], TUNING[1], TUNING[2],
    TUNING[3],
];

/// Those that are options of a pool, which it may let a container choose.
pub const TUNING: [&str; 4] = ["irqs", "quota", "governor", "resume-latency"];

/// How much of a pool is requested; the numbers are from 1 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// This many CPU lists.
    Lists(usize),
    /// At least this many CPUs, in whole CPU lists.
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
    /// The nodes of its cgroup's parent: nothing is written.
    Inherit,
    /// The nodes of the CPUs that it was given.
    Local,
}

/// A request on a command line; texts have the same form as in annotations.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asked<'a> {
    /// The pool's name.
    pub pool: &'a str,
    /// How many lists; 1 if neither `lists` nor `cpus` is given.
    pub lists: Option<u16>,
    /// How many CPUs, instead of lists.
    pub cpus: Option<u16>,
    /// `best` if not given.
    pub numa: Option<&'a str>,
    /// Any cache if not given.
    pub cache: Option<&'a str>,
    /// The device to be near.
    pub near: Option<&'a str>,
    /// Inherited if not given.
    pub mems: Option<&'a str>,
}

/// Combines the requests of a container's annotations and of a device that is one CPU list. Its
/// annotations may name the same pool, and nothing more.
///
/// # Errors
/// The device is none of ours, or the annotations ask for something else.
pub fn with_list(
    annotated: Option<Request>,
    list: Option<&str>,
) -> Result<Option<Request>, Refusal> {
    let Some(list) = list else {
        return Ok(annotated);
    };
    let exact = ExactList::parse(list)?;
    if let Some(annotated) = annotated {
        if annotated.pool != exact.pool || !annotated.is_plain() {
            return Err(Refusal::new(
                format!(
                    "its annotations ask for {} of pool {} in their own way, and its device for \
                     the CPU list {} of pool {}",
                    annotated.size, annotated.pool, exact.cpus, exact.pool
                ),
                "ask once",
            ));
        }
    }
    Ok(Some(Request::of_list(exact)))
}

/// Combines the requests of a container's annotations and of its CDI device. Both must ask for the
/// same pool and size; the annotations may say more.
///
/// # Errors
/// The device is none of ours, or asks for something else than the annotations.
pub fn with_device(
    annotated: Option<Request>,
    device: Option<&str>,
) -> Result<Option<Request>, Refusal> {
    let Some(device) = device else {
        return Ok(annotated);
    };
    let of_device = Request::for_device(device)
        .map_err(|refusal| Refusal::usage(refusal.what, refusal.remedy))?;
    let Some(annotated) = annotated else {
        return Ok(Some(of_device));
    };
    if (&annotated.pool, annotated.size) != (&of_device.pool, of_device.size) {
        return Err(Refusal::new(
            format!(
                "its annotations ask for {} of pool {}, and its device for {} of pool {}",
                annotated.size, annotated.pool, of_device.size, of_device.pool
            ),
            "ask once",
        ));
    }
    Ok(Some(annotated))
}

impl Request {
    /// The request of a CDI device: `dataplane` asks for one CPU list of that pool, `dataplane.2`
    /// for two.
    pub fn for_device(device: &str) -> Result<Request, Refusal> {
        let (pool, lists) = device.split_once('.').unwrap_or((device, "1"));
        let plain = Request::plain(pool_name("--device", pool)?);
        Ok(Request {
            size: Size::Lists(number("--device", lists)?),
            ..plain
        })
    }

    /// The request of a device that is one CPU list.
    fn of_list(exact: ExactList) -> Request {
        Request {
            exact: Some(exact.cpus),
            ..Request::plain(exact.pool)
        }
    }

    fn plain(pool: String) -> Request {
        Request {
            pool,
            exact: None,
            size: Size::Lists(1),
            locality: Locality::default(),
            mems: Mems::Inherit,
            tuning: BTreeMap::new(),
            by_default: false,
        }
    }

    /// Does it ask for one list of its pool, and nothing else?
    pub fn is_plain(&self) -> bool {
        *self == Request::plain(self.pool.clone())
    }

    /// The request of a container that asks for nothing, where the configuration has a default pool
    /// of this name.
    pub fn by_default(pool: &str) -> Request {
        Request {
            by_default: true,
            ..Request::plain(pool.to_owned())
        }
    }

    /// The request of a command line.
    pub fn asked(asked: &Asked<'_>) -> Result<Request, Refusal> {
        let size = match (asked.lists, asked.cpus) {
            (Some(_), Some(_)) => {
                return Err(Refusal::new(
                    "--lists and --cpus exclude each other",
                    "drop one",
                ));
            }
            (None, Some(cpus)) => Size::Cpus(cpus.into()),
            (lists, None) => Size::Lists(lists.unwrap_or(1).into()),
        };
        let locality = Locality::parse(|key| match key {
            "numa" => asked.numa.map(|value| ("--numa", value)),
            "cache" => asked.cache.map(|value| ("--cache", value)),
            _ => asked.near.map(|value| ("--near", value)),
        })?;
        Ok(Request {
            pool: pool_name("--pool", asked.pool)?,
            exact: None,
            size,
            locality,
            mems: parse_mems(asked.mems.map(|value| ("--mems", value)))?,
            tuning: BTreeMap::new(),
            by_default: false,
        })
    }
}

/// Can a pool have this name? `[A-Za-z0-9][A-Za-z0-9_-]{0,62}`, and not `none`.
pub fn is_pool_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    name != "none"
        && (1..=63).contains(&name.len())
        && name.bytes().all(allowed)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

/// Does a request depend on the annotation with this key?
pub fn is_ours(key: &str) -> bool {
    key.starts_with(PREFIX) || CONTAINER_NAME.contains(&key) || CONTAINER_TYPE.contains(&key)
}

/// Reads a container's request; `None` if it has none, is a pod's sandbox, or opted out.
///
/// A key `pinfold.io/KEY.CONTAINER` overrides the pod-wide `pinfold.io/KEY` for the container of
/// that Kubernetes name; other containers ignore it.
pub fn from_annotations(
    annotations: &BTreeMap<String, String>,
) -> Result<Option<Request>, Refusal> {
    read(annotations).map_err(|refusal| refusal.because(Reason::Request))
}

/// What these annotations say where they have no request. Where they cannot be understood, they say
/// nothing: [`from_annotations`] refuses them. An image can carry any annotation, and podman copies
/// it into the container: a sandbox has the mark of `engine`, which runs it, and sets that itself.
pub fn silence(annotations: &BTreeMap<String, String>, engine: Option<Engine>) -> Silence {
    let mark = match engine {
        Some(Engine::Containerd) => annotations.get(CONTAINERD_TYPE),
        Some(Engine::Crio) => annotations.get(CRIO_TYPE),
        Some(Engine::Podman | Engine::Docker) | None => None,
    };
    if mark.is_some_and(|mark| mark == "sandbox") {
        return Silence::Sandbox;
    }
    let keys = Keys::of(annotations, name_in(annotations));
    match keys.ok().and_then(|keys| keys.get("pool")) {
        Some((_, "none")) => Silence::OptOut,
        _ => Silence::Plain,
    }
}

fn value_of<'a>(annotations: &'a BTreeMap<String, String>, keys: [&str; 2]) -> Option<&'a str> {
    let value = keys.iter().find_map(|key| annotations.get(*key));
    value.map(String::as_str)
}

fn is_sandbox(annotations: &BTreeMap<String, String>) -> bool {
    value_of(annotations, CONTAINER_TYPE) == Some("sandbox")
}

/// The container's Kubernetes name.
fn name_in(annotations: &BTreeMap<String, String>) -> Option<&str> {
    value_of(annotations, CONTAINER_NAME)
}

fn read(annotations: &BTreeMap<String, String>) -> Result<Option<Request>, Refusal> {
    if is_sandbox(annotations) {
        return Ok(None);
    }
    let keys = Keys::of(annotations, name_in(annotations))?;
    let Some((key, pool)) = keys.get("pool") else {
        return match keys.without_pool() {
            Some(key) => Err(Refusal::new(
                format!("annotation {} goes with no pool", Shown(key)),
                format!("add {PREFIX}pool"),
            )),
            None => Ok(None),
        };
    };
    if pool == "none" {
        return Ok(None);
    }
    let size = match (keys.get("lists"), keys.get("cpus")) {
        (Some((lists, _)), Some((cpus, _))) => {
            return Err(Refusal::new(
                format!(
                    "annotations {} and {} exclude each other",
                    Shown(lists),
                    Shown(cpus)
                ),
                "drop one",
            ));
        }
        (Some((key, value)), None) => Size::Lists(number(key, value)?),
        (None, Some((key, value))) => Size::Cpus(number(key, value)?),
        (None, None) => Size::Lists(1),
    };
    Ok(Some(Request {
        pool: pool_name(key, pool)?,
        exact: None,
        size,
        locality: Locality::parse(|key| keys.get(key))?,
        mems: parse_mems(keys.get("mems"))?,
        tuning: keys.tuning(),
        by_default: false,
    }))
}

fn parse_mems(given: Option<(&str, &str)>) -> Result<Mems, Refusal> {
    match given {
        None | Some((_, "inherit")) => Ok(Mems::Inherit),
        Some((_, "local")) => Ok(Mems::Local),
        Some((key, value)) => Err(bad_value(key, value, "local or inherit")),
    }
}

/// One of our annotations, as one container sees it.
struct Annotation<'a> {
    key: &'a str,
    value: &'a str,
    /// Does the key name this container, or is it pod-wide?
    names_container: bool,
}

/// Our annotations as one container sees them.
struct Keys<'a> {
    /// By short key (`pool`), the container's own winning.
    effective: BTreeMap<&'a str, Annotation<'a>>,
    /// Does any container of the pod name a pool of its own?
    some_container_has_a_pool: bool,
}

impl<'a> Keys<'a> {
    fn of(
        annotations: &'a BTreeMap<String, String>,
        container: Option<&str>,
    ) -> Result<Keys<'a>, Refusal> {
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
                return Err(Refusal::new(
                    format!("annotation {} ends in a dot", Shown(key)),
                    "write the container's name behind it, or drop it",
                ));
            }
            if !KEYS.contains(&short) {
                return Err(Refusal::new(
                    format!("unknown annotation {}", Shown(key)),
                    format!("{PREFIX} has the keys {}", KEYS.join(", ")),
                ));
            }
            keys.some_container_has_a_pool |= short == "pool" && named.is_some();
            if named.is_none() || named == container {
                let names_container = named.is_some();
                let entry = Annotation {
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

    fn tuning(&self) -> BTreeMap<&'static str, String> {
        let given = TUNING.into_iter();
        let given = given.filter_map(|key| Some((key, self.get(key)?.1.to_owned())));
        given.collect()
    }

    /// A key of this container without a pool. If single containers of the pod have pools, a
    /// pod-wide key may be meant for them: it asks nothing of a container without a pool.
    fn without_pool(&self) -> Option<&'a str> {
        let mut entries = self.effective.values();
        let orphan = entries.find(|entry| entry.names_container || !self.some_container_has_a_pool);
        orphan.map(|entry| entry.key)
    }
}

fn pool_name(key: &str, value: &str) -> Result<String, Refusal> {
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

fn number(key: &str, value: &str) -> Result<usize, Refusal> {
    let digits = value.bytes().all(|b| b.is_ascii_digit()) && !value.starts_with('0');
    match value.parse() {
        Ok(number) if digits && value.len() <= 4 => Ok(number),
        _ => Err(bad_value(key, value, "a number from 1 to 9999")),
    }
}

fn bad_value(key: &str, value: &str, wanted: &str) -> Refusal {
    Refusal::new(
        format!("{} is {}", Shown(key), Shown(value)),
        format!("it must be {wanted}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses `key=value` words; a key without a domain gets ours.
    fn annotations(words: &str) -> BTreeMap<String, String> {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').unwrap();
            let prefix = if key.starts_with("io.") { "" } else { PREFIX };
            (format!("{prefix}{key}"), value.to_owned())
        };
        words.split_whitespace().map(pair).collect()
    }

    fn request(pool: &str, size: Size, mems: Mems) -> Option<Request> {
        Some(Request {
            pool: pool.to_owned(),
            exact: None,
            size,
            locality: Locality::default(),
            mems,
            tuning: BTreeMap::new(),
            by_default: false,
        })
    }

    #[test]
    fn a_device_that_is_a_list_goes_with_an_annotation_that_names_its_pool() {
        for (words, list, agrees) in [
            ("", "dp:4,12", true),
            ("pool=dp", "dp:4,12", true),
            ("pool=dp lists=1 mems=inherit", "dp:4,12", true),
            ("pool=none", "dp:4,12", true),
            ("pool=ix", "dp:4,12", false),
            ("pool=dp lists=2", "dp:4,12", false),
            ("pool=dp cpus=1", "dp:4,12", false),
            ("pool=dp numa=single", "dp:4,12", false),
            ("pool=dp mems=local", "dp:4,12", false),
            ("pool=dp irqs=away", "dp:4,12", false),
            ("", "dp", false),
            ("", "dp.2", false),
        ] {
            let annotated = from_annotations(&annotations(words)).unwrap();
            let combined = with_list(annotated, Some(list));
            let exact = combined.map(|request| request.unwrap().exact);
            let expected = agrees.then(|| Some("4,12".parse().unwrap()));
            assert_eq!(exact.ok(), expected, "{words} {list}");
        }
        let annotated = from_annotations(&annotations("pool=dp lists=2")).unwrap();
        assert_eq!(with_list(annotated.clone(), None), Ok(annotated));
    }

    #[test]
    fn options_of_the_pool() {
        let asked = "pool=dp irqs=away quota=lift resume-latency=20 governor.db=x irqs.web=keep \
                     io.kubernetes.container.name=web";
        let request = from_annotations(&annotations(asked)).unwrap().unwrap();
        let said: Vec<_> = request.tuning.iter().collect();
        let expected = [
            ("irqs", "keep"),
            ("quota", "lift"),
            ("resume-latency", "20"),
        ];
        let expected = expected.map(|(key, value)| (key, value.to_owned()));
        let expected: Vec<_> = expected.iter().map(|(key, value)| (key, value)).collect();
        assert_eq!(said, expected);
    }

    #[test]
    fn where_it_is_asked_for() {
        for (words, numa, one_cache, near) in [
            ("", Numa::Best, false, None),
            ("numa=best cache=any", Numa::Best, false, None),
            ("numa=single cache=single", Numa::Single, true, None),
            ("numa=spread near=eth0", Numa::Spread, false, Some("eth0")),
            (
                "numa=0 near=/dev/sda",
                Numa::Node(0),
                false,
                Some("/dev/sda"),
            ),
            (
                "numa=1023 near=3b:00.0",
                Numa::Node(1023),
                false,
                Some("0000:3b:00.0"),
            ),
            (
                "numa=1 numa.web=2 near.db=x io.kubernetes.container.name=web",
                Numa::Node(2),
                false,
                None,
            ),
        ] {
            let request = from_annotations(&annotations(&format!("pool=dp {words}")));
            let locality = request.unwrap().unwrap().locality;
            assert_eq!(
                (locality.numa, locality.one_cache),
                (numa, one_cache),
                "{words}"
            );
            assert_eq!(
                locality.near.map(|device| device.to_string()).as_deref(),
                near
            );
        }
    }

    #[test]
    fn a_command_line_asks_as_annotations_do() {
        let asked = Asked {
            pool: "dp",
            cpus: Some(4),
            numa: Some("1"),
            mems: Some("local"),
            ..Asked::default()
        };
        let request = Request::asked(&asked).unwrap();
        let words = "pool=dp cpus=4 numa=1 mems=local";
        assert_eq!(from_annotations(&annotations(words)), Ok(Some(request)));
        for (asked, part) in [
            (
                Asked {
                    lists: Some(1),
                    ..asked
                },
                "--lists and --cpus",
            ),
            (
                Asked {
                    numa: Some("x"),
                    ..asked
                },
                "\"--numa\" is",
            ),
            (
                Asked {
                    near: Some("../x"),
                    ..asked
                },
                "\"--near\": ",
            ),
            (
                Asked {
                    mems: Some("x"),
                    ..asked
                },
                "\"--mems\" is",
            ),
            (
                Asked {
                    pool: "a/b",
                    ..asked
                },
                "\"--pool\" is",
            ),
        ] {
            let error = Request::asked(&asked).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
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
    fn a_sandbox_has_the_mark_of_its_own_engine() {
        let silence = |words: &str, engine| silence(&annotations(words), engine);
        let marks = [CONTAINERD_TYPE, CRIO_TYPE].map(|key| format!("{key}=sandbox"));
        let counts = [Some(Engine::Containerd), Some(Engine::Crio)];
        for engine in Engine::ALL.map(Some).into_iter().chain([None]) {
            for (mark, of) in marks.iter().zip(counts) {
                let (plain, opted) = match engine == of {
                    true => (Silence::Sandbox, Silence::Sandbox),
                    false => (Silence::Plain, Silence::OptOut),
                };
                assert_eq!(silence(mark, engine), plain, "{mark} {engine:?}");
                let with = format!("{mark} pool=none");
                assert_eq!(silence(&with, engine), opted, "{with} {engine:?}");
            }
            assert_eq!(silence("", engine), Silence::Plain);
            let container = marks.join(" ").replace("sandbox", "container");
            assert_eq!(silence(&container, engine), Silence::Plain);
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
            ("pool=dp numa=01", "pinfold.io/numa"),
            ("pool=dp numa=-1", "pinfold.io/numa"),
            ("pool=dp numa=10000", "pinfold.io/numa"),
            ("pool=dp numa=Best", "pinfold.io/numa"),
            ("pool=dp cache=0", "single or any"),
            ("pool=dp near=../../etc/passwd", "\"pinfold.io/near\": "),
            ("pool=dp near=/dev/../etc/passwd", "names no device"),
            ("pool=dp numa=spread cache=single", "drop one"),
            ("near=eth0", "pinfold.io/pool"),
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
            let expected = expected.map(|(pool, lists)| {
                Request::asked(&Asked {
                    pool,
                    lists: Some(lists),
                    ..Asked::default()
                })
                .unwrap()
            });
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
