//! A container's `config.json`, read without losing fields that we do not know. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Error, Result, anyhow, bail};
use serde_json::{Map, Value};

use crate::cpulist::CpuSet;
use crate::text::Shown;

/// The stages that we add a hook for.
pub const STAGES: [&str; 2] = ["createRuntime", "poststop"];

/// The first arguments of every hook of ours; the stage follows.
pub(super) const BEGINNING: [&str; 2] = ["pinfold", "hook"];
/// The argument after the stage, in hooks that the shim adds.
pub(super) const MARK: &str = "--shim";

/// The stages at which a hook of ours pins a container.
pub(super) const PINNING_STAGES: [&str; 2] = ["prestart", STAGES[0]];
/// The option of a hook that gives a container without a request CPUs of the default pool.
pub(super) const DEFAULT_POOL: &str = "--default-pool";
/// The option that names a CDI device.
pub(super) const DEVICE: &str = "--device";
/// The option that names a CDI device that is one CPU list.
const LIST: &str = "--list";

/// KCM's variables, which tell a container its CPUs.
pub(super) const VARIABLES: [&str; 2] = ["KCM_CPUS_ASSIGNED", "KCM_CPUS_ASSIGNED_MASK"];

const ANNOTATIONS: &str = "annotations";

/// The most devices of a container that are looked at: each costs a few file reads, and whoever
/// writes the configuration may name any number.
const MOST_DEVICES: usize = 64;

/// The configuration as JSON values, with every field that was read.
#[derive(Debug, Clone, PartialEq)]
pub struct Config(pub(super) Map<String, Value>);

impl Config {
    /// Parses a `config.json`.
    ///
    /// # Errors
    /// The text is no JSON object.
    pub fn parse(text: &str) -> Result<Config> {
        match serde_json::from_str(text).context("it is not JSON")? {
            Value::Object(object) => Ok(Config(object)),
            _ => bail!("it is not a JSON object"),
        }
    }

