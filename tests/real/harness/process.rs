//! Processes with a bound on every wait: started, watched, and killed when their guard goes.

use nix::libc;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// The bound on every wait; long, since only a failure reaches it. `PINFOLD_TEST_PATIENCE` gives a
/// slow machine more seconds.
pub(crate) fn patience() -> Duration {
    let seconds = std::env::var("PINFOLD_TEST_PATIENCE").ok();
    let seconds = seconds.map(|text| text.parse().expect("PINFOLD_TEST_PATIENCE is a number"));
    Duration::from_secs(seconds.unwrap_or(30))
}

/// A process that has ended, and what it said.
pub(crate) struct Ran {
    pub(crate) what: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ran {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub(crate) fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// The process must have exited with 0.
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        assert!(self.status.success(), "should have succeeded: {self}");
        self
    }

    /// The process must have exited with `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Ran {
        assert_eq!(
            self.code(),
            Some(code),
            "should have exited with {code}: {self}"
        );
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ran {
            what,
            status,
            stdout,
            stderr,
            ..
        } = self;
        write!(
            f,
            "{what}: {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        )
    }
}

/// A process under way. Dropping it kills it.
pub(crate) struct Running {
    child: Child,
    what: String,
    stdout: File,
    stderr: File,
    started: Instant,
    ended: bool,
}

impl Running {
    /// Starts `command` with `input` on its standard input. Output goes to nameless files, not
    /// pipes, so that a descendant that keeps them open holds nobody up.
    pub(crate) fn start(command: &mut Command, input: &[u8]) -> Running {
        Running::begin(command, input, None)
    }

    fn begin(command: &mut Command, input: &[u8], elsewhere: Option<Stdio>) -> Running {
        let mut stdin = tempfile::tempfile().expect("make a file for stdin");
        stdin.write_all(input).expect("write stdin");
        stdin.rewind().expect("rewind stdin");
        let stdout = tempfile::tempfile().expect("make a file for stdout");
        let stderr = tempfile::tempfile().expect("make a file for stderr");
        let what = format!("{command:?}");
        command
            .stdin(stdin)
            .stdout(elsewhere.unwrap_or_else(|| same_file(&stdout)))
            .stderr(same_file(&stderr));
        let started = Instant::now();
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("start {what}: {error}"));
        Running {
            child,
            what,
            stdout,
            stderr,
            started,
            ended: false,
        }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn signal(&self, number: i32) {
        send(self.pid(), number);
    }

    /// Whether it ends within this time.
    pub(crate) fn ends_within(&self, limit: Duration) -> bool {
        wait_for_exit(self.pid(), limit)
    }

    /// Waits for the end; a process that takes longer than our patience is killed and fails the
    /// test.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Ran {
        let ended = self.ends_within(patience());
        let what = self.what.clone();
        assert!(
            ended,
            "{what} did not end in time: {}",
            contents(&self.stderr)
        );
        let status = self.child.wait().expect("wait for a child of ours");
        self.ended = true;
        let (stdout, stderr) = (contents(&self.stdout), contents(&self.stderr));
        Ran {
            what,
            status,
            stdout,
            stderr,
            took: self.started.elapsed(),
        }
    }

    /// What it has written to standard output so far.
    pub(crate) fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.ended = true;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `command` to its end, with nothing on standard input.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> Ran {
    Running::start(command, b"").wait()
}

/// The same with its standard output elsewhere.
#[track_caller]
pub(crate) fn run_into(command: &mut Command, stdout: impl Into<Stdio>) -> Ran {
    Running::begin(command, b"", Some(stdout.into())).wait()
}

/// Runs `command` to its end or to the bound, whatever comes of it: for cleaning up, where a
/// failure must not hide the one that is being unwound.
pub(crate) fn try_to_run(command: &mut Command) {
    let started = Running::start(command, b"");
    started.ends_within(patience());
}

