//! podman and CRI-O: hook files, and a drop-in file of our own.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{FileChange, FileNow, Place, Plan, User, move_away};
use crate::engines::hooks::Whom;
use crate::engines::{Engine, Programs, RUNTIME, SHIM, crio, hooks, is_shim, podman};
use crate::files;
use crate::host::Host;
use crate::refusal::Refusal;
use crate::text::Shown;

/// podman's files, in the order in which it reads them; then come the directory's files, sorted.
const PODMAN_FILES: [&str; 2] = [
    "/usr/share/containers/containers.conf",
    "/etc/containers/containers.conf",
];
const PODMAN_DIR: &str = "/etc/containers/containers.conf.d";
/// Our drop-in. It has to be the last by name: a later file's lists would replace ours.
const PODMAN_DROP_IN: &str = "/etc/containers/containers.conf.d/99-pinfold.conf";

const CRIO_FILES: [&str; 1] = ["/etc/crio/crio.conf"];
const CRIO_DIR: &str = "/etc/crio/crio.conf.d";
const CRIO_DROP_IN: &str = "/etc/crio/crio.conf.d/99-pinfold.conf";
/// Our own hook directory: podman and CRI-O read the same default directory, and our hook files
/// name one engine.
const CRIO_HOOKS_DIR: &str = "/etc/pinfold/crio-hooks.d";

/// The beginning of the first line of our drop-in files.
const OURS: &str = "# By `pinfold install ";

/// An engine's configuration as it stands.
#[derive(Debug)]
pub struct EngineFiles<S> {
    /// The settings of the files that are read before our drop-in.
    pub before: S,
    /// The settings of all files.
    pub all: S,
    /// Our drop-in, which may be missing.
    drop_in: FileNow,
    /// Temporary files that a killed install left beside the drop-in.
    leftovers: Vec<FileNow>,
}

impl<S> EngineFiles<S> {
    /// The text of our drop-in; `None` if it is missing.
    pub fn drop_in(&self) -> Option<&str> {
        self.drop_in.text.as_deref()
    }

    /// The temporary files that a killed install left beside our drop-in: CRI-O reads every file of
    /// its directory.
    pub fn leftovers(&self) -> impl Iterator<Item = &Path> {
        self.leftovers.iter().map(|found| found.path.as_path())
    }

    /// The changes that give our drop-in this text, or remove it, and that remove leftovers.
    fn changes(&self, text: Option<String>) -> Result<Vec<FileChange>> {
        let leftovers = self
            .leftovers
            .iter()
            .filter_map(|found| found.become_text(None));
        let drop_in = ours(&self.drop_in)?.become_text(text);
        Ok(leftovers.chain(drop_in).collect())
    }
}

/// podman's configuration.
///
/// # Errors
/// A file cannot be read, or is not in podman's form.
pub fn podman_files(place: &Place<'_>) -> Result<EngineFiles<podman::PodmanSettings>> {
    let mut layers = vec![Layer {
        files: PODMAN_FILES.map(str::to_owned).to_vec(),
        dir: PODMAN_DIR.to_owned(),
    }];
    layers.extend(place.user.iter().map(|user| Layer {
        files: vec![user.containers_conf()],
        dir: user.containers_dir(),
    }));
    let own = place.user.as_ref().map(|user| {
        let (_, name) = PODMAN_DROP_IN.rsplit_once('/').unwrap_or_default();
        format!("{}/{name}", user.containers_dir())
    });
    let sources = Sources {
        layers,
        suffix: ".conf",
        drop_in: place.engine_config(own.as_deref().unwrap_or(PODMAN_DROP_IN)),
    };
    sources.read(place.host, podman::PodmanSettings::read)
}

/// CRI-O's configuration.
///
/// # Errors
/// A file cannot be read, or is not in CRI-O's form.
pub fn crio_files(place: &Place<'_>) -> Result<EngineFiles<crio::CrioSettings>> {
    let sources = Sources {
        layers: vec![Layer {
            files: CRIO_FILES.map(str::to_owned).to_vec(),
            dir: CRIO_DIR.to_owned(),
        }],
        suffix: "",
        drop_in: place.engine_config(CRIO_DROP_IN),
    };
    sources.read(place.host, crio::CrioSettings::read)
}

/// Files, and a directory whose files are read after them, by name.
struct Layer {
    files: Vec<String>,
    dir: String,
}

/// The files of an engine's configuration, in the order in which it reads them.
struct Sources<'a> {
    /// The machine's files, and then a user's.
    layers: Vec<Layer>,
    /// The suffix of the files that are read in a directory.
    suffix: &'a str,
    /// The path of our drop-in, in the last directory or anywhere else.
    drop_in: &'a str,
}

