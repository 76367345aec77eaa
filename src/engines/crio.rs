//! Reads CRI-O's configuration, and writes the drop-in file that tells it of the shim and of our
//! own hooks directory (crio.conf(5), crio.conf.d(5)). A later file's keys, lists and handlers
//! replace those of earlier files as a whole.

use anyhow::Result;
use toml::{Table, Value};

use super::RUNTIME;
use super::nri::NriSettings;
use super::podman::DEFAULT_HOOKS_DIR;

/// CRI-O's default state directory of a runtime.
const RUNTIME_ROOT: &str = "/run/runc";
/// The keys of a handler that are about its program: copied to ours, they would lead past the shim.
const OF_PROGRAM: [&str; 5] = [
    "runtime_path",
    "runtime_type",
    "platform_runtime_paths",
    "inherit_default_runtime",
    "runtime_config_path",
];

/// The settings of all files together.
#[derive(Debug, Clone, PartialEq)]
pub struct CrioSettings {
    /// The directories of hook files. Of files with the same name, the one in the later directory
    /// counts.
    pub hooks_dirs: Vec<String>,
    /// The handler of pods that name none; `None` if no file says.
    pub default_runtime: Option<String>,
    /// What the files say of NRI.
    pub nri: NriSettings,
    handlers: Table,
}

impl Default for CrioSettings {
    fn default() -> Self {
        CrioSettings {
            hooks_dirs: vec![DEFAULT_HOOKS_DIR.to_owned()],
            default_runtime: None,
            nri: NriSettings::default(),
            handlers: Table::new(),
        }
    }
}

impl CrioSettings {
    /// Adds the settings of the next file.
    ///
    /// # Errors
    /// It is not TOML: CRI-O does not start with it.
    pub fn read(&mut self, text: &str) -> Result<()> {
        let table: Table = toml::from_str(text)
            .map_err(|error| anyhow::anyhow!("it is not TOML: {}", error.message()))?;
        let Some(crio) = table.get("crio").and_then(Value::as_table) else {
            return Ok(());
        };
        self.nri.add_crio(crio);
        let Some(runtime) = crio.get("runtime").and_then(Value::as_table) else {
            return Ok(());
        };
        if let Some(dirs) = runtime.get("hooks_dir").and_then(Value::as_array) {
            self.hooks_dirs = dirs
                .iter()
                .filter_map(|dir| dir.as_str().map(str::to_owned))
                .collect();
        }
        if let Some(name) = runtime.get("default_runtime").and_then(Value::as_str) {
            self.default_runtime = Some(name.to_owned());
        }
        for (name, handler) in runtime
            .get("runtimes")
            .and_then(Value::as_table)
            .into_iter()
            .flatten()
        {
            self.handlers.insert(name.clone(), handler.clone());
        }
        Ok(())
    }

    /// What CRI-O would run without our handler for a pod that names none: a name or a path; `None`
    /// if no file says.
    pub fn runtime_without_ours(&self) -> Option<&str> {
        let name = self.default_runtime.as_deref();
        let name = name.filter(|name| *name != RUNTIME)?;
        let path = || self.handlers.get(name)?.get("runtime_path")?.as_str();
        Some(path().filter(|path| !path.is_empty()).unwrap_or(name))
    }

    /// The program of our handler; `None` if there is no such handler.
    pub fn shim(&self) -> Option<&str> {
        self.handlers.get(RUNTIME)?.get("runtime_path")?.as_str()
    }

    /// The handler from which ours is copied: the default one, or else runc's, or else crun's, if
    /// it is an OCI runtime.
    fn model(&self) -> Option<&Table> {
        let default = self.default_runtime.as_deref();
        let names = [default, Some("runc"), Some("crun")].into_iter().flatten();
        let mut handlers = names
            .filter(|name| *name != RUNTIME)
            .filter_map(|name| self.handlers.get(name)?.as_table());
        handlers.find(|handler| {
            let kind = handler
                .get("runtime_type")
                .and_then(Value::as_str)
                .unwrap_or_default();
            matches!(kind, "" | "oci")
        })
    }
}

/// The text of the drop-in file; without a shim it has no handler. `before` are the settings of the
/// files that are read before it.
pub fn drop_in(before: &CrioSettings, shim: Option<&str>, hooks_dir: &str) -> Result<String> {
    let mut dirs = before.hooks_dirs.clone();
    dirs.retain(|dir| dir != hooks_dir);
    dirs.push(hooks_dir.to_owned());
    let dirs = Value::Array(dirs.into_iter().map(Value::String).collect());
    let handler = shim.map(|shim| handler(before, shim)).transpose()?;
    Ok(format!(
        "# By `pinfold install crio`; `pinfold uninstall crio` removes this file.\n\
         [crio.runtime]\n\
         # The directories that hold without this file, and Pinfold's own.\n\
         hooks_dir = {dirs}\n{}",
        handler.unwrap_or_default()
    ))
}

fn handler(before: &CrioSettings, shim: &str) -> Result<String> {
    let mut handler = Table::new();
    handler.insert("runtime_path".into(), shim.into());
    handler.insert("runtime_type".into(), "oci".into());
    handler.insert("runtime_root".into(), RUNTIME_ROOT.into());
    for (key, value) in before.model().into_iter().flatten() {
        if !OF_PROGRAM.contains(&key.as_str()) {
            handler.insert(key.clone(), value.clone());
        }
    }
    let path = [RUNTIME, "runtimes", "runtime", "crio"].into_iter();
    let in_place = path.fold(handler, |inner, name| {
        Table::from_iter([(name.to_owned(), Value::Table(inner))])
    });
    Ok(format!(
        "\n# For pods of a RuntimeClass with the handler {RUNTIME}; others are \
         pinned by the hooks.\n{}",
        toml::to_string(&in_place)?
    ))
}
