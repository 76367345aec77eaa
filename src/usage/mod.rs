//! What owners that ended have used: one record each, in a file of lines of JSON that outlives the
//! boot.
//!
//! [`Sample`] is what is known of an owner before it ends, and [`Log`] the file that has the
//! records.

mod log_file;
mod record;
mod sample;
mod sum;

pub use log_file::{Log, LogFiles};
pub use record::{Exactness, Record, seconds_of};
pub use sample::{Sample, Samples};
pub use sum::{By, Sum, sum};
