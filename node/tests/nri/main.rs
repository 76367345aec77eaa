//! The NRI plugin over a socket, with an engine made up on its other end.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod engine;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Engine, create, frame, made, message, raw_request, request};
use pinfold::engines::hooks::Whom;
use pinfold_node::nri::api::{
    ConfigureRequest, ConfigureResponse, Container, ContainerRequest, ContainerState,
    CreateContainerResponse, Empty, Event, LinuxCpu, LinuxResources, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse, UpdateContainerRequest, UpdateContainerResponse,
};
use pinfold_node::nri::plugin::SECOND_LOOK;
use pinfold_node::nri::session::ANSWERED_WITHIN;
use pinfold_node::nri::{self, Options, Status};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const POOL: (&str, &str) = ("pinfold.io/pool", "dp");

/// A plugin that runs, and the place where its engine listens.
struct World {
    dir: TempDir,
    listener: Option<UnixListener>,
    status: Arc<Status>,
    stop: oneshot::Sender<()>,
    plugin: JoinHandle<()>,
}

impl World {
    fn new() -> World {
        World::with(|_| {})
    }

    /// With other options than those that pin whoever asks.
    fn with(change: impl FnOnce(&mut Options)) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let listener = UnixListener::bind(dir.path().join("nri.sock")).unwrap();
        let mut options = Options {
            socket: dir.path().join("nri.sock"),
            ..Options::of_program("/usr/bin/pinfold", dir.path().join("run"))
        };
        options.program.options = vec!["--run-dir".into(), "/r".into()];
        change(&mut options);
        let status = Arc::new(Status::default());
        let (stop, stopped) = oneshot::channel();
        let run = nri::run(options, Arc::clone(&status), async {
            let _ = stopped.await;
        });
        World {
            dir,
            listener: Some(listener),
            status,
            stop,
            plugin: tokio::spawn(run),
        }
    }

    fn listener(&self) -> &UnixListener {
        self.listener.as_ref().unwrap()
    }

    fn run_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("run")
    }

    /// An engine that has nothing yet.
    async fn engine(&self) -> Engine {
        Engine::ready(self.listener(), SynchronizeRequest::default()).await
    }

    /// Waits until so many are unpinned.
    async fn unpinned(&self, count: usize) {
        eventually(|| self.status.unpinned() == count).await;
    }

    async fn end(self) {
        let World { stop, plugin, .. } = self;
        stop.send(()).unwrap();
        plugin.await.unwrap();
    }
}

async fn eventually(is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Records a claim of a container.
fn claim(run_dir: &Path, id: &str, cpus: &str) {
    let home = run_dir.join("claims").join(id);
    std::fs::create_dir_all(&home).unwrap();
    let text = format!(
        r#"{{"version":1,"id":"{id}","kind":"container","boot_id":"b",
           "owner":{{"pid":5,"start":7}},"processes":[],"pool":"dp",
           "lists":["{cpus}"],"cpus":"{cpus}","mems":"","since":1}}"#
    );
    std::fs::write(home.join("5-7.json"), text).unwrap();
}

fn running(of: ContainerRequest) -> Container {
    Container {
        state: ContainerState::Running.into(),
        ..of.container.unwrap()
    }
}

#[tokio::test]
async fn it_registers_is_configured_and_takes_what_is_there_in_parts() {
    let world = World::new();
    let (mut engine, who) = Engine::accept(world.listener()).await;
    assert_eq!(
        (who.plugin_name.as_str(), who.plugin_idx.as_str()),
        ("pinfold", "90")
    );
    let told: ConfigureResponse = engine
        .call("Configure", &ConfigureRequest::default())
        .await
        .unwrap();
    // CreateContainer, PostStartContainer, UpdateContainer, StopContainer, RemoveContainer.
    assert_eq!(told.events, 0b110_1100_1000);
    claim(&world.run_dir(), "pinned", "1");
    // A container's pod can be in a part before or after it.
    let ids = ["pinned", "unpinned", "other"];
    let asked = ids.map(|id| made(id, if id == "other" { &[][..] } else { &[POOL] }));
    let pod = |at: usize| asked[at].pod.clone().unwrap();
    let container = |at: usize| running(asked[at].clone());
    for (pods, containers, more) in [
        (vec![pod(0)], vec![container(1)], true),
        (vec![], vec![container(0)], true),
        (vec![pod(2), pod(1)], vec![container(2)], false),
    ] {
        let part = SynchronizeRequest {
            pods,
            containers,
            more,
        };
        assert!(!world.status.is_connected());
        let taken: SynchronizeResponse = engine.call("Synchronize", &part).await.unwrap();
        assert_eq!(taken.more, more);
    }
    assert!(world.status.is_connected());
    world.unpinned(1).await;
    world.end().await;
}

