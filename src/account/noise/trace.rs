//! Pure: the text of an instance's `trace_pipe` (kernel: Documentation/trace/ftrace.rst), event by
//! event.
//!
//! Threads name themselves (prctl(2), `PR_SET_NAME`), with any 15 bytes: a name can look like a
//! part of an event, and can break its line. Each part is looked for so that no name can stand for
//! it.

use std::time::Duration;

/// The longest name of a thread, in bytes (prctl(2), `PR_SET_NAME`).
const MOST_NAME: usize = 15;

/// The most bytes of a line, or of what is left of one that a name has broken: no event has more.
const MOST_LINE: usize = 8 << 10;

const SWITCH: &str = ": sched_switch: prev_comm=";
const FORK: &str = ": sched_process_fork: comm=";
const MOVE: &str = ": cgroup_attach_task: dst_root=";

/// What happened on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A CPU went from one thread to another.
    Switch {
        /// The CPU.
        cpu: u32,
        /// When, by the clock of the instance.
        at: Duration,
        /// Whoever had it.
        before: Ran,
        /// Whoever has it now.
        after: Ran,
    },
    /// A thread has made another.
    Fork {
        /// The maker.
        parent: i32,
        /// The new one.
        child: i32,
    },
    /// A process was moved to another cgroup.
    Move {
        /// Its first thread.
        tid: i32,
        /// The number of the hierarchy (proc_pid_cgroup(5), first field).
        hierarchy: u32,
        /// The group's path.
        group: String,
    },
    /// The kernel had no room for events; so many, where it says.
    Lost(Option<u64>),
}

/// A thread that a CPU was given to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its number; 0 stands for nobody.
    pub tid: i32,
    /// The name that it had: text of others.
    pub name: String,
}

/// Text that comes in pieces.
#[derive(Debug, Default)]
pub struct TraceText {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Lines that are no event yet, because a name may have broken them.
    broken: String,
    /// Were there lines that are no event?
    has_unread: bool,
}

impl TraceText {
    /// Reads a piece, and hands over the events that are whole.
    pub fn read(&mut self, piece: &[u8], mut found: impl FnMut(Event)) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let end = part.strip_suffix(b"\n");
            let words = end.unwrap_or(part);
            let room = MOST_LINE.saturating_sub(self.line.len());
            self.line.extend_from_slice(&words[..words.len().min(room)]);
            if end.is_some() {
                let line = String::from_utf8_lossy(&self.line).into_owned();
                self.line.clear();
                self.end_line(&line).into_iter().for_each(&mut found);
            }
        }
    }

    /// Was every line an event?
    pub fn is_whole(&self) -> bool {
        !self.has_unread && self.broken.is_empty()
    }

    fn end_line(&mut self, line: &str) -> Option<Event> {
        let joined = match self.broken.is_empty() {
            true => line.to_owned(),
            false => format!("{}\n{line}", self.broken),
        };
        let event = event(&joined).or_else(|| event(line));
        self.broken = match event {
            Some(_) => String::new(),
            None if joined.len() > MOST_LINE => {
                self.has_unread = true;
                line.to_owned()
            }
            None => joined,
        };
        event
    }
}

/// The event that a line tells of.
fn event(line: &str) -> Option<Event> {
    if let Some(lost) = line.strip_prefix("CPU:") {
        let lost = lost.split_once(" [LOST ")?.1.strip_suffix("EVENTS]")?;
        return Some(Event::Lost(lost.trim().parse().ok()));
    }
    switch(line).or_else(|| fork(line)).or_else(|| moved(line))
}

