//! Counts that may not grow unseen: what was recorded, and 5 % more.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

/// How much more than what was recorded is let pass.
const SPARE: f64 = 1.05;

/// Instructions and system calls by what makes them.
pub(crate) type Counts = BTreeMap<String, (u64, u64)>;

/// Compares counts with those of a file, or writes it.
///
/// Programs that are not ours are shown only: another compiler, or another C library, changes them.
pub(crate) fn compare(counts: &Counts, file: &Path, updates: bool) -> ExitCode {
    if updates {
        let text = serde_json::to_string_pretty(counts).expect("write JSON");
        std::fs::write(file, text + "\n").expect("write the budget");
    }
    let text = std::fs::read_to_string(file).expect("read the budget");
    let budget: Counts = serde_json::from_str(&text).expect("a budget in JSON");
    let mut is_over = false;
    println!("{:<28} {:>22} {:>20}", "", "instructions", "system calls");
    for (name, now) in counts {
        let most = budget.get(name);
        let judged = name.contains(": ");
        let told = |now: u64, most: Option<u64>| match most {
            Some(most) => format!("{now} of {most}"),
            None => now.to_string(),
        };
        let instructions = told(now.0, most.map(|most| most.0));
        let calls = told(now.1, most.map(|most| most.1));
        let over = |now: u64, most: u64| now as f64 > most as f64 * SPARE;
        let too_much = most.is_some_and(|most| over(now.0, most.0) || over(now.1, most.1));
        let mark = if judged && (too_much || most.is_none()) {
            "  OVER"
        } else {
            ""
        };
        is_over |= !mark.is_empty();
        println!("{name:<28} {instructions:>22} {calls:>20}{mark}");
    }
    if is_over {
        eprintln!(
            "over what {} allows by more than 5 %: make it cheaper, or, where it is worth that, record it by \
             `make budget UPDATE=1`",
            file.display()
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
