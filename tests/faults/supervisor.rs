//! A command whose system calls are answered by us: carried out, failed, cut short, or never
//! returned from.
//!
//! A seccomp filter hands each call to this process (seccomp_unotify(2)), which is faster than
//! strace by far, and can fail whichever call it likes, with any error number.

use crate::errors::Call;
use crate::process::{Ran, Running};
use nix::libc;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    /// It fails with this error, and is not carried out.
    Fail(i32),
    /// So do all from it on that can fail so.
    FailAll(i32),
    /// A write(2) of half of what was asked for.
    Halve,
    /// The process is killed, and the call not carried out.
    Kill,
    /// From here on no pause lasts: clock_nanosleep(2) returns at once, poll(2) as after its time.
    Hurry,
}

/// A deed at the `nth` call, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Injection {
    pub(crate) nth: usize,
    pub(crate) deed: Deed,
}

/// A command that has ended.
pub(crate) struct Watched {
    /// Its own calls, in order.
    pub(crate) calls: Vec<Call>,
    /// How many injections it came to.
    pub(crate) done: usize,
    /// The inodes of files that it had synced.
    pub(crate) synced: BTreeSet<u64>,
    /// What it renamed, in order, without having the directory synced since.
    pub(crate) renames: Vec<Rename>,
    pub(crate) ran: Ran,
}

/// A rename(2).
#[derive(Clone, Debug)]
pub(crate) struct Rename {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    /// What was in the file that it replaced.
    pub(crate) replaced: Option<Vec<u8>>,
}

/// A command that hangs fails the test; the bound of a hook on its own time is below.
const HANG: Duration = Duration::from_secs(40);

/// The descriptor on which a child gives us its listener; the filter lets only this one pass.
const DOOR: RawFd = 900;

/// Calls that change nothing but the process itself, or are never given an error.
const PASSED: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_prlimit64,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_geteuid,
    libc::SYS_futex,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

#[derive(Default)]
struct Seen {
    first: Option<u32>,
    is_begun: bool,
    is_over: bool,
    calls: Vec<Call>,
    done: usize,
    fail_all: Option<i32>,
    hurries: bool,
    synced: BTreeSet<u64>,
    renames: Vec<Rename>,
}

/// Runs a command to its end, with what is to happen to its own calls after its exec.
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &[u8], injections: &[Injection]) -> Watched {
    run_within(HANG, command, input, injections)
}

/// The same for a command that may take so long.
#[track_caller]
pub(crate) fn run_within(
    limit: Duration,
    command: &mut Command,
    input: &[u8],
    injections: &[Injection],
) -> Watched {
    let (ours, theirs) = pair();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let supervisor = supervise(ours, injections.to_vec(), Arc::clone(&seen));
    let door = theirs.as_raw_fd();
    // SAFETY: the closure makes system calls alone, on numbers and on memory of its own.
    unsafe { command.pre_exec(move || give_listener(door)) };
    let running = Running::start(command, input);
    drop(theirs);
    assert!(
        running.ends_within(limit),
        "{command:?} hangs with {injections:?}"
    );
    let ran = running.wait();
    // Whom it started may go on, under the same filter.
    drop::<JoinHandle<()>>(supervisor);
    let mut seen = seen.lock().unwrap();
    Watched {
        calls: std::mem::take(&mut seen.calls),
        done: seen.done,
        synced: std::mem::take(&mut seen.synced),
        renames: std::mem::take(&mut seen.renames),
        ran,
    }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let mut pair = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the kernel writes two descriptors into the array, which are nobody else's.
    unsafe {
        let made = libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr());
        assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
        (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1]))
    }
}

