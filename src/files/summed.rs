//! Text of a fixed length with its check sum. One write replaces the former text, so that a writer
//! that dies leaves nothing to clean up, and a torn text is noticed.

/// The length of the check sum's digits and the blank after them.
const SUM: usize = 9;

/// The text with its check sum, padded with blanks to `length` bytes; `None` if it does not fit.
pub fn summed(text: &str, length: usize) -> Option<String> {
    let room = length.checked_sub(SUM + 1)?;
    if text.len() > room {
        return None;
    }
    let rest = format!("{text:<room$}\n");
    Some(format!("{:08x} {rest}", crc32fast::hash(rest.as_bytes())))
}

/// The text without its check sum; `None` if it is damaged.
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
