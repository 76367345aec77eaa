//! What holds on any machine, tried on many small ones against all that could have been chosen.

use std::cell::Cell;

use pinfold::choose::{NoChoice, Want};
use pinfold::cpulist::CpuSet;
use pinfold::request::{Numa, Size};
use pinfold::topology::{CpuGroup, Levels};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::machines::{Cpu, Shape, set};
use crate::pool::Pool;

const TRIALS: u32 = 2000;

/// What was drawn for one trial, and zeros behind it: the fewer and smaller the numbers, the
/// simpler the machine, so that a failure shrinks to a simple one.
struct Chance(std::vec::IntoIter<u32>);

impl Chance {
    fn below(&mut self, bound: u32) -> u32 {
        self.0.next().unwrap_or_default() % bound
    }
}

/// A small machine: nodes in packages or packages in nodes, several caches, cores of one or two
/// threads, not all online.
fn machine(chance: &mut Chance) -> Levels {
    let shape = [
        chance.below(2) + 1,
        chance.below(3) + 1,
        chance.below(2) + 1,
        chance.below(2) + 1,
        chance.below(2) + 1,
    ];
    let mut shape = Shape::regular(shape);
    if chance.below(4) == 0 {
        let swap = |cpu: &Cpu| Cpu {
            package: cpu.node,
            node: cpu.package,
            ..*cpu
        };
        shape.cpus.values_mut().for_each(|cpu| *cpu = swap(cpu));
    }
    let offline: CpuSet = shape
        .online()
        .iter()
        .filter(|_| chance.below(6) == 0)
        .collect();
    let rest = shape.clone().without(&offline.to_string());
    match rest.cpus.is_empty() {
        true => shape.levels(),
        false => rest.levels(),
    }
}

fn pool(chance: &mut Chance) -> Pool {
    let levels = machine(chance);
    let mut pool = match chance.below(3) {
        0 => Pool::of_threads(levels),
        _ => Pool::of_cores(levels),
    };
    // Few enough to try all sets of them.
    pool.lists.truncate(11);
    let owned = chance.below(4);
    pool.free = pool
        .free
        .iter()
        .filter(|_| chance.below(8) >= owned)
        .collect();
    pool
}

fn want(chance: &mut Chance, pool: &Pool) -> Want {
    let most = pool.lists.len() as u32;
    let size = match chance.below(2) {
        0 => Size::Lists((chance.below(most) + 1) as usize),
        _ => Size::Cpus((chance.below(most * 2) + 1) as usize),
    };
    let numa = match chance.below(8) {
        0 | 1 => Numa::Single,
        2 => Numa::Spread,
        3 => Numa::Node(chance.below(4)),
        _ => Numa::Best,
    };
    let node = |chance: &mut Chance| match chance.below(4) {
        0 => set(&chance.below(6).to_string()),
        _ => CpuSet::new(),
    };
    Want {
        size,
        numa,
        one_cache: numa != Numa::Spread && chance.below(5) == 0,
        near: node(chance),
        rather_near: node(chance),
    }
}

fn size_of(pool: &Pool, want: &Want, lists: &[usize]) -> (usize, usize) {
    match want.size {
        Size::Lists(need) => (lists.len(), need),
        Size::Cpus(need) => (lists.iter().map(|list| pool.lists[*list].len()).sum(), need),
    }
}

/// How many nodes, packages and caches some lists touch.
fn touched(pool: &Pool, lists: &[usize]) -> (usize, usize, usize) {
    let count = |groups: &[CpuGroup]| {
        let touches = |group: &&CpuGroup| {
            lists
                .iter()
                .any(|list| !group.cpus.is_disjoint(&pool.lists[*list]))
        };
        groups.iter().filter(touches).count()
    };
    let levels = &pool.levels;
    (
        count(&levels.nodes),
        count(&levels.packages),
        count(&levels.caches),
    )
}

/// Does it lie within what is strictly asked for?
fn is_allowed(pool: &Pool, want: &Want, lists: &[usize]) -> bool {
    let (nodes, _, caches) = touched(pool, lists);
    let on_node = |number: u32| {
        let node = pool.levels.nodes.iter().find(|node| node.id == number);
        node.is_some_and(|node| {
            lists
                .iter()
                .all(|list| pool.lists[*list].is_subset(&node.cpus))
        })
    };
    let is_on_nodes = match want.numa {
        Numa::Best | Numa::Spread => true,
        Numa::Single => nodes == 1,
        Numa::Node(number) => on_node(number),
    };
    is_on_nodes && (!want.one_cache || caches == 1)
}

/// All sets of free lists that suffice and are allowed.
fn all_ways(pool: &Pool, want: &Want) -> Vec<Vec<usize>> {
    let free: Vec<usize> = (0..pool.lists.len())
        .filter(|index| pool.is_free(*index))
        .collect();
    let sets = (1u32..1 << free.len()).map(|bits| {
        let chosen = free
            .iter()
            .enumerate()
            .filter(|(place, _)| bits >> place & 1 == 1);
        chosen.map(|(_, index)| *index).collect::<Vec<_>>()
    });
    sets.filter(|lists| {
        let (size, need) = size_of(pool, want, lists);
        size >= need && is_allowed(pool, want, lists)
    })
    .collect()
}

