//! Makes a resource known to the kubelet, and again whenever that has forgotten it.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use pinfold::files;
use pinfold::refusal::Refusal;
use pinfold::text::Shown;
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::api::{Empty, REGISTER, RegisterRequest, VERSION};
use super::server::ASK;

/// How long the kubelet may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The first pause after a registration that failed, or after which nobody watches the devices.
const SHORTEST: Duration = Duration::from_secs(2);
/// The longest such pause.
const LONGEST: Duration = Duration::from_secs(60);

/// Which socket the kubelet has: a kubelet that starts makes another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KubeletSocket {
    device: u64,
    inode: u64,
    changed: (i64, i64),
}

impl KubeletSocket {
    /// `None` if there is none.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn at(path: &Path) -> Result<Option<KubeletSocket>> {
        let entry = files::entry_if_there(path)?;
        Ok(entry.map(|entry| KubeletSocket {
            device: entry.dev(),
            inode: entry.ino(),
            changed: (entry.ctime(), entry.ctime_nsec()),
        }))
    }
}

/// When a resource has to be made known to the kubelet.
#[derive(Debug)]
pub struct Registration {
    /// The socket at which that was done last.
    at: Option<KubeletSocket>,
    /// Not tried again before.
    next: Instant,
    pause: Duration,
}

impl Registration {
    /// Never done yet.
    pub fn new() -> Registration {
        Registration {
            at: None,
            next: Instant::now(),
            pause: SHORTEST,
        }
    }

    /// Has it to be done now? It has where the kubelet's socket is another than before, and, with
    /// growing pauses, while nobody watches the devices.
    pub fn is_due(&mut self, kubelet: KubeletSocket, is_watched: bool, now: Instant) -> bool {
        if self.at != Some(kubelet) {
            // A kubelet that has just started need not wait for what another did not take.
            self.at = Some(kubelet);
            self.pause = SHORTEST;
            self.next = now;
        } else if is_watched {
            self.pause = SHORTEST;
            self.next = now + SHORTEST;
        }
        if now < self.next {
            return false;
        }
        self.next = now + self.pause;
        self.pause = (self.pause * 2).min(LONGEST);
        true
    }
}

/// Registers a resource: the kubelet then connects to its socket.
///
/// # Errors
/// The kubelet does not answer, or refuses it.
pub async fn register(kubelet: PathBuf, endpoint: String, resource: String) -> Result<()> {
    let request = RegisterRequest {
        version: VERSION.to_owned(),
        endpoint,
        resource_name: resource.clone(),
        options: Some(ASK),
    };
    let shown = kubelet.display().to_string();
    let connect = service_fn(move |_: Uri| {
        let kubelet = kubelet.clone();
        async move { UnixStream::connect(kubelet).await.map(TokioIo::new) }
    });
    // The name is what a socket of this machine is called; nothing is looked up.
    let endpoint = Endpoint::from_static("http://localhost")
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE);
    let channel = endpoint.connect_with_connector(connect).await;
    let channel = channel.with_context(|| format!("connect to the kubelet at {shown}"))?;
    let mut client = Grpc::new(channel);
    client.ready().await.context("ask the kubelet")?;
    let codec = ProstCodec::<RegisterRequest, Empty>::default();
    let method = PathAndQuery::from_static(REGISTER);
    let answered = client.unary(Request::new(request), method, codec).await;
    answered.map_err(|status| refused(&resource, &status))?;
    Ok(())
}

fn refused(resource: &str, status: &Status) -> Refusal {
    // A kubelet of another version answers so (`errUnsupportedVersion`).
    let remedy = match status.message().contains("version") {
        true => "have a kubelet that knows device plugins of v1beta1: Kubernetes 1.10 or later",
        false => "see the kubelet's log; it is tried again",
    };
    let said = Shown(status.message());
    Refusal::new(format!("the kubelet refuses {resource}: {said}"), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(inode: u64) -> KubeletSocket {
        KubeletSocket {
            device: 1,
            inode,
            changed: (0, 0),
        }
    }

    #[test]
    fn it_is_done_once_and_anew_at_another_socket() {
        let mut one = Registration::new();
        let now = Instant::now();
        assert!(one.is_due(socket(1), false, now));
        assert!(!one.is_due(socket(1), true, now));
        assert!(!one.is_due(socket(1), true, now + 10 * LONGEST));
        assert!(one.is_due(socket(2), true, now + 10 * LONGEST));
        assert!(!one.is_due(socket(2), true, now + 10 * LONGEST));
    }

    #[test]
    fn while_nobody_watches_it_is_done_less_and_less_often() {
        let mut one = Registration::new();
        let mut now = Instant::now();
        let mut pause = SHORTEST;
        for _ in 0..10 {
            assert!(one.is_due(socket(1), false, now));
            now += pause;
            assert!(!one.is_due(socket(1), false, now - Duration::from_millis(1)));
            pause = (pause * 2).min(LONGEST);
        }
        assert!(!one.is_due(socket(1), true, now));
        assert!(one.is_due(socket(1), false, now + SHORTEST));
        assert!(one.is_due(socket(1), false, now + 2 * SHORTEST));
    }

    #[test]
    fn a_kubelet_of_another_version_gets_a_sentence() {
        let old = "requested API version \"v1beta1\" is not supported by kubelet. Supported \
                   version is \"v1alpha\"";
        let refusal = refused("pinfold.io/dp", &Status::unknown(old));
        assert!(refusal.remedy.contains("1.10"), "{refusal}");
        let other = refused("pinfold.io/dp", &Status::unknown("no\u{1b}[31m"));
        assert!(other.to_string().contains("\\u{1b}"), "{other}");
    }
}
