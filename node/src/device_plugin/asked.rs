//! Answers what the kubelet asks of a resource's devices. Each answer looks at the books anew:
//! between two looks of the [`crate::books`] somebody can have taken a list. While they cannot be
//! read they count as they were: the hook decides in any case.

use std::sync::Arc;

use anyhow::Error;
use pinfold::placement::{DevicePool, ListDevices};
use pinfold::refusal::{Reason, Refusal};
use pinfold::text::Shown;
use tokio::task::spawn_blocking;

use super::answers;
use super::api::{
    AllocateRequest, AllocateResponse, PreferredAllocationRequest, PreferredAllocationResponse,
};
use crate::books::{Books, Reader};
use crate::cdi::Known;

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
                answers::allocate(books, pool, &cdi, &request)
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

    /// Says which devices go together best.
    pub async fn preferred(
        self,
        request: PreferredAllocationRequest,
    ) -> PreferredAllocationResponse {
        let asked = request.clone();
        let answered = self.with_books(move |_, pool| Ok(answers::preferred(pool, &asked)));
        let answered = answered.await;
        answered.unwrap_or_else(|refusal| answers::nothing_preferred(&request, &refusal))
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
