//! One shared CPU list that grows, its owners, and the verbs that say that they are done: whatever
//! fails, and whoever is killed, an exit code of 0 says what the books say, and no mask of ours is
//! left in a group that no claim tells of.
//!
//! Who gets the lock is for `books` to show: here a verb has it from its first step to its last.

use crate::search::Model;

/// How many containers there are.
const OWNERS: usize = 2;
/// How many calls fail, at most.
const ERRORS: u8 = 1;

/// One of the rules that keep exit codes true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A verb in which anything failed says so, whatever the error is: EPIPE too.
    FailuresAreTold,
    /// A list that cannot be looked at is not one that is gone: the pid is still in `tasks`.
    ListsAreLookedAt,
    /// A claim that cannot be read is of an owner that does not follow its list.
    ClaimsAreRead,
    /// A size that the list has already may be that of a change that was cut short.
    OwnersFollowAgain,
    /// A claim stays, without its lists, until the mask is taken out of the group.
    ClaimOutlivesMask,
    /// A claim without lists is settled like any other.
    WithoutListsIsSettled,
}

impl Rule {
    pub(crate) const ALL: [Rule; 6] = [
        Rule::FailuresAreTold,
        Rule::ListsAreLookedAt,
        Rule::ClaimsAreRead,
        Rule::OwnersFollowAgain,
        Rule::ClaimOutlivesMask,
        Rule::WithoutListsIsSettled,
    ];
}

/// All verbs keep the rules, but for one that is left out.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Verbs {
    broken: Option<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Verb {
    Start(usize),
    Poststop(usize),
    ReleaseByForce(usize),
    Resize,
    Reconcile,
}

impl Verb {
    /// How often it is run at most: a change that was cut short is made again.
    fn runs(self) -> u8 {
        match self {
            Verb::Resize | Verb::Reconcile => 2,
            _ => 1,
        }
    }

    /// The second container is there for those verbs that look at all of them.
    const ALL: [Verb; 6] = [
        Verb::Start(0),
        Verb::Start(1),
        Verb::Poststop(0),
        Verb::ReleaseByForce(0),
        Verb::Resize,
        Verb::Reconcile,
    ];
}

/// The CPUs of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Cpus {
    Old,
    New,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
enum Claim {
    #[default]
    Absent,
    Whole,
    WithoutLists,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Owner {
    is_alive: bool,
    /// Its start did not succeed: the runtime ends it.
    is_doomed: bool,
    claim: Claim,
    in_tasks: bool,
    mask: Option<Cpus>,
}

/// A verb at work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Busy {
    verb: Verb,
    /// What comes next.
    step: usize,
    has_failed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct State {
    owners: [Owner; OWNERS],
    cpus: Cpus,
    busy: Option<Busy>,
    runs: [u8; Verb::ALL.len()],
    errors: u8,
    /// Has a verb said that it was done, and was not?
    has_lied: bool,
}

impl State {
    /// What somebody may rely on who has got an exit code of 0 from a verb.
    fn agrees_with(&self, verb: Verb) -> bool {
        let is_left = |it: &Owner| {
            !it.is_alive && (it.claim != Claim::Absent || it.in_tasks || it.mask.is_some())
        };
        match verb {
            Verb::Start(number) => {
                let it = self.owners[number];
                it.claim == Claim::Whole && it.in_tasks && it.mask == Some(self.cpus)
            }
            Verb::Poststop(number) => !is_left(&self.owners[number]),
            Verb::ReleaseByForce(number) => {
                let it = self.owners[number];
                let is_out = !it.is_alive || it.mask.is_none();
                it.claim != Claim::Whole && !it.in_tasks && is_out
            }
            Verb::Resize => {
                let mut confined = self.owners.iter().filter(|it| it.is_alive);
                self.cpus == Cpus::New
                    && confined.all(|it| it.mask.is_none_or(|mask| mask == Cpus::New))
            }
            Verb::Reconcile => !self.owners.iter().any(is_left),
        }
    }
}

impl Model for Verbs {
    type State = State;

    fn first(&self) -> State {
        State {
            owners: Default::default(),
            cpus: Cpus::Old,
            busy: None,
            runs: [0; Verb::ALL.len()],
            errors: 0,
            has_lied: false,
        }
    }

    fn is_sound(&self, state: &State) -> bool {
        let is_forgotten =
            |it: &Owner| !it.is_alive && it.mask.is_some() && it.claim == Claim::Absent;
        !state.has_lied && !state.owners.iter().any(is_forgotten)
    }

    fn steps(&self, state: &State) -> Vec<(String, State)> {
        let mut steps = Vec::new();
        for (number, it) in state.owners.iter().enumerate() {
            let runs = it.mask.is_some() && state.busy.is_none_or(|busy| !busy.starts(number));
            if it.is_alive && (it.is_doomed || runs || it.claim == Claim::Absent) {
                let mut next = state.clone();
                next.owners[number].is_alive = false;
                steps.push((format!("container {number} ends"), next));
            }
        }
        match state.busy {
            None => begin(state, &mut steps),
            Some(busy) => {
                let mut killed = state.clone();
                killed.busy = None;
                if let Verb::Start(number) = busy.verb {
                    killed.owners[number].is_doomed = true;
                }
                steps.push((format!("{:?} is killed", busy.verb), killed));
                self.go_on(state, busy, false, &mut steps);
                if state.errors < ERRORS {
                    let mut next = state.clone();
                    next.errors += 1;
                    self.go_on(&next, busy, true, &mut steps);
                }
            }
        }
        steps
    }
}

impl Busy {
    fn starts(self, number: usize) -> bool {
        self.verb == Verb::Start(number)
    }
}

fn begin(state: &State, steps: &mut Vec<(String, State)>) {
    for (place, verb) in Verb::ALL.into_iter().enumerate() {
        if state.runs[place] == verb.runs() {
            continue;
        }
        let mut next = state.clone();
        next.runs[place] += 1;
        next.busy = Some(Busy {
            verb,
            step: 0,
            has_failed: false,
        });
        steps.push((format!("{verb:?} begins"), next));
    }
}

impl Verbs {
    /// The same where nobody keeps one rule.
    pub(crate) fn without(rule: Rule) -> Verbs {
        Verbs { broken: Some(rule) }
    }

