//! Writes a container's CPUs and hooks into its `config.json`.

use anyhow::{Context, Result};
use oci_spec::runtime::HookBuilder;
use serde_json::{Map, Value, json};

use super::config::{
    BEGINNING, Config, DEFAULT_POOL, DEVICE, MARK, PINNING_STAGES, STAGES, VARIABLES, is_the_shims,
    variable,
};
use crate::cpulist::CpuSet;
use crate::engines::hooks::TIMEOUT;

/// The option that names a reservation.
const RESERVATION: &str = "--reservation";

/// What [`Config::pin`] writes.
#[derive(Debug, Clone, Copy)]
pub struct Pinning<'a> {
    /// The program that the hooks run.
    pub program: &'a str,
    /// The engine whose marks count, passed on to the hooks.
    pub engine: Option<&'a str>,
    /// The CDI device that asks for CPUs, where annotations do not.
    pub device: Option<&'a str>,
    /// The options of the hooks that name the pools.
    pub options: &'a [String],
    /// The nonce of the reservation that the hook is to take over.
    pub nonce: &'a str,
    /// The directory names of the CPU lists.
    pub lists: &'a [String],
    /// The CPUs of these lists.
    pub cpus: &'a CpuSet,
    /// The memory nodes; `None` to leave `cpuset.mems` alone.
    pub mems: Option<&'a CpuSet>,
    /// Does it ask for nothing?
    pub by_default: bool,
    /// Does the runtime make a cgroup for the container? It refuses resources without one.
    pub has_cgroup: bool,
}

impl Config {
    /// Writes the container's CPUs, the variables that tell it those CPUs, and the hooks that take
    /// over its reservation and free it. Replaces hooks of an earlier start; a CDI device's hooks
    /// are given the same reservation.
    ///
    /// # Errors
    /// A field that this needs has another type.
    pub fn pin(&mut self, pinning: &Pinning<'_>) -> Result<()> {
        if pinning.has_cgroup {
            let cpu = self.table(&["linux", "resources", "cpu"])?;
            cpu.insert("cpus".into(), pinning.cpus.to_string().into());
            if let Some(mems) = pinning.mems {
                cpu.insert("mems".into(), mems.to_string().into());
            }
        }
        // A runtime refuses a configuration without a process.
        if self.0.get("process").is_some_and(Value::is_object) {
            self.tell_cpus(pinning)?;
        }
        self.add_hooks(pinning)
    }

    fn tell_cpus(&mut self, pinning: &Pinning<'_>) -> Result<()> {
        let values = [pinning.lists.join(","), pinning.cpus.to_hex_mask()];
        let environment = array(self.table(&["process"])?, "env")?;
        for (name, value) in VARIABLES.iter().zip(values) {
            let beginning = variable(name, "");
            let is_it = |entry: &Value| entry.as_str().is_some_and(|e| e.starts_with(&beginning));
            environment.retain(|entry| !is_it(entry));
            environment.push(variable(name, &value).into());
        }
        Ok(())
    }

    fn add_hooks(&mut self, pinning: &Pinning<'_>) -> Result<()> {
        let hooks = self.table(&["hooks"])?;
        for stage in PINNING_STAGES {
            let there = hooks.get_mut(stage).and_then(Value::as_array_mut);
            for args in there.into_iter().flatten().filter_map(args_of_ours) {
                take_over(args, pinning.nonce);
            }
        }
        for stage in STAGES {
            let mut args = [&BEGINNING[..], &[stage, MARK]].concat();
            args.extend(
                pinning
                    .engine
                    .iter()
                    .flat_map(|engine| ["--engine", *engine]),
            );
            args.extend(pinning.by_default.then_some(DEFAULT_POOL));
            args.extend(pinning.device.iter().flat_map(|device| [DEVICE, *device]));
            args.extend(pinning.options.iter().map(String::as_str));
            if stage == STAGES[0] {
                args.extend([RESERVATION, pinning.nonce]);
            }
            let list = array(hooks, stage)?;
            list.retain(|hook| !is_the_shims(hook));
            let hook = HookBuilder::default()
                .path(pinning.program)
                .args(args.into_iter().map(str::to_owned).collect::<Vec<_>>())
                .timeout(TIMEOUT)
                .build()?;
            list.push(serde_json::to_value(hook)?);
        }
        Ok(())
    }

