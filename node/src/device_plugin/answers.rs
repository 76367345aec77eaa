//! Pure: answers to what the kubelet asks of a pool's devices, from the books as they are.

use pinfold::placement::{DevicePool, ListDevice, ListDevices, ListState};
use pinfold::refusal::{Reason, Refusal};
use pinfold::text::Shown;

use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse,
    ContainerPreferredAllocationRequest, ContainerPreferredAllocationResponse,
    PreferredAllocationRequest, PreferredAllocationResponse,
};
use super::devices::allocation;
use crate::cdi::Known;

/// The most ids that are looked at in one question: more than a machine has CPUs.
const MOST_IDS: usize = 8192;

/// What containers with these devices get.
///
/// # Errors
/// A device is not known to us or, by its CDI file, to engines; its list has an owner whom the
/// kubelet did not start.
pub fn allocate(
    books: &ListDevices,
    pool: &DevicePool,
    cdi: &Known,
    request: &AllocateRequest,
) -> Result<AllocateResponse, Refusal> {
    let containers = request.container_requests.iter();
    let containers = containers.map(|container| allocate_one(books, pool, cdi, container));
    Ok(AllocateResponse {
        container_responses: containers.collect::<Result<_, _>>()?,
    })
}

/// Which devices go together best. Where that cannot be told the answer has those that must be
/// chosen alone: the kubelet then chooses the others by itself, while it takes an error for the end
/// of the pod (`pkg/kubelet/cm/devicemanager/manager.go`, `devicesToAllocate`). It is logged.
pub fn preferred(
    pool: &DevicePool,
    request: &PreferredAllocationRequest,
) -> PreferredAllocationResponse {
    let containers = request.container_requests.iter();
    let answers = containers.map(|container| {
        preferred_of_one(pool, container).unwrap_or_else(|refusal| left_open(container, &refusal))
    });
    answered(answers)
}

/// The same where nothing can be told of any container.
pub fn nothing_preferred(
    request: &PreferredAllocationRequest,
    refusal: &Refusal,
) -> PreferredAllocationResponse {
    let containers = request.container_requests.iter();
    answered(containers.map(|container| left_open(container, refusal)))
}

fn answered(containers: impl Iterator<Item = Vec<String>>) -> PreferredAllocationResponse {
    PreferredAllocationResponse {
        container_responses: containers
            .map(|devices| ContainerPreferredAllocationResponse { devices })
            .collect(),
    }
}

fn left_open(container: &ContainerPreferredAllocationRequest, refusal: &Refusal) -> Vec<String> {
    log::warn!("the kubelet chooses a container's devices by itself: {refusal}");
    container.must_include.clone()
}

fn allocate_one(
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

fn preferred_of_one(
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

#[cfg(test)]
mod tests {
    use pinfold::host::Host;
    use pinfold::install::{DeviceKind, Place, apply, plan_cdi};
    use pinfold::placement::{Site, list_devices};
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    /// Requests behind a byte for the method, as the fuzz target begins with.
    const SEEDS: [&[u8]; 4] = [
        include_bytes!("../../../fuzz/seeds/kubelet/allocate"),
        include_bytes!("../../../fuzz/seeds/kubelet/allocate-refused"),
        include_bytes!("../../../fuzz/seeds/kubelet/allocate-unknown"),
        include_bytes!("../../../fuzz/seeds/kubelet/preferred"),
    ];

    /// A pool of lists in two NUMA nodes: one is offline, and engines do not find another.
    fn fixture() -> (ListDevices, Known) {
        let dir = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            #[expect(clippy::disallowed_methods, reason = "a test makes its files plainly")]
            std::fs::write(path, text).unwrap();
        };
        for (file, text) in [
            ("sys/devices/system/cpu/online", "0-6\n"),
            ("sys/devices/system/cpu/present", "0-7\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/devices/system/node/has_cpu", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("sys/devices/system/node/node1/cpulist", "4-7\n"),
            ("kcm/lock", ""),
            ("kcm/pools/dp/exclusive", "1"),
            ("kcm/pools/dp/0-1/tasks", ""),
            ("kcm/pools/dp/2/tasks", ""),
            ("kcm/pools/dp/4,6/tasks", ""),
            ("kcm/pools/dp/5,7/tasks", ""),
        ] {
            put(file, text);
        }
        let site = Site {
            host: Host::new(dir.path()),
            conf_dir: dir.path().join("kcm"),
            run_dir: dir.path().join("run"),
            patience: std::time::Duration::ZERO,
            deadline: None,
            usage: None,
            last: None,
            options: Default::default(),
            confines_host: false,
        };
        let place = Place {
            hook_options: vec!["--conf-dir".into(), site.conf_dir.display().to_string()],
            ..Place::default_on(&site.host)
        };
        apply(&plan_cdi(&site, &place, DeviceKind::Lists, "/usr/bin/pinfold").unwrap()).unwrap();
        put("kcm/pools/dp/3/tasks", "");
        (list_devices(&site).unwrap(), Known::of(&site))
    }

    /// The devices that each container gets, or would; `None` where the bytes are no request.
    fn answered(
        (books, cdi): &(ListDevices, Known),
        bytes: &[u8],
    ) -> Option<Result<Vec<Vec<String>>, String>> {
        let pool = &books.pools[0];
        let (method, request) = bytes.split_first()?;
        Some(match method {
            b'a' => {
                let request = AllocateRequest::decode(request).ok()?;
                let answer = allocate(books, pool, cdi, &request);
                let answer = answer.map_err(|refusal| refusal.to_string());
                answer.map(|answer| {
                    let all = answer.container_responses.into_iter();
                    let names = |one: ContainerAllocateResponse| {
                        one.cdi_devices.into_iter().map(|device| device.name)
                    };
                    all.map(|one| names(one).collect()).collect()
                })
            }
            b'p' => {
                let request = PreferredAllocationRequest::decode(request).ok()?;
                let all = preferred(pool, &request).container_responses;
                Ok(all.into_iter().map(|one| one.devices).collect())
            }
            _ => return None,
        })
    }

    #[test]
    fn each_seed_has_its_answer() {
        let fixture = fixture();
        let [given, offline, unknown, chosen] = SEEDS.map(|seed| answered(&fixture, seed).unwrap());
        let names = |ids: &[&str]| -> Vec<String> {
            let names = ids.iter().map(|id| format!("pinfold.io/list=dp.{id}"));
            names.collect()
        };
        assert_eq!(given.unwrap(), [names(&["0-1", "4_6"]), names(&["2"])]);
        assert!(
            offline
                .unwrap_err()
                .contains("CPUs 7 of list 5,7 are offline")
        );
        assert!(unknown.unwrap_err().contains("no CDI file has the device"));
        let [chosen] = &chosen.unwrap()[..] else {
            panic!("one container asks")
        };
        assert!(
            chosen.len() == 2 && chosen.contains(&"4_6".to_owned()),
            "{chosen:?}"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]
        #[test]
        fn what_the_kubelet_sends_with_any_bytes_changed_is_answered_or_none(
            seed in 0..SEEDS.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            std::thread_local!(static FIXTURE: (ListDevices, Known) = fixture());
            let mut bytes = SEEDS[seed].to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            let answer = FIXTURE.with(|fixture| answered(fixture, &bytes));
            if let Some(Err(sentence)) = answer {
                prop_assert!(!sentence.contains(char::is_control), "{sentence}");
            }
        }
    }
}
