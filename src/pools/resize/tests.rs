//! Resizing pools, on machines and pools written as words.

use super::*;
use crate::pools::carve::Core;

/// Two nodes with two cores each; a core has two threads and its own cache. `single` are further
/// cores of one thread on node 1.
fn stock(reserved: &str, isolated: &str, single: &[u32]) -> Stock {
    let core = |cpus: CpuSet, node| Core {
        cache: cpus.first(),
        cpus,
        node: Some(node),
    };
    let pair = |first: u32| core([first, first + 4].into_iter().collect(), first / 2);
    let alone = single.iter().map(|cpu| core(CpuSet::from_iter([*cpu]), 1));
    Stock {
        cores: (0..4).map(pair).chain(alone).collect(),
        isolated: isolated.parse().unwrap(),
        reserved: reserved.parse().unwrap(),
        shared_isolated: None,
    }
}

/// Parses lists as `1,5 2,6!`, where `!` has an owner; a shared pool begins with `s:`.
fn pool(words: &str) -> (Pool, Vec<Option<String>>) {
    let (kind, words) = match words.strip_prefix("s:") {
        Some(words) => (Kind::Shared, words),
        None => (Kind::Exclusive, words),
    };
    let list = |word: &str| {
        let name = word.trim_end_matches('!');
        let list = CpuList {
            name: name.into(),
            cpus: name.parse().unwrap(),
            tasks: Vec::new(),
        };
        (list, word.ends_with('!').then(|| "somebody".into()))
    };
    let (lists, owners) = words.split_whitespace().map(list).unzip();
    let name = "p".into();
    (Pool { name, kind, lists }, owners)
}

/// Resizes, and returns the result as `+added -removed from>to ~siblings`.
fn resized(stock: &Stock, words: &str, others: &str, size: &str) -> Result<String> {
    let (pool, owners) = pool(words);
    let mut taken: CpuSet = others.parse().unwrap();
    taken.extend(&cpus_of(&pool.lists));
    let standing = PoolStanding {
        pool: &pool,
        owners: &owners,
        stock,
        taken: &taken,
    };
    let mut cut = Cut::default();
    let (count, rest) = size.split_once(' ').unwrap_or((size, ""));
    for word in rest.split_whitespace() {
        let (key, value) = word.split_once('=').unwrap();
        cut.set(key, value).unwrap();
    }
    let cores = count.parse().map_or(Cores::Rest, Cores::Count);
    let Resized {
        added,
        removed,
        renamed,
        siblings,
    } = resize(&standing, cores, cut)?;
    let mut said: Vec<String> = added
        .iter()
        .map(|cpus| format!("+{}", cpus.to_numbers()))
        .collect();
    said.extend(removed.iter().map(|cpus| format!("-{}", cpus.to_numbers())));
    said.extend(renamed.map(|(from, to)| format!("{}>{}", from.to_numbers(), to.to_numbers())));
    if !siblings.is_empty() {
        said.push(format!("~{}", siblings.to_numbers()));
    }
    Ok(said.join(" "))
}

#[test]
fn pools_of_cores_grow_and_shrink() {
    for (words, others, size, expected) in [
        ("1,5", "", "1", ""),
        ("1,5", "", "3", "+2,6 +3,7"),
        ("1,5", "", "rest", "+2,6 +3,7"),
        ("1,5 2,6 3,7", "", "rest", ""),
        ("1,5", "", "2 numa=1", "+2,6"),
        ("1,5", "3", "rest numa=1", "+2,6"),
        ("1,5", "2-3", "rest numa=1", ""),
        ("1,5 2,6 3,7", "", "1", "-3,7 -2,6"),
        ("1,5 2,6 3,7!", "", "2", "-2,6"),
        ("s:0,4", "", "2", "0,4>0,1,4,5"),
        ("s:1,5", "", "2", "1,5>0,1,4,5"),
        ("s:0,4", "1", "rest", "0,4>0,2,3,4,6,7"),
        ("s:0,4", "1-3", "rest", ""),
        ("s:0,1,4,5", "", "1", "0,1,4,5>0,4"),
    ] {
        let got = resized(&stock("0", "", &[]), words, others, size).unwrap();
        assert_eq!(got, expected, "{words} to {size}");
    }
}

