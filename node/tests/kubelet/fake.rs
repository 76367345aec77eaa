//! A kubelet as far as a device plugin sees it: the directory of sockets, which it empties when it
//! starts, its registration, and its calls, which name the machine `localhost`
//! (`pkg/kubelet/cm/devicemanager`).

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use pinfold_node::device_plugin::api::{
    ALLOCATE, AllocateRequest, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, Device, DevicePluginOptions, Empty, LIST_AND_WATCH,
    ListAndWatchResponse, OPTIONS, PREFERRED, PreferredAllocationRequest,
    PreferredAllocationResponse, REGISTER, RegisterRequest,
};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::transport::{Channel, Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Kubelet {
    dir: PathBuf,
    registered: mpsc::UnboundedReceiver<RegisterRequest>,
    server: JoinHandle<()>,
}

impl Kubelet {
    /// Starts a kubelet of this directory.
    pub(crate) fn start(root: &Path) -> Kubelet {
        Kubelet::answering(root, || Ok(Empty {}))
    }

    /// Starts one that answers registrations so.
    pub(crate) fn answering(
        root: &Path,
        answer: impl Fn() -> Result<Empty, Status> + Clone + Send + Sync + 'static,
    ) -> Kubelet {
        let dir = root.join("device-plugins");
        fs::create_dir_all(&dir).unwrap();
        for entry in fs::read_dir(&dir).unwrap() {
            fs::remove_file(entry.unwrap().path()).unwrap();
        }
        let listener = UnixListener::bind(dir.join("kubelet.sock")).unwrap();
        let (sender, registered) = mpsc::unbounded_channel();
        let service = Registrations { sender, answer };
        let incoming = UnixListenerStream::new(listener);
        let serve = Server::builder().serve_with_incoming(service, incoming);
        Kubelet {
            dir,
            registered,
            server: tokio::spawn(async { serve.await.unwrap() }),
        }
    }

    /// The next registration.
    pub(crate) async fn registration(&mut self) -> RegisterRequest {
        let next = timeout(PATIENCE, self.registered.recv()).await;
        next.expect("a registration comes").unwrap()
    }

    /// The plugin that registers next.
    pub(crate) async fn next_plugin(&mut self) -> Plugin {
        let endpoint = self.registration().await.endpoint;
        self.plugin(&endpoint).await
    }

    /// The plugin of a socket.
    pub(crate) async fn plugin(&self, endpoint: &str) -> Plugin {
        let path = self.dir.join(endpoint);
        let connect = service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        Plugin(endpoint.connect_with_connector(connect).await.unwrap())
    }

    /// Ends, and leaves its socket's file as one that is killed does.
    pub(crate) async fn end(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

#[derive(Clone)]
struct Registrations<F> {
    sender: mpsc::UnboundedSender<RegisterRequest>,
    answer: F,
}

impl<F: Fn() -> Result<Empty, Status> + Clone + Send + Sync + 'static> Service<http::Request<Body>>
    for Registrations<F>
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let this = self.clone();
        assert_eq!(request.uri().path(), REGISTER);
        Box::pin(async move {
            let service = service_fn(|request: Request<RegisterRequest>| {
                this.sender.send(request.into_inner()).unwrap();
                let answer = (this.answer)().map(Response::new);
                async { answer }
            });
            let codec = ProstCodec::<Empty, RegisterRequest>::default();
            let mut grpc = tonic::server::Grpc::new(codec);
            Ok(grpc.unary(service, request).await)
        })
    }
}

/// What the kubelet calls.
pub(crate) struct Plugin(Channel);

impl Plugin {
    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Status>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut client = tonic::client::Grpc::new(self.0.clone());
        client.ready().await.unwrap();
        let method = http::uri::PathAndQuery::from_static(method);
        let codec = ProstCodec::<Q, A>::default();
        let answered = client.unary(Request::new(request), method, codec);
        let answered = timeout(PATIENCE, answered).await.expect("an answer comes");
        Ok(answered?.into_inner())
    }

    pub(crate) async fn options(&self) -> DevicePluginOptions {
        self.call(OPTIONS, Empty {}).await.unwrap()
    }

    /// A method that the API does not have.
    pub(crate) async fn unknown(&self) -> Status {
        let answered = self.call::<Empty, Empty>("/v1beta1.DevicePlugin/Other", Empty {});
        answered.await.unwrap_err()
    }

    pub(crate) async fn list_and_watch(&self) -> Watch {
        let mut client = tonic::client::Grpc::new(self.0.clone());
        client.ready().await.unwrap();
        let method = http::uri::PathAndQuery::from_static(LIST_AND_WATCH);
        let codec = ProstCodec::<Empty, ListAndWatchResponse>::default();
        let stream = client.server_streaming(Request::new(Empty {}), method, codec);
        Watch(stream.await.unwrap().into_inner())
    }

    pub(crate) async fn preferred(
        &self,
        available: &[&str],
        must: &[&str],
        size: i32,
    ) -> Result<Vec<String>, Status> {
        let request = PreferredAllocationRequest {
            container_requests: vec![ContainerPreferredAllocationRequest {
                available: owned(available),
                must_include: owned(must),
                size,
            }],
        };
        let answered: PreferredAllocationResponse = self.call(PREFERRED, request).await?;
        Ok(answered.container_responses[0].devices.clone())
    }

    pub(crate) async fn allocate(
        &self,
        devices: &[&str],
    ) -> Result<ContainerAllocateResponse, Status> {
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                devices: owned(devices),
            }],
        };
        let answered: pinfold_node::device_plugin::api::AllocateResponse =
            self.call(ALLOCATE, request).await?;
        Ok(answered.container_responses[0].clone())
    }
}

/// The devices that a plugin tells of.
pub(crate) struct Watch(Streaming<ListAndWatchResponse>);

impl Watch {
    /// The next list of devices; `None` if the plugin has ended the stream, or is gone.
    pub(crate) async fn next(&mut self) -> Option<Vec<Device>> {
        let next = timeout(PATIENCE, self.0.message()).await;
        let next = next.expect("the devices change").ok().flatten();
        next.map(|response| response.devices)
    }

    /// The ids of the devices that are not healthy, in the next list.
    pub(crate) async fn unhealthy(&mut self) -> Vec<String> {
        let devices = self.next().await.unwrap().into_iter();
        let ill = devices.filter(|device| device.health == "Unhealthy");
        ill.map(|device| device.id).collect()
    }
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}
