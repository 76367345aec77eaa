//! A set of CPUs (or NUMA nodes), in the kernel's list and mask formats.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::text::Shown;

/// Largest CPU number that is accepted: the kernel's `NR_CPUS` is at most 8192 on every
/// architecture.
pub const LARGEST_CPU: u32 = 8191;

/// Most digits of a number that is read, leading zeros included.
const MOST_DIGITS: usize = 5;

/// Digits in a full group of the kernel's mask format.
const MASK_DIGITS: usize = 8;

/// A set of CPU numbers, each from 0 to [`LARGEST_CPU`].
///
/// Printed and parsed as the List Format of cpuset(7), `0-2,8-10`; strides of bitmap lists
/// (`0-31:2/4`, kernel: Documentation/admin-guide/kernel-parameters.rst, "cpu lists") are parsed
/// too.
///
/// A set is kept as one bit per CPU, because each start reads, compares and narrows sets of all
/// CPUs of a large machine. Sets are ordered as the lists of their numbers are.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet {
    /// CPUs 0 to 63, the lowest in the lowest bit: most machines and nearly all lists of a pool
    /// need no more, and no memory of their own.
    low: u64,
    /// The words above; the last one is not 0.
    high: Vec<u64>,
}

/// CPUs in a word.
const WORD: u32 = u64::BITS;

impl fmt::Debug for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl Ord for CpuSet {
    fn cmp(&self, other: &CpuSet) -> Ordering {
        self.iter().cmp(other.iter())
    }
}

impl PartialOrd for CpuSet {
    fn partial_cmp(&self, other: &CpuSet) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Why a text is not a CPU list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCpuList {
    part: String,
}

impl fmt::Display for BadCpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} is not a CPU list: numbers from 0 to {LARGEST_CPU} and ranges, joined by commas",
            Shown(&self.part)
        )
    }
}

impl std::error::Error for BadCpuList {}

/// The text of a kernel file that holds a list or a number. Some kernels end it in NUL; some print
/// `(null)` for a set that they have not made, which gives an empty text.
pub fn of_kernel(text: &str) -> &str {
    match text.split('\0').next().unwrap_or_default().trim() {
        "(null)" => "",
        text => text,
    }
}

impl CpuSet {
    /// The empty set.
    pub fn new() -> CpuSet {
        CpuSet::default()
    }

    /// Is the set empty?
    pub fn is_empty(&self) -> bool {
        self.low == 0 && self.high.is_empty()
    }

    /// The number of CPUs in the set.
    pub fn len(&self) -> usize {
        self.words().map(|word| word.count_ones() as usize).sum()
    }

    /// The lowest CPU number; `None` for the empty set.
    pub fn first(&self) -> Option<u32> {
        self.iter().next()
    }

