//! The way from the pools that are there to those that are declared: which are removed, made, and
//! changed, in which order. Pure; each step is one of those that `pool add`, `remove` and `resize` make.

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

/// A pool that is there, and who keeps each of its lists from being taken away, in the pool's order.
#[derive(Debug, Clone)]
pub struct Owned {
    /// The pool.
    pub pool: Pool,
    /// The owners.
    pub owners: Vec<Option<String>>,
}

/// What there is before.
#[derive(Debug)]
pub struct Present<'a> {
    /// The machine's cores, whoever has them.
    pub stock: &'a Stock,
    /// The pools.
    pub pools: Vec<Owned>,
    /// CPUs that are in no pool, and that somebody owns.
    pub owned: CpuSet,
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
pub struct Kept {
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
    pub kept: Vec<Kept>,
    /// The pools then.
    pub after: Vec<PlannedPool>,
}

/// Finds it. Lists with owners stay as they are. What is to get the rest gives way to what is counted.
///
/// # Errors
/// More declared than the machine has; nothing is to be changed then.
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
    let mut model = Model::of(present);
    let before = model.clone().into_course().after;
    let names: Vec<&str> = declared.iter().map(Declared::name).collect();
    if undeclared == Undeclared::Go {
        model.remove_others(&names);
    }
    for one in declared {
        model.clear_way(one)?;
    }
    let grown = grown(&model, declared).map_err(|error| {
        // As a whole it says how many there are and for whom.
        let others = model.cpus_of_others(&specs);
        let whole = plan(&model.stock.without(&others), &specs);
        whole.err().unwrap_or(error)
    })?;
    let mut course = grown.into_course();
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

/// With all that is declared; pools of the rest that are there give up, one after the other and as little as
/// will do, what others are to have.
fn grown<'a>(model: &Model<'a>, declared: &[Declared]) -> Result<Model<'a>> {
    let mut refused = match with_all(model.clone(), declared) {
        Ok(grown) => return Ok(grown),
        Err(error) => error,
    };
    let mut smaller = model.clone();
    for one in declared {
        let Declared::Cut(spec) = one else { continue };
        if spec.cores != Cores::Rest {
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
    // What somebody keeps may be what is missing.
    let mut partly = smaller.clone();
    partly.note_owned_rest(declared);
    ensure!(!partly.kept.is_empty(), refused);
    Ok(with_what_can_be(partly, declared))
}

fn with_all<'a>(mut model: Model<'a>, declared: &[Declared]) -> Result<Model<'a>> {
    for one in in_turn(declared) {
        model.grow(one)?;
    }
    Ok(model)
}

fn with_what_can_be<'a>(mut model: Model<'a>, declared: &[Declared]) -> Model<'a> {
    for one in in_turn(declared) {
        if let Err(error) = model.grow(one) {
            model.keep(one.name(), Refusal::of(&error));
        }
    }
    model
}

/// Lists that are named first; then the exclusive pools, which have fewer cores to come from; what gets
/// the rest last.
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