    /// A configuration that has only these annotations and hooks.
    pub fn of(annotations: Map<String, Value>, hooks: Value) -> Config {
        let parts = [(ANNOTATIONS, annotations.into()), ("hooks", hooks)];
        let parts = parts.into_iter();
        Config(parts.map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// All annotations whose value is text; others are left out.
    pub fn plain_annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.0.get(ANNOTATIONS).and_then(Value::as_object);
        let all = all.into_iter().flatten();
        all.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }

    /// For each hook of ours that pins this container, whoever added it: its arguments after the
    /// stage.
    pub fn pinning_hooks(&self) -> Vec<Vec<&str>> {
        let stages = ["prestart", STAGES[0]].into_iter();
        let hooks = stages.filter_map(|stage| self.at(&["hooks", stage])?.as_array());
        let arguments = hooks.flatten().filter_map(|hook| {
            let arguments = hook.get("args")?.as_array()?;
            let words: Option<Vec<&str>> = arguments.iter().map(Value::as_str).collect();
            let words = words?;
            let is_ours = words.starts_with(&BEGINNING) && words.len() > BEGINNING.len();
            is_ours.then(|| words[BEGINNING.len() + 1..].to_vec())
        });
        arguments.collect()
    }

    /// Makes sure that every runtime reads the same keys as we do: runtimes written in Go ignore a
    /// key's case (encoding/json, `Unmarshal`), others do not.
    ///
    /// # Errors
    /// A key differs from one of ours only in a way that Go ignores.
    pub fn ensure_plain_keys(&self) -> Result<()> {
        const KEYS: [(&[&str], &[&str]); 6] = [
            (&[], &[ANNOTATIONS, "hooks", "linux", "process"]),
            (&["hooks"], &["prestart", "createRuntime", "poststop"]),
            (&["linux"], &["cgroupsPath", "devices", "resources"]),
            (&["linux", "resources"], &["cpu", "unified"]),
            (&["linux", "resources", "cpu"], &["cpus", "mems"]),
            (&["process"], &["env"]),
        ];
        for (path, known) in KEYS {
            let table = match path {
                [] => Some(&self.0),
                path => self.at(path).and_then(Value::as_object),
            };
            for key in table.into_iter().flat_map(Map::keys) {
                let meant = known.iter().find(|name| are_alike(name, key));
                if let Some(meant) = meant.filter(|name| *name != key) {
                    return Err(unplain(key, meant));
                }
            }
        }
        Ok(())
    }

    /// The annotations whose key is `wanted`.
    ///
    /// # Errors
    /// A wanted annotation is no text; a key that only some runtimes read as `annotations` holds
    /// one.
    pub fn annotations(&self, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        let has_wanted = |value: &Value| {
            let table = value.as_object();
            table.is_some_and(|table| table.keys().any(|key| wanted(key)))
        };
        let others = self.0.iter().filter(|(key, _)| *key != ANNOTATIONS);
        for (key, value) in others {
            if are_alike(key, ANNOTATIONS) && has_wanted(value) {
                return Err(unplain(key, ANNOTATIONS));
            }
        }
        let all = self.0.get(ANNOTATIONS).and_then(Value::as_object);
        let wanted = all.into_iter().flatten().filter(|(key, _)| wanted(key));
        let text = |(key, value): (&String, &Value)| match value.as_str() {
            Some(value) => Ok((key.clone(), value.to_owned())),
            None => bail!("annotation {} is not text", Shown(key)),
        };
        wanted.map(text).collect()
    }

    /// The container's devices (`linux.devices`; OCI runtime specification, "Devices"): whether
    /// each is a block device, its major and its minor number. Entries that are no device are left
    /// for the runtime to refuse.
    pub fn devices(&self) -> Vec<(bool, u64, u64)> {
        let devices = self.at(&["linux", "devices"]).and_then(Value::as_array);
        let numbers = devices.into_iter().flatten().filter_map(|device| {
            let number = |key: &str| device.get(key)?.as_u64();
            let is_block = match device.get("type")?.as_str()? {
                "b" => true,
                "c" | "u" => false,
                _ => return None,
            };
            Some((is_block, number("major")?, number("minor")?))
        });
        numbers.take(MOST_DEVICES).collect()
    }

    /// The arguments of the hooks by which a CDI device asks for CPUs; hooks that the shim added
    /// are left out.
    pub fn device_hooks(&self) -> Vec<Vec<String>> {
        self.hooks_with(DEVICE).collect()
    }

    /// Does a CDI device that is one CPU list ask? Only its hook gives it that.
    pub fn has_list_hook(&self) -> bool {
        self.hooks_with(LIST).next().is_some()
    }

    /// The arguments of the hooks of ours, but the shim's, that pin by this option.
    fn hooks_with(&self, option: &str) -> impl Iterator<Item = Vec<String>> {
        let at = |stage: &&str| self.at(&["hooks", stage]).and_then(Value::as_array);
        let hooks = PINNING_STAGES.iter().filter_map(at).flatten();
        let theirs = hooks.filter(|hook| !is_the_shims(hook));
        let arguments = theirs.filter_map(|hook| hook["args"].as_array());
        let ours = arguments.filter(|args| args.starts_with(&BEGINNING.map(Value::from)));
        let words = ours.map(|args| {
            let words = args.iter().filter_map(Value::as_str);
            words.map(str::to_owned).collect::<Vec<_>>()
        });
        words.filter(move |words| words.iter().any(|word| word == option))
    }

    /// The path of the container's cgroup (`linux.cgroupsPath`); empty where none is given.
    pub fn cgroups_path(&self) -> &str {
        let path = self.at(&["linux", "cgroupsPath"]);
        path.and_then(Value::as_str).unwrap_or_default()
    }

    /// The CPUs that the configuration's maker set (`linux.resources.cpu.cpus`, or `cpuset.cpus` of
    /// `unified`). CPUs that an earlier start wrote do not count, even in a file edited since: they
    /// equal those in the container's KCM variable.
    pub fn chosen_cpus(&self) -> Option<&str> {
        let cpus = self.resource("cpus", "cpuset.cpus")?;
        let told = cpus
            .parse()
            .map(|cpus: CpuSet| variable(VARIABLES[1], &cpus.to_hex_mask()));
        let environment = self.at(&["process", "env"]).and_then(Value::as_array);
        let mut environment = environment.into_iter().flatten();
        let is_told = told.is_ok_and(|told| environment.any(|entry| *entry == told));
        Some(cpus).filter(|_| !(is_told && self.is_of_an_earlier_start()))
    }

    /// The memory nodes that the configuration's maker set; those of an earlier start do not count.
    pub fn chosen_mems(&self) -> Option<&str> {
        let mems = self.resource("mems", "cpuset.mems");
        mems.filter(|_| !self.is_of_an_earlier_start())
    }

    /// Does the configuration have a hook that the shim added?
    pub fn is_of_an_earlier_start(&self) -> bool {
        let hooks = self.at(&["hooks", STAGES[0]]).and_then(Value::as_array);
        hooks.into_iter().flatten().any(is_the_shims)
    }

    /// Did the shim write it for a container that asks for nothing?
    pub fn is_by_default(&self) -> bool {
        let hooks = self.at(&["hooks", STAGES[0]]).and_then(Value::as_array);
        let mut hooks = hooks
            .into_iter()
            .flatten()
            .filter(|hook| is_the_shims(hook));
        hooks.any(|hook| {
            let mut args = hook["args"].as_array().into_iter().flatten();
            args.any(|arg| arg == DEFAULT_POOL)
        })
    }

    fn resource(&self, cpu: &str, unified: &str) -> Option<&str> {
        let paths = [["cpu", cpu], ["unified", unified]];
        let values = paths.into_iter().filter_map(|[table, key]| {
            let value = self.at(&["linux", "resources", table, key])?;
            value.as_str()
        });
        values.into_iter().find(|value| !value.trim().is_empty())
    }

    fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let first = self.0.get(*first)?;
        rest.iter().try_fold(first, |value, key| value.get(key))
    }