impl Sources<'_> {
    fn read<S: Default + Clone>(
        &self,
        host: &Host,
        read: fn(&mut S, &str) -> Result<()>,
    ) -> Result<EngineFiles<S>> {
        let name = self.drop_in.rsplit('/').next().unwrap_or_default();
        let prefix = files::temporary_prefix(name);
        let last = self.layers.last().map_or("", |layer| &layer.dir);
        let (mut paths, mut half_written) = (Vec::new(), Vec::new());
        for layer in &self.layers {
            paths.extend(layer.files.iter().cloned());
            let mut names = files::names_in(&host.resolve(&layer.dir)?)?;
            names.sort();
            for name in names {
                let path = format!("{}/{name}", layer.dir);
                if layer.dir == last && name.starts_with(&prefix) {
                    half_written.push(FileNow::at(host, &path)?);
                } else if name.ends_with(self.suffix) {
                    paths.push(path);
                }
            }
        }
        let is_later = |path: &str| {
            let in_last = |path: &str| path.rsplit_once('/').is_some_and(|(dir, _)| dir == last);
            in_last(self.drop_in) && in_last(path) && path > self.drop_in
        };
        let take = |settings: &mut S, path: &str| match FileNow::at(host, path)?.text {
            Some(text) => read(settings, &text).with_context(|| path.to_owned()),
            None => Ok(()),
        };
        let mut all = S::default();
        for path in &paths {
            if path != self.drop_in && !is_later(path) {
                take(&mut all, path)?;
            }
        }
        let before = all.clone();
        take(&mut all, self.drop_in)?;
        for path in paths.iter().filter(|path| is_later(path)) {
            take(&mut all, path)?;
        }
        Ok(EngineFiles {
            before,
            all,
            drop_in: FileNow::at(host, self.drop_in)?,
            leftovers: half_written,
        })
    }
}

pub(super) fn plan_podman(place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let files = podman_files(place)?;
    let own = place.user.as_ref().map(User::hooks_dir);
    let hooks_dir = place.hooks_dir.clone().or(own);
    let hooks_dir = hooks_dir.unwrap_or_else(|| files.before.hooks_dir());
    let mut plan = plan_hooks(place, &hooks_dir, programs, Engine::Podman)?;
    // The shim takes its settings from the machine's configuration file, which does not name a
    // user's pools.
    let shim = programs.shim.as_deref().filter(|_| place.user.is_none());
    if shim.is_some() {
        plan.remarks.extend(namesake(&files.before.shim));
    }
    let text = podman::drop_in(&files.before, shim, &hooks_dir);
    plan.changes.extend(files.changes(text)?);
    Ok(plan)
}

pub(super) fn plan_crio(place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let files = crio_files(place)?;
    let hooks_dir = place
        .hooks_dir
        .clone()
        .unwrap_or_else(|| CRIO_HOOKS_DIR.to_owned());
    let mut plan = plan_hooks(place, &hooks_dir, programs, Engine::Crio)?;
    plan.remarks.extend(namesake(files.before.shim()));
    let text = crio::drop_in(&files.before, programs.shim.as_deref(), &hooks_dir)?;
    plan.changes.extend(files.changes(Some(text))?);
    Ok(plan)
}

pub(super) fn plan_podman_removal(place: &Place<'_>) -> Result<Plan> {
    let files = podman_files(place)?;
    if files.all.runtime.as_deref() == Some(RUNTIME) && place.user.is_none() {
        bail!(Refusal::new(
            format!("runtime is {RUNTIME} in podman's configuration"),
            "name another one there first"
        ));
    }
    let Some(user) = &place.user else {
        let mut dirs = files.all.hooks_dirs();
        dirs.extend(place.hooks_dir.clone());
        return plan_hooked_removal(place.host, &dirs, &files);
    };
    // Hook files in the machine's own directories stay.
    let dirs = [Some(user.hooks_dir()), place.hooks_dir.clone()];
    let dirs: Vec<String> = dirs.into_iter().flatten().collect();
    let mut plan = plan_hooked_removal(place.host, &dirs, &files)?;
    plan.directories
        .push(place.host.resolve(&user.hooks_dir())?);
    Ok(plan)
}

pub(super) fn plan_crio_removal(place: &Place<'_>) -> Result<Plan> {
    let files = crio_files(place)?;
    if files.all.default_runtime.as_deref() == Some(RUNTIME) {
        bail!(Refusal::new(
            format!("default_runtime is {RUNTIME} in CRI-O's configuration"),
            "name another one there first"
        ));
    }
    let dirs = [Some(CRIO_HOOKS_DIR.to_owned()), place.hooks_dir.clone()];
    let dirs: Vec<String> = dirs.into_iter().flatten().collect();
    let mut plan = plan_hooked_removal(place.host, &dirs, &files)?;
    plan.directories.push(place.host.resolve(CRIO_HOOKS_DIR)?);
    Ok(plan)
}

