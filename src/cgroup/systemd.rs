//! Telling systemd which CPUs a unit has: it owns the files of its units' groups, and writes them again from what it
//! knows with every reload and every property that changes (systemd.resource-control(5), `AllowedCPUs=`).
//!
//! A kernel up to 6.12 refuses the empty value that systemd writes where it knows of none; later ones take it, and the
//! container would run everywhere.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Group, Version};
use crate::cpulist::CpuSet;
use crate::host::Host;
use crate::text::one_line;

/// Makes the CPUs of a group, and its memory nodes where there are any, known to systemd where the group is a scope's own;
/// an empty set is what its parents have. Was there anything to tell? Elsewhere, in a container's group below its scope
/// too, nothing is asked.
///
/// A container with a scope's name need not have that scope: systemd says which group it has. A scope of a user's manager
/// is left alone, for that is not reached from a hook; so is everything on a machine that is not the running one.
///
/// # Errors
/// systemd refuses, or has not answered after `patience`.
pub fn tell(
    host: &Host,
    group: &Group,
    cpus: &CpuSet,
    mems: Option<&CpuSet>,
    patience: Duration,
) -> Result<bool> {
    let deadline = Instant::now() + patience;
    let is_here = host.is_running_root() && host.systemd_mark().exists();
    let Some(scope) = scope_of(group).filter(|_| is_here) else {
        return Ok(false);
    };
    let systemctl = host.program("systemctl").context("find systemctl")?;
    let systemctl = || Command::new(&systemctl);
    let mut question = systemctl();
    question.args(["show", "--property=ControlGroup", "--value", "--", scope]);
    let shown = answer(&mut question, deadline);
    let shown = shown.with_context(|| format!("ask systemd for the cgroup of {scope}"))?;
    if shown.trim() != group.path() {
        return Ok(false);
    }
    let mut setting = systemctl();
    setting
        .args([
            "--runtime",
            "--no-ask-password",
            "set-property",
            "--",
            scope,
        ])
        .arg(format!("AllowedCPUs={cpus}"))
        .args(mems.map(|mems| format!("AllowedMemoryNodes={mems}")));
    answer(&mut setting, deadline)
        .with_context(|| format!("tell systemd of the CPUs {cpus} of {scope}"))?;
    Ok(true)
}

/// The scope whose own group this may be: runtimes run containers in scopes. Version 1 cpusets are nothing that systemd
/// knows.
fn scope_of(group: &Group) -> Option<&str> {
    let is_of_user = group.path().contains("/user@");
    let name = group.path().rsplit('/').next()?;
    (group.version() == Version::V2 && name.ends_with(".scope") && !is_of_user).then_some(name)
}

/// What systemctl prints; what it says of a failure is the error.
fn answer(command: &mut Command, deadline: Instant) -> Result<String> {
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("run systemctl")?;
    let status = end_of(&mut child, deadline)?;
    if !status.success() {
        bail!("it says {:?}", one_line(said(child.stderr).trim()));
    }
    Ok(said(child.stdout))
}

/// It has ended by now, and what it wrote is in the pipe.
fn said(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // Half of a message is better than none.
        let _ = pipe.take(4096).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn end_of(child: &mut Child, deadline: Instant) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().context("wait for systemctl")? {
            return Ok(status);
        }
        if Instant::now() >= deadline {
            child
                .kill()
                .and_then(|()| child.wait())
                .context("end systemctl")?;
            bail!("it did not answer in time: is systemd busy, or stuck?");
        }
        sleep(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Hierarchy;

    #[test]
    fn only_a_scopes_own_group_is_systemds() {
        let hierarchy = |version| Hierarchy {
            version,
            mount: "/sys/fs/cgroup".into(),
            root: "/".into(),
        };
        for (version, path, unit) in [
            (
                Version::V2,
                "/machine.slice/libpod-1.scope",
                Some("libpod-1.scope"),
            ),
            (Version::V2, "/default/sshd.service", None),
            (Version::V2, "/machine.slice/libpod-1.scope/container", None),
            (Version::V2, "/machine.slice", None),
            (
                Version::V2,
                "/user.slice/user-1.slice/user@1.service/a.scope",
                None,
            ),
            (Version::V1, "/machine.slice/libpod-1.scope", None),
        ] {
            let group = hierarchy(version).group(path).unwrap();
            assert_eq!(scope_of(&group), unit, "{path}");
        }
    }
}
