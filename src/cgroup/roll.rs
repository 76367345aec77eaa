//! The processes of a group and of those below it, read again and again.

use std::os::unix::fs::MetadataExt;

use anyhow::Result;

use super::Group;
use super::walk::LINKS_OF_A_LEAF;
use crate::files::SteadyFile;

/// Reads which processes are in a group.
#[derive(Debug)]
pub struct Roll {
    group: Group,
}

impl Roll {
    /// A roll of a group, which need not exist.
    pub fn of(group: Group) -> Roll {
        Roll { group }
    }

    /// All processes in the group and in the groups below it. 0 stands for a process of another pid
    /// namespace.
    ///
    /// # Errors
    /// A group cannot be looked at, or there are too many.
    pub fn pids(&self) -> Result<Vec<i32>> {
        // Most groups have none below them, so one file lists all processes. If it is empty or
        // cannot be read, the group may be threaded: `all_pids` sees to that.
        let is_leaf = |links: u64| links == u64::from(LINKS_OF_A_LEAF);
        if self
            .group
            .dir()
            .symlink_metadata()
            .is_ok_and(|own| is_leaf(own.nlink()))
        {
            // Version 1 makes the list of an open file anew at most once a second, so the file is
            // opened each time.
            let text = SteadyFile::new(self.group.procs_file()).read_list();
            let text = text.ok().flatten();
            let pids: Option<Vec<i32>> = text
                .unwrap_or_default()
                .lines()
                .map(|line| line.parse().ok())
                .collect();
            if let Some(pids) = pids.filter(|pids| !pids.is_empty()) {
                return Ok(pids);
            }
        }
        self.group.all_pids()
    }
}