/// Between fork and exec: installs the filter, and sends its listener.
fn give_listener(door: RawFd) -> std::io::Result<()> {
    let jump = |code: u32, k: u32, yes: u8, no: u8| libc::sock_filter {
        code: code as u16,
        jt: yes,
        jf: no,
        k,
    };
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const GIVE: u32 = libc::BPF_RET | libc::BPF_K;
    let mut filter = [jump(0, 0, 0, 0); 64];
    let mut length = 0;
    let mut add = |instruction| {
        filter[length] = instruction;
        length += 1;
    };
    // struct seccomp_data: the call's number is at 0, the first argument at 16.
    add(jump(LOAD, 0, 0, 0));
    for call in PASSED {
        add(jump(EQUAL, *call as u32, 0, 1));
        add(jump(GIVE, libc::SECCOMP_RET_ALLOW, 0, 0));
    }
    add(jump(EQUAL, libc::SYS_sendmsg as u32, 0, 3));
    add(jump(LOAD, 16, 0, 0));
    add(jump(EQUAL, DOOR as u32, 0, 1));
    add(jump(GIVE, libc::SECCOMP_RET_ALLOW, 0, 0));
    add(jump(GIVE, libc::SECCOMP_RET_USER_NOTIF, 0, 0));
    let program = libc::sock_fprog {
        len: length as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: system calls on numbers, and on values that live through them; the control message
    // has room for one descriptor.
    unsafe {
        if libc::dup3(door, DOOR, libc::O_CLOEXEC) < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
        let mode = libc::SECCOMP_SET_MODE_FILTER;
        let listener = libc::syscall(libc::SYS_seccomp, mode, flags, &program) as RawFd;
        if listener < 0 {
            return Err(std::io::Error::last_os_error());
        }
        let (mut byte, mut control) = ([0u8], [0u64; 4]);
        let mut part = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header)
            .cast::<RawFd>()
            .write_unaligned(listener);
        match libc::sendmsg(DOOR, &message, 0) {
            1 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

fn take_listener(ours: &OwnedFd) -> Option<OwnedFd> {
    let (mut byte, mut control) = ([0u8], [0u64; 4]);
    // SAFETY: as when it was sent; the descriptor that came is nobody else's.
    unsafe {
        let mut part = libc::iovec {
            iov_base: byte.as_mut_ptr().cast(),
            iov_len: 1,
        };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        if libc::recvmsg(ours.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) != 1 {
            return None;
        }
        let header = libc::CMSG_FIRSTHDR(&message);
        let listener = libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned();
        Some(OwnedFd::from_raw_fd(listener))
    }
}

/// `_IOWR('!', 0, struct seccomp_notif)` and `_IOWR('!', 1, struct seccomp_notif_resp)`
/// (linux/seccomp.h).
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`.
const CONTINUE: u32 = 1;

fn supervise(ours: OwnedFd, injections: Vec<Injection>, seen: Arc<Mutex<Seen>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let Some(listener) = take_listener(&ours) else {
            return;
        };
        let mut watched = libc::pollfd {
            fd: listener.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        loop {
            // SAFETY: one valid pollfd, as the count says.
            unsafe { libc::poll(&mut watched, 1, -1) };
            if watched.revents & libc::POLLIN == 0 {
                if watched.revents != 0 {
                    return;
                }
                continue;
            }
            // SAFETY: plain numbers, for which zero is valid; the kernel wants them zero and fills
            // them.
            let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the request's number names the type of the value that it fills.
            if unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &mut asked) } != 0 {
                // Whoever asked was killed meanwhile.
                continue;
            }
            // SAFETY: plain numbers.
            let mut answer: libc::seccomp_notif_resp = unsafe { std::mem::zeroed() };
            answer.id = asked.id;
            match decide(&asked, &injections, &mut seen.lock().unwrap()) {
                Some(Deed::Fail(errno) | Deed::FailAll(errno)) => answer.error = -errno,
                // The kernel takes all of a value or nothing, and half a pid is somebody else's.
                Some(Deed::Halve) if is_kernel_file(&asked) => answer.error = -libc::EIO,
                Some(Deed::Halve) => answer.val = write_half(&asked),
                Some(Deed::Kill) => {
                    crate::process::send(asked.pid as i32, libc::SIGKILL);
                    continue;
                }
                Some(Deed::Hurry) => {}
                None => answer.flags = CONTINUE,
            }
            // SAFETY: as above. Where nobody waits for the answer any more, there is nothing to do.
            unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &mut answer) };
        }
    })
}

/// What becomes of this call; the first process's own count, from its exec on.
fn decide(asked: &libc::seccomp_notif, injections: &[Injection], seen: &mut Seen) -> Option<Deed> {
    let first = *seen.first.get_or_insert(asked.pid);
    if asked.pid != first || seen.is_over {
        return None;
    }
    let number = libc::c_long::from(asked.data.nr);
    if !seen.is_begun {
        seen.is_begun = number == libc::SYS_execve;
        return None;
    }
    let call = Call::of(number, &asked.data.args);
    let nth = seen.calls.len();
    seen.calls.push(call);
    let of_now = injections.iter().find(|injection| injection.nth == nth);
    let of_now = of_now.map(|injection| injection.deed);
    match of_now {
        Some(Deed::FailAll(errno)) => seen.fail_all = Some(errno),
        Some(Deed::Hurry) => seen.hurries = true,
        _ => {}
    }
    // An error that this call never gives would show nothing.
    let is_possible = |deed: &Deed| match deed {
        Deed::Fail(errno) | Deed::FailAll(errno) => call.can_give(*errno),
        Deed::Halve | Deed::Kill => true,
        Deed::Hurry => call.is_pause(),
    };
    let of_before = seen.fail_all.map(Deed::Fail).filter(is_possible);
    let pause = seen.hurries.then_some(Deed::Hurry).filter(is_possible);
    let deed = of_now.filter(is_possible).or(of_before).or(pause);
    seen.done += usize::from(of_now.is_some() && deed.is_some());
    // What it becomes is another program.
    seen.is_over = deed.is_none() && number == libc::SYS_execve;
    if deed.is_none() {
        note(asked, seen);
    }
    deed
}

/// Notes what a power loss leaves of a call that is carried out now.
fn note(asked: &libc::seccomp_notif, seen: &mut Seen) {
    let number = libc::c_long::from(asked.data.nr);
    if [libc::SYS_fsync, libc::SYS_fdatasync].contains(&number) {
        let file = format!("/proc/{}/fd/{}", asked.pid, asked.data.args[0]);
        seen.synced
            .extend(std::fs::metadata(&file).map(|file| file.ino()));
        if let Ok(directory) = std::fs::read_link(file) {
            seen.renames
                .retain(|rename| rename.to.parent() != Some(&*directory));
        }
    }
    if let Some((from, to)) = renamed(asked) {
        let replaced = std::fs::read(&to).ok();
        seen.renames.push(Rename { from, to, replaced });
    }
}

/// From where to where a rename goes.
fn renamed(asked: &libc::seccomp_notif) -> Option<(PathBuf, PathBuf)> {
    let arguments = asked.data.args;
    let at = |directory: u64, address: u64| -> Option<PathBuf> {
        let place = match directory as i32 {
            libc::AT_FDCWD => format!("/proc/{}/cwd", asked.pid),
            number => format!("/proc/{}/fd/{number}", asked.pid),
        };
        Some(
            std::fs::read_link(place)
                .ok()?
                .join(text_at(asked.pid, address)?),
        )
    };
    let here = libc::AT_FDCWD as u64;
    match libc::c_long::from(asked.data.nr) {
        #[cfg(target_arch = "x86_64")]
        libc::SYS_rename => Some((at(here, arguments[0])?, at(here, arguments[1])?)),
        libc::SYS_renameat | libc::SYS_renameat2 => Some((
            at(arguments[0], arguments[1])?,
            at(arguments[2], arguments[3])?,
        )),
        _ => None,
    }
}

/// The text that ends with a NUL in the memory of a process.
fn text_at(pid: u32, address: u64) -> Option<OsString> {
    let memory = File::open(format!("/proc/{pid}/mem")).ok()?;
    let mut bytes = vec![0; libc::PATH_MAX as usize];
    // The memory behind it may end.
    let read = memory.read_at(&mut bytes, address).ok()?;
    bytes.truncate(read);
    let length = bytes.iter().position(|byte| *byte == 0)?;
    bytes.truncate(length);
    Some(OsString::from_vec(bytes))
}

fn is_kernel_file(asked: &libc::seccomp_notif) -> bool {
    let link = format!("/proc/{}/fd/{}", asked.pid, asked.data.args[0]);
    let target = std::fs::read_link(link);
    target.is_ok_and(|file| file.starts_with("/sys") || file.starts_with("/proc"))
}

/// Carries out write(2), or pwrite(2), for the process, with half of its bytes.
fn write_half(asked: &libc::seccomp_notif) -> i64 {
    let [fd, address, length, place, ..] = asked.data.args;
    let mut bytes = vec![0; (length / 2) as usize];
    let memory = File::open(format!("/proc/{}/mem", asked.pid));
    let read = memory.and_then(|memory| memory.read_exact_at(&mut bytes, address));
    read.expect("read what is to be written");
    // SAFETY: system calls on numbers, and a write of bytes that live; the two descriptors are ours
    // to close.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, asked.pid, 0) as RawFd;
        let process = OwnedFd::from_raw_fd(process);
        let file = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) as RawFd;
        let file = OwnedFd::from_raw_fd(file);
        let (file, half) = (file.as_raw_fd(), bytes.as_ptr().cast());
        match libc::c_long::from(asked.data.nr) {
            libc::SYS_pwrite64 => libc::pwrite(file, half, bytes.len(), place as i64) as i64,
            _ => libc::write(file, half, bytes.len()) as i64,
        }
    }
}
