//! Spreads lists evenly over some NUMA nodes.

use super::fit::sets_of;
use super::pack::{MOST_SETS, Pull, pack};
use super::place::Cell;

/// Chooses `need` evenly from two or more nodes: from as few as can give it evenly, of these from
/// near ones, and of these from those that have similar amounts left then. What cannot be divided
/// is taken, one by one, from the nodes with the most left. `None` if no nodes can give it evenly.
pub(super) fn spread(cells: &[Cell], need: usize, pull: &Pull) -> Option<Vec<usize>> {
    // A list that spans nodes is not a share of any of them.
    let mut nodes: Vec<usize> = cells
        .iter()
        .filter(|cell| cell.nodes.len() == 1)
        .flat_map(|cell| cell.nodes.clone())
        .collect();
    nodes.dedup();
    let of_node = |node: usize| cells.iter().filter(move |cell| cell.nodes == [node]);
    let free: Vec<usize> = nodes
        .iter()
        .map(|node| of_node(*node).map(|cell| cell.free).sum())
        .collect();
    let shares = (2..=nodes.len().min(need)).find_map(|count| {
        let sets =
            sets_of(count, nodes.len(), MOST_SETS).unwrap_or_else(|| vec![freest(&free, count)]);
        let weighed = sets.into_iter().filter_map(|set| {
            let shares = divide(&free, &set, need)?;
            let far = set
                .iter()
                .filter(|place| !pull.near.contains(&nodes[**place]))
                .count();
            // The sum of what is left is the same for all sets: the least sum of squares is the
            // most even.
            let left = free.iter().zip(&shares).map(|(free, share)| free - share);
            let spread: usize = left.map(|left| left * left).sum();
            let far = if pull.near.is_empty() { 0 } else { far };
            Some(((far, spread), shares))
        });
        weighed.min_by_key(|(key, _)| *key)
    });
    let (_, shares) = shares?;
    let mut chosen = Vec::new();
    for (node, share) in nodes.iter().zip(shares) {
        if share > 0 {
            let cells: Vec<Cell> = of_node(*node).cloned().collect();
            chosen.extend(pack(&cells, share, pull));
        }
    }
    Some(chosen)
}

/// The `count` places with the most free, ascending.
fn freest(free: &[usize], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..free.len()).collect();
    places.sort_by_key(|place| std::cmp::Reverse(free[*place]));
    places.truncate(count);
    places.sort_unstable();
    places
}

/// What each place gives if those of `set` give the same; `None` if one has too little.
fn divide(free: &[usize], set: &[usize], need: usize) -> Option<Vec<usize>> {
    let each = need / set.len();
    let mut shares = vec![0; free.len()];
    for place in set {
        if free[*place] < each {
            return None;
        }
        shares[*place] = each;
    }
    for _ in 0..need % set.len() {
        let left = |place: &&usize| free[**place] - shares[**place];
        // max_by_key takes the last of equal ones: the first, once reversed.
        let most = set
            .iter()
            .rev()
            .max_by_key(left)
            .filter(|place| left(place) > 0)?;
        shares[*most] += 1;
    }
    Some(shares)
}
