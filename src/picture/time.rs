//! Divides time into periods of one length, which begin at round times.

use std::time::{Duration, UNIX_EPOCH};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// The usual lengths of periods, in seconds.
const LENGTHS: [i64; 12] = [
    MINUTE,
    5 * MINUTE,
    10 * MINUTE,
    30 * MINUTE,
    HOUR,
    2 * HOUR,
    6 * HOUR,
    12 * HOUR,
    DAY,
    2 * DAY,
    7 * DAY,
    28 * DAY,
];

/// The most periods side by side.
const MOST: i64 = 60;

/// Consecutive periods of one length. Times are in seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Periods {
    first: i64,
    /// How long each is, in seconds.
    pub(super) length: i64,
    /// How many there are.
    pub(super) count: i64,
}

impl Periods {
    /// The shortest periods of which at most [`MOST`] cover this time.
    pub(super) fn of(from: i64, to: i64) -> Periods {
        let longer = (1..32).map(|power| (28 * DAY) << power);
        let periods = LENGTHS.into_iter().chain(longer).map(|length| {
            let first = from.div_euclid(length);
            let count = to.max(from).div_euclid(length) - first + 1;
            Periods {
                first,
                length,
                count,
            }
        });
        let mut fitting = periods.filter(|periods| periods.count <= MOST);
        fitting.next().unwrap_or(Periods {
            first: 0,
            length: i64::MAX,
            count: 1,
        })
    }

    /// When a period begins.
    pub(super) fn start(&self, index: i64) -> i64 {
        (self.first + index).saturating_mul(self.length)
    }

    /// The index of the period in which a time is. It may be outside of `0..count`.
    pub(super) fn at(&self, time: i64) -> i64 {
        time.div_euclid(self.length) - self.first
    }

    /// Divides an amount evenly over a time, and adds its parts to those of the periods.
    pub(super) fn spread(&self, (from, to): (i64, i64), amount: f64, into: &mut [f64]) {
        let whole = (to - from).max(1) as f64;
        let (first, last) = (self.at(from), self.at(to.max(from)));
        for index in first.max(0)..=last.min(self.count - 1) {
            let (begin, end) = (self.start(index), self.start(index + 1));
            let part = (to.min(end) - from.max(begin)).max(0) as f64 / whole;
            let part = if first == last { 1.0 } else { part };
            if let Some(sum) = usize::try_from(index).ok().and_then(|at| into.get_mut(at)) {
                *sum += amount * part;
            }
        }
    }

    /// The length in words.
    pub(super) fn each(&self) -> String {
        let many = |count: i64, word: &str| match count {
            1 => format!("each {word}"),
            count => format!("each {count} {word}s"),
        };
        match self.length {
            length if length < HOUR => many(length / MINUTE, "minute"),
            length if length < DAY => many(length / HOUR, "hour"),
            length => many(length / DAY, "day"),
        }
    }

    /// The periods below which a name is written, and the names. A period is `period` pixels wide,
    /// and a name `name`.
    pub(super) fn named(&self, period: i32, name: i32) -> Vec<(i64, String)> {
        let steps = [1, 2, 3, 4, 6, 12, 24, 48, 96];
        let fits = |step: &i64| *step * i64::from(period) >= i64::from(name);
        let step = steps.into_iter().find(fits).unwrap_or(MOST);
        let all = (0..self.count).filter(|index| (self.first + index) % step == 0);
        all.map(|index| (index, self.name(self.start(index))))
            .collect()
    }

    /// The name of a period: the time of day, or at midnight the date.
    fn name(&self, time: i64) -> String {
        let text = shown(time);
        match time % DAY {
            0 => text[5..10].to_owned(),
            _ => text[11..16].to_owned(),
        }
    }
}

/// `2026-03-01 12:00 UTC`.
pub(super) fn minute(time: i64) -> String {
    let text = shown(time);
    format!("{} {} UTC", &text[..10], &text[11..16])
}

/// A time in the form of RFC 3339, from 1970 to 9999: humantime knows no other years.
fn shown(time: i64) -> String {
    let since = u64::try_from(time).unwrap_or_default().min(253_402_300_799);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(since)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_are_as_long_as_they_must_be() {
        for (from, to, length, count) in [
            (0, 0, MINUTE, 1),
            (30, 59 * MINUTE, MINUTE, 60),
            (0, 60 * MINUTE, 5 * MINUTE, 13),
            (0, DAY, 30 * MINUTE, 49),
            (5, 7 * DAY, 6 * HOUR, 29),
            (0, 365 * DAY, 7 * DAY, 53),
            (0, 50_000 * DAY, 896 * DAY, 56),
            (7, 3, MINUTE, 1),
        ] {
            let periods = Periods::of(from, to);
            assert_eq!((periods.length, periods.count), (length, count), "{to}");
        }
        assert!(Periods::of(0, i64::MAX).count <= MOST);
    }

    #[test]
    fn an_amount_is_divided_by_time() {
        let periods = Periods::of(0, 10 * MINUTE);
        let spread = |span| {
            let mut sums = vec![0.0; 11];
            periods.spread(span, 6.0, &mut sums);
            sums
        };
        let mut sums = spread((30, 120));
        assert_eq!(sums[..4], [2.0, 4.0, 0.0, 0.0]);
        // What is over at once, what lasts to the end, and what began before.
        sums = spread((60, 60));
        assert_eq!(sums[..3], [0.0, 6.0, 0.0]);
        sums = spread((600, 610));
        assert_eq!(sums[9..], [0.0, 6.0]);
        sums = spread((-60, 120));
        assert_eq!(sums[..3], [2.0, 2.0, 0.0]);
        sums = spread((900, 960));
        assert_eq!(sums, vec![0.0; 11]);
    }

    #[test]
    fn periods_are_named_as_clocks_name_them() {
        let periods = Periods::of(20 * HOUR, 2 * DAY);
        assert_eq!(periods.each(), "each 30 minutes");
        let named = periods.named(16, 60);
        let names: Vec<&str> = named.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names[..4], ["20:00", "22:00", "01-02", "02:00"]);
        assert_eq!(named[2].0, 8);
        assert_eq!(minute(DAY + 90), "1970-01-02 00:01 UTC");
    }
}
