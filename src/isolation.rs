//! Pure: a pool's options about keeping everybody else off the CPUs that it gives.

pub mod tuning;

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::text::Shown;
use tuning::{Key, Words};

/// The name of the option that says how everybody else is kept off. It is a file of the pool and a
/// key of the configuration.
pub const ISOLATION: &str = "isolation";
/// The one that says what containers may ask for by annotations of their own.
pub const ALLOW: &str = "allow";
/// The name of the option that says whether a start is refused if others cannot be kept off.
pub const NEEDED: &str = "isolation-needed";

/// The kind of a partition: CPUs of the machine that nobody outside of it has (kernel:
/// cgroup-v2.rst, "cpuset.cpus.partition").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The scheduler balances load: it spreads the owner's threads over its CPUs.
    Root,
    /// The scheduler leaves each thread on its CPU: for programs that place their threads
    /// themselves.
    Isolated,
}

impl Kind {
    /// The word for the kind, the same in the kernel's file and in a pool's option.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Root => "root",
            Kind::Isolated => "isolated",
        }
    }

    /// The kind that an option's value means; `None` for `none`.
    ///
    /// # Errors
    /// Any other value; the message lists the values there are.
    pub fn by_word(word: &str) -> Result<Option<Kind>, String> {
        match word {
            "none" => Ok(None),
            "root" => Ok(Some(Kind::Root)),
            "isolated" => Ok(Some(Kind::Isolated)),
            _ => Err("isolation is none, root or isolated".to_owned()),
        }
    }
}

/// The isolation that the owners of a pool's lists get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The kind of partition.
    pub kind: Kind,
    /// Is a start refused if the partition cannot be made?
    pub is_needed: bool,
}

/// The options of a pool as one place gives them: its files, or its table in the configuration. An
/// option that is not given is `None`. Values can be invalid.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// `none`, `root` or `isolated`.
    pub isolation: Option<String>,
    /// `yes` or `no`.
    pub needed: Option<String>,
    /// What else is set for the owners.
    pub tuning: Words,
    /// Which of that containers may choose themselves: keys, joined by commas; or `none`.
    pub allow: Option<String>,
}

impl Options {
    /// These options; each that is not given here is taken from `others`.
    pub fn or(&self, others: Options) -> Options {
        Options {
            isolation: self.isolation.clone().or(others.isolation),
            needed: self.needed.clone().or(others.needed),
            tuning: self.tuning.or(others.tuning),
            allow: self.allow.clone().or(others.allow),
        }
    }

