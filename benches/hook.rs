//! Instructions of a whole hook whose container asks for nothing, by callgrind: `make
//! bench-counts`. What one takes that pins is `make budget`'s to count, which has a cgroup and a
//! process for it.
#![allow(missing_docs)] // What the macros make has none.

use gungraun::prelude::*;
use gungraun::{Command, Stdin};

#[binary_benchmark]
#[bench::create_runtime("createRuntime")]
#[bench::poststop("poststop")]
fn hook(stage: &str) -> Command {
    let state = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/without.json");
    Command::new(env!("CARGO_BIN_EXE_pinfold"))
        .args(["hook", stage])
        .stdin(Stdin::File(state.into()))
        .build()
}

binary_benchmark_group!(name = whole, benchmarks = hook);

main!(binary_benchmark_groups = whole);
