//! What engines are given: a root file system, a runtime's config.json, podman's hooks.d files.

use crate::plan::Plan;
use crate::world::{World, binary};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// One hook: at which stage, and what to run.
pub(crate) struct Hook {
    stage: String,
    path: String,
    args: Vec<String>,
    /// In seconds, after which the runtime kills it.
    timeout: u32,
}

impl Hook {
    /// Pinfold's hook of a stage, for the world's directories.
    pub(crate) fn pinfold(world: &World, stage: &str) -> Hook {
        let mut args = vec!["pinfold".to_owned(), "hook".into(), stage.into()];
        args.extend(world.options());
        Hook {
            stage: stage.into(),
            path: binary().display().to_string(),
            args,
            timeout: 30,
        }
    }

    /// The same hook, started by another program that takes it as its last arguments.
    pub(crate) fn inside(self, program: &str, arguments: &[String]) -> Hook {
        let start = [program.to_owned()]
            .into_iter()
            .chain(arguments.iter().cloned());
        let args = start
            .chain([self.path])
            .chain(self.args.into_iter().skip(1))
            .collect();
        Hook {
            stage: self.stage,
            path: program.into(),
            args,
            timeout: self.timeout,
        }
    }

    /// A hook of somebody else; the first argument is the program.
    pub(crate) fn other(stage: &str, args: &[String]) -> Hook {
        Hook {
            stage: stage.into(),
            path: args[0].clone(),
            args: args.to_vec(),
            timeout: 600,
        }
    }
}

/// A root file system that holds the probe and the mount points engines want.
pub(crate) fn make_rootfs(rootfs: &Path) {
    if rootfs.exists() {
        return;
    }
    for dir in ["proc", "sys", "dev", "tmp", "etc", "run", "out"] {
        std::fs::create_dir_all(rootfs.join(dir)).expect("make a directory of the rootfs");
    }
    std::fs::copy(crate::probe::path(), rootfs.join("probe")).expect("copy the probe");
    std::fs::set_permissions(rootfs.join("probe"), PermissionsExt::from_mode(0o755))
        .expect("chmod the probe");
}

/// The config.json of a bundle.
pub(crate) fn config(
    rootfs: &Path,
    plan: &Plan,
    cgroup: &str,
    process: &[String],
    hooks: &[Hook],
) -> String {
    let mut namespaces = vec![
        json!({"type": "mount"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
    ];
    namespaces.extend(plan.own_pids.then(|| json!({"type": "pid"})));
    let resources = plan
        .cpuset
        .as_ref()
        .map(|cpus| json!({ "cpu": { "cpus": cpus } }));
    let annotations: BTreeMap<_, _> = plan.annotations.iter().cloned().collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": { "user": { "uid": 0, "gid": 0 }, "args": process, "env": ["PATH=/"], "cwd": "/" },
        "root": { "path": rootfs, "readonly": false },
        // Containers share the rootfs: each has a /dev of its own to fill.
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "annotations": annotations,
        "hooks": stages(hooks),
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "resources": resources.unwrap_or_else(|| json!({})),
        },
    });
    config.to_string()
}

/// Hooks in the form of a runtime's configuration.
pub(crate) fn stages(hooks: &[Hook]) -> Value {
    let mut stages: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    for hook in hooks {
        let entry = json!({ "path": hook.path, "args": hook.args, "timeout": hook.timeout });
        stages.entry(&hook.stage).or_default().push(entry);
    }
    json!(stages)
}

/// Writes one hooks.d file for each hook; the order of the names is the order they run in.
pub(crate) fn write_hook_files(dir: &Path, hooks: &[Hook]) {
    for (number, hook) in hooks.iter().enumerate() {
        let file = json!({
            "version": "1.0.0",
            "hook": { "path": hook.path, "args": hook.args, "timeout": hook.timeout },
            "when": { "always": true },
            "stages": [hook.stage],
        });
        std::fs::write(dir.join(format!("{number}.json")), file.to_string())
            .expect("write a hooks.d file");
    }
}
