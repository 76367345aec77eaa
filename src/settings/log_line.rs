//! The form of the log's lines, and where they go.

use std::io::{self, Write};

use env_logger::{Builder, Target};
use log::LevelFilter;

use super::news;
use crate::cli::Options;
use crate::host::Host;
use crate::system_log::{self, Severity};
use crate::text::one_line;

/// Starts the log; `program` begins each line.
pub(super) fn start(
    program: &'static str,
    options: &Options,
    filter: Option<String>,
    target: Target,
) {
    let mut builder = Builder::new();
    match (options.verbose, filter) {
        (0, Some(filter)) => builder.parse_filters(&filter),
        (0, None) => builder.filter_level(LevelFilter::Warn),
        (1, _) => builder.filter_level(LevelFilter::Info),
        (_, _) => builder.filter_level(LevelFilter::Debug),
    };
    builder.format(move |out, record| {
        let style = out.default_level_style(record.level());
        let level = record.level().as_str().to_ascii_lowercase();
        let message = one_line(&record.args().to_string());
        if !news::is_news(&message) || news::is_held(&format!("{level}: {message}")) {
            return Ok(());
        }
        writeln!(out, "{program}: {style}{level}{style:#}: {message}")
    });
    builder.target(target);
    // A second start would be a second command in one process: the first log stays.
    let _ = builder.try_init();
}

/// The target of a start's log: the system log, and stderr if that is the hook's own.
pub(super) fn to_system(host: Host, has_stderr: bool) -> Target {
    Target::Pipe(Box::new(SystemLog { host, has_stderr }))
}

/// Writes to the system log and, with `has_stderr`, to stderr: an engine may or may not show it.
struct SystemLog {
    host: Host,
    has_stderr: bool,
}

impl Write for SystemLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.has_stderr {
            // A closed stderr fails nothing.
            let _ = io::stderr().write_all(line);
        }
        let text = String::from_utf8_lossy(line);
        let message = text.trim_end().trim_start_matches("pinfold: ");
        let severity = match message.split(':').next() {
            Some("error") => Severity::Error,
            Some("warn") => Severity::Warning,
            _ => Severity::Info,
        };
        system_log::send(&self.host, severity, message);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