/// Makes `command` start with this CPU affinity.
pub(crate) fn under_mask(command: &mut Command, cpus: &[usize]) {
    // SAFETY: a CPU set is plain bits, for which zero is valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: CPU_SET checks its bounds.
    cpus.iter()
        .for_each(|&cpu| unsafe { libc::CPU_SET(cpu, &mut set) });
    let pin = move || {
        // SAFETY: one system call on a set that the closure owns.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure makes one system call, which may be made between fork and exec.
    unsafe { command.pre_exec(pin) };
}

/// Asks until there is an answer; fails the test when there is none in time.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A process that is there and not fully dead: a zombie counts only while other threads of it run
/// on.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    let fields = fields_after_name(&stat);
    !matches!(fields[0], "Z" | "X") || fields[17] != "1"
}

/// The clock tick at which a process began.
pub(crate) fn start_time(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .expect("read the start time of a live process");
    fields_after_name(&stat)[19]
        .parse()
        .expect("a start time is a number")
}

fn fields_after_name(stat: &str) -> Vec<&str> {
    let (_, rest) = stat
        .rsplit_once(')')
        .expect("stat holds a name in brackets");
    rest.split_whitespace().collect()
}

/// The CPUs that a process may run on, as a CPU list.
pub(crate) fn affinity(pid: i32) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))
        .expect("read the status of a live process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    line.expect("status names the allowed CPUs")
        .trim()
        .to_owned()
}

/// Every process whose arguments contain `text`.
pub(crate) fn processes_mentioning(text: &str) -> Vec<i32> {
    let own = std::process::id() as i32;
    let pids = std::fs::read_dir("/proc").expect("list /proc").flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mentions = |pid: &i32| {
        let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        arguments
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    pids.filter(|&pid| pid != own).filter(mentions).collect()
}

/// Whether a process has `path` open.
pub(crate) fn has_open(pid: i32, path: &Path) -> bool {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .into_iter()
        .flatten()
        .flatten();
    files
        .into_iter()
        .any(|file| std::fs::read_link(file.path()).is_ok_and(|target| target == path))
}

pub(crate) fn send(pid: i32, number: i32) {
    // SAFETY: kill only takes numbers.
    unsafe { libc::kill(pid, number) };
}

/// Starts `probe --wait` under a pid of our choosing; `None` when another process has taken it.
pub(crate) fn probe_with_pid(probe: &Path, pid: i32) -> Option<Owned> {
    let program =
        std::ffi::CString::new(probe.as_os_str().as_encoded_bytes()).expect("a path without NUL");
    let arguments = [program.as_ptr(), c"--wait".as_ptr(), std::ptr::null()];
    let wanted = [pid];
    // SAFETY: clone_args is plain numbers, for which zero is valid.
    let mut clone: libc::clone_args = unsafe { std::mem::zeroed() };
    clone.exit_signal = libc::SIGCHLD as u64;
    clone.set_tid = wanted.as_ptr() as u64;
    clone.set_tid_size = 1;
    // SAFETY: without shared memory this is a fork; the arguments live through the call, and the
    // child only makes system calls before exec.
    let child = unsafe { libc::syscall(libc::SYS_clone3, &clone, size_of_val(&clone)) };
    if child == 0 {
        // SAFETY: the vector ends with a null pointer, and its strings outlive the call.
        unsafe {
            let quiet = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            libc::dup2(quiet, 1);
            libc::execv(program.as_ptr(), arguments.as_ptr());
            libc::_exit(127)
        }
    }
    (child == i64::from(pid)).then_some(Owned(pid))
}

/// A child that std does not know of. Dropping it kills it.
pub(crate) struct Owned(pub(crate) i32);

impl Drop for Owned {
    fn drop(&mut self) {
        send(self.0, libc::SIGKILL);
        // SAFETY: waits for a child of ours that was just killed; no status is asked for.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

fn same_file(file: &File) -> Stdio {
    file.try_clone().expect("duplicate a descriptor").into()
}

/// Reads without moving the offset that the writer shares.
fn contents(file: &File) -> String {
    let length = file.metadata().expect("stat an open file").len() as usize;
    let mut bytes = vec![0; length];
    let read = file.read_at(&mut bytes, 0).expect("read an open file");
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}

/// True when the process has ended; it is not reaped here.
fn wait_for_exit(pid: i32, limit: Duration) -> bool {
    // SAFETY: pidfd_open takes two numbers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    assert!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let mut watched = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd, as the count says.
    unsafe { libc::poll(&mut watched, 1, limit.as_millis() as i32) == 1 }
}
