//! What the parts of this program know of themselves, for the metrics.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::nri;

/// The present state of the parts.
#[derive(Debug, Default)]
pub struct Status {
    /// Does the kubelet watch the devices of a pool?
    kubelet: Mutex<BTreeMap<String, bool>>,
    /// The NRI plugin's; `None` where this process is none.
    nri: Option<Arc<nri::Status>>,
}

impl Status {
    /// The state at the beginning, of a process that serves an engine as NRI plugin or not.
    pub fn new(nri: Option<Arc<nri::Status>>) -> Status {
        Status {
            nri,
            ..Status::default()
        }
    }

    /// Says whether the kubelet watches the devices of a pool.
    pub fn set_kubelet(&self, pool: &str, is_watching: bool) {
        self.kubelet().insert(pool.to_owned(), is_watching);
    }

    /// Forgets all but these pools.
    pub fn keep_kubelet(&self, is_there: impl Fn(&str) -> bool) {
        self.kubelet().retain(|pool, _| is_there(pool));
    }

    /// Adds the metrics of the parts.
    pub fn register(&self, registry: &mut Registry) {
        let connected = Family::<Vec<(&'static str, String)>, Gauge>::default();
        for (pool, is_watching) in self.kubelet().iter() {
            let labels = vec![("pool", pool.clone())];
            connected.get_or_create(&labels).set((*is_watching).into());
        }
        let help = "Whether the kubelet watches the devices of a pool";
        registry.register("kubelet_connected", help, connected);
        if let Some(nri) = &self.nri {
            let is_connected = <Gauge>::default();
            is_connected.set(nri.is_connected().into());
            let help = "Whether the engine asks the NRI plugin about each container";
            registry.register("nri_connected", help, is_connected);
            let unpinned = <Gauge>::default();
            unpinned.set(i64::try_from(nri.unpinned()).unwrap_or(i64::MAX));
            let help = "Running containers that asked for CPUs by annotation and have none";
            registry.register("nri_unpinned_containers", help, unpinned);
        }
    }

    fn kubelet(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn text(status: &Status) -> String {
        let mut registry = Registry::default();
        status.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn nri_is_told_of_where_this_process_serves_it() {
        let status = Status::new(None);
        assert!(!text(&status).contains("nri"));
        let status = Status::new(Some(Arc::default()));
        let told = text(&status);
        assert!(told.contains("\nnri_connected 0\n"), "{told}");
        assert!(told.contains("\nnri_unpinned_containers 0\n"), "{told}");
    }
}
