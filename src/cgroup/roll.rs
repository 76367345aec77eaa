//! The processes of one group and of those below it, asked for again and again.

use std::os::unix::fs::MetadataExt;

use anyhow::Result;

use super::Group;
use super::walk::LINKS_OF_A_LEAF;
use crate::files::SteadyFile;

/// Who is in a group.
#[derive(Debug)]
pub struct Roll {
    group: Group,
}

impl Roll {
    /// That of a group, there or not.
    pub fn of(group: Group) -> Roll {
        Roll { group }
    }

    /// All processes in the group and in those below it; 0 stands for one of another pid namespace.
    ///
    /// # Errors
    /// A group that cannot be looked at.
    pub fn pids(&self) -> Result<Vec<i32>> {
        // Most groups have none below: there is one list then. One that names nobody, or cannot be
        // read, is a matter for who knows why (threaded groups).
        let is_leaf = |links: u64| links == u64::from(LINKS_OF_A_LEAF);
        if self
            .group
            .dir()
            .symlink_metadata()
            .is_ok_and(|own| is_leaf(own.nlink()))
        {
            // Version 1 makes the list of an open file anew once a second at most: it is opened
            // each time.
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
