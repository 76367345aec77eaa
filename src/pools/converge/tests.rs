//! Changes from some pools to others, on machines of a few cores.

use std::cell::Cell;

use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::isolation::Options;
use crate::pools::CpuList;
use crate::pools::carve::{Core, FromCaches, FromNodes};
use crate::pools::plan::{ListUnit, list_name};

/// Cores with the two threads `n` and `n + count`; half of the cores on each of two nodes.
fn stock(count: u32) -> Stock {
    let core = |first: u32| Core {
        cpus: CpuSet::from_iter([first, first + count]),
        node: Some(first * 2 / count),
        cache: Some(first * 2 / count),
    };
    Stock {
        cores: (0..count).map(core).collect(),
        reserved: CpuSet::from_iter([0]),
        ..Stock::default()
    }
}

fn kind(word: &str) -> Kind {
    Kind::by_word(word).unwrap()
}

/// Parses words `name=4:exclusive,numa=1`, or `name:shared:0-3/4-7` for lists.
fn declared(words: &str) -> Vec<Declared> {
    let one = |word: &str| {
        let Some((name, rest)) = word.split_once('=').filter(|(name, _)| !name.contains(':'))
        else {
            let mut parts = word.split(':');
            let mut part = || parts.next().unwrap();
            return Declared::Lists(PlannedPool {
                name: part().to_owned(),
                kind: kind(part()),
                lists: part()
                    .split('/')
                    .map(|list| list.parse().unwrap())
                    .collect(),
                options: Options::default(),
            });
        };
        let (cores, rest) = rest.split_once(':').unwrap();
        let mut parts = rest.split(',');
        let mut spec = PoolSpec {
            name: name.to_owned(),
            cores: cores.parse().unwrap(),
            kind: kind(parts.next().unwrap()),
            cut: Cut::default(),
            unit: ListUnit::Core,
            options: Options::default(),
        };
        for part in parts {
            match part.split_once('=').unwrap() {
                ("unit", unit) => spec.unit = unit.parse().unwrap(),
                (key, value) => spec.cut.set(key, value).unwrap(),
            }
        }
        Declared::Cut(spec)
    };
    words.split_whitespace().map(one).collect()
}

/// Parses words `name:exclusive:0,4/1,5!`; a list with `!` has an owner.
fn there(words: &str) -> Vec<HeldPool> {
    let one = |word: &str| {
        let parts: Vec<&str> = word.split(':').collect();
        let mut owned = HeldPool {
            pool: Pool {
                name: parts[0].to_owned(),
                kind: kind(parts[1]),
                lists: Vec::new(),
            },
            owners: Vec::new(),
        };
        for list in parts[2].split('/').filter(|list| !list.is_empty()) {
            let cpus: CpuSet = list.trim_end_matches('!').parse().unwrap();
            owned.pool.lists.push(CpuList {
                name: list_name(&cpus),
                cpus,
                tasks: Vec::new(),
            });
            owned
                .owners
                .push(list.ends_with('!').then(|| "web".to_owned()));
        }
        owned
    };
    words.split_whitespace().map(one).collect()
}

