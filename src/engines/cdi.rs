//! Writes a CDI file: a device for each pool, which docker, podman, containerd and CRI-O give to a
//! container without any other set-up (CDI: SPEC.md; version 0.5.0 is the first that allows our
//! names).

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::hooks::TIMEOUT;

/// The kind of our devices: `pinfold.io/pool=dataplane`.
pub const KIND: &str = "pinfold.io/pool";

/// The environment variable that marks the hooks of a file that an engine's install has made. CDI
/// allows no unknown keys, and nothing else reads this variable.
const BY_INSTALL: &str = "PINFOLD_DEVICES=by-install";

/// The devices of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices {
    /// The pool's name.
    pub pool: String,
    /// How many CPU lists one container can be given: a device for each number.
    pub lists: usize,
}

/// How the hooks of a file are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hooks {
    /// The path of `pinfold`.
    pub pinfold: String,
    /// Options for it.
    pub options: Vec<String>,
    /// Did an engine's install make the file? Then its uninstall removes it.
    pub by_install: bool,
}

impl Hooks {
    /// The file for a machine without pools. CDI allows no file without a device, and from this one
    /// we later read how the hooks are run.
    pub fn stand_in(&self) -> String {
        let pool = Devices {
            pool: "POOL".to_owned(),
            lists: 1,
        };
        file(&[pool], self).unwrap_or_default()
    }
}

/// The file's text; `None` if there is no device, which CDI takes for an error.
pub fn file(pools: &[Devices], hooks: &Hooks) -> Option<String> {
    let names = pools.iter().flat_map(|devices| {
        let one = |count| match count {
            1 => devices.pool.clone(),
            count => format!("{}.{count}", devices.pool),
        };
        (1..=devices.lists).map(move |count| (devices.pool.as_str(), one(count)))
    });
    let devices: Vec<Value> = names
        .map(|(pool, name)| device(pool, &name, hooks))
        .collect();
    let file = json!({"cdiVersion": "0.5.0", "kind": KIND, "devices": devices});
    (!devices.is_empty()).then(|| format!("{file:#}\n"))
}

fn device(pool: &str, name: &str, hooks: &Hooks) -> Value {
    let hook = |stage: &str| {
        let args = ["pinfold", "hook", stage, "--device", name].into_iter();
        let args = args.chain(hooks.options.iter().map(String::as_str));
        let mut hook = json!({
            "hookName": stage,
            "path": hooks.pinfold,
            "args": args.collect::<Vec<_>>(),
            "timeout": TIMEOUT,
        });
        if hooks.by_install {
            hook["env"] = json!([BY_INSTALL]);
        }
        hook
    };
    json!({
        "name": name,
        "containerEdits": {
            "env": [format!("PINFOLD_POOL={pool}")],
            "hooks": [hook("createRuntime"), hook("poststop")],
        },
    })
}

/// Reads from a file of ours how its hooks are run; `None` if the file is somebody else's.
///
/// # Errors
/// It is not JSON.
pub fn hooks_of(text: &str) -> Result<Option<Hooks>> {
    let file: Value = serde_json::from_str(text).context("it is not JSON")?;
    if file["kind"] != KIND {
        return Ok(None);
    }
    let hook = &file["devices"][0]["containerEdits"]["hooks"][0];
    let args = hook["args"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let options = args
        .iter()
        .skip(5)
        .filter_map(|arg| arg.as_str().map(str::to_owned));
    let pinfold = hook["path"].as_str().unwrap_or_default().to_owned();
    Ok(Some(Hooks {
        pinfold,
        options: options.collect(),
        by_install: hook["env"] == json!([BY_INSTALL]),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_a_pool_and_one_for_each_number_of_lists() {
        let hooks = Hooks {
            pinfold: "/bin/pinfold".into(),
            options: vec!["--conf-dir".into(), "/k".into()],
            by_install: false,
        };
        let devices = |pool: &str, lists| Devices {
            pool: pool.into(),
            lists,
        };
        let text = file(&[devices("dp", 2), devices("cp", 1)], &hooks).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<&Value> = value["devices"]
            .as_array()
            .unwrap()
            .iter()
            .map(|d| &d["name"])
            .collect();
        assert_eq!(names, ["dp", "dp.2", "cp"]);
        let args = &value["devices"][1]["containerEdits"]["hooks"][1]["args"];
        assert_eq!(
            *args,
            json!([
                "pinfold",
                "hook",
                "poststop",
                "--device",
                "dp.2",
                "--conf-dir",
                "/k"
            ])
        );
        assert_eq!(hooks_of(&text).unwrap(), Some(hooks.clone()));
        let hooks = Hooks {
            by_install: true,
            ..hooks
        };
        assert_eq!(hooks_of(&hooks.stand_in()).unwrap(), Some(hooks.clone()));
        assert_eq!(hooks_of(r#"{"kind":"nvidia.com/gpu"}"#).unwrap(), None);
        assert!(hooks_of("{").is_err());
        assert_eq!(file(&[devices("dp", 0)], &hooks), None);
    }
}
