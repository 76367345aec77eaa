//! A pool's options. Each is a file beside the pool's `exclusive`, where KCM's tools ignore files.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::Result;

use super::{FILE_MODE, Lock, PoolDirectory};
use crate::files::{self, Durability};
use crate::isolation::{self, Options};

impl PoolDirectory {
    /// Reads the options of a pool. Their values are not checked here, but by [`Options::wanted`].
    ///
    /// # Errors
    /// A file cannot be read, or others can change it.
    pub fn options(&self, pool: &str) -> Result<Options> {
        self.options_of(pool, isolation::keys())
    }

    /// What those of its files say that are named.
    ///
    /// # Errors
    /// A file that cannot be read, or that others can change.
    pub fn options_of(
        &self,
        pool: &str,
        keys: impl IntoIterator<Item = &'static str>,
    ) -> Result<Options> {
        let mut options = Options::default();
        for key in keys {
            if let Some(value) = self.option(pool, key)? {
                options.say(key, &value);
            }
        }
        Ok(options)
    }

    /// What a file of a pool says something of, where it does.
    pub(super) fn key_of(name: &OsStr) -> Option<&'static str> {
        // A pool can have a thousand lists, and their names begin with a digit.
        let begins_so = name.as_bytes().first().is_some_and(u8::is_ascii_lowercase);
        let mut keys = isolation::keys().filter(|_| begins_so);
        keys.find(|key| name == *key)
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

    /// The file of a pool that says this option.
    pub fn option_path(&self, pool: &str, key: &str) -> PathBuf {
        self.pools().join(pool).join(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Host;
    use crate::isolation::{ISOLATION, NEEDED};
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
        // A link is told by who reads the options, and not as a list once more.
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", &path).unwrap();
        assert!(directory.options("dp").is_err());
        let (_, problems) = directory.readable_part("dp").unwrap();
        let twice = problems
            .iter()
            .any(|problem| format!("{problem:#}").contains("put a real directory"));
        assert!(!twice, "{problems:?}");
    }
}