    /// The CPU numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        let words = (0..).step_by(WORD as usize).zip(self.words());
        words.flat_map(|(start, word)| Bits(word).map(move |bit| start + bit))
    }

    /// Is this CPU in the set?
    pub fn contains(&self, cpu: u32) -> bool {
        let word = match (cpu / WORD) as usize {
            0 => self.low,
            place => self.high.get(place - 1).copied().unwrap_or(0),
        };
        word >> (cpu % WORD) & 1 == 1
    }

    /// Are all CPUs of this set also in `other`?
    pub fn is_subset(&self, other: &CpuSet) -> bool {
        let mut both = self.words().zip(other.words());
        self.high.len() <= other.high.len() && both.all(|(ours, theirs)| ours & !theirs == 0)
    }

    /// Have the two sets no CPU in common?
    pub fn is_disjoint(&self, other: &CpuSet) -> bool {
        let mut both = self.words().zip(other.words());
        both.all(|(ours, theirs)| ours & theirs == 0)
    }

    /// The CPUs that are in both sets.
    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        let both = self.words().zip(other.words());
        CpuSet::of_words(both.map(|(ours, theirs)| ours & theirs))
    }

    /// The CPUs of this set that are not in `other`.
    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        let theirs = other.words().chain(std::iter::repeat(0));
        let both = self.words().zip(theirs);
        CpuSet::of_words(both.map(|(ours, theirs)| ours & !theirs))
    }

    /// Adds a CPU; a number beyond [`LARGEST_CPU`] is no CPU's, nor a node's, and is left out.
    pub fn insert(&mut self, cpu: u32) {
        if cpu <= LARGEST_CPU {
            *self.word_mut((cpu / WORD) as usize) |= 1 << (cpu % WORD);
        }
    }

    /// Adds the CPUs from one to another, both included and none beyond [`LARGEST_CPU`].
    fn insert_all(&mut self, from: u32, to: u32) {
        let (first, last) = (from / WORD, to / WORD);
        for place in first..=last {
            let mut bits = u64::MAX;
            if place == first {
                bits &= u64::MAX << (from % WORD);
            }
            if place == last {
                bits &= u64::MAX >> (WORD - 1 - to % WORD);
            }
            *self.word_mut(place as usize) |= bits;
        }
    }

    /// Adds the CPUs of `other`.
    pub fn extend(&mut self, other: &CpuSet) {
        self.low |= other.low;
        if self.high.len() < other.high.len() {
            self.high.resize(other.high.len(), 0);
        }
        for (ours, theirs) in self.high.iter_mut().zip(&other.high) {
            *ours |= theirs;
        }
    }

    /// From a mask in words, as the kernel keeps one (sched_getaffinity(2)): the lowest CPU in the
    /// lowest bit of the first word. Bits beyond [`LARGEST_CPU`] are left out.
    pub fn of_words(words: impl IntoIterator<Item = u64>) -> CpuSet {
        let mut set = CpuSet::new();
        let words = words.into_iter().take((LARGEST_CPU / WORD + 1) as usize);
        // The last word is not 0.
        for (place, word) in words.enumerate().filter(|(_, word)| *word != 0) {
            *set.word_mut(place) = word;
        }
        set
    }

    fn words(&self) -> impl Iterator<Item = u64> {
        std::iter::once(self.low).chain(self.high.iter().copied())
    }

    /// A word, in which a bit is going to be set.
    fn word_mut(&mut self, place: usize) -> &mut u64 {
        if place == 0 {
            return &mut self.low;
        }
        if self.high.len() < place {
            self.high.resize(place, 0);
        }
        &mut self.high[place - 1]
    }

    /// The CPU numbers without ranges, `0,1,8,9`: KCM's tools read no ranges.
    pub fn to_numbers(&self) -> String {
        let numbers: Vec<String> = self.iter().map(|cpu| cpu.to_string()).collect();
        numbers.join(",")
    }

    /// Parses a mask in bytes, as systemd keeps it: the lowest CPU in the lowest bit of the first
    /// byte. `None` for CPUs above [`LARGEST_CPU`].
    pub fn from_byte_mask(bytes: &[u8]) -> Option<CpuSet> {
        let mut cpus = CpuSet::new();
        for (place, byte) in bytes.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                let cpu = u32::try_from(place).ok()?.checked_mul(8)? + bit;
                if cpu > LARGEST_CPU {
                    return None;
                }
                cpus.insert(cpu);
            }
        }
        Some(cpus)
    }

    /// The shortest mask in bytes, as systemd keeps it.
    pub fn to_byte_mask(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for cpu in self.iter() {
            let place = (cpu / 8) as usize;
            bytes.resize(place + 1, 0);
            bytes[place] |= 1 << (cpu % 8);
        }
        bytes
    }

    /// Parses the kernel's mask format: hexadecimal, in groups of 32 bits separated by commas, the
    /// lowest CPU in the lowest bit (cpuset(7), "Mask Format"). `None` for any other text, and for
    /// CPUs above [`LARGEST_CPU`].
    pub fn from_hex_mask(text: &str) -> Option<CpuSet> {
        let groups: Vec<&str> = text.split(',').collect();
        let is_whole = |group: &&str| group.len() == MASK_DIGITS;
        if groups[0].is_empty() || !groups[1..].iter().all(is_whole) {
            return None;
        }
        let mut cpus = CpuSet::new();
        let digits: Vec<char> = groups.concat().chars().rev().collect();
        for (place, digit) in digits.into_iter().enumerate() {
            let value = digit.to_digit(16)?;
            for bit in (0..4).filter(|bit| value >> bit & 1 == 1) {
                let cpu = u32::try_from(place).ok()?.checked_mul(4)? + bit;
                if cpu > LARGEST_CPU {
                    return None;
                }
                cpus.insert(cpu);
            }
        }
        Some(cpus)
    }

    fn last(&self) -> Option<u32> {
        let (place, word) = (self.high.len(), self.high.last().unwrap_or(&self.low));
        Some(u32::try_from(place).ok()? * WORD + word.checked_ilog2()?)
    }

    /// Upper-case hexadecimal without prefix or leading zeros, the lowest CPU in the lowest bit;
    /// `0` for the empty set.
    pub fn to_hex_mask(&self) -> String {
        let digits = self.last().map_or(1, |last| last / 4 + 1);
        let digit = |index: u32| {
            let value = (0..4).filter(|bit| self.contains(index * 4 + bit));
            char::from_digit(value.map(|bit| 1 << bit).sum(), 16).unwrap_or('0')
        };
        let mask: String = (0..digits).rev().map(digit).collect();
        mask.to_ascii_uppercase()
    }
}

