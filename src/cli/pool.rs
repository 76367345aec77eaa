//! `pinfold pool`, and how a pool is written on the command line.

use std::str::FromStr;

use clap::{Args, Subcommand};

use crate::cpulist::CpuSet;
use crate::isolation::{self, ALLOW, Options};
use crate::pools::Kind;
use crate::pools::carve::Cut;
use crate::pools::plan::{Cores, ListUnit, PoolSpec, Reserve};
use crate::request::is_pool_name;

/// `pinfold pool`
#[derive(Debug, Args)]
pub struct PoolArgs {
    /// What to do with the pools.
    #[command(subcommand)]
    pub action: Action,
}

/// What `pinfold pool` does.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Show the pools, how much of each is free, and the CPUs that are in none
    #[command(after_help = "Examples:\n  \
        pinfold pool show\n  \
        pinfold pool show dataplane --json\n\n\
        Exit status: 1 where a pool that was to be shown could not be read whole.")]
    Show(ShowArgs),
    /// Make a pool out of CPUs that are in none
    #[command(after_help = "Examples:\n  \
        pinfold pool add fast=2:exclusive\n  \
        pinfold pool add fast=4:exclusive,numa=spread --dry-run\n  \
        pinfold pool add fast:exclusive --list 4,12 --list 5,13")]
    Add(AddArgs),
    /// Remove a pool that has no owners
    #[command(after_help = "Examples:\n  \
        pinfold pool remove fast\n  \
        pinfold pool remove fast --if-exists")]
    Remove(RemoveArgs),
    /// Give a pool more cores, out of CPUs that are in none, or fewer
    #[command(after_help = "Examples:\n  \
        pinfold pool resize fast 6\n  \
        pinfold pool resize common rest --dry-run\n\n\
        An exclusive pool gets, or loses, lists without owners. A shared pool's one list grows \
        under its owners, who are given\n\
        the new CPUs at once; where it has several lists, it gets, or loses, lists without \
        owners too.")]
    Resize(ResizeArgs),
    /// Say how everybody else is kept off a pool's CPUs, and what is set of them for owners
    #[command(after_help = "Examples:\n  \
        pinfold pool set dataplane isolation=root\n  \
        pinfold pool set dataplane isolation=isolated isolation-needed=yes\n  \
        pinfold pool set dataplane irqs=away governor=performance resume-latency=n/a\n\n\
        Keys:\n  \
        isolation         none; root: nobody else runs on the CPUs of an owner, where the \
        kernel can do that;\n                    \
        isolated: nor are the owner's threads spread over them, for programs that place their \
        own\n  \
        isolation-needed  no: where the kernel cannot, the mask alone holds, and the start says \
        so; yes: it is refused\n  \
        irqs              keep; away: interrupts that can be moved go to other CPUs than an \
        owner's, while it has them\n  \
        quota             keep; lift: a container's own limit of CPU time (--cpus) does not \
        hold\n  \
        governor          keep, or the governor that an owner's CPUs have, as performance\n  \
        resume-latency    keep, or how long they may take to wake: n/a (no time), or \
        microseconds from 1 on\n  \
        allow             none, or which of the last four containers may say by an annotation, \
        as irqs,quota\n\n\
        It counts for whoever starts from then on. The same keys in the configuration file \
        count before it.")]
    Set(SetArgs),
}

/// `pinfold pool set`
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The pool's name
    #[arg(value_parser = name)]
    pub name: String,
    /// What to say of it
    #[arg(value_name = "KEY=VALUE", required = true, value_parser = option)]
    pub options: Vec<(String, String)>,
}

