//! What a command has logged already: it says each thing once. One that goes on for ever says it
//! again where a round came without it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The messages of the last round and of this one; none where there are no rounds, as in a hook.
static SAID: Mutex<Option<Said>> = Mutex::new(None);

#[derive(Default)]
struct Said {
    before: BTreeSet<String>,
    now: BTreeSet<String>,
}

impl Said {
    fn next(self) -> Said {
        Said {
            before: self.now,
            now: BTreeSet::new(),
        }
    }

    fn is_news(&mut self, message: &str) -> bool {
        let is_first = self.now.insert(message.to_owned());
        is_first && !self.before.contains(message)
    }
}

/// From here on what was said in the round before is no news.
pub(super) fn begin_round() {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    *said = Some(said.take().unwrap_or_default().next());
}

/// Is a message to be logged?
pub(super) fn is_news(message: &str) -> bool {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.as_mut().is_none_or(|said| said.is_news(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_news_until_it_was_said_and_again_after_a_round_without_it() {
        let mut said = Said::default();
        for (round, expected) in [("a", "a"), ("a b", "b"), ("b b", ""), ("a", "a"), ("", "")] {
            said = said.next();
            let news: Vec<&str> = round
                .split_whitespace()
                .filter(|message| said.is_news(message))
                .collect();
            assert_eq!(news.join(" "), expected, "{round}");
        }
    }
}