    /// The configuration as JSON text.
    ///
    /// # Errors
    /// None known.
    pub fn print(&self) -> Result<String> {
        Ok(serde_json::to_string(&self.0)?)
    }
}

/// Does a runtime written in Go take the two keys for the same? Go folds case by Unicode, in which
/// two non-ASCII letters equal ASCII ones.
fn are_alike(one: &str, other: &str) -> bool {
    let folded = |key: &str| -> String {
        let letters = key.chars().map(|letter| match letter {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            letter => letter.to_ascii_lowercase(),
        });
        letters.collect()
    };
    folded(one) == folded(other)
}

fn unplain(key: &str, meant: &str) -> Error {
    let key = Shown(key);
    anyhow!("its key {key} is for some runtimes {meant}: write it so")
}

/// An entry of an environment (environ(7)).
pub(super) fn variable(name: &str, value: &str) -> String {
    format!("{name}={value}")
}

/// Did the shim add this hook, now or earlier?
pub(super) fn is_the_shims(hook: &Value) -> bool {
    let args = hook["args"].as_array().map_or(&[][..], Vec::as_slice);
    args.starts_with(&BEGINNING.map(Value::from)) && args.get(3).is_some_and(|arg| arg == MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_numbers() {
        let text = r#"{"linux":{"devices":[{"type":"c","major":10,"minor":200,"path":"/dev/tun"},
            {"type":"b","major":8,"minor":0},{"type":"p","path":"/fifo"},
            {"type":"c","major":-1,"minor":0},7]}}"#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.devices(), [(false, 10, 200), (true, 8, 0)]);
        assert_eq!(Config::parse("{}").unwrap().devices(), []);
    }

    #[test]
    fn devices_that_ask_are_known_by_their_hooks() {
        let text = r#"{"hooks":{"createRuntime":[
            {"path":"/p",
             "args":["pinfold","hook","createRuntime","--device","dp","--conf-dir","/k"]},
            {"path":"/p","args":["pinfold","hook","createRuntime"]},
            {"path":"/p","args":["pinfold","hook","createRuntime","--shim","--device","old"]},
            {"path":"/q","args":["other","--device","x"]},{"path":"/q"},7],
            "poststop":[{"path":"/p","args":["pinfold","hook","poststop","--device","dp"]}]}}"#;
        let config = Config::parse(text).unwrap();
        let words = [
            "pinfold",
            "hook",
            "createRuntime",
            "--device",
            "dp",
            "--conf-dir",
            "/k",
        ];
        assert_eq!(config.device_hooks(), [words.map(str::to_owned).to_vec()]);
        assert!(!config.has_list_hook());
        assert!(Config::parse("{}").unwrap().device_hooks().is_empty());
    }

    #[test]
    fn a_device_that_is_a_list_is_known_by_its_hook() {
        for (stage, args, is_one) in [
            (
                "createRuntime",
                r#""pinfold","hook","createRuntime","--list","dp:1""#,
                true,
            ),
            (
                "prestart",
                r#""pinfold","hook","prestart","--list","dp:1""#,
                true,
            ),
            (
                "createRuntime",
                r#""pinfold","hook","createRuntime","--shim","--list","dp:1""#,
                false,
            ),
            (
                "createRuntime",
                r#""other","hook","createRuntime","--list","dp:1""#,
                false,
            ),
            (
                "createRuntime",
                r#""pinfold","hook","createRuntime","--device","dp""#,
                false,
            ),
            (
                "poststop",
                r#""pinfold","hook","poststop","--list","dp:1""#,
                false,
            ),
        ] {
            let text = format!(r#"{{"hooks":{{"{stage}":[{{"path":"/p","args":[{args}]}}]}}}}"#);
            let config = Config::parse(&text).unwrap();
            assert_eq!(config.has_list_hook(), is_one, "{text}");
        }
    }

    #[test]
    fn numbers_are_the_same_each_time_they_are_written() {
        let text = r#"{"x":[4444444003275844400327584045,0.1,1e-300,18446744073709551615]}"#;
        let config = Config::parse(text).unwrap();
        let again = Config::parse(&config.print().unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_it_chose_itself_is_seen_in_both_forms() {
        for (resources, cpus, mems) in [
            (r#"{"cpu":{"cpus":"1","mems":""}}"#, Some("1"), None),
            (r#"{"cpu":{"cpus":null,"mems":"0"}}"#, None, Some("0")),
            (
                r#"{"unified":{"cpuset.cpus":"2","cpuset.mems":"1"}}"#,
                Some("2"),
                Some("1"),
            ),
            (r#"{"cpu":7}"#, None, None),
            ("null", None, None),
        ] {
            let text = format!(r#"{{"linux":{{"resources":{resources}}}}}"#);
            let config = Config::parse(&text).unwrap();
            assert_eq!(
                (config.chosen_cpus(), config.chosen_mems()),
                (cpus, mems),
                "{text}"
            );
        }
    }

    #[test]
    fn annotations_that_only_some_runtimes_see_are_refused() {
        let read = |text: &str| Config::parse(text).unwrap().annotations(|key| key == "a");
        for text in [
            r#"{"Annotations":{"b":"1"},"annotations":{"a":"2"}}"#,
            r#"{"Annotation":{"a":"1"},"annotations":{"a":"2"}}"#,
        ] {
            assert_eq!(read(text).unwrap()["a"], "2", "{text}");
        }
        for text in [
            r#"{"Annotations":{"a":"1"}}"#,
            r#"{"annotations":{"a":"1"},"ANNOTATIONS":{"a":null}}"#,
            r#"{"annotations":{"a":1}}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_key_in_another_case_is_refused_where_it_matters() {
        for (text, refused) in [
            (r#"{"Hooks":{}}"#, Some("hooks")),
            (
                r#"{"linux":{"resources":{"CPU":{"Cpus":"0"}}}}"#,
                Some("cpu"),
            ),
            (
                r#"{"linux":{"resources":{"cpu":{"Cpus":"0"}}}}"#,
                Some("cpus"),
            ),
            (r#"{"hooks":{"CreateRuntime":[]}}"#, Some("createRuntime")),
            (r#"{"hook\u017f":{}}"#, Some("hooks")),
            (
                r#"{"Other":1,"linux":{"resources":{"cpu":{"cpus":"0","Shares":1}}}}"#,
                None,
            ),
        ] {
            let checked = Config::parse(text).unwrap().ensure_plain_keys();
            match (checked, refused) {
                (Ok(()), None) => {}
                (Err(error), Some(meant)) => {
                    assert!(
                        error.to_string().contains(&format!("runtimes {meant}: ")),
                        "{error}"
                    );
                }
                (checked, _) => panic!("{text}: {checked:?}"),
            }
        }
    }
}