fn shown(pools: &[PlannedPool]) -> String {
    let one = |pool: &PlannedPool| {
        let lists: Vec<String> = pool.lists.iter().map(list_name).collect();
        format!("{}:{}:{}", pool.name, pool.kind.word(), lists.join("/"))
    };
    pools.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn run(stock: &Stock, pools: &str, wanted: &str, undeclared: Undeclared) -> Result<Course> {
    let present = Present {
        stock,
        pools: there(pools),
        owned: CpuSet::new(),
    };
    course(present, &declared(wanted), undeclared)
}

#[test]
fn pools_become_what_is_declared() {
    let stock = stock(4);
    for (before, wanted, after) in [
        // Without any pools.
        (
            "",
            "dp=2:exclusive common=rest:shared",
            "common:shared:0,1,4,5 dp:exclusive:2,6/3,7",
        ),
        ("", "dp=1:exclusive,numa=1", "dp:exclusive:2,6"),
        (
            "",
            "dp:exclusive:1/5 a:shared:0,4",
            "a:shared:0,4 dp:exclusive:1/5",
        ),
        // A pool that gets the rest gives cores up.
        (
            "common:shared:0,2,3,4,6,7 dp:exclusive:1,5",
            "dp=2:exclusive common=rest:shared",
            "common:shared:0,2,4,6 dp:exclusive:1,5/3,7",
        ),
        (
            "common:shared:0,1,2,3,4,5,6,7",
            "dp=2:exclusive,numa=1 common=rest:shared",
            "common:shared:0,1,4,5 dp:exclusive:2,6/3,7",
        ),
        // It takes what others give up.
        (
            "common:shared:0,4 dp:exclusive:1,5/2,6/3,7",
            "dp=1:exclusive common=rest:shared",
            "common:shared:0,2,3,4,6,7 dp:exclusive:1,5",
        ),
        // One shrinks, the other grows.
        (
            "a:exclusive:1,5/2,6 b:exclusive:3,7",
            "a=1:exclusive b=2:exclusive",
            "a:exclusive:1,5 b:exclusive:2,6/3,7",
        ),
        // Other kinds, units and nodes.
        ("dp:shared:1,5", "dp=1:exclusive", "dp:exclusive:1,5"),
        (
            "dp:exclusive:1,5",
            "dp=1:exclusive,unit=threads",
            "dp:exclusive:1/5",
        ),
        ("dp:exclusive:1/5", "dp=1:exclusive", "dp:exclusive:1,5"),
        (
            "dp:exclusive:1",
            "dp=2:exclusive,unit=threads",
            "dp:exclusive:1/2/5/6",
        ),
        (
            "dp:exclusive:1/2/5/6",
            "dp=1:exclusive,unit=threads",
            "dp:exclusive:1/5",
        ),
        (
            "dp:exclusive:1,5",
            "dp=1:exclusive,numa=1",
            "dp:exclusive:2,6",
        ),
        // Pools of lists.
        (
            "dp:exclusive:1,5/2,6",
            "dp:exclusive:2,6/3,7",
            "dp:exclusive:2,6/3,7",
        ),
        ("dp:exclusive:1,5", "dp:exclusive:1/5", "dp:exclusive:1/5"),
        ("c:shared:0,4!", "c:shared:0,1,4,5", "c:shared:0,1,4,5"),
        ("c:shared:0,1,4,5", "c:shared:0,4", "c:shared:0,4"),
        (
            "c:shared:0,4 dp:exclusive:1,5",
            "c:shared:1,5 dp:exclusive:0,4",
            "c:shared:1,5 dp:exclusive:0,4",
        ),
        // A pool that is not declared stays.
        (
            "old:exclusive:1,5",
            "dp=1:exclusive",
            "dp:exclusive:2,6 old:exclusive:1,5",
        ),
        // A list's CPU that is offline changes nothing.
        (
            "dp:exclusive:1,5,9/2,6",
            "dp=2:exclusive",
            "dp:exclusive:1,5,9/2,6",
        ),
        ("c:shared:0,4,9", "c=1:shared", "c:shared:0,4,9"),
    ] {
        let case = format!("{before} -> {wanted}");
        let course = run(&stock, before, wanted, Undeclared::Stay).expect(&case);
        assert_eq!(shown(&course.after), after, "{case}");
        assert_eq!(course.kept, [], "{case}");
        let again = run(&stock, after, wanted, Undeclared::Stay).expect(&case);
        assert_eq!(again.steps, [], "the second time: {case}");
    }
}

#[test]
fn what_has_an_owner_stays_and_is_said() {
    let stock = stock(4);
    for (before, wanted, after, said) in [
        (
            "dp:exclusive:1,5!/2,6/3,7!",
            "dp=1:exclusive",
            "dp:exclusive:1,5/3,7",
            "web owns 1,5",
        ),
        (
            "dp:shared:1,5!",
            "dp=1:exclusive",
            "dp:shared:1,5",
            "it is shared",
        ),
        (
            "dp:exclusive:1,5!",
            "dp:exclusive:2,6 c=1:shared",
            "c:shared:0,4 dp:exclusive:1,5/2,6",
            "web owns 1,5",
        ),
        (
            "c:shared:0,1,4,5!",
            "c:shared:0,4",
            "c:shared:0,1,4,5",
            "web owns 0,1,4,5",
        ),
        (
            "c:shared:0,1,2,3,4,5,6,7!",
            "dp=1:exclusive c=rest:shared",
            "c:shared:0,1,2,3,4,5,6,7",
            "pool c keeps its CPUs: web owns",
        ),
    ] {
        let case = format!("{before} -> {wanted}");
        let course = run(&stock, before, wanted, Undeclared::Stay).expect(&case);
        assert_eq!(shown(&course.after), after, "{case}");
        let why = course.kept.iter().map(|kept| kept.why.to_string());
        let why = why.collect::<Vec<_>>().join("\n");
        assert!(why.contains(said), "{case}: {why}");
    }
    let course = run(&stock, "old:exclusive:1,5!", "", Undeclared::Go).unwrap();
    assert_eq!((course.steps.len(), course.kept.len()), (0, 1));
    let course = run(&stock, "old:exclusive:1,5", "", Undeclared::Go).unwrap();
    assert_eq!(course.steps, [Step::Remove("old".to_owned())]);
}

#[test]
fn more_than_there_is_changes_nothing() {
    let stock = stock(4);
    for (before, wanted, said) in [
        ("dp:exclusive:1,5", "dp=4:exclusive", "4 asked for"),
        (
            "",
            "a=2:exclusive b=2:exclusive",
            "4 asked for (2 for a, 2 for b)",
        ),
        ("", "a=rest:shared b=rest:shared", "two pools"),
        (
            "a:shared:0,4 b:shared:1,5",
            "a=rest:shared b=rest:shared",
            "two pools",
        ),
        (
            "",
            "a:shared:0-1 b:shared:1-2",
            "CPU 1 is in lists of pools a and b",
        ),
        (
            "old:exclusive:1,5",
            "dp:exclusive:1",
            "CPU 1 is in pool old",
        ),
    ] {
        let error = run(&stock, before, wanted, Undeclared::Stay).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(said), "{before} -> {wanted}: {error}");
    }
}

