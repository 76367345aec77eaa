//! What container a test wants, whatever the engine.

/// What container a test wants.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) annotations: Vec<(String, String)>,
    pub(crate) program: String,
    pub(crate) actions: Vec<String>,
    /// The affinity that the engine itself runs under.
    pub(crate) engine_mask: Option<Vec<usize>>,
    /// The last component of the cgroup; another container of that cgroup may have gone before.
    pub(crate) cgroup: Option<String>,
    pub(crate) own_pids: bool,
    pub(crate) own_cgroup: bool,
    /// The stage that allocates: `createRuntime`, or `prestart` for older runtimes.
    pub(crate) stage: &'static str,
    /// A hook that runs after pinfold's at the same stage.
    pub(crate) later_hook: Option<Vec<String>>,
    /// The directory of the runtime's or engine's own state.
    pub(crate) state_dir: String,
    /// What else `podman run` or `docker run` is told, before the image.
    pub(crate) options: Vec<String>,
    /// A slice, or a cgroup, below that of the world.
    pub(crate) below: Option<String>,
    /// CPUs that its configuration sets by itself.
    pub(crate) cpuset: Option<String>,
}

impl Plan {
    /// A container that asks for nothing and waits until it is stopped.
    pub(crate) fn plain(name: &str) -> Plan {
        Plan {
            name: name.into(),
            annotations: Vec::new(),
            program: "/probe".into(),
            actions: vec!["--wait".into()],
            engine_mask: None,
            cgroup: None,
            own_pids: true,
            own_cgroup: true,
            stage: "createRuntime",
            later_hook: None,
            state_dir: "state".into(),
            options: Vec::new(),
            below: None,
            cpuset: None,
        }
    }

    /// A container that asks for CPUs of `pool`.
    pub(crate) fn pinned(name: &str, pool: &str) -> Plan {
        Plan {
            annotations: vec![("pinfold.io/pool".into(), pool.into())],
            ..Plan::plain(name)
        }
    }

    pub(crate) fn asking(mut self, key: &str, value: &str) -> Plan {
        self.annotations.push((key.into(), value.into()));
        self
    }

    pub(crate) fn option(mut self, option: &str) -> Plan {
        self.options.push(option.into());
        self
    }

    pub(crate) fn doing(self, actions: &[&str]) -> Plan {
        Plan {
            actions: actions.iter().map(|action| action.to_string()).collect(),
            ..self
        }
    }
}
