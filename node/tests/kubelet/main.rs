//! The device plugin, before a kubelet of our own.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod fake;
mod node;

use std::fs::Permissions;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use fake::Kubelet;
use node::{Machine, Sleeper, eventually};
use tonic::{Code, Status};

const DP: [&str; 4] = ["dp!/0-1", "dp!/2-3", "dp!/4,6", "dp!/5,7"];

#[tokio::test]
async fn a_pool_is_registered_and_its_lists_are_devices() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let _node = machine.start(&[]);
    let registered = kubelet.registration().await;
    assert_eq!(registered.version, "v1beta1");
    assert_eq!(registered.endpoint, "pinfold-dp.sock");
    assert_eq!(registered.resource_name, "pinfold.io/dp");
    let plugin = kubelet.plugin(&registered.endpoint).await;
    let options = plugin.options().await;
    assert_eq!(registered.options, Some(options));
    assert!(options.get_preferred_allocation_available && !options.pre_start_required);
    let devices = plugin.list_and_watch().await.next().await.unwrap();
    let told: Vec<(&str, &str, Vec<i64>)> = devices
        .iter()
        .map(|device| {
            let nodes = device.topology.iter().flat_map(|topology| &topology.nodes);
            let nodes = nodes.map(|node| node.id).collect();
            (device.id.as_str(), device.health.as_str(), nodes)
        })
        .collect();
    assert_eq!(
        told,
        [
            ("0-1", "Healthy", vec![0]),
            ("2-3", "Healthy", vec![0]),
            ("4_6", "Healthy", vec![1]),
            ("5_7", "Healthy", vec![1]),
        ]
    );
    assert_eq!(plugin.unknown().await.code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_list_is_ill_while_somebody_owns_it_whom_the_kubelet_did_not_start() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let pod = Sleeper::new();
    machine.claim("dp/0-1", pod.pid(), Some("shop"));
    let node = machine.start(&[]);
    let plugin = kubelet.next_plugin().await;
    let mut watch = plugin.list_and_watch().await;
    assert_eq!(watch.unhealthy().await, [""; 0], "{}", node.log());
    // KCM's own tool, which writes a process into the list.
    let stranger = Sleeper::new();
    machine.set_tasks("dp/2-3", &[stranger.pid()]);
    assert_eq!(watch.unhealthy().await, ["2-3"]);
    // A container of podman.
    let podman = Sleeper::new();
    machine.claim("dp/4,6", podman.pid(), None);
    assert_eq!(watch.unhealthy().await, ["2-3", "4_6"]);
    let refused = plugin.allocate(&["4_6"]).await.unwrap_err();
    assert!(refused.message().contains("owned by \"web"), "{refused}");
    // Nobody has a word from a dead owner.
    drop(podman);
    assert_eq!(watch.unhealthy().await, ["2-3"]);
    machine.set_tasks("dp/2-3", &[]);
    assert_eq!(watch.unhealthy().await, [""; 0]);
    // The kubelet knows of its own containers, and hands out their list again when they are gone.
    for id in ["0-1", "2-3", "4_6"] {
        plugin.allocate(&[id]).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_container_gets() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let node = machine.start(&[]);
    let plugin = kubelet.next_plugin().await;
    let got = plugin.allocate(&["4_6", "0-1"]).await.unwrap();
    let names: Vec<&str> = got
        .cdi_devices
        .iter()
        .map(|one| one.name.as_str())
        .collect();
    assert_eq!(names, ["pinfold.io/list=dp.0-1", "pinfold.io/list=dp.4_6"]);
    assert_eq!(got.envs["KCM_CPUS_ASSIGNED"], "0-1,4,6");
    assert_eq!(got.envs["KCM_CPUS_ASSIGNED_MASK"], "53");
    assert_eq!(got.annotations["cdi.k8s.io/pinfold_list"], names.join(","));
    for (id, part) in [
        ("8-9", "has no CPU list \"8-9\""),
        ("4,6", "has no CPU list"),
        ("../x", "has no CPU list"),
        ("\u{1b}[31m", "\\u{1b}"),
        ("", "has no CPU list"),
    ] {
        let refused = plugin.allocate(&["0-1", id]).await.unwrap_err();
        assert!(refused.message().contains(part), "{id}: {refused}");
    }
    node.says("refuse the kubelet a container's devices: pool dp has no CPU list")
        .await;
    // An offline list is not given.
    machine.put("sys/devices/system/cpu/online", "0-2,4-7\n");
    let refused = plugin.allocate(&["2-3"]).await.unwrap_err();
    assert!(
        refused.message().contains("CPUs 3 of list 2-3 are offline"),
        "{refused}"
    );
}

#[tokio::test]
async fn which_devices_go_together_best() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let pod = Sleeper::new();
    let node = machine.start(&[]);
    let plugin = kubelet.next_plugin().await;
    let all = ["0-1", "2-3", "4_6", "5_7"];
    for (available, must, size, expected) in [
        (&all[..], &[][..], 2, &["0-1", "2-3"][..]),
        (&all, &["5_7"], 2, &["4_6", "5_7"]),
        (&["0-1", "4_6", "5_7"], &[], 2, &["4_6", "5_7"]),
        (&["0-1", "2-3", "gone"], &[], 1, &["0-1"]),
        (&all, &[], 4, &all),
    ] {
        let preferred = plugin.preferred(available, must, size).await.unwrap();
        assert_eq!(preferred, expected, "{available:?} {must:?} {size}");
    }
    // Where nothing can be told the kubelet chooses: it takes an error for the end of the pod.
    let many: Vec<String> = (0..8193).map(|id| id.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (available, must, size) in [
        (&all[..1], &[][..], 2),
        (&all, &["gone"], 2),
        (&all[..2], &["0-1"], 3),
        (&many, &["0-1"], 2),
    ] {
        let left = plugin.preferred(available, must, size).await.unwrap();
        assert_eq!(left, must, "{must:?} {size}");
    }
    node.says("the kubelet chooses a container's devices by itself: 2 of the lists of pool dp")
        .await;
    assert_eq!(plugin.preferred(&all, &[], -1).await.unwrap(), [""; 0]);
    // A pod by annotation has a list of which the kubelet does not know.
    machine.claim("dp/0-1", pod.pid(), Some("shop"));
    assert_eq!(
        plugin.preferred(&all, &[], 2).await.unwrap(),
        ["4_6", "5_7"]
    );
    assert_eq!(plugin.preferred(&all, &[], 4).await.unwrap(), all);
    // Nor is there an error where the pool has gone meanwhile.
    std::fs::rename(machine.path("kcm/pools/dp"), machine.path("kcm/dp")).unwrap();
    let left = plugin.preferred(&all, &["4_6"], 2).await.unwrap();
    assert_eq!(left, ["4_6"]);
}

#[tokio::test]
async fn a_kubelet_that_starts_again_is_told_again() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let mut node = machine.start(&[]);
    for _ in 0..3 {
        let endpoint = kubelet.registration().await.endpoint;
        let plugin = kubelet.plugin(&endpoint).await;
        let mut watch = plugin.list_and_watch().await;
        assert_eq!(watch.next().await.unwrap().len(), 4);
        kubelet.end().await;
        // It wipes the sockets, ours too.
        kubelet = Kubelet::start(&machine.kubelet());
    }
    kubelet.registration().await;
    assert!(node.is_running());
    // One that takes it for known and connects to nothing is told once more.
    kubelet.registration().await;
}