/// `pinfold pool show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Only this pool
    pub name: Option<String>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pinfold pool add`
#[derive(Debug, Args)]
pub struct AddArgs {
    /// NAME=N:exclusive, NAME=rest:shared and so on, as for `pinfold init --pool`; without =N where
    /// --list says it
    #[arg(value_name = "NAME=N|rest:exclusive|shared[,…]")]
    pub pool: String,
    /// A CPU list of the pool, as 4,12 or 0-2
    #[arg(long, value_name = "CPUS")]
    pub list: Vec<CpuSet>,
    /// The CPUs of the host's own work.
    #[command(flatten)]
    pub housekeeping: Housekeeping,
    /// Print what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `pinfold pool remove`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The pool's name
    #[arg(value_parser = name)]
    pub name: String,
    /// For scripts: a pool that is not there is success
    #[arg(long)]
    pub if_exists: bool,
    /// Print what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `pinfold pool resize`
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The pool's name
    #[arg(value_parser = name)]
    pub name: String,
    /// How many lists an exclusive pool is to have, or how many cores a shared one; rest: all that
    /// are in no pool as well
    #[arg(value_name = "N|rest", value_parser = Cores::from_str)]
    pub size: Cores,
    /// From where more cores come: pack, spread, or the number of a NUMA node
    #[arg(long, value_name = "WHERE")]
    pub numa: Option<String>,
    /// From which last-level caches more cores come: pack, spread or single
    #[arg(long, value_name = "WHERE")]
    pub cache: Option<String>,
    /// The CPUs of the host's own work.
    #[command(flatten)]
    pub housekeeping: Housekeeping,
    /// Print what would be done and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// The CPUs of the host's own work.
#[derive(Debug, Default, Args)]
pub struct Housekeeping {
    /// Give the cores of these CPUs to no exclusive pool; none: give them all [default: reserve in
    /// the configuration file, or 0]
    #[arg(long, value_name = "CPUS", value_parser = Reserve::from_str)]
    pub reserve: Option<Reserve>,
}

/// Parses `NAME=N:exclusive` or `NAME=rest:shared`, perhaps followed by `,key=value`.
///
/// # Errors
/// A sentence that says what it has to look like.
pub fn spec(text: &str) -> Result<PoolSpec, String> {
    let form = || "it must be like fast=2:exclusive, or others=rest:shared".to_owned();
    let (sized, rest) = text.split_once(':').ok_or_else(form)?;
    let (pool, size) = sized.split_once('=').ok_or_else(form)?;
    let listed = listed(&format!("{pool}:{rest}")).map_err(|error| match error {
        Form::Whole => form(),
        Form::Part(error) => error,
    })?;
    Ok(PoolSpec {
        cores: size.parse()?,
        ..listed
    })
}

/// What is wrong with the text of a pool.
#[derive(Debug)]
pub enum Form {
    /// It does not have the right form.
    Whole,
    /// One part of it is wrong, for this reason.
    Part(String),
}

/// Parses `NAME:exclusive` or `NAME:shared`, perhaps followed by `,key=value`: a pool whose size is
/// given elsewhere.
///
/// # Errors
/// What is wrong with it.
pub fn listed(text: &str) -> Result<PoolSpec, Form> {
    let (pool, rest) = text.split_once(':').ok_or(Form::Whole)?;
    let (kind, words) = match rest.split_once(',') {
        Some((kind, words)) => (kind, words_of(words)),
        None => (rest, Vec::new()),
    };
    let kind = Kind::by_word(kind);
    let kind = kind.ok_or(Form::Whole)?;
    let mut spec = PoolSpec {
        name: name(pool).map_err(Form::Part)?,
        cores: Cores::Rest,
        kind,
        cut: Cut::default(),
        unit: ListUnit::Core,
        options: Options::default(),
    };
    for word in words {
        let (key, value) = word.split_once('=').ok_or(Form::Whole)?;
        match (key, value) {
            ("cores", "whole") => spec.unit = ListUnit::Core,
            ("cores", "threads") if kind == Kind::Exclusive => spec.unit = ListUnit::Thread,
            ("cores", _) => {
                return Err(Form::Part(
                    "cores= is whole or, for an exclusive pool, threads".to_owned(),
                ));
            }
            (key, _) if isolation::is_key(key) && kind == Kind::Shared => {
                return Err(Form::Part(format!("{key}= is of an exclusive pool")));
            }
            (key, _) if isolation::is_key(key) => {
                spec.options.set(key, value).map_err(Form::Part)?;
            }
            _ => spec.cut.set(key, value).map_err(Form::Part)?,
        }
    }
    Ok(spec)
}

/// The words that commas separate. The value of `allow` can have commas itself: what follows it and
/// says nothing by itself is its own.
fn words_of(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let allow = format!("{ALLOW}=");
    for word in text.split(',') {
        match words.last_mut() {
            Some(last) if last.starts_with(&allow) && !word.contains('=') => {
                last.push(',');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
    }
    words
}

fn option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or("it must be like isolation=root")?;
    isolation::check(key, value)?;
    Ok((key.to_owned(), value.to_owned()))
}

fn name(text: &str) -> Result<String, String> {
    if is_pool_name(text) {
        return Ok(text.to_owned());
    }
    let form = "a pool's name has up to 63 letters, digits, - and _, begins with a letter or \
                digit, and is not none";
    Err(form.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pools::carve::{FromCaches, FromNodes};

    #[test]
    fn pools_are_written_in_one_word() {
        let pool = spec("dp=8:exclusive,numa=spread,cores=threads,cache=single").unwrap();
        assert_eq!(
            (pool.name.as_str(), pool.cores, pool.kind, pool.unit),
            ("dp", Cores::Count(8), Kind::Exclusive, ListUnit::Thread)
        );
        let (numa, cache) = (FromNodes::Spread, FromCaches::Single);
        assert_eq!(pool.cut, Cut { numa, cache });
        let pool = spec("all=rest:shared,numa=1").unwrap();
        assert_eq!(
            (pool.cores, pool.cut.numa),
            (Cores::Rest, FromNodes::Node(1))
        );
        let pool = spec("dp=1:exclusive,isolation=isolated,isolation-needed=yes").unwrap();
        let wanted = pool.options.wanted("dp").unwrap().unwrap();
        assert_eq!((wanted.kind.word(), wanted.is_needed), ("isolated", true));
        for allow in ["irqs", "irqs,quota", "irqs,quota,governor"] {
            let pool = spec(&format!("dp=1:exclusive,allow={allow},numa=1")).unwrap();
            assert_eq!(pool.options.allow.as_deref(), Some(allow));
            assert_eq!(pool.cut.numa, FromNodes::Node(1));
        }
        for (text, said) in [
            ("dp=1:exclusive,", "fast=2:exclusive"),
            (
                "dp=1:exclusive,allow=irqs,bogus",
                "allow is none, or some of",
            ),
            (
                "dp=1:exclusive,x=1",
                "isolation=, isolation-needed=, allow=, irqs=",
            ),
            ("dp", "fast=2:exclusive"),
            ("dp:exclusive", "fast=2:exclusive"),
            ("dp=1:private", "fast=2:exclusive"),
            ("dp=0:shared", "1 to 9999"),
            ("dp=1:shared,cores=threads", "cores= is"),
            ("dp=1:exclusive,numa=best", "numa= is"),
            ("dp=1:exclusive,cache=1", "cache= is"),
            ("dp=1:exclusive,x=1", "there can be"),
            ("dp=1:exclusive,isolation=all", "isolation is none"),
            ("dp=1:exclusive,irqs=off", "irqs is keep or away"),
            ("dp=1:shared,irqs=away", "irqs= is of an exclusive pool"),
            ("dp=1:shared,isolation=root", "of an exclusive pool"),
            ("none=1:shared", "a pool's name"),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
