//! The file `tasks`: the pids that own a CPU list.

use anyhow::{Result, bail};

use crate::refusal::Refusal;
use crate::text::Shown;

/// The most bytes of a `tasks` that are read: all pids of the largest `pid_max`
/// (proc_sys_kernel(5)) fit.
pub(super) const MOST_BYTES: u64 = 32 << 20;

/// Parses pids joined by commas. Empty parts, and white space around a pid, are ignored, as KCM
/// does.
///
/// # Errors
/// Something else is in it.
pub(super) fn parse(text: &str) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        match part.parse() {
            Ok(pid) if pid > 0 && part.bytes().all(|b| b.is_ascii_digit()) => pids.push(pid),
            _ => bail!(Refusal::new(
                format!("{} is not a pid", Shown(part)),
                "correct the file by hand: it has to hold pids joined by commas, or be empty"
            )),
        }
    }
    Ok(pids)
}

/// Prints pids as KCM does: joined by commas, without a newline.
pub(super) fn print(pids: &[i32]) -> String {
    let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
    pids.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kcm_tolerates() {
        for (text, pids) in [
            ("", &[][..]),
            ("\n", &[]),
            ("1", &[1]),
            ("1,2\n", &[1, 2]),
            ("1,,2", &[1, 2]),
            (" 1 , 2 ", &[1, 2]),
            ("2,1,2", &[2, 1, 2]),
        ] {
            assert_eq!(parse(text).unwrap(), pids, "{text:?}");
        }
    }

    #[test]
    fn refuses_the_rest() {
        for text in [
            "x",
            "1;2",
            "1 2",
            "-1",
            "+1",
            "0",
            "1,x",
            "4294967296",
            "1\0",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn prints_as_kcm_does() {
        assert_eq!(print(&[]), "");
        assert_eq!(print(&[2000, 7]), "2000,7");
    }
}
