//! An engine as far as a plugin sees one. It reads as engines written in Go do: a frame whole, into
//! a buffer of 4096 bytes, and where one does not fit the connection ends.

use std::collections::BTreeMap;
use std::time::Duration;

use pinfold_node::nri::api::{
    ConfigureRequest, ConfigureResponse, Container, ContainerRequest, CreateContainerResponse,
    PodSandbox, RegisterPluginRequest, SynchronizeRequest, SynchronizeResponse,
};
use pinfold_node::nri::ttrpc::{Request, Response, Status};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// The room of Go's reader (bufio, `defaultBufSize`).
const ROOM: usize = 4096;
/// An answer that takes longer has not come.
const PATIENCE: Duration = Duration::from_secs(20);

pub struct Engine {
    stream: UnixStream,
    /// What has come over each connection, and is not yet a message.
    pending: BTreeMap<u32, Vec<u8>>,
    next: u32,
}

/// A message of ttrpc.
pub struct Received {
    pub stream: u32,
    pub kind: u8,
    pub content: Vec<u8>,
}

/// The bytes of a message of ttrpc.
pub fn message(stream: u32, kind: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&length[..], &stream.to_be_bytes(), &[kind, 0], content].concat()
}

/// The bytes of one frame.
pub fn frame(connection: u32, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    [&connection.to_be_bytes()[..], &length, content].concat()
}

/// The bytes of a request's message.
pub fn request(stream: u32, method: &str, argument: &impl Message) -> Vec<u8> {
    raw_request(stream, method, &argument.encode_to_vec())
}

/// The same with an argument of any bytes.
pub fn raw_request(stream: u32, method: &str, payload: &[u8]) -> Vec<u8> {
    let request = Request {
        service: "nri.pkg.api.v1alpha1.Plugin".into(),
        method: method.into(),
        payload: payload.to_vec(),
    };
    message(stream, 1, &request.encode_to_vec())
}

impl Engine {
    /// Waits for a plugin, and takes it.
    pub async fn accept(listener: &UnixListener) -> (Engine, RegisterPluginRequest) {
        let mut engine = Engine::connected(listener).await;
        let asked = engine.receive(2).await.expect("a registration comes");
        let request = Request::decode(asked.content.as_slice()).unwrap();
        assert_eq!(
            (request.service.as_str(), request.method.as_str()),
            ("nri.pkg.api.v1alpha1.Runtime", "RegisterPlugin")
        );
        let who = RegisterPluginRequest::decode(request.payload.as_slice()).unwrap();
        let taken = Response::default().encode_to_vec();
        engine
            .send(&frame(2, &message(asked.stream, 2, &taken)))
            .await;
        (engine, who)
    }

    /// Waits for a plugin, and says nothing.
    pub async fn connected(listener: &UnixListener) -> Engine {
        let accepted = timeout(PATIENCE, listener.accept()).await;
        let (stream, _) = accepted.expect("a plugin comes").unwrap();
        Engine {
            stream,
            pending: BTreeMap::new(),
            next: 1,
        }
    }

    /// Takes a plugin, and tells it all that comes before the first event.
    pub async fn ready(listener: &UnixListener, there: SynchronizeRequest) -> Engine {
        let (mut engine, _) = Engine::accept(listener).await;
        let who = ConfigureRequest {
            runtime_name: "containerd".into(),
            runtime_version: "v2.1.9".into(),
        };
        let _: ConfigureResponse = engine.call("Configure", &who).await.unwrap();
        let _: SynchronizeResponse = engine.call("Synchronize", &there).await.unwrap();
        engine
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.expect("it can be sent");
    }

    /// Calls the plugin.
    pub async fn call<Result: Message + Default>(
        &mut self,
        method: &str,
        argument: &impl Message,
    ) -> std::result::Result<Result, Status> {
        self.call_raw(method, &argument.encode_to_vec()).await
    }

    pub async fn call_raw<Result: Message + Default>(
        &mut self,
        method: &str,
        payload: &[u8],
    ) -> std::result::Result<Result, Status> {
        let stream = self.next;
        self.next += 2;
        let bytes = frame(1, &raw_request(stream, method, payload));
        self.send(&bytes).await;
        self.answer(stream).await
    }

    /// Waits for the answer to a call.
    pub async fn answer<Result: Message + Default>(
        &mut self,
        stream: u32,
    ) -> std::result::Result<Result, Status> {
        let answer = self.receive(1).await.expect("an answer comes");
        assert_eq!((answer.stream, answer.kind), (stream, 2));
        let response = Response::decode(answer.content.as_slice()).unwrap();
        match response.failure() {
            Some(status) => Err(status.clone()),
            None => Ok(Result::decode(response.payload.as_slice()).unwrap()),
        }
    }

    /// The next message over a connection; `None` once the plugin has closed the socket.
    pub async fn receive(&mut self, connection: u32) -> Option<Received> {
        loop {
            if let Some(received) = self.complete(connection) {
                return Some(received);
            }
            let mut header = [0; 8];
            let read = self.stream.read_exact(&mut header);
            timeout(PATIENCE, read)
                .await
                .expect("something comes")
                .ok()?;
            let [a, b, c, d, length @ ..] = header;
            let length = u32::from_be_bytes(length) as usize;
            assert!(length <= ROOM, "a frame of {length} bytes does not fit");
            let mut content = vec![0; length];
            self.stream.read_exact(&mut content).await.ok()?;
            let connection = u32::from_be_bytes([a, b, c, d]);
            self.pending.entry(connection).or_default().extend(content);
        }
    }

    fn complete(&mut self, connection: u32) -> Option<Received> {
        let pending = self.pending.entry(connection).or_default();
        let header: [u8; 10] = pending.get(..10)?.try_into().unwrap();
        let [l1, l2, l3, l4, s1, s2, s3, s4, kind, flags] = header;
        assert_eq!(flags, 0);
        let end = 10 + u32::from_be_bytes([l1, l2, l3, l4]) as usize;
        let content = pending.get(10..end)?.to_vec();
        pending.drain(..end);
        Some(Received {
            stream: u32::from_be_bytes([s1, s2, s3, s4]),
            kind,
            content,
        })
    }
}

/// A pod and a container of it, by their names and the pod's annotations `key=value`.
pub fn made(id: &str, annotations: &[(&str, &str)]) -> ContainerRequest {
    let pairs = annotations.iter();
    let pod = PodSandbox {
        id: format!("pod-{id}"),
        name: "web-0".into(),
        namespace: "telco".into(),
        annotations: pairs
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
    };
    let container = Container {
        id: id.into(),
        pod_sandbox_id: pod.id.clone(),
        name: "web".into(),
        ..Container::default()
    };
    ContainerRequest {
        pod: Some(pod),
        container: Some(container),
    }
}

/// What a plugin adds to a container.
pub async fn create(
    engine: &mut Engine,
    asked: &ContainerRequest,
) -> std::result::Result<CreateContainerResponse, Status> {
    engine.call("CreateContainer", asked).await
}
