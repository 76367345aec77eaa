//! The tables of pools in the configuration file: how a pool is to be, and who may use it.

use std::fmt::{self, Display};
use std::marker::PhantomData;
use std::str::FromStr;

use anyhow::{Result, ensure};
use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer};

use crate::cpulist::CpuSet;
use crate::isolation::tuning::{Key, Words};
use crate::isolation::{self, ALLOW, ISOLATION, Options};
use crate::pools::Kind;
use crate::pools::carve::{Cut, FromCaches, FromNodes};
use crate::pools::converge::Declared;
use crate::pools::plan::{Cores, ListUnit, PlannedPool, PoolSpec, Reserve};
use crate::refusal::Refusal;
use crate::request::is_pool_name;
use crate::text::{Shown, one_line};

/// A table `[pools.NAME]`.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct PoolTable {
    /// Exclusive or shared; with it the pool is declared, and `apply` makes it so.
    #[serde(deserialize_with = "kind")]
    pub kind: Option<Kind>,
    /// How many physical cores it is to have.
    #[serde(deserialize_with = "cores")]
    pub cores: Option<Cores>,
    /// From which NUMA nodes.
    #[serde(deserialize_with = "numa")]
    pub numa: Option<FromNodes>,
    /// From which last-level caches.
    #[serde(deserialize_with = "cache")]
    pub cache: Option<FromCaches>,
    /// What a list of an exclusive pool is.
    #[serde(deserialize_with = "unit")]
    pub unit: Option<ListUnit>,
    /// In place of `cores`: its CPU lists.
    #[serde(deserialize_with = "lists")]
    pub lists: Option<Vec<CpuSet>>,
    /// The Kubernetes namespaces whose pods may use it; whoever else asks is refused.
    pub namespaces: Option<Vec<String>>,
    /// How it may be asked for; an image can carry annotations too.
    pub doors: Option<Vec<Door>>,
    /// How everybody else is kept off its owners' CPUs: in place of the pool's own file.
    #[serde(deserialize_with = "isolation")]
    pub isolation: Option<String>,
    /// Is a start refused where that cannot be? In place of the pool's own file.
    pub isolation_needed: Option<bool>,
    /// What containers may choose of the keys below by annotations of their own: in place of the
    /// pool's own file.
    #[serde(deserialize_with = "allow")]
    pub allow: Option<String>,
    /// Where interrupts go: in place of the pool's own file.
    #[serde(deserialize_with = "irqs")]
    pub irqs: Option<String>,
    /// Does a limit of their CPU time hold? In place of the pool's own file.
    #[serde(deserialize_with = "quota")]
    pub quota: Option<String>,
    /// Which governor the owners' CPUs have: in place of the pool's own file.
    #[serde(deserialize_with = "governor")]
    pub governor: Option<String>,
    /// How long they may take to wake: in place of the pool's own file.
    #[serde(deserialize_with = "resume_latency")]
    pub resume_latency: Option<String>,
}

/// A way in which a container's request comes to us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Annotations, read by a hook that the engine has.
    Annotation,
    /// A CDI device.
    Cdi,
    /// Annotations, read by `pinfold-runtime`.
    Shim,
}

impl Door {
    /// Its word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Door::Annotation => "annotation",
            Door::Cdi => "cdi",
            Door::Shim => "shim",
        }
    }
}

impl PoolTable {
    /// What the pool's own files would say of it.
    pub fn options(&self) -> Options {
        let needed = self.isolation_needed;
        let mut tuning = Words::default();
        for (key, word) in [
            (Key::Irqs, &self.irqs),
            (Key::Quota, &self.quota),
            (Key::Governor, &self.governor),
            (Key::ResumeLatency, &self.resume_latency),
        ] {
            if let Some(word) = word {
                tuning.say(key, word);
            }
        }
        Options {
            isolation: self.isolation.clone(),
            needed: needed.map(|is_needed| if is_needed { "yes" } else { "no" }.to_owned()),
            tuning,
            allow: self.allow.clone(),
        }
    }

