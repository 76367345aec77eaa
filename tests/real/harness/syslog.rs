//! The system log, from a mark on: the journal where there is `/dev/log`, else the kernel's log.

use crate::process;
use nix::libc;
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What the journal says of each `journalctl --sync`.
const SYNC: &str = "request to sync journal";

pub(crate) enum SysLog {
    Kernel(File),
    Journal(String),
}

impl SysLog {
    /// Remembers where the log ends now.
    pub(crate) fn mark() -> SysLog {
        if Path::new("/dev/log").exists() {
            let shown =
                process::run(Command::new("journalctl").args(["-n0", "--show-cursor", "-q"]))
                    .ok()
                    .stdout;
            let cursor = shown
                .lines()
                .find_map(|line| line.strip_prefix("-- cursor: "));
            return SysLog::Journal(cursor.expect("journalctl shows a cursor").to_owned());
        }
        let log = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg");
        let mut log = log.expect("open the kernel's log");
        log.seek(SeekFrom::End(0))
            .expect("go to the end of the kernel's log");
        SysLog::Kernel(log)
    }

    /// The lines written since the mark, or since the last look.
    pub(crate) fn news(&mut self) -> Vec<String> {
        match self {
            SysLog::Kernel(log) => kernel_lines(log),
            SysLog::Journal(cursor) => {
                process::run(Command::new("journalctl").arg("--sync")).ok();
                let mut journalctl = Command::new("journalctl");
                let shown = journalctl.args(["-q", "-o", "cat", "--after-cursor", cursor.as_str()]);
                let shown = process::run(shown).ok().stdout;
                // What our own looking leaves there would drown the rest.
                let lines = shown.lines().filter(|line| !line.contains(SYNC));
                lines.map(str::to_owned).collect()
            }
        }
    }

    /// Waits until `count` lines hold each of `words`, and gives them.
    pub(crate) fn lines_with(&mut self, count: usize, words: &[&str]) -> Vec<String> {
        let deadline = Instant::now() + process::patience();
        let mut lines = Vec::new();
        loop {
            if matches!(self, SysLog::Journal(_)) {
                lines.clear();
            }
            lines.extend(self.news());
            let fits = |line: &&String| words.iter().all(|word| line.contains(word));
            let found: Vec<String> = lines.iter().filter(fits).cloned().collect();
            if found.len() >= count {
                return found;
            }
            let late = Instant::now() > deadline;
            assert!(
                !late,
                "{} of {count} lines have {words:?}: {lines:#?}",
                found.len()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A read gives one record; EAGAIN is the end, EPIPE says that older records were overwritten.
fn kernel_lines(log: &mut File) -> Vec<String> {
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(length) => lines.push(String::from_utf8_lossy(&record[..length]).into_owned()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return lines,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => panic!("read the kernel's log: {error}"),
        }
    }
}
