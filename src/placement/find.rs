//! Which owner somebody means: by its id, the beginning of its id, or a name.

use anyhow::{Result, bail};

use super::Site;
use crate::claims::{Claim, Entry, Ledger};
use crate::text::Shown;

/// So many owners are named in a refusal.
const MOST_NAMED: usize = 8;

/// The id of the owner that is called so: one whose id this is, else one of this name, else one whose id begins so, as
/// with the engines' own commands.
///
/// # Errors
/// Nobody, and more than one; both say who there is.
pub fn find(site: &Site, called: &str) -> Result<String> {
    let mut known = Vec::new();
    if let Some(ledger) = Ledger::open_if_there(&site.run_dir)? {
        for id in ledger.ids()? {
            let entries = ledger.of_id(&id)?;
            if !entries.is_empty() {
                known.push(Known { id, entries });
            }
        }
    }
    let matches: [&dyn Fn(&&Known) -> bool; 3] = [
        &|known| known.id == called,
        &|known| known.claims().any(|claim| claim.names.include(called)),
        &|known| begins(&known.id, called),
    ];
    let found = matches.iter().map(|matches| known.iter().filter(matches));
    let found = found.map(|found| found.collect::<Vec<_>>());
    match found.into_iter().find(|found| !found.is_empty()) {
        Some(found) if found.len() == 1 => Ok(found[0].id.clone()),
        Some(found) => bail!(
            "{} can be {} owners: say which by its id: {}",
            Shown(called),
            found.len(),
            list(&found)
        ),
        None if known.is_empty() => {
            bail!("no owner is called {}: nobody owns any CPUs", Shown(called))
        }
        None => bail!(
            "no owner is called {}: there are {}",
            Shown(called),
            list(&known.iter().collect::<Vec<_>>())
        ),
    }
}

/// An id that has claims.
struct Known {
    id: String,
    entries: Vec<Entry>,
}

impl Known {
    fn claims(&self) -> impl Iterator<Item = &Claim> {
        self.entries.iter().filter_map(Entry::claim)
    }

    /// What it is called, and what it owns.
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

/// Does an id begin so? Not where that cuts a number short: `isolate-12` is not `isolate-123`, nor `web-1` `web-10`.
/// The digits of a long id are no number.
fn begins(id: &str, beginning: &str) -> bool {
    let Some(rest) = id.strip_prefix(beginning).filter(|_| !beginning.is_empty()) else {
        return false;
    };
    let is_digit = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    let cuts_a_number = is_digit(beginning.as_bytes().last()) && is_digit(rest.as_bytes().first());
    crate::names::is_long_id(id) || !cuts_a_number
}

fn list(known: &[&Known]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_cuts_no_number_short() {
        let long = "0123456789abcdef".repeat(4);
        for (id, beginning, expected) in [
            (long.as_str(), "0", true),
            (&long, "0123456", true),
            (&long, "1", false),
            ("isolate-123", "isolate-12", false),
            ("isolate-123", "isolate-", true),
            ("web-10", "web-1", false),
            ("web-1-a", "web-1", true),
            ("web", "", false),
            ("web", "web", true),
        ] {
            assert_eq!(begins(id, beginning), expected, "{id} {beginning}");
        }
    }
}