    /// Sets one option.
    ///
    /// # Errors
    /// There is no such option, or it cannot have this value; the message lists what there is.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        check(key, value)?;
        self.say(key, value);
        Ok(())
    }

    /// The same of what a file says, whatever it means.
    pub fn say(&mut self, key: &str, value: &str) {
        match (key, Key::by_name(key)) {
            (ISOLATION, _) => self.isolation = Some(value.to_owned()),
            (NEEDED, _) => self.needed = Some(value.to_owned()),
            (ALLOW, _) => self.allow = Some(value.to_owned()),
            (_, Some(key)) => self.tuning.say(key, value),
            (_, None) => {}
        }
    }

    /// The options that are given, as pairs of name and value.
    pub fn said(&self) -> Vec<(&'static str, &str)> {
        let all = [(ISOLATION, &self.isolation), (NEEDED, &self.needed)];
        let said = all.into_iter();
        said.filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .chain(self.tuning.said())
            .chain(self.allow.as_deref().map(|keys| (ALLOW, keys)))
            .collect()
    }

    /// Those of them that ask for something.
    pub fn asking(&self) -> Vec<(&'static str, &str)> {
        let mut asking = self.said();
        asking.retain(|(_, value)| !["none", "no", "keep"].contains(value));
        asking
    }

    /// May a container choose this itself?
    pub fn allows(&self, key: &str) -> bool {
        self.allow_words().contains(&key)
    }

    /// The words of `allow`, whatever they mean; none where it is `none`.
    pub fn allow_words(&self) -> Vec<&str> {
        let allowed = self.allow.as_deref().filter(|allowed| *allowed != "none");
        allowed.map_or(Vec::new(), |allowed| allowed.split(',').collect())
    }

    /// What `allow` can be so that a container may choose the keys that are meant now, and `more`.
    pub fn allowing(&self, more: Option<&str>) -> String {
        let words = self.allow_words().into_iter().map(str::trim).chain(more);
        let mut keys = Vec::new();
        for key in words.filter_map(Key::by_name).map(Key::name) {
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        match keys.is_empty() {
            true => "none".to_owned(),
            false => keys.join(","),
        }
    }

    /// What is said of an `allow` of which nobody knows all words.
    pub fn unknown_allow(&self, pool: &str) -> Option<Refusal> {
        let said = self.allow.as_deref()?;
        check(ALLOW, said).err()?;
        let pool = Shown(pool);
        Some(Refusal::new(
            format!("allow of pool {pool} is {}", Shown(said)),
            format!(
                "`pinfold pool set {pool} allow={}`, or others of {}",
                self.allowing(None),
                Key::ALL.map(Key::name).join(",")
            ),
        ))
    }

    /// What the options mean for the pool named `pool`; `None` where nobody is to be kept off.
    ///
    /// # Errors
    /// The value of an option is invalid. Where it is that of `isolation`, the caller asks
    /// [`Options::is_needed`] whether that refuses a start.
    pub fn wanted(&self, pool: &str) -> Result<Option<Wanted>, Refusal> {
        let Some(word) = &self.isolation else {
            return Ok(None);
        };
        let kind = Kind::by_word(word).map_err(|_| unknown(pool, ISOLATION, word))?;
        let Some(kind) = kind else {
            return Ok(None);
        };
        let is_needed = self.is_needed(pool)?;
        Ok(Some(Wanted { kind, is_needed }))
    }

    /// Is a start refused if others cannot be kept off? `false` where that is not given.
    ///
    /// # Errors
    /// The value is neither `yes` nor `no`.
    pub fn is_needed(&self, pool: &str) -> Result<bool, Refusal> {
        match self.needed.as_deref() {
            None | Some("no") => Ok(false),
            Some("yes") => Ok(true),
            Some(word) => Err(unknown(pool, NEEDED, word)),
        }
    }
}

/// How an option of a pool is changed, as a remedy says it: what the configuration says of the
/// pool, in `configured`, counts before what `pool set` writes.
pub fn how_to_say(configured: Option<&Options>, pool: &str, key: &str, value: &str) -> String {
    let said = configured.map(Options::said);
    let is_configured = said.is_some_and(|said| said.iter().any(|(said, _)| *said == key));
    match is_configured {
        true => format!(
            "say `{}` of pool {pool} in the configuration file, which counts before `pinfold pool \
             set`",
            in_configuration(key, value)
        ),
        false => format!("`pinfold pool set {pool} {key}={value}`"),
    }
}

/// An option as the configuration's table of a pool has it.
fn in_configuration(key: &str, value: &str) -> String {
    let value = match (key, value) {
        (NEEDED, word) => (word == "yes").to_string(),
        (ALLOW, "none") => "[]".to_owned(),
        (ALLOW, keys) => format!("[\"{}\"]", keys.replace(',', "\", \"")),
        (_, word) => format!("\"{word}\""),
    };
    format!("{key} = {value}")
}

/// Checks that a pool can have the option `key` with this value.
///
/// # Errors
/// It cannot; the message lists what there is.
pub fn check(key: &str, value: &str) -> Result<(), String> {
    match (key, value) {
        (ISOLATION, word) => Kind::by_word(word).map(drop),
        (NEEDED, "yes" | "no") => Ok(()),
        (NEEDED, _) => Err("isolation-needed is yes or no".to_owned()),
        (ALLOW, "none") => Ok(()),
        (ALLOW, keys) if keys.split(',').all(|key| Key::by_name(key).is_some()) => Ok(()),
        (ALLOW, _) => {
            let all = Key::ALL.map(Key::name).join(",");
            Err(format!("allow is none, or some of {all}"))
        }
        _ => match Key::by_name(key) {
            Some(key) => key.check(value),
            None => Err(format!(
                "there can be {}=",
                keys().collect::<Vec<_>>().join("=, ")
            )),
        },
    }
}

/// The refusal of an option of a shared pool: these mean nothing there.
pub fn of_shared(pool: impl Display) -> Refusal {
    Refusal::new(
        format!("pool {pool} is shared: its owners have no CPUs of their own"),
        "say it of an exclusive pool",
    )
}

