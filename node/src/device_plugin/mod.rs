//! The device plugin: each exclusive pool is a resource of the node, each of its CPU lists a
//! device. The kubelet counts and hands out; the hook gives, and it alone decides. Nothing is kept
//! here that the books, the kubelet or the sockets do not know.

pub mod answers;
pub mod api;
mod asked;
mod devices;
mod registration;
mod server;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use pinfold::placement::ListDevices;
use pinfold::pools::Kind;
use pinfold::refusal::Refusal;
use pinfold::request::ExactList;
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use crate::books::{Books, Reader};
use crate::cdi::{self, Known, Looked};
use crate::said::Said;
use crate::status::Status;
use api::{DIRECTORY, Device, HEALTHY, KUBELET_SOCKET};
use asked::Asked;
use devices::{devices, not_a_resource, resource_name};
use registration::{KubeletSocket, Registration, register};
use server::Socket;

/// The time between two looks at the sockets, the kubelet's and ours.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time between two looks at the CDI file.
const CDI_PAUSE: Duration = Duration::from_secs(10);

/// What complaints of the CDI file are about: no path and no pool has this name.
const CDI: &str = "/cdi devices";
/// What complaints are about that engines find no devices, likewise.
const FOUND: &str = "/cdi file";

/// The resources of a node.
#[derive(Debug)]
pub struct DevicePlugin {
    directory: PathBuf,
    reader: Arc<Reader>,
    books: Books,
    status: Arc<Status>,
    resources: BTreeMap<String, Resource>,
    /// The lists of which the CDI file was kept, and when.
    kept: Option<(Vec<ExactList>, Instant)>,
    /// The CDI file as it was looked at last.
    cdi: Option<Looked>,
    said: Said,
}

/// The resource of one pool.
#[derive(Debug)]
struct Resource {
    socket: Socket,
    registration: Registration,
    attempt: Option<JoinHandle<Result<()>>>,
}

impl DevicePlugin {
    /// The plugin for a kubelet of this directory (`kubelet --root-dir`).
    pub fn new(
        kubelet: &Path,
        reader: Arc<Reader>,
        books: Books,
        status: Arc<Status>,
    ) -> DevicePlugin {
        DevicePlugin {
            directory: kubelet.join(DIRECTORY),
            reader,
            books,
            status,
            resources: BTreeMap::new(),
            kept: None,
            cdi: None,
            said: Said::default(),
        }
    }

