//! A container's `config.json`: reading its request, and adding our hooks without losing what we do not know.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use crate::cpulist::CpuSet;
use crate::engines::hooks::TIMEOUT;
use crate::text::Shown;

/// The stages that we add a hook for.
pub const STAGES: [&str; 2] = ["createRuntime", "poststop"];

/// What every hook that we add begins with, but for the stage between them.
const BEGINNING: [&str; 2] = ["pinfold", "hook"];
const MARK: &str = "--shim";

/// So many of a container's devices are looked at: each costs a few files, and whoever writes the configuration may name
/// any number.
const MOST_DEVICES: usize = 64;

/// The configuration as JSON values: whatever is in it stays.
#[derive(Debug, Clone, PartialEq)]
pub struct OciConfig(Map<String, Value>);

impl OciConfig {
    /// Reads it.
    ///
    /// # Errors
    /// What is no JSON object.
    pub fn parse(text: &str) -> Result<OciConfig> {
        match serde_json::from_str(text).context("it is no JSON")? {
            Value::Object(object) => Ok(OciConfig(object)),
            _ => bail!("it is no JSON object"),
        }
    }

    /// The annotations whose key is wanted.
    ///
    /// # Errors
    /// One that is no text.
    pub fn annotations(&self, wanted: impl Fn(&str) -> bool) -> Result<BTreeMap<String, String>> {
        let all = self.0.get("annotations").and_then(Value::as_object);
        let wanted = all.into_iter().flatten().filter(|(key, _)| wanted(key));
        let text = |(key, value): (&String, &Value)| match value.as_str() {
            Some(value) => Ok((key.clone(), value.to_owned())),
            None => bail!("annotation {} is no text", Shown(key)),
        };
        wanted.map(text).collect()
    }

    /// The devices that it gives the container (`linux.devices`; OCI runtime specification, "Devices"): whether it is a
    /// block device, its major and its minor number. What is no device is the runtime's to refuse.
    pub fn devices(&self) -> Vec<(bool, u64, u64)> {
        let linux = self.0.get("linux").and_then(|linux| linux.get("devices"));
        let devices = linux.and_then(Value::as_array).into_iter().flatten();
        let numbers = devices.filter_map(|device| {
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

    /// Adds our hooks, unless it has them; `false` where it has. `near` are the NUMA nodes of its devices.
    ///
    /// # Errors
    /// Something else where hooks should be.
    pub fn add_hooks(
        &mut self,
        pinfold: &str,
        engine: Option<&str>,
        near: &CpuSet,
    ) -> Result<bool> {
        let hooks = self.0.entry("hooks").or_insert(Value::Null);
        if hooks.is_null() {
            *hooks = json!({});
        }
        let hooks = hooks.as_object_mut().context("hooks is no JSON object")?;
        let mut is_changed = false;
        for stage in STAGES {
            let mut args = [&BEGINNING[..], &[stage, MARK]].concat();
            args.extend(engine.iter().flat_map(|engine| ["--engine", *engine]));
            let near = (stage == STAGES[0] && !near.is_empty()).then(|| near.to_string());
            args.extend(near.iter().flat_map(|nodes| ["--rather-near", nodes]));
            let hook = json!({"path": pinfold, "args": args, "timeout": TIMEOUT});
            let list = hooks.entry(stage).or_insert(Value::Null);
            if list.is_null() {
                *list = json!([]);
            }
            let list = list.as_array_mut();
            let list = list.with_context(|| format!("hooks.{stage} is no JSON array"))?;
            let there: Vec<&Value> = list.iter().filter(|hook| is_ours(hook)).collect();
            if there != [&hook] {
                // A bundle that was used before may have what an older program, or older settings, made of it.
                list.retain(|hook| !is_ours(hook));
                list.push(hook);
                is_changed = true;
            }
        }
        Ok(is_changed)
    }

    /// Its text.
    ///
    /// # Errors
    /// None that is known of.
    pub fn print(&self) -> Result<String> {
        Ok(serde_json::to_string(&self.0)?)
    }
}

/// Did we add this hook, now or earlier?
fn is_ours(hook: &Value) -> bool {
    let args = hook["args"].as_array().map_or(&[][..], Vec::as_slice);
    args.starts_with(&BEGINNING.map(Value::from)) && args.get(3).is_some_and(|arg| arg == MARK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_numbers_and_their_nodes_go_to_the_hook_that_pins() {
        let text = r#"{"linux":{"devices":[{"type":"c","major":10,"minor":200,"path":"/dev/tun"},
            {"type":"b","major":8,"minor":0},{"type":"p","path":"/fifo"},{"type":"c","major":-1,"minor":0},7]}}"#;
        let mut config = OciConfig::parse(text).unwrap();
        assert_eq!(config.devices(), [(false, 10, 200), (true, 8, 0)]);
        assert_eq!(OciConfig::parse("{}").unwrap().devices(), []);
        let nodes = "0-1".parse().unwrap();
        assert!(config.add_hooks("/bin/pinfold", None, &nodes).unwrap());
        let printed = config.print().unwrap();
        let wanted = r#"["pinfold","hook","createRuntime","--shim","--rather-near","0-1"]"#;
        assert!(printed.contains(wanted), "{printed}");
        assert_eq!(printed.matches("--rather-near").count(), 1, "{printed}");
        assert!(!config.add_hooks("/bin/pinfold", None, &nodes).unwrap());
    }

    #[test]
    fn hooks_are_added_once_and_the_rest_stays_in_order() {
        let text = r#"{"z":1,"hooks":{"createRuntime":[{"path":"/other","x":[1]}],"new":2},"a":{"u":null}}"#;
        let mut config = OciConfig::parse(text).unwrap();
        assert!(
            config
                .add_hooks("/bin/pinfold", Some("docker"), &CpuSet::new())
                .unwrap()
        );
        let after = config.print().unwrap();
        assert!(after.starts_with(
            r#"{"z":1,"hooks":{"createRuntime":[{"path":"/other","x":[1]},{"path":"/bin/pinfold""#
        ));
        assert!(after.ends_with(r#""a":{"u":null}}"#));
        assert!(
            !config
                .add_hooks("/bin/pinfold", Some("docker"), &CpuSet::new())
                .unwrap()
        );
        assert_eq!(config.print().unwrap(), after);
        // From another place, for another engine: in place of the former.
        assert!(
            config
                .add_hooks("/opt/pinfold", Some("crio"), &CpuSet::new())
                .unwrap()
        );
        let moved = config.print().unwrap();
        assert_eq!(moved.matches("pinfold\",\"args").count(), 2, "{moved}");
        assert!(
            !moved.contains("/bin/pinfold") && moved.contains("/other"),
            "{moved}"
        );
        for text in ["{}", r#"{"hooks":null}"#, r#"{"hooks":{"poststop":null}}"#] {
            assert!(
                OciConfig::parse(text)
                    .unwrap()
                    .add_hooks("/p", None, &CpuSet::new())
                    .unwrap(),
                "{text}"
            );
        }
        for text in [r#"{"hooks":[]}"#, r#"{"hooks":{"poststop":1}}"#] {
            assert!(
                OciConfig::parse(text)
                    .unwrap()
                    .add_hooks("/p", None, &CpuSet::new())
                    .is_err(),
                "{text}"
            );
        }
        assert!(OciConfig::parse("[]").is_err() && OciConfig::parse("{").is_err());
    }
}