#[tokio::test]
async fn resources_follow_the_pools() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let _node = machine.start(&[]);
    let plugin = kubelet.next_plugin().await;
    let mut watch = plugin.list_and_watch().await;
    assert_eq!(watch.next().await.unwrap().len(), 4);
    std::fs::remove_dir_all(machine.path("kcm/pools/dp/5,7")).unwrap();
    assert_eq!(watch.next().await.unwrap().len(), 3);
    machine.add("other!/5,7");
    let other = kubelet.registration().await;
    assert_eq!(other.resource_name, "pinfold.io/other");
    let other = kubelet
        .plugin(&other.endpoint)
        .await
        .list_and_watch()
        .await
        .next()
        .await;
    assert_eq!(other.unwrap()[0].id, "5_7");
    std::fs::rename(machine.path("kcm/pools/dp"), machine.path("kcm/dp")).unwrap();
    assert_eq!(watch.next().await.unwrap(), []);
    assert_eq!(watch.next().await, None);
    eventually("the socket is gone", || !machine.socket("dp").exists()).await;
    assert!(machine.socket("other").exists());
}

/// Neither an entry that is no pool nor another pool that cannot be read says anything of the one
/// that is removed.
#[tokio::test]
async fn a_removed_pool_is_withdrawn_whatever_else_cannot_be_read() {
    for is_link in [true, false] {
        let machine = Machine::with(&["dp!/0-1", "kept!/4,6", "other!/2-3"]);
        let mut kubelet = Kubelet::start(&machine.kubelet());
        let node = machine.start(&[]);
        let mut watches = Vec::new();
        for _ in 0..3 {
            let registered = kubelet.registration().await;
            let plugin = kubelet.plugin(&registered.endpoint).await;
            let mut watch = plugin.list_and_watch().await;
            assert_eq!(watch.next().await.unwrap().len(), 1);
            watches.push((registered.resource_name, watch));
        }
        watches.sort_by(|one, other| one.0.cmp(&other.0));
        let (_, mut of_dp) = watches.remove(0);
        match is_link {
            true => {
                symlink(machine.path("kcm"), machine.path("kcm/pools/link")).unwrap();
                node.says("pools/link").await;
            }
            false => {
                machine.put("kcm/pools/kept/exclusive", "?");
                node.says("pools/kept").await;
            }
        }
        std::fs::rename(machine.path("kcm/pools/dp"), machine.path("kcm/dp")).unwrap();
        assert_eq!(of_dp.next().await, Some(Vec::new()), "{}", node.log());
        assert_eq!(of_dp.next().await, None);
        eventually("the socket is gone", || !machine.socket("dp").exists()).await;
        // The one that cannot be read has not been removed.
        for pool in ["kept", "other"] {
            assert!(machine.socket(pool).exists(), "{pool}: {}", node.log());
        }
    }
}

