//! Text of always the same length with its check sum: it is written over what was there in one
//! write, so that a writer that dies leaves nothing to clean up, and what was torn is told.

/// How long the digits of the check sum are, with the blank behind them.
const SUM: usize = 9;

/// A text that is so many bytes long with its check sum, and blanks behind it; `None` where it does
/// not fit.
pub fn summed(text: &str, length: usize) -> Option<String> {
    let room = length.checked_sub(SUM + 1)?;
    if text.len() > room {
        return None;
    }
    let rest = format!("{text:<room$}\n");
    Some(format!("{:08x} {rest}", crc32fast::hash(rest.as_bytes())))
}

/// What is in such a text; `None` where it is damaged.
pub fn unsummed(text: &str) -> Option<&str> {
    let (sum, rest) = text.split_at_checked(SUM)?;
    let is_whole = format!("{:08x} ", crc32fast::hash(rest.as_bytes())) == sum;
    is_whole.then_some(rest.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_damaged_is_told() {
        let whole = summed("{\"a\":1}", 64).unwrap();
        assert_eq!((whole.len(), unsummed(&whole)), (64, Some("{\"a\":1}")));
        assert!(summed(&"x".repeat(55), 64).is_none());
        for damaged in [&whole[..63], "", "00000000", &whole.replace('1', "2")] {
            assert_eq!(unsummed(damaged), None, "{damaged}");
        }
    }
}
