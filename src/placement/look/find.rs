//! Finds the owner that somebody means by an id, the beginning of an id, or a name.

use anyhow::{Result, bail};

use crate::claims::{Claim, Entry, Ledger};
use crate::names::{self, Names};
use crate::placement::Site;
use crate::refusal::Refusal;
use crate::text::Shown;

/// How many owners a refusal lists.
const MOST_NAMED: usize = 8;

/// The id of the owner called `called`: the one with this id, else the one of this name, else the
/// one whose id begins so. Engines' own commands do the same.
///
/// # Errors
/// None, or more than one; either error lists the owners.
pub fn find(site: &Site, called: &str) -> Result<String> {
    let mut known = Vec::new();
    if let Some(ledger) = Ledger::open_if_there(&site.run_dir)? {
        for id in ledger.ids()? {
            let entries = ledger.of_id(&id)?;
            if !entries.is_empty() {
                known.push(KnownId { id, entries });
            }
        }
    }
    let has_names =
        |known: &KnownId, is: &dyn Fn(&Names) -> bool| known.claims().any(|claim| is(&claim.names));
    let found = names::meant(&known, called, |known| known.id.as_str(), has_names);
    match &found[..] {
        [one] => Ok(one.id.clone()),
        [_, ..] => bail!(Refusal::new(
            format!("{} can be {} owners", Shown(called), found.len()),
            format!("say which by its id: {}", list(&found))
        )),
        [] if recorded_pid(called).is_some() => bail!(Refusal::new(
            format!("{} is in tasks by another tool's hand", Shown(called)),
            "let that tool give it back; once the process is gone, `pinfold reconcile` does"
        )),
        [] => {
            let all = match known.is_empty() {
                true => "Pinfold has given CPUs to nobody".to_owned(),
                false => format!("there are {}", list(&known.iter().collect::<Vec<_>>())),
            };
            bail!(Refusal::new(
                format!("no owner is called {}: {all}", Shown(called)),
                "`pinfold status` shows all"
            ))
        }
    }
}

/// An id with claims.
struct KnownId {
    id: String,
    entries: Vec<Entry>,
}

impl KnownId {
    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.entries.iter().filter_map(Entry::claim)
    }

    /// The owner's name, and what it owns.
    fn shown(&self) -> String {
        let name = self.claims().next();
        let name = name.map_or_else(|| Shown(&self.id).to_string(), Claim::shown);
        let owned = self
            .claims()
            .map(|claim| format!("{} of {}", claim.cpus, claim.pool));
        let owned: Vec<String> = owned.collect();
        match owned.is_empty() {
            true => name,
            false => format!("{name} on {}", owned.join(" and ")),
        }
    }
}

/// The pid in a [`pid_id`].
fn recorded_pid(called: &str) -> Option<i32> {
    called.strip_prefix(PID)?.parse().ok()
}

/// What stands for the id of an owner without one: a process that another tool recorded.
pub fn pid_id(pid: i32) -> String {
    format!("{PID}{pid}")
}

const PID: &str = "pid:";

fn list(known: &[&KnownId]) -> String {
    let mut named: Vec<String> = known
        .iter()
        .take(MOST_NAMED)
        .map(|known| known.shown())
        .collect();
    if known.len() > MOST_NAMED {
        named.push(format!(
            "{} more (pinfold status)",
            known.len() - MOST_NAMED
        ));
    }
    named.join(", ")
}
