//! Pure: who ran on which CPU, and how long, from what is seen one after another.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::people::Who;
use super::trace::Ran;

/// The threads that had CPUs.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// From when on it counts, by the trace's clock.
    begin: Duration,
    pub(super) threads: Vec<Thread>,
    /// The thread that has a number now: numbers are used again.
    places: HashMap<i32, usize>,
    now: BTreeMap<u32, Option<(usize, Duration)>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Thread {
    pub(super) tid: i32,
    /// The last name that it had: text of others.
    pub(super) name: String,
    /// What is known of it.
    pub(super) who: Who,
    /// Has somebody looked at it in `/proc` since it was first seen, or since it may have been
    /// moved?
    pub(super) is_looked_at: bool,
    /// For each CPU.
    pub(super) runs: BTreeMap<u32, Run>,
}

/// What a thread did on one CPU.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) time: Duration,
    /// How often it came there, or was seen there.
    pub(super) times: u64,
}

impl Runs {
    /// Counts from this time on.
    pub(super) fn from(begin: Duration) -> Runs {
        Runs {
            begin,
            ..Runs::default()
        }
    }

    /// The place of the thread with this number; `who` tells what is known of it where it is new.
    fn place(&mut self, ran: &Ran, who: impl FnOnce() -> Who) -> usize {
        let place = *self.places.entry(ran.tid).or_insert_with(|| {
            self.threads.push(Thread {
                tid: ran.tid,
                name: String::new(),
                who: who(),
                is_looked_at: false,
                runs: BTreeMap::new(),
            });
            self.threads.len() - 1
        });
        let thread = &mut self.threads[place];
        if thread.name != ran.name {
            thread.name.clone_from(&ran.name);
        }
        place
    }

    /// The thread that has this number now, if it was seen.
    pub(super) fn known(&mut self, tid: i32) -> Option<&mut Thread> {
        let place = self.places.get(&tid)?;
        self.threads.get_mut(*place)
    }

    /// Does the thread at this place have its number still?
    pub(super) fn is_current(&self, place: usize) -> bool {
        let thread = self.threads.get(place);
        thread.is_some_and(|thread| self.places.get(&thread.tid) == Some(&place))
    }

    /// Somebody else has this number from now on.
    pub(super) fn forget(&mut self, tid: i32) {
        self.places.remove(&tid);
    }

    /// A CPU went from one to another. What is not seen is not guessed: whoever had it last has the
    /// time since it was given to them, or since the beginning.
    pub(super) fn switch(
        &mut self,
        cpu: u32,
        at: Duration,
        (before, after): (&Ran, &Ran),
        who: impl Fn(i32) -> Who,
    ) {
        let known = self.now.insert(cpu, None);
        if before.tid != 0 && at >= self.begin {
            let place = self.place(before, || who(before.tid));
            match known {
                None => self.count(place, cpu, Duration::ZERO, at),
                Some(Some((last, since))) if place == last => self.count(place, cpu, since, at),
                Some(_) => drop(self.threads[place].runs.entry(cpu).or_default()),
            }
        }
        if after.tid != 0 {
            let place = self.place(after, || who(after.tid));
            self.now.insert(cpu, Some((place, at)));
            if at >= self.begin {
                self.threads[place].runs.entry(cpu).or_default().times += 1;
            }
        }
    }

    /// A thread has had a CPU for this time.
    fn count(&mut self, place: usize, cpu: u32, since: Duration, until: Duration) {
        let run = self.threads[place].runs.entry(cpu).or_default();
        // Whoever had it at the beginning came before.
        run.times += u64::from(since < self.begin);
        run.time += until.saturating_sub(since.max(self.begin));
    }

    /// A thread was on a CPU for so long, as far as can be told.
    pub(super) fn add(&mut self, ran: &Ran, cpu: u32, time: Duration, who: impl FnOnce() -> Who) {
        let place = self.place(ran, who);
        let run = self.threads[place].runs.entry(cpu).or_default();
        run.times += 1;
        run.time += time;
    }

    /// The CPUs of these on which nothing was seen: one thread, or none, had it all the time.
    pub(super) fn silent(&self, cpus: impl Iterator<Item = u32>) -> Vec<u32> {
        cpus.filter(|cpu| !self.now.contains_key(cpu)).collect()
    }

    /// Ends all runs.
    pub(super) fn end(&mut self, at: Duration) {
        for (cpu, last) in std::mem::take(&mut self.now) {
            if let Some((place, since)) = last {
                self.count(place, cpu, since, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ran(tid: i32) -> Ran {
        let name = format!("t{tid}");
        Ran { tid, name }
    }

    const NOBODY: fn(i32) -> Who = |_| Who::Unknown;

    fn run(runs: &mut Runs, tid: i32, cpu: u32) -> (u64, u64) {
        let run = runs.known(tid).and_then(|thread| thread.runs.get(&cpu));
        let run = run.copied().unwrap_or_default();
        (run.time.as_secs(), run.times)
    }

    #[test]
    fn time_is_whose_the_cpu_is() {
        let seconds = Duration::from_secs;
        let mut runs = Runs::from(seconds(100));
        for (cpu, at, before, after) in [
            // Whoever has it at the beginning is seen when it goes.
            (4, 103, 7, 0),
            (4, 105, 0, 8),
            (4, 106, 8, 9),
            (4, 107, 9, 8),
            // What was before the beginning does not count.
            (5, 90, 0, 6),
            (5, 99, 6, 7),
            // What went on meanwhile was not seen.
            (6, 101, 0, 7),
            (6, 108, 8, 0),
        ] {
            runs.switch(cpu, seconds(at), (&ran(before), &ran(after)), NOBODY);
        }
        assert_eq!(runs.silent([3, 4, 5, 6].into_iter()), [3]);
        runs.end(seconds(110));
        assert_eq!(run(&mut runs, 7, 4), (3, 1));
        assert_eq!(run(&mut runs, 8, 4), (4, 2));
        assert_eq!(run(&mut runs, 9, 4), (1, 1));
        assert_eq!(run(&mut runs, 7, 5), (10, 1));
        assert_eq!(run(&mut runs, 7, 6), (0, 1));
        assert_eq!(run(&mut runs, 8, 6), (0, 0));
        assert!(runs.known(8).unwrap().runs.contains_key(&6));
        assert!(runs.known(0).is_none());
        assert!(runs.known(6).unwrap().runs.is_empty());
    }

    #[test]
    fn a_number_that_is_used_again_is_another_thread() {
        let mut runs = Runs::from(Duration::ZERO);
        let second = Duration::from_secs(1);
        runs.add(&ran(7), 4, second, || Who::Kernel);
        runs.forget(7);
        runs.add(&ran(7), 4, second, || Who::Unknown);
        let whose: Vec<_> = runs.threads.iter().map(|thread| &thread.who).collect();
        assert_eq!(whose, [&Who::Kernel, &Who::Unknown]);
        assert_eq!(run(&mut runs, 7, 4), (1, 1));
    }
}
