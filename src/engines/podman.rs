//! podman's `containers.conf`, and the drop-in file that tells it of the shim (containers.conf(5)).
//!
//! Every file's keys replace those of the files before it, and so do whole lists, unless one says
//! `{append=true}`, which podman before 4.7 takes for an error. So the drop-in repeats what the
//! lists had.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::{RUNTIME, SHIM};

/// The hooks directory of podman and CRI-O where nothing else is configured.
pub const DEFAULT_HOOKS_DIR: &str = "/usr/share/containers/oci/hooks.d";

/// podman's name of the list of runtimes that need no cgroups. Its manual has one letter more, and
/// podman passes over that (containers/common: pkg/config/config.go, `RuntimeSupportsNoCgroups`).
const NO_CGROUPS_KEY: &str = "runtime_supports_nocgroup";
const NO_CGROUPS_IN_MANUAL: &str = "runtime_supports_nocgroups";

/// What podman has built in, the union of 4.3 to 5.8.
const JSON: [&str; 7] = ["crun", "crun-vm", "runc", "kata", "runsc", "youki", "krun"];
const NO_CGROUPS: [&str; 3] = ["crun", "crun-vm", "krun"];

/// The runtimes that podman looks for where no file names one.
const SEARCHED: [&str; 2] = ["crun", "runc"];

/// Is this our runtime, by its name in the table of runtimes or by its path?
fn is_ours(runtime: &str) -> bool {
    runtime == RUNTIME || runtime.rsplit('/').next() == Some(SHIM)
}

/// What a set of files comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodmanSettings {
    /// The directories in which hook files are looked for; the same file name in a later one wins.
    pub hooks_dirs: Vec<String>,
    /// The runtimes that understand `--log-format=json`.
    pub json: Vec<String>,
    /// The runtimes that can run a container without a cgroup of its own.
    pub no_cgroups: Vec<String>,
    /// Where our runtime is looked for.
    pub shim: Vec<String>,
    /// The runtime of containers that name none, where a file says so.
    pub runtime: Option<String>,
    /// The last that a file names and that is not ours.
    other_runtime: Option<String>,
    /// Where runtimes are looked for, by name.
    runtimes: BTreeMap<String, Vec<String>>,
    appends: [bool; 3],
}

impl Default for PodmanSettings {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        PodmanSettings {
            hooks_dirs: owned(&[DEFAULT_HOOKS_DIR]),
            json: owned(&JSON),
            no_cgroups: owned(&NO_CGROUPS),
            shim: Vec::new(),
            runtime: None,
            other_runtime: None,
            runtimes: BTreeMap::new(),
            appends: [false; 3],
        }
    }
}

impl PodmanSettings {
    /// Adds what the next file says.
    ///
    /// # Errors
    /// What is no TOML: podman does not start with it.
    pub fn read(&mut self, text: &str) -> Result<()> {
        let table: Table = toml::from_str(text)
            .map_err(|error| anyhow::anyhow!("it is not TOML: {}", error.message()))?;
        let Some(engine) = table.get("engine").and_then(Value::as_table) else {
            return Ok(());
        };
        let lists = [
            ("hooks_dir", &mut self.hooks_dirs),
            ("runtime_supports_json", &mut self.json),
            (NO_CGROUPS_KEY, &mut self.no_cgroups),
        ];
        for ((key, list), appends) in lists.into_iter().zip(&mut self.appends) {
            if let Some(value) = engine.get(key) {
                merge(list, appends, value)
                    .with_context(|| format!("{key} is not a list of names"))?;
            }
        }
        if let Some(runtime) = engine.get("runtime").and_then(Value::as_str) {
            self.runtime = Some(runtime.to_owned());
            if !is_ours(runtime) {
                self.other_runtime = Some(runtime.to_owned());
            }
        }
        let runtimes = engine.get("runtimes").and_then(Value::as_table);
        for (name, paths) in runtimes.into_iter().flatten() {
            let paths = paths.as_array().into_iter().flatten();
            let paths = paths.filter_map(|path| path.as_str().map(str::to_owned));
            self.runtimes.insert(name.clone(), paths.collect());
        }
        if let Some(paths) = self.runtimes.get(RUNTIME) {
            self.shim.clone_from(paths);
        }
        Ok(())
    }

    /// What podman runs where a container names no runtime and ours is out of the question: names
    /// and paths, of which the first that is there counts (containers/common: pkg/config/config.go,
    /// `findRuntime`).
    pub fn runtimes_without_ours(&self) -> Vec<String> {
        let names = match &self.other_runtime {
            Some(name) => vec![name.as_str()],
            None => SEARCHED.to_vec(),
        };
        let paths_and_name = |name: &str| {
            let paths = self.runtimes.get(name).into_iter().flatten().cloned();
            paths.chain([name.to_owned()]).collect::<Vec<_>>()
        };
        names.into_iter().flat_map(paths_and_name).collect()
    }

    /// Does podman take our runtime for one that can do what the others can? It goes by the name
    /// that it is given, which is ours in the table of runtimes, or the shim's file name.
    pub fn trusts_ours(&self) -> bool {
        let names = [RUNTIME, SHIM];
        let all_in = |list: &[String]| {
            names
                .iter()
                .all(|name| list.iter().any(|other| other == name))
        };
        all_in(&self.json) && all_in(&self.no_cgroups)
    }