    /// Serves until `stop` says so, or is dropped; then no socket is left.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut books = self.books.clone();
        loop {
            let known = books.borrow_and_update().clone();
            if let Some(known) = known {
                // Before a container can be given a device.
                self.keep_cdi(&known).await;
                if let Some(cdi) = self.look_at_cdi().await {
                    self.follow(&known, &cdi).await;
                }
            }
            self.keep_known().await;
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => break,
                changed = books.changed() => if changed.is_err() {
                    break;
                },
                () = sleep(PAUSE) => {}
            }
        }
        for resource in self.resources.into_values() {
            resource.close().await;
        }
    }

    /// Has the CDI file tell of these lists.
    async fn keep_cdi(&mut self, books: &ListDevices) {
        let lists = books.pools.iter().flat_map(|pool| &pool.lists);
        let lists: Vec<ExactList> = lists.map(|list| list.exact.clone()).collect();
        let is_kept = self
            .kept
            .as_ref()
            .is_some_and(|(kept, when)| *kept == lists && when.elapsed() < CDI_PAUSE);
        if is_kept {
            return;
        }
        let reader = self.reader.clone();
        let kept = spawn_blocking(move || cdi::keep(reader.site())).await;
        match kept.map_err(Error::new).and_then(|kept| kept) {
            Ok(()) => self.said.warn(CDI, None),
            Err(error) => self.said.warn_of(CDI, &error),
        }
        self.kept = Some((lists, Instant::now()));
        // What a look at the file's stamp alone does not tell is found now.
        self.cdi = None;
    }

    /// Which devices engines find now; `None` if that cannot be looked at.
    async fn look_at_cdi(&mut self) -> Option<Known> {
        let (reader, last) = (self.reader.clone(), self.cdi.take());
        let looked = spawn_blocking(move || Looked::again(reader.site(), last)).await;
        match looked {
            Ok(looked) => {
                // What keeps the file from being written is said already.
                let failure = looked.known.failure().filter(|_| !self.said.has(CDI));
                let about = failure.map(|refusal| {
                    let Refusal { what, remedy, .. } = refusal;
                    format!("no list can be given by device: {what}: {remedy}")
                });
                self.said.warn(FOUND, about.as_deref());
                self.cdi = Some(looked.clone());
                Some(looked.known)
            }
            Err(error) => {
                self.said.warn_of(FOUND, &Error::new(error));
                None
            }
        }
    }

    /// Makes the resources those of these pools, with their devices.
    async fn follow(&mut self, books: &ListDevices, cdi: &Known) {
        let mut wanted: BTreeMap<&str, Vec<Device>> = BTreeMap::new();
        for pool in &books.pools {
            let name = &pool.name;
            if pool.kind != Kind::Exclusive {
                // Any number of containers share a list: there is nothing to count.
                self.said.warn(name, None);
            } else if !self.reader.is_open(name) {
                let closed = "may not be asked for by CDI device, as its doors say";
                if self.said.is_news(name, Some(closed)) {
                    log::info!("pool {name} is no resource: it {closed}");
                }
            } else if let Some(no) = not_a_resource(name) {
                self.said.warn(name, Some(&no.to_string()));
            } else {
                let (devices, left_out) = devices(books, pool, cdi);
                let left_out = left_out.first().map(Refusal::to_string);
                self.said.warn(name, left_out.as_deref());
                wanted.insert(name, devices);
            }
        }
        let known = self.resources.keys();
        let gone: Vec<String> = known
            // A pool that cannot be read now has not been removed. What else cannot be read says
            // nothing of it.
            .filter(|pool| !wanted.contains_key(pool.as_str()) && !books.unread.contains(pool))
            .cloned()
            .collect();
        for pool in gone {
            if let Some(resource) = self.resources.remove(&pool) {
                log::info!("the resource of pool {pool} is withdrawn");
                resource.withdraw().await;
            }
        }
        for (pool, devices) in wanted {
            self.offer(pool, devices).await;
        }
        let pools: Vec<&str> = books.pools.iter().map(|pool| pool.name.as_str()).collect();
        self.said
            .keep(|about| about.starts_with('/') || pools.contains(&about));
    }

    /// Has the devices of a pool served.
    async fn offer(&mut self, pool: &str, devices: Vec<Device>) {
        if let Some(resource) = self.resources.get(pool) {
            if resource.socket.is_there() {
                if resource.socket.tell(devices) {
                    log::info!("the devices of pool {pool} have changed");
                }
                return;
            }
        }
        if let Some(wiped) = self.resources.remove(pool) {
            wiped.close().await;
        }
        let path = self.directory.join(endpoint(&self.directory, pool));
        let about = path.display().to_string();
        let healthy = devices.iter().filter(|device| device.health == HEALTHY);
        let counts = format!(
            "devices {}, of them healthy {}",
            devices.len(),
            healthy.count()
        );
        let asked = Asked {
            reader: self.reader.clone(),
            books: self.books.clone(),
            pool: pool.to_owned(),
        };
        match Socket::open(&path, devices, asked).await {
            Ok(socket) => {
                log::info!("{about}: {counts}");
                self.said.warn(&about, None);
                let resource = Resource {
                    socket,
                    registration: Registration::new(),
                    attempt: None,
                };
                self.resources.insert(pool.to_owned(), resource);
            }
            Err(error) => self.said.warn_of(&about, &error),
        }
    }

    /// Has the kubelet know all resources.
    async fn keep_known(&mut self) {
        let path = self.directory.join(KUBELET_SOCKET);
        let about = path.display().to_string();
        let kubelet = match KubeletSocket::at(&path) {
            Ok(Some(kubelet)) => {
                self.said.warn(&about, None);
                Some(kubelet)
            }
            Ok(None) => {
                let waits = format!(
                    "there is no kubelet at {about}: once there is, it is told of the resources; \
                     --kubelet-dir names another directory"
                );
                self.said.warn(&about, Some(&waits));
                None
            }
            Err(error) => {
                self.said.warn_of(&about, &error);
                None
            }
        };
        let now = Instant::now();
        let mut refused = Vec::new();
        for (pool, resource) in &mut self.resources {
            // The name was possible when the resource was made.
            let name = resource_name(pool).unwrap_or_default();
            if let Some(attempt) = resource.attempt.take_if(|attempt| attempt.is_finished()) {
                let came = attempt.await.map_err(Error::new);
                let came = came.and_then(|registered| registered);
                if came.is_ok() {
                    log::info!("the kubelet knows {name}");
                }
                refused.push((format!("{about} {pool}"), came.err()));
            }
            let is_watched = resource.socket.is_watched();
            self.status.set_kubelet(pool, is_watched);
            let Some(kubelet) = kubelet.filter(|_| resource.attempt.is_none()) else {
                continue;
            };
            if resource.registration.is_due(kubelet, is_watched, now) {
                let endpoint = endpoint(&self.directory, pool);
                let registered = register(path.clone(), endpoint, name);
                resource.attempt = Some(tokio::spawn(registered));
            }
        }
        for (about, error) in refused {
            match error {
                Some(error) => self.said.warn_of(&about, &error),
                None => self.said.warn(&about, None),
            }
        }
        self.status
            .keep_kubelet(|pool| self.resources.contains_key(pool));
    }
}

