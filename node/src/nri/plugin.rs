//! What the plugin answers to each call of the engine, and what it sees to after an answer.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pinfold::claims::Ledger;
use pinfold::counters;
use pinfold::engines::Engine;
use pinfold::oci::Id;
use pinfold::refusal::Refusal;
use pinfold::refusals::{self, Refused};
use pinfold::request::{DOMAIN, PREFIX, is_ours};
use pinfold::text::{Shown, one_line};
use prost::Message;

use super::Options;
use super::api::{
    ConfigureRequest, ConfigureResponse, Container, ContainerRequest, ContainerState,
    CreateContainerResponse, EVENTS, Empty, Event, PLUGIN_SERVICE, PodSandbox, StateChangeEvent,
    SynchronizeRequest, SynchronizeResponse, UpdateContainerRequest, UpdateContainerResponse,
};
use super::guard;
use super::pin::{HookProgram, Member};
use super::status::Status;
use super::ttrpc::{Code, Request, Response};

/// The most pods, and the most containers, that are kept of what an engine has. No node has as
/// many.
const MOST_THERE: usize = 100_000;

/// The one method whose answer depends on the claims.
const UPDATE: &str = "UpdateContainer";

/// The time between two looks whether a container has a claim: one that ends at once has given it
/// back already, and its end is told a little later.
pub const SECOND_LOOK: Duration = Duration::from_secs(2);
/// The longest time until it is looked again where the claims could not be read.
const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// What to do about a container that runs unpinned.
const REMEDY: &str = "it was made while nothing added Pinfold's hooks: delete its pod, and what \
                      is made in its place is pinned";

/// The plugin as one engine sees it, from the connection's beginning to its end.
#[derive(Debug)]
pub struct Plugin {
    program: HookProgram,
    /// Does no container start that cannot be given the default pool?
    is_needed: bool,
    run_dir: PathBuf,
    status: Arc<Status>,
    told: Mutex<Told>,
}

/// What the engine has told so far.
#[derive(Debug, Default)]
struct Told {
    engine: Option<Engine>,
    /// What is there, until the last part of it has come: a container's pod can be in another part.
    pods: BTreeMap<String, PodSandbox>,
    running: Vec<Container>,
}

/// A container that asks for CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asking {
    id: String,
    /// As a sentence names it.
    shown: String,
    /// What it asks for, in a sentence.
    asks: String,
}

/// An answer, and what it leaves to be done.
#[derive(Debug)]
pub struct Answer {
    /// What the engine is told.
    pub response: Response,
    /// What is to be done once it is told.
    pub then: Then,
}

/// What is to be done after an answer. It may take time.
#[derive(Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Nothing,
    /// A look whether these, which run and ask, have claims.
    Look(Looks),
    /// A container was refused.
    Refused(Box<Refused>, &'static str),
}

/// Whom to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// Those that no look has found without a claim.
    first: Vec<Asking>,
    /// Those that one look has.
    second: Vec<Asking>,
    /// How many looks before could not see all.
    failures: u32,
}

impl Then {
    fn look(first: Vec<Asking>) -> Then {
        Then::Look(Looks {
            first,
            ..Looks::default()
        })
    }

    /// How long to wait before it is done, after something that came before it.
    pub fn pause(&self) -> Duration {
        match self {
            Then::Look(looks) => {
                let twice_each = SECOND_LOOK * (1 << looks.failures.min(16));
                twice_each.min(MOST_PATIENCE)
            }
            Then::Nothing | Then::Refused(..) => SECOND_LOOK,
        }
    }
}

impl Answer {
    fn of(result: &impl Message) -> Answer {
        Answer {
            response: Response::of(result),
            then: Then::Nothing,
        }
    }

    fn failed(code: Code, message: impl Into<String>) -> Answer {
        Answer {
            response: Response::failed(code, message),
            then: Then::Nothing,
        }
    }

    fn and(self, then: Then) -> Answer {
        Answer { then, ..self }
    }
}

impl Plugin {
    /// A plugin for a new connection.
    pub fn new(options: &Options, status: Arc<Status>) -> Plugin {
        Plugin {
            program: options.program.clone(),
            is_needed: options.is_needed,
            run_dir: options.run_dir.clone(),
            status,
            told: Mutex::default(),
        }
    }

