//! What a container is to get that asks for CPUs by annotations, or for nothing where there is a
//! default pool: our hooks, and the annotations that they read. Pure.

use std::collections::BTreeMap;

use pinfold::engines::Engine;
use pinfold::engines::hooks::{DEFAULT_POOL, TIMEOUT, Whom, arguments};
use pinfold::names::Names;
use pinfold::oci::{Config, Id, STAGES};
use pinfold::refusal::Refusal;
use pinfold::request::{self, PREFIX, Request};
use serde_json::{Map, Value, json};

use super::api::{Container, ContainerAdjustment, ContainerState, Hook, Hooks, Int, PodSandbox};

/// Options of a hook that asks by itself, as those of devices do.
const ASKING: [&str; 2] = ["--device", "--list"];

/// The annotation that each container of a kubelet has (kubelet: `newContainerAnnotations`).
const KUBELETS_MARK: &str = "io.kubernetes.container.hash";

/// How a container's hooks are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookProgram {
    /// The path of `pinfold`, as the container's runtime sees it.
    pub path: String,
    /// Options for it, which say where the pools are.
    pub options: Vec<String>,
    /// Which containers it is run for.
    pub whom: Whom,
}

impl HookProgram {
    fn hook(&self, stage: &str, engine: Option<Engine>, default_pool: Option<&str>) -> Hook {
        let options = default_pool.map(str::to_owned).into_iter();
        let options: Vec<String> = options.chain(self.options.iter().cloned()).collect();
        Hook {
            path: self.path.clone(),
            args: arguments(stage, engine, &options),
            timeout: Some(Int {
                value: TIMEOUT.into(),
            }),
        }
    }

    /// The hooks of a container that asks, or by the option `default_pool` of one that does not.
    fn hooks(&self, engine: Option<Engine>, default_pool: Option<&str>) -> Hooks {
        let hook = |stage| vec![self.hook(stage, engine, default_pool)];
        let [create_runtime, poststop] = STAGES.map(hook);
        Hooks {
            create_runtime,
            poststop,
            ..Hooks::default()
        }
    }
}

/// A container of a pod.
#[derive(Debug, Clone, Copy)]
pub struct Member<'a> {
    /// The pod; `None` where the engine tells nothing of it.
    pub pod: Option<&'a PodSandbox>,
    /// The container.
    pub container: &'a Container,
}

