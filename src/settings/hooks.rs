//! The options by which hooks find the pools of whoever writes them down.

use anyhow::{Context, Result};

use super::Settings;
use crate::cli::Options;
use crate::engines::hooks::Whom;

/// The options of a command that hooks need too: an engine gives hooks no environment.
///
/// # Errors
/// A path is not UTF-8.
pub fn hook_options(options: &Options) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for (option, path) in [
        ("--conf-dir", &options.conf_dir),
        ("--run-dir", &options.run_dir),
        ("--config", &options.config),
    ] {
        if let Some(path) = path {
            let path = std::path::absolute(path)?;
            let path = path
                .to_str()
                .with_context(|| format!("{} is not UTF-8", path.display()))?;
            words.extend([option.to_owned(), path.to_owned()]);
        }
    }
    Ok(words)
}

impl Settings {
    /// Which containers hooks are to be run for.
    pub fn whom(&self) -> Whom {
        match self.host_table.default_pool {
            Some(_) => Whom::Everybody,
            None => Whom::Annotated,
        }
    }

    /// The options of devices' hooks. They name the pools unless these are at the default place, so
    /// that other pools never replace them.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn device_options(&self, options: &Options) -> Result<Vec<String>> {
        let site = &self.site;
        let mut words = hook_options(options)?;
        if options.conf_dir.is_none() && site.conf_dir != site.host.default_conf_dir() {
            words.extend(["--conf-dir".to_owned(), site.conf_dir.display().to_string()]);
        }
        Ok(words)
    }
}
