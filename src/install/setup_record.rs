//! What `pinfold setup` did, so that `--undo` takes back exactly that.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::engines::Engine;
use crate::files::{self, Durability};
use crate::host::Host;
use crate::refusal::{OrRefuse, Refusal};

/// The record, a JSON document.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetupRecord {
    /// The pool directory that setup made.
    pub pools: Option<PathBuf>,
    /// The mark of that directory: another directory may have come to its path.
    #[serde(default)]
    pub lock: Option<String>,
    /// The run directory, if one was named.
    #[serde(default)]
    pub run_dir: Option<PathBuf>,
    /// The configuration file, if one was named.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// The words of the engines that setup told of Pinfold.
    engines: Vec<String>,
}

impl SetupRecord {
    /// Reads the record; `None` if there is none.
    ///
    /// # Errors
    /// Others can write the file, or it is not in this form.
    pub fn read(host: &Host) -> Result<Option<SetupRecord>> {
        let path = host.setup_record();
        if files::entry_if_there(&path)?.is_none() {
            return Ok(None);
        }
        files::ensure_trusted_way(&path, || host.unknown_root())?;
        files::trusted_of_machine(&path, || host.unknown_root())?;
        let text = files::read_text_if_there(&path)?.unwrap_or_default();
        let record = serde_json::from_str(&text).or_refuse(|| {
            Refusal::new(
                format!("read {}", path.display()),
                "remove it, and take back by hand: `pinfold uninstall ENGINE`",
            )
        });
        record.map(Some)
    }

    /// Writes the record, before the steps that it names are done.
    pub fn write(&self, host: &Host) -> Result<()> {
        let path = host.setup_record();
        let directory = path.parent().context("a path without a directory")?;
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory);
        made.with_context(|| format!("make {}", directory.display()))?;
        let text = serde_json::to_vec(self)?;
        files::replace(&path, &text, 0o644, Durability::PowerLoss)
    }

    /// Removes the record once everything is taken back.
    pub fn remove(host: &Host) -> Result<()> {
        files::remove(&host.setup_record())
    }

    /// Adds an engine that setup is about to tell of Pinfold.
    pub fn add(&mut self, engine: Engine) {
        if !self.engines().contains(&engine) {
            self.engines.push(engine.word().to_owned());
        }
    }

    /// The engines that setup told of Pinfold.
    pub fn engines(&self) -> Vec<Engine> {
        let engines = self.engines.iter();
        engines.filter_map(|word| Engine::by_word(word)).collect()
    }
}
