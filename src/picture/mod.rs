//! Draws pictures of what others found out. Each is one SVG file without scripts, which a browser
//! shows in light or dark colours as its reader likes. Pure.
//!
//! Pools differ by letters, and by colours that people of every kind of colour vision can tell
//! apart. The font has a fixed width, so that no text leaves its box.

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
