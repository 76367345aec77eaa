//! The frame of the process: one at a time, on one thread but for what reads files, until a signal
//! ends it.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pinfold::cli::Options;
use pinfold::commands::metrics::Listener;
use pinfold::engines::Programs;
use pinfold::refusal::Refusal;
use pinfold::settings::{Settings, news};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::books::{self, Reader};
use crate::cli::RunArgs;
use crate::device_plugin::DevicePlugin;
use crate::metrics::Metrics;
use crate::node_lock::NodeLock;
use crate::nri;
use crate::nri::pin::HookProgram;
use crate::status::Status;

/// The kubelet's directory unless it is told another (kubelet: `--root-dir`).
const KUBELET: &str = "/var/lib/kubelet";
/// How long a message is no news while it is repeated, where nothing else makes rounds. Longer than
/// the time between two writings of the metrics.
const ROUND: Duration = Duration::from_secs(60);
/// How long the parts may take to end.
const GRACE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
/// Another process serves this site; the metrics cannot be served or written; the settings are
/// wrong.
pub fn run(args: &RunArgs, options: &Options) -> Result<u8> {
    let settings = Settings::of_program("pinfold-node", options)?;
    let reader = Arc::new(Reader::of(&settings)?);
    let engine = match args.nri {
        true => Some(nri_options(args, options, &settings)?),
        false => None,
    };
    // Before anything is opened that the other process uses.
    let lock = NodeLock::take(reader.run_dir())?;
    let scrapes = args.metrics.map(Listener::bind).transpose()?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start")?;
    runtime.block_on(serve(args, reader, scrapes, engine))?;
    // What still waits for a disk is not waited for.
    runtime.shutdown_background();
    drop(lock);
    Ok(0)
}

/// What the NRI plugin has to know.
fn nri_options(args: &RunArgs, options: &Options, settings: &Settings) -> Result<nri::Options> {
    let site = settings.site();
    let path = match &args.bin_dir {
        // It need not be there for us: this may be a container.
        Some(dir) => {
            ensure!(
                dir.is_absolute(),
                Refusal::usage("--bin-dir is relative", "write the whole path")
            );
            let path = dir.join("pinfold");
            let text = path.to_str().map(str::to_owned);
            text.with_context(|| format!("{} is not UTF-8", path.display()))?
        }
        None => Programs::find(&site.host, None)?.pinfold,
    };
    let socket = args.nri_socket.clone();
    let host = settings.host_table();
    Ok(nri::Options {
        socket: socket.unwrap_or_else(|| site.host.path(nri::SOCKET)),
        program: HookProgram {
            path,
            options: settings.device_options(options)?,
            whom: settings.whom(),
        },
        is_needed: host.default_pool.is_some() && host.default_pool_needed,
        run_dir: site.run_dir.clone(),
    })
}

async fn serve(
    args: &RunArgs,
    reader: Arc<Reader>,
    scrapes: Option<Listener>,
    engine: Option<nri::Options>,
) -> Result<()> {
    // First of all: a signal from now on ends it cleanly.
    let ended = ended()?;
    let (end, stop) = watch::channel(false);
    let (reading, stop_reading) = mpsc::channel();
    let of_nri = engine.is_some().then(Arc::<nri::Status>::default);
    let status = Arc::new(Status::new(of_nri.clone()));
    let metrics = Metrics::new(reader.clone(), status.clone());
    if let Some(listener) = scrapes {
        metrics.clone().serve(listener)?;
    }
    let mut beside = JoinSet::new();
    if let Some(path) = &args.textfile {
        // A file that cannot be written is told now, not in the log.
        metrics.write(path)?;
        beside.spawn(metrics.keep_written(path.clone()));
    }
    let mut parts = JoinSet::new();
    if let (Some(engine), Some(of_nri)) = (engine, of_nri) {
        let mut stop = stop.clone();
        let stopped = async move {
            let _ = stop.wait_for(|stop| *stop).await;
        };
        parts.spawn(nri::run(engine, of_nri, stopped));
    }
    if args.device_plugin || !args.nri {
        let books = books::watch(reader.clone(), stop_reading)?;
        let default = || reader.site().host.path(KUBELET);
        let kubelet = args.kubelet_dir.clone().unwrap_or_else(default);
        let plugin = DevicePlugin::new(&kubelet, reader, books, status);
        parts.spawn(plugin.run(stop));
    } else {
        // Whoever watches the books begins one with each look.
        beside.spawn(begin_rounds());
    }
    let failed = tokio::select! {
        () = ended => None,
        part = parts.join_next() => part.and_then(Result::err),
    };
    end.send_replace(true);
    let all = async { while parts.join_next().await.is_some() {} };
    if timeout(GRACE, all).await.is_err() {
        log::warn!("not all ended within {} s", GRACE.as_secs());
    }
    drop(reading);
    match failed {
        Some(error) => Err(error).context("a part of pinfold-node failed"),
        None => Ok(()),
    }
}

/// Begins rounds of the log: what was said is forgotten once it has not been said for a round.
async fn begin_rounds() {
    let mut ticks = interval(ROUND);
    loop {
        ticks.tick().await;
        news::begin_round();
    }
}

/// What is done when a signal comes that ends the process.
fn ended() -> Result<impl Future<Output = ()>> {
    let catch = |kind| signal(kind).context("wait for signals");
    let mut signals = [
        catch(SignalKind::terminate())?,
        catch(SignalKind::interrupt())?,
        catch(SignalKind::hangup())?,
    ];
    Ok(async move {
        let [terminate, interrupt, hangup] = &mut signals;
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_said_is_news_again_after_a_while() {
        let rounds = tokio::spawn(begin_rounds());
        sleep(Duration::from_secs(1)).await;
        let is_news = || news::is_news("said by the test of rounds");
        assert!(is_news() && !is_news());
        sleep(ROUND).await;
        assert!(!is_news());
        sleep(2 * ROUND).await;
        assert!(is_news());
        rounds.abort();
    }
}