/// `… [CPU] FLAGS SECONDS: sched_switch: prev_comm=A prev_pid=N prev_prio=N prev_state=S ==>
/// next_comm=B next_pid=N next_prio=N`
fn switch(line: &str) -> Option<Event> {
    // Longer than a name: what stands before it, a name among it, cannot have it.
    let (head, rest) = line.split_once(SWITCH)?;
    let (cpu, at) = place(head)?;
    // The same is true of all that has to follow the first name.
    let (before, rest) = named(rest, " prev_pid=", |rest| {
        let (tid, rest) = number(rest)?;
        let (_, rest) = number(rest.strip_prefix(" prev_prio=")?)?;
        let (_, rest) = rest.strip_prefix(" prev_state=")?.split_once(' ')?;
        Some((tid, rest.strip_prefix("==> next_comm=")?))
    })?;
    // Behind the second name there are numbers alone: the last such words are no part of it.
    let (name, numbers) = rest.rsplit_once(" next_pid=")?;
    let (tid, prio) = number(numbers)?;
    let (_, end) = number(prio.strip_prefix(" next_prio=")?)?;
    let after = Ran {
        tid,
        name: name_of(name)?,
    };
    end.is_empty().then_some(Event::Switch {
        cpu,
        at,
        before,
        after,
    })
}

/// `…: sched_process_fork: comm=A pid=N child_comm=B child_pid=N`
fn fork(line: &str) -> Option<Event> {
    let (_, rest) = line.split_once(FORK)?;
    let (parent, rest) = named(rest, " pid=", |rest| {
        let (tid, rest) = number(rest)?;
        Some((tid, rest.strip_prefix(" child_comm=")?))
    })?;
    let (name, child) = rest.rsplit_once(" child_pid=")?;
    name_of(name)?;
    let (child, end) = number(child)?;
    end.is_empty().then_some(Event::Fork {
        parent: parent.tid,
        child,
    })
}

/// `…: cgroup_attach_task: dst_root=N dst_id=N dst_level=N dst_path=PATH pid=N comm=A`; `None`
/// where the path, or the name, makes it unclear which is which.
fn moved(line: &str) -> Option<Event> {
    let (_, rest) = line.split_once(MOVE)?;
    let (hierarchy, rest) = number(rest)?;
    let (_, rest) = number(rest.strip_prefix(" dst_id=")?)?;
    let (_, rest) = number(rest.strip_prefix(" dst_level=")?)?;
    let rest = rest.strip_prefix(" dst_path=")?;
    let ends = rest.match_indices(" pid=").filter_map(|(place, word)| {
        let (tid, name) = number(&rest[place + word.len()..])?;
        name_of(name.strip_prefix(" comm=")?)?;
        Some((place, tid))
    });
    let ends: Vec<_> = ends.collect();
    let [(place, tid)] = ends[..] else {
        return None;
    };
    Some(Event::Move {
        tid,
        hierarchy: hierarchy.try_into().ok()?,
        group: rest[..place].to_owned(),
    })
}

/// The CPU and the time that end what stands before an event's own text.
fn place(head: &str) -> Option<(u32, Duration)> {
    let mut words = head.rsplit(' ').filter(|word| !word.is_empty());
    let at = time(words.next()?)?;
    // Before the time there are flags.
    let cpu = |word: &str| word.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let cpu = words.take(2).find_map(cpu)?;
    Some((cpu, at))
}

/// `SECONDS.MICROSECONDS`
fn time(text: &str) -> Option<Duration> {
    let (seconds, micros) = text.split_once('.')?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if micros.len() != 6 || !digits(seconds) || !digits(micros) {
        return None;
    }
    let seconds = Duration::from_secs(seconds.parse().ok()?);
    seconds.checked_add(Duration::from_micros(micros.parse().ok()?))
}

/// A name that ends where `word` and all that has to follow it begin.
fn named<'a>(
    text: &'a str,
    word: &str,
    follows: impl Fn(&'a str) -> Option<(i32, &'a str)>,
) -> Option<(Ran, &'a str)> {
    let mut ends = text.match_indices(word);
    ends.find_map(|(place, _)| {
        let (tid, rest) = follows(&text[place + word.len()..])?;
        let name = name_of(&text[..place])?;
        Some((Ran { tid, name }, rest))
    })
}

fn name_of(text: &str) -> Option<String> {
    // What is not UTF-8 has become a character for each byte, or for several.
    (text.chars().count() <= MOST_NAME).then(|| text.to_owned())
}

