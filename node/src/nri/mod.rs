//! The NRI plugin: it adds our hooks to containers that ask for CPUs by annotations, and to all
//! where there is a default pool, under whichever runtime handler they run, and keeps an update of
//! resources from taking a container's CPUs. It keeps no state: who owns what is in the claims
//! alone.
//!
//! NRI lets a container go on as it is when its plugin is not there, or does not answer in time.
//! What went on so is found afterwards, and said.

pub mod api;
pub mod frames;
pub mod guard;
pub mod pin;
pub mod plugin;
pub mod session;
mod status;
pub mod ttrpc;
pub mod wire;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use pinfold::engines::hooks::Whom;
pub use pinfold::engines::nri::SOCKET;
use tokio::net::UnixStream;
use tokio::time::sleep;

use pin::HookProgram;
use plugin::Plugin;
pub use status::Status;

/// The first wait before connecting again, and the longest: an engine that was restarted has
/// containers to make at once.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// What the plugin has to know.
#[derive(Debug, Clone)]
pub struct Options {
    /// The engine's socket.
    pub socket: PathBuf,
    /// How hooks are run.
    pub program: HookProgram,
    /// Does no container start that asks for nothing and cannot be given the default pool?
    pub is_needed: bool,
    /// The run directory, which holds the claims.
    pub run_dir: PathBuf,
}

impl Options {
    /// For whoever asks alone, by hooks of this program, and with all else as it is by default.
    pub fn of_program(pinfold: &str, run_dir: PathBuf) -> Options {
        Options {
            socket: SOCKET.into(),
            program: HookProgram {
                path: pinfold.to_owned(),
                options: Vec::new(),
                whom: Whom::Annotated,
            },
            is_needed: false,
            run_dir,
        }
    }
}

/// Serves the engine, connecting again whenever it goes, until `stop` comes.
pub async fn run(options: Options, status: Arc<Status>, stop: impl Future<Output = ()>) {
    tokio::select! {
        never = keep_serving(&options, &status) => match never {},
        () = stop => status.connected(false),
    }
}

async fn keep_serving(options: &Options, status: &Arc<Status>) -> Infallible {
    let (shortest, longest) = PAUSES;
    let (mut pause, mut said) = (shortest, None);
    loop {
        let ended = serve_once(options, status).await;
        // An engine that takes us and then fails does so each time.
        if status.is_connected() {
            (pause, said) = (shortest, None);
        }
        status.connected(false);
        if let Some(news) = news(ended, &mut said) {
            log::warn!("{news}; containers that ask for CPUs go unpinned until it is there again");
        }
        sleep(pause).await;
        pause = longest.min(pause * 2);
    }
}

/// How a connection ended, unless the one before ended so too.
fn news(ended: Result<()>, said: &mut Option<String>) -> Option<String> {
    let text = match ended {
        Ok(()) => "NRI: the engine has closed the connection".to_owned(),
        Err(error) => format!("NRI: {error:#}"),
    };
    let is_news = said.as_ref() != Some(&text);
    *said = Some(text.clone());
    is_news.then_some(text)
}

async fn serve_once(options: &Options, status: &Arc<Status>) -> Result<()> {
    let stream = connect(&options.socket).await?;
    let plugin = Plugin::new(options, Arc::clone(status));
    session::serve(stream, Arc::new(plugin)).await
}

async fn connect(socket: &Path) -> Result<UnixStream> {
    let connected = UnixStream::connect(socket).await;
    connected.with_context(|| format!("connect to {}", socket.display()))
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn what_ends_in_the_same_way_is_said_once() {
        let mut said = None;
        let gone = || Err(anyhow!("connect to /x: there is none"));
        for (ended, is_news) in [
            (gone(), true),
            (gone(), false),
            (gone(), false),
            (Ok(()), true),
            (gone(), true),
        ] {
            assert_eq!(news(ended, &mut said).is_some(), is_news);
        }
    }
}
