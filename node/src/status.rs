//! What the parts of this program know of themselves, for the metrics.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The present state of the parts.
#[derive(Debug, Default)]
pub struct Status {
    /// Does the kubelet watch the devices of a pool?
    kubelet: Mutex<BTreeMap<String, bool>>,
}

impl Status {
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
    }

    fn kubelet(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.kubelet.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