    /// Does the answer to this call depend on a disk? An update does that is about CPUs or memory
    /// nodes.
    pub fn reads_claims(request: &Request) -> bool {
        let resources = || {
            let asked = UpdateContainerRequest::decode(request.payload.as_slice());
            asked.ok()?.linux_resources
        };
        request.method == UPDATE && resources().is_some_and(|asked| guard::is_of_cpuset(&asked))
    }

    /// Answers a call. It takes no lock of a pool directory, and reads claims only for an update
    /// of CPUs or memory nodes.
    pub fn answer(&self, request: &Request) -> Answer {
        let Request {
            service,
            method,
            payload,
        } = request;
        if service != PLUGIN_SERVICE {
            let message = format!("pinfold has no service {}", Shown(service));
            return Answer::failed(Code::Unimplemented, message);
        }
        let payload = payload.as_slice();
        let answered = match method.as_str() {
            "Configure" => ConfigureRequest::decode(payload).map(|asked| self.configure(&asked)),
            "Synchronize" => SynchronizeRequest::decode(payload).map(|part| self.synchronize(part)),
            "CreateContainer" => match ContainerRequest::decode(payload) {
                // It asks for no CPUs, and depends on nothing of ours.
                Err(_) if !self.is_needed && !contains(payload, DOMAIN.as_bytes()) => {
                    Ok(Answer::of(&CreateContainerResponse::default()))
                }
                decoded => decoded.map(|asked| self.create(&asked)),
            },
            UPDATE => UpdateContainerRequest::decode(payload).map(|asked| self.update(&asked)),
            "PostStartContainer" => ContainerRequest::decode(payload)
                .map(|asked| self.event(Event::PostStartContainer, &asked)),
            "StopContainer" => ContainerRequest::decode(payload)
                .map(|asked| self.event(Event::StopContainer, &asked)),
            "RemoveContainer" => ContainerRequest::decode(payload)
                .map(|asked| self.event(Event::RemoveContainer, &asked)),
            "StateChange" => StateChangeEvent::decode(payload).map(|change| {
                let event = change.event();
                let (pod, container) = (change.pod, change.container);
                self.event(event, &ContainerRequest { pod, container })
            }),
            "Shutdown" => Ok(Answer::of(&Empty {})),
            other => {
                let message = format!("pinfold has no method {}", Shown(other));
                Ok(Answer::failed(Code::Unimplemented, message))
            }
        };
        answered.unwrap_or_else(|error| {
            let message = format!(
                "pinfold: what {} asks cannot be read: {error}",
                Shown(method)
            );
            Answer::failed(Code::InvalidArgument, one_line(&message))
        })
    }

    /// Does what an answer has left to be done, and returns what is to be done after its
    /// [`Then::pause`].
    pub fn follow(&self, then: Then) -> Then {
        match then {
            Then::Nothing => {}
            Then::Look(looks) => return self.look(looks),
            Then::Refused(refused, reason) => {
                if let Err(error) = self.keep(&refused, reason) {
                    log::warn!("{error:#}");
                }
            }
        }
        Then::Nothing
    }

    fn configure(&self, asked: &ConfigureRequest) -> Answer {
        let engine = engine(&asked.runtime_name);
        log::info!(
            "the engine is {} {}",
            Shown(&asked.runtime_name),
            Shown(&asked.runtime_version)
        );
        self.told().engine = engine;
        Answer::of(&ConfigureResponse { events: EVENTS })
    }

    /// Takes a part of what is there, and keeps of it what asks for CPUs and runs. A container that
    /// is made and not started gets its CPUs at its start.
    fn synchronize(&self, part: SynchronizeRequest) -> Answer {
        let answer = Answer::of(&SynchronizeResponse { more: part.more });
        let mut told = self.told();
        if told.pods.len().max(told.running.len()) > MOST_THERE {
            return Answer::failed(
                Code::ResourceExhausted,
                "pinfold: that is more than a node has",
            );
        }
        for mut pod in part.pods {
            pod.annotations.retain(|key, _| key.starts_with(PREFIX));
            told.pods.insert(pod.id.clone(), pod);
        }
        for mut container in part.containers {
            if [ContainerState::Running, ContainerState::Paused].contains(&container.state()) {
                container.annotations.retain(|key, _| is_ours(key));
                container.hooks = None;
                told.running.push(container);
            }
        }
        if part.more {
            return answer;
        }
        let pods = std::mem::take(&mut told.pods);
        let running = std::mem::take(&mut told.running);
        drop(told);
        let members = running.iter().map(|container| Member {
            pod: pods.get(&container.pod_sandbox_id),
            container,
        });
        let all: Vec<Asking> = members.filter_map(asking).collect();
        let ids = all.iter().map(|one| one.id.clone());
        self.status.suspect_only(ids.collect());
        self.status.connected(true);
        answer.and(Then::look(all))
    }

