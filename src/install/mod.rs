//! Telling container engines of Pinfold, and taking that back: which of their files have to change to what. Everything is
//! planned before the first file is written.

mod apply;
mod cdi;
mod containerd;
mod default_runtime;
mod docker;
mod hooked;
mod setup_record;
mod user;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

pub use apply::apply;
pub use cdi::{
    CdiState, cdi_state, plan_cdi, plan_cdi_removal, plan_engine_devices,
    plan_engine_devices_removal, plan_refresh, refresh_cdi,
};
pub use containerd::configuration as containerd_configuration;
pub use default_runtime::default_runtime;
pub use docker::daemon_json;
use docker::wiring as docker_wiring;
use hooked::podman_hook;
pub use hooked::{EngineFiles, crio_files, podman_files};
pub use setup_record::SetupRecord;
pub use user::User;

use crate::engines::{Engine, Programs, RUNTIME, SHIM};
use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;
use crate::text::shell_word;

/// What a file was before the first install is kept beside it under its name and this.
const BACKUP: &str = ".before-pinfold";

/// Where the engine and our programs are. Paths are as the engine sees them, below the host's root.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The engine's configuration file, or our drop-in file, where it is not at its default place.
    pub engine_config: Option<String>,
    /// The directory for hook files, where it is to be another than the engine's configuration says.
    pub hooks_dir: Option<String>,
    /// Whose podman it is, where it runs without root.
    pub user: Option<User>,
    /// Options for the hooks; the shim takes its settings from the configuration file alone.
    pub hook_options: Vec<String>,
}

/// What is to be done, or was.
#[derive(Debug, Default)]
pub struct Plan {
    /// The files that change; none where everything is as it should be.
    pub changes: Vec<FileChange>,
    /// Directories of ours, which go when they are empty.
    pub directories: Vec<PathBuf>,
    /// What whoever installs has to know: a sentence each.
    pub remarks: Vec<String>,
}

/// One file that changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The file, below the host's root, with symbolic links followed.
    pub path: PathBuf,
    /// What is in it; `None` where it is not there.
    pub before: Option<String>,
    /// What is to be in it; `None` where it is to go.
    pub after: Option<String>,
    /// The file whose mode and owner it gets where it is not there.
    pub like: Option<PathBuf>,
}

impl Plan {
    /// Takes what is to be done besides.
    pub fn and(&mut self, other: Plan) {
        self.changes.extend(other.changes);
        self.directories.extend(other.directories);
        self.remarks.extend(other.remarks);
    }

    fn has(&self, found: &FileNow) -> bool {
        self.changes.iter().any(|change| change.path == found.path)
    }
}

/// Plans what makes an engine know our programs.
///
/// # Errors
/// A file that cannot be read or is not in the engine's form: nothing is then changed.
pub fn plan(engine: Engine, place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    match engine {
        Engine::Podman => hooked::plan_podman(place, programs),
        Engine::Crio => hooked::plan_crio(place, programs),
        Engine::Containerd => containerd::plan(place, programs),
        Engine::Docker => docker::plan(place, programs),
    }
}

/// Plans what makes an engine forget them. What we wrote and nobody changed since gets back what it was, to the last
/// byte; of other files only what is ours is taken out.
///
/// # Errors
/// Those of [`plan`]; and an engine that could not start its containers any more.
pub fn plan_removal(engine: Engine, place: &Place<'_>) -> Result<Plan> {
    match engine {
        Engine::Podman => hooked::plan_podman_removal(place),
        Engine::Crio => hooked::plan_crio_removal(place),
        Engine::Containerd => containerd::plan_removal(place),
        Engine::Docker => docker::plan_removal(place),
    }
}

impl Programs {
    /// Our programs in a directory, as the engine sees it; or beside the one that runs now.
    ///
    /// # Errors
    /// One that is not there, that cannot be executed, or that others than root can change: engines run it as root.
    pub fn find(host: &Host, bin_dir: Option<&Path>) -> Result<Programs> {
        let dir = match bin_dir {
            Some(dir) => dir.to_owned(),
            None => {
                let own = std::env::current_exe().context("find out where this program is")?;
                own.parent().unwrap_or(Path::new("/")).to_owned()
            }
        };
        let path = |name: &str| {
            let path = dir.join(name);
            let text = path.to_str().map(str::to_owned);
            text.with_context(|| format!("{} is not UTF-8", path.display()))
        };
        let (pinfold, shim) = (path("pinfold")?, path(SHIM)?);
        check_program(host, &pinfold)?;
        let has_shim = files::metadata_if_there(&host.resolve(&shim)?)?.is_some();
        if has_shim {
            check_program(host, &shim)?;
        }
        Ok(Programs {
            pinfold,
            shim: has_shim.then_some(shim),
        })
    }