/// A remark if another file gives our runtime's name to somebody else's runtime.
fn namesake<S: AsRef<str>>(programs: impl IntoIterator<Item = S>) -> Option<String> {
    let mut others = programs.into_iter().filter(|path| !is_shim(path.as_ref()));
    others.next().map(|path| {
        format!(
            "another file has a runtime {RUNTIME} that is {}: ours takes its place until `pinfold \
             uninstall`",
            Shown(path.as_ref())
        )
    })
}

fn plan_hooks(place: &Place<'_>, dir: &str, programs: &Programs, engine: Engine) -> Result<Plan> {
    let mut plan = Plan::default();
    if programs.shim.is_none() && place.user.is_none() {
        plan.remarks.push(format!(
            "there is no {SHIM} beside {}: hooks pin containers, and the runtime {RUNTIME} is not \
             set up",
            programs.pinfold
        ));
    }
    for (stage, name) in hooks::FILES {
        let found = FileNow::at(place.host, &format!("{dir}/{name}"))?;
        if found.text.is_some() && !is_hook_of_ours(&found) {
            bail!(Refusal::new(
                format!("{} is there and does not run pinfold", found.path.display()),
                move_away(&found.path)
            ));
        }
        let whom = match place.user {
            // The default pool is the machine's.
            Some(_) => Whom::Annotated,
            None => place.whom,
        };
        let text = hooks::file(stage, &programs.pinfold, engine, whom, &place.hook_options);
        // A hook file that a package or a person wrote is kept, and comes back.
        if found.text.is_some() && !is_by_install(&found) {
            plan.changes.extend(found.keep_backup()?);
        }
        plan.changes.extend(found.become_text(Some(text)));
    }
    Ok(plan)
}

/// The program that our hook files for podman run.
pub(super) fn podman_hook(place: &Place<'_>, settings: &podman::PodmanSettings) -> Option<String> {
    let (_, name) = hooks::FILES[0];
    let dirs = settings.hooks_dirs().into_iter().rev();
    let mut files = dirs.filter_map(|dir| {
        let found = FileNow::at(place.host, &format!("{dir}/{name}")).ok()?;
        let file = hooks::HookFile::parse(found.text.as_deref()?).ok()??;
        file.is_ours().then_some(file.hook.path)
    });
    files.next()
}

fn plan_hooked_removal<S>(host: &Host, dirs: &[String], files: &EngineFiles<S>) -> Result<Plan> {
    let mut plan = Plan::default();
    for dir in dirs {
        for (_, name) in hooks::FILES {
            let found = FileNow::at(host, &format!("{dir}/{name}"))?;
            if plan.has(&found) {
                continue;
            }
            plan.changes.extend(leftovers_of(host, dir, name)?);
            if is_by_install(&found) {
                plan.changes.extend(found.become_text(found.backup_text()?));
                plan.changes.extend(found.drop_backup()?);
            } else {
                plan.changes.extend(found.drop_needless_backup()?);
                if is_hook_of_ours(&found) {
                    plan.remarks.push(format!(
                        "{} is not of `pinfold install`, and stays: containers are pinned until it \
                         is gone",
                        found.path.display()
                    ));
                }
            }
        }
    }
    plan.changes.extend(files.changes(None)?);
    Ok(plan)
}

/// The changes that remove the temporary files that a killed program left of a file. Where the file
/// itself is gone already, nothing else would.
fn leftovers_of(host: &Host, dir: &str, name: &str) -> Result<Vec<FileChange>> {
    let entries = files::names_in(&host.resolve(dir)?)?.into_iter();
    let left = entries.filter(|entry| files::is_leftover(entry, name));
    let removed = left.map(|entry| {
        let found = FileNow::at(host, &format!("{dir}/{entry}"))?;
        Ok(found.become_text(None))
    });
    removed.filter_map(Result::transpose).collect()
}

fn is_hook_of_ours(found: &FileNow) -> bool {
    let parsed = found.text.as_deref().map(hooks::HookFile::parse);
    matches!(parsed, Some(Ok(Some(file))) if file.is_ours())
}

/// Did `pinfold install` write this hook file? Its files name the engine; those of `make install`
/// and of packages do not.
fn is_by_install(found: &FileNow) -> bool {
    let parsed = found.text.as_deref().map(hooks::HookFile::parse);
    matches!(parsed, Some(Ok(Some(file))) if file.is_ours() && file.engine().is_some())
}

/// Our drop-in; refuses one that somebody else wrote.
fn ours(drop_in: &FileNow) -> Result<&FileNow> {
    match &drop_in.text {
        Some(text) if !text.starts_with(OURS) => bail!(Refusal::new(
            format!(
                "{} is there, and `pinfold install` has not written it",
                drop_in.path.display()
            ),
            move_away(&drop_in.path)
        )),
        _ => Ok(drop_in),
    }
}