#[tokio::test]
async fn a_container_that_asks_gets_hooks_and_others_nothing() {
    let world = World::new();
    let mut engine = world.engine().await;
    let none = create(&mut engine, &made("a", &[])).await.unwrap();
    assert_eq!(none.adjust, None);
    let began = Instant::now();
    let asked = made("b", &[POOL, ("pinfold.io/lists", "2"), ("other", "x")]);
    let adjust = create(&mut engine, &asked).await.unwrap().adjust.unwrap();
    assert!(began.elapsed() < ANSWERED_WITHIN);
    let keys: Vec<&String> = adjust.annotations.keys().collect();
    assert_eq!(keys, ["pinfold.io/lists", "pinfold.io/pool"]);
    let hooks = adjust.hooks.unwrap();
    assert_eq!(
        hooks.create_runtime[0].args.join(" "),
        "pinfold hook createRuntime --engine containerd --run-dir /r"
    );
    assert_eq!(hooks.poststop.len(), 1);
    world.end().await;
}

/// The hook decides, as under any engine: who may stay out of the default pool, and whether a start
/// fails that cannot be given it.
#[tokio::test]
async fn where_there_is_a_default_pool_all_get_hooks() {
    for is_needed in [false, true] {
        let world = World::with(|options| {
            options.program.whom = Whom::Everybody;
            options.is_needed = is_needed;
        });
        let mut engine = world.engine().await;
        for (annotations, option) in [
            (&[][..], " --default-pool"),
            (&[("pinfold.io/pool", "none")], " --default-pool"),
            (&[POOL], ""),
        ] {
            let made = create(&mut engine, &made("a", annotations)).await.unwrap();
            let adjust = made.adjust.unwrap();
            assert_eq!(adjust.annotations.len(), annotations.len());
            let hooks = adjust.hooks.unwrap();
            let [start, end] =
                [hooks.create_runtime, hooks.poststop].map(|all| all[0].args.join(" "));
            let rest = format!("--engine containerd{option} --run-dir /r");
            assert_eq!(start, format!("pinfold hook createRuntime {rest}"));
            assert_eq!(end, format!("pinfold hook poststop {rest}"));
        }
        // Whether it asks cannot be told: it goes on as it is, where it may.
        let unread = engine.call_raw::<CreateContainerResponse>("CreateContainer", b"\xff\xff");
        assert_eq!(unread.await.is_err(), is_needed);
        // None of them has asked: none is missed.
        let _: Empty = engine
            .call("PostStartContainer", &made("b", &[]))
            .await
            .unwrap();
        assert_eq!(world.status.unpinned(), 0);
        world.end().await;
    }
}

