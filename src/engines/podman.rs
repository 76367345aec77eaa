//! Reads podman's `containers.conf`, and writes the drop-in file that tells it of the shim
//! (containers.conf(5)).
//!
//! A file's keys and lists replace the same keys of the files before it. A list with
//! `{append=true}` is appended instead, but podman before 4.7 takes that for an error: so the
//! drop-in repeats what the lists had.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use toml::{Table, Value};

use super::{RUNTIME, SHIM};

/// The hooks directory of podman and CRI-O where nothing else is configured.
pub const DEFAULT_HOOKS_DIR: &str = "/usr/share/containers/oci/hooks.d";

/// podman's key for the runtimes that need no cgroups. Its manual has one letter more, and podman
/// ignores that key (containers/common: pkg/config/config.go, `RuntimeSupportsNoCgroups`).
const NO_CGROUPS_KEY: &str = "runtime_supports_nocgroup";
const NO_CGROUPS_IN_MANUAL: &str = "runtime_supports_nocgroups";

/// podman's built-in runtimes that understand `--log-format=json`: the union of 4.3 to 5.8.
const JSON: [&str; 7] = ["crun", "crun-vm", "runc", "kata", "runsc", "youki", "krun"];
/// podman's built-in runtimes that need no cgroups, likewise.
const NO_CGROUPS: [&str; 3] = ["crun", "crun-vm", "krun"];

/// The runtimes for which podman looks, in this order, if no file names one.
const SEARCHED: [&str; 2] = ["crun", "runc"];

/// Is this our runtime, by its name in the table of runtimes or by its path?
fn is_ours(runtime: &str) -> bool {
    runtime == RUNTIME || runtime.rsplit('/').next() == Some(SHIM)
}

/// The settings of all files together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodmanSettings {
    /// The directories of hook files. Of files with the same name, the one in the later directory
    /// counts.
    pub hooks_dirs: Vec<String>,
    /// The runtimes that understand `--log-format=json`.
    pub json: Vec<String>,
    /// The runtimes that can run a container without a cgroup of its own.
    pub no_cgroups: Vec<String>,
    /// The paths at which our runtime is looked for.
    pub shim: Vec<String>,
    /// The runtime of containers that name none; `None` if no file says.
    pub runtime: Option<String>,
    /// The last such runtime in a file that is not ours.
    other_runtime: Option<String>,
    /// The paths at which runtimes are looked for, by name.
    runtimes: BTreeMap<String, Vec<String>>,
    /// For each of the three lists, whether a file has said that it is appended to.
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
    /// Adds the settings of the next file.
    ///
    /// # Errors
    /// It is not TOML, or a list is not one of names: podman does not start with it.
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

    /// What podman would run without our runtime for a container that names none: names and paths,
    /// of which the first that exists counts (containers/common: pkg/config/config.go,
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

    /// Does podman know that our runtime can do what the others can? It goes by the name that it is
    /// given: ours in the table of runtimes, or the shim's file name.
    pub fn trusts_ours(&self) -> bool {
        let names = [RUNTIME, SHIM];
        let all_in = |list: &[String]| {
            names
                .iter()
                .all(|name| list.iter().any(|other| other == name))
        };
        all_in(&self.json) && all_in(&self.no_cgroups)
    }

    /// Does podman read hook files in this directory?
    pub fn reads_hooks_in(&self, dir: &str) -> bool {
        self.hooks_dirs()
            .iter()
            .any(|other| other.trim_end_matches('/') == dir.trim_end_matches('/'))
    }

    /// The directories that podman really reads: if the list is empty, the default one.
    pub fn hooks_dirs(&self) -> Vec<String> {
        if self.hooks_dirs.is_empty() {
            return vec![DEFAULT_HOOKS_DIR.to_owned()];
        }
        self.hooks_dirs.clone()
    }

    /// The directory for our hook files: the default one if podman reads it, or else the last one
    /// that it reads.
    pub fn hooks_dir(&self) -> String {
        let dirs = self.hooks_dirs();
        if self.reads_hooks_in(DEFAULT_HOOKS_DIR) {
            return DEFAULT_HOOKS_DIR.to_owned();
        }
        dirs.last().cloned().unwrap_or_default()
    }
}

/// Merges a list of the next file. Once a file has said `append`, the lists of later ones are
/// appended too.
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

/// The text of the drop-in file. It names the hooks directory only if podman does not read it yet.
/// `None` if there is nothing to say: no shim, and no such directory. `before` are the settings of
/// the files that are read before it.
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
            "# By `pinfold install podman`; `pinfold uninstall podman` removes this file.\n\
             [engine]\n{lines}"
        )
    })
}

/// The lists of runtimes, with ours added.
fn runtime_lists(before: &PodmanSettings) -> String {
    let with_ours = |list: &[String], appends: bool| {
        let names = [RUNTIME.to_owned(), SHIM.to_owned()];
        let missing = names.into_iter().filter(|name| !list.contains(name));
        // If an earlier file says that lists are appended to, ours is appended too.
        let own = if appends { Vec::new() } else { list.to_vec() };
        print(own.into_iter().chain(missing))
    };
    let [_, json_append, no_cgroups_append] = before.appends;
    let json = with_ours(&before.json, json_append);
    let no_cgroups = with_ours(&before.no_cgroups, no_cgroups_append);
    format!(
        "# podman judges a runtime by its name. These are the lists that hold \
         without this file, and Pinfold.\n\
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
