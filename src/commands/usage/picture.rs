//! `pinfold usage --svg`: usage over time as a picture.

use crate::picture::{Span, usage};
use crate::usage::{Record, seconds_of};

/// The picture of the owners that ended at or after `since`, up to `now`; both in seconds since the
/// epoch.
pub(super) fn picture(records: &[Record], since: Option<i64>, now: i64) -> String {
    let counts = |record: &&Record| since.is_none_or(|since| record.at() >= since);
    let spans: Vec<Span<'_>> = records.iter().filter(counts).map(span).collect();
    let first = spans.iter().map(|span| span.start).min();
    let last = spans.iter().map(|span| span.end).max();
    let from = since.or(first).unwrap_or(now).min(now);
    usage(&spans, &(from..=last.unwrap_or(now).max(now)))
}

/// An owner's time span. If nobody knows its end, it ends when the owner was last seen.
fn span(record: &Record) -> Span<'_> {
    let end = record.at();
    Span {
        pool: &record.pool,
        start: seconds_of(&record.start).unwrap_or(end).min(end),
        end,
        used: record.cpu_seconds.unwrap_or_default(),
        noise: record.noise_seconds.unwrap_or_default(),
    }
}
