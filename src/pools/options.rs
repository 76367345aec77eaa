//! A pool's options. Each is a file beside the pool's `exclusive`, where KCM's tools ignore files.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::Result;

use super::{FILE_MODE, Lock, PoolDirectory};
use crate::files::{self, Durability};
use crate::isolation::{ISOLATION, NEEDED, Options};

impl PoolDirectory {
    /// Reads the options of a pool. Their values are not checked here, but by [`Options::wanted`].
    ///
    /// # Errors
    /// A file cannot be read, or others can change it.
    pub fn options(&self, pool: &str) -> Result<Options> {
        Ok(Options {
            isolation: self.option(pool, ISOLATION)?,
            needed: self.option(pool, NEEDED)?,
        })
    }

    /// Is this the name of a pool's option file?
    pub(super) fn is_option(name: &OsStr) -> bool {
        name == ISOLATION || name == NEEDED
    }

    fn option(&self, pool: &str, key: &str) -> Result<Option<String>> {
        let path = self.option_path(pool, key);
        if files::entry_if_there(&path)?.is_none() {
            return Ok(None);
        }
        files::trusted(&path)?;
        let text = files::read_record_of(&path)?;
        Ok(Some(text.trim_end().to_owned()))
    }

    /// Sets an option of a pool. It applies to later starts.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_option(&self, _lock: &Lock, pool: &str, key: &str, value: &str) -> Result<()> {
        let path = self.option_path(pool, key);
        files::replace(&path, value.as_bytes(), FILE_MODE, Durability::PowerLoss)
    }

    fn option_path(&self, pool: &str, key: &str) -> PathBuf {
        self.pools().join(pool).join(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::pools::tests::directory;
    use std::time::Duration;

    #[test]
    fn a_pool_without_files_says_nothing_and_one_with_them_what_is_in_them() {
        let (dir, directory) = directory("dp! dp/1=");
        assert_eq!(directory.options("dp").unwrap(), Options::default());
        let lock = directory.lock(&Host::new("/"), Duration::ZERO).unwrap();
        directory
            .set_option(&lock, "dp", ISOLATION, "root")
            .unwrap();
        directory
            .set_option(&lock, "dp", ISOLATION, "isolated")
            .unwrap();
        directory.set_option(&lock, "dp", NEEDED, "yes").unwrap();
        let said = directory.options("dp").unwrap();
        assert_eq!(said.isolation.as_deref(), Some("isolated"));
        assert_eq!(said.needed.as_deref(), Some("yes"));
        // An editor ends the line with a newline.
        let path = dir.path().join("pools/dp/isolation");
        files::replace(&path, b"root\n", 0o644, Durability::Crash).unwrap();
        assert_eq!(
            directory.options("dp").unwrap().isolation.as_deref(),
            Some("root")
        );
        files::replace(&path, b"root\n", 0o666, Durability::Crash).unwrap();
        assert!(directory.options("dp").is_err());
    }
}
