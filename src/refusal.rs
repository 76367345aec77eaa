//! A refusal: what is not done and why, and what to do about it. Neither can be left out.
//!
//! A command to run is written in backquotes: `` `pinfold reconcile` ``.

use std::fmt;
use std::io::{self, ErrorKind};

use anyhow::{Error, Result};
use nix::libc;
use nix::unistd::geteuid;

/// The remedy if no better one is known.
const LOOK: &str = "mend what it names, and try again; `pinfold check` looks at everything else";

/// A request or command that is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What is not done, and why.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Is a value on the command line wrong, on any machine?
    pub is_usage: bool,
    /// The kind of refusal, for counting.
    pub reason: Reason,
}

/// The kind of a refusal.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Too much of the pool is in use.
    Exhausted,
    /// Nothing in the pool fits the request or may be given here, whoever owns what.
    Unfit,
    /// The request is malformed.
    Request,
    /// There is no pool of this name.
    Pool,
    /// The pool's rules do not allow it.
    Rules,
    /// Somebody else chose the container's CPUs.
    Chosen,
    /// Somebody else held the lock too long.
    Lock,
    /// Anything else: something failed.
    #[default]
    Other,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 8] = [
        Reason::Exhausted,
        Reason::Unfit,
        Reason::Request,
        Reason::Pool,
        Reason::Rules,
        Reason::Chosen,
        Reason::Lock,
        Reason::Other,
    ];

    /// The reason's word.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Exhausted => "exhausted",
            Reason::Unfit => "unfit",
            Reason::Request => "request",
            Reason::Pool => "pool",
            Reason::Rules => "rules",
            Reason::Chosen => "chosen",
            Reason::Lock => "lock",
            Reason::Other => "other",
        }
    }
}

impl Refusal {
    /// Makes a refusal.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Refusal {
        Refusal {
            what: what.into(),
            remedy: remedy.into(),
            is_usage: false,
            reason: Reason::Other,
        }
    }

    /// Sets the reason.
    pub fn because(self, reason: Reason) -> Refusal {
        Refusal { reason, ..self }
    }

    /// Makes a refusal of a command line that is wrong on any machine.
    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Refusal {
        Refusal {
            is_usage: true,
            ..Refusal::new(what, remedy)
        }
    }

    /// Turns any error into a refusal. Without a remedy of its own, it gets the remedy for the
    /// kernel's error.
    pub fn of(error: &Error) -> Refusal {
        let text = format!("{error:#}");
        let own = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<Refusal>());
        let Some(own) = own else {
            return Refusal::new(text, of_kernel(error));
        };
        let what = text.strip_suffix(&format!(": {}", own.remedy));
        Refusal {
            what: what.unwrap_or(&own.what).to_owned(),
            ..own.clone()
        }
    }
}

impl Refusal {
    /// Joins several refusals into one, with the remedy of each.
    pub fn all(refusals: &[Refusal]) -> Refusal {
        let joined = |texts: Vec<&str>| {
            let mut texts = texts;
            texts.dedup();
            texts.join("; ")
        };
        let known = refusals.iter().filter(|refusal| !refusal.is_vague());
        let remedy = joined(known.map(|refusal| refusal.remedy.as_str()).collect());
        Refusal::new(
            joined(
                refusals
                    .iter()
                    .map(|refusal| refusal.what.as_str())
                    .collect(),
            ),
            match remedy.is_empty() {
                true => LOOK.to_owned(),
                false => remedy,
            },
        )
    }

    /// Is the remedy only to look at what the message names?
    pub fn is_vague(&self) -> bool {
        self.remedy == LOOK
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        // The general remedy would add nothing to a sentence.
        match self.is_vague() {
            true => Ok(()),
            false => write!(f, ": {}", self.remedy),
        }
    }
}

impl std::error::Error for Refusal {}

/// Adds a remedy to an error that another function returned.
pub trait OrRefuse<T> {
    /// Turns an error into a refusal: what was to be done, what went wrong, and what to do. The
    /// error's own remedy wins over the refusal's, and so does the remedy for the kernel's error,
    /// unless a file was not found.
    fn or_refuse(self, refusal: impl FnOnce() -> Refusal) -> Result<T>;
}