    fn keeps(self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    /// The next effect of a verb, or that it fails.
    fn go_on(&self, state: &State, busy: Busy, fails: bool, steps: &mut Vec<(String, State)>) {
        let mut next = state.clone();
        let what = match busy.verb {
            Verb::Start(number) => self.start(&mut next, number, busy, fails),
            Verb::Poststop(number) => self.settle(&mut next, &[number], busy, fails),
            Verb::Reconcile => self.settle(&mut next, &[0, 1], busy, fails),
            Verb::ReleaseByForce(number) => self.take(&mut next, number, busy, fails),
            Verb::Resize => self.resize(&mut next, busy, fails),
        };
        let outcome = if fails { "fails where it " } else { "" };
        steps.push((format!("{:?} {outcome}{what}", busy.verb), next));
    }

    /// A verb ends, and says what it says.
    fn end(self, state: &mut State, busy: Busy, has_failed: bool) -> &'static str {
        let says_done = !has_failed || !self.keeps(Rule::FailuresAreTold);
        state.busy = None;
        state.has_lied |= says_done && !state.agrees_with(busy.verb);
        if says_done {
            "ends and says that it is done"
        } else {
            "ends and says that it failed"
        }
    }

    fn start(self, state: &mut State, number: usize, busy: Busy, fails: bool) -> &'static str {
        let cpus = state.cpus;
        let it = &mut state.owners[number];
        it.is_alive |= busy.step == 0;
        if fails {
            // What was done is undone, which is another verb's work where that fails too.
            it.is_doomed = true;
            (it.claim, it.in_tasks, it.mask) = (Claim::Absent, false, None);
            return self.end(state, busy, true);
        }
        match busy.step {
            0 => it.claim = Claim::Whole,
            1 => it.in_tasks = true,
            2 => it.mask = Some(cpus),
            _ => return self.end(state, busy, false),
        }
        state.step_on(busy)
    }

    /// Gives back what the dead among these hold, one effect at a time.
    fn settle(self, state: &mut State, numbers: &[usize], busy: Busy, fails: bool) -> &'static str {
        let is_due = |number: &&usize| {
            let it = state.owners[**number];
            let is_settled = match it.claim {
                Claim::Absent => false,
                Claim::Whole => true,
                Claim::WithoutLists => self.keeps(Rule::WithoutListsIsSettled),
            };
            !it.is_alive && is_settled
        };
        let Some(number) = numbers.iter().find(is_due) else {
            return self.end(state, busy, busy.has_failed);
        };
        let it = &mut state.owners[*number];
        if it.mask.is_some() {
            if fails {
                return self.end(state, busy, true);
            }
            it.mask = None;
        } else if it.in_tasks {
            if fails && self.keeps(Rule::ListsAreLookedAt) {
                return self.end(state, busy, true);
            }
            it.in_tasks = false;
            if fails {
                // The list is taken for gone, and the pid stays in it.
                (it.in_tasks, it.claim) = (true, Claim::Absent);
            }
        } else {
            if fails {
                return self.end(state, busy, true);
            }
            it.claim = Claim::Absent;
        }
        state.step_on(busy)
    }

    /// Takes the list from whoever has it, dead or alive.
    fn take(self, state: &mut State, number: usize, busy: Busy, fails: bool) -> &'static str {
        let it = &mut state.owners[number];
        match (busy.step, it.claim) {
            (0, Claim::Absent) => return self.end(state, busy, false),
            (0, _) if fails && it.is_alive => return self.end(state, busy, true),
            // Of a dead one the list is free all the same.
            (0, _) if fails => {}
            (0, _) => it.mask = None,
            (1, _) if fails => return self.end(state, busy, true),
            (1, _) => it.in_tasks = false,
            (2, _) if fails => return self.end(state, busy, true),
            (2, _) => {
                let stays = it.mask.is_some() && self.keeps(Rule::ClaimOutlivesMask);
                it.claim = if stays {
                    Claim::WithoutLists
                } else {
                    Claim::Absent
                };
            }
            _ => return self.end(state, busy, false),
        }
        state.step_on(busy)
    }

    /// The list gets its new CPUs, and then each of its owners.
    fn resize(self, state: &mut State, mut busy: Busy, fails: bool) -> &'static str {
        let Some(number) = busy.step.checked_sub(1) else {
            if fails {
                return self.end(state, busy, true);
            }
            if state.cpus == Cpus::New && !self.keeps(Rule::OwnersFollowAgain) {
                return self.end(state, busy, false);
            }
            state.cpus = Cpus::New;
            return state.step_on(busy);
        };
        let Some(it) = state.owners.get_mut(number) else {
            return self.end(state, busy, busy.has_failed);
        };
        if it.is_alive && it.claim == Claim::Whole && it.mask == Some(Cpus::Old) {
            if fails {
                busy.has_failed |= self.keeps(Rule::ClaimsAreRead);
            } else {
                it.mask = Some(Cpus::New);
            }
        }
        state.step_on(busy)
    }
}

impl State {
    fn step_on(&mut self, busy: Busy) -> &'static str {
        self.busy = Some(Busy {
            step: busy.step + 1,
            ..busy
        });
        "goes on"
    }
}
