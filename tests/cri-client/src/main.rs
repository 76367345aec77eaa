//! A client of the Kubernetes Container Runtime Interface, as far as Pinfold's tests want one: what
//! the kubelet asks of an engine to start and end a pod on the host's network. One request a call.
//!
//! ```text
//! cri-client SOCKET image NAME                   prints the image's id, or nothing where it has none
//! cri-client SOCKET run-pod POD                  prints the pod sandbox's id
//! cri-client SOCKET create SANDBOX POD CONTAINER prints the container's id
//! cri-client SOCKET start|stop|remove CONTAINER  stop gives it no time
//! cri-client SOCKET update CONTAINER RESOURCES   changes its CPUs or shares
//! cri-client SOCKET status CONTAINER             prints what the engine knows of it, as JSON
//! cri-client SOCKET exec CONTAINER COMMAND…      prints what the command printed
//! cri-client SOCKET stop-pod|remove-pod SANDBOX
//! ```
//!
//! POD, CONTAINER and RESOURCES are JSON on the command line, in the form of [`Pod`], [`Container`]
//! and [`Resources`]. What the engine refuses goes to standard error, and the exit status is 1.

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    CdiDevice, ContainerConfig, ContainerMetadata, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ImageSpec, ImageStatusRequest, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, Mount,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest, UpdateContainerResourcesRequest,
};
use serde::Deserialize;
use std::collections::HashMap;
use std::process::ExitCode;
use std::time::Duration;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// A request that takes longer has failed; an emulated machine needs some seconds for each.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Deserialize)]
struct Pod {
    name: String,
    namespace: String,
    uid: String,
    /// The runtime handler, by which an engine chooses the runtime.
    handler: String,
    /// The cgroup or slice that the pod's containers go into.
    cgroup_parent: String,
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Container {
    name: String,
    image: String,
    command: Vec<String>,
    annotations: HashMap<String, String>,
    /// Directories of the host by the paths that they get in the container.
    mounts: HashMap<String, String>,
    /// CDI devices.
    devices: Vec<String>,
}

/// What is left out stays as it is.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    /// The CPUs, in the kernel's list format.
    cpus: String,
    /// The memory nodes, likewise.
    mems: String,
    /// The share of CPU time.
    shares: i64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("start the event loop");
    match runtime.block_on(ask(&arguments)) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cri-client: {error}");
            ExitCode::FAILURE
        }
    }
}

type Client = RuntimeServiceClient<Channel>;
type Answer = Result<String, Box<dyn std::error::Error>>;

async fn ask(arguments: &[&str]) -> Answer {
    let [socket, verb, rest @ ..] = arguments else {
        return Err("a socket and a verb are missing".into());
    };
    let channel = connect(socket).await?;
    let client = RuntimeServiceClient::new(channel.clone());
    match (*verb, rest) {
        ("image", [name]) => image(ImageServiceClient::new(channel), name).await,
        ("run-pod", [pod]) => run_pod(client, serde_json::from_str(pod)?).await,
        ("create", [sandbox, pod, container]) => {
            let (pod, container) = (serde_json::from_str(pod)?, serde_json::from_str(container)?);
            create(client, sandbox, pod, container).await
        }
        ("update", [id, resources]) => update(client, id, serde_json::from_str(resources)?).await,
        ("exec", [id, command @ ..]) => exec(client, id, command).await,
        ("status", [id]) => status(client, id).await,
        (verb, [id]) => act(client, verb, id).await,
        (verb, _) => Err(format!("{verb} wants other arguments").into()),
    }
}

async fn connect(socket: &str) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connect = move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    };
    // The address only fills the form: every connection goes to the socket.
    let endpoint = Endpoint::from_static("http://localhost").timeout(PATIENCE);
    endpoint
        .connect_with_connector(tower::service_fn(connect))
        .await
}

async fn image(mut client: ImageServiceClient<Channel>, name: &str) -> Answer {
    let request = ImageStatusRequest {
        image: Some(ImageSpec {
            image: name.into(),
            ..ImageSpec::default()
        }),
        verbose: false,
    };
    let known = client.image_status(request).await?.into_inner().image;
    Ok(known.map(|image| image.id).unwrap_or_default())
}

