//! The books of one exclusive CPU list, and everybody who changes them, as steps that follow each
//! other in any order.
//!
//! A step is what nobody can see half of: a rename, a flock(2), a write to a kernel file. Whoever
//! holds the lock can be killed between any two of its steps.

use crate::search::Model;

/// How many containers want the list.
const CONTAINERS: usize = 2;
/// How often `reconcile` runs.
const RUNS: u8 = 2;

/// One of the rules that keep a list with one owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A pid in `tasks` that no claim explains owns while its process exists.
    OthersInTasksOwn,
    /// A claim holds its list although another tool dropped its pid from `tasks`.
    ClaimsHold,
    /// An owner lives while any process is in its cgroup, not only the recorded one.
    GroupLives,
    /// Claim and `tasks` are written before the mask.
    RecordComesFirst,
    /// Whoever gets the lock makes sure that its path still names the file that is held.
    LockIsCheckedAgain,
    /// A lock that was replaced serves once nobody holds the former one.
    FormerLockIsLeft,
    /// A process that lives is not forgotten because of the time of a file.
    TheLivingAreNotForgotten,
    /// A link that cannot be looked at is not one that leads nowhere.
    ErrorsAreNotAbsence,
}

impl Rule {
    pub(crate) const ALL: [Rule; 8] = [
        Rule::OthersInTasksOwn,
        Rule::ClaimsHold,
        Rule::GroupLives,
        Rule::RecordComesFirst,
        Rule::LockIsCheckedAgain,
        Rule::FormerLockIsLeft,
        Rule::TheLivingAreNotForgotten,
        Rule::ErrorsAreNotAbsence,
    ];
}

/// What a tool of KCM's rules does beside us.
///
/// Not both in one world: an owner whose recorded process is dead, and whose others live on, is not
/// to be seen by a tool that drops the dead and then takes the list, until one of ours has run and
/// recorded another of its processes. No order of our steps can change that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OtherTool {
    Absent,
    /// Its `isolate`: takes the list where `tasks` is empty.
    Isolates,
    /// Its `reconcile`: drops the pids of processes that are not there.
    Reconciles,
}

/// When somebody puts another file in the place of `lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replaced {
    Never,
    /// While nobody holds it; ours may wait for it. Another tool that waits does not look again,
    /// and nothing of ours can change that.
    WhileFree,
    AnyTime,
}

/// Who is there, what can go wrong, and which rule nobody keeps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct World {
    other_tool: OtherTool,
    /// Does its process own the list already, in a `tasks` that seems to be from before the boot?
    clock_stepped: bool,
    lock_is_replaced: Replaced,
    /// Can looking at a link fail?
    links_fail: bool,
    broken: Option<Rule>,
}

/// Who takes steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Actor {
    Hook(usize),
    Reconcile,
    OtherTool,
}

/// How far one has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum At {
    Start,
    /// Has opened this file, and waits for its lock.
    Waiting(u8),
    Holding(u8),
    /// Holds everything that there is to hold.
    Inside(u8),
    /// The boot is begun: what was recorded before it is forgotten.
    Begun,
    Chosen,
    Linked,
    Claimed,
    Recorded,
    Done,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Container {
    /// Was it begun?
    begun: bool,
    first: bool,
    child: bool,
    /// Was its hook killed? Then the runtime ends it, soon.
    is_doomed: bool,
    link: bool,
    claim: bool,
    in_tasks: bool,
    mask: bool,
    /// Was it ever confined to the list? Whoever takes the mask of one that lives lets it run there
    /// all the same.
    was_pinned: bool,
}

impl Container {
    fn is_alive(&self) -> bool {
        self.first || self.child
    }
}

/// All of it at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    containers: [Container; CONTAINERS],
    hooks: [At; CONTAINERS],
    reconcile: At,
    runs: u8,
    other: At,
    /// Does the other tool's process run, and is it in `tasks`?
    other_runs: bool,
    other_in_tasks: bool,
    /// Which file the path of the lock names, and who holds which.
    path: u8,
    held: [Option<Actor>; 2],
    /// The lock that the mark of this boot names.
    mark: Option<u8>,
    tasks_seem_old: bool,
}