    fn create(&self, asked: &ContainerRequest) -> Answer {
        let Some(container) = &asked.container else {
            return Answer::of(&CreateContainerResponse::default());
        };
        let pod = asked.pod.as_ref();
        let member = Member { pod, container };
        let engine = self.told().engine;
        match member.adjustment(&self.program, engine) {
            Ok(adjust) => {
                if adjust.is_some() {
                    log::info!("added what pins it to container {}", member.shown());
                }
                Answer::of(&CreateContainerResponse { adjust })
            }
            Err(refusal) => {
                let what = format!("cannot start container {}: {refusal}", member.shown());
                let message = one_line(&what);
                log::error!("{message}");
                let refused = refused(&member, engine, &message);
                let answer =
                    Answer::failed(Code::FailedPrecondition, format!("pinfold: {message}"));
                answer.and(Then::Refused(Box::new(refused), refusal.reason.word()))
            }
        }
    }

    fn update(&self, asked: &UpdateContainerRequest) -> Answer {
        let (Some(container), Some(resources)) = (&asked.container, &asked.linux_resources) else {
            return Answer::of(&UpdateContainerResponse::default());
        };
        let id = &container.id;
        let pod = asked.pod.as_ref();
        let member = Member { pod, container };
        let shown = || member.shown();
        match guard::guarded(&self.run_dir, id, member.awaits_its_cpus(), resources) {
            Ok(instead) => {
                if let Some(instead) = &instead {
                    let cpus = instead.cpu.iter().map(|cpu| cpu.cpus.as_str());
                    let cpus = cpus.chain(instead.unified.values().map(String::as_str));
                    log::info!(
                        "container {} keeps {} in spite of an update",
                        shown(),
                        cpus.collect::<Vec<_>>().join(" ").trim()
                    );
                }
                Answer::of(&guard::response(id, instead))
            }
            Err(error) => {
                let refusal = Refusal::of(&error);
                let what = format!("cannot change the CPUs of container {}: {refusal}", shown());
                let message = one_line(&what);
                log::error!("{message}");
                Answer::failed(Code::FailedPrecondition, format!("pinfold: {message}"))
            }
        }
    }

    /// An event that asks nothing; each has an answer without a field.
    fn event(&self, event: Event, of: &ContainerRequest) -> Answer {
        let answer = Answer::of(&Empty {});
        let Some(container) = &of.container else {
            return answer;
        };
        let pod = of.pod.as_ref();
        match event {
            Event::StopContainer | Event::RemoveContainer => {
                self.status.clear(&container.id);
                answer
            }
            Event::PostStartContainer => match asking(Member { pod, container }) {
                // At once: its end can be the next event.
                Some(asking) => {
                    self.status.suspect(&asking.id);
                    answer.and(Then::look(vec![asking]))
                }
                None => answer,
            },
            _ => answer,
        }
    }

    /// Says who is without a claim at a second look, if it was not said before, and returns whom to
    /// look at again: those that a first look finds without one, and those whose claims cannot be
    /// read.
    fn look(&self, looks: Looks) -> Then {
        let ledger = Ledger::open_to_read(&self.run_dir);
        let Looks {
            first,
            second,
            failures,
        } = looks;
        let mut later = Looks::default();
        let mut failure = None;
        let first = first.into_iter().map(|one| (one, false));
        let second = second.into_iter().map(|one| (one, true));
        for (one, is_second) in first.chain(second) {
            // It has ended meanwhile, or was said to be without one.
            if !self.status.is_suspected(&one.id) {
                continue;
            }
            let claim = match &ledger {
                Ok(ledger) => has_claim(ledger, &one.id).map_err(|error| format!("{error:#}")),
                Err(error) => Err(format!("{error:#}")),
            };
            match claim {
                Ok(true) => self.status.clear(&one.id),
                Ok(false) if !is_second => later.second.push(one),
                Ok(false) => {
                    if self.status.confirm(&one.id) {
                        one.complain();
                    }
                }
                Err(error) => {
                    failure.get_or_insert(error);
                    match is_second {
                        true => later.second.push(one),
                        false => later.first.push(one),
                    }
                }
            }
        }
        if let Some(error) = failure {
            if failures == 0 {
                log::warn!("who runs without CPUs cannot be told yet: {error}");
            }
            later.failures = failures.saturating_add(1);
        }
        match later.first.is_empty() && later.second.is_empty() {
            true => Then::Nothing,
            false => Then::Look(later),
        }
    }