/// The numbers of the bits that are set, ascending.
struct Bits(u64);

impl Iterator for Bits {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = self.0.trailing_zeros();
        // The lowest one goes.
        self.0 &= self.0.wrapping_sub(1);
        (bit < WORD).then_some(bit)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<T: IntoIterator<Item = u32>>(cpus: T) -> Self {
        let mut set = CpuSet::new();
        cpus.into_iter().for_each(|cpu| set.insert(cpu));
        set
    }
}

/// The union.
impl<'a> FromIterator<&'a CpuSet> for CpuSet {
    fn from_iter<T: IntoIterator<Item = &'a CpuSet>>(sets: T) -> Self {
        let mut union = CpuSet::new();
        sets.into_iter().for_each(|set| union.extend(set));
        union
    }
}

impl FromStr for CpuSet {
    type Err = BadCpuList;

    /// Parses a list. White space around the text is ignored; an empty text is the empty set.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        let mut cpus = CpuSet::new();
        if text.is_empty() {
            return Ok(cpus);
        }
        for part in text.split(',') {
            // Most parts of most lists are one number.
            if let Some(cpu) = number(part) {
                cpus.insert(cpu);
                continue;
            }
            let bad = || BadCpuList {
                part: part.to_owned(),
            };
            let (range, stride) = match part.split_once(':') {
                Some((range, stride)) => (range, Some(stride)),
                None => (part, None),
            };
            let (from, to) = match range.split_once('-') {
                Some((from, to)) => (number(from), number(to)),
                None => (number(range), number(range)),
            };
            let (from, to) = (from.ok_or_else(bad)?, to.ok_or_else(bad)?);
            let (used, group) = match stride.map(|stride| stride.split_once('/')) {
                None => (1, 1),
                Some(None) => return Err(bad()),
                Some(Some((used, group))) => (
                    number(used).ok_or_else(bad)?,
                    number(group).ok_or_else(bad)?,
                ),
            };
            if from > to || used == 0 || used > group || (stride.is_some() && !range.contains('-'))
            {
                return Err(bad());
            }
            match stride {
                None => cpus.insert_all(from, to),
                Some(_) => (from..=to)
                    .filter(|cpu| (cpu - from) % group < used)
                    .for_each(|cpu| cpus.insert(cpu)),
            }
        }
        Ok(cpus)
    }
}

