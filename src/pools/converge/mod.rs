//! Pure: the steps from the pools that are there to those that are declared: which pools are
//! removed, made and changed, and in which order. Each step is what `pool add`, `remove` or
//! `resize` does.

mod fit;
mod model;

use anyhow::{Result, ensure};

use super::carve::Cut;
use super::plan::{Cores, PlannedPool, PoolSpec, Stock, plan};
use super::{Kind, Pool};
use crate::cpulist::CpuSet;
use crate::refusal::Refusal;
use model::Model;

/// A pool as it is declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// Made of cores that are chosen.
    Cut(PoolSpec),
    /// Made of these lists.
    Lists(PlannedPool),
}

impl Declared {
    /// The pool's name.
    pub fn name(&self) -> &str {
        match self {
            Declared::Cut(spec) => &spec.name,
            Declared::Lists(pool) => &pool.name,
        }
    }

    /// Exclusive or shared.
    pub fn kind(&self) -> Kind {
        match self {
            Declared::Cut(spec) => spec.kind,
            Declared::Lists(pool) => pool.kind,
        }
    }
}

/// What becomes of pools that are not declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeclared {
    /// They stay.
    Stay,
    /// They are removed, unless they have owners.
    Go,
}

/// A pool that is there, with its owners.
#[derive(Debug, Clone)]
pub struct HeldPool {
    /// The pool.
    pub pool: Pool,
    /// For each list of the pool, in the same order: somebody who keeps it from being removed.
    pub owners: Vec<Option<String>>,
}

/// What is there before the change.
#[derive(Debug, Clone)]
pub struct Present<'a> {
    /// The machine's cores, whoever has them.
    pub stock: &'a Stock,
    /// The pools.
    pub pools: Vec<HeldPool>,
    /// CPUs that are in no pool, but have an owner.
    pub owned: CpuSet,
}

impl Present<'_> {
    /// The same with the declared pools still to be made, and without owners in all others.
    fn with_all_to_make(&self, declared: &[Declared]) -> Self {
        let mut free = self.clone();
        let is_declared = |held: &HeldPool| declared.iter().any(|one| one.name() == held.pool.name);
        free.pools.retain(|held| !is_declared(held));
        for held in &mut free.pools {
            held.owners.fill(None);
        }
        free
    }
}

/// A change of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes the pool.
    Add(PlannedPool),
    /// Removes the pool of this name.
    Remove(String),
    /// Gives the pool more or fewer cores.
    Resize {
        /// The pool's name.
        name: String,
        /// The number of lists of an exclusive pool, or of cores of a shared one.
        cores: Cores,
        /// Where further cores come from.
        cut: Cut,
    },
    /// Gives the pool these lists instead.
    Relist(PlannedPool),
}

/// A pool that does not become what is declared, because of somebody's CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// The pool's name.
    pub pool: String,
    /// The reason, and what to do about it.
    pub why: Refusal,
}

/// The way from what is there to what is declared.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Course {
    /// The changes, in their order.
    pub steps: Vec<Step>,
    /// The pools that cannot be as declared yet.
    pub kept: Vec<Deviation>,
    /// The pools after the changes.
    pub after: Vec<PlannedPool>,
}

/// Finds the changes. Lists with owners stay as they are. A pool that gets the rest gives cores to
/// pools with a number. A pool that owners keep from being as declared stays as it was, or is not
/// made.
///
/// # Errors
/// The declaration is impossible even without owners: it needs more cores than the machine has, two
/// pools get the rest, or lists overlap. Nothing must be changed then.
pub fn course(
    present: Present<'_>,
    declared: &[Declared],
    undeclared: Undeclared,
) -> Result<Course> {
    let specs: Vec<PoolSpec> = declared
        .iter()
        .filter_map(|one| match one {
            Declared::Cut(spec) => Some(spec.clone()),
            Declared::Lists(_) => None,
        })
        .collect();
    present.stock.ensure_one_rest(&specs)?;
    ensure_apart(declared)?;
    let before = Model::of(present.clone()).planned();
    let mut model = once(present, declared, undeclared, &specs)?;
    // A pool that stayed as it was may be possible now that others have made room.
    for _ in declared {
        if model.kept.is_empty() {
            break;
        }
        match once(model.present(), declared, undeclared, &specs) {
            Ok(next) if next.planned() != model.planned() => model = model.followed_by(next),
            _ => break,
        }
    }
    let mut course = model.into_course();
    // If pools only gave cores up and got them back, nothing is done.
    if course.after == before {
        course.steps.clear();
    }
    Ok(course)
}

