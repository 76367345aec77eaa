//! Writes CDI files, whose devices docker, podman, containerd and CRI-O give to a container without
//! any other set-up (CDI: SPEC.md; version 0.5.0 is the first that allows our names). A file has
//! devices of one kind: a pool each, or a CPU list each.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::hooks::TIMEOUT;

/// The kind of our devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A pool, of which Pinfold chooses lists: `pinfold.io/pool=dataplane`.
    Pools,
    /// One CPU list, which somebody else has chosen: `pinfold.io/list=dataplane.4_12`.
    Lists,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 2] = [Kind::Pools, Kind::Lists];

    /// The kind as CDI names it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pools => "pinfold.io/pool",
            Kind::Lists => "pinfold.io/list",
        }
    }

    /// What writes the devices.
    pub fn remedy(self) -> &'static str {
        match self {
            Kind::Pools => "`pinfold cdi`",
            Kind::Lists => "`pinfold cdi --lists`",
        }
    }

    /// The option of the hook that says what the device is.
    fn option(self) -> &'static str {
        match self {
            Kind::Pools => "--device",
            Kind::Lists => "--list",
        }
    }
}

/// The environment variable that marks the hooks of a file that an engine's install has made. CDI
/// allows no unknown keys, and nothing else reads this variable.
const BY_INSTALL: &str = "PINFOLD_DEVICES=by-install";

/// Begins the variable that tells a container its pool.
const POOL: &str = "PINFOLD_POOL=";

/// A device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its name, without its kind.
    pub name: String,
    /// The pool that it is of.
    pub pool: String,
    /// What its hooks are told that it is.
    pub asks: String,
}

impl Device {
    /// The devices of a pool: one for each number of CPU lists that a container can be given.
    pub fn of_pool(pool: &str, lists: usize) -> impl Iterator<Item = Device> {
        (1..=lists).map(move |count| {
            let name = match count {
                1 => pool.to_owned(),
                count => format!("{pool}.{count}"),
            };
            Device {
                asks: name.clone(),
                name,
                pool: pool.to_owned(),
            }
        })
    }
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
    pub fn stand_in(&self, kind: Kind) -> String {
        let pools: Vec<Device> = Device::of_pool("POOL", 1).collect();
        file(kind, &pools, self).unwrap_or_default()
    }
}

/// The file's text; `None` if there is no device, which CDI takes for an error.
pub fn file(kind: Kind, devices: &[Device], hooks: &Hooks) -> Option<String> {
    let devices: Vec<Value> = devices
        .iter()
        .map(|device| entry(kind, device, hooks))
        .collect();
    let file = json!({"cdiVersion": "0.5.0", "kind": kind.name(), "devices": devices});
    (!devices.is_empty()).then(|| format!("{file:#}\n"))
}

fn entry(kind: Kind, device: &Device, hooks: &Hooks) -> Value {
    let hook = |stage: &str| {
        let args = ["pinfold", "hook", stage, kind.option(), &device.asks].into_iter();
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
    // `KCM_CPUS_ASSIGNED` is not told: of several lists of a container the last one's would win.
    // Who hands out the lists knows them all and tells it, as a device plugin does by the kubelet.
    json!({
        "name": device.name,
        "containerEdits": {
            "env": [format!("{POOL}{}", device.pool)],
            "hooks": [hook("createRuntime"), hook("poststop")],
        },
    })
}

/// Reads from a file of ours how its hooks are run; `None` if the file is somebody else's, or has
/// devices of another kind.
///
/// # Errors
/// It is not JSON.
pub fn hooks_of(kind: Kind, text: &str) -> Result<Option<Hooks>> {
    let file: Value = serde_json::from_str(text).context("it is not JSON")?;
    if file["kind"] != kind.name() {
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

/// The devices of a file. What is no device of ours in it is left out.
///
/// # Errors
/// It is not JSON.
pub fn devices_of(kind: Kind, text: &str) -> Result<Vec<Device>> {
    let file: Value = serde_json::from_str(text).context("it is not JSON")?;
    let entries = file["devices"].as_array().into_iter().flatten();
    let devices = entries.filter_map(|entry| {
        let edits = &entry["containerEdits"];
        let args = edits["hooks"][0]["args"].as_array()?;
        let pool = edits["env"][0].as_str()?.strip_prefix(POOL)?;
        let [option, asks] = args.get(3..5)? else {
            return None;
        };
        (*option == kind.option()).then_some(Device {
            name: entry["name"].as_str()?.to_owned(),
            pool: pool.to_owned(),
            asks: asks.as_str()?.to_owned(),
        })
    });
    Ok(devices.collect())
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
        let devices = Device::of_pool("dp", 2).chain(Device::of_pool("cp", 1));
        let devices: Vec<Device> = devices.collect();
        let text = file(Kind::Pools, &devices, &hooks).unwrap();
        assert_eq!(devices_of(Kind::Pools, &text).unwrap(), devices);
        assert_eq!(devices_of(Kind::Lists, &text).unwrap(), []);
        let odd =
            r#"{"devices":[{"name":"x"},7,{"containerEdits":{"hooks":[{"args":["--device"]}]}}]}"#;
        assert_eq!(devices_of(Kind::Pools, odd).unwrap(), []);
        assert!(devices_of(Kind::Pools, "{").is_err());
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
        assert_eq!(hooks_of(Kind::Pools, &text).unwrap(), Some(hooks.clone()));
        let hooks = Hooks {
            by_install: true,
            ..hooks
        };
        let other = r#"{"kind":"nvidia.com/gpu"}"#;
        for kind in Kind::ALL {
            let stand_in = hooks.stand_in(kind);
            assert_eq!(hooks_of(kind, &stand_in).unwrap(), Some(hooks.clone()));
            assert_eq!(hooks_of(kind, other).unwrap(), None);
            assert!(hooks_of(kind, "{").is_err());
            assert_eq!(file(kind, &[], &hooks), None);
        }
        assert_eq!(hooks_of(Kind::Lists, &text).unwrap(), None);
    }

    #[test]
    fn a_device_a_list() {
        let hooks = Hooks {
            pinfold: "/bin/pinfold".into(),
            options: vec!["--engine".into(), "crio".into()],
            by_install: false,
        };
        let device = Device {
            name: "dp.4_12".into(),
            pool: "dp".into(),
            asks: "dp:4,12".into(),
        };
        let text = file(Kind::Lists, &[device], &hooks).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["kind"], "pinfold.io/list");
        let device = &value["devices"][0];
        assert_eq!(device["name"], "dp.4_12");
        let edits = &device["containerEdits"];
        assert_eq!(edits["env"], json!(["PINFOLD_POOL=dp"]));
        for (place, stage) in ["createRuntime", "poststop"].iter().enumerate() {
            assert_eq!(
                edits["hooks"][place]["args"],
                json!([
                    "pinfold", "hook", stage, "--list", "dp:4,12", "--engine", "crio"
                ])
            );
        }
        assert_eq!(hooks_of(Kind::Lists, &text).unwrap(), Some(hooks));
    }
}