/// A pool whose declared CPUs have another owner stays as it was, and is not removed.
#[test]
fn a_pool_that_cannot_be_as_declared_stays_as_it_was() {
    let stock = stock(4);
    for (before, wanted, after) in [
        (
            "common:shared:1,5! dp:exclusive:0,4",
            "dp:exclusive:1,5",
            "common:shared:1,5 dp:exclusive:0,4",
        ),
        (
            "common:shared:1,5! dp:exclusive:0,4/2,6",
            "dp:exclusive:1,5/2,6",
            "common:shared:1,5 dp:exclusive:0,4/2,6",
        ),
        (
            "common:shared:1,2,3,5,6,7! dp:shared:0,4",
            "dp=1:exclusive common=rest:shared",
            "common:shared:1,2,3,5,6,7 dp:shared:0,4",
        ),
        // The pool that would get the place of that one stays too.
        (
            "a:exclusive:2,6 common:shared:1,5! dp:exclusive:0,4",
            "a:exclusive:0,4 dp:exclusive:1,5",
            "a:exclusive:2,6 common:shared:1,5 dp:exclusive:0,4",
        ),
    ] {
        let case = format!("{before} -> {wanted}");
        let course = run(&stock, before, wanted, Undeclared::Go).expect(&case);
        assert_eq!(shown(&course.after), after, "{case}");
        assert_eq!(course.steps, [], "{case}");
        let is_told = course.kept.iter().any(|kept| kept.pool == "dp");
        assert!(is_told, "{case}: {:?}", course.kept);
    }
}

/// An owner elsewhere does not excuse a declaration of more cores than there are.
#[test]
fn more_than_there_is_changes_nothing_whoever_owns_what() {
    let stock = stock(4);
    for (before, wanted, said) in [
        (
            "common:shared:1,5/2,6! dp:exclusive:3,7",
            "common:shared:1,5 dp=9999:exclusive",
            "9999 asked for",
        ),
        (
            "common:exclusive:1,5!/2,6 dp:shared:3,7",
            "common=1:exclusive dp=9999:exclusive",
            "9999 for dp",
        ),
        (
            "old:exclusive:1,5! dp:shared:3,7",
            "dp=9999:exclusive",
            "9999 asked for",
        ),
    ] {
        for undeclared in [Undeclared::Stay, Undeclared::Go] {
            let error = run(&stock, before, wanted, undeclared).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(said), "{before} -> {wanted}: {error}");
        }
    }
}