impl Member<'_> {
    /// The annotations of ours, of the pod and of the container; the container's win.
    fn asking_annotations(&self) -> BTreeMap<String, String> {
        let of_pod = self.pod.iter().flat_map(|pod| &pod.annotations);
        let all = of_pod.chain(&self.container.annotations);
        let ours = all.filter(|(key, _)| key.starts_with(PREFIX));
        ours.map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Those of them that its runtime may not be shown yet. An engine tells of a container's own
    /// annotations whether its runtime is shown them or not (containerd: `criContainer`,
    /// `GetAnnotations`), and refuses the container where we set one that another plugin has set
    /// (NRI: `claimAnnotation`). To remove and set one in an answer is no way out: both change the
    /// specification, in any order (NRI: `AdjustAnnotations`). The kubelet itself gives no
    /// container an annotation of ours: what is there has been passed on by the engine or set by a
    /// plugin, and is shown. Another device plugin could give it one by `Allocate`: the look at
    /// those that run without CPUs tells then. Of any other client's container all are set.
    fn missing_annotations(&self) -> BTreeMap<String, String> {
        let own = &self.container.annotations;
        let is_of_kubelet = own.contains_key(KUBELETS_MARK);
        let mut annotations = self.asking_annotations();
        annotations.retain(|key, _| !(is_of_kubelet && own.contains_key(key)));
        annotations
    }

    /// What it asks for, read as a hook would that sees the same annotations. The marks that an
    /// engine makes of its name and kind are the container's alone: a pod's author could write
    /// others.
    ///
    /// # Errors
    /// It asks for what is refused whatever the pools are.
    pub fn request(&self) -> Result<Option<Request>, Refusal> {
        let mut annotations = self.asking_annotations();
        if annotations.is_empty() {
            return Ok(None);
        }
        let marks = self.container.annotations.iter();
        let marks = marks.filter(|(key, _)| request::is_ours(key));
        annotations.extend(marks.map(|(key, value)| (key.clone(), value.clone())));
        request::from_annotations(&annotations)
    }

    /// What is to be added to it; `None` where nothing is. Of a container that asks for nothing the
    /// hook decides whether it is to be in the default pool, as it does under any engine: all that
    /// it reads comes along.
    ///
    /// # Errors
    /// It asks for what is refused whatever the pools are.
    pub fn adjustment(
        &self,
        program: &HookProgram,
        engine: Option<Engine>,
    ) -> Result<Option<ContainerAdjustment>, Refusal> {
        let asks = self.request()?.is_some();
        let default_pool = match (asks, program.whom) {
            (true, _) => None,
            (false, Whom::Everybody) => Some(DEFAULT_POOL),
            (false, Whom::Annotated) => return Ok(None),
        };
        if self.asks_by_device() {
            return Ok(None);
        }
        let config = self.hooks();
        let there = config.pinning_hooks();
        let is_there = match default_pool {
            Some(option) => there.iter().any(|words| words.contains(&option)),
            None => !there.is_empty(),
        };
        if default_pool.is_some() && is_there {
            return Ok(None);
        }
        // A handler's own hooks may not be shown the annotations.
        let annotations = self.missing_annotations();
        let hooks = (!is_there).then(|| program.hooks(engine, default_pool));
        let is_anything = !annotations.is_empty() || hooks.is_some();
        Ok(is_anything.then_some(ContainerAdjustment { annotations, hooks }))
    }

    /// Is a hook still to give it the CPUs that it asks for, unless it has them already?
    pub fn awaits_its_cpus(&self) -> bool {
        let asks = matches!(self.request(), Ok(Some(_))) || self.asks_by_device();
        let has_been_started = [
            ContainerState::Paused,
            ContainerState::Running,
            ContainerState::Stopped,
        ];
        asks && !has_been_started.contains(&self.container.state())
    }

    /// Is there a device's hook, which asks by itself?
    fn asks_by_device(&self) -> bool {
        let config = self.hooks();
        let words = config.pinning_hooks().concat();
        let mut options = words.iter().filter_map(|word| word.split('=').next());
        options.any(|option| ASKING.contains(&option))
    }

    /// Its hooks at which one of ours would pin it, as OCI's `config.json` has them.
    fn hooks(&self) -> Config {
        let hooks = self.container.hooks.as_ref();
        let stage = |of: fn(&Hooks) -> &Vec<Hook>| -> Vec<Value> {
            let hooks = hooks.into_iter().flat_map(of);
            hooks.map(|hook| json!({"args": hook.args})).collect()
        };
        let hooks = json!({
            "prestart": stage(|hooks| &hooks.prestart),
            "createRuntime": stage(|hooks| &hooks.create_runtime),
        });
        Config::of(Map::new(), hooks)
    }

    /// Its names, where they are as Kubernetes makes them.
    pub fn names(&self, engine: Option<Engine>) -> Names {
        let plain = |name: &str| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
            let is_name = (1..=253).contains(&name.len()) && name.bytes().all(is_plain);
            is_name.then(|| name.to_owned())
        };
        Names {
            engine: engine.map(|engine| engine.word().to_owned()),
            name: plain(&self.container.name),
            pod: self.pod.and_then(|pod| plain(&pod.name)),
            namespace: self.pod.and_then(|pod| plain(&pod.namespace)),
            unit: None,
        }
    }

    /// The container as a sentence names it.
    pub fn shown(&self) -> String {
        self.names(None).with_id(&Id::shown(&self.container.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs `key=value`; a key without a domain gets ours.
    fn annotations(words: &str) -> BTreeMap<String, String> {
        let pair = |word: &str| {
            let (key, value) = word.split_once('=').unwrap();
            let prefix = if key.starts_with("io.") { "" } else { PREFIX };
            (format!("{prefix}{key}"), value.to_owned())
        };
        words.split_whitespace().map(pair).collect()
    }

    fn program() -> HookProgram {
        HookProgram {
            path: "/opt/pinfold".into(),
            options: vec!["--conf-dir".into(), "/k".into()],
            whom: Whom::Annotated,
        }
    }

    /// What a container `web` gets, by the pod's and its own annotations and its hooks.
    fn adjustment(
        of_pod: &str,
        own: &str,
        hooks: Option<Hooks>,
    ) -> Result<Option<ContainerAdjustment>, Refusal> {
        adjusted_by(&program(), of_pod, own, hooks)
    }

    fn adjusted_by(
        program: &HookProgram,
        of_pod: &str,
        own: &str,
        hooks: Option<Hooks>,
    ) -> Result<Option<ContainerAdjustment>, Refusal> {
        let pod = PodSandbox {
            annotations: annotations(of_pod),
            ..PodSandbox::default()
        };
        let own = format!("{own} io.kubernetes.cri.container-name=web");
        let container = Container {
            annotations: annotations(&own),
            hooks,
            ..Container::default()
        };
        let member = Member {
            pod: Some(&pod),
            container: &container,
        };
        member.adjustment(program, Some(Engine::Containerd))
    }

    fn hook(words: &str) -> Hook {
        Hook {
            args: words.split(' ').map(str::to_owned).collect(),
            ..Hook::default()
        }
    }

    #[test]
    fn who_asks_by_annotation_gets_hooks_and_annotations_and_nobody_else_anything() {
        for (pod, own, expected) in [
            ("", "", None),
            ("pool.db=dp", "", None),
            ("pool=none lists=2", "", None),
            ("pool=dp pool.web=none", "", None),
            ("pool=dp", "io.kubernetes.cri.container-type=sandbox", None),
            ("pool=dp", "", Some("pool=dp")),
            // Another's marks in the pod's annotations name nobody.
            ("pool.db=dp io.kubernetes.cri.container-name=db", "", None),
            (
                "pool=dp pool.web=fast io.other=y",
                "",
                Some("pool=dp pool.web=fast"),
            ),
            ("pool=dp", "pool=fast", Some("pool=fast")),
            ("", "pool=dp cpus=2", Some("pool=dp cpus=2")),
        ] {
            let adjusted = adjustment(pod, own, None).unwrap();
            let seen = adjusted.as_ref().map(|one| one.annotations.clone());
            assert_eq!(seen, expected.map(annotations), "{pod} {own}");
            let hooks = adjusted.and_then(|one| one.hooks);
            let Some(hooks) = hooks else {
                assert_eq!(expected, None);
                continue;
            };
            let words = |hooks: &[Hook]| hooks[0].args.join(" ");
            let rest = "--engine containerd --conf-dir /k";
            assert_eq!(
                words(&hooks.create_runtime),
                format!("pinfold hook createRuntime {rest}")
            );
            assert_eq!(
                words(&hooks.poststop),
                format!("pinfold hook poststop {rest}")
            );
            assert_eq!(hooks.create_runtime[0].path, "/opt/pinfold");
            assert_eq!(hooks.poststop[0].timeout, Some(Int { value: 30 }));
            assert!(hooks.prestart.is_empty());
        }
    }

    /// An engine refuses a container two of whose plugins set the same annotation.
    #[test]
    fn what_another_plugin_has_set_is_not_set_again() {
        let there = |words: &str| Hooks {
            create_runtime: vec![hook(words)],
            ..Hooks::default()
        };
        let ours = || there("pinfold hook createRuntime");
        let of_kubelet = "io.kubernetes.container.hash=1";
        for (pod, own, hooks, expected) in [
            ("", "pool=dp", None, Some("")),
            ("pool=dp", "pool=dp", None, Some("")),
            ("pool=dp lists=2", "pool=fast", None, Some("lists=2")),
            ("pool=dp", "lists=2", None, Some("pool=dp")),
            ("pool=dp", "", None, Some("pool=dp")),
            ("pool=dp", "pool=dp", Some(ours()), None),
            ("pool=dp", "", Some(ours()), Some("pool=dp")),
        ] {
            let marked = format!("{own} {of_kubelet}");
            let adjusted = adjustment(pod, &marked, hooks.clone()).unwrap();
            let seen = adjusted.as_ref().map(|one| one.annotations.clone());
            assert_eq!(seen, expected.map(annotations), "{pod} {own}");
            let adds_hooks = adjusted.is_some_and(|one| one.hooks.is_some());
            assert_eq!(adds_hooks, hooks.is_none(), "{pod} {own}");
            // Another client's annotations can be such as the runtime is not shown.
            let all = adjustment(pod, own, hooks).unwrap().unwrap().annotations;
            let both = annotations(pod).into_iter().chain(annotations(own));
            assert_eq!(all, both.collect(), "{pod} {own}");
        }
    }

    #[test]
    fn what_cannot_be_asked_for_is_refused_with_the_key() {
        for (words, part) in [
            ("pool=../etc", "pinfold.io/pool"),
            ("poool=dp", "pinfold.io/poool"),
            ("pool=dp lists=1 cpus=1", "exclude"),
            ("lists=2", "pinfold.io/lists"),
        ] {
            let refusal = adjustment(words, "", None).unwrap_err();
            assert!(refusal.what.contains(part), "{refusal}");
        }
    }

    #[test]
    fn hooks_that_are_there_are_not_added_again() {
        let with = |words: &str| Hooks {
            create_runtime: vec![hook("other x"), hook(words)],
            ..Hooks::default()
        };
        for (hooks, has_annotations, has_hooks) in [
            (
                with("pinfold hook createRuntime --engine crio"),
                true,
                false,
            ),
            (with("pinfold hook createRuntime --device dp"), false, false),
            (with("pinfold hook createRuntime --list=dp:1"), false, false),
            (with("nvidia hook createRuntime"), true, true),
            (
                Hooks {
                    prestart: vec![hook("pinfold hook prestart")],
                    ..Hooks::default()
                },
                true,
                false,
            ),
            // A poststop alone pins nobody.
            (
                Hooks {
                    poststop: vec![hook("pinfold hook poststop")],
                    ..Hooks::default()
                },
                true,
                true,
            ),
        ] {
            let adjusted = adjustment("pool=dp", "", Some(hooks.clone())).unwrap();
            let seen = adjusted.map(|one| (!one.annotations.is_empty(), one.hooks.is_some()));
            let expected = (has_annotations || has_hooks).then_some((has_annotations, has_hooks));
            assert_eq!(seen, expected, "{hooks:?}");
        }
    }

    #[test]
    fn where_there_is_a_default_pool_who_asks_for_nothing_gets_its_hooks() {
        let everybody = HookProgram {
            whom: Whom::Everybody,
            ..program()
        };
        let there = |words: &str| Hooks {
            create_runtime: vec![hook(words)],
            ..Hooks::default()
        };
        let by_default = Some("--default-pool --conf-dir /k");
        for (pod, hooks, expected) in [
            ("", Hooks::default(), by_default),
            ("pool=none", Hooks::default(), by_default),
            ("pool.db=dp", Hooks::default(), by_default),
            ("pool=dp", Hooks::default(), Some("--conf-dir /k")),
            // This one is for whoever asks, and sees nothing to do.
            ("", there("pinfold hook createRuntime"), by_default),
            ("", there("pinfold hook createRuntime --default-pool"), None),
            ("", there("pinfold hook createRuntime --device dp"), None),
            ("", there("pinfold hook createRuntime --list=dp:1"), None),
        ] {
            let adjusted = adjusted_by(&everybody, pod, "", Some(hooks.clone())).unwrap();
            let words = adjusted.as_ref().map(|one| {
                assert_eq!(one.annotations, annotations(pod), "{pod}");
                let hooks = one.hooks.as_ref().unwrap();
                [&hooks.create_runtime, &hooks.poststop].map(|hooks| hooks[0].args.join(" "))
            });
            let expected = expected.map(|options| {
                ["createRuntime", "poststop"]
                    .map(|stage| format!("pinfold hook {stage} --engine containerd {options}"))
            });
            assert_eq!(words, expected, "{pod} {hooks:?}");
        }
        assert!(adjusted_by(&everybody, "lists=2", "", None).is_err());
    }

    #[test]
    fn who_asks_awaits_its_cpus_until_it_has_been_started() {
        let states = [
            (ContainerState::Unknown, true),
            (ContainerState::Created, true),
            (ContainerState::Paused, false),
            (ContainerState::Running, false),
            (ContainerState::Stopped, false),
        ];
        for (words, device, asks) in [
            ("pool=dp", "", true),
            ("", "pinfold hook createRuntime --list dp:1", true),
            ("", "pinfold hook createRuntime --device=dp", true),
            ("", "pinfold hook createRuntime --default-pool", false),
            ("", "", false),
            ("pool=none", "", false),
            ("lists=2", "", false),
        ] {
            for (state, is_before) in states {
                let container = Container {
                    state: state.into(),
                    annotations: annotations(words),
                    hooks: Some(Hooks {
                        create_runtime: vec![hook(device)],
                        ..Hooks::default()
                    }),
                    ..Container::default()
                };
                let member = Member {
                    pod: None,
                    container: &container,
                };
                let expected = asks && is_before;
                assert_eq!(member.awaits_its_cpus(), expected, "{words} {state:?}");
            }
        }
    }

    #[test]
    fn names_that_are_none_of_kubernetes_are_left_out() {
        let pod = PodSandbox {
            name: "web\u{202e}".into(),
            namespace: "telco".into(),
            ..PodSandbox::default()
        };
        let container = Container {
            id: "a\nb".into(),
            name: "c0".into(),
            ..Container::default()
        };
        let member = Member {
            pod: Some(&pod),
            container: &container,
        };
        assert_eq!(member.shown(), "c0 (\"a\\nb\")");
        let names = member.names(Some(Engine::Crio));
        assert_eq!((names.pod, names.namespace), (None, Some("telco".into())));
    }
}
