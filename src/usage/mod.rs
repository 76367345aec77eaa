//! What owners that ended have used: a record for each of them, in a file of JSON lines that
//! outlives the boot.
//!
//! A [`Sample`] is what was last read of an owner before its end, and the [`Log`] has the records.

mod log_file;
mod record;
mod sample;
mod sum;

pub use log_file::{Log, LogFiles};
pub use record::{Exactness, Record, seconds_of};
pub use sample::{Sample, Samples};
pub use sum::{By, Sum, sum};
