//! Instructions of what a start is made of, by callgrind: `make bench-counts`. A whole
//! hook is in `hook.rs`.
#![allow(clippy::unwrap_used)] // A benchmark that cannot be set up has to fail.
#![allow(missing_docs)] // What the macros make has none.

use std::collections::BTreeMap;
use std::hint::black_box;

use gungraun::prelude::*;
use pinfold::choose::{Offer, Reach, Situation, Want, choose};
use pinfold::cpulist::CpuSet;
use pinfold::oci::State;
use pinfold::pools::Kind;
use pinfold::request::{self, Request, Size};
use pinfold::topology::Levels;

const STATE: &str = include_str!("state.json");

#[library_benchmark]
#[bench::one("17")]
#[bench::core("4,12")]
#[bench::machine("0-4095")]
#[bench::every_other("0-4095:1/2")]
fn parse_list(list: &str) -> CpuSet {
    black_box(list).parse().unwrap()
}

#[library_benchmark]
fn read_state() -> State {
    State::read(black_box(STATE).as_bytes()).unwrap()
}

fn annotations() -> BTreeMap<String, String> {
    let state = State::read(STATE.as_bytes()).unwrap();
    state.annotations(request::is_ours).unwrap()
}

#[library_benchmark]
#[bench::annotated(setup = annotations)]
fn parse_request(annotations: BTreeMap<String, String>) -> Option<Request> {
    request::from_annotations(black_box(&annotations)).unwrap()
}

/// So many lists of a CPU each, the first half of them owned.
fn lists(count: u32) -> Vec<CpuSet> {
    (0..count).map(|cpu| CpuSet::from_iter([cpu])).collect()
}

#[library_benchmark]
#[bench::of_64(args = (64), setup = lists)]
#[bench::of_512(args = (512), setup = lists)]
fn choose_one(lists: Vec<CpuSet>) -> Vec<usize> {
    let owned = lists.len() / 2;
    let offers = lists.iter().enumerate();
    let offers: Vec<Offer<'_>> = offers
        .map(|(place, cpus)| Offer {
            cpus,
            owners: usize::from(place < owned),
        })
        .collect();
    let all: CpuSet = lists.iter().flat_map(CpuSet::iter).collect();
    let reach = Reach {
        online: all.clone(),
        allowed: all,
    };
    let situation = Situation {
        kind: Kind::Exclusive,
        offers: &offers,
        reach: &reach,
        former: &[],
    };
    let want = Want::from(Size::Lists(1));
    choose(black_box(&situation), &want, &Levels::default()).unwrap()
}

library_benchmark_group!(
    name = parts,
    benchmarks = [parse_list, read_state, parse_request, choose_one]
);

main!(library_benchmark_groups = parts);
