//! A CPU list that is asked for by its CPUs, and what it is called as a device.

use std::fmt;

use super::pool_name;
use crate::cpulist::CpuSet;
use crate::refusal::Refusal;
use crate::text::Shown;

/// The most characters of a device's id (Kubernetes: `deviceplugin/v1beta1/api.proto`,
/// `Device.ID`).
pub const LONGEST_ID: usize = 63;

/// One CPU list of one pool. Its text is `POOL:LIST`, as `hook --list` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactList {
    /// The pool's name, as [`super::is_pool_name`] allows.
    pub pool: String,
    /// The list's CPUs; never empty.
    pub cpus: CpuSet,
}

impl fmt::Display for ExactList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pool, self.cpus)
    }
}

impl ExactList {
    /// Parses `POOL:LIST`, the list in the kernel's format: `dataplane:4,12`.
    ///
    /// # Errors
    /// It has another form.
    pub fn parse(text: &str) -> Result<ExactList, Refusal> {
        let bad = || {
            Refusal::usage(
                format!("--list is {}", Shown(text)),
                "it must be a pool and one of its CPU lists: dataplane:4,12",
            )
        };
        let (pool, list) = text.split_once(':').ok_or_else(bad)?;
        let pool = pool_name("--list", pool)
            .map_err(|refusal| Refusal::usage(refusal.what, refusal.remedy))?;
        let cpus: CpuSet = list.parse().map_err(|_| bad())?;
        match cpus.is_empty() {
            true => Err(bad()),
            false => Ok(ExactList { pool, cpus }),
        }
    }

    /// Its id among the devices of its pool: the list in the kernel's format, with `_` for each
    /// comma, which names of devices cannot hold: `4_12`.
    ///
    /// # Errors
    /// It has more than [`LONGEST_ID`] characters.
    pub fn device_id(&self) -> Result<String, Refusal> {
        let id = self.cpus.to_string().replace(',', "_");
        match id.len() {
            0..=LONGEST_ID => Ok(id),
            length => Err(Refusal::new(
                format!(
                    "the CPU list {} of pool {} is no device: its id would have {length} \
                     characters, and Kubernetes takes {LONGEST_ID}",
                    self.cpus, self.pool
                ),
                "make the pool's lists of fewer CPUs, or of such as follow each other",
            )),
        }
    }

    /// Its name as a CDI device, `POOL.ID`: `dataplane.4_12`. It begins and ends with a letter or
    /// digit, as CDI wants it (CDI: SPEC.md, "Fully Qualified Device Name").
    ///
    /// # Errors
    /// As [`ExactList::device_id`].
    pub fn device_name(&self) -> Result<String, Refusal> {
        Ok(format!("{}.{}", self.pool, self.device_id()?))
    }

    /// The list of a pool that has this id; `None` if no list has it.
    pub fn of_device_id(pool: &str, id: &str) -> Option<ExactList> {
        let is_of_id = |byte: u8| byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        if id.len() > LONGEST_ID || !id.bytes().all(is_of_id) {
            return None;
        }
        let exact = ExactList {
            pool: pool_name("--list", pool).ok()?,
            cpus: id.replace('_', ",").parse().ok()?,
        };
        // A list has one id alone: `4-5`, never `4_5` or `04-5`.
        let is_its = !id.is_empty() && exact.device_id().is_ok_and(|own| own == id);
        is_its.then_some(exact)
    }

    /// The list whose CDI device has this name, without its kind; `None` if no list's has it.
    pub fn of_device_name(name: &str) -> Option<ExactList> {
        let (pool, id) = name.split_once('.')?;
        ExactList::of_device_id(pool, id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exact(pool: &str, cpus: &str) -> ExactList {
        ExactList {
            pool: pool.to_owned(),
            cpus: cpus.parse().unwrap(),
        }
    }

    #[test]
    fn pool_and_list() {
        for (text, expected) in [
            ("dataplane:4,12", Some(exact("dataplane", "4,12"))),
            ("dp:8-10,0-2", Some(exact("dp", "0-2,8-10"))),
            ("dp:0-3:1/2", Some(exact("dp", "0,2"))),
            ("dp", None),
            ("dp:", None),
            ("dp:4,", None),
            ("dp:4_12", None),
            ("dp:-1", None),
            ("dp:4\n", Some(exact("dp", "4"))),
            (":4", None),
            ("none:4", None),
            ("../dp:4", None),
            ("dp:99999999", None),
        ] {
            let parsed = ExactList::parse(text);
            assert_eq!(parsed.clone().ok(), expected, "{text}");
            if let Err(refusal) = parsed {
                assert!(refusal.is_usage, "{text}");
            }
        }
        assert_eq!(exact("dp", "8-10,0-2").to_string(), "dp:0-2,8-10");
    }

    #[test]
    fn names_of_devices() {
        for (pool, cpus, name) in [
            ("dataplane", "4,12", "dataplane.4_12"),
            ("dp", "0-2,8-10", "dp.0-2_8-10"),
            ("a-b_c", "7", "a-b_c.7"),
        ] {
            let exact = exact(pool, cpus);
            assert_eq!(exact.device_name().unwrap(), name);
            assert_eq!(ExactList::of_device_name(name), Some(exact));
        }
        for odd in [
            "", ".", "dp", "dp.", ".4", "dp.4,12", "dp.4_5", "dp.12_4", "dp.04", "dp._4", "dp.4_",
            "dp.4.5", "dp.4:5", "none.4", "dp.4 ", "dp.+4",
        ] {
            assert_eq!(ExactList::of_device_name(odd), None, "{odd}");
        }
    }

    #[test]
    fn an_id_is_no_longer_than_the_kubelet_takes() {
        // Of single digits, then of three characters with their `_`.
        let odd = |count: u32| (0..count).map(|number| (2 * number).to_string());
        let list = |count| exact("dp", &odd(count).collect::<Vec<_>>().join(","));
        let id = list(23).device_id().unwrap();
        assert_eq!(id.len(), LONGEST_ID);
        assert_eq!(ExactList::of_device_id("dp", &id), Some(list(23)));
        let refusal = list(24).device_id().unwrap_err();
        assert!(refusal.what.contains("66 characters"), "{refusal:?}");
        let long = list(24).cpus.to_string().replace(',', "_");
        assert_eq!(ExactList::of_device_id("dp", &long), None);
    }

    proptest! {
        #[test]
        fn a_list_has_one_name_and_a_name_one_list(
            pool in "[A-Za-z0-9][A-Za-z0-9_-]{0,62}",
            cpus in prop::collection::btree_set(0u32..1024, 1..20),
        ) {
            prop_assume!(super::super::is_pool_name(&pool));
            let list = ExactList { pool, cpus: cpus.into_iter().collect() };
            prop_assert_eq!(ExactList::parse(&list.to_string()), Ok(list.clone()));
            if let Ok(name) = list.device_name() {
                prop_assert_eq!(ExactList::of_device_name(&name), Some(list));
            }
        }

        #[test]
        fn what_is_read_is_what_would_be_written(name in "[a-z.]{1,3}[0-9_.:-]{1,12}") {
            if let Some(list) = ExactList::of_device_name(&name) {
                prop_assert_eq!(list.device_name(), Ok(name));
            }
        }
    }
}
