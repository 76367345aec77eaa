//! Pressure stall information: how long a group's processes waited for a CPU (kernel:
//! Documentation/accounting/psi.rst). Version 2 alone has it, where the kernel is told to keep it.

use std::io;
use std::time::Duration;

use anyhow::Result;
use nix::libc;

use super::{Group, Version};
use crate::files;

/// How long at least one process of the group waited since it was made; `None` where the kernel
/// keeps no such account, or the group is gone.
///
/// # Errors
/// A file that cannot be read.
pub fn cpu(group: &Group) -> Result<Option<Duration>> {
    if group.version() == Version::V1 {
        return Ok(None);
    }
    let read = files::read_if_there(&group.dir().join("cpu.pressure"));
    let text = match read {
        // As the kernel says it where it was started without (psi=0).
        Err(error) if is_not_kept(&error) => None,
        read => read?,
    };
    let text = text.unwrap_or_default();
    let some = text.lines().find_map(|line| line.strip_prefix("some "));
    let total = some.and_then(|line| {
        let mut parts = line.split(' ');
        parts.find_map(|part| part.strip_prefix("total="))
    });
    Ok(total
        .and_then(|total| total.parse().ok())
        .map(Duration::from_micros))
}

fn is_not_kept(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.and_then(io::Error::raw_os_error) == Some(libc::EOPNOTSUPP)
}