/// Two nodes with four cores each.
#[test]
fn a_pool_grows_on_its_own_nodes_first() {
    let core = |cpu: u32| Core {
        cpus: CpuSet::from_iter([cpu]),
        node: Some(cpu / 4),
        cache: Some(cpu / 2 * 2),
    };
    let stock = Stock {
        cores: (0..8).map(core).collect(),
        isolated: CpuSet::new(),
        reserved: CpuSet::new(),
        shared_isolated: None,
    };
    for (words, others, size, expected) in [
        ("4", "", "2", "+5"),
        ("4", "", "5", "+5 +6 +7 +0"),
        // The other node has fewer free cores.
        ("4", "0-2", "2", "+5"),
        ("4", "0-2", "2 numa=pack", "+5"),
        ("0", "4-6", "3 numa=pack", "+1 +2"),
        ("4", "5-7", "2", "+0"),
        ("4", "5", "3 cache=single", "+6 +7"),
        ("4", "5,7", "3 cache=single", "+0 +1"),
        // What is asked for explicitly counts.
        ("4", "", "2 numa=0", "+0"),
        ("4", "", "3 numa=spread", "+0 +5"),
        ("s:4", "", "2", "4>0,4"),
        ("s:4", "0-2", "2 numa=pack", "4>4,5"),
    ] {
        let got = resized(&stock, words, others, size).unwrap();
        assert_eq!(got, expected, "{words} to {size} beside {others}");
    }
}

#[test]
fn pools_of_threads_take_the_siblings_of_their_own_first() {
    for (words, others, size, expected) in [
        ("1 5", "", "3", "+2 ~6"),
        ("1 2 5", "", "4", "+6"),
        ("1 2 5", "", "5", "+6 +3 ~7"),
        ("1 2 5", "6", "4", "+3 ~7"),
        ("1 2 5", "", "rest", "+6 +3 +7"),
        ("1 2 5", "", "4 numa=1", "+6"),
        ("1 3 5", "2", "4 numa=1", "+7"),
        // Cores are not split if possible, and go back whole.
        ("1 2 5 6", "", "3", "-6 ~6"),
        ("1 2 5 6", "", "2", "-6 -2"),
        ("1 2 5", "", "2", "-2"),
        ("1 2! 5 6", "", "3", "-6 ~6"),
        ("1! 2 5 6", "", "3", "-5 ~5"),
        ("1! 2 5 6", "", "2", "-6 -2"),
        ("1 2! 3 5", "", "2", "-3 -5 ~5,6"),
        // Its sibling is the host's.
        ("4", "", "2", "+1 ~5"),
        ("1 5", "", "4", "+2 +6"),
    ] {
        let got = resized(&stock("0", "", &[]), words, others, size).unwrap();
        assert_eq!(got, expected, "{words} to {size}");
    }
    // Some cores have one thread.
    for (words, others, size, expected) in [
        ("1 5", "2", "4", "+3 +7"),
        ("1 5", "2-3", "4", "+8 +9"),
        ("1 5", "2", "5", "+3 +7 +8"),
    ] {
        let got = resized(&stock("0", "", &[8, 9]), words, others, size).unwrap();
        assert_eq!(got, expected, "{words} to {size}");
    }
}