impl State {
    fn let_go(&mut self, actor: Actor) {
        for held in &mut self.held {
            if *held == Some(actor) {
                *held = None;
            }
        }
    }

    fn at(&mut self, actor: Actor) -> &mut At {
        match actor {
            Actor::Hook(number) => &mut self.hooks[number],
            Actor::Reconcile => &mut self.reconcile,
            Actor::OtherTool => &mut self.other,
        }
    }

    fn end(&mut self, actor: Actor) {
        self.let_go(actor);
        *self.at(actor) = At::Done;
    }
}

impl World {
    /// The worlds that are explored, by name.
    pub(crate) fn all() -> Vec<(&'static str, World)> {
        let quiet = World {
            other_tool: OtherTool::Absent,
            clock_stepped: false,
            lock_is_replaced: Replaced::Never,
            links_fail: false,
            broken: None,
        };
        let beside = |other_tool| World {
            other_tool,
            ..quiet
        };
        let isolates = beside(OtherTool::Isolates);
        let reconciles = beside(OtherTool::Reconciles);
        vec![
            ("beside another tool's isolate", isolates),
            ("beside another tool's reconcile", reconciles),
            (
                "a clock that was set",
                World {
                    clock_stepped: true,
                    ..isolates
                },
            ),
            (
                "a lock that is replaced at any time",
                World {
                    lock_is_replaced: Replaced::AnyTime,
                    ..quiet
                },
            ),
            (
                "a lock that is replaced while it is free, beside another tool's isolate",
                World {
                    lock_is_replaced: Replaced::WhileFree,
                    ..isolates
                },
            ),
            (
                "links that cannot be looked at",
                World {
                    links_fail: true,
                    ..reconciles
                },
            ),
        ]
    }

