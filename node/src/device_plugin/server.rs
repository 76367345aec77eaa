//! Serves the devices of one resource on a socket beside the kubelet's.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use pinfold::files;
use pinfold::refusal::Refusal;
use pinfold::text::one_line;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::Grpc;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::api::{
    ALLOCATE, Device, DevicePluginOptions, Empty, LIST_AND_WATCH, ListAndWatchResponse, OPTIONS,
    PREFERRED,
};
use super::asked::Asked;

/// Calls of one connection that are answered at once: the kubelet makes one, beside the list that
/// it watches.
const AT_ONCE: u32 = 16;
/// The longest message that is read, in bytes: a thousand devices are some 16 kB.
const MOST_BYTES: usize = 1 << 20;
/// How long what is under way may take once the socket is to be closed.
const GRACE: Duration = Duration::from_secs(1);

/// What the kubelet may ask this plugin.
pub const ASK: DevicePluginOptions = DevicePluginOptions {
    pre_start_required: false,
    get_preferred_allocation_available: true,
};

/// The socket of a resource, which answers until it is closed.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    /// The device and inode of the socket's file.
    file: (u64, u64),
    devices: watch::Sender<Vec<Device>>,
    watchers: Arc<AtomicUsize>,
    stop: oneshot::Sender<()>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Socket {
    /// Opens the socket, in place of one that a process left behind.
    ///
    /// # Errors
    /// Another process serves it; it cannot be made, or no socket can have such a path.
    pub async fn open(path: &Path, devices: Vec<Device>, asked: Asked) -> Result<Socket> {
        if SocketAddr::from_pathname(path).is_err() {
            bail!(Refusal::new(
                format!("the path of the socket {} is too long", path.display()),
                "give the kubelet's directory a shorter path: --kubelet-dir"
            ));
        }
        remove_left_behind(path).await?;
        let bound = UnixListener::bind(path);
        let listener = bound.with_context(|| format!("make the socket {}", path.display()))?;
        let entry = files::entry_if_there(path)?;
        let (devices, seen) = watch::channel(devices);
        let watchers = Arc::new(AtomicUsize::new(0));
        let plugin = Plugin {
            asked,
            devices: seen,
            watchers: watchers.clone(),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder()
            .max_concurrent_streams(AT_ONCE)
            .serve_with_incoming_shutdown(plugin, UnixListenerStream::new(listener), async {
                // The sender was dropped: that is a stop as well.
                let _ = stopped.await;
            });
        Ok(Socket {
            path: path.to_owned(),
            file: entry.map_or((0, 0), |entry| (entry.dev(), entry.ino())),
            devices,
            watchers,
            stop,
            server: tokio::spawn(server),
        })
    }

    /// Is the socket's file still the one that was made? A kubelet that starts removes all.
    pub fn is_there(&self) -> bool {
        let entry = files::entry_if_there(&self.path);
        // What cannot be looked at is left as it is.
        entry.map_or(true, |entry| {
            entry.is_some_and(|entry| (entry.dev(), entry.ino()) == self.file)
        })
    }

    /// Tells whoever watches of these devices; returns whether they are others than before.
    pub fn tell(&self, devices: Vec<Device>) -> bool {
        self.devices.send_if_modified(|told| {
            let is_news = *told != devices;
            *told = devices;
            is_news
        })
    }

    /// Does anybody watch the devices?
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Ends for good: whoever watches is told that there are no devices any more.
    pub async fn withdraw(self) {
        self.tell(Vec::new());
        self.close().await;
    }

    /// Ends: the kubelet keeps the devices for a while, so that another process can go on with
    /// them. The socket's file is removed.
    pub async fn close(self) {
        let is_ours = self.is_there();
        drop(self.devices);
        let _ = self.stop.send(());
        let mut server = self.server;
        if timeout(GRACE, &mut server).await.is_err() {
            server.abort();
        }
        if is_ours {
            if let Err(error) = files::remove(&self.path) {
                log::warn!("{error:#}");
            }
        }
    }
}

/// Removes the socket of a process that ended without doing so.
async fn remove_left_behind(path: &Path) -> Result<()> {
    let Some(entry) = files::entry_if_there(path)? else {
        return Ok(());
    };
    if !entry.file_type().is_socket() {
        bail!(Refusal::new(
            format!("{} is there and is not a socket", path.display()),
            "move it away"
        ));
    }
    let served = || {
        Refusal::new(
            format!("another process serves {}", path.display()),
            "end that one: two cannot serve one resource",
        )
    };
    // Nobody is waited for who does not accept.
    match UnixStream::connect(path).await {
        Ok(_) => bail!(served()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!(served()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => files::remove(path),
        Err(error) if files::is_gone(&error) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("look at {}", path.display())),
    }
}

/// Answers the kubelet.
#[derive(Debug, Clone)]
struct Plugin {
    asked: Asked,
    devices: watch::Receiver<Vec<Device>>,
    watchers: Arc<AtomicUsize>,
}

impl Service<http::Request<Body>> for Plugin {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let plugin = self.clone();
        Box::pin(async move { Ok(plugin.answer(request).await) })
    }
}

impl Plugin {
    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let asked = self.asked.clone();
        match request.uri().path() {
            OPTIONS => unary(request, |_: Empty| async { Ok(ASK) }).await,
            LIST_AND_WATCH => self.list_and_watch(request).await,
            PREFERRED => {
                unary(request, move |message| {
                    let asked = asked.clone();
                    async move { Ok(asked.preferred(message).await) }
                })
                .await
            }
            ALLOCATE => {
                unary(request, move |message| {
                    let asked = asked.clone();
                    async move { asked.allocate(message).await.map_err(status) }
                })
                .await
            }
            _ => Status::unimplemented("Pinfold has no such method").into_http(),
        }
    }

    /// Sends the devices, and again whenever they change, until either side ends.
    async fn list_and_watch(self, request: http::Request<Body>) -> http::Response<Body> {
        let service = service_fn(move |_: Request<Empty>| {
            let (sender, stream) = mpsc::channel(1);
            tokio::spawn(self.clone().watch(sender));
            async { Ok::<_, Status>(Response::new(ReceiverStream::new(stream))) }
        });
        let codec = ProstCodec::<ListAndWatchResponse, Empty>::default();
        let mut grpc = Grpc::new(codec).max_decoding_message_size(MOST_BYTES);
        grpc.server_streaming(service, request).await
    }

    async fn watch(mut self, sender: mpsc::Sender<Result<ListAndWatchResponse, Status>>) {
        let _watching = Watching::begin(self.watchers.clone());
        loop {
            let devices = self.devices.borrow_and_update().clone();
            if sender
                .send(Ok(ListAndWatchResponse { devices }))
                .await
                .is_err()
            {
                return;
            }
            tokio::select! {
                changed = self.devices.changed() => if changed.is_err() {
                    return;
                },
                () = sender.closed() => return,
            }
        }
    }
}

