//! Writes the changes of a plan.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{FileChange, Plan};
use crate::files::{self, Durability};
use crate::refusal::Refusal;

/// The mode of new files.
const NEW_FILE_MODE: u32 = 0o644;

/// Makes a plan's changes. If one fails, it and the earlier ones are undone.
///
/// # Errors
/// The first change that failed.
pub fn apply(plan: &Plan) -> Result<()> {
    let changes = &plan.changes;
    for (index, change) in changes.iter().enumerate() {
        if let Err(error) = make(change) {
            // A file that was written but could not be synced has changed all the same.
            let made = index + usize::from(is_made(change));
            if let Err(undo) = undo(&changes[..made]) {
                log::error!("take back what was written: {undo:#}");
            }
            return Err(error);
        }
    }
    for directory in &plan.directories {
        files::remove_empty_directory(directory)?;
    }
    Ok(())
}

/// Undoes changes, the last first. If one cannot be undone, the earlier ones stay: a file's backup
/// must exist as long as the file differs from it.
///
/// # Errors
/// The first change that could not be undone.
fn undo(changes: &[FileChange]) -> Result<()> {
    let mut first_error = Ok(());
    for change in changes.iter().rev() {
        let back = FileChange {
            path: change.path.clone(),
            before: change.after.clone(),
            after: change.before.clone(),
            like: change.like.clone(),
        };
        let done = make(&back);
        let stays = done.is_err() && !is_made(&back);
        first_error = first_error.and(done);
        if stays {
            break;
        }
    }
    first_error
}

/// Does the file hold what the change writes, as far as can be told?
fn is_made(change: &FileChange) -> bool {
    files::read_text_if_there(&change.path).is_ok_and(|text| text == change.after)
}

fn make(change: &FileChange) -> Result<()> {
    ensure!(
        files::read_text_if_there(&change.path)? == change.before,
        Refusal::new(
            format!(
                "{} is being changed by somebody else",
                change.path.display()
            ),
            "try again"
        )
    );
    remove_leftovers(&change.path);
    let Some(text) = &change.after else {
        files::remove(&change.path)?;
        return sync_parent(&change.path);
    };
    let like = [Some(&change.path), change.like.as_ref()]
        .into_iter()
        .flatten();
    if let Some(metadata) = like.filter_map(|path| path.metadata().ok()).next() {
        return files::replace_like(&change.path, text.as_bytes(), &metadata);
    }
    if let Some(dir) = change.path.parent() {
        std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    files::replace(
        &change.path,
        text.as_bytes(),
        NEW_FILE_MODE,
        Durability::PowerLoss,
    )
}

/// Removes the temporary files that a killed install left beside this file: CRI-O reads every file
/// of its directory, whatever its name.
fn remove_leftovers(path: &Path) {
    let name = path.file_name().and_then(|name| name.to_str());
    let (Some(dir), Some(name)) = (path.parent(), name) else {
        return;
    };
    if let Err(error) = files::remove_leftovers(dir, name) {
        log::warn!("remove what was left beside {}: {error:#}", path.display());
    }
}

fn sync_parent(path: &Path) -> Result<()> {
    let Some(dir) = path.parent() else {
        return Ok(());
    };
    files::sync_directory(dir).with_context(|| format!("sync {}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &Path, before: Option<&str>, after: Option<&str>) -> FileChange {
        FileChange {
            path: path.to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            like: None,
        }
    }

    fn plan(changes: Vec<FileChange>) -> Plan {
        Plan {
            changes,
            ..Plan::default()
        }
    }

    #[test]
    fn what_was_written_before_a_failure_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        files::replace(&path("a"), b"old", 0o640, Durability::Crash).unwrap();
        let changes = vec![
            change(&path("a"), Some("old"), Some("new")),
            change(&path("sub/b"), None, Some("made")),
            change(&path("a/c"), None, Some("a file is not a directory")),
        ];
        assert!(apply(&plan(changes)).is_err());
        assert_eq!(files::read(&path("a")).unwrap(), "old");
        assert!(!path("sub/b").try_exists().unwrap());
    }

    #[test]
    fn what_a_killed_install_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, left) = (dir.path().join("a"), dir.path().join(".a.a1B2c3-0"));
        files::replace(&left, b"ha", 0o600, Durability::Crash).unwrap();
        apply(&plan(vec![change(&path, None, Some("half"))])).unwrap();
        assert!(!left.try_exists().unwrap());
    }

    #[test]
    fn what_changed_since_it_was_planned_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        files::replace(&path, b"theirs", 0o644, Durability::Crash).unwrap();
        let error = apply(&plan(vec![change(&path, Some("old"), Some("new"))])).unwrap_err();
        assert!(error.to_string().contains("somebody else"));
        assert_eq!(files::read(&path).unwrap(), "theirs");
    }
}