    /// The same where nobody keeps one rule.
    pub(crate) fn without(self, rule: Rule) -> World {
        World {
            broken: Some(rule),
            ..self
        }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    fn can_replace(&self, state: &State) -> bool {
        let waits = matches!(state.other, At::Waiting(_));
        let is_time = match self.lock_is_replaced {
            Replaced::Never => false,
            Replaced::WhileFree => state.held == [None; 2] && !waits,
            Replaced::AnyTime => true,
        };
        is_time && state.path == 0
    }

    /// What processes of a container do by themselves.
    fn life(&self, state: &State, number: usize, steps: &mut Vec<(String, State)>) {
        let container = state.containers[number];
        let mut change = |what: &str, change: fn(&mut Container)| {
            let mut next = state.clone();
            change(&mut next.containers[number]);
            steps.push((format!("container {number}: {what}"), next));
        };
        if container.is_doomed && container.is_alive() {
            change("the runtime ends it", |it| {
                (it.first, it.child) = (false, false)
            });
        }
        let runs = state.hooks[number] == At::Done && !container.is_doomed;
        if runs && container.first {
            change("its first process ends", |it| it.first = false);
            if !container.child {
                change("its first process forks", |it| it.child = true);
            }
        }
        if runs && container.child {
            change("its second process ends", |it| it.child = false);
        }
    }

    /// One step of ours, and being killed instead.
    fn step(&self, state: &State, actor: Actor, steps: &mut Vec<(String, State)>) {
        let at = *state.clone().at(actor);
        let mut push = |what: &str, next: State| steps.push((format!("{actor:?}: {what}"), next));
        let mut next = state.clone();
        match at {
            At::Start => {
                if let Actor::Hook(number) = actor {
                    next.containers[number].begun = true;
                    next.containers[number].first = true;
                }
                *next.at(actor) = At::Waiting(state.path);
                push("opens the lock", next);
                return;
            }
            At::Done => {
                if actor == Actor::Reconcile && state.runs < RUNS {
                    next.runs += 1;
                    next.reconcile = At::Start;
                    push("is run again", next);
                }
                return;
            }
            At::Waiting(file) if state.held[usize::from(file)].is_none() => {
                next.held[usize::from(file)] = Some(actor);
                *next.at(actor) = At::Holding(file);
                push("locks", next);
            }
            At::Waiting(_) => {}
            At::Holding(file) => self.enter(state, actor, file, &mut push),
            At::Inside(file) => self.begin_boot(state, actor, file, &mut push),
            At::Begun => match actor {
                Actor::Hook(number) => self.choose(state, number, &mut push),
                _ => self.reclaim(state, &mut push),
            },
            At::Chosen | At::Linked | At::Claimed | At::Recorded => {
                let Actor::Hook(number) = actor else {
                    unreachable!("only hooks record");
                };
                self.record(state, number, &mut push);
            }
        }
        let mut killed = state.clone();
        if let Actor::Hook(number) = actor {
            killed.containers[number].is_doomed = true;
        }
        killed.end(actor);
        push("is killed", killed);
    }

    fn enter(&self, state: &State, actor: Actor, file: u8, push: &mut impl FnMut(&str, State)) {
        let mut next = state.clone();
        if self.keeps(Rule::LockIsCheckedAgain) && state.path != file {
            next.let_go(actor);
            *next.at(actor) = At::Waiting(state.path);
            push("opens the lock again, which was replaced", next);
        } else {
            *next.at(actor) = At::Inside(file);
            push("enters", next);
        }
    }

    fn begin_boot(
        &self,
        state: &State,
        actor: Actor,
        file: u8,
        push: &mut impl FnMut(&str, State),
    ) {
        let mut next = state.clone();
        match state.mark {
            Some(marked) if marked == file => {}
            Some(former)
                if self.keeps(Rule::FormerLockIsLeft)
                    && state.held[usize::from(former)].is_some() =>
            {
                return;
            }
            // Another lock than before: it counts once nobody lives who was recorded under the
            // former.
            Some(_) if state.containers.iter().any(|it| it.claim && self.lives(it)) => {
                if let Actor::Hook(number) = actor {
                    next.containers[number].is_doomed = true;
                }
                next.end(actor);
                push("refuses: an owner lives under the former lock", next);
                return;
            }
            None if state.tasks_seem_old => {
                let keeps = self.keeps(Rule::TheLivingAreNotForgotten);
                next.other_in_tasks &= keeps && state.other_runs;
                for container in &mut next.containers {
                    container.in_tasks &= container.claim && self.lives(container);
                }
            }
            _ => {}
        }
        next.mark = Some(file);
        *next.at(actor) = At::Begun;
        push("begins the boot", next);
    }

    fn choose(&self, state: &State, number: usize, push: &mut impl FnMut(&str, State)) {
        let mut next = state.clone();
        let other_owns = state.other_in_tasks && state.other_runs;
        let is_held = |it: &Container| {
            let by_claim = it.link && it.claim && self.keeps(Rule::ClaimsHold) && self.lives(it);
            // The process that `tasks` names; the claim tells the rest of the owner.
            let by_tasks = it.in_tasks && (it.first || (it.link && it.claim && self.lives(it)));
            by_claim || by_tasks
        };
        let is_other = |it: usize| it != number;
        let held = (0..CONTAINERS).any(|it| is_other(it) && is_held(&state.containers[it]));
        if held || (other_owns && self.keeps(Rule::OthersInTasksOwn)) {
            next.containers[number].is_doomed = true;
            next.end(Actor::Hook(number));
            push("refuses: the list is owned", next);
            return;
        }
        for it in (0..CONTAINERS).filter(|it| is_other(*it)) {
            give_back(&mut next.containers[it]);
        }
        next.other_in_tasks = false;
        next.hooks[number] = At::Chosen;
        push("chooses the list", next);
    }

    fn record(&self, state: &State, number: usize, push: &mut impl FnMut(&str, State)) {
        let mut next = state.clone();
        let container = &mut next.containers[number];
        let record_first = self.keeps(Rule::RecordComesFirst);
        let (what, at) = match state.hooks[number] {
            At::Chosen => {
                container.link = true;
                (container.mask, container.was_pinned) = (!record_first, !record_first);
                ("links", At::Linked)
            }
            At::Linked => {
                container.claim = true;
                ("claims", At::Claimed)
            }
            At::Claimed => {
                container.in_tasks = true;
                ("writes tasks", At::Recorded)
            }
            _ => {
                (container.mask, container.was_pinned) = (true, true);
                ("writes the mask, and is done", At::Done)
            }
        };
        if at == At::Done {
            next.end(Actor::Hook(number));
        } else {
            next.hooks[number] = at;
        }
        push(what, next);
    }

    /// `reconcile` frees the dead, one effect at a time, and removes links that lead nowhere.
    fn reclaim(&self, state: &State, push: &mut impl FnMut(&str, State)) {
        for number in 0..CONTAINERS {
            let mut next = state.clone();
            let it = &mut next.containers[number];
            let what = if it.claim && !self.lives(it) {
                if it.mask {
                    it.mask = false;
                    "restores the mask"
                } else if it.in_tasks {
                    it.in_tasks = false;
                    "drops it from tasks"
                } else {
                    it.claim = false;
                    "removes the claim"
                }
            } else if it.link
                && (!it.claim || (self.links_fail && !self.keeps(Rule::ErrorsAreNotAbsence)))
            {
                it.link = false;
                "removes a link"
            } else {
                continue;
            };
            push(&format!("{what} of container {number}"), next);
        }
        let mut next = state.clone();
        next.end(Actor::Reconcile);
        push("is done", next);
    }

    fn lives(&self, container: &Container) -> bool {
        container.first || (container.child && self.keeps(Rule::GroupLives))
    }

    /// The lock, `tasks` and whether pids exist are all that another tool knows.
    fn other_tool(&self, state: &State, steps: &mut Vec<(String, State)>) {
        let actor = Actor::OtherTool;
        let mut push = |what: &str, next: State| steps.push((format!("{actor:?}: {what}"), next));
        let mut next = state.clone();
        match (self.other_tool, state.other) {
            (OtherTool::Absent, _) => {}
            (_, At::Start) => {
                next.other = At::Waiting(state.path);
                push("opens the lock", next);
            }
            (_, At::Waiting(file)) if state.held[usize::from(file)].is_none() => {
                next.held[usize::from(file)] = Some(actor);
                next.other = At::Inside(file);
                push("locks", next);
            }
            (OtherTool::Isolates, At::Inside(_)) => {
                let in_tasks = state.containers.iter().any(|it| it.in_tasks);
                let is_free = !state.other_in_tasks && !in_tasks;
                if is_free {
                    (next.other_runs, next.other_in_tasks) = (true, true);
                }
                next.end(actor);
                push(
                    if is_free {
                        "takes the list"
                    } else {
                        "finds it taken"
                    },
                    next,
                );
            }
            (OtherTool::Reconciles, At::Inside(_)) => {
                for container in &mut next.containers {
                    container.in_tasks &= container.first;
                }
                next.end(actor);
                next.other = At::Start;
                push("drops the dead from tasks", next);
            }
            (_, At::Done) if state.other_runs => {
                next.other_runs = false;
                push("its process ends", next);
            }
            _ => {}
        }
    }
}

impl Model for World {
    type State = State;