    /// The shim, for engines that have no hooks.
    fn shim(&self) -> Result<&str> {
        let shim = self.shim.as_deref().ok_or_else(|| {
            Refusal::new(
                format!("there is no {SHIM} beside {}", self.pinfold),
                "install it there, or name the directory of both by --bin-dir",
            )
        });
        Ok(shim?)
    }
}

/// How a file of others makes room for ours: out of its directory, of which CRI-O reads every file,
/// and over no other.
fn move_away(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let above = path.parent().and_then(Path::parent).unwrap_or(path);
    let (from, to) = (
        shell_word(path),
        shell_word(&above.join(format!("{name}.old"))),
    );
    format!("move it away: `mv --backup=numbered {from} {to}`")
}

/// Is this a program that an engine can run, and that root can trust?
pub fn check_program(host: &Host, path: &str) -> Result<()> {
    ensure!(path.starts_with('/'), "{path} is not an absolute path");
    let real = host
        .resolve(path)
        .with_context(|| format!("look at {path}"))?;
    let found = files::metadata_if_there(&real)?;
    ensure!(
        found.is_some_and(|found| found.is_file()),
        Refusal::new(
            format!("there is no {path}"),
            "install it there, or name the directory of pinfold by --bin-dir"
        )
    );
    let metadata = files::trusted(&real)?;
    ensure!(
        is_executable(&metadata),
        Refusal::new(
            format!("{path} cannot be executed"),
            format!("`chmod a+x {}`", shell_word(&real))
        )
    );
    if let Some(dir) = real.parent() {
        files::trusted(dir)?;
    }
    Ok(())
}

fn is_executable(metadata: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    metadata.permissions().mode() & 0o111 == 0o111
}

impl<'a> Place<'a> {
    /// Everything where engines have it.
    pub fn default_on(host: &'a Host) -> Place<'a> {
        Place {
            host,
            engine_config: None,
            hooks_dir: None,
            user: None,
            hook_options: Vec::new(),
        }
    }

    /// The same for whoever runs this: an ordinary user's podman reads the user's files as well.
    pub fn own_on(host: &'a Host) -> Place<'a> {
        let user = User::is_meant(host).then(|| User::of_environment().ok());
        Place {
            user: user.flatten(),
            ..Place::default_on(host)
        }
    }

    fn engine_config<'b>(&'b self, default: &'b str) -> &'b str {
        self.engine_config.as_deref().unwrap_or(default)
    }
}

/// A file as it is now.
#[derive(Debug, Clone)]
struct FileNow {
    path: PathBuf,
    text: Option<String>,
}

impl FileNow {
    /// Reads a file, by its path as the engine sees it.
    fn at(host: &Host, path: &str) -> Result<FileNow> {
        let path = host
            .resolve(path)
            .with_context(|| format!("look at {path}"))?;
        let text = files::read_text_if_there(&path)?;
        Ok(FileNow { path, text })
    }

    fn backup(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(BACKUP);
        name.into()
    }

    fn backup_text(&self) -> Result<Option<String>> {
        files::read_text_if_there(&self.backup())
    }

    /// The change that gives it another content, if it is another.
    fn become_text(&self, after: Option<String>) -> Option<FileChange> {
        let change = FileChange {
            path: self.path.clone(),
            before: self.text.clone(),
            after,
            like: None,
        };
        (change.before != change.after).then_some(change)
    }

    /// The change that keeps what it is now beside it.
    fn keep_backup(&self) -> Result<Option<FileChange>> {
        let change = FileChange {
            path: self.backup(),
            before: self.backup_text()?,
            after: self.text.clone(),
            like: Some(self.path.clone()),
        };
        Ok((change.before != change.after).then_some(change))
    }

    /// What to know where somebody else's runtime has gone by our name.
    fn namesake_is_kept(&self) -> String {
        format!(
            "{} had a runtime of another kind called {RUNTIME}: ours takes its place until `pinfold uninstall`, and {} has it",
            self.path.display(),
            self.backup().display()
        )
    }

    /// The change that removes that copy where the file is the same: an install was killed after it was made.
    fn drop_needless_backup(&self) -> Result<Option<FileChange>> {
        let is_needless = self.backup_text()? == self.text;
        Ok(self.drop_backup()?.filter(|_| is_needless))
    }

    /// The change that removes that copy.
    fn drop_backup(&self) -> Result<Option<FileChange>> {
        let change = FileChange {
            path: self.backup(),
            before: self.backup_text()?,
            after: None,
            like: Some(self.path.clone()),
        };
        Ok(change.before.is_some().then_some(change))
    }
}