    /// The object at a path; makes it if it is missing.
    fn table(&mut self, path: &[&str]) -> Result<&mut Map<String, Value>> {
        let mut table = &mut self.0;
        for (depth, key) in path.iter().enumerate() {
            let value = table.entry(*key).or_insert(Value::Null);
            if value.is_null() {
                *value = json!({});
            }
            let value = value.as_object_mut();
            table = value
                .with_context(|| format!("{} is not a JSON object", path[..=depth].join(".")))?;
        }
        Ok(table)
    }
}

/// The array under a key; makes it if it is missing.
fn array<'a>(table: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>> {
    let value = table.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!([]);
    }
    let array = value.as_array_mut();
    array.with_context(|| format!("{key} is not a JSON array"))
}

/// The arguments of a hook, if the hook is ours, whoever added it.
fn args_of_ours(hook: &mut Value) -> Option<&mut Vec<Value>> {
    let args = hook.get_mut("args")?.as_array_mut()?;
    args.starts_with(&BEGINNING.map(Value::from))
        .then_some(args)
}

/// Makes a hook take over this reservation instead of an earlier start's.
fn take_over(args: &mut Vec<Value>, nonce: &str) {
    if let Some(place) = args.iter().position(|arg| arg == RESERVATION) {
        args.drain(place..args.len().min(place + 2));
    }
    args.extend([RESERVATION, nonce].map(Value::from));
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: &str = "11-22";

    fn pin(text: &str, program: &str, engine: Option<&str>) -> Result<String> {
        let mut config = Config::parse(text)?;
        config.pin(&Pinning {
            program,
            engine,
            device: None,
            options: &[],
            nonce: NONCE,
            lists: &["1,5".to_owned(), "2-3".to_owned()],
            cpus: &"1-3,5".parse().unwrap(),
            mems: None,
            by_default: false,
            has_cgroup: true,
        })?;
        config.print()
    }

    #[test]
    fn what_pins_is_written_once_and_the_rest_stays_in_order() {
        let text = r#"{"z":1,"process":{"env":["A=1","KCM_CPUS_ASSIGNED=0"],"args":["x"]},
            "hooks":{"createRuntime":[{"path":"/other","x":[1]}],"new":2},"a":{"u":null}}"#;
        let after = pin(text, "/bin/pinfold", Some("docker")).unwrap();
        assert_eq!(
            after,
            concat!(
                r#"{"z":1,"process":{"env":["A=1","KCM_CPUS_ASSIGNED=1,5,2-3","#,
                r#""KCM_CPUS_ASSIGNED_MASK=2E"],"args":["x"]},"#,
                r#""hooks":{"createRuntime":[{"path":"/other","x":[1]},{"path":"/bin/pinfold","#,
                r#""args":["pinfold","hook","createRuntime","--shim","--engine","docker","#,
                r#""--reservation","11-22"],"timeout":30}],"#,
                r#""new":2,"poststop":[{"path":"/bin/pinfold","#,
                r#""args":["pinfold","hook","poststop","--shim","--engine","docker"],"#,
                r#""timeout":30}]},"#,
                r#""a":{"u":null},"linux":{"resources":{"cpu":{"cpus":"1-3,5"}}}}"#
            )
        );
        assert_eq!(pin(&after, "/bin/pinfold", Some("docker")).unwrap(), after);
        // These are our CPUs; CPUs that somebody wrote there since are not.
        for (text, chosen) in [
            (after.clone(), None),
            (after.replace(r#""1-3,5""#, r#""1""#), Some("1")),
        ] {
            let config = Config::parse(&text).unwrap();
            assert_eq!(config.chosen_cpus(), chosen, "{text}");
        }
        // Another program path and another engine replace the former ones.
        let moved = pin(&after, "/opt/pinfold", Some("crio")).unwrap();
        assert_eq!(moved.matches(r#"pinfold","args"#).count(), 2, "{moved}");
        assert!(
            !moved.contains("/bin/pinfold") && moved.contains("/other"),
            "{moved}"
        );
    }

    #[test]
    fn hooks_of_whoever_asks_for_nothing_say_so() {
        let mut config = Config::parse("{}").unwrap();
        assert!(!config.is_by_default());
        config
            .pin(&Pinning {
                program: "/p",
                engine: Some("docker"),
                device: None,
                options: &[],
                nonce: NONCE,
                lists: &["1".to_owned()],
                cpus: &"1".parse().unwrap(),
                mems: None,
                by_default: true,
                has_cgroup: true,
            })
            .unwrap();
        assert!(config.is_by_default());
        let after = config.print().unwrap();
        for stage in STAGES {
            let args = format!(
                r#"["pinfold","hook","{stage}","--shim","--engine","docker","--default-pool""#
            );
            assert!(after.contains(&args), "{after}");
        }
    }

    #[test]
    fn a_hook_that_another_door_brought_takes_the_reservation_too() {
        let text = r#"{"hooks":{
            "prestart":[{"path":"/p","args":["pinfold","hook","prestart"]},{"path":"/q"}],
            "createRuntime":[{"path":"/p",
                "args":["pinfold","hook","createRuntime","--device","dp","--reservation","old"]}],
            "poststop":[{"path":"/p","args":["pinfold","hook","poststop"]}]}}"#;
        let after = pin(text, "/p", None).unwrap();
        for args in [
            r#"["pinfold","hook","prestart","--reservation","11-22"]"#,
            r#"["pinfold","hook","createRuntime","--device","dp","--reservation","11-22"]"#,
            r#"["pinfold","hook","createRuntime","--shim","--reservation","11-22"]"#,
            r#"["pinfold","hook","poststop"]"#,
        ] {
            assert!(after.contains(args), "{args}: {after}");
        }
        assert_eq!(after.matches(RESERVATION).count(), 3, "{after}");
    }

    #[test]
    fn without_a_cgroup_no_resources_are_written_and_memory_nodes_only_where_asked_for() {
        let (lists, cpus) = (["1".to_owned()], "1".parse().unwrap());
        for (has_cgroup, mems, resources) in [
            (
                true,
                "0-1",
                r#"{"linux":{"resources":{"cpu":{"cpus":"1","mems":"0-1"}}},"#,
            ),
            (false, "0-1", r#"{"hooks""#),
        ] {
            let mut config = Config::parse("{}").unwrap();
            let pinning = Pinning {
                program: "/p",
                engine: None,
                device: Some("dp"),
                options: &["--conf-dir".to_owned(), "/k".to_owned()],
                nonce: NONCE,
                lists: &lists,
                cpus: &cpus,
                mems: Some(&mems.parse().unwrap()),
                by_default: false,
                has_cgroup,
            };
            config.pin(&pinning).unwrap();
            let after = config.print().unwrap();
            assert!(after.starts_with(resources), "{after}");
            for args in [
                r#""--shim","--device","dp","--conf-dir","/k","--reservation","11-22"]"#,
                r#"["pinfold","hook","poststop","--shim","--device","dp","--conf-dir","/k"]"#,
            ] {
                assert!(after.contains(args), "{after}");
            }
        }
    }

    #[test]
    fn missing_parts_are_made_and_other_things_in_their_places_refused() {
        for text in [
            "{}",
            r#"{"hooks":null}"#,
            r#"{"hooks":{"poststop":null},"process":{"env":null}}"#,
        ] {
            assert!(pin(text, "/p", None).is_ok(), "{text}");
        }
        for text in [
            r#"{"hooks":[]}"#,
            r#"{"hooks":{"poststop":1}}"#,
            r#"{"linux":{"resources":[]}}"#,
            r#"{"process":{"env":"A=1"}}"#,
            "[]",
            "{",
        ] {
            assert!(pin(text, "/p", None).is_err(), "{text}");
        }
    }
}
