//! `mountinfo` and a process's `cgroup`, divided by a NUL: a group is below the mount, and never
//! elsewhere.
#![no_main]

use std::path::Component;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use pinfold::cgroup::cpuset;
use pinfold::host::Host;
use pinfold_fuzz::Scratch;

static ROOT: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|text: &str| {
    let (mountinfo, cgroup) = text.split_once('\0').unwrap_or((text, ""));
    ROOT.put("proc/1/mountinfo", mountinfo.as_bytes());
    ROOT.put("proc/7/cgroup", cgroup.as_bytes());
    let host = Host::new(ROOT.path());
    let Ok(hierarchy) = cpuset::hierarchy(&host) else {
        return;
    };
    if let Ok(Some(group)) = hierarchy.group_of(&host, 7) {
        let root = hierarchy
            .group(group.path())
            .expect("its path was taken before");
        assert_eq!(root.dir(), group.dir());
        let below = group.path().split('/').filter(|part| !part.is_empty());
        assert!(below.clone().all(|part| part != ".."));
        assert!(group.dir().starts_with(ROOT.path()));
        let last = group.dir().components().next_back();
        assert_ne!(last, Some(Component::ParentDir));
    }
});
