//! `pinfold stats`: what a terminal is shown, and how it is left; what it refuses.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::libc;
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::Pid;
use serde_json::Value;

/// A pool whose lists other tools gave to processes that wait.
struct Site {
    dir: tempfile::TempDir,
    waiting: Vec<Child>,
}

impl Site {
    /// A site with so many owners.
    fn new(owners: usize) -> Site {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: String, content: String| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        put("kcm/lock".into(), String::new());
        put("kcm/pools/dp/exclusive".into(), "1".into());
        put("kcm/pools/dp/9999/tasks".into(), String::new());
        let mut waiting = Vec::new();
        for number in 0..owners {
            let child = Command::new("sleep").arg("600").spawn().unwrap();
            put(
                format!("kcm/pools/dp/{number}/tasks"),
                child.id().to_string(),
            );
            waiting.push(child);
        }
        Site { dir, waiting }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        command.arg("--conf-dir").arg(self.dir.path().join("kcm"));
        command.arg("--run-dir").arg(self.dir.path().join("run"));
        command.arg("stats").args(arguments);
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for child in &mut self.waiting {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// A program on a terminal of its own, and what that shows.
struct Session {
    child: Child,
    keys: File,
    side: OwnedFd,
    shown: Receiver<Vec<u8>>,
    screen: vt100::Parser,
    before: Termios,
}

impl Session {
    fn start(mut command: Command, rows: u16, columns: u16) -> Session {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
        let before = tcgetattr(&slave).unwrap();
        let of_child = || slave.try_clone().unwrap();
        command
            .stdin(of_child())
            .stdout(of_child())
            .stderr(of_child());
        let lead = || {
            nix::unistd::setsid()?;
            // Whoever runs the tests in the background may have it ignore these.
            for signal in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGTERM] {
                // SAFETY: no handler of ours is there yet.
                unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
            }
            // SAFETY: the terminal is standard input, and the call takes no more than that and a
            // number.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: between fork and exec it only makes system calls.
        unsafe { command.pre_exec(lead) };
        let child = command.spawn().unwrap();
        let mut main = File::from(master.try_clone().unwrap());
        let (send, shown) = channel();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = main.read(&mut chunk) {
                if send.send(chunk[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Session {
            child,
            keys: File::from(master),
            side: slave,
            shown,
            screen: vt100::Parser::new(rows.try_into().unwrap(), columns.try_into().unwrap(), 0),
            before,
        }
    }

    /// Reads on until the screen is so.
    #[track_caller]
    fn until(&mut self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) {
        let patience = Instant::now() + Duration::from_secs(20);
        while !is_so(self.screen.screen()) {
            let left = patience.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.screen.process(&bytes),
                Err(_) => panic!("not {what}: {}", self.screen.screen().contents()),
            }
        }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// It ends by itself, and the terminal is as it was.
    #[track_caller]
    fn ends(mut self) -> ExitStatus {
        self.until("the screen is given back", |screen| {
            !screen.alternate_screen() && !screen.hide_cursor()
        });
        let status = self.child.wait().unwrap();
        assert_eq!(tcgetattr(&self.side).unwrap(), self.before);
        status
    }
}

fn lines(screen: &vt100::Screen) -> Vec<String> {
    let contents = screen.contents();
    contents.lines().map(str::to_owned).collect()
}

#[test]
fn it_is_drawn_in_its_place_and_fits() {
    for (rows, columns, owners) in [(24, 80, 3), (60, 200, 50), (24, 80, 40), (5, 40, 8)] {
        let site = Site::new(owners);
        let mut session = Session::start(site.command(&["--interval", "0.2"]), rows, columns);
        session.until("figures are shown", |screen| {
            let shown = lines(screen);
            let has_help = shown.last().is_some_and(|line| line.starts_with("every"));
            has_help && shown.iter().any(|line| line.contains(" 0.0"))
        });
        let shown = lines(session.screen.screen());
        assert!(session.screen.screen().alternate_screen());
        assert!(shown[0].starts_with("NAME"), "{shown:?}");
        let help = shown.last().unwrap();
        assert!(help.starts_with("every 0.2 s, by pool"), "{shown:?}");
        assert_eq!(shown.len(), usize::from(rows), "{shown:?}");
        let rows_shown = shown
            .iter()
            .filter(|line| line.starts_with("sleep"))
            .count();
        let room = usize::from(rows) - 2;
        assert_eq!(rows_shown, if owners > room { room - 1 } else { owners });
        let is_cut = shown.iter().any(|line| line.ends_with(" more"));
        assert_eq!(is_cut, owners > room, "{shown:?}");
        session.press("q");
        assert_eq!(session.ends().code(), Some(0));
    }
}

/// The wide table is cut at the terminal's edge, and shown whole where there is room.
#[test]
fn the_wide_table_is_cut_at_the_edge() {
    for (rows, columns) in [(24, 80), (60, 200)] {
        let site = Site::new(4);
        let line = ["-o", "wide", "--sort", "switches", "--interval", "0.2"];
        let mut session = Session::start(site.command(&line), rows, columns);
        session.until("figures are shown", |screen| {
            let shown = lines(screen);
            let is_sorted = shown
                .last()
                .is_some_and(|line| line.contains("by switches;"));
            is_sorted && shown.iter().any(|line| line.contains(" 0.0"))
        });
        let shown = lines(session.screen.screen());
        assert_eq!(shown.len(), usize::from(rows), "{shown:?}");
        assert!(shown[0].starts_with("NAME"), "{shown:?}");
        assert_eq!(shown[0].contains("MOVES/S"), columns > 80, "{shown:?}");
        // Each owner has a line, and none goes on in the next.
        let of_owners = shown.iter().filter(|line| line.starts_with("sleep"));
        assert_eq!(of_owners.count(), 4, "{shown:?}");
        assert!(shown[5].is_empty(), "{shown:?}");
        // All columns have their turn, those of the wide table as well.
        session.press("s");
        session.until("the next column", |screen| {
            screen.contents().contains("by moves;")
        });
        session.press("s");
        session.until("the first column again", |screen| {
            screen.contents().contains("by name;")
        });
        session.press("q");
        assert_eq!(session.ends().code(), Some(0));
    }
}

/// Under a shell with job control: Ctrl-Z gives the terminal back, and `fg` takes it again.
#[test]
fn it_stops_and_goes_on_as_a_job() {
    let site = Site::new(1);
    let stats = site.command(&["--interval", "0.2"]);
    let mut shell = Command::new("sh");
    // The second command is run once the first has stopped.
    let script = "set -m; \"$@\"; stty -a >\"$0\"; read line; fg >/dev/null";
    let told = site.dir.path().join("stty");
    shell.args(["-c", script]).arg(&told);
    shell.arg(stats.get_program()).args(stats.get_args());
    shell.env("TERM", "xterm").env_remove("NO_COLOR");
    let mut session = Session::start(shell, 24, 80);
    session.until("it is shown", |screen| screen.contents().contains("q quit"));
    session.press("\x1a");
    session.until("the screen is given back", |screen| {
        !screen.alternate_screen() && !screen.hide_cursor()
    });
    let patience = Instant::now() + Duration::from_secs(20);
    let modes = loop {
        let modes = std::fs::read_to_string(&told).unwrap_or_default();
        if modes.contains("icanon") {
            break modes;
        }
        assert!(Instant::now() < patience, "the shell does not go on");
        std::thread::sleep(Duration::from_millis(20));
    };
    let words: Vec<&str> = modes.split([' ', ';', '\n']).collect();
    for word in ["icanon", "echo", "isig", "opost"] {
        assert!(words.contains(&word), "{word}: {modes}");
    }
    session.press("\n");
    session.until("it is shown again", |screen| {
        screen.alternate_screen() && screen.contents().contains("q quit")
    });
    session.press("q");
    assert_eq!(session.ends().code(), Some(0));
}

#[test]
fn figures_stay_while_others_are_looked_for() {
    let busy = Command::new("sh")
        .args(["-c", "while :; do :; done"])
        .spawn()
        .unwrap();
    let mut site = Site::new(1);
    let tasks = site.dir.path().join("kcm/pools/dp/0/tasks");
    std::fs::write(tasks, busy.id().to_string()).unwrap();
    site.waiting.push(busy);
    // Longer than owners are not looked for.
    let mut session = Session::start(site.command(&["--interval", "5.2"]), 24, 80);
    session.until("nothing is measured yet", |screen| {
        lines(screen).get(1).is_some_and(|row| row.ends_with('-'))
    });
    session.until("its time is shown", |screen| {
        let row = lines(screen).into_iter().nth(1).unwrap_or_default();
        row.split_whitespace()
            .nth(3)
            .is_some_and(|time| time.ends_with('s') && time != "0.0s")
    });
    session.press("q");
    assert_eq!(session.ends().code(), Some(0));
}

#[test]
fn keys_choose_the_order() {
    let site = Site::new(3);
    let mut session = Session::start(site.command(&[]), 24, 80);
    let by = |what: &'static str| move |screen: &vt100::Screen| screen.contents().contains(what);
    let first_list = |screen: &vt100::Screen| {
        let row = lines(screen).into_iter().nth(1);
        row.and_then(|row| row.split_whitespace().nth(2).map(str::to_owned))
    };
    session.until("it is shown", by("by pool;"));
    session.press("s");
    session.until("the next column", by("by cpus;"));
    session.until("the first CPU is first", move |screen| {
        first_list(screen).as_deref() == Some("0")
    });
    session.press("r");
    session.until("turned round", by("by cpus reversed"));
    session.until("the last CPU is first", move |screen| {
        first_list(screen).as_deref() == Some("2")
    });
    session.press("x\x1b\x1b[D");
    session.until("the column before", by("by pool reversed"));
    session.press("q");
    assert_eq!(session.ends().code(), Some(0));
}

#[test]
fn the_terminal_is_given_back_on_any_way_out() {
    for (way, signal) in [
        ("\x03", Signal::SIGINT),
        ("", Signal::SIGTERM),
        ("", Signal::SIGHUP),
        ("", Signal::SIGUSR1),
    ] {
        let site = Site::new(1);
        let mut session = Session::start(site.command(&[]), 24, 80);
        session.until("it is shown", |screen| screen.contents().contains("q quit"));
        match way {
            "" => kill(Pid::from_raw(session.child.id() as i32), signal).unwrap(),
            keys => session.press(keys),
        }
        assert_eq!(session.ends().signal(), Some(signal as i32));
    }
}

/// Somebody has the terminal open, and reads nothing any more.
#[test]
fn a_terminal_that_takes_nothing_holds_nobody() {
    let site = Site::new(40);
    let size = Winsize {
        ws_row: 60,
        ws_col: 200,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let pty = openpty(&size, None).unwrap();
    let mut command = site.command(&["--interval", "0.1"]);
    let of_child = || pty.slave.try_clone().unwrap();
    let mut child = command
        .stdin(of_child())
        .stdout(of_child())
        .spawn()
        .unwrap();
    // More than the terminal has room for.
    std::thread::sleep(Duration::from_secs(3));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > patience => {
                child.kill().unwrap();
                panic!("it does not end");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert_eq!(status.signal(), Some(Signal::SIGTERM as i32));
}

#[test]
fn without_a_terminal_there_are_tables_or_a_document_a_line() {
    let site = Site::new(2);
    let output = site.run(&["--no-stream", "--interval", "0.1"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        !text.contains('\x1b') && text.lines().all(|line| line.len() <= 80),
        "{text}"
    );
    let mut command = site.command(&["--json", "--interval", "0.1"]);
    let mut child = command
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    for _ in 0..3 {
        let document: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        assert_eq!(document["owners"].as_array().unwrap().len(), 2);
        assert_eq!(document["owners"][0]["account"], "processes");
    }
    // Whoever read it is gone: that is no failure.
    drop(lines);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_pool_is_chosen_and_an_unknown_owner_refused() {
    let site = Site::new(1);
    // A row of another tool's is named as it is shown.
    let pid = format!("pid:{}", site.waiting[0].id());
    for called in ["dp", "sleep", &pid] {
        let output = site.run(&[called, "--no-stream", "--json", "--interval", "0.1"]);
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(document["owners"].as_array().unwrap().len(), 1, "{called}");
    }
    for (arguments, code, part) in [
        (
            &["nobody", "--no-stream"][..],
            1,
            "no owner is called \"nobody\"",
        ),
        (&["--interval", "0"], 2, "from 0.1 to 3600 seconds"),
        (&["--interval", "often"], 2, "a number of seconds"),
        (&["--sort", "colour"], 2, "possible values"),
    ] {
        let output = site.run(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        assert!(stderr.contains(part), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}
