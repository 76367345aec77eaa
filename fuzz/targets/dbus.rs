//! What a peer answers over D-Bus: no message is longer than was allowed, and each value is one of
//! what was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pinfold::dbus::Message;

const MOST: usize = 4096;

fuzz_target!(|bytes: &[u8]| {
    let Ok(Some(length)) = Message::length(bytes, MOST) else {
        return;
    };
    assert!(length <= MOST);
    let Some(message) = bytes
        .get(..length)
        .and_then(|whole| Message::parse(whole).ok())
    else {
        return;
    };
    if let Ok(text) = message.answer.text() {
        assert!(text.len() < length);
    }
    if let Ok(bytes) = message.answer.bytes() {
        assert!(bytes.len() < length);
    }
    let _ = message.answer.boolean();
});
