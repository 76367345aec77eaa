//! The way from the pools that are there to those that are declared: which are removed, made, and
//! changed, in which order. Pure; each step is one that `pool add`, `remove` or `resize` makes.

mod fit;
mod model;

use anyhow::{Result, ensure};

use super::carve::Cut;
use super::plan::{Cores, PlannedPool, PoolSpec, Stock, plan};
use super::{Kind, Pool};
use crate::cpulist::CpuSet;
use crate::refusal::Refusal;
use model::Model;

/// A pool as it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declared {
    /// Cut from the machine's cores.
    Cut(PoolSpec),
    /// Of these lists.
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

/// What becomes of pools that nobody declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undeclared {
    /// They stay as they are.
    Stay,
    /// They are removed, unless somebody owns anything in them.
    Go,
}

/// A pool that is there, and who keeps each of its lists from being taken away, in the pool's
/// order.
#[derive(Debug, Clone)]
pub struct HeldPool {
    /// The pool.
    pub pool: Pool,
    /// The owners.
    pub owners: Vec<Option<String>>,
}

/// What there is before.
#[derive(Debug, Clone)]
pub struct Present<'a> {
    /// The machine's cores, whoever has them.
    pub stock: &'a Stock,
    /// The pools.
    pub pools: Vec<HeldPool>,
    /// CPUs that are in no pool, and that somebody owns.
    pub owned: CpuSet,
}

impl Present<'_> {
    /// The same if nobody owned anything in the pools, and these were all still to be made.
    fn with_all_to_make(&self, declared: &[Declared]) -> Self {
        let mut free = self.clone();
        let is_declared =
            |owned: &HeldPool| declared.iter().any(|one| one.name() == owned.pool.name);
        free.pools.retain(|owned| !is_declared(owned));
        for owned in &mut free.pools {
            owned.owners.fill(None);
        }
        free
    }
}

/// One change of one pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The pool is new.
    Add(PlannedPool),
    /// It goes.
    Remove(String),
    /// It gets, or loses, cores.
    Resize {
        /// Its name.
        name: String,
        /// How many lists an exclusive pool is to have, or cores a shared one.
        cores: Cores,
        /// From where more come.
        cut: Cut,
    },
    /// It has these lists from now on.
    Relist(PlannedPool),
}

/// What stays otherwise than it is declared, for somebody's sake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// The pool.
    pub pool: String,
    /// Why, and what to do.
    pub why: Refusal,
}

/// The way from what is there to what is declared.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Course {
    /// The changes, in their order.
    pub steps: Vec<Step>,
    /// What cannot be so yet.
    pub kept: Vec<Deviation>,
    /// The pools then.
    pub after: Vec<PlannedPool>,
}

/// Finds it. Lists with owners stay as they are. What is to get the rest gives way to what is
/// counted. A pool that owners keep from being as declared stays as it was, or is not made.
///
/// # Errors
/// What could not be even if nobody owned anything, as more than the machine has; nothing is to be
/// changed then.
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
    // Where others have made room, what stayed as it was may follow.
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
    // What gave way for nothing has all of it back.
    if course.after == before {
        course.steps.clear();
    }
    Ok(course)
}

/// Lists that are declared have no CPU in common.
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

/// The pools after each was cleared away, made, and resized once.
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
    // As a whole it says how many there are and for whom.
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

/// With all that is declared; pools of the rest that are there give up, one after the other and as
/// little as will do, what others are to have.
///
/// # Errors
/// What is still missing when they have given up all that they can, and the pools then.
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

/// With what owners leave room for.
///
/// # Errors
/// The first pool that was there before and cannot be as declared: it has to stay as it was.
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
        // That it has owners itself says more than what came of it.
        let mut earlier = model.kept.into_iter().filter(|kept| kept.pool == pool);
        return Err(earlier.next().unwrap_or_else(|| Deviation {
            pool: pool.to_owned(),
            why: Refusal::of(&error),
        }));
    }
    Ok(model)
}

/// Lists that are named first; then the exclusive pools, which have fewer cores to come from; what
/// gets the rest last.
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