    /// Keeps a refusal for `pinfold why`, and counts it.
    fn keep(&self, refused: &Refused, reason: &str) -> Result<()> {
        Ledger::open(&self.run_dir)?;
        refusals::record(&self.run_dir, refused)?;
        counters::count(&self.run_dir, |counters| {
            *counters.refusals.entry(reason.to_owned()).or_default() += 1;
        })
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asking {
    fn complain(&self) {
        log::warn!(
            "container {} {}, and runs without any: {REMEDY}",
            self.shown,
            self.asks
        );
    }
}

/// The engine that calls itself by this name.
fn engine(name: &str) -> Option<Engine> {
    match name.to_ascii_lowercase().as_str() {
        "containerd" => Some(Engine::Containerd),
        "cri-o" | "crio" => Some(Engine::Crio),
        _ => None,
    }
}

/// The container, if it asks for CPUs, or for what is refused.
fn asking(member: Member<'_>) -> Option<Asking> {
    let asks = match member.request() {
        Ok(None) => return None,
        Ok(Some(request)) => format!("asks for CPUs of pool {}", request.pool),
        Err(refusal) => format!("asks for CPUs wrongly ({})", one_line(&refusal.what)),
    };
    Some(Asking {
        id: member.container.id.clone(),
        shown: member.shown(),
        asks,
    })
}

fn has_claim(ledger: &Ledger, id: &str) -> Result<bool> {
    // None has an id that a hook would refuse.
    let Ok(id) = Id::parse(id) else {
        return Ok(false);
    };
    Ok(!ledger.of_id(id.as_str())?.is_empty())
}

fn refused(member: &Member<'_>, engine: Option<Engine>, message: &str) -> Refused {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Refused {
        at: now.map_or(0, |now| now.as_secs()),
        container: member.container.id.clone(),
        names: member.names(engine),
        message: message.to_owned(),
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ttrpc::{Kind, Message as Sent};
    use super::super::wire::{Arrived, Wire};
    use super::*;

    /// What an engine sends, as the fuzz target begins with.
    const SEEDS: [&[u8]; 4] = [
        include_bytes!("../../../fuzz/seeds/nri/create"),
        include_bytes!("../../../fuzz/seeds/nri/events"),
        include_bytes!("../../../fuzz/seeds/nri/start"),
        include_bytes!("../../../fuzz/seeds/nri/update"),
    ];

    fn plugin() -> Plugin {
        let options = Options::of_program("/usr/bin/pinfold", "/nonexistent/pinfold".into());
        Plugin::new(&options, Arc::default())
    }

    /// How many requests of these bytes get an answer, and how many of those tell a failure.
    fn answered(bytes: &[u8]) -> (usize, usize) {
        let (plugin, mut wire) = (plugin(), Wire::default());
        let arrived = wire.add(bytes).unwrap_or_default();
        let requests = arrived.into_iter().filter_map(|message| match message {
            Arrived::ToPlugin(Sent {
                kind: Kind::Request,
                content,
                ..
            }) => Request::decode(content.as_slice()).ok(),
            _ => None,
        });
        let answers: Vec<Answer> = requests.map(|request| plugin.answer(&request)).collect();
        let failures = answers
            .iter()
            .filter_map(|answer| answer.response.failure());
        let failures = failures.inspect(|status| assert!(!status.message.is_empty()));
        (answers.len(), failures.count())
    }

    #[test]
    fn each_seed_is_answered_without_a_failure() {
        let counts = SEEDS.map(answered);
        assert_eq!(counts, [(2, 0), (3, 0), (3, 0), (1, 0)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn what_an_engine_sends_with_any_bytes_changed_is_answered_or_none(
            seed in 0..SEEDS.len(),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = SEEDS[seed].to_vec();
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            // Half of them are cut as well.
            let length = length.index(bytes.len() * 2);
            bytes.truncate(length);
            let (answers, failures) = answered(&bytes);
            prop_assert!(failures <= answers && answers <= 3);
        }
    }
}
