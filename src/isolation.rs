//! What a pool says of keeping everybody else off the CPUs that it gives: pure.

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::text::Shown;

/// The file of a pool, and the key, that says how everybody else is kept off.
pub const ISOLATION: &str = "isolation";
/// The one that says whether a start is refused where that cannot be.
pub const NEEDED: &str = "isolation-needed";

/// A partition of the machine's CPUs, which nobody outside of it has (kernel: cgroup-v2.rst,
/// "cpuset.cpus.partition").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The scheduler spreads the owner's threads over its CPUs.
    Root,
    /// It leaves each thread where it is: for programs that place their own.
    Isolated,
}

impl Kind {
    /// The word for it, the kernel's and ours.
    pub fn word(self) -> &'static str {
        match self {
            Kind::Root => "root",
            Kind::Isolated => "isolated",
        }
    }

    /// What a word of a pool means; `None` is the word `none`.
    ///
    /// # Errors
    /// The words that there are.
    pub fn by_word(word: &str) -> Result<Option<Kind>, String> {
        match word {
            "none" => Ok(None),
            "root" => Ok(Some(Kind::Root)),
            "isolated" => Ok(Some(Kind::Isolated)),
            _ => Err("isolation is none, root or isolated".to_owned()),
        }
    }
}

/// What the owners of a pool's lists are to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// The partition.
    pub kind: Kind,
    /// Is a start refused where that cannot be?
    pub is_needed: bool,
}

/// What one place says of a pool: its files, or its table in the configuration. What is not said is
/// `None`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Options {
    /// `none`, `root` or `isolated`.
    pub isolation: Option<String>,
    /// `yes` or `no`.
    pub needed: Option<String>,
}

impl Options {
    /// These, and where they say nothing, the others.
    pub fn or(&self, others: Options) -> Options {
        Options {
            isolation: self.isolation.clone().or(others.isolation),
            needed: self.needed.clone().or(others.needed),
        }
    }

    /// Says one thing more.
    ///
    /// # Errors
    /// A key or a value that no pool has.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        check(key, value)?;
        let said = match key {
            ISOLATION => &mut self.isolation,
            _ => &mut self.needed,
        };
        *said = Some(value.to_owned());
        Ok(())
    }

    /// What is said, as keys with their values.
    pub fn said(&self) -> Vec<(&'static str, &str)> {
        let all = [(ISOLATION, &self.isolation), (NEEDED, &self.needed)];
        let said = all.into_iter();
        said.filter_map(|(key, value)| Some((key, value.as_deref()?)))
            .collect()
    }

    /// What they come to for a pool of this name; `None` where nobody is to be kept off.
    ///
    /// # Errors
    /// A word that is none of those that there are. Where it is that of `isolation`, whether
    /// isolation is needed says whether that matters: see [`Options::is_needed`].
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

    /// Is a start to be refused where nobody can be kept off?
    ///
    /// # Errors
    /// A word that is neither yes nor no.
    pub fn is_needed(&self, pool: &str) -> Result<bool, Refusal> {
        match self.needed.as_deref() {
            None | Some("no") => Ok(false),
            Some("yes") => Ok(true),
            Some(word) => Err(unknown(pool, NEEDED, word)),
        }
    }
}

/// Are this key and this value one of those that a pool can have?
///
/// # Errors
/// What there can be.
pub fn check(key: &str, value: &str) -> Result<(), String> {
    match (key, value) {
        (ISOLATION, word) => Kind::by_word(word).map(drop),
        (NEEDED, "yes" | "no") => Ok(()),
        (NEEDED, _) => Err("isolation-needed is yes or no".to_owned()),
        _ => Err("there can be isolation= and isolation-needed=".to_owned()),
    }
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
