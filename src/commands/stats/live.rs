//! The table on a terminal, redrawn in place until the user quits.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anstream::AutoStream;
use anyhow::{Context, Result};
use clap::ValueEnum;
use crossterm::cursor::MoveTo;
use crossterm::queue;
use crossterm::terminal::{Clear, ClearType};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, raise, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::read;

use super::sheet::Sheet;
use super::terminal::Terminal;
use super::{Moment, Watch};
use crate::cli::{SortBy, StatsArgs};
use crate::commands::screen;
use crate::last_words::ENDING;
use crate::settings::news;
use crate::text::one_line;

/// The bytes of Ctrl-C and Ctrl-Z while the terminal makes no signals of them.
const CTRL_C: u8 = 3;
const CTRL_Z: u8 = 26;
/// The first byte of an arrow key (ECMA-48).
const ESCAPE: u8 = 27;

/// Shows the table until the user quits; `notes` say which columns are missing and why.
pub(super) fn run(
    args: &StatsArgs,
    watch: &mut Watch<'_>,
    sheet: Sheet,
    notes: &[String],
) -> Result<u8> {
    // Signals that end a program, and those about the terminal.
    let of_terminal = [Signal::SIGTSTP, Signal::SIGWINCH];
    let awaited: SigSet = ENDING.into_iter().chain(of_terminal).collect();
    let mut inherited = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&awaited), Some(&mut inherited))
        .context("keep signals from ending this with the terminal as it is")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    let signals = SignalFd::with_flags(&awaited, flags).context("wait for signals")?;
    let terminal = Terminal::take()?;
    let mut view = Screen {
        signals,
        terminal,
        has_keys: true,
        sheet,
        notes: notes.iter().map(|note| one_line(note)).collect(),
        seconds: args.interval.as_secs_f64(),
    };
    news::hold();
    let ended = view.show(args.interval, watch);
    drop(view);
    for message in news::let_go() {
        // If the terminal is gone, nobody reads this.
        let _ = writeln!(io::stderr(), "pinfold: {message}");
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&inherited), None).context("restore the signals")?;
    if let Some(signal) = ended? {
        // Our parent sees that the signal ended us.
        raise(signal).context("end by the signal that came")?;
    }
    Ok(0)
}

/// What a key or a signal asks for.
enum KeyPress {
    /// The next interval.
    Next,
    /// The same interval, redrawn.
    Redraw,
    /// The end.
    Quit,
    /// The signal's default action.
    Signal(Signal),
}

struct Screen {
    signals: SignalFd,
    terminal: Terminal,
    has_keys: bool,
    sheet: Sheet,
    notes: Vec<String>,
    seconds: f64,
}

impl Screen {
    /// Shows one interval after another; returns the signal that ended it, if one did.
    fn show(&mut self, interval: Duration, watch: &mut Watch<'_>) -> Result<Option<Signal>> {
        loop {
            watch.look_again()?;
            let due = Instant::now() + interval;
            self.draw(&watch.moment())?;
            loop {
                match self.wait(due)? {
                    KeyPress::Next => break,
                    KeyPress::Redraw => {}
                    KeyPress::Quit => return Ok(None),
                    KeyPress::Signal(Signal::SIGTSTP) => self.terminal.lend()?,
                    KeyPress::Signal(Signal::SIGWINCH) => {}
                    KeyPress::Signal(signal) => return Ok(Some(signal)),
                }
                self.draw(&watch.moment())?;
            }
            watch.go_on()?;
        }
    }

