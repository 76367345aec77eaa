//! Where an engine reads why a runtime failed: the file of the runtime's `--log`, and its stderr.
//!
//! crun discards a hook's stderr and tells its engine only `error executing hook (exit code: 1)`.
//! Engines show a runtime's stderr only if its log has not the form that they expect (podman:
//! libpod/oci_conmon_common.go, `readConmonPipeData`, parses the whole file as one object), so a
//! hook writes to both. containerd shows the log's last error (pkg/process/utils.go,
//! `getLastRuntimeError`), which is crun's own: there only the system log has ours.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::process::parent_id;
use std::path::Path;

use nix::libc;
use nix::sys::stat::{fstat, major, minor};
use nix::unistd::geteuid;
use serde_json::json;

use crate::host::Host;
use crate::oci::CommandLine;
use crate::process;

/// Appends a line to the log that a runtime's command line names, in the log's format. Makes the
/// file if it is missing, as a runtime would.
pub fn tell(line: &CommandLine, message: &str) -> io::Result<()> {
    let Some(path) = &line.log else {
        return Ok(());
    };
    append(
        OpenOptions::new().create(true).mode(0o600),
        path,
        &entry(line, message),
    )
}

/// A log line as runtimes write it (runc and crun, `--log-format`).
fn entry(line: &CommandLine, message: &str) -> String {
    if line.log_is_json {
        let time = humantime::format_rfc3339_seconds(std::time::SystemTime::now());
        json!({"level": "error", "msg": message, "time": time.to_string()}).to_string()
    } else {
        format!("level=error msg={message:?}")
    }
}

/// Appends to a log. The file must be one that only root and we can have put there or can write; a
/// FIFO does not block, and a link is not followed.
fn append(options: &mut OpenOptions, path: &Path, line: &str) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let mut file = options.append(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    let is_ours = [0, geteuid().as_raw()].contains(&metadata.uid());
    let is_private = metadata.mode() & 0o022 == 0 && metadata.nlink() == 1;
    if metadata.is_file() && is_ours && is_private {
        file.write_all(format!("{line}\n").as_bytes())?;
    }
    Ok(())
}

/// The runtime that runs this hook and discards its stderr.
#[derive(Debug)]
pub struct DeafRuntime {
    pid: i32,
    stderr: Option<File>,
}

impl DeafRuntime {
    /// The parent process, if our stderr is `/dev/null`. Its own stderr can be opened only before
    /// capabilities are dropped (ptrace(2), "Ptrace access mode checking").
    pub fn above(host: &Host) -> Option<DeafRuntime> {
        let stderr = fstat(io::stderr()).ok()?;
        let is_device = stderr.st_mode & libc::S_IFMT == libc::S_IFCHR;
        // The device numbers of null(4).
        let is_null = (major(stderr.st_rdev), minor(stderr.st_rdev)) == (1, 3);
        let pid = i32::try_from(parent_id()).ok()?;
        if !is_device || !is_null || pid <= 1 {
            return None;
        }
        let stderr = OpenOptions::new()
            .append(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(host.proc_pid(pid, "fd/2"));
        let runtime = DeafRuntime {
            pid,
            stderr: stderr.ok().filter(is_written_to),
        };
        runtime.is_parent().then_some(runtime)
    }

    /// Reports where the engine reads why the container does not start. If that fails, the system
    /// log has the message.
    pub fn tell(self, host: &Host, message: &str) {
        let words = process::command_line(host, self.pid);
        let line = CommandLine::parse(words.get(1..).unwrap_or_default());
        let owner = host.proc_pid(self.pid, "cmdline").metadata();
        let is_ours = owner.is_ok_and(|it| [0, geteuid().as_raw()].contains(&it.uid()));
        if line.verb.is_none() || !is_ours || !self.is_parent() {
            return;
        }
        // An error here changes nothing: the hook has failed already. A relative path is relative
        // to the runtime's directory, not ours.
        if let Some(log) = line.log.as_deref().filter(|path| path.is_absolute()) {
            let _ = append(&mut OpenOptions::new(), log, &entry(&line, message));
        }
        if let Some(mut stderr) = self.stderr {
            let _ = stderr.write_all(format!("{message}\n").as_bytes());
        }
    }

    /// Is the runtime still our parent? If it had died, its pid could be another process's.
    fn is_parent(&self) -> bool {
        i32::try_from(parent_id()) == Ok(self.pid)
    }
}

/// Is this a pipe or a terminal? In a file the runtime writes at its own offset, over what others
/// append.
fn is_written_to(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| {
        let kind = metadata.file_type();
        kind.is_fifo() || kind.is_char_device()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files;
    use std::ffi::OsString;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn line(words: &[&str]) -> CommandLine {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        CommandLine::parse(&words)
    }

    #[test]
    fn a_line_has_the_format_that_the_engine_reads() {
        let of_json = line(&["--log-format", "json", "--log", "/l", "create", "x"]);
        let entry = super::entry(&of_json, "a \"b\"\n");
        let entry: serde_json::Value = serde_json::from_str(&entry).unwrap();
        assert_eq!(entry["msg"], "a \"b\"\n");
        assert_eq!(entry["level"], "error");
        let of_text = line(&["--log", "/l", "create", "x"]);
        assert_eq!(
            super::entry(&of_text, "a \"b\""),
            r#"level=error msg="a \"b\"""#
        );
    }

    #[test]
    fn only_a_private_regular_file_is_appended_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let put = |name: &str, mode: u32| {
            let options = &mut OpenOptions::new();
            append(options.create(true), &path(name), "first").unwrap();
            let mode = PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path(name), mode).unwrap();
        };
        put("log", 0o600);
        append(&mut OpenOptions::new(), &path("log"), "second").unwrap();
        assert_eq!(files::read(&path("log")).unwrap(), "first\nsecond\n");
        put("open", 0o666);
        append(&mut OpenOptions::new(), &path("open"), "second").unwrap();
        assert_eq!(files::read(&path("open")).unwrap(), "first\n");
        std::fs::hard_link(path("log"), path("twice")).unwrap();
        append(&mut OpenOptions::new(), &path("twice"), "third").unwrap();
        symlink("log", path("link")).unwrap();
        assert!(append(&mut OpenOptions::new(), &path("link"), "third").is_err());
        assert!(append(&mut OpenOptions::new(), &path("none"), "third").is_err());
        assert_eq!(files::read(&path("log")).unwrap(), "first\nsecond\n");
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(append(&mut OpenOptions::new(), &path("fifo"), "third").is_err());
        assert!(append(&mut OpenOptions::new(), Path::new("/dev/null"), "third").is_ok());
    }
}