impl<T, E: Into<Error>> OrRefuse<T> for Result<T, E> {
    fn or_refuse(self, refusal: impl FnOnce() -> Refusal) -> Result<T> {
        self.map_err(|error| {
            let error = error.into();
            let mut refusal = refusal();
            let has_own = error.chain().any(|cause| cause.is::<Refusal>());
            let is_missing = error.chain().any(|cause| {
                let cause = cause.downcast_ref::<io::Error>();
                cause.is_some_and(|cause| cause.kind() == ErrorKind::NotFound)
            });
            let inner = Refusal::of(&error);
            if has_own || (!is_missing && !inner.is_vague()) {
                refusal.remedy = inner.remedy;
            }
            if refusal.reason == Reason::Other {
                refusal.reason = inner.reason;
            }
            refusal.what = format!("{}: {}", refusal.what, inner.what);
            refusal.into()
        })
    }
}

/// The remedy for an error of the kernel (errno(3)).
fn of_kernel(error: &Error) -> &'static str {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    // Errors that a library wraps keep the kind and hide the number.
    let said = causes
        .next()
        .map(|cause| (cause.kind(), cause.raw_os_error()));
    match said {
        Some((ErrorKind::PermissionDenied, _)) if !geteuid().is_root() => "run this as root",
        Some((ErrorKind::PermissionDenied, _)) => {
            "let root do that: see whether a mount, an attribute (lsattr) or a security module \
             forbids it"
        }
        Some((ErrorKind::ReadOnlyFilesystem, _)) => {
            "mount that file system read-write, or name a directory elsewhere"
        }
        Some((ErrorKind::StorageFull | ErrorKind::QuotaExceeded, _)) => {
            "make room on that file system, for bytes (df) and for files (df -i)"
        }
        Some((ErrorKind::NotFound | ErrorKind::NotADirectory, _)) => {
            "see that it is there, and is named right"
        }
        Some((_, Some(libc::ELOOP))) => {
            "put the real thing there: it is not followed through links"
        }
        Some((_, Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN))) => {
            "try again once the machine has more to give"
        }
        Some((_, Some(libc::EIO | libc::ESTALE | libc::EUCLEAN))) => {
            "see the kernel's log (dmesg): the file system or its disk fails"
        }
        _ => LOOK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow, bail};

    #[test]
    fn what_and_remedy_are_told_apart_whatever_was_added() {
        let fails = || -> Result<()> { bail!(Refusal::new("no pool x", "`pinfold init`")) };
        let error = fails().context("explain a request").unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "explain a request: no pool x: `pinfold init`"
        );
        let refusal = Refusal::of(&error);
        assert_eq!(refusal.what, "explain a request: no pool x");
        assert_eq!(refusal.remedy, "`pinfold init`");
        assert!(!refusal.is_usage && Refusal::usage("", "").is_usage);
    }

    #[test]
    fn the_innermost_remedy_counts() {
        let half_made = || Refusal::new("it is half-made", "`pinfold init`");
        for (error, text) in [
            (
                anyhow!("tasks is missing"),
                "it is half-made: tasks is missing: `pinfold init`",
            ),
            (
                Refusal::new("tasks is anybody's", "chmod it").into(),
                "it is half-made: tasks is anybody's: chmod it",
            ),
            (
                io::Error::from_raw_os_error(libc::ENOENT).into(),
                "it is half-made: No such file or directory (os error 2): `pinfold init`",
            ),
            (
                io::Error::from_raw_os_error(libc::EROFS).into(),
                "it is half-made: Read-only file system (os error 30): \
                 mount that file system read-write, or name a directory elsewhere",
            ),
        ] {
            let refused: Result<()> = Err::<(), Error>(error).or_refuse(half_made);
            assert_eq!(format!("{:#}", refused.unwrap_err()), text);
        }
    }

    #[test]
    fn what_the_kernel_says_has_a_remedy() {
        for (errno, part) in [
            (libc::EROFS, "read-write"),
            (libc::ENOSPC, "df -i"),
            (libc::EIO, "dmesg"),
            (libc::EINVAL, "pinfold check"),
        ] {
            let error = Error::new(io::Error::from_raw_os_error(errno)).context("replace x");
            let refusal = Refusal::of(&error);
            assert!(refusal.remedy.contains(part), "{errno}: {refusal}");
            assert!(refusal.what.starts_with("replace x: "), "{refusal}");
        }
    }
}