/// Who had these lists before gets of them what it can, and nothing worse than who had none.
fn comes_back(
    pool: &Pool,
    want: &Want,
    former: &[usize],
    chosen: &[usize],
    told: &dyn Fn() -> String,
) {
    let again = pool.choose_again(want, former).unwrap();
    let told = || format!("{again:?} of {former:?}, not {chosen:?}: {}", told());
    assert!(
        again.iter().all(|index| pool.is_free(*index)),
        "owned: {}",
        told()
    );
    assert!(is_allowed(pool, want, &again), "{}", told());
    let (size, need) = size_of(pool, want, &again);
    assert!(size >= need, "too little: {}", told());
    assert!(size <= size_of(pool, want, chosen).0, "more: {}", told());
    let (ours, theirs) = (touched(pool, &again), touched(pool, chosen));
    let no_more = [ours.0 <= theirs.0, ours.1 <= theirs.1, ours.2 <= theirs.2];
    assert_eq!(no_more, [true; 3], "farther apart: {}", told());
    if former == chosen {
        assert_eq!(again, chosen, "{}", told());
    }
    let had = |lists: &[usize]| lists.iter().filter(|list| former.contains(list)).count();
    // One list is as good as another as far as these say. Of several that it had the first may not
    // be.
    if chosen.len() == 1 && former.len() == 1 && want.near.is_empty() && want.rather_near.is_empty()
    {
        let one = |index: &usize| {
            let one = [*index];
            pool.is_free(*index)
                && is_allowed(pool, want, &one)
                && size_of(pool, want, &one) == size_of(pool, want, chosen)
                && touched(pool, &one) == theirs
        };
        let could = former.iter().any(one);
        assert_eq!(had(&again), usize::from(could), "{}", told());
    }
}

#[test]
fn on_any_machine() {
    let (met, refused) = (Cell::new(0), Cell::new(0));
    let config = Config {
        cases: TRIALS,
        failure_persistence: None,
        ..Config::default()
    };
    // The same trials in each run.
    let numbers = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, numbers);
    let drawn = proptest::collection::vec(proptest::num::u32::ANY, 200);
    let tried = runner.run(&drawn, |drawn| {
        let mut chance = Chance(drawn.into_iter());
        let pool = pool(&mut chance);
        let want = want(&mut chance, &pool);
        let told = || {
            format!(
                "{want:?} of {:?}, free {}, on {:?}",
                pool.lists, pool.free, pool.levels
            )
        };
        let ways = all_ways(&pool, &want);
        let chosen = match pool.choose(&want) {
            Ok(chosen) => chosen,
            Err(refusal) => {
                assert!(
                    ways.is_empty(),
                    "refused {refusal:?} though it can be met: {}",
                    told()
                );
                assert!(!matches!(refusal, NoChoice::Offline | NoChoice::NotAllowed));
                refused.set(refused.get() + 1);
                return Ok(());
            }
        };
        met.set(met.get() + 1);
        assert_eq!(
            pool.choose(&want).unwrap(),
            chosen,
            "another answer: {}",
            told()
        );
        assert!(
            chosen.windows(2).all(|pair| pair[0] < pair[1]),
            "{chosen:?}: {}",
            told()
        );
        assert!(
            chosen.iter().all(|index| pool.is_free(*index)),
            "owned: {}",
            told()
        );
        assert!(is_allowed(&pool, &want, &chosen), "{chosen:?}: {}", told());
        let (size, need) = size_of(&pool, &want, &chosen);
        assert!(size >= need, "too little, {chosen:?}: {}", told());
        let smallest = chosen
            .iter()
            .map(|index| size_of(&pool, &want, &[*index]).0)
            .min();
        assert!(
            size - need < smallest.unwrap(),
            "a list too many, {chosen:?}: {}",
            told()
        );
        let former: Vec<usize> = (0..pool.lists.len())
            .filter(|_| chance.below(3) == 0)
            .collect();
        comes_back(&pool, &want, &former, &chosen, &told);
        comes_back(&pool, &want, &chosen, &chosen, &told);
        if want.numa != Numa::Spread {
            let best = ways
                .iter()
                .map(|lists| touched(&pool, lists))
                .min()
                .unwrap();
            let ours = touched(&pool, &chosen);
            assert_eq!(ours.0, best.0, "more nodes, {chosen:?}: {}", told());
            if want.near.is_empty() {
                assert_eq!(
                    ours,
                    best,
                    "more packages or caches, {chosen:?}: {}",
                    told()
                );
            }
        }
        Ok(())
    });
    tried.unwrap_or_else(|failure| panic!("{failure}"));
    let (met, refused) = (met.get(), refused.get());
    assert!(
        met > TRIALS / 3 && refused > TRIALS / 20,
        "{met} met, {refused} refused"
    );
}