#[tokio::test]
async fn the_cdi_devices_are_those_of_the_lists_whoever_changes_the_pools() {
    let machine = Machine::without_cdi(&DP);
    let kubelet = Kubelet::start(&machine.kubelet());
    let cdi = machine.path("etc/cdi/pinfold-lists.json");
    let node = machine.start(&[]);
    let log = node
        .says("no list can be given by device: there is no ")
        .await;
    assert!(log.contains(": `pinfold cdi --lists`"), "{log}");
    assert!(!cdi.exists());
    machine.write_cdi();
    let names = || {
        let text = std::fs::read_to_string(&cdi).unwrap();
        let file: serde_json::Value = serde_json::from_str(&text).unwrap();
        let devices = file["devices"].as_array().unwrap().iter();
        devices
            .map(|one| one["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names().len(), 4);
    // KCM's own tools change pools and write no CDI file.
    machine.add("other!/3");
    std::fs::remove_dir_all(machine.path("kcm/pools/dp/2-3")).unwrap();
    let expected = ["dp.0-1", "dp.4_6", "dp.5_7", "other.3"];
    eventually("the devices follow", || names() == expected).await;
    machine.put("etc/cdi/pinfold-lists.json", "{}");
    machine.add("third!/2");
    node.says("pinfold-lists.json is there and is not of Pinfold")
        .await;
    drop(kubelet);
}

/// A container that is given a device which its engine does not know never starts.
#[tokio::test]
async fn a_list_is_ill_while_engines_do_not_find_its_device() {
    let machine = Machine::with(&DP);
    let file = "etc/cdi/pinfold-lists.json";
    let whole = std::fs::read_to_string(machine.path(file)).unwrap();
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let node = machine.start(&[]);
    let plugin = kubelet.next_plugin().await;
    let mut watch = plugin.list_and_watch().await;
    assert_eq!(watch.unhealthy().await, [""; 0], "{}", node.log());
    let all = ["0-1", "2-3", "4_6", "5_7"];
    let other_pools = whole.replace(machine.path("kcm").to_str().unwrap(), "/elsewhere");
    for (text, part) in [
        (None, "there is no "),
        (Some("{"), "it is not JSON"),
        (Some("{}"), "is not of Pinfold"),
        (Some(&other_pools), "devices of another pool directory"),
    ] {
        match text {
            Some(text) => machine.put(file, text),
            None => std::fs::remove_file(machine.path(file)).unwrap(),
        }
        assert_eq!(watch.unhealthy().await, all, "{text:?}: {}", node.log());
        let refused = plugin.allocate(&["0-1"]).await.unwrap_err();
        assert!(refused.message().contains(part), "{refused}");
        assert_eq!(refused.code(), Code::FailedPrecondition);
        machine.put(file, &whole);
        assert_eq!(watch.unhealthy().await, [""; 0], "{}", node.log());
    }
    // One device is missing; whoever keeps the file brings it back.
    machine.put(file, &whole.replace("dp.2-3", "dp.other"));
    assert_eq!(watch.unhealthy().await, ["2-3"]);
    plugin.allocate(&["0-1"]).await.unwrap();
    let refused = plugin.allocate(&["0-1", "2-3"]).await;
    if let Err(refused) = refused {
        let part = "no CDI file has the device of CPU list 2-3 of pool dp: `pinfold cdi --lists`";
        assert!(refused.message().contains(part), "{refused}");
    }
    assert_eq!(watch.unhealthy().await, [""; 0]);
}

/// The kernel takes 108 bytes of a socket's path, fewer than a directory and such a name have.
#[tokio::test]
async fn pools_of_the_longest_names_are_served() {
    let pools = ["a", "b"].map(|end| format!("{}{end}", "x".repeat(62)));
    let lists: Vec<String> = pools
        .iter()
        .map(|pool| format!("{pool}!/{}", pool.ends_with('b') as u8))
        .collect();
    let lists: Vec<&str> = lists.iter().map(String::as_str).collect();
    let machine = Machine::with(&lists);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let mut node = machine.start(&[]);
    let mut seen = Vec::new();
    for _ in 0..2 {
        let registered = kubelet.registration().await;
        let plugin = kubelet.plugin(&registered.endpoint).await;
        let devices = plugin.list_and_watch().await.next().await.unwrap();
        seen.push((registered.resource_name, devices[0].id.clone()));
    }
    seen.sort();
    let expected = [0, 1].map(|at| (format!("pinfold.io/{}", pools[at]), at.to_string()));
    assert_eq!(seen, expected);
    node.signal("TERM");
    assert!(node.ended().success());
    let left = std::fs::read_dir(machine.path("kubelet/device-plugins")).unwrap();
    assert!(
        left.flatten()
            .all(|entry| !entry.file_name().to_string_lossy().starts_with("pinfold"))
    );
}

/// Half of the books would have a pod's own list be a stranger's, or gone.
#[tokio::test]
async fn what_cannot_be_read_whole_is_as_it_was() {
    let machine = Machine::with(&["cp!/2-3", "dp!/0-1", "dp!/4,6", "dp!/5,7"]);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let pod = Sleeper::new();
    machine.claim("dp/0-1", pod.pid(), Some("shop"));
    let node = machine.start(&[]);
    let mut plugins = Vec::new();
    for _ in 0..2 {
        let registered = kubelet.registration().await;
        let plugin = kubelet.plugin(&registered.endpoint).await;
        let mut watch = plugin.list_and_watch().await;
        assert_eq!(watch.unhealthy().await, [""; 0], "{}", node.log());
        plugins.push((registered.resource_name, plugin, watch));
    }
    plugins.sort_by(|one, other| one.0.cmp(&other.0));
    let (_, cp, mut of_cp) = plugins.remove(0);
    let (_, dp, mut of_dp) = plugins.remove(0);
    let rename = |from: &str, to: &str| {
        std::fs::rename(machine.path(from), machine.path(to)).unwrap();
    };
    // Neither the owners of any list are known then, nor whether they are the kubelet's.
    rename("run/claims", "run/aside");
    machine.put("run/claims", "");
    node.says("claims").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    dp.allocate(&["0-1"]).await.unwrap();
    let log = node.log();
    assert_eq!(log.matches("the claims cannot be read").count(), 1, "{log}");
    std::fs::remove_file(machine.path("run/claims")).unwrap();
    rename("run/aside", "run/claims");
    // It is read again: here is news, of a pool, and only of that.
    let stranger = Sleeper::new();
    machine.set_tasks("cp/2-3", &[stranger.pid()]);
    assert_eq!(of_cp.unhealthy().await, ["2-3"]);
    // One pool, and one list of it, cannot be read; the other pool is followed.
    machine.put("kcm/pools/dp/exclusive", "?");
    machine.set_tasks("cp/2-3", &[]);
    assert_eq!(of_cp.unhealthy().await, [""; 0]);
    dp.allocate(&["4_6"]).await.unwrap();
    machine.put("kcm/pools/dp/exclusive", "1");
    machine.put("kcm/pools/dp/4,6/tasks", "x");
    machine.set_tasks("cp/2-3", &[stranger.pid()]);
    assert_eq!(of_cp.unhealthy().await, ["2-3"]);
    dp.allocate(&["4_6", "5_7"]).await.unwrap();
    assert!(cp.allocate(&["2-3"]).await.is_err());
    machine.put("kcm/pools/dp/4,6/tasks", "");
    // All the while nobody was told anything else of the pool, not even for a moment.
    machine.set_tasks("dp/5,7", &[stranger.pid()]);
    assert_eq!(of_dp.unhealthy().await, ["5_7"], "{}", node.log());
}

#[tokio::test]
async fn what_is_no_resource_gets_a_sentence_and_the_others_go_on() {
    let machine = Machine::with(&["closed!/0", "dash-!/1", "dp!/2", "shared/3"]);
    machine.put("config.toml", "[pools.closed]\ndoors = [\"annotation\"]\n");
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let config = machine.path("config.toml");
    let node = machine.start(&["--config", config.to_str().unwrap()]);
    assert_eq!(kubelet.registration().await.resource_name, "pinfold.io/dp");
    let log = node.says("allows no pinfold.io/dash-").await;
    assert!(
        log.contains("pool closed is no resource: it may not"),
        "{log}"
    );
    for pool in ["closed", "dash-", "shared"] {
        assert!(!machine.socket(pool).exists(), "{pool}");
    }
}

#[tokio::test]
async fn it_waits_for_a_kubelet_and_says_so_once() {
    let machine = Machine::with(&DP);
    let node = machine.start(&[]);
    let kubelet = machine.kubelet();
    node.says("there is no kubelet at").await;
    // Its directory is not there either.
    node.says("make the socket").await;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let log = node.log();
    assert_eq!(log.matches("there is no kubelet at").count(), 1, "{log}");
    assert_eq!(log.matches("make the socket").count(), 1, "{log}");
    let mut kubelet = Kubelet::start(&kubelet);
    kubelet.registration().await;
}

#[tokio::test]
async fn an_older_kubelet_gets_a_sentence() {
    let machine = Machine::with(&DP);
    let refusal = "requested API version \"v1beta1\" is not supported by kubelet";
    let answer = move || Err(Status::unknown(refusal));
    let mut kubelet = Kubelet::answering(&machine.kubelet(), answer);
    let mut node = machine.start(&[]);
    kubelet.registration().await;
    node.says("the kubelet refuses pinfold.io/dp").await;
    node.says("Kubernetes 1.10 or later").await;
    kubelet.registration().await;
    assert!(node.is_running());
}

#[tokio::test]
async fn one_process_at_a_time_and_its_end_leaves_nothing() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let mut first = machine.start(&[]);
    kubelet.registration().await;
    let mut second = machine.start(&[]);
    assert_eq!(second.ended().code(), Some(1));
    let log = second.log();
    let who = format!("pinfold-node runs already as process {}", first.pid());
    assert!(log.contains(&who) && log.contains("--run-dir"), "{log}");
    for signal in ["TERM", "INT"] {
        let plugin = kubelet.plugin("pinfold-dp.sock").await;
        let mut watch = plugin.list_and_watch().await;
        assert_eq!(watch.next().await.unwrap().len(), 4);
        first.signal(signal);
        assert_eq!(first.ended().code(), Some(0), "{}", first.log());
        // The kubelet is not told that there are none: another process goes on with them.
        assert_eq!(watch.next().await, None);
        assert!(!machine.socket("dp").exists());
        first = machine.start(&[]);
        kubelet.registration().await;
    }
    // One that is killed leaves its socket, and the next has it.
    first.signal("KILL");
    first.ended();
    assert!(machine.socket("dp").exists());
    let _next = machine.start(&[]);
    kubelet.registration().await;
    assert_eq!(
        kubelet
            .plugin("pinfold-dp.sock")
            .await
            .allocate(&["0-1"])
            .await
            .unwrap()
            .envs
            .len(),
        2
    );
}

#[tokio::test]
async fn a_socket_of_somebody_else_is_left_alone() {
    let machine = Machine::with(&["dp!/0", "other!/1"]);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let theirs = std::os::unix::net::UnixListener::bind(machine.socket("dp")).unwrap();
    std::fs::write(machine.socket("other"), "").unwrap();
    let node = machine.start(&[]);
    node.says("pinfold-dp.sock: end that one").await;
    node.says("pinfold-other.sock is there and is not a socket")
        .await;
    // Whoever ended without removing it needs it no more.
    drop(theirs);
    assert_eq!(kubelet.registration().await.resource_name, "pinfold.io/dp");
    std::fs::remove_file(machine.socket("other")).unwrap();
    assert_eq!(
        kubelet.registration().await.resource_name,
        "pinfold.io/other"
    );
}

#[test]
fn what_it_understands() {
    let run = |arguments: &[&str]| {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_pinfold-node"))
            .args(arguments)
            .output()
            .unwrap();
        let said = [program.stdout, program.stderr].concat();
        (program.status.code(), String::from_utf8(said).unwrap())
    };
    let captured = Machine::with(&DP);
    std::fs::remove_file(captured.path("proc")).unwrap();
    let captured = captured.dir.path().to_str().unwrap();
    for (arguments, code, part) in [
        (&["--help"][..], 0, "Example: pinfold-node run"),
        (
            &["run", "--help"],
            0,
            "pinfold-node run --metrics 127.0.0.1:9470",
        ),
        (
            &["install", "--help"],
            0,
            "pinfold-node install --root /host",
        ),
        (&["--version"], 0, env!("CARGO_PKG_VERSION")),
        (&[], 2, "Usage: pinfold-node"),
        (&["run", "--metrics", "9470"], 2, "invalid value '9470'"),
        (&["run", "--nri-socket", "/x"], 2, "--nri"),
        (
            &["run", "--nri", "--bin-dir", "bin"],
            2,
            "write the whole path",
        ),
        (
            &["install", "--root", "/x", "--engine", "docker"],
            2,
            "containerd or crio",
        ),
        (
            &["install", "--root", "/x", "--bin-dir", "bin"],
            2,
            "write the whole path",
        ),
        (
            &["run", "--host-root", captured],
            2,
            "looking at a captured",
        ),
        (&["run", "--config", "/nowhere"], 1, "/nowhere"),
    ] {
        let (ended, said) = run(arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}

/// A container's image, and a host's root directory that it mounts.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    /// With a shell on the host; `None` without the right to change one's root directory.
    fn new() -> Option<Mounted> {
        if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
            eprintln!("only root changes its root directory");
            return None;
        }
        let mounted = Mounted {
            dir: tempfile::tempdir().unwrap(),
        };
        let own = Path::new(env!("CARGO_BIN_EXE_pinfold-node"));
        mounted.copy(own, "image/pinfold-node");
        mounted.copy(Path::new("/bin/sh"), "host/bin/sh");
        let libraries = Command::new("ldd").arg("/bin/sh").output().unwrap();
        let libraries = String::from_utf8(libraries.stdout).unwrap();
        let words = libraries.split_whitespace();
        for library in words.filter(|word| word.starts_with('/')) {
            mounted.copy(Path::new(library), &format!("host{library}"));
        }
        mounted.bring("exit 0");
        Some(mounted)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn copy(&self, from: &Path, to: &str) {
        std::fs::create_dir_all(self.path(to).parent().unwrap()).unwrap();
        // By a process of its own: what another test forks meanwhile would hold the file open for
        // writing, and the kernel starts no such program (ETXTBSY).
        let copied = Command::new("cp").arg(from).arg(self.path(to)).status();
        assert!(copied.unwrap().success());
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Makes the program that is brought one that writes down how it is run, and does this.
    fn bring(&self, does: &str) {
        let text = format!("#!/bin/sh\necho \"$*\" >>/ran\n{does}\n");
        self.put("image/pinfold", &text);
        let mode = Permissions::from_mode(0o755);
        std::fs::set_permissions(self.path("image/pinfold"), mode).unwrap();
    }

    /// The exit status of an `install` with these words, and what it said.
    fn install(&self, words: &[&str]) -> (Option<i32>, String) {
        let installed = Command::new(self.path("image/pinfold-node"))
            .args(["install", "--root"])
            .arg(self.path("host"))
            .args(words)
            .env_remove("PINFOLD_LOG")
            .output()
            .unwrap();
        let said = String::from_utf8(installed.stderr).unwrap();
        (installed.status.code(), said)
    }

    /// The same with a configuration of this text.
    fn install_config(&self, text: &str) -> (Option<i32>, String) {
        self.put("config.toml", text);
        self.install(&["--config-file", self.path("config.toml").to_str().unwrap()])
    }

    /// A file of the host's; nothing where there is none.
    fn on_host(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("host/{name}"))).unwrap_or_default()
    }

    fn mode(&self, name: &str) -> u32 {
        let metadata = std::fs::metadata(self.path(&format!("host/{name}")));
        metadata.unwrap().permissions().mode() & 0o7777
    }
}

/// Links of the host's lead where they lead the host, not in the container that mounts it.
#[test]
fn what_is_brought_to_a_host_is_below_its_root() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    // There are no such directories in this root.
    let unique = mounted.dir.path().file_name().unwrap().to_str().unwrap();
    for (link, to) in [("etc/pinfold", "config"), ("usr/local/bin", "programs")] {
        let link = mounted.path(&format!("host/{link}"));
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        let to = format!("/{unique}/{to}");
        std::fs::create_dir_all(mounted.path(&format!("host{to}"))).unwrap();
        symlink(to, link).unwrap();
    }
    let run_dir = mounted.path("host/run/pinfold");
    std::fs::create_dir_all(&run_dir).unwrap();
    std::fs::set_permissions(&run_dir, Permissions::from_mode(0o755)).unwrap();
    let (status, said) = mounted.install_config("[pools]\n");
    assert_eq!(status, Some(0), "{said}");
    let programs = mounted.path(&format!("host/{unique}/programs"));
    let brought = std::fs::read(programs.join("pinfold")).unwrap();
    assert!(brought == std::fs::read(mounted.path("image/pinfold")).unwrap());
    assert!(programs.join("pinfold-runtime").is_symlink());
    let config = mounted.on_host(&format!("{unique}/config/config.toml"));
    assert!(config.ends_with("[pools]\n"), "{config}");
    assert!(!Path::new("/").join(unique).exists());
    assert_eq!(mounted.mode("run/pinfold"), 0o700);
    assert_eq!(mounted.on_host("ran"), "--version\napply\ncdi --lists\n");
}

/// All hooks on the host read that file: with a wrong one in its place no container would start.
#[test]
fn a_configuration_that_makes_no_sense_is_not_brought() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (status, said) = mounted.install_config("[pools]\n");
    assert_eq!(status, Some(0), "{said}");
    let before = mounted.on_host("etc/pinfold/config.toml");
    let ran = mounted.on_host("ran");
    for (text, part) in [
        (
            "[pools.dp]\nkind = 'exclusiv'\n",
            "config.toml: line 2: kind is",
        ),
        (
            "[host]\n\nconfin = 'pools'\n",
            "line 3: unknown field `confin`",
        ),
        ("[pools.dp\n", "line 1"),
        (
            "[pools.dp]\nkind = 'shared'\n",
            "pools.dp.kind is there without",
        ),
        (
            "run-dir = 'run'\n",
            "run-dir in the configuration file is relative",
        ),
        ("lock-timeout = -1\n", "lock-timeout is -1"),
    ] {
        let (status, said) = mounted.install_config(text);
        assert_eq!(status, Some(1), "{text}: {said}");
        assert!(said.contains(part), "{text}: {said}");
        assert_eq!(mounted.on_host("etc/pinfold/config.toml"), before, "{text}");
        assert_eq!(mounted.on_host("ran"), ran, "{text}");
    }
    // One that is there is read as well.
    mounted.put("host/etc/pinfold/config.toml", "[pool]\n");
    let (status, said) = mounted.install(&[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("/etc/pinfold/config.toml: line 1"), "{said}");
}

#[test]
fn only_the_pools_are_a_reason_to_go_on() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    // A pool is kept as it was.
    mounted.bring("[ \"$1\" != apply ]");
    let (status, said) = mounted.install_config("[pools]\n");
    assert_eq!(status, Some(0), "{said}");
    assert!(
        said.contains("`pinfold apply` on the host: exit status: 1"),
        "{said}"
    );
    assert_eq!(mounted.on_host("ran"), "--version\napply\ncdi --lists\n");
    // A program that does not run serves nobody.
    let before = mounted.on_host("etc/pinfold/config.toml");
    for does in ["exit 1", "kill -9 $$", "exit 127"] {
        mounted.bring(does);
        let (status, said) = mounted.install_config("[pools.dp]\n");
        assert_eq!(status, Some(1), "{does}: {said}");
        assert!(
            said.contains("`pinfold --version` on the host"),
            "{does}: {said}"
        );
        assert_eq!(mounted.on_host("etc/pinfold/config.toml"), before, "{does}");
    }
    std::fs::write(mounted.path("image/pinfold"), "no program").unwrap();
    let (status, said) = mounted.install(&[]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("Exec format error"), "{said}");
}

