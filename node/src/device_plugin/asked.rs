//! Answers what the kubelet asks of a resource's devices. Each answer looks at the books anew:
//! between two looks of the [`crate::books`] somebody can have taken a list. While they cannot be
//! read they count as they were: the hook decides in any case.

use std::sync::Arc;

use anyhow::Error;
use pinfold::placement::{DevicePool, ListDevice, ListDevices, ListState};
use pinfold::refusal::{Reason, Refusal};
use pinfold::text::Shown;
use tokio::task::spawn_blocking;

use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse,
    PreferredAllocationRequest, PreferredAllocationResponse,
};
use super::devices::allocation;
use crate::books::{Books, Reader};
use crate::cdi::Known;

/// The most ids that are looked at in one question: more than a machine has CPUs.
const MOST_IDS: usize = 8192;

/// What answers for one pool.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Reads the books.
    pub reader: Arc<Reader>,
    /// The books as they were when they could be read last.
    pub books: Books,
    /// The pool's name.
    pub pool: String,
}

impl Asked {
    /// Says what containers with these devices get.
    ///
    /// # Errors
    /// A device is not known to us or, by its CDI file, to engines; its list has an owner whom the
    /// kubelet did not start; the books cannot be read. It is counted, and logged.
    pub async fn allocate(self, request: AllocateRequest) -> Result<AllocateResponse, Refusal> {
        let reader = self.reader.clone();
        let site = reader.clone();
        let answered = self
            .with_books(move |books, pool| {
                let cdi = Known::of(site.site());
                let containers = request.container_requests.iter();
                let containers = containers.map(|container| allocate(books, pool, &cdi, container));
                Ok(AllocateResponse {
                    container_responses: containers.collect::<Result<_, _>>()?,
                })
            })
            .await;
        if let Err(refusal) = &answered {
            log::warn!("refuse the kubelet a container's devices: {refusal}");
            let reason = refusal.reason;
            // The counters' lock may have to be waited for.
            let counted = spawn_blocking(move || reader.count(reason)).await;
            if let Err(error) = counted {
                log::info!("count a refusal: {error}");
            }
        }
        answered
    }

    /// Says which devices go together best. Where that cannot be told the answer has those that
    /// must be chosen alone: the kubelet then chooses the others by itself, while it takes an error
    /// for the end of the pod (`pkg/kubelet/cm/devicemanager/manager.go`, `devicesToAllocate`).
    pub async fn preferred(
        self,
        request: PreferredAllocationRequest,
    ) -> PreferredAllocationResponse {
        let must = request.container_requests.iter();
        let must: Vec<Vec<String>> = must.map(|one| one.must_include.clone()).collect();
        let answered = self.with_books(move |_, pool| {
            let containers = request.container_requests.iter();
            Ok(containers
                .map(|container| preferred(pool, container))
                .collect())
        });
        let answers: Vec<Result<Vec<String>, Refusal>> = match answered.await {
            Ok(answers) => answers,
            Err(refusal) => must.iter().map(|_| Err(refusal.clone())).collect(),
        };
        let answers = answers.into_iter().zip(must);
        let devices = answers.map(|(answer, must)| {
            answer.unwrap_or_else(|refusal| {
                log::warn!("the kubelet chooses a container's devices by itself: {refusal}");
                must
            })
        });
        PreferredAllocationResponse {
            container_responses: devices
                .map(|devices| ContainerPreferredAllocationResponse { devices })
                .collect(),
        }
    }

    /// Answers from the books as they are now, on a thread that may wait for a disk.
    async fn with_books<A: Send + 'static>(
        self,
        answer: impl FnOnce(&ListDevices, &DevicePool) -> Result<A, Refusal> + Send + 'static,
    ) -> Result<A, Refusal> {
        let answered = spawn_blocking(move || {
            let last = self.books.borrow().clone();
            let books = self.reader.read(last);
            let books = books.map_err(|error| Refusal::of(&error))?;
            let pool = books.pools.iter().find(|pool| pool.name == self.pool);
            let pool = pool.ok_or_else(|| no_pool(&self.pool))?;
            answer(&books, pool)
        });
        let answered = answered.await;
        answered.map_err(|error| Refusal::of(&Error::new(error).context("look at the books")))?
    }
}

fn no_pool(pool: &str) -> Refusal {
    Refusal::new(
        format!("there is no pool {} any more", Shown(pool)),
        "delete the pod, and start another",
    )
    .because(Reason::Pool)
}

fn allocate(
    books: &ListDevices,
    pool: &DevicePool,
    cdi: &Known,
    container: &ContainerAllocateRequest,
) -> Result<ContainerAllocateResponse, Refusal> {
    ensure_few(container.devices.len())?;
    let lists = container.devices.iter();
    let lists = lists.map(|id| of_pool(books, pool, id));
    let mut lists: Vec<&ListDevice> = lists.collect::<Result<_, _>>()?;
    // The engine would refuse the container, without a word of whose device it lacks.
    lists.iter().try_for_each(|list| cdi.ensure_has(list))?;
    lists.sort_by_key(|list| list.exact.cpus.first());
    lists.dedup_by_key(|list| &list.exact);
    allocation(&lists)
}

/// The list of this id, if the kubelet may hand it out.
fn of_pool<'a>(
    books: &ListDevices,
    pool: &'a DevicePool,
    id: &str,
) -> Result<&'a ListDevice, Refusal> {
    let list = pool.by_id(id).ok_or_else(|| {
        let what = format!("pool {} has no CPU list {}", pool.name, Shown(id));
        let remedy = "delete the pod, and start another: the pool has changed";
        Refusal::new(what, remedy).because(Reason::Pool)
    })?;
    if !list.offline.is_empty() {
        let what = format!("CPUs {} of list {} are offline", list.offline, list.name);
        return Err(Refusal::new(what, "put them online").because(Reason::Unfit));
    }
    match books.stranger_on(list) {
        None => Ok(list),
        Some(who) => Err(Refusal::new(
            format!(
                "CPU list {} of pool {} is owned by {who}, whom the kubelet did not start",
                list.name, pool.name
            ),
            "delete the pod, and start another: the kubelet now knows, and hands out another list",
        )
        .because(Reason::Exhausted)),
    }
}

fn preferred(
    pool: &DevicePool,
    container: &ContainerPreferredAllocationRequest,
) -> Result<Vec<String>, Refusal> {
    ensure_few(container.available.len() + container.must_include.len())?;
    let size = usize::try_from(container.size).unwrap_or_default();
    let choose = |available: &[String]| pool.preferred(available, &container.must_include, size);
    // A pod that asks by annotation owns lists of which the kubelet does not know.
    let is_owned = |id: &&String| {
        let list = pool.by_id(id);
        list.is_some_and(|list| list.state == ListState::Owned)
            && !container.must_include.contains(id)
    };
    let all = container.available.iter();
    let unowned: Vec<String> = all.filter(|id| !is_owned(id)).cloned().collect();
    choose(&unowned).or_else(|_| choose(&container.available))
}

fn ensure_few(ids: usize) -> Result<(), Refusal> {
    if ids <= MOST_IDS {
        return Ok(());
    }
    let what = format!("{ids} devices are named at once");
    Err(Refusal::new(what, format!("name at most {MOST_IDS}")).because(Reason::Request))
}