/// What was drawn for one trial, and zeros behind it: a failure shrinks to few and small numbers.
struct Dice(std::vec::IntoIter<u32>);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0.next().unwrap_or_default() % limit
    }

    fn spec(&mut self, name: &str) -> PoolSpec {
        let kind = [Kind::Exclusive, Kind::Shared][self.below(2) as usize];
        let is_by_threads = kind == Kind::Exclusive && self.below(3) == 0;
        PoolSpec {
            name: name.to_owned(),
            cores: match self.below(5) {
                0 => Cores::Rest,
                _ => Cores::Count(1 + self.below(3) as usize),
            },
            kind,
            cut: Cut {
                numa: [
                    FromNodes::Any,
                    FromNodes::Pack,
                    FromNodes::Spread,
                    FromNodes::Node(1),
                ][self.below(4) as usize],
                cache: [FromCaches::Any, FromCaches::Pack, FromCaches::Single]
                    [self.below(3) as usize],
            },
            unit: if is_by_threads {
                ListUnit::Thread
            } else {
                ListUnit::Core
            },
            options: Options::default(),
        }
    }

    fn declared(&mut self) -> Vec<Declared> {
        let names = ["a", "b", "c"].into_iter();
        let mut all: Vec<Declared> = names.map(|name| Declared::Cut(self.spec(name))).collect();
        all.retain(|_| self.below(4) > 0);
        all
    }
}

/// From any pools to any others: owners keep their lists, declared pools are not removed, and a
/// second time changes nothing.
#[test]
fn a_second_time_changes_nothing_whatever_is_declared() {
    let stock = stock(8);
    let changed = Cell::new(0);
    let config = Config {
        cases: 2000,
        failure_persistence: None,
        ..Config::default()
    };
    // The same trials in each run.
    let numbers = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, numbers);
    let drawn = proptest::collection::vec(proptest::num::u32::ANY, 80);
    let tried = runner.run(&drawn, |drawn| {
        let mut dice = Dice(drawn.into_iter());
        let nothing = Present {
            stock: &stock,
            pools: Vec::new(),
            owned: CpuSet::new(),
        };
        let Ok(first) = course(nothing, &dice.declared(), Undeclared::Stay) else {
            return Ok(());
        };
        let mut pools = there(&shown(&first.after));
        for owner in pools.iter_mut().flat_map(|owned| &mut owned.owners) {
            *owner = (dice.below(5) == 0).then(|| "web".to_owned());
        }
        let owned: Vec<(String, CpuSet)> = pools
            .iter()
            .flat_map(|owned| {
                let pairs = owned.pool.lists.iter().zip(&owned.owners);
                let mine = pairs.filter(|(_, owner)| owner.is_some());
                mine.map(|(list, _)| (owned.pool.name.clone(), list.cpus.clone()))
            })
            .collect();
        let wanted = dice.declared();
        let case = format!("{} -> {wanted:?}", shown(&first.after));
        let present = |pools: Vec<HeldPool>| Present {
            stock: &stock,
            pools,
            owned: CpuSet::new(),
        };
        let Ok(second) = course(present(pools.clone()), &wanted, Undeclared::Go) else {
            return Ok(());
        };
        changed.set(changed.get() + usize::from(!second.steps.is_empty()));
        let keeps = |name: &str, cpus: &CpuSet| {
            let pool = second.after.iter().find(|pool| pool.name == name);
            pool.is_some_and(|pool| pool.lists.iter().any(|list| cpus.is_subset(list)))
        };
        assert!(owned.iter().all(|(name, cpus)| keeps(name, cpus)), "{case}");
        for pool in &pools {
            let name = &pool.pool.name;
            let is_declared = wanted.iter().any(|one| one.name() == name);
            let is_there = second.after.iter().any(|after| after.name == *name);
            assert!(is_there || !is_declared, "{case}: {name} is gone");
        }
        let mut after = there(&shown(&second.after));
        for one in &mut after {
            for (list, owner) in one.pool.lists.iter().zip(&mut one.owners) {
                let is_its = |(name, cpus): &(String, CpuSet)| {
                    *name == one.pool.name && cpus.is_subset(&list.cpus)
                };
                *owner = owned.iter().any(is_its).then(|| "web".to_owned());
            }
        }
        let third = course(present(after), &wanted, Undeclared::Go).expect(&case);
        assert_eq!(third.steps, [], "{case}: {}", shown(&second.after));
        Ok(())
    });
    tried.unwrap_or_else(|failure| panic!("{failure}"));
    let changed = changed.get();
    assert!(
        changed > 300,
        "{changed} changes are too few to show anything"
    );
}