/// A decimal number without a sign, at most [`LARGEST_CPU`].
fn number(text: &str) -> Option<u32> {
    if text.is_empty() || text.len() > MOST_DIGITS {
        return None;
    }
    let mut value = 0;
    for byte in text.bytes() {
        value = value * 10 + u32::from(byte.checked_sub(b'0').filter(|digit| *digit < 10)?);
    }
    (value <= LARGEST_CPU).then_some(value)
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(from) = cpus.next() {
            let mut to = from;
            while let Some(next) = cpus.next_if_eq(&(to + 1)) {
                to = next;
            }
            match to - from {
                0 => write!(f, "{separator}{from}")?,
                _ => write!(f, "{separator}{from}-{to}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// CPU sets in JSON as the text that the kernel and people read: `#[serde(with)]`.
pub mod as_text {
    use super::CpuSet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    /// Writes one.
    pub fn serialize<S: Serializer>(cpus: &CpuSet, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(cpus)
    }

    /// Reads one.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CpuSet, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// The same of a set that may not be there, whose text is empty then: `#[serde(with)]`.
pub mod as_text_or_empty {
    use super::CpuSet;
    use serde::{Deserializer, Serializer};

    /// Writes one.
    pub fn serialize<S: Serializer>(
        cpus: &Option<CpuSet>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match cpus {
            Some(cpus) => super::as_text::serialize(cpus, serializer),
            None => serializer.serialize_str(""),
        }
    }

    /// Reads one.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<CpuSet>, D::Error> {
        let cpus = super::as_text::deserialize(deserializer)?;
        Ok((!cpus.is_empty()).then_some(cpus))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Against sets of numbers, on both sides of a word's end.
    #[test]
    fn the_algebra_is_that_of_sets() {
        let lists = [
            "",
            "0",
            "63",
            "64",
            "0-127",
            "1,62-65,8191",
            "64-128",
            "8191",
        ];
        let sets = lists.map(|list| {
            let cpus: CpuSet = list.parse().unwrap();
            let numbers: BTreeSet<u32> = cpus.iter().collect();
            assert_eq!(cpus.to_string(), list);
            assert_eq!(numbers.iter().copied().collect::<CpuSet>(), cpus, "{list}");
            assert_eq!(cpus.len(), numbers.len(), "{list}");
            assert_eq!(cpus.is_empty(), numbers.is_empty(), "{list}");
            assert_eq!(cpus.first(), numbers.first().copied(), "{list}");
            assert_eq!(cpus.last(), numbers.last().copied(), "{list}");
            assert_eq!(format!("{cpus:?}"), format!("{numbers:?}"));
            for cpu in [0, 1, 62, 63, 64, 65, 127, 128, 8190, 8191, 8192, u32::MAX] {
                assert_eq!(cpus.contains(cpu), numbers.contains(&cpu), "{list}: {cpu}");
            }
            (cpus, numbers)
        });
        assert!([8192, u32::MAX].into_iter().collect::<CpuSet>().is_empty());
        let of = |numbers: BTreeSet<u32>| numbers.into_iter().collect::<CpuSet>();
        for (a, a_numbers) in &sets {
            for (b, b_numbers) in &sets {
                assert_eq!(a.intersection(b), of(a_numbers & b_numbers), "{a} {b}");
                assert_eq!(a.difference(b), of(a_numbers - b_numbers), "{a} {b}");
                assert_eq!(a.is_subset(b), a_numbers.is_subset(b_numbers), "{a} {b}");
                assert_eq!(
                    a.is_disjoint(b),
                    a_numbers.is_disjoint(b_numbers),
                    "{a} {b}"
                );
                assert_eq!(a.cmp(b), a_numbers.cmp(b_numbers), "{a} {b}");
                assert_eq!(a == b, a_numbers == b_numbers, "{a} {b}");
                let mut both = a.clone();
                both.extend(b);
                assert_eq!(both, of(a_numbers | b_numbers), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_mask_of_bytes_has_the_lowest_cpu_first() {
        for (list, mask) in [
            ("", &[][..]),
            ("0", &[1]),
            ("0-1,9", &[3, 2]),
            ("16", &[0, 0, 1]),
        ] {
            let cpus: CpuSet = list.parse().unwrap();
            assert_eq!(cpus.to_byte_mask(), mask, "{list}");
            assert_eq!(CpuSet::from_byte_mask(mask), Some(cpus), "{list}");
        }
        assert_eq!(CpuSet::from_byte_mask(&[0, 0]), Some(CpuSet::new()));
        let mut mask = vec![0; 1024];
        assert_eq!(CpuSet::from_byte_mask(&mask), Some(CpuSet::new()));
        mask.push(1);
        assert_eq!(CpuSet::from_byte_mask(&mask), None);
    }

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints() {
        for (text, cpus, printed) in [
            ("", &[][..], ""),
            ("0", &[0], "0"),
            ("4,12", &[4, 12], "4,12"),
            ("0-2,8-10\n", &[0, 1, 2, 8, 9, 10], "0-2,8-10"),
            ("3,1,2,1", &[1, 2, 3], "1-3"),
            ("0,1", &[0, 1], "0-1"),
            ("0-7:1/4", &[0, 4], "0,4"),
            ("0-7:2/4", &[0, 1, 4, 5], "0-1,4-5"),
            ("8191", &[8191], "8191"),
        ] {
            assert_eq!(set(text).iter().collect::<Vec<_>>(), cpus, "{text:?}");
            assert_eq!(set(text).to_string(), printed, "{text:?}");
        }
    }

    #[test]
    fn refuses_what_is_no_list() {
        for text in [
            ",",
            "1,",
            ",1",
            "1,,2",
            "a",
            "-1",
            "1-",
            "3-1",
            "8192",
            "99999999999",
            "+1",
            "1 ,2",
            "0-3:0/2",
            "0-3:3/2",
            "0-3:2",
            "1:1/1",
            "0x1",
            "٣",
        ] {
            assert!(text.parse::<CpuSet>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn masks_as_hexadecimal() {
        for (text, mask) in [
            ("", "0"),
            ("0", "1"),
            ("4,12", "1010"),
            ("0-7", "FF"),
            ("64", "10000000000000000"),
        ] {
            assert_eq!(set(text).to_hex_mask(), mask, "{text:?}");
        }
    }

    #[test]
    fn masks_of_the_kernel() {
        for (mask, text) in [
            ("0", Some("")),
            ("f", Some("0-3")),
            ("10F", Some("0-3,8")),
            ("00000003,00000000", Some("32-33")),
            ("1,00000000,80000001", Some("0,31,64")),
            ("", None),
            (",00000001", None),
            ("1,0001", None),
            ("0xf", None),
            ("(null)", None),
            ("0-3", None),
        ] {
            assert_eq!(CpuSet::from_hex_mask(mask), text.map(set), "{mask}");
        }
        let beyond = format!("1,{}", ["00000000"; 256].join(","));
        assert_eq!(CpuSet::from_hex_mask(&beyond), None);
        assert_eq!(CpuSet::from_hex_mask(&beyond[2..]), Some(set("")));
    }

    #[test]
    fn what_kernels_put_around_a_list() {
        for (text, said) in [
            ("0-3\n", "0-3"),
            ("0-3\0", "0-3"),
            ("0-3\n\0", "0-3"),
            ("0-3\0rest\n", "0-3"),
            ("\n", ""),
            ("\0", ""),
            ("(null)\n", ""),
        ] {
            assert_eq!(of_kernel(text), said, "{text:?}");
        }
    }

    #[test]
    fn set_algebra() {
        let (a, b) = (set("0-3"), set("2-5"));
        assert_eq!(a.intersection(&b), set("2-3"));
        assert_eq!(a.difference(&b), set("0-1"));
        assert!(set("2").is_subset(&a) && !b.is_subset(&a));
    }
}
