//! One connection to an engine, from the registration to its end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pinfold::text::Shown;
use prost::Message as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::api::{RUNTIME_SERVICE, RegisterPluginRequest};
use super::frames::{PLUGIN, RUNTIME};
use super::plugin::{Answer, Plugin, Then};
use super::ttrpc::{Code, Kind, Message, Request, Response};
use super::wire::{Arrived, Wire, sent};

/// The name by which an engine's `required_plugins` means us.
pub const NAME: &str = "pinfold";
/// Plugins are called in the order of their indices, `00` to `99`: what others add is seen.
pub const INDEX: &str = "90";

/// The longest that an answer that needs a disk may take. The engine asks one plugin after another,
/// and under a lock.
pub const ANSWERED_WITHIN: Duration = Duration::from_millis(200);
/// The longest that a registration may take; engines give it as much.
pub const REGISTERED_WITHIN: Duration = Duration::from_secs(5);
/// The longest that the rest of a message may take.
pub const REST_WITHIN: Duration = Duration::from_secs(10);
/// The longest that the engine may take to read an answer; it waits no longer for one.
pub const WRITTEN_WITHIN: Duration = Duration::from_secs(2);

/// How much is read at once, in bytes.
const READ: usize = 64 << 10;
/// The stream of our registration. We make no other call.
const REGISTRATION: u32 = 1;

/// Registers, and answers until the engine closes the connection.
///
/// # Errors
/// The engine does not want us, sends what cannot be understood, or does not read.
pub async fn serve(mut stream: UnixStream, plugin: Arc<Plugin>) -> Result<()> {
    write(&mut stream, RUNTIME, &registration()).await?;
    let (mut wire, mut buffer) = (Wire::default(), vec![0; READ]);
    let mut is_taken = false;
    let mut limit = Some(Instant::now() + REGISTERED_WITHIN);
    loop {
        let read = stream.read(&mut buffer);
        let read = match limit {
            Some(limit) => {
                let what = match is_taken {
                    true => "the engine stopped within a message",
                    false => "the engine does not answer a registration",
                };
                timeout_at(limit, read).await.context(what)?
            }
            None => read.await,
        };
        let length = read.context("read from the engine")?;
        if length == 0 {
            return Ok(());
        }
        let arrived = wire.add(&buffer[..length])?;
        let has_arrived = !arrived.is_empty();
        for message in arrived {
            match message {
                Arrived::ToPlugin(message) => answer(&mut stream, &plugin, message).await?,
                Arrived::ToCaller(message) if message.stream == REGISTRATION => {
                    accepted(&message)?;
                    is_taken = true;
                }
                Arrived::ToCaller(_) => {}
            }
        }
        limit = match (is_taken, wire.is_within()) {
            (false, _) => limit,
            (true, false) => None,
            (true, true) if has_arrived => Some(Instant::now() + REST_WITHIN),
            (true, true) => limit.or_else(|| Some(Instant::now() + REST_WITHIN)),
        };
    }
}

fn registration() -> Message {
    let who = RegisterPluginRequest {
        plugin_name: NAME.to_owned(),
        plugin_idx: INDEX.to_owned(),
    };
    let request = Request {
        service: RUNTIME_SERVICE.to_owned(),
        method: "RegisterPlugin".to_owned(),
        payload: who.encode_to_vec(),
    };
    Message {
        stream: REGISTRATION,
        kind: Kind::Request,
        content: request.encode_to_vec(),
    }
}

fn accepted(message: &Message) -> Result<()> {
    let response = Response::decode(message.content.as_slice());
    let response = response.context("read what the engine says to our registration")?;
    if let Some(status) = response.failure() {
        bail!("the engine does not take us: {}", Shown(&status.message));
    }
    Ok(())
}

/// Answers a request; what is none is passed over.
async fn answer(stream: &mut UnixStream, plugin: &Arc<Plugin>, message: Message) -> Result<()> {
    if message.kind != Kind::Request {
        return Ok(());
    }
    let Answer { response, then } = found(plugin, message.content).await;
    let answer = Message {
        stream: message.stream,
        kind: Kind::Response,
        content: response.encode_to_vec(),
    };
    write(stream, PLUGIN, &answer).await?;
    if then != Then::Nothing {
        // Nobody waits for it.
        tokio::spawn(follow(Arc::clone(plugin), then));
    }
    Ok(())
}

/// Does what an answer has left to be done, and what that leaves, until the connection ends: the
/// next one begins with all that is there.
async fn follow(plugin: Arc<Plugin>, mut then: Then) {
    let connected = Arc::downgrade(&plugin);
    let mut plugin = Some(plugin);
    while let Some(here) = plugin.take() {
        let done = spawn_blocking(move || here.follow(then)).await;
        then = match done {
            Ok(Then::Nothing) | Err(_) => return,
            Ok(later) => later,
        };
        sleep(then.pause()).await;
        plugin = connected.upgrade();
    }
}

/// The plugin's answer. What needs a disk is answered on a thread that may wait for one; if that
/// takes too long nothing is changed. All else is answered at once, however busy the node is: who
/// asks for nothing depends on nothing of ours.
async fn found(plugin: &Arc<Plugin>, content: Vec<u8>) -> Answer {
    let request = match Request::decode(content.as_slice()) {
        Ok(request) => request,
        Err(error) => {
            return failed(
                Code::InvalidArgument,
                format!("pinfold: the request cannot be read: {error}"),
            );
        }
    };
    if !Plugin::reads_claims(&request) {
        return plugin.answer(&request);
    }
    let plugin = Arc::clone(plugin);
    let found = spawn_blocking(move || plugin.answer(&request));
    match timeout(ANSWERED_WITHIN, found).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => failed(Code::DeadlineExceeded, format!("pinfold: {error}")),
        Err(_) => failed(
            Code::DeadlineExceeded,
            format!(
                "pinfold: the claims cannot be read within {} ms",
                ANSWERED_WITHIN.as_millis()
            ),
        ),
    }
}

fn failed(code: Code, message: String) -> Answer {
    Answer {
        response: Response::failed(code, message),
        then: Then::Nothing,
    }
}

async fn write(stream: &mut UnixStream, connection: u32, message: &Message) -> Result<()> {
    let bytes = sent(connection, message);
    let written = timeout(WRITTEN_WITHIN, stream.write_all(&bytes)).await;
    ensure!(written.is_ok(), "the engine does not read what it is told");
    written?.context("write to the engine")
}
