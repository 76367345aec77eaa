//! The metrics of the site and of this program, served by HTTP or written to a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use pinfold::commands::metrics::{Listener, facts, replace_textfile};
use pinfold::metrics::text_with;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval};

use crate::books::Reader;
use crate::said::Said;
use crate::status::Status;

/// The time between two writings of the file: Prometheus' usual scrape interval.
const PERIOD: Duration = Duration::from_secs(15);

/// What is told.
#[derive(Debug, Clone)]
pub struct Metrics {
    reader: Arc<Reader>,
    status: Arc<Status>,
}

impl Metrics {
    /// The metrics of this site and these parts.
    pub fn new(reader: Arc<Reader>, status: Arc<Status>) -> Metrics {
        Metrics { reader, status }
    }

    /// The OpenMetrics text, as all is now.
    ///
    /// # Errors
    /// The books cannot be read.
    fn text(&self) -> Result<String> {
        let facts = facts(self.reader.site())?;
        text_with(&facts, |registry| self.status.register(registry))
    }

    /// Answers scrapes on threads of their own, as long as the process lives.
    pub fn serve(self, listener: Listener) -> Result<()> {
        let serve = move || listener.serve(|| self.text());
        std::thread::Builder::new()
            .name("scrapes".to_owned())
            .spawn(serve)?;
        Ok(())
    }

    /// Writes the file again and again.
    pub async fn keep_written(self, path: PathBuf) {
        let mut said = Said::default();
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (metrics, to) = (self.clone(), path.clone());
            let written = spawn_blocking(move || metrics.write(&to)).await;
            match written.map_err(anyhow::Error::new).and_then(|done| done) {
                Ok(()) => said.warn("textfile", None),
                Err(error) => said.warn_of("textfile", &error),
            }
        }
    }

    /// Writes the file once.
    ///
    /// # Errors
    /// It is not a regular file, or its directory takes no file; the books cannot be read.
    pub fn write(&self, path: &Path) -> Result<()> {
        replace_textfile(path, &self.text()?)
    }
}