async fn run_pod(mut client: Client, pod: Pod) -> Answer {
    let request = RunPodSandboxRequest {
        runtime_handler: pod.handler.clone(),
        config: Some(pod.config()),
    };
    Ok(client
        .run_pod_sandbox(request)
        .await?
        .into_inner()
        .pod_sandbox_id)
}

async fn create(mut client: Client, sandbox: &str, pod: Pod, container: Container) -> Answer {
    let request = CreateContainerRequest {
        pod_sandbox_id: sandbox.into(),
        config: Some(container.config()),
        sandbox_config: Some(pod.config()),
    };
    Ok(client
        .create_container(request)
        .await?
        .into_inner()
        .container_id)
}

async fn status(mut client: Client, id: &str) -> Answer {
    let request = ContainerStatusRequest {
        container_id: id.into(),
        verbose: true,
    };
    let mut told = client.container_status(request).await?.into_inner().info;
    told.remove("info")
        .ok_or_else(|| "the engine tells nothing of it".into())
}

async fn update(mut client: Client, id: &str, resources: Resources) -> Answer {
    let request = UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(LinuxContainerResources {
            cpuset_cpus: resources.cpus,
            cpuset_mems: resources.mems,
            cpu_shares: resources.shares,
            ..LinuxContainerResources::default()
        }),
        ..UpdateContainerResourcesRequest::default()
    };
    client.update_container_resources(request).await?;
    Ok(String::new())
}

async fn exec(mut client: Client, id: &str, command: &[&str]) -> Answer {
    let request = ExecSyncRequest {
        container_id: id.into(),
        cmd: command.iter().map(ToString::to_string).collect(),
        timeout: 0,
    };
    let ran = client.exec_sync(request).await?.into_inner();
    match ran.exit_code {
        0 => Ok(String::from_utf8(ran.stdout)?),
        code => Err(format!("it exited with {code}").into()),
    }
}

async fn act(mut client: Client, verb: &str, id: &str) -> Answer {
    let (container_id, pod_sandbox_id) = (id.to_owned(), id.to_owned());
    match verb {
        "start" => drop(
            client
                .start_container(StartContainerRequest { container_id })
                .await?,
        ),
        "stop" => {
            let request = StopContainerRequest {
                container_id,
                timeout: 0,
            };
            client.stop_container(request).await?;
        }
        "remove" => drop(
            client
                .remove_container(RemoveContainerRequest { container_id })
                .await?,
        ),
        "stop-pod" => drop(
            client
                .stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id })
                .await?,
        ),
        "remove-pod" => {
            client
                .remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id })
                .await?;
        }
        other => return Err(format!("no such verb: {other}").into()),
    }
    Ok(String::new())
}

/// The host's network, so that an engine without network plugins can run the pod too.
fn namespaces() -> Option<NamespaceOption> {
    Some(NamespaceOption {
        network: NamespaceMode::Node.into(),
        pid: NamespaceMode::Container.into(),
        ..NamespaceOption::default()
    })
}

impl Pod {
    fn config(&self) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                namespace: self.namespace.clone(),
                uid: self.uid.clone(),
                attempt: 0,
            }),
            annotations: self.annotations.clone(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: namespaces(),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..PodSandboxConfig::default()
        }
    }
}

impl Container {
    fn config(self) -> ContainerConfig {
        let mount = |(container_path, host_path)| Mount {
            container_path,
            host_path,
            ..Mount::default()
        };
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: self.name,
                attempt: 0,
            }),
            image: Some(ImageSpec {
                // CRI-O wants to know what was asked for.
                user_specified_image: self.image.clone(),
                image: self.image,
                ..ImageSpec::default()
            }),
            command: self.command,
            annotations: self.annotations,
            mounts: self.mounts.into_iter().map(mount).collect(),
            cdi_devices: self
                .devices
                .into_iter()
                .map(|name| CdiDevice { name })
                .collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces(),
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }
    }
}
