//! What the kubelet asks of a pool's devices: the first byte says which method, the rest is the
//! request. Each has an answer that keeps to what was asked, or a sentence.
#![no_main]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pinfold::install::{DeviceKind, Place, apply, plan_cdi};
use pinfold::placement::{DevicePool, ListDevices, list_devices};
use pinfold_fuzz::{Scratch, site};
use pinfold_node::cdi::Known;
use pinfold_node::device_plugin::answers::{allocate, preferred};
use pinfold_node::device_plugin::api::{
    AllocateRequest, Empty, PreferredAllocationRequest, RegisterRequest,
};
use prost::Message;

/// A pool of four lists in two NUMA nodes. One list is offline, and engines do not know another.
struct Fixture {
    books: ListDevices,
    cdi: Known,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let scratch = Scratch::new();
    for (file, content) in [
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
        scratch.put(file, content.as_bytes());
    }
    let site = site(scratch.path());
    let place = Place {
        hook_options: vec!["--conf-dir".to_owned(), site.conf_dir.display().to_string()],
        ..Place::default_on(&site.host)
    };
    let plan = plan_cdi(&site, &place, DeviceKind::Lists, "/usr/bin/pinfold");
    apply(&plan.expect("the pools can be read")).expect("the file can be written");
    scratch.put("kcm/pools/dp/3/tasks", b"");
    Fixture {
        books: list_devices(&site).expect("the pools can be read"),
        cdi: Known::of(&site),
    }
});

fuzz_target!(|bytes: &[u8]| {
    let Some((method, request)) = bytes.split_first() else {
        return;
    };
    let Fixture { books, cdi } = &*FIXTURE;
    let pool = &books.pools[0];
    match method {
        b'a' => {
            if let Ok(request) = AllocateRequest::decode(request) {
                allocated(books, pool, cdi, &request);
            }
        }
        b'p' => {
            if let Ok(request) = PreferredAllocationRequest::decode(request) {
                chosen(pool, &request);
            }
        }
        // ListAndWatch and GetDevicePluginOptions ask nothing; the last is what we tell ourselves.
        _ => {
            let _ = Empty::decode(request);
            let _ = RegisterRequest::decode(request);
        }
    }
});

fn allocated(books: &ListDevices, pool: &DevicePool, cdi: &Known, request: &AllocateRequest) {
    let answer = match allocate(books, pool, cdi, request) {
        Ok(answer) => answer,
        Err(refusal) => {
            assert!(!refusal.what.is_empty() && !refusal.remedy.is_empty());
            assert!(!refusal.to_string().contains(char::is_control), "{refusal}");
            return;
        }
    };
    assert_eq!(
        answer.container_responses.len(),
        request.container_requests.len()
    );
    for (container, got) in request
        .container_requests
        .iter()
        .zip(&answer.container_responses)
    {
        let asked: BTreeSet<&String> = container.devices.iter().collect();
        assert_eq!(got.cdi_devices.len(), asked.len());
        for id in asked {
            // The offline list, and the one that engines do not find.
            assert!(!["3", "5_7"].contains(&id.as_str()));
            let name = format!("pinfold.io/list=dp.{id}");
            assert!(got.cdi_devices.iter().any(|one| one.name == name));
        }
    }
}

fn chosen(pool: &DevicePool, request: &PreferredAllocationRequest) {
    let answer = preferred(pool, request);
    assert_eq!(
        answer.container_responses.len(),
        request.container_requests.len()
    );
    for (container, got) in request
        .container_requests
        .iter()
        .zip(&answer.container_responses)
    {
        if got.devices == container.must_include {
            continue;
        }
        let must: BTreeSet<&String> = container.must_include.iter().collect();
        // Those that must be chosen are, also where fewer are asked for.
        let size = usize::try_from(container.size).unwrap_or_default();
        let size = size.max(must.len());
        let chosen: BTreeSet<&String> = got.devices.iter().collect();
        assert_eq!((got.devices.len(), chosen.len()), (size, size));
        assert!(must.is_subset(&chosen));
        let available: BTreeSet<&String> = container.available.iter().collect();
        let all = available.union(&must).copied().collect();
        assert!(chosen.is_subset(&all));
    }
}
