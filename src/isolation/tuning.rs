//! What a pool says of the machine beside the CPUs that it gives, of interrupts, limits and power:
//! pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::refusal::Refusal;
use crate::text::Shown;

/// What can be said: each is a file of a pool, and a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Where interrupts go.
    Irqs,
    /// Whether a limit of CPU time holds.
    Quota,
    /// Which governor sets the frequency.
    Governor,
    /// How long a CPU that sleeps may take to wake.
    ResumeLatency,
}

impl Key {
    /// All.
    pub const ALL: [Key; 4] = [Key::Irqs, Key::Quota, Key::Governor, Key::ResumeLatency];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Key::Irqs => "irqs",
            Key::Quota => "quota",
            Key::Governor => "governor",
            Key::ResumeLatency => "resume-latency",
        }
    }

    /// The key of a name.
    pub fn by_name(name: &str) -> Option<Key> {
        Key::ALL.into_iter().find(|key| key.name() == name)
    }

    /// Can it be said so?
    ///
    /// # Errors
    /// How it can be.
    pub fn check(self, word: &str) -> Result<(), String> {
        Tuning::default().set(self, word)
    }

    /// A word for it that does something, and what else there is.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Key::Irqs => ("away", "keep"),
            Key::Quota => ("lift", "keep"),
            Key::Governor => ("performance", "keep"),
            Key::ResumeLatency => ("n/a", "keep"),
        }
    }
}

/// What one place says: a pool's files, or its table in the configuration.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Words(BTreeMap<Key, String>);

impl Words {
    /// Says one thing more, whatever it means.
    pub fn say(&mut self, key: Key, word: impl Into<String>) {
        self.0.insert(key, word.into());
    }

    /// These, and where they say nothing, the others.
    pub fn or(&self, mut others: Words) -> Words {
        others.0.extend(self.0.clone());
        others
    }

    /// What is said, as keys with their words.
    pub fn said(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(key, word)| (key.name(), word.as_str()))
    }

    /// What they come to for a pool of this name, and what is said of those that nobody knows.
    pub fn tuning(&self, pool: &str) -> (Tuning, Vec<Refusal>) {
        let mut tuning = Tuning::default();
        let mut unknown = Vec::new();
        for (key, word) in &self.0 {
            if tuning.set(*key, word).is_err() {
                let (name, pool, (first, other)) = (key.name(), Shown(pool), key.words());
                unknown.push(Refusal::new(
                    format!("{name} of pool {pool} is {}", Shown(word)),
                    format!("`pinfold pool set {pool} {name}={first}`, or {other}"),
                ));
            }
        }
        (tuning, unknown)
    }
}

/// What an owner is to have, or has.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Are the interrupts that can be moved to be on other CPUs than its own?
    #[serde(skip_serializing_if = "is_false")]
    pub irqs_away: bool,
    /// Is it to have no limit of CPU time?
    #[serde(skip_serializing_if = "is_false")]
    pub quota_lifted: bool,
    /// The governor of its CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub governor: Option<String>,
    /// How long its CPUs may take to wake, as the kernel writes it: `n/a` is no time at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_latency: Option<String>,
}

impl Tuning {
    /// Does it ask for nothing?
    pub fn is_none(&self) -> bool {
        *self == Tuning::default()
    }

    /// What it asks for, as keys with their words.
    pub fn said(&self) -> BTreeMap<&'static str, &str> {
        let mut said = BTreeMap::new();
        if self.irqs_away {
            said.insert(Key::Irqs.name(), "away");
        }
        if self.quota_lifted {
            said.insert(Key::Quota.name(), "lift");
        }
        let others = [
            (Key::Governor, &self.governor),
            (Key::ResumeLatency, &self.resume_latency),
        ];
        let others = others.into_iter();
        said.extend(others.filter_map(|(key, word)| Some((key.name(), word.as_deref()?))));
        said
    }

    fn set(&mut self, key: Key, word: &str) -> Result<(), String> {
        match (key, word) {
            (Key::Irqs, "away") => self.irqs_away = true,
            (Key::Irqs, "keep") => self.irqs_away = false,
            (Key::Irqs, _) => return Err("irqs is keep or away".to_owned()),
            (Key::Quota, "lift") => self.quota_lifted = true,
            (Key::Quota, "keep") => self.quota_lifted = false,
            (Key::Quota, _) => return Err("quota is keep or lift".to_owned()),
            (Key::Governor, "keep") => self.governor = None,
            (Key::Governor, name) if is_governor(name) => self.governor = Some(name.to_owned()),
            (Key::Governor, _) => {
                return Err("governor is keep, or the name of one, as performance".to_owned());
            }
            (Key::ResumeLatency, "keep") => self.resume_latency = None,
            (Key::ResumeLatency, time) if is_latency(time) => {
                self.resume_latency = Some(time.to_owned());
            }
            (Key::ResumeLatency, "0") => {
                return Err(
                    "0 is no limit to the kernel: say n/a for no time at all, or keep".to_owned(),
                );
            }
            (Key::ResumeLatency, _) => {
                return Err("resume-latency is keep, n/a, or so many microseconds".to_owned());
            }
        }
        Ok(())
    }
}

