//! What an engine sends to the NRI plugin: no more is kept than has come, bytes mean the same
//! however they are split, and each request has an answer.
#![no_main]

use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pinfold_node::nri::plugin::Plugin;
use pinfold_node::nri::ttrpc::{Kind, Request};
use pinfold_node::nri::wire::{Arrived, Wire};
use pinfold_node::nri::{Options, Status};
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    let (mut whole, mut singly) = (Wire::default(), Wire::default());
    let arrived = whole.add(bytes);
    let pieces = bytes.chunks(1).map(|byte| singly.add(byte));
    let pieces: Result<Vec<Vec<Arrived>>, _> = pieces.collect();
    assert_eq!(arrived.is_ok(), pieces.is_ok());
    let (Ok(arrived), Ok(pieces)) = (arrived, pieces) else {
        return;
    };
    assert_eq!(arrived, pieces.concat());
    assert_eq!(whole.pending(), singly.pending());
    assert!(whole.pending() <= bytes.len());
    let options = Options::of_program("/usr/bin/pinfold", PathBuf::from("/nonexistent/pinfold"));
    let plugin = Plugin::new(&options, Arc::new(Status::default()));
    for message in arrived {
        let Arrived::ToPlugin(message) = message else {
            continue;
        };
        if message.kind != Kind::Request {
            continue;
        }
        if let Ok(request) = Request::decode(message.content.as_slice()) {
            let answer = plugin.answer(&request);
            assert!(
                answer
                    .response
                    .failure()
                    .is_none_or(|status| !status.message.is_empty())
            );
        }
    }
});