#[tokio::test]
async fn a_request_that_nobody_can_meet_is_refused_and_kept() {
    let world = World::new();
    let mut engine = world.engine().await;
    let asked = made("bad", &[("pinfold.io/pool", "a/b")]);
    let refused = create(&mut engine, &asked).await.unwrap_err();
    assert_eq!(
        refused.message,
        "pinfold: cannot start container web-0/web (bad): \"pinfold.io/pool\" is \"a/b\": it must \
         be a pool's name: up to 63 letters, digits, - and _, beginning with a letter or digit"
    );
    eventually(|| {
        let kept = pinfold::refusals::all(&world.run_dir()).unwrap();
        let counted = pinfold::counters::read(&world.run_dir()).unwrap();
        kept.len() == 1
            && kept[0].names.namespace.as_deref() == Some("telco")
            && counted.refusals.get("request") == Some(&1)
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn a_long_answer_comes_in_frames_that_fit() {
    let world = World::new();
    let mut engine = world.engine().await;
    let device = "x".repeat(20_000);
    let asked = made("long", &[POOL, ("pinfold.io/pool.other", &device)]);
    let adjust = create(&mut engine, &asked).await.unwrap().adjust.unwrap();
    assert_eq!(adjust.annotations["pinfold.io/pool.other"], device);
    world.end().await;
}

#[tokio::test]
async fn requests_can_come_split_anywhere_and_many_at_once() {
    let world = World::new();
    let mut engine = world.engine().await;
    // A frame for each byte, each frame in two writes.
    for byte in request(101, "CreateContainer", &made("split", &[POOL])) {
        let bytes = frame(1, &[byte]);
        engine.send(&bytes[..5]).await;
        engine.send(&bytes[5..]).await;
    }
    let one: CreateContainerResponse = engine.answer(101).await.unwrap();
    assert!(one.adjust.is_some());
    // Many messages in one frame, after others of a connection that nobody has.
    let many = (0..50).flat_map(|n| request(2 * n + 201, "Shutdown", &Empty {}));
    let bytes = [frame(9, &[0xff; 5000]), frame(1, &many.collect::<Vec<_>>())].concat();
    engine.send(&bytes).await;
    for n in 0..50 {
        let _: Empty = engine.answer(2 * n + 201).await.unwrap();
    }
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_understood_is_answered_or_passed_over() {
    let world = World::new();
    let mut engine = world.engine().await;
    let unknown = engine.call::<Empty>("NoSuchMethod", &Empty {}).await;
    assert_eq!(unknown.unwrap_err().code, 12);
    // Data of a stream, and an answer to a call that nobody made, have none.
    engine.send(&frame(1, &message(5, 3, b"data"))).await;
    engine.send(&frame(2, &message(77, 2, b"\xff"))).await;
    engine.send(&frame(1, &message(7, 1, b"\xff\xff"))).await;
    assert_eq!(engine.answer::<Empty>(7).await.unwrap_err().code, 3);
    // No protobuf: the container goes on, unless it may have asked for CPUs.
    let made: CreateContainerResponse = engine
        .call_raw("CreateContainer", b"\xff\xff")
        .await
        .unwrap();
    assert_eq!(made.adjust, None);
    let asked = b"\xff\xff pinfold.io/pool";
    let refused = engine.call_raw::<CreateContainerResponse>("CreateContainer", asked);
    assert_eq!(refused.await.unwrap_err().code, 3);
    // A field of another type, and text that is none.
    for payload in [
        &b"\x08\x01"[..],
        b"\x12\x03\x0a\x01\xff",
        b"\x12\x80\x80\x80\x80\x80",
    ] {
        let update = engine.call_raw::<UpdateContainerResponse>("UpdateContainer", payload);
        assert_eq!(update.await.unwrap_err().code, 3);
    }
    world.end().await;
}

#[tokio::test]
async fn lengths_that_nobody_means_end_the_connection_and_another_is_made() {
    let world = World::new();
    for bytes in [
        b"\0\0\0\x01\xff\xff\xff\xff".to_vec(),
        frame(1, b"\x7f\xff\xff\xff\0\0\0\x01\x01\0"),
        frame(2, b"\0\x40\0\x01\0\0\0\x01\x02\0"),
    ] {
        let mut engine = world.engine().await;
        engine.send(&bytes).await;
        assert!(engine.receive(1).await.is_none(), "{bytes:?}");
    }
    // It is well again.
    let mut engine = world.engine().await;
    let asked = create(&mut engine, &made("b", &[POOL])).await.unwrap();
    assert!(asked.adjust.is_some() && world.status.is_connected());
    world.end().await;
}

#[tokio::test]
async fn an_engine_that_goes_at_any_byte_is_found_again() {
    let world = World::new();
    let call = frame(1, &raw_request(91, "Shutdown", &[]));
    for at in [0, 1, 8, 9, 17, 18, 19, call.len() - 1] {
        let mut engine = world.engine().await;
        engine.send(&call[..at]).await;
        drop(engine);
    }
    let (engine, _) = Engine::accept(world.listener()).await;
    assert!(!world.status.is_connected());
    drop(engine);
    world.end().await;
}

#[tokio::test]
async fn an_engine_whose_socket_is_made_anew_is_found_again() {
    let mut world = World::new();
    drop(world.engine().await);
    world.listener = None;
    std::fs::remove_file(world.dir.path().join("nri.sock")).unwrap();
    eventually(|| !world.status.is_connected()).await;
    world.listener = Some(UnixListener::bind(world.dir.path().join("nri.sock")).unwrap());
    let mut engine = world.engine().await;
    let asked = create(&mut engine, &made("b", &[POOL])).await.unwrap();
    assert!(asked.adjust.is_some());
    world.end().await;
}

// With its clock stopped, time passes for whoever only waits.
#[tokio::test(start_paused = true)]
async fn nobody_is_waited_for_for_ever() {
    let world = World::new();
    // An engine that does not answer the registration.
    let mut engine = Engine::connected(world.listener()).await;
    assert!(engine.receive(2).await.is_some());
    assert!(engine.receive(1).await.is_none());
    // One that stops within a message.
    let mut engine = world.engine().await;
    engine.send(&frame(1, b"\0\0\x10\0\0\0\0\x01")).await;
    assert!(engine.receive(1).await.is_none());
    world.end().await;
}

#[tokio::test]
async fn an_engine_that_refuses_is_asked_again() {
    let world = World::new();
    let mut engine = Engine::connected(world.listener()).await;
    let asked = engine.receive(2).await.unwrap();
    // A status with a code and a message.
    let refusal = b"\x0a\x06\x08\x02\x12\x02no";
    let answer = message(asked.stream, 2, refusal);
    engine.send(&frame(2, &answer)).await;
    assert!(engine.receive(1).await.is_none());
    world.engine().await;
    world.end().await;
}

/// However busy the node is, who asks for nothing is made, and who asks gets its hooks. An update
/// of CPUs needs the claims, and is refused; one of shares alone passes.
#[test]
fn only_what_needs_the_claims_waits_for_a_thread() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(1);
    runtime.build().unwrap().block_on(async {
        let world = World::new();
        let mut engine = world.engine().await;
        world.unpinned(0).await;
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || waits.recv());
        let none = create(&mut engine, &made("a", &[])).await.unwrap();
        assert_eq!(none.adjust, None);
        let some = create(&mut engine, &made("b", &[POOL])).await.unwrap();
        assert!(some.adjust.is_some());
        // Shares, of which the plugin reads nothing, come without CPUs.
        let shares: UpdateContainerResponse = engine
            .call("UpdateContainer", &update("a", ""))
            .await
            .unwrap();
        assert_eq!(shares.update, []);
        let refused = engine
            .call::<UpdateContainerResponse>("UpdateContainer", &update("a", "0"))
            .await
            .unwrap_err();
        // DEADLINE_EXCEEDED of google.rpc.Code.
        assert_eq!(refused.code, 4, "{refused:?}");
        drop(go_on);
        busy.await.unwrap().unwrap_err();
        world.end().await;
    });
}

/// One that takes the plugin and then closes the connection does so again: it is asked less and
/// less often.
#[tokio::test(start_paused = true)]
async fn an_engine_that_takes_the_plugin_and_goes_is_not_asked_all_the_time() {
    let world = World::new();
    drop(Engine::accept(world.listener()).await);
    let began = tokio::time::Instant::now();
    for _ in 0..4 {
        drop(Engine::accept(world.listener()).await);
    }
    // 0.1, 0.2, 0.4 and 0.8 s.
    assert!(began.elapsed() >= Duration::from_millis(1500));
    drop(world.engine().await);
    let began = tokio::time::Instant::now();
    drop(Engine::accept(world.listener()).await);
    assert!(began.elapsed() < Duration::from_millis(200));
    world.end().await;
}

fn update(id: &str, cpus: &str) -> UpdateContainerRequest {
    let made = made(id, &[]);
    UpdateContainerRequest {
        pod: made.pod,
        container: made.container,
        linux_resources: Some(LinuxResources {
            cpu: Some(LinuxCpu {
                cpus: cpus.into(),
                mems: String::new(),
            }),
            ..LinuxResources::default()
        }),
    }
}

#[tokio::test]
async fn an_update_does_not_take_a_pinned_containers_cpus() {
    let world = World::new();
    let mut engine = world.engine().await;
    claim(&world.run_dir(), "pinned", "1,5");
    for (id, cpus, expected) in [
        ("pinned", "0-7", Some("1,5")),
        ("pinned", "", None),
        ("other", "0-7", None),
    ] {
        let said: UpdateContainerResponse = engine
            .call("UpdateContainer", &update(id, cpus))
            .await
            .unwrap();
        let first = said.update.first();
        let cpu = first.and_then(|update| {
            assert_eq!(update.container_id, id);
            update.linux.as_ref()?.resources.as_ref()?.cpu.as_ref()
        });
        assert_eq!(cpu.map(|cpu| cpu.cpus.as_str()), expected, "{id} {cpus}");
    }
    let path = world.run_dir().join("claims/pinned/5-7.json");
    std::fs::write(path, "{").unwrap();
    let refused = engine
        .call::<UpdateContainerResponse>("UpdateContainer", &update("pinned", "0"))
        .await
        .unwrap_err();
    assert!(
        refused.message.starts_with(
            "pinfold: cannot change the CPUs of container web-0/web (pinned): the claim "
        ),
        "{refused:?}"
    );
    world.end().await;
}

/// What comes between the creation and the hook's claim would be in the way of the hook.
#[tokio::test]
async fn an_update_before_the_start_does_not_choose_cpus() {
    let world = World::new();
    let mut engine = world.engine().await;
    for (state, cpus, passes) in [
        (ContainerState::Created, "0", false),
        (ContainerState::Created, "", true),
        // It runs, and went by the hook.
        (ContainerState::Running, "0", true),
    ] {
        let asking = made("a", &[POOL]);
        let asked = UpdateContainerRequest {
            pod: asking.pod,
            container: asking.container.map(|one| Container {
                state: state.into(),
                ..one
            }),
            ..update("a", cpus)
        };
        let said = engine.call::<UpdateContainerResponse>("UpdateContainer", &asked);
        match said.await {
            Ok(said) => assert!(passes && said.update.is_empty(), "{state:?} {cpus}"),
            Err(refused) => assert!(
                !passes && refused.message.contains("gets them when it starts"),
                "{refused:?}"
            ),
        }
    }
    claim(&world.run_dir(), "a", "1");
    let said: UpdateContainerResponse = engine
        .call("UpdateContainer", &update("a", "0"))
        .await
        .unwrap();
    assert_eq!(said.update.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn who_runs_unpinned_is_counted_until_it_ends() {
    let world = World::new();
    let asking = made("a", &[POOL]);
    let there = SynchronizeRequest {
        pods: asking.pod.clone().into_iter().collect(),
        containers: vec![running(asking)],
        more: false,
    };
    let mut engine = Engine::ready(world.listener(), there.clone()).await;
    world.unpinned(1).await;
    // One that was made while nobody looked, as both versions of NRI tell of its start.
    let change = |event: Event, id| {
        let of = made(id, &[POOL]);
        StateChangeEvent {
            event: event.into(),
            pod: of.pod,
            container: of.container,
        }
    };
    let start = change(Event::PostStartContainer, "b");
    let _: Empty = engine.call("StateChange", &start).await.unwrap();
    world.unpinned(2).await;
    let _: Empty = engine
        .call("PostStartContainer", &made("c", &[POOL]))
        .await
        .unwrap();
    world.unpinned(3).await;
    claim(&world.run_dir(), "d", "1");
    for quiet in [made("d", &[POOL]), made("e", &[])] {
        let _: Empty = engine.call("PostStartContainer", &quiet).await.unwrap();
    }
    let _: Empty = engine.call("StopContainer", &made("c", &[])).await.unwrap();
    assert_eq!(world.status.unpinned(), 2);
    let removed = change(Event::RemoveContainer, "b");
    let _: Empty = engine.call("StateChange", &removed).await.unwrap();
    assert_eq!(world.status.unpinned(), 1);
    drop(engine);
    // The next engine says what is there.
    let mut containers = there.containers.clone();
    containers[0].state = ContainerState::Created.into();
    let there = SynchronizeRequest {
        containers,
        ..there
    };
    let _engine = Engine::ready(world.listener(), there).await;
    world.unpinned(0).await;
    world.end().await;
}

/// What a first look finds can be about to change, or be over.
#[tokio::test]
async fn who_ends_at_once_is_pinned_late_or_opts_out_is_no_alarm() {
    let world = World::new();
    let mut engine = world.engine().await;
    let none = ("pinfold.io/pool", "none");
    let quiet = [
        made("ends", &[POOL]),
        made("late", &[POOL]),
        made("out", &[none]),
        made("own", &[POOL, ("pinfold.io/pool.web", "none")]),
    ];
    for mut of in quiet.clone() {
        // As containerd names a container.
        let mark = ("io.kubernetes.cri.container-name", "web");
        let container = of.container.as_mut().unwrap();
        container.annotations = [mark].map(|(key, value)| (key.into(), value.into())).into();
        let _: Empty = engine.call("PostStartContainer", &of).await.unwrap();
    }
    let _: Empty = engine.call("StopContainer", &quiet[0]).await.unwrap();
    tokio::time::sleep(SECOND_LOOK / 4).await;
    claim(&world.run_dir(), "late", "1");
    // This one is told after all others have been looked at twice.
    let _: Empty = engine
        .call("PostStartContainer", &made("alarm", &[POOL]))
        .await
        .unwrap();
    assert_eq!(world.status.unpinned(), 0);
    world.unpinned(1).await;
    // Of what is there, as another connection tells, too.
    drop(engine);
    let there = SynchronizeRequest {
        pods: quiet.iter().filter_map(|of| of.pod.clone()).collect(),
        containers: quiet[..2].iter().cloned().map(running).collect(),
        more: false,
    };
    let mut engine = Engine::ready(world.listener(), there).await;
    assert_eq!(world.status.unpinned(), 0);
    let _: Empty = engine.call("StopContainer", &quiet[0]).await.unwrap();
    tokio::time::sleep(SECOND_LOOK * 2).await;
    assert_eq!(world.status.unpinned(), 0);
    world.end().await;
}

/// Whom a look could not see is looked at again: no event will tell of a container that runs.
#[tokio::test]
async fn claims_that_cannot_be_read_for_a_while_hide_nobody() {
    let world = World::new();
    claim(&world.run_dir(), "pinned", "1");
    // This one's cannot be read. The first one's id is none that a claim can have.
    let one = world.run_dir().join("claims/one");
    std::fs::write(&one, "").unwrap();
    let asked = ["!", "one", "pinned", "unpinned"].map(|id| made(id, &[POOL]));
    let there = SynchronizeRequest {
        pods: asked.iter().filter_map(|of| of.pod.clone()).collect(),
        containers: asked.map(running).into(),
        more: false,
    };
    let engine = Engine::ready(world.listener(), there.clone()).await;
    world.unpinned(2).await;
    std::fs::remove_file(one).unwrap();
    world.unpinned(3).await;
    drop(engine);
    let again = World::new();
    let (claims, aside) = (
        again.run_dir().join("claims"),
        again.dir.path().join("aside"),
    );
    claim(&again.run_dir(), "pinned", "1");
    std::fs::rename(&claims, &aside).unwrap();
    std::fs::write(&claims, "").unwrap();
    let _engine = Engine::ready(again.listener(), there).await;
    tokio::time::sleep(SECOND_LOOK * 2).await;
    assert_eq!(again.status.unpinned(), 0);
    std::fs::remove_file(&claims).unwrap();
    std::fs::rename(&aside, &claims).unwrap();
    again.unpinned(3).await;
    tokio::time::sleep(SECOND_LOOK).await;
    assert_eq!(again.status.unpinned(), 3);
    world.end().await;
    again.end().await;
}