#[test]
fn the_host_is_served_where_the_options_and_the_configuration_say() {
    let Some(mounted) = Mounted::new() else {
        return;
    };
    let (status, said) = mounted.install_config("run-dir = '/run/of-file'\n");
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(mounted.mode("run/of-file"), 0o700);
    assert!(!mounted.path("host/run/pinfold").exists());
    std::fs::remove_file(mounted.path("host/ran")).unwrap();
    let options = "--conf-dir /etc/kcm2 --run-dir /run/of-option --config /etc/other.toml \
                   --lock-timeout 2.5 --verbose --verbose";
    mounted.put("host/etc/other.toml", "run-dir = '/run/of-other'\n");
    let words: Vec<&str> = options.split_whitespace().collect();
    let (status, said) = mounted.install(&[&words[..], &["--engine", "containerd"]].concat());
    assert_eq!(status, Some(0), "{said}");
    assert_eq!(mounted.mode("run/of-option"), 0o700);
    assert!(!mounted.path("host/run/of-other").exists());
    let ran = ["--version", "apply", "cdi --lists", "install containerd"];
    let ran = ran
        .map(|verb| format!("{verb} {}\n", words.join(" ")))
        .concat();
    assert_eq!(mounted.on_host("ran"), ran);
    for (words, part) in [
        (
            &["--host-root", "/x"][..],
            "--host-root is not for install: name",
        ),
        (
            &["--config", "/c", "--config-file", "/c"],
            "--config-file does not write: leave",
        ),
        (
            &["--run-dir", "run"],
            "--run-dir is relative: write the whole path",
        ),
    ] {
        let (status, said) = mounted.install(words);
        assert_eq!(status, Some(2), "{said}");
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test]
async fn what_is_not_understood_ends_nothing() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let mut node = machine.start(&[]);
    let endpoint = kubelet.registration().await.endpoint;
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS for ALLOCATE without a name table, then DATA that is no protobuf.
    let path = b"/v1beta1.DevicePlugin/Allocate";
    let headers = [&[0x83, 0x86, 0x44, 30][..], path, &[0x41, 9], b"localhost"].concat();
    let frame = |kind: u8, flags: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    };
    let request = |body: &[u8]| {
        [
            preface,
            settings,
            &frame(1, 4, &headers),
            &frame(0, 1, body),
        ]
        .concat()
    };
    let noise: Vec<u8> = (0..5000u32)
        .map(|one| (one.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    for bytes in [
        noise.clone(),
        [preface, &noise].concat(),
        [preface, settings, &[0xff; 300]].concat(),
        request(b"\0\0\0\0\x03\xff\xff\xff"),
        request(b"\0\xff\xff\xff\xff"),
        request(b"\x01\0\0\0\x01x"),
        request(&noise),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        Vec::new(),
    ] {
        let mut stream = UnixStream::connect(machine.socket("dp")).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        // It may hang up before all is written.
        let _ = stream.write_all(&bytes);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert!(node.is_running(), "{}", node.log());
    let plugin = kubelet.plugin(&endpoint).await;
    assert_eq!(plugin.list_and_watch().await.next().await.unwrap().len(), 4);
    let many: Vec<String> = (0..9000).map(|id| id.to_string()).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let refused = plugin.allocate(&many).await.unwrap_err();
    assert!(refused.message().contains("9000 devices"), "{refused}");
}

#[tokio::test]
async fn the_metrics_of_a_node() {
    let machine = Machine::with(&DP);
    let mut kubelet = Kubelet::start(&machine.kubelet());
    let stranger = Sleeper::new();
    machine.set_tasks("dp/2-3", &[stranger.pid()]);
    let file = machine.path("node.prom");
    let to_file = ["--textfile", file.to_str().unwrap()];
    let node = machine.start(&[&["--metrics", "127.0.0.1:0"], &to_file[..]].concat());
    let log = node.says("listening on 127.0.0.1:").await;
    let address = log
        .split("listening on ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap();
    let plugin = kubelet.next_plugin().await;
    let mut watch = plugin.list_and_watch().await;
    watch.next().await;
    plugin.allocate(&["2-3"]).await.unwrap_err();
    let scrape = || {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    };
    let lines = [
        "pinfold_pool_lists{pool=\"dp\",state=\"free\"} 3",
        "pinfold_pool_lists{pool=\"dp\",state=\"owned\"} 1",
        "pinfold_pool_lists{pool=\"dp\",state=\"dead\"} 0",
        "pinfold_kubelet_connected{pool=\"dp\"} 1",
        "pinfold_refusals_total{reason=\"exhausted\"} 1",
        "# EOF",
    ];
    eventually("all is told", || {
        let text = scrape();
        lines
            .iter()
            .all(|line| text.lines().any(|one| one == *line))
    })
    .await;
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(lines[0]) && !text.contains("# EOF"), "{text}");
    drop(watch);
    drop(plugin);
    eventually("nobody watches", || {
        scrape().contains("pinfold_kubelet_connected{pool=\"dp\"} 0")
    })
    .await;
    for (arguments, part) in [
        (["--metrics", address], "listen on"),
        (["--textfile", "/proc/x"], "/proc/x"),
    ] {
        let elsewhere = Machine::with(&DP);
        let mut other = elsewhere.start(&arguments);
        assert_eq!(other.ended().code(), Some(1));
        assert!(other.log().contains(part), "{}", other.log());
    }
}
