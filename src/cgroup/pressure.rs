//! Pressure stall information: how long a group's processes waited for a CPU (kernel:
//! Documentation/accounting/psi.rst). Only version 2 has it, and only if the kernel runs with it.

use std::io;
use std::time::Duration;

use anyhow::Result;
use nix::libc;

use super::{Group, Version};
use crate::files::SteadyFile;

/// Reads a group's waiting time again and again, from a file that stays open.
#[derive(Debug)]
pub struct Counter {
    cpu: Option<SteadyFile>,
}

impl Counter {
    /// A counter for a group, which need not exist.
    pub fn of(group: &Group) -> Counter {
        let file = || SteadyFile::new(group.dir().join("cpu.pressure"));
        Counter {
            cpu: (group.version() == Version::V2).then(file),
        }
    }

    /// How long at least one process of the group waited for a CPU since the group was made; `None`
    /// where the kernel does not count that, or the group is gone.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn waited(&mut self) -> Result<Option<Duration>> {
        let Some(file) = &mut self.cpu else {
            return Ok(None);
        };
        let text = match file.read() {
            // The kernel was started with psi=0.
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
