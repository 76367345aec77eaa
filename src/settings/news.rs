//! What a command has logged already: it says each thing once. One that goes on for ever says it
//! again where a round came without it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The messages of the last round and of this one; none where there are no rounds, as in a hook.
static SAID: Mutex<Option<SaidMessages>> = Mutex::new(None);

/// The messages that wait for the end of what is drawn on the terminal; `None` where nothing is.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// From here on messages are kept, for the terminal is somebody's screen.
pub fn hold() {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.get_or_insert_default();
}

/// The last message that is kept, and how many are.
pub fn held() -> Option<(String, usize)> {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let held = held.as_ref()?;
    Some((held.last()?.clone(), held.len()))
}

/// The messages that were kept: from here on they are logged again.
pub fn let_go() -> Vec<String> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.take().unwrap_or_default()
}

/// Keeps a message, if messages are kept.
pub fn is_held(message: &str) -> bool {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(held) = held.as_mut() else {
        return false;
    };
    if held.len() == MOST_HELD {
        held.remove(0);
    }
    held.push(message.to_owned());
    true
}

/// So many messages are kept, the last ones.
const MOST_HELD: usize = 100;

#[derive(Default)]
struct SaidMessages {
    before: BTreeSet<String>,
    now: BTreeSet<String>,
}

impl SaidMessages {
    fn next(self) -> SaidMessages {
        SaidMessages {
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
pub fn begin_round() {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    *said = Some(said.take().unwrap_or_default().next());
}

/// Is a message to be logged?
pub fn is_news(message: &str) -> bool {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    said.as_mut().is_none_or(|said| said.is_news(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_news_until_it_was_said_and_again_after_a_round_without_it() {
        let mut said = SaidMessages::default();
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
