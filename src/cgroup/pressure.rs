//! Pressure stall information: how long a group's processes waited for a CPU (kernel:
//! Documentation/accounting/psi.rst). Version 2 alone has it, where the kernel is told to keep it.

use std::io;
use std::time::Duration;

use anyhow::Result;
use nix::libc;

use super::{Group, Version};
use crate::files::SteadyFile;

/// The account of one group, which is read again and again.
#[derive(Debug)]
pub struct Counter {
    cpu: Option<SteadyFile>,
}

impl Counter {
    /// That of a group, there or not.
    pub fn of(group: &Group) -> Counter {
        let file = || SteadyFile::new(group.dir().join("cpu.pressure"));
        Counter {
            cpu: (group.version() == Version::V2).then(file),
        }
    }

    /// How long at least one process of the group waited since it was made; `None` where the kernel
    /// keeps no such account, or the group is gone.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn waited(&mut self) -> Result<Option<Duration>> {
        let Some(file) = &mut self.cpu else {
            return Ok(None);
        };
        let text = match file.read() {
            // As the kernel says it where it was started without (psi=0).
            Err(error) if is_not_kept(&error) => None,
            read => read?,
        };
        Ok(text.and_then(|text| waited_in(&text)))
    }
}

fn waited_in(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let mut parts = some.split(' ');
    let total = parts.find_map(|part| part.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

fn is_not_kept(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.and_then(io::Error::raw_os_error) == Some(libc::EOPNOTSUPP)
}
