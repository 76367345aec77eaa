//! Adds up records. Pure.

use std::collections::BTreeMap;

use super::{Exactness, Record};

/// What records are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The owner's name, or its id if it has no name.
    Name,
    /// The owner's pool.
    Pool,
    /// The day on which it ended, in UTC.
    Day,
}

/// The sum of a group of records. Times are in seconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sum {
    /// The group: a name, a pool or a day.
    pub of: String,
    /// The number of owners that ended.
    pub owners: usize,
    /// How many of them asked for nothing, and were in the default pool.
    pub by_default: usize,
    /// The CPU time that they owned: their CPUs' time from each owner's start to its end.
    pub owned: f64,
    /// The CPU time that they used.
    pub used: f64,
    /// Its part in user mode.
    pub user: f64,
    /// Its part in kernel mode.
    pub system: f64,
    /// The CPU time that others used on their CPUs while these were watched; `None` if they never
    /// were.
    pub noise: Option<f64>,
    /// How many owners have an exact CPU time, or the time of all processes that were waited for.
    pub exact: usize,
    /// How many owners have only the CPU time of their last sample.
    pub sampled: usize,
    /// How many owners have no known CPU time.
    pub unknown: usize,
}

/// Adds up the records of each group, in the order of names, pools or days. `since`, in seconds
/// since the epoch, leaves out owners that ended before.
pub fn sum(records: &[Record], since: Option<i64>, by: By) -> Vec<Sum> {
    let mut sums: BTreeMap<String, Sum> = BTreeMap::new();
    let counts = |record: &&Record| since.is_none_or(|since| record.at() >= since);
    for record in records.iter().filter(counts) {
        let of = match by {
            By::Name => record.name.as_ref().unwrap_or(&record.id).clone(),
            By::Pool => record.pool.clone(),
            By::Day => day(record),
        };
        sums.entry(of).or_default().add(record);
    }
    let named = sums.into_iter().map(|(of, sum)| Sum { of, ..sum });
    named.collect()
}

/// The day on which a record counts: `2026-03-01`.
fn day(record: &Record) -> String {
    let known = record.end.as_ref().or(record.read.as_ref());
    let text = known.unwrap_or(&record.start);
    text.split('T').next().unwrap_or_default().to_owned()
}

impl Sum {
    fn add(&mut self, record: &Record) {
        self.owners += 1;
        self.by_default += usize::from(record.by_default);
        self.owned += record.owned_seconds();
        self.used += record.cpu_seconds.unwrap_or_default();
        self.user += record.user_seconds.unwrap_or_default();
        self.system += record.system_seconds.unwrap_or_default();
        if let Some(noise) = record.noise_seconds {
            *self.noise.get_or_insert(0.0) += noise;
        }
        match record.exactness {
            Exactness::Exact | Exactness::Waited => self.exact += 1,
            Exactness::Sampled => self.sampled += 1,
            Exactness::Unknown => self.unknown += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(text: &str) -> Record {
        let [id, pool, start, end, used, noise, exactness] =
            text.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let number = |text: &str| text.parse::<f64>().ok();
        let time = |text: &str| (text != "-").then(|| format!("2026-03-0{text}:00:00Z"));
        Record {
            version: 1,
            id: id.into(),
            name: (id != "x").then(|| id.to_uppercase()),
            kind: crate::claims::OwnerKind::Container,
            pool: pool.into(),
            by_default: pool == "common",
            lists: vec!["2-3".into()],
            cpus: 2,
            start: time(start).unwrap(),
            end: time(end),
            cpu_seconds: number(used),
            user_seconds: number(used),
            system_seconds: number("-"),
            noise_seconds: number(noise),
            watched_seconds: number(noise),
            exactness: serde_json::from_value(exactness.into()).unwrap(),
            read: None,
            owner: id.into(),
        }
    }

    #[test]
    fn records_are_put_together() {
        let records = [
            "a dp 1T10 1T11 100 - exact",
            "a dp 1T10 2T10 7 0.5 sampled",
            "x cp 1T09 2T09 3 0.25 waited",
            "b dp 1T08 - - - unknown",
        ]
        .map(record);
        let of = |since, by| {
            let sums = sum(&records, since, by).into_iter();
            let short = sums.map(|sum| (sum.of, sum.owners, sum.used, sum.noise));
            short.collect::<Vec<_>>()
        };
        let row = |of: &str, owners, used, noise| (of.to_owned(), owners, used, noise);
        assert_eq!(
            of(None, By::Name),
            [
                row("A", 2, 107.0, Some(0.5)),
                row("B", 1, 0.0, None),
                row("x", 1, 3.0, Some(0.25))
            ]
        );
        assert_eq!(
            of(None, By::Pool),
            [
                row("cp", 1, 3.0, Some(0.25)),
                row("dp", 3, 107.0, Some(0.5))
            ]
        );
        let last_day = super::super::seconds_of("2026-03-02T00:00:00Z");
        assert_eq!(
            of(last_day, By::Day),
            [row("2026-03-02", 2, 10.0, Some(0.75))]
        );
        let all = sum(&records, None, By::Pool);
        let dp = &all[1];
        assert_eq!((dp.exact, dp.sampled, dp.unknown), (1, 1, 1));
        assert_eq!(dp.owned, 2.0 * 3600.0 * 25.0);
    }
}