/// Keys with their words, as a cell of a table shows them.
pub fn listed<'a>(said: impl IntoIterator<Item = (&'static str, &'a str)>) -> String {
    let said = said.into_iter();
    let said: Vec<String> = said.map(|(key, word)| format!("{key}={word}")).collect();
    match said.is_empty() {
        true => "-".to_owned(),
        false => said.join(","),
    }
}

/// Can a governor have this name? The kernel's are shorter than 16 bytes (`CPUFREQ_NAME_LEN`).
fn is_governor(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    (1..16).contains(&name.len()) && name.bytes().all(allowed)
}

/// Is this what the kernel prints of such a time? It prints 0 where there is no limit (kernel:
/// drivers/base/power/sysfs.c, `pm_qos_resume_latency_us_show`).
fn is_latency(time: &str) -> bool {
    let number = time.parse::<i32>().ok().filter(|number| *number > 0);
    time == "n/a" || number.is_some_and(|number| number.to_string() == time)
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(said: &[(Key, &str)]) -> Words {
        let mut words = Words::default();
        said.iter().for_each(|(key, word)| words.say(*key, *word));
        words
    }

    #[test]
    fn each_word_means_something_or_is_told() {
        for (said, comes_to, unknown) in [
            (vec![], vec![], 0),
            (vec![(Key::Irqs, "keep")], vec![], 0),
            (vec![(Key::Irqs, "away")], vec![("irqs", "away")], 0),
            (vec![(Key::Irqs, "Away")], vec![], 1),
            (vec![(Key::Irqs, "")], vec![], 1),
            (
                vec![(Key::Governor, "performance"), (Key::Irqs, "away")],
                vec![("governor", "performance"), ("irqs", "away")],
                0,
            ),
            (vec![(Key::Governor, "keep")], vec![], 0),
            (vec![(Key::Quota, "lift")], vec![("quota", "lift")], 0),
            (vec![(Key::Quota, "keep")], vec![], 0),
            (vec![(Key::Quota, "max")], vec![], 1),
            (vec![(Key::Governor, "sixteen-letters-")], vec![], 1),
            (vec![(Key::Governor, "../x")], vec![], 1),
            (
                vec![(Key::ResumeLatency, "n/a")],
                vec![("resume-latency", "n/a")],
                0,
            ),
            (
                vec![(Key::ResumeLatency, "20")],
                vec![("resume-latency", "20")],
                0,
            ),
            (vec![(Key::ResumeLatency, "keep")], vec![], 0),
            (vec![(Key::ResumeLatency, "-1")], vec![], 1),
            (vec![(Key::ResumeLatency, "0")], vec![], 1),
            (vec![(Key::ResumeLatency, "020")], vec![], 1),
            (vec![(Key::ResumeLatency, "2147483648")], vec![], 1),
        ] {
            let (tuning, told) = words(&said).tuning("dp");
            let shown: Vec<_> = tuning.said().into_iter().collect();
            assert_eq!(shown, comes_to, "{said:?}");
            assert_eq!(told.len(), unknown, "{said:?}");
            assert_eq!(tuning.is_none(), comes_to.is_empty());
        }
        let (_, told) = words(&[(Key::Irqs, "off")]).tuning("dp");
        assert_eq!(told[0].what, r#"irqs of pool "dp" is "off""#);
        assert!(
            told[0]
                .remedy
                .contains(r#"pool set "dp" irqs=away`, or keep"#)
        );
    }

    #[test]
    fn what_is_said_first_counts_first() {
        let files = words(&[(Key::Irqs, "away")]);
        assert_eq!(Words::default().or(files.clone()), files);
        let first = words(&[(Key::Irqs, "keep")]);
        assert_eq!(first.or(files), first);
    }
}