    fn first(&self) -> State {
        State {
            containers: Default::default(),
            hooks: [At::Start; CONTAINERS],
            reconcile: At::Start,
            runs: 0,
            other: if self.clock_stepped {
                At::Done
            } else {
                At::Start
            },
            other_runs: self.clock_stepped,
            other_in_tasks: self.clock_stepped,
            path: 0,
            held: [None; 2],
            mark: (!self.clock_stepped).then_some(0),
            tasks_seem_old: self.clock_stepped,
        }
    }

    fn steps(&self, state: &State) -> Vec<(String, State)> {
        let mut steps = Vec::new();
        for number in 0..CONTAINERS {
            self.life(state, number, &mut steps);
            self.step(state, Actor::Hook(number), &mut steps);
        }
        self.step(state, Actor::Reconcile, &mut steps);
        self.other_tool(state, &mut steps);
        if self.can_replace(state) {
            let mut next = state.clone();
            next.path = 1;
            steps.push(("another file is put in the place of the lock".into(), next));
        }
        steps
    }

    /// At most one owner that lives may run on the list.
    fn is_sound(&self, state: &State) -> bool {
        let pinned = state
            .containers
            .iter()
            .filter(|it| it.was_pinned && it.is_alive());
        pinned.count() + usize::from(state.other_runs) <= 1
    }
}

fn give_back(container: &mut Container) {
    (container.mask, container.in_tasks) = (false, false);
    (container.claim, container.link) = (false, false);
}