/// The number that a text begins with, and what is behind it.
fn number(text: &str) -> Option<(i32, &str)> {
    let is_part =
        |(place, byte): (usize, u8)| byte.is_ascii_digit() || (place == 0 && byte == b'-');
    let bytes = text.bytes().enumerate();
    let length = bytes.take_while(|part| is_part(*part)).count();
    Some((text[..length].parse().ok()?, &text[length..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 wrote it.
    const CAPTURED: &str = "\
            bash-26071   [000] .....  1261.294648: sched_process_fork: comm=bash pid=26071 \
        child_comm=bash child_pid=26080
      lto cgu.09-26009   [001] d..2.  1261.296069: sched_switch: prev_comm=lto cgu.09 \
        prev_pid=26009 prev_prio=120 prev_state=R ==> next_comm=bash next_pid=26080 next_prio=120
            true-26080   [001] d..2.  1261.352419: sched_switch: prev_comm=d ==>  prev_pid=26080 \
        prev_prio=120 prev_state=D ==> next_comm=lto cgu.09 next_pid=26009 next_prio=120
    kworker/u8:0-12      [001] d..2.  1261.356130: sched_switch: prev_comm=kworker/u8:0 \
        prev_pid=12 prev_prio=120 prev_state=I ==> next_comm=kcompactd0 next_pid=36 next_prio=120
CPU:1 [LOST 12345 EVENTS]
          <idle>-0       [003] d..2.    93.000001: sched_switch: prev_comm=swapper/3 prev_pid=0 \
        prev_prio=120 prev_state=R ==> next_comm=migration/3 next_pid=22 next_prio=0
CPU:1 [LOST EVENTS]
            bash-26071   [000] d..1.  1261.444126: cgroup_attach_task: dst_root=3 dst_id=2074 \
        dst_level=1 dst_path=/cap test pid=26084 comm=sleep
";

    fn events(text: &str) -> Vec<Event> {
        let mut events = Vec::new();
        TraceText::default().read(text.as_bytes(), |event| events.push(event));
        events
    }

    fn ran(tid: i32, name: &str) -> Ran {
        let name = name.to_owned();
        Ran { tid, name }
    }

    fn switch_event(cpu: u32, micros: u64, before: Ran, after: Ran) -> Event {
        Event::Switch {
            cpu,
            at: Duration::from_micros(micros),
            before,
            after,
        }
    }

    /// Lines of another form, as other options of the trace give them.
    #[test]
    fn what_is_no_event_is_noticed() {
        let mut text = TraceText::default();
        text.read(b"7 2 12 120 S ==> 0 120\n", |event| panic!("{event:?}"));
        assert!(!text.is_whole());
        let lines = "7 2 12 120 S ==> 0 120\n".repeat(2000);
        text.read(lines.as_bytes(), |event| panic!("{event:?}"));
        text.read(b"CPU:2 [LOST 5 EVENTS]\n", |_| {});
        assert!(!text.is_whole());
    }

    #[test]
    fn reads_what_kernels_write() {
        let lto = || ran(26009, "lto cgu.09");
        let expected = [
            Event::Fork {
                parent: 26071,
                child: 26080,
            },
            switch_event(1, 1_261_296_069, lto(), ran(26080, "bash")),
            switch_event(1, 1_261_352_419, ran(26080, "d ==> "), lto()),
            switch_event(
                1,
                1_261_356_130,
                ran(12, "kworker/u8:0"),
                ran(36, "kcompactd0"),
            ),
            Event::Lost(Some(12345)),
            switch_event(3, 93_000_001, ran(0, "swapper/3"), ran(22, "migration/3")),
            Event::Lost(None),
            Event::Move {
                tid: 26084,
                hierarchy: 3,
                group: "/cap test".to_owned(),
            },
        ];
        assert_eq!(events(CAPTURED), expected);
        // In pieces of any length.
        for length in [1, 7, 100] {
            let (mut text, mut found) = (TraceText::default(), Vec::new());
            for piece in CAPTURED.as_bytes().chunks(length) {
                text.read(piece, |event| found.push(event));
            }
            assert_eq!(found, expected, "{length}");
        }
    }

    #[test]
    fn no_name_stands_for_a_part_of_an_event() {
        for name in [
            "",
            " prev_pid=1",
            " prev_pid=7 ",
            " ==> next_comm=",
            " next_pid=9",
            "a\nb",
            "\n",
            "\nCPU:1 [LOST 9",
            "# x\n#",
            "] 1.000000: x",
            ": sched_switch:",
            "\u{fffd}\u{fffd}",
        ] {
            let line = |before: &str, after: &str| {
                format!(
                    "  {before}-5 [002] d..2.  7.000009: sched_switch: prev_comm={before} \
                     prev_pid=5 prev_prio=120 prev_state=R+ ==> next_comm={after} next_pid=6 \
                     next_prio=-1\n"
                )
            };
            let text = line(name, "a") + &line("a", name) + &line(name, name);
            let event = |before: &str, after: &str| {
                switch_event(2, 7_000_009, ran(5, before), ran(6, after))
            };
            let expected = [event(name, "a"), event("a", name), event(name, name)];
            assert_eq!(events(&text), expected, "{name:?}");
            let fork = format!(
                " {name}-5 [002] ..... 7.000009: sched_process_fork: comm={name} pid=5 \
                 child_comm={name} child_pid=6\n"
            );
            let expected = Event::Fork {
                parent: 5,
                child: 6,
            };
            assert_eq!(events(&fork), [expected], "{name:?}");
        }
        // Which is which cannot be told.
        let text = "x-1 [000] d..1. 1.000000: cgroup_attach_task: dst_root=3 dst_id=2 dst_level=1 \
                    dst_path=/a pid=1 comm= pid=2 comm=sh\n";
        assert_eq!(events(text), []);
    }

    proptest::proptest! {
        /// Whoever names threads can write anything here.
        #[test]
        fn any_text_in_any_pieces_tells_the_same(
            parts in proptest::collection::vec(part(), 0..40),
            length in 1_usize..50,
        ) {
            let bytes: Vec<u8> = parts.concat();
            let (mut whole, mut expected) = (TraceText::default(), Vec::new());
            whole.read(&bytes, |event| expected.push(event));
            let (mut text, mut found) = (TraceText::default(), Vec::new());
            for piece in bytes.chunks(length) {
                text.read(piece, |event| found.push(event));
            }
            proptest::prop_assert_eq!(found, expected);
            proptest::prop_assert_eq!(text.is_whole(), whole.is_whole());
            proptest::prop_assert!(text.line.len() <= MOST_LINE);
            proptest::prop_assert!(text.broken.len() <= 2 * MOST_LINE);
        }
    }

    /// A word of an event, or any bytes.
    fn part() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
        use proptest::prelude::*;
        let words = proptest::sample::select(vec![
            "\n",
            SWITCH,
            FORK,
            MOVE,
            " prev_pid=5",
            " prev_prio=1",
            " prev_state=R ==> ",
            "next_comm=a",
            " next_pid=6",
            " next_prio=1",
            " [000] ",
            " 1.000001",
            " pid=7",
            " child_comm=",
            " child_pid=8",
            " dst_id=1",
            " dst_path=/a",
            " comm=b",
            "CPU:1 [LOST ",
            "9",
            " EVENTS]",
            CAPTURED,
        ]);
        let word = words.prop_map(|word| word.as_bytes().to_vec());
        prop_oneof![3 => word, 1 => proptest::collection::vec(any::<u8>(), 0..30)]
    }

    #[test]
    fn what_is_no_event_hides_none() {
        let text = format!("# tracer: nop\n#\nodd: \u{0}\n{CAPTURED}");
        assert_eq!(events(&text).len(), events(CAPTURED).len());
        let long = format!("{}\n{CAPTURED}", "x\n".repeat(3 * MOST_LINE));
        assert_eq!(events(&long).len(), events(CAPTURED).len());
    }
}