    /// Do podman's hook files come from a directory?
    pub fn reads_hooks_in(&self, dir: &str) -> bool {
        self.hooks_dirs()
            .iter()
            .any(|other| other.trim_end_matches('/') == dir.trim_end_matches('/'))
    }

    /// The directories that are really read: with an empty list the default one.
    pub fn hooks_dirs(&self) -> Vec<String> {
        if self.hooks_dirs.is_empty() {
            return vec![DEFAULT_HOOKS_DIR.to_owned()];
        }
        self.hooks_dirs.clone()
    }

    /// Where our hook files go: the default directory where it is read, or else the last of those
    /// that are.
    pub fn hooks_dir(&self) -> String {
        let dirs = self.hooks_dirs();
        if self.reads_hooks_in(DEFAULT_HOOKS_DIR) {
            return DEFAULT_HOOKS_DIR.to_owned();
        }
        dirs.last().cloned().unwrap_or_default()
    }
}

/// Once a file has said `append`, the lists of later ones are appended too.
fn merge(list: &mut Vec<String>, appends: &mut bool, value: &Value) -> Result<()> {
    let mut own = Vec::new();
    for item in value.as_array().context("no list")? {
        match item {
            Value::String(text) => own.push(text.clone()),
            Value::Table(attributes) => {
                *appends = attributes
                    .get("append")
                    .and_then(Value::as_bool)
                    .context("no append")?;
            }
            _ => anyhow::bail!("neither a name nor append"),
        }
    }
    if *appends {
        list.extend(own);
    } else {
        *list = own;
    }
    Ok(())
}

/// The drop-in file, over `before`: what the files that are read before it come to. It names a
/// hooks directory only where that is not among those that are read. `None` where there is nothing
/// to say: no shim, and no such directory.
pub fn drop_in(before: &PodmanSettings, shim: Option<&str>, hooks_dir: &str) -> Option<String> {
    let mut lines = String::new();
    if shim.is_some() {
        lines.push_str(&runtime_lists(before));
    }
    if !before.reads_hooks_in(hooks_dir) {
        let own = if before.appends[0] {
            Vec::new()
        } else {
            before.hooks_dirs()
        };
        let dirs = own.into_iter().chain([hooks_dir.to_owned()]);
        lines.push_str(&format!("hooks_dir = {}\n", print(dirs)));
    }
    if let Some(shim) = shim {
        let paths = print([shim.to_owned()].into_iter());
        lines.push_str(&format!("\n[engine.runtimes]\n{RUNTIME} = {paths}\n"));
    }
    (!lines.is_empty()).then(|| {
        format!(
            "# By `pinfold install podman`; `pinfold uninstall podman` removes this file.\n[engine]\n{lines}"
        )
    })
}

/// The lists of runtimes with ours in them.
fn runtime_lists(before: &PodmanSettings) -> String {
    let with_ours = |list: &[String], appends: bool| {
        let names = [RUNTIME.to_owned(), SHIM.to_owned()];
        let missing = names.into_iter().filter(|name| !list.contains(name));
        // Where an earlier file says that lists are appended, ours is, too.
        let own = if appends { Vec::new() } else { list.to_vec() };
        print(own.into_iter().chain(missing))
    };
    let [_, json_append, no_cgroups_append] = before.appends;
    let json = with_ours(&before.json, json_append);
    let no_cgroups = with_ours(&before.no_cgroups, no_cgroups_append);
    format!(
        "# podman judges a runtime by its name. These are the lists that hold without this file, and Pinfold.\n\
         runtime_supports_json = {json}\n\
         # podman reads {NO_CGROUPS_KEY}; its manual says the other.\n\
         {NO_CGROUPS_KEY} = {no_cgroups}\n\
         {NO_CGROUPS_IN_MANUAL} = {no_cgroups}\n"
    )
}

fn print(names: impl Iterator<Item = String>) -> String {
    Value::Array(names.map(Value::String).collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_podman_runs_without_ours_follows_its_files() {
        for (files, expected) in [
            (&[][..], "crun runc"),
            (&["[engine]\nruntime = 'pinfold'"], "crun runc"),
            (
                &["[engine]\nruntime = '/usr/local/bin/pinfold-runtime'"],
                "crun runc",
            ),
            (&["[engine]\nruntime = 'runc'"], "runc"),
            (
                &[
                    "[engine]\nruntime = 'runc'",
                    "[engine]\nruntime = 'pinfold'",
                ],
                "runc",
            ),
            (
                &["[engine]\nruntime = 'mine'\n[engine.runtimes]\nmine = ['/a', '/b']"],
                "/a /b mine",
            ),
            (
                &["[engine.runtimes]\ncrun = ['/opt/crun']"],
                "/opt/crun crun runc",
            ),
            (&["[engine]\nruntime = '/opt/crun'"], "/opt/crun"),
        ] {
            let mut settings = PodmanSettings::default();
            for text in files {
                settings.read(text).unwrap();
            }
            assert_eq!(
                settings.runtimes_without_ours().join(" "),
                expected,
                "{files:?}"
            );
        }
    }
}
