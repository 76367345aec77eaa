//! The messages that a command has logged: each is logged once. A command that runs on logs a
//! message again after a round without it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// The messages of the last round and of this one; `None` without rounds, as in a hook.
static SAID: Mutex<Option<SaidMessages>> = Mutex::new(None);

/// Messages held back until the terminal is free again; `None` while nothing is drawn on it.
static HELD: Mutex<Option<Vec<String>>> = Mutex::new(None);

/// Holds messages back from now on, because the terminal shows a screen.
pub fn hold() {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.get_or_insert_default();
}

/// The last message held, and how many are.
pub fn held() -> Option<(String, usize)> {
    let held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    let held = held.as_ref()?;
    Some((held.last()?.clone(), held.len()))
}

/// Stops holding messages back; returns those held.
pub fn let_go() -> Vec<String> {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    held.take().unwrap_or_default()
}

/// Holds a message back if messages are being held; returns whether it did.
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

/// How many messages are held at most; older ones are dropped.
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

/// Begins a round: what the round before said is no news in it.
pub fn begin_round() {
    let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
    *said = Some(said.take().unwrap_or_default().next());
}

/// Should this message be logged?
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
