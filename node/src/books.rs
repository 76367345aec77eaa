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
use pinfold::refusal::{Reason, Refusal};
use pinfold::settings::{Settings, count_refusal, news};
use tokio::sync::watch;

/// The time between two looks whether the books may have changed: reading what the kernel has
/// reported since, which is one or two system calls.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two surveys: an owner's death, and a CPU that goes offline, change no
/// file.
const LONGEST: Duration = Duration::from_secs(10);

/// Where the books are.
#[derive(Debug)]
pub struct Reader {
    site: Site,
    /// The pools that the configuration lets nobody ask for by CDI device.
    closed: BTreeSet<String>,
}

/// The books as they were when they were read last; `None` before that.
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

    /// Reads the books.
    ///
    /// # Errors
    /// They cannot be read at all. Without a pool directory there are no pools.
    pub fn read(&self) -> Result<ListDevices> {
        Ok(self.read_to_watch()?.0)
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
                is_whole: true,
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
        let mut seen = None;
        let mut last: Option<Instant> = None;
        let mut is_changing = false;
        loop {
            let has_changed = seen.as_mut().is_none_or(Seen::may_have_changed);
            let is_old = last.is_none_or(|last| last.elapsed() >= LONGEST);
            if has_changed || is_changing || is_old {
                last = Some(Instant::now());
                news::begin_round();
                (is_changing, seen) = look_once(&reader, &sender);
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

/// Reads the books and hands them on; returns whether they have to be read again soon, and by what
/// a change is seen.
fn look_once(
    reader: &Reader,
    sender: &watch::Sender<Option<Arc<ListDevices>>>,
) -> (bool, Option<Seen>) {
    let (books, seen) = match reader.read_to_watch() {
        Ok(read) => read,
        Err(error) => {
            // What was known stays: the hook decides in any case.
            log::warn!("{}", Refusal::of(&error));
            return (false, None);
        }
    };
    for remark in &books.remarks {
        log::warn!("{remark}");
    }
    // Their death frees a list, and nothing reports it.
    let has_strangers = books.pools.iter().any(|pool| {
        let mut lists = pool.lists.iter();
        lists.any(|list| books.stranger_on(list).is_some())
    });
    sender.send_if_modified(|known| {
        let is_news = known.as_deref() != Some(&books);
        if is_news {
            *known = Some(Arc::new(books));
        }
        is_news
    });
    (has_strangers, seen)
}