/// Counts one who watches, while it lives.
struct Watching(Arc<AtomicUsize>);

impl Watching {
    fn begin(watchers: Arc<AtomicUsize>) -> Watching {
        watchers.fetch_add(1, Ordering::Relaxed);
        Watching(watchers)
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn unary<Q, A, F>(
    request: http::Request<Body>,
    answer: impl Fn(Q) -> F,
) -> http::Response<Body>
where
    Q: Message + Default + Send + 'static,
    A: Message + Send + 'static,
    F: Future<Output = Result<A, Status>>,
{
    let service = service_fn(|request: Request<Q>| {
        let answered = answer(request.into_inner());
        async move { answered.await.map(Response::new) }
    });
    let codec = ProstCodec::<A, Q>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MOST_BYTES);
    grpc.unary(service, request).await
}

/// A refusal as the kubelet shows it in the pod's events.
fn status(refusal: Refusal) -> Status {
    Status::failed_precondition(one_line(&refusal.to_string()))
}

#[cfg(test)]
mod tests {
    use rustix::net::listen;

    use super::*;

    #[tokio::test]
    async fn a_process_that_accepts_nobody_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // Room for one who waits (listen(2)).
        listen(&listener, 0).unwrap();
        let _waits = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let refused = timeout(GRACE, remove_left_behind(&path)).await;
        let refused = refused.expect("it does not wait").unwrap_err();
        assert!(
            refused.to_string().contains("another process serves"),
            "{refused}"
        );
        drop(listener);
        remove_left_behind(&path).await.unwrap();
        assert!(files::entry_if_there(&path).unwrap().is_none());
    }
}
