//! Pure: pictures of what others found out, as SVG: one file without scripts, that a browser shows
//! in light or dark colours as its reader likes.
//!
//! Pools are told apart by letters, and by colours that people who see few colours can tell apart.
//! The letters of all texts have the same width, so that none leaves its box.

mod cores;
mod layout;
mod machine;
mod owners;
mod pools;
mod style;
mod svg;
mod time;
mod usage;

pub use machine::{DrawnOwner, Load, Scene, machine};
pub use usage::{Span, usage};
