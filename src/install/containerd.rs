//! containerd: a configuration file that others write too, and that imports others.

use std::path::Path;

use anyhow::{Context, Result};

use super::{FileNow, Place, Plan};
use crate::engines::containerd::{ContainerdFile, add, deciding, remove};
use crate::engines::{Programs, RUNTIME};
use crate::host::Host;

const CONFIG_TOML: &str = "/etc/containerd/config.toml";

/// containerd's configuration files in the order in which it reads them: the main one, then what
/// each imports.
#[derive(Debug)]
pub struct Configuration {
    /// Each file as containerd sees it; the main one is first, and may be missing.
    pub files: Vec<ContainerdFile>,
    found: Vec<FileNow>,
}

impl Configuration {
    /// The path of a file.
    pub fn path(&self, index: usize) -> &Path {
        &self.found[index].path
    }
}

/// Reads containerd's configuration.
///
/// # Errors
/// A file cannot be read, is no TOML, or has an unknown version.
pub fn configuration(place: &Place<'_>) -> Result<Configuration> {
    let main = place.engine_config(CONFIG_TOML);
    let mut pending = vec![main.to_owned()];
    let mut configuration = Configuration {
        files: Vec::new(),
        found: Vec::new(),
    };
    let mut next = 0;
    while let Some(path) = pending.get(next).cloned() {
        next += 1;
        let found = FileNow::at(place.host, &path)?;
        if configuration
            .found
            .iter()
            .any(|other| other.path == found.path)
        {
            continue;
        }
        let importer = configuration.files.first().map(ContainerdFile::version);
        let parsed = found
            .text
            .as_deref()
            .map(|text| ContainerdFile::parse(text, importer));
        let file = parsed
            .transpose()
            .with_context(|| found.path.display().to_string())?;
        let file = file.unwrap_or_default();
        for import in file.imports() {
            pending.extend(paths_of(place.host, &path, &import)?);
        }
        configuration.files.push(file);
        configuration.found.push(found);
    }
    Ok(configuration)
}

/// The paths that an import names: one, or for a `*` those that exist, sorted.
fn paths_of(host: &Host, importer: &str, import: &str) -> Result<Vec<String>> {
    let dir = importer.rsplit_once('/').map_or("", |(dir, _)| dir);
    let path = if import.starts_with('/') {
        import.to_owned()
    } else {
        format!("{dir}/{import}")
    };
    if !path.contains('*') {
        return Ok(vec![path]);
    }
    let root = host.path("/");
    let root = root.to_string_lossy();
    let root = root.trim_end_matches('/');
    let pattern = format!("{}{path}", glob::Pattern::escape(root));
    let matches = glob::glob(&pattern).with_context(|| format!("imports names {path}"))?;
    let inside = |path: &Path| path.to_str()?.strip_prefix(root).map(str::to_owned);
    Ok(matches.flatten().filter_map(|path| inside(&path)).collect())
}

pub(super) fn plan(place: &Place<'_>, programs: &Programs) -> Result<Plan> {
    let configuration = configuration(place)?;
    let index = deciding(&configuration.files);
    let found = &configuration.found[index];
    let after = add(&configuration.files, programs.shim()?)
        .with_context(|| found.path.display().to_string())?;
    let mut plan = Plan::default();
    let file = &configuration.files[index];
    if file.ours().is_none() && found.text.is_some() {
        plan.changes.extend(found.keep_backup()?);
    }
    if file.has_namesake() {
        plan.remarks.push(found.namesake_is_kept());
    }
    plan.changes.extend(found.become_text(Some(after)));
    if configuration.files.iter().any(ContainerdFile::disables_cri) {
        plan.remarks.push(
            "disabled_plugins turns the CRI plugin off: Kubernetes cannot use \
             containerd until it is taken out of that list"
                .to_owned(),
        );
    }
    let main = &configuration.files[0];
    let mut globs = main.imports();
    globs.retain(|import| import.contains('*') && !import.starts_with('/'));
    if let Some(glob) = globs.first().filter(|_| index > 0) {
        plan.remarks.push(format!(
            "imports names {glob:?}, which containerd 1.6 does not find: give it its absolute \
             path, if you have that version"
        ));
    }
    if configuration.files[index].version() == 1 {
        plan.remarks.push(format!(
            "{} is of version 1, from which containerd 2 takes no handlers: `containerd config \
             migrate` prints a newer one",
            found.path.display()
        ));
    }
    Ok(plan)
}

pub(super) fn plan_removal(place: &Place<'_>) -> Result<Plan> {
    let configuration = configuration(place)?;
    let mut plan = Plan::default();
    for (index, found) in configuration.found.iter().enumerate() {
        let file = &configuration.files[index];
        let original = found.backup_text()?;
        let parsed = original
            .as_deref()
            .map(|text| ContainerdFile::parse(text, Some(file.version())));
        let parsed = parsed.transpose()?;
        let without =
            remove(file, parsed.as_ref()).with_context(|| found.path.display().to_string())?;
        let (Some(text), Some(without)) = (&found.text, without) else {
            plan.changes.extend(found.drop_needless_backup()?);
            continue;
        };
        let shim = file.handler(RUNTIME).unwrap_or_default().binary;
        let before = parsed.unwrap_or_default();
        let mut files = configuration.files.clone();
        files[index] = before.clone();
        // The file is as we wrote it only if an install would write this file again, with this
        // text.
        let is_as_we_wrote_it =
            deciding(&files) == index && add(&files, &shim).is_ok_and(|written| written == *text);
        let left = ContainerdFile::parse(&without, Some(file.version()))?;
        let after = if is_as_we_wrote_it || original.is_some() && left.says_the_same_as(&before) {
            original
        } else {
            Some(without)
        };
        plan.changes.extend(found.become_text(after));
        plan.changes.extend(found.drop_backup()?);
    }
    Ok(plan)
}
