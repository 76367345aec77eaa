//! Tells container engines of Pinfold, and takes that back: which of their files change, and to
//! what. Everything is planned before the first file is written.

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

pub use crate::engines::cdi::Kind as DeviceKind;
pub use apply::apply;
pub use cdi::{
    CdiState, cdi_devices, cdi_file, cdi_state, plan_cdi, plan_cdi_removal, plan_engine_devices,
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

use crate::engines::hooks::Whom;
use crate::engines::{Engine, Programs, RUNTIME, SHIM};
use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;
use crate::text::shell_word;

/// Suffix of the backup of a file as it was before the first install.
const BACKUP: &str = ".before-pinfold";

/// Where the engine and our programs are. Paths are as the engine sees them, below the host's root.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// The machine.
    pub host: &'a Host,
    /// The engine's configuration file, or our drop-in; `None` for the default place.
    pub engine_config: Option<String>,
    /// The directory for hook files; `None` for the one that the engine's configuration names.
    pub hooks_dir: Option<String>,
    /// The user whose rootless podman it is; `None` for the machine's engines.
    pub user: Option<User>,
    /// Options for the hooks; the shim reads the configuration file alone.
    pub hook_options: Vec<String>,
    /// The containers that hooks of podman and CRI-O are run for.
    pub whom: Whom,
}

/// What to change, or what was changed.
#[derive(Debug, Default)]
pub struct Plan {
    /// The files to change; none if everything is in place.
    pub changes: Vec<FileChange>,
    /// Directories of ours to remove if they are empty.
    pub directories: Vec<PathBuf>,
    /// What whoever installs has to know, one sentence each.
    pub remarks: Vec<String>,
    /// What cannot be as it should, although the changes can be made: whoever makes them fails.
    pub shortfalls: Vec<Refusal>,
}

/// The change of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileChange {
    /// The file, below the host's root, with symbolic links followed.
    pub path: PathBuf,
    /// The text now; `None` if the file is missing.
    pub before: Option<String>,
    /// The text to write; `None` to remove the file.
    pub after: Option<String>,
    /// The file whose mode and owner a new file gets.
    pub like: Option<PathBuf>,
}

impl Plan {
    /// Adds another plan to this one.
    pub fn and(&mut self, other: Plan) {
        self.changes.extend(other.changes);
        self.directories.extend(other.directories);
        self.remarks.extend(other.remarks);
        self.shortfalls.extend(other.shortfalls);
    }

    /// Fails where the plan's changes do not make all as it should be.
    ///
    /// # Errors
    /// What is not so, and why.
    pub fn ensure_whole(&self) -> Result<()> {
        ensure!(self.shortfalls.is_empty(), Refusal::all(&self.shortfalls));
        Ok(())
    }

    fn has(&self, found: &FileNow) -> bool {
        self.changes.iter().any(|change| change.path == found.path)
    }
}

/// Plans the changes that make an engine use our programs.
///
/// # Errors
/// A file cannot be read or is not in the engine's form: nothing is changed then.
pub fn plan(engine: Engine, place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    match engine {
        Engine::Podman => hooked::plan_podman(place, programs),
        Engine::Crio => hooked::plan_crio(place, programs),
        Engine::Containerd => containerd::plan(place, programs),
        Engine::Docker => docker::plan(place, programs),
    }
}

/// Plans the changes that make an engine forget our programs. A file that nobody changed since we
/// wrote it gets back its former text, to the last byte; other files lose only our part.
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
    /// Our programs in a directory, as the engine sees it; by default in the directory of the
    /// running one.
    ///
    /// # Errors
    /// A program is missing, cannot be executed, or can be changed by others than root, who runs
    /// it.
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

    /// The path of the shim, for engines that have no hooks.
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

/// How to make room for our file where somebody else's is: move theirs out of the directory, of
/// which CRI-O reads every file, and over no other file.
fn move_away(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let above = path.parent().and_then(Path::parent).unwrap_or(path);
    let (from, to) = (
        shell_word(path),
        shell_word(&above.join(format!("{name}.old"))),
    );
    format!("move it away: `mv --backup=numbered {from} {to}`")
}

/// Checks that an engine can run this program, and that root can trust it.
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
    /// The default places of an engine of the machine.
    pub fn default_on(host: &'a Host) -> Place<'a> {
        Place {
            host,
            engine_config: None,
            hooks_dir: None,
            user: None,
            hook_options: Vec::new(),
            whom: Whom::default(),
        }
    }

    /// The default places for whoever runs this: an ordinary user's podman reads the user's files
    /// as well.
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

/// A file and its present content.
#[derive(Debug, Clone)]
struct FileNow {
    path: PathBuf,
    text: Option<String>,
}

impl FileNow {
    /// Reads a file; `path` is as the engine sees it.
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

    /// The change that gives the file this text; `None` if it has it.
    fn become_text(&self, after: Option<String>) -> Option<FileChange> {
        let change = FileChange {
            path: self.path.clone(),
            before: self.text.clone(),
            after,
            like: None,
        };
        (change.before != change.after).then_some(change)
    }

    /// The change that makes a backup of the present text.
    fn keep_backup(&self) -> Result<Option<FileChange>> {
        let change = FileChange {
            path: self.backup(),
            before: self.backup_text()?,
            after: self.text.clone(),
            like: Some(self.path.clone()),
        };
        Ok((change.before != change.after).then_some(change))
    }

    /// A remark that somebody else's runtime of our name is in the backup.
    fn namesake_is_kept(&self) -> String {
        format!(
            "{} had a runtime of another kind called {RUNTIME}: ours takes its place until \
             `pinfold uninstall`, and {} has it",
            self.path.display(),
            self.backup().display()
        )
    }

    /// Removes the backup if it equals the file: an install was killed right after making it.
    fn drop_needless_backup(&self) -> Result<Option<FileChange>> {
        let is_needless = self.backup_text()? == self.text;
        Ok(self.drop_backup()?.filter(|_| is_needless))
    }

    /// The change that removes the backup.
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