/// Checks that no CPU is in two declared lists.
fn ensure_apart(declared: &[Declared]) -> Result<()> {
    let mut seen: Vec<(&str, &CpuSet)> = Vec::new();
    for one in declared {
        let Declared::Lists(pool) = one else {
            continue;
        };
        for list in &pool.lists {
            let other = seen.iter().find(|(_, cpus)| !cpus.is_disjoint(list));
            if let Some((name, cpus)) = other {
                let common = cpus.intersection(list);
                return Err(Refusal::new(
                    format!("CPU {common} is in lists of pools {name} and {}", pool.name),
                    "give each CPU to one list in the configuration",
                )
                .into());
            }
        }
        seen.extend(pool.lists.iter().map(|list| (pool.name.as_str(), list)));
    }
    Ok(())
}

/// One round: removes what is in the way, makes pools, and resizes each once.
fn once<'a>(
    present: Present<'a>,
    declared: &[Declared],
    undeclared: Undeclared,
    specs: &[PoolSpec],
) -> Result<Model<'a>> {
    let before = Model::of(present.clone()).planned();
    let cleared = |present: &Present<'a>, stay: &[Deviation]| {
        let mut model = Model::of(present.clone());
        for kept in stay {
            model.keep(&kept.pool, kept.why.clone());
        }
        model.clear(declared, undeclared);
        model
    };
    // If the whole plan is refused too, its message is better: it says how many cores there are,
    // and for which pools.
    let refusal = |model: &Model<'_>, error| {
        let others = model.cpus_of_others(specs);
        let whole = plan(&model.stock.without(&others), specs);
        whole.err().unwrap_or(error)
    };
    let mut stay: Vec<Deviation> = Vec::new();
    loop {
        let model = cleared(&present, &stay);
        let (mut partly, refused) = match grown(&model, declared) {
            Ok(grown) => return Ok(grown),
            Err(short) => *short,
        };
        let free = cleared(&present.with_all_to_make(declared), &[]);
        grown(&free, declared).map_err(|short| refusal(&free, short.1))?;
        partly.note_owned_rest(declared);
        ensure!(!partly.kept.is_empty(), refusal(&model, refused));
        match with_what_can_be(partly, declared, &before) {
            Ok(grown) => return Ok(grown),
            Err(kept) => stay.push(kept),
        }
    }
}

/// Makes and grows all declared pools. Existing pools that get the rest give cores up for that, one
/// pool after the other, and as few cores as possible.
///
/// # Errors
/// Something is missing even after they have given up all they can. The pools at that point are
/// returned too.
fn grown<'a>(
    model: &Model<'a>,
    declared: &[Declared],
) -> Result<Model<'a>, Box<(Model<'a>, anyhow::Error)>> {
    let mut refused = match with_all(model.clone(), declared) {
        Ok(grown) => return Ok(grown),
        Err(error) => error,
    };
    let mut smaller = model.clone();
    for one in declared {
        let Declared::Cut(spec) = one else { continue };
        if spec.cores != Cores::Rest || model.is_fixed(&spec.name) {
            continue;
        }
        let before = smaller.clone();
        let most = before.size_of(&spec.name);
        for size in (1..most).rev() {
            let mut tried = before.clone();
            if tried.resize(spec, Cores::Count(size)).is_err() {
                break;
            }
            smaller = tried.clone();
            match with_all(tried, declared) {
                Ok(grown) => return Ok(grown),
                Err(error) => refused = error,
            }
        }
    }
    Err(Box::new((smaller, refused)))
}

fn with_all<'a>(mut model: Model<'a>, declared: &[Declared]) -> Result<Model<'a>> {
    for one in in_turn(declared) {
        model.grow(one)?;
    }
    Ok(model)
}

/// Makes and grows the pools for which owners leave room.
///
/// # Errors
/// The first pool that was there before and cannot be as declared: it must stay as it was.
fn with_what_can_be<'a>(
    mut model: Model<'a>,
    declared: &[Declared],
    before: &[PlannedPool],
) -> Result<Model<'a>, Deviation> {
    for one in in_turn(declared) {
        let Err(error) = model.grow(one) else {
            continue;
        };
        let pool = one.name();
        if !before.iter().any(|former| former.name == pool) {
            model.keep(pool, Refusal::of(&error));
            continue;
        }
        // If the pool has owners itself, that is the better reason.
        let mut earlier = model.kept.into_iter().filter(|kept| kept.pool == pool);
        return Err(earlier.next().unwrap_or_else(|| Deviation {
            pool: pool.to_owned(),
            why: Refusal::of(&error),
        }));
    }
    Ok(model)
}

/// The order in which pools are made: pools of lists first; then exclusive ones, which have fewer
/// cores to choose from, before shared ones; those that get the rest last.
fn in_turn(declared: &[Declared]) -> Vec<&Declared> {
    let mut turn: Vec<&Declared> = declared.iter().collect();
    turn.sort_by_key(|one| match one {
        Declared::Lists(_) => (0, false),
        Declared::Cut(spec) if spec.cores == Cores::Rest => (2, spec.kind == Kind::Shared),
        Declared::Cut(spec) => (1, spec.kind == Kind::Shared),
    });
    turn
}

#[cfg(test)]
mod tests;