impl Resource {
    async fn withdraw(self) {
        self.forget();
        self.socket.withdraw().await;
    }

    async fn close(self) {
        self.forget();
        self.socket.close().await;
    }

    fn forget(&self) {
        if let Some(attempt) = &self.attempt {
            attempt.abort();
        }
    }
}

/// The most bytes of a socket's path (unix(7): `sun_path` has 108, of which the kubelet's Go keeps
/// one for the end).
const MOST_PATH: usize = 107;

/// The file name of a pool's socket in this directory. One that would be too long has the beginning
/// of the pool's name and a hash of the whole: behind a dot, which no pool's name has, so that it
/// is no other pool's.
fn endpoint(directory: &Path, pool: &str) -> String {
    let whole = format!("pinfold-{pool}.sock");
    let room = MOST_PATH.saturating_sub(directory.as_os_str().len() + 1);
    if whole.len() <= room {
        return whole;
    }
    let end = format!(".{:016x}.sock", hash(pool));
    let length = room.saturating_sub("pinfold-".len() + end.len());
    let beginning = pool.get(..length).unwrap_or_default();
    format!("pinfold-{beginning}{end}")
}

/// The 64 bits of FNV-1a: the same in each version of this program.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_its_pools_name_as_far_as_there_is_room() {
        let kubelets = Path::new("/var/lib/kubelet/device-plugins");
        let [long, longest] = [62, 63].map(|length| "x".repeat(length));
        assert_eq!(endpoint(kubelets, "dp"), "pinfold-dp.sock");
        let whole = format!("pinfold-{long}.sock");
        assert_eq!(endpoint(kubelets, &long), whole);
        assert_eq!(kubelets.join(whole).as_os_str().len(), MOST_PATH);
        let short = endpoint(kubelets, &longest);
        assert_eq!(kubelets.join(&short).as_os_str().len(), MOST_PATH);
        assert!(short.starts_with("pinfold-xxx"), "{short}");
        // FNV's own value (draft-eastlake-fnv: "foobar").
        assert_eq!(hash("foobar"), 0x8594_4171_f739_67e8);
        let far = format!("/{}", "d".repeat(90));
        for directory in [
            kubelets,
            Path::new("/var/lib/k0s/kubelet/device-plugins"),
            Path::new(&far),
        ] {
            let names: std::collections::BTreeSet<String> = (0..500)
                .map(|number| endpoint(directory, &format!("{}{number:03}", "x".repeat(60))))
                .collect();
            assert_eq!(names.len(), 500, "{names:?}");
        }
    }
}