    /// How the pool of this name is to be; `None` where the table says only who may use it.
    ///
    /// # Errors
    /// Keys that do not go together, a name that nobody could ask for.
    pub fn declared(&self, name: &str) -> Result<Option<Declared>> {
        let refused = |key: &str, what: &str, remedy: &str| {
            Refusal::new(format!("pools.{}.{key} {what}", one_line(name)), remedy)
        };
        let needs_cores = [
            ("numa", self.numa.is_some()),
            ("cache", self.cache.is_some()),
            ("unit", self.unit.is_some()),
        ];
        let Some(kind) = self.kind else {
            let others = [
                ("cores", self.cores.is_some()),
                ("lists", self.lists.is_some()),
            ];
            for (key, is_there) in others.into_iter().chain(needs_cores) {
                let remedy = "add kind = \"exclusive\" or kind = \"shared\" to that table";
                ensure!(!is_there, refused(key, "is there without kind", remedy));
            }
            return Ok(None);
        };
        let remedy = "a pool's name has up to 63 letters, digits, - and _, \
                      begins with a letter or digit, and is not none";
        ensure!(is_pool_name(name), refused("kind", "is of no pool", remedy));
        let name = name.to_owned();
        match (self.cores, &self.lists) {
            (Some(cores), None) => {
                let unit = self.unit.unwrap_or_default();
                let remedy = "drop it, or make the pool exclusive";
                let is_one = unit == ListUnit::Core || kind == Kind::Exclusive;
                ensure!(
                    is_one,
                    refused("unit", "is threads of a shared pool", remedy)
                );
                let cut = Cut {
                    numa: self.numa.unwrap_or_default(),
                    cache: self.cache.unwrap_or_default(),
                };
                Ok(Some(Declared::Cut(PoolSpec {
                    name,
                    cores,
                    kind,
                    cut,
                    unit,
                    options: Options::default(),
                })))
            }
            (None, Some(lists)) => {
                for (key, is_there) in needs_cores {
                    let remedy = "drop it, or give cores in place of lists";
                    ensure!(!is_there, refused(key, "is there beside lists", remedy));
                }
                let remedy = "name its lists, as [\"4,12\", \"5,13\"]";
                let has_all = !lists.is_empty() && lists.iter().all(|list| !list.is_empty());
                ensure!(has_all, refused("lists", "has no CPU", remedy));
                let mut seen = CpuSet::new();
                for list in lists {
                    let twice = seen.intersection(list);
                    let what = format!("has CPU {twice} in two lists");
                    let remedy = "give each CPU to one list";
                    ensure!(twice.is_empty(), refused("lists", &what, remedy));
                    seen.extend(list);
                }
                let lists = lists.clone();
                Ok(Some(Declared::Lists(PlannedPool {
                    name,
                    kind,
                    lists,
                    options: Options::default(),
                })))
            }
            (None, None) => {
                let remedy = "add cores = 4, cores = \"rest\" or lists = [\"4,12\"] to that table";
                Err(refused("kind", "is there without cores and lists", remedy).into())
            }
            (Some(_), Some(_)) => {
                Err(refused("lists", "is there beside cores", "drop one of the two").into())
            }
        }
    }
}

/// A word, or a number that counts as one, and what it means.
struct Spelling<T>(&'static str, PhantomData<T>);

impl<T: FromStr<Err: Display>> Visitor<'_> for Spelling<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a word or a number for {}", self.0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Option<T>, E> {
        let parsed = text.parse().map(Some);
        parsed.map_err(|error| E::custom(format!("{} is {}: {error}", self.0, Shown(text))))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Option<T>, E> {
        self.visit_str(&number.to_string())
    }
}

fn word<'de, D: Deserializer<'de>, T: FromStr<Err: Display>>(
    file: D,
    key: &'static str,
) -> Result<Option<T>, D::Error> {
    file.deserialize_any(Spelling(key, PhantomData))
}

fn kind<'de, D: Deserializer<'de>>(file: D) -> Result<Option<Kind>, D::Error> {
    let word = String::deserialize(file)?;
    let kind = Kind::by_word(&word).map(Some);
    kind.ok_or_else(|| {
        let word = Shown(&word);
        D::Error::custom(format!("kind is {word}: it is exclusive or shared"))
    })
}

fn cores<'de, D: Deserializer<'de>>(file: D) -> Result<Option<Cores>, D::Error> {
    word(file, "cores")
}

fn numa<'de, D: Deserializer<'de>>(file: D) -> Result<Option<FromNodes>, D::Error> {
    word(file, "numa")
}

fn cache<'de, D: Deserializer<'de>>(file: D) -> Result<Option<FromCaches>, D::Error> {
    word(file, "cache")
}

fn unit<'de, D: Deserializer<'de>>(file: D) -> Result<Option<ListUnit>, D::Error> {
    word(file, "unit")
}

pub(super) fn reserve<'de, D: Deserializer<'de>>(file: D) -> Result<Option<Reserve>, D::Error> {
    word(file, "reserve")
}

pub(super) fn default_pool<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    let name = String::deserialize(file)?;
    if is_pool_name(&name) {
        return Ok(Some(name));
    }
    Err(D::Error::custom(format!(
        "default-pool is {}: it is the name of a shared pool, up to 63 letters, digits, - and _",
        Shown(&name)
    )))
}

fn isolation<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    option(file, ISOLATION)
}

fn allow<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    let keys = Vec::<String>::deserialize(file)?.join(",");
    let keys = if keys.is_empty() { "none" } else { &keys };
    isolation::check(ALLOW, keys)
        .map_err(|said| D::Error::custom(format!("allow is {}: {said}", Shown(keys))))?;
    Ok(Some(keys.to_owned()))
}

fn irqs<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    option(file, Key::Irqs.name())
}

fn quota<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    option(file, Key::Quota.name())
}

fn governor<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    option(file, Key::Governor.name())
}

fn resume_latency<'de, D: Deserializer<'de>>(file: D) -> Result<Option<String>, D::Error> {
    option(file, Key::ResumeLatency.name())
}

/// A word that the pool's own file of this name could have.
fn option<'de, D: Deserializer<'de>>(file: D, key: &str) -> Result<Option<String>, D::Error> {
    let word = String::deserialize(file)?;
    isolation::check(key, &word)
        .map_err(|said| D::Error::custom(format!("{key} is {}: {said}", Shown(&word))))?;
    Ok(Some(word))
}

fn lists<'de, D: Deserializer<'de>>(file: D) -> Result<Option<Vec<CpuSet>>, D::Error> {
    let mut lists = Vec::new();
    for text in Vec::<String>::deserialize(file)? {
        let list = text.parse();
        lists.push(list.map_err(|error| D::Error::custom(format!("lists: {error}")))?);
    }
    Ok(Some(lists))
}
