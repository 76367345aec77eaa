//! The directories of rootless podman: it reads a user's own configuration after the machine's
//! (containers.conf(5); containers/common: pkg/config/new.go, `systemConfigs`).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::unistd::{self, geteuid};

use crate::host::Host;
use crate::refusal::Refusal;

/// A user's directories (XDG Base Directory Specification). They are absolute: engines expand
/// nothing in the files that name them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// `$XDG_CONFIG_HOME`, or `~/.config`.
    config: String,
    /// `$XDG_RUNTIME_DIR`, or `/run/user/<uid>`.
    runtime: String,
}

impl User {
    /// The directories of the user who runs this, from the environment and passwd(5).
    ///
    /// # Errors
    /// A directory is no absolute path; the user has no home directory.
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

    /// Is this an ordinary user, or root of rootless podman's user namespace?
    pub fn is_meant(host: &Host) -> bool {
        host.is_running_root() && (!geteuid().is_root() || host.unknown_root().is_some())
    }

    /// The user's `containers.conf`; only the files of [`User::containers_dir`] are read later.
    pub fn containers_conf(&self) -> String {
        format!("{}/containers/containers.conf", self.config)
    }

    /// The directory of the user's further files.
    pub fn containers_dir(&self) -> String {
        format!("{}/containers/containers.conf.d", self.config)
    }

    /// The directory for our hook files.
    pub fn hooks_dir(&self) -> String {
        format!("{}/containers/oci/hooks.d", self.config)
    }

    /// A user's default pool directory.
    pub fn conf_dir(&self) -> String {
        format!("{}/pinfold/kcm", self.config)
    }

    /// A user's default run directory.
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
