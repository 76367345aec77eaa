//! Chooses few groups that suffice with little left over.

/// The largest table of sums that is computed, in machine words.
const MOST_WORDS: usize = 1 << 17;

/// The least number of groups that suffice; `None` if all together do not.
pub(super) fn fewest(capacities: &[usize], need: usize) -> Option<usize> {
    let mut descending = capacities.to_vec();
    descending.sort_unstable_by(|a, b| b.cmp(a));
    let mut sum = 0;
    if need == 0 {
        return Some(0);
    }
    for (index, capacity) in descending.into_iter().enumerate() {
        sum += capacity;
        if sum >= need {
            return Some(index + 1);
        }
    }
    None
}

/// All sets of `size` numbers below `count`, in lexical order; `None` if there are more than
/// `most`.
pub(super) fn sets_of(size: usize, count: usize, most: usize) -> Option<Vec<Vec<usize>>> {
    let mut number: usize = 1;
    for index in 0..size.min(count - size.min(count)) {
        number = number * (count - index) / (index + 1);
        if number > most {
            return None;
        }
    }
    let mut sets = Vec::with_capacity(number);
    let mut set: Vec<usize> = (0..size).collect();
    loop {
        sets.push(set.clone());
        // The last member that can still be raised.
        let Some(place) = (0..size).rfind(|place| set[*place] < count - size + place) else {
            return Some(sets);
        };
        set[place] += 1;
        for later in place + 1..size {
            set[later] = set[later - 1] + 1;
        }
    }
}

/// The fewest groups that suffice: of these sets the one with the least left over, and of equal
/// ones the one with the earlier members. All groups if they do not suffice. Where that takes too
/// large a table, the set is as small but perhaps not the tightest.
pub(super) fn tightest(capacities: &[usize], need: usize) -> Vec<usize> {
    let Some(few) = fewest(capacities, need) else {
        return (0..capacities.len()).collect();
    };
    let all_alike = capacities.windows(2).all(|pair| pair[0] == pair[1]);
    if all_alike || few == 0 {
        return (0..few).collect();
    }
    if few == 1 {
        let sufficient = (0..capacities.len()).filter(|index| capacities[*index] >= need);
        return sufficient
            .min_by_key(|index| capacities[*index])
            .into_iter()
            .collect();
    }
    let words = capacities.iter().sum::<usize>() / 64 + 1;
    if capacities.len() * (few + 1) * words > MOST_WORDS {
        return nearly_tightest(capacities, need, few);
    }
    Reachable::of(capacities, few, words).tightest(need)
}

/// The `few - 1` largest groups, and the smallest of the others that makes them suffice.
fn nearly_tightest(capacities: &[usize], need: usize, few: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..capacities.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(capacities[*index]));
    let mut set: Vec<usize> = order.drain(..few - 1).collect();
    let missing = need - set.iter().map(|index| capacities[*index]).sum::<usize>();
    let last = order
        .into_iter()
        .filter(|index| capacities[*index] >= missing);
    set.extend(last.min_by_key(|index| (capacities[*index], *index)));
    set.sort_unstable();
    set
}

/// A table of the sums that can be reached: row (`from`, `count`) has a bit for each sum of `count`
/// of the capacities from index `from` on.
struct Reachable<'a> {
    capacities: &'a [usize],
    few: usize,
    words: usize,
    bits: Vec<u64>,
}

impl<'a> Reachable<'a> {
    fn of(capacities: &'a [usize], few: usize, words: usize) -> Reachable<'a> {
        let rows = (capacities.len() + 1) * (few + 1);
        let mut sums = Reachable {
            capacities,
            few,
            words,
            bits: vec![0; rows * words],
        };
        let end = sums.row(capacities.len(), 0);
        sums.bits[end] = 1;
        for from in (0..capacities.len()).rev() {
            for count in 0..=few {
                let target = sums.row(from, count);
                let without = sums.row(from + 1, count);
                sums.bits.copy_within(without..without + words, target);
                if count > 0 {
                    let with = sums.row(from + 1, count - 1);
                    sums.add_shifted(with, target, capacities[from]);
                }
            }
        }
        sums
    }

    fn row(&self, from: usize, count: usize) -> usize {
        (from * (self.few + 1) + count) * self.words
    }

    fn add_shifted(&mut self, source: usize, target: usize, by: usize) {
        let (whole, part) = (by / 64, by % 64);
        for word in (whole..self.words).rev() {
            let mut shifted = self.bits[source + word - whole] << part;
            if part > 0 && word > whole {
                shifted |= self.bits[source + word - whole - 1] >> (64 - part);
            }
            self.bits[target + word] |= shifted;
        }
    }

    fn has(&self, from: usize, count: usize, sum: usize) -> bool {
        self.bits[self.row(from, count) + sum / 64] >> (sum % 64) & 1 == 1
    }

    fn tightest(&self, need: usize) -> Vec<usize> {
        let Some(mut sum) = (need..self.words * 64).find(|sum| self.has(0, self.few, *sum)) else {
            return Vec::new();
        };
        let mut set = Vec::with_capacity(self.few);
        for (index, capacity) in self.capacities.iter().enumerate() {
            let left = self.few - set.len();
            if left > 0 && sum >= *capacity && self.has(index + 1, left - 1, sum - capacity) {
                set.push(index);
                sum -= capacity;
            }
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_tight() {
        for (capacities, need, set) in [
            (&[8, 8, 6, 5][..], 13, &[0, 3][..]),
            (&[8, 6, 6], 12, &[1, 2]),
            (&[8, 6, 6], 13, &[0, 1]),
            (&[2, 1, 2], 1, &[1]),
            (&[2, 2, 2], 3, &[0, 1]),
            (&[1, 4, 4, 3], 8, &[1, 2]),
            (&[3, 3, 1], 0, &[]),
            (&[1, 1], 3, &[0, 1]),
            (&[], 1, &[]),
            (&[70, 65, 1], 134, &[0, 1]),
        ] {
            assert_eq!(tightest(capacities, need), set, "{capacities:?} {need}");
        }
    }

    #[test]
    fn where_there_is_too_much_to_weigh_it_is_still_as_few() {
        let capacities: Vec<usize> = (0..600).map(|index| index % 97 + 1).collect();
        let need = 20_000;
        let set = tightest(&capacities, need);
        assert_eq!(Some(set.len()), fewest(&capacities, need));
        assert!(set.iter().map(|index| capacities[*index]).sum::<usize>() >= need);
    }

    #[test]
    fn sets_in_lexical_order() {
        assert_eq!(
            sets_of(2, 4, 6).unwrap(),
            [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
        );
        assert_eq!(sets_of(3, 3, 1).unwrap(), [[0, 1, 2]]);
        assert_eq!(sets_of(1, 2, 9).unwrap().len(), 2);
        assert!(sets_of(8, 16, 1000).is_none());
    }
}
