//! Reads one sysfs file: its value, or what is odd about it. Some kernels leave files empty, end
//! lists in NUL, or print `(null)` for a mask that they have not made; older kernels have masks and
//! no lists.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::cpulist::{self, CpuSet};
use crate::files;
use crate::host::Host;
use crate::text::Shown;

/// Most characters of an odd file that are shown.
const MOST_SHOWN: usize = 40;

/// A sysfs file that is missing, or that differs from the kernel's documentation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Oddity {
    /// The file, or the directory that is missing.
    pub path: PathBuf,
    /// `is empty`, `is missing`, `holds "x", which is no CPU list`.
    pub what: String,
    /// Did reading the file fail? Its content is then unknown, and the next read may succeed.
    pub is_unread: bool,
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path.display(), self.what)
    }
}

/// The value of a sysfs file, or why there is none.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileValue<T> {
    /// The file is not there.
    Missing,
    /// The file cannot be read, or holds something else; this is already noted.
    Odd,
    /// The file is empty, or holds `(null)`.
    Nothing,
    /// The value.
    Value(T),
}

impl<T> FileValue<T> {
    pub(super) fn value(self) -> Option<T> {
        match self {
            FileValue::Value(value) => Some(value),
            FileValue::Missing | FileValue::Odd | FileValue::Nothing => None,
        }
    }
}

/// The format of a set.
#[derive(Debug, Clone, Copy)]
pub(super) enum Format {
    /// `0-3,8`.
    List,
    /// `00000000,0000010f`.
    Mask,
}

/// Reads sysfs files, and notes those that are odd.
pub(super) struct Reader<'a> {
    pub(super) host: &'a Host,
    odd: RefCell<BTreeSet<Oddity>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(host: &'a Host) -> Reader<'a> {
        Reader {
            host,
            odd: RefCell::default(),
        }
    }

    /// The noted oddities, by path.
    pub(super) fn into_odd(self) -> Vec<Oddity> {
        self.odd.into_inner().into_iter().collect()
    }

    pub(super) fn note(&self, path: &Path, what: impl Into<String>) {
        self.add(path, what.into(), false);
    }

    fn add(&self, path: &Path, what: String, is_unread: bool) {
        self.odd.borrow_mut().insert(Oddity {
            path: path.to_owned(),
            what,
            is_unread,
        });
    }

    /// Adds the oddities that another reader has noted.
    pub(super) fn add_all(&self, odd: Vec<Oddity>) {
        self.odd.borrow_mut().extend(odd);
    }

    /// Is an oddity noted for this path, or below it?
    pub(super) fn has_noted_below(&self, path: &Path) -> bool {
        let from = Oddity {
            path: path.to_owned(),
            what: String::new(),
            is_unread: false,
        };
        let odd = self.odd.borrow();
        let next = odd.range(from..).next();
        next.is_some_and(|oddity| oddity.path.starts_with(path))
    }

    /// The file's text up to a NUL, without white space around it.
    pub(super) fn text(&self, path: &Path) -> FileValue<String> {
        match files::read_record_if_there(path) {
            Ok(None) => FileValue::Missing,
            Ok(Some(text)) => match cpulist::of_kernel(&text) {
                "" => FileValue::Nothing,
                text => FileValue::Value(text.to_owned()),
            },
            Err(error) => {
                self.add(
                    path,
                    format!("cannot be read: {}", error.root_cause()),
                    true,
                );
                FileValue::Odd
            }
        }
    }

    pub(super) fn set(&self, path: &Path, format: Format) -> FileValue<CpuSet> {
        let text = match self.text(path) {
            FileValue::Value(text) => text,
            FileValue::Missing => return FileValue::Missing,
            FileValue::Odd => return FileValue::Odd,
            FileValue::Nothing => return FileValue::Nothing,
        };
        let set = match format {
            Format::List => text.parse().ok(),
            Format::Mask => CpuSet::from_hex_mask(&text),
        };
        match set {
            Some(set) if set.is_empty() => FileValue::Nothing,
            Some(set) => FileValue::Value(set),
            None => {
                let what = match format {
                    Format::List => "CPU list",
                    Format::Mask => "CPU mask",
                };
                self.is_no(path, &text, what);
                FileValue::Odd
            }
        }
    }

    /// The number that a file holds; `None` where the file is missing, empty or odd. All but a
    /// missing file is noted.
    pub(super) fn number<T: std::str::FromStr>(&self, path: &Path) -> Option<T> {
        match self.text(path) {
            FileValue::Missing | FileValue::Odd => None,
            FileValue::Nothing => {
                self.note(path, "is empty");
                None
            }
            FileValue::Value(text) => {
                let number = text.parse().ok();
                if number.is_none() {
                    self.is_no(path, &text, "number");
                }
                number
            }
        }
    }

    pub(super) fn is_no(&self, path: &Path, text: &str, what: &str) {
        let short: String = text.chars().take(MOST_SHOWN).collect();
        self.note(path, format!("holds {}, which is no {what}", Shown(&short)));
    }

    /// The set of the first of `files` that holds one, with the CPU `must` in it where that is
    /// given. Odd and empty files are noted.
    pub(super) fn first(&self, files: &[(PathBuf, Format)], must: Option<u32>) -> Option<CpuSet> {
        for (path, format) in files {
            match self.set(path, *format) {
                FileValue::Missing | FileValue::Odd => {}
                FileValue::Nothing => self.note(path, "is empty"),
                FileValue::Value(set) => match must {
                    Some(cpu) if !set.contains(cpu) => {
                        self.note(path, "does not name its own CPU");
                    }
                    _ => return Some(set),
                },
            }
        }
        None
    }
}