#[test]
fn shared_pools_of_several_lists_change_by_lists() {
    for (words, size, expected) in [
        ("s:", "1", "+0,4"),
        ("s:0,4 1,5", "2", ""),
        ("s:0,4! 1,5!", "4", "+2,3,6,7"),
        ("s:0,4 1,5", "rest", "+2,3,6,7"),
        ("s:0,4 1,5", "1", "-1,5"),
        ("s:0,4 1,5!", "1", "-0,4"),
        ("s:0,4 1,2,3,5,6,7", "3", "-0,4 "),
        ("s:0,1,4,5 2,3,6,7", "3", "2,3,6,7>2,6"),
        ("s:0,1,4,5 2,3,6,7", "1", "-2,3,6,7 0,1,4,5>0,4"),
        ("s:0,1,4,5 2,3,6,7!", "3", "0,1,4,5>0,4"),
    ] {
        let got = resized(&stock("0", "", &[]), words, "", size).unwrap();
        assert_eq!(got, expected.trim(), "{words} to {size}");
    }
}

#[test]
fn isolated_cores_stay_apart_even_when_they_are_used_up() {
    for (words, others, size, expected) in [
        ("2,6", "", "rest", "+3,7"),
        ("2,6 3,7", "", "rest", ""),
        ("s:0,4", "", "rest", "0,4>0,1,4,5"),
        // This is what KCM's controlplane is.
        ("s:2,6", "", "rest", "2,6>2,3,6,7"),
    ] {
        let got = resized(&stock("0", "2-3,6-7", &[]), words, others, size).unwrap();
        assert_eq!(got, expected, "{words} to {size}");
    }
    let error = resized(&stock("0", "2-3,6-7", &[]), "2,6 3,7", "", "3").unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool p cannot have 3 lists: it has 2, and no free isolated cores are left: take some from \
         another pool first (`pinfold pool show`)"
    );
}

#[test]
fn a_refusal_counts_what_was_asked_for() {
    for (words, others, size, said) in [
        (
            "1,5",
            "3",
            "9",
            "pool p cannot have 9 lists: it has 1, and the free cores, without those of the host's \
             own work, CPUs 0 (--reserve), make 1 more: ask for 2 at most",
        ),
        (
            "1,5",
            "",
            "5 numa=1",
            "pool p cannot have 5 lists: it has 1, and the free cores of NUMA node 1 make 2 more: \
             ask for 3 at most",
        ),
        (
            "1,5",
            "0",
            "3 cache=single",
            "pool p cannot have 3 lists: it has 1, and the free cores of one last-level cache make \
             1 more: ask for 2 at most",
        ),
        (
            "1 5",
            "0,2",
            "9",
            "pool p cannot have 9 lists: it has 2, and the free cores make 2 more: ask for 4 at \
             most",
        ),
        (
            "s:0,4",
            "3",
            "9999",
            "pool p cannot have 9999 cores: it has 1, and the free cores make 2 more: ask for 3 at \
             most",
        ),
        (
            "s:0,4",
            "1-3",
            "2",
            "pool p cannot have 2 cores: it has 1, and no free cores are left: take some from \
             another pool first (`pinfold pool show`)",
        ),
        (
            "1,5! 2,6! 3,7",
            "",
            "1",
            "pool p cannot have 1 lists, but 2 at least, for lists with owners stay as they are: \
             somebody owns 1,5, somebody owns 2,6: stop them first (`pinfold describe` shows them)",
        ),
        (
            "s:0,1,4,5!",
            "",
            "1",
            "pool p cannot have 1 cores, but 2 at least, for lists with owners stay as they are: \
             somebody owns 0,1,4,5: stop them first (`pinfold describe` shows them)",
        ),
        (
            "s:0,1,4,5! 2,6",
            "",
            "1",
            "pool p cannot have 1 cores, but 2 at least, for lists with owners stay as they are: \
             somebody owns 0,1,4,5: stop them first (`pinfold describe` shows them)",
        ),
    ] {
        let error = resized(&stock("0", "", &[]), words, others, size).unwrap_err();
        assert_eq!(error.to_string(), said, "{words} to {size}");
    }
}