    /// Waits for a key, a signal or the end of the interval.
    fn wait(&mut self, due: Instant) -> Result<KeyPress> {
        let left = due.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let stdin = io::stdin();
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        if self.has_keys {
            watched.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, timeout) {
            // poll was interrupted, for example by a stop (signal(7)).
            Err(Errno::EINTR) => return Ok(KeyPress::Redraw),
            other => other.context("wait for a key")?,
        };
        let is_ready = |one: Option<&PollFd<'_>>| one.and_then(PollFd::any).unwrap_or_default();
        let (has_signal, has_key) = (is_ready(watched.first()), is_ready(watched.get(1)));
        if has_signal {
            let signal = self.signals.read_signal().context("read a signal")?;
            let signal = signal.and_then(|info| Signal::try_from(info.ssi_signo as i32).ok());
            return Ok(signal.map_or(KeyPress::Redraw, KeyPress::Signal));
        }
        if has_key {
            let mut keys = [0; 64];
            let count = read(&stdin, &mut keys).context("read a key")?;
            // A terminal that is gone has no more keys; SIGHUP follows.
            self.has_keys = count > 0;
            return Ok(self.obey(&keys[..count]));
        }
        Ok(KeyPress::Next)
    }

    fn obey(&mut self, mut keys: &[u8]) -> KeyPress {
        loop {
            keys = match keys {
                [] => return KeyPress::Redraw,
                [b'q' | b'Q', ..] => return KeyPress::Quit,
                [CTRL_C, ..] => return KeyPress::Signal(Signal::SIGINT),
                [CTRL_Z, ..] => return KeyPress::Signal(Signal::SIGTSTP),
                [ESCAPE, b'[' | b'O', b'C', rest @ ..] | [b's', rest @ ..] => {
                    self.sort_by_neighbour(1);
                    rest
                }
                [ESCAPE, b'[' | b'O', b'D', rest @ ..] | [b'S', rest @ ..] => {
                    self.sort_by_neighbour(-1);
                    rest
                }
                [b'r', rest @ ..] => {
                    self.sheet.is_reversed = !self.sheet.is_reversed;
                    rest
                }
                [_, rest @ ..] => rest,
            };
        }
    }

    /// Sorts by the next or previous of the columns that are shown.
    fn sort_by_neighbour(&mut self, steps: isize) {
        let all = SortBy::value_variants();
        let all = match self.sheet.is_wide {
            true => all,
            false => &all[..SortBy::NARROW],
        };
        let now = all.iter().position(|one| *one == self.sheet.sort);
        let next = now.map_or(0, |now| now.wrapping_add_signed(steps + all.len() as isize));
        self.sheet.sort = all[next % all.len()];
    }

    fn draw(&self, moment: &Moment<'_>) -> Result<()> {
        let (columns, rows) = screen::terminal_size().context("the terminal is gone")?;
        let mut page = AutoStream::new(Vec::new(), AutoStream::choice(&io::stdout()));
        self.sheet.write(&mut page, moment, Some(columns))?;
        let page = String::from_utf8_lossy(&page.into_inner()).into_owned();
        let mut lines: Vec<String> = page.lines().map(str::to_owned).collect();
        // The last lines: missing columns, the last error, and the keys.
        let mut notes = self.notes.clone();
        notes.extend(news::held().map(|(last, count)| match count {
            1 => last,
            _ => format!("{last} (and {} before)", count - 1),
        }));
        let room = rows.saturating_sub(1 + notes.len());
        if lines.len() > room {
            let hidden = lines.len() - room.saturating_sub(1);
            lines.truncate(room.saturating_sub(1));
            lines.push(format!("… {hidden} more"));
        }
        let help = format!(
            "every {} s, by {}{}; q quit, s sort, r reverse",
            self.seconds,
            self.sheet.sort.word(),
            if self.sheet.is_reversed {
                " reversed"
            } else {
                ""
            }
        );
        lines.resize(room, String::new());
        let below = notes.iter().chain([&help]);
        lines.extend(below.cloned());
        lines.truncate(rows);
        // Not every terminal cuts a line at its edge.
        lines
            .iter_mut()
            .for_each(|line| *line = screen::cut(line, columns));
        // One write: nobody sees half a frame.
        let mut frame = Vec::new();
        queue!(frame, MoveTo(0, 0))?;
        for (index, line) in lines.iter().enumerate() {
            let end = if index + 1 < lines.len() { "\r\n" } else { "" };
            queue!(frame, Clear(ClearType::UntilNewLine))?;
            frame.extend(line.bytes());
            frame.extend(end.bytes());
        }
        self.terminal.draw(&frame, self.signals.as_fd())
    }
}