/// Is this a key of a pool?
pub fn is_key(name: &str) -> bool {
    keys().any(|key| key == name)
}

/// All keys that a pool can have.
pub fn keys() -> impl Iterator<Item = &'static str> {
    let others = Key::ALL.into_iter().map(Key::name);
    [ISOLATION, NEEDED, ALLOW].into_iter().chain(others)
}

fn unknown(pool: &str, key: &str, word: &str) -> Refusal {
    let (first, others) = match key {
        NEEDED => ("no", "or yes"),
        _ => ("root", "or isolated, or none"),
    };
    Refusal::new(
        format!("{key} of pool {} is {}", Shown(pool), Shown(word)),
        format!("`pinfold pool set {} {key}={first}`, {others}", Shown(pool)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(isolation: &str, needed: &str) -> Options {
        let said = |word: &str| (word != "-").then(|| word.to_owned());
        Options {
            isolation: said(isolation),
            needed: said(needed),
            ..Options::default()
        }
    }

    #[test]
    fn what_a_pool_says_is_one_of_a_few_words() {
        let wanted = |kind, is_needed| Some(Wanted { kind, is_needed });
        for (isolation, needed, comes_to) in [
            ("-", "-", None),
            ("-", "yes", None),
            ("none", "yes", None),
            ("root", "-", wanted(Kind::Root, false)),
            ("root", "yes", wanted(Kind::Root, true)),
            ("isolated", "no", wanted(Kind::Isolated, false)),
        ] {
            let options = options(isolation, needed);
            assert_eq!(options.wanted("dp").unwrap(), comes_to, "{options:?}");
        }
        for (isolation, needed, said) in [
            ("Root", "-", r#"isolation of pool "dp" is "Root""#),
            ("", "no", r#"isolation of pool "dp" is """#),
            ("root", "true", r#"isolation-needed of pool "dp" is "true""#),
        ] {
            let refusal = options(isolation, needed).wanted("dp").unwrap_err();
            assert!(refusal.what.contains(said), "{refusal:?}");
            assert!(
                refusal.remedy.contains(r#"pinfold pool set "dp""#),
                "{refusal:?}"
            );
        }
    }

    #[test]
    fn what_containers_may_choose_is_named() {
        for (keys, is_well) in [
            ("irqs", true),
            ("irqs,governor,quota,resume-latency", true),
            ("none", true),
            ("", false),
            ("irqs,isolation", false),
            ("irqs, quota", false),
        ] {
            assert_eq!(check(ALLOW, keys).is_ok(), is_well, "{keys}");
        }
        let mut options = Options::default();
        assert!(!options.allows("irqs"));
        options.set(ALLOW, "irqs,quota").unwrap();
        assert!(options.allows("quota") && !options.allows("governor"));
        for (said, means, with_quota, is_known) in [
            ("none", "none", "quota", true),
            ("irqs,quota", "irqs,quota", "irqs,quota", true),
            ("irqs, quota", "irqs,quota", "irqs,quota", false),
            ("isolation", "none", "quota", false),
            ("", "none", "quota", false),
            ("irqs,bogus,irqs", "irqs", "irqs,quota", false),
            ("irqs`reboot`", "none", "quota", false),
        ] {
            options.say(ALLOW, said);
            assert_eq!(options.allowing(None), means, "{said:?}");
            assert_eq!(options.allowing(Some("quota")), with_quota, "{said:?}");
            let told = options.unknown_allow("dp");
            assert_eq!(told.is_none(), is_known, "{said:?}");
            if let Some(told) = told {
                assert_eq!(
                    told.what,
                    format!("allow of pool \"dp\" is {}", Shown(said))
                );
                let remedy = format!("`pinfold pool set \"dp\" allow={means}`, or ");
                assert!(told.remedy.starts_with(&remedy), "{told}");
            }
        }
        assert_eq!(Options::default().unknown_allow("dp"), None);
    }

    #[test]
    fn what_the_configuration_says_comes_first() {
        let files = options("root", "yes");
        assert_eq!(options("-", "-").or(files.clone()), files);
        assert_eq!(
            options("none", "-").or(files.clone()),
            options("none", "yes")
        );
        assert_eq!(options("-", "no").or(files), options("root", "no"));
    }
}
