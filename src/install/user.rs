//! The directories of podman without root: a user's own, in which its configuration is read after the machine's
//! (containers.conf(5); containers/common: pkg/config/new.go, `systemConfigs`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::{self, geteuid};

use crate::host::Host;
use crate::refusal::Refusal;

/// A user's directories (XDG Base Directory Specification). Nothing in a file that names them is expanded, so they are
/// absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `$XDG_CONFIG_HOME`, or `~/.config`.
    config: String,
    /// `$XDG_RUNTIME_DIR`, or `/run/user/<uid>`.
    runtime: String,
}

impl User {
    /// Those of the user who runs this, as its environment and its entry in passwd(5) say.
    ///
    /// # Errors
    /// One that is no absolute path; a user without a home directory.
    pub fn of_environment() -> Result<User> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let config = match variable("XDG_CONFIG_HOME") {
            Some(dir) => PathBuf::from(dir),
            None => {
                let of_passwd = || Some(unistd::User::from_uid(geteuid()).ok()??.dir);
                let home = variable("HOME").map(PathBuf::from).or_else(of_passwd);
                home.ok_or_else(|| Refusal::new("you have no home directory", "set HOME"))?
                    .join(".config")
            }
        };
        let runtime = match variable("XDG_RUNTIME_DIR") {
            Some(dir) => PathBuf::from(dir),
            None => Path::new("/run/user").join(geteuid().to_string()),
        };
        let user = User {
            config: absolute(&config)?,
            runtime: absolute(&runtime)?,
        };
        Ok(user)
    }

    /// Are we an ordinary user, or what podman without root makes of one: root of a user namespace?
    pub fn is_meant(host: &Host) -> bool {
        host.is_running_root() && (!geteuid().is_root() || host.unknown_root().is_some())
    }

    /// The file that podman reads last but for those of [`User::containers_dir`].
    pub fn containers_conf(&self) -> String {
        format!("{}/containers/containers.conf", self.config)
    }

    /// The directory of further files.
    pub fn containers_dir(&self) -> String {
        format!("{}/containers/containers.conf.d", self.config)
    }

    /// Where our hook files go.
    pub fn hooks_dir(&self) -> String {
        format!("{}/containers/oci/hooks.d", self.config)
    }

    /// Where a user's pools are, where none is named.
    pub fn conf_dir(&self) -> String {
        format!("{}/pinfold/kcm", self.config)
    }

    /// Where the claims on them are.
    pub fn run_dir(&self) -> String {
        format!("{}/pinfold", self.runtime)
    }
}

fn absolute(path: &Path) -> Result<String> {
    ensure!(
        path.is_absolute(),
        "{} is not an absolute path: podman would look for it elsewhere",
        path.display()
    );
    let text = path
        .to_str()
        .map(|text| text.trim_end_matches('/').to_owned());
    text.with_context(|| format!("{} is not UTF-8", path.display()))
}
