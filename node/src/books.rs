//! Pinfold's books as this program sees them: pools, CPU lists, owners. Nothing else here reads
//! them, and nothing changes them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pinfold::config::Door;
use pinfold::files;
use pinfold::placement::{ListDevices, Seen, Site, survey_to_watch};
use pinfold::refusal::Reason;
use pinfold::settings::{Settings, count_refusal, news};
use tokio::sync::watch;

use crate::said::Said;

/// The time between two looks whether the books may have changed: reading what the kernel has
/// reported since, which is one or two system calls.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two surveys: an owner's death, and a CPU that goes offline, change no
/// file.
const LONGEST: Duration = Duration::from_secs(10);
/// The longest time until a survey is tried again that failed.
const MOST_PATIENCE: Duration = Duration::from_secs(30);

/// Where the books are.
#[derive(Debug)]
pub struct Reader {
    site: Site,
    /// The pools that the configuration lets nobody ask for by CDI device.
    closed: BTreeSet<String>,
}

/// The books as they were when they could be read last; `None` before that. A pool that cannot be
/// read is in them as it was.
pub type Books = watch::Receiver<Option<Arc<ListDevices>>>;

impl Reader {
    /// Reads as the settings say.
    ///
    /// # Errors
    /// The settings are for looking at another machine.
    pub fn of(settings: &Settings) -> Result<Reader> {
        let rules = settings.pools().iter();
        let closed = rules.filter(|(_, rules)| {
            let doors = rules.doors.as_ref();
            doors.is_some_and(|doors| !doors.contains(&Door::Cdi))
        });
        Ok(Reader {
            closed: closed.map(|(pool, _)| pool.clone()).collect(),
            site: settings.site_with_processes()?.clone(),
        })
    }

    /// The site.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The run directory.
    pub fn run_dir(&self) -> &Path {
        &self.site.run_dir
    }

    /// May a pool be asked for by CDI device?
    pub fn is_open(&self, pool: &str) -> bool {
        !self.closed.contains(pool)
    }

    /// Reads the books anew; where they cannot be read, or who owns what is in doubt, they are as
    /// they were: half of a change is never shown.
    ///
    /// # Errors
    /// They have never been read.
    pub fn read(&self, last: Option<Arc<ListDevices>>) -> Result<Arc<ListDevices>> {
        let read = self
            .read_to_watch()
            .and_then(|(now, _)| Ok(now.completed(last.as_deref())?));
        match (read, last) {
            (Ok(books), _) => Ok(Arc::new(books)),
            (Err(error), Some(last)) => {
                log::debug!("the books are as they were last: {error:#}");
                Ok(last)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Counts a refusal among those of starts.
    pub fn count(&self, reason: Reason) {
        count_refusal(&self.site.run_dir, reason);
    }

    fn read_to_watch(&self) -> Result<(ListDevices, Option<Seen>)> {
        if files::entry_if_there(&self.site.conf_dir)?.is_none() {
            let nothing = ListDevices {
                pools: Vec::new(),
                owners: Vec::new(),
                unread: Vec::new(),
                doubt: None,
                remarks: Vec::new(),
            };
            return Ok((nothing, None));
        }
        let (survey, seen) = survey_to_watch(&self.site)?;
        Ok((ListDevices::of(&self.site, survey)?, Some(seen)))
    }
}

/// Reads the books whenever they may have changed, on a thread of its own, until the other end of
/// `stop` is dropped.
///
/// # Errors
/// There can be no thread.
pub fn watch(reader: Arc<Reader>, stop: Receiver<()>) -> Result<Books> {
    let (sender, books) = watch::channel(None);
    let look = move || {
        let mut looked = Looked::default();
        let mut last: Option<Instant> = None;
        loop {
            if last.is_none_or(|last| looked.is_due(last.elapsed())) {
                last = Some(Instant::now());
                news::begin_round();
                looked = look_once(&reader, &sender, looked);
            }
            match stop.recv_timeout(PAUSE) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    };
    let thread = thread::Builder::new().name("books".to_owned());
    thread
        .spawn(look)
        .context("start the thread that reads the books")?;
    Ok(books)
}

/// When to look again, by what a look came to.
#[derive(Debug, Default)]
struct Looked {
    /// How long to wait, whatever changes: a look failed, or could not see all.
    pause: Option<Duration>,
    /// Is to be looked again soon, although no file will have changed?
    is_changing: bool,
    /// By what a change is seen.
    seen: Option<Seen>,
    said: Said,
}

impl Looked {
    fn is_due(&mut self, since: Duration) -> bool {
        if let Some(pause) = self.pause {
            return since >= pause;
        }
        let has_changed = self.seen.as_mut().is_none_or(Seen::may_have_changed);
        has_changed || self.is_changing || since >= LONGEST
    }

    /// Twice as long as the last time.
    fn back_off(last: Option<Duration>) -> Duration {
        last.map_or(PAUSE, |last| MOST_PATIENCE.min(last * 2))
    }
}

/// What complaints are about that the books cannot be read.
const BOOKS: &str = "books";

/// Reads the books, and hands them on where they could be read.
fn look_once(
    reader: &Reader,
    sender: &watch::Sender<Option<Arc<ListDevices>>>,
    before: Looked,
) -> Looked {
    let Looked {
        pause, mut said, ..
    } = before;
    let last = sender.borrow().clone();
    let read = reader.read_to_watch().and_then(|(now, seen)| {
        for remark in now.remarks.iter().filter(|_| now.doubt.is_none()) {
            log::warn!("{remark}");
        }
        Ok((now.completed(last.as_deref())?, seen))
    });
    let (books, seen) = match read {
        Ok(read) => read,
        Err(error) => {
            // What was known stays: the hook decides in any case.
            said.warn_of(BOOKS, &error);
            return Looked {
                pause: Some(Looked::back_off(pause)),
                said,
                ..Looked::default()
            };
        }
    };
    said.warn(BOOKS, None);
    // Their death frees a list, and nothing reports it.
    let has_strangers = books.pools.iter().any(|pool| {
        let mut lists = pool.lists.iter();
        lists.any(|list| books.stranger_on(list).is_some())
    });
    let is_read = books.unread.is_empty();
    sender.send_if_modified(|known| {
        let is_news = known.as_deref() != Some(&books);
        if is_news {
            *known = Some(Arc::new(books));
        }
        is_news
    });
    Looked {
        // The others are followed meanwhile.
        pause: (!is_read).then(|| LONGEST.min(Looked::back_off(pause))),
        is_changing: has_strangers,
        seen,
        said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_less_and_less_often_whatever_changes() {
        let mut pause = None;
        let mut waited = Vec::new();
        for _ in 0..7 {
            pause = Some(Looked::back_off(pause));
            let mut looked = Looked {
                pause,
                is_changing: true,
                ..Looked::default()
            };
            let due = (0..60).find(|seconds| looked.is_due(Duration::from_secs(*seconds)));
            waited.push(due.unwrap());
        }
        assert_eq!(waited, [1, 2, 4, 8, 16, 30, 30]);
        assert!(Looked::default().is_due(Duration::ZERO));
    }
}
