//! Tells of each CPU list what somebody who hands out single lists has to know: where it lies,
//! whether it can be given, who owns it. Reads without the lock, and changes nothing.
//!
//! A device plugin of Kubernetes is such a somebody: to it a list is a device, and what it hands
//! out the hook gives (`hook --list`), which alone decides.

use anyhow::Result;

use crate::choose::{Offer, Reach, Situation, choose_around};
use crate::cpulist::CpuSet;
use crate::placement::Site;
use crate::placement::look::explain::told;
use crate::placement::look::survey::{ListState, Owner, Survey, SurveyedList, survey};
use crate::pools::Kind;
use crate::refusal::{Reason, Refusal};
use crate::request::{ExactList, is_pool_name};
use crate::text::Shown;
use crate::topology::{self, Levels};

/// The CPU lists of a site, as they were seen.
#[derive(Debug, PartialEq)]
pub struct ListDevices {
    /// The pools that can be asked for, in lexical order, each as far as it can be read.
    pub pools: Vec<DevicePool>,
    /// All owners, of other pools too.
    pub owners: Vec<Owner>,
    /// The pools whose lists were not all read: some of theirs can be missing here.
    pub unread: Vec<String>,
    /// Why who owns what may not be so: the books were changing all the time, or the claims could
    /// not be read.
    pub doubt: Option<Refusal>,
    /// What looks wrong, or could not be looked at.
    pub remarks: Vec<Refusal>,
}

/// A pool with its lists as devices.
#[derive(Debug, Clone, PartialEq)]
pub struct DevicePool {
    /// Its name, as [`is_pool_name`] allows.
    pub name: String,
    /// Exclusive or shared. The lists of a shared pool have any number of owners, and one container
    /// gets one of them.
    pub kind: Kind,
    /// Its lists, by first CPU.
    pub lists: Vec<ListDevice>,
    reach: Reach,
    levels: Levels,
}

/// A CPU list as a device.
#[derive(Debug, Clone, PartialEq)]
pub struct ListDevice {
    /// The list, which knows the names of its device.
    pub exact: ExactList,
    /// Its directory's name, by which [`Owner::lists`] names it.
    pub name: String,
    /// The NUMA nodes in which it lies, by number; empty where the kernel does not tell.
    pub nodes: CpuSet,
    /// Those of its CPUs that are offline: no container gets the list while there are any.
    pub offline: CpuSet,
    /// Is it free? Where it is [`ListState::Dead`] the next start that needs it gets it.
    pub state: ListState,
}

/// Looks at all lists of a site.
///
/// # Errors
/// The pool directory cannot be read at all, or which CPUs are online.
pub fn list_devices(site: &Site) -> Result<ListDevices> {
    ListDevices::of(site, survey(site)?)
}

impl ListDevices {
    /// The devices of a survey, as [`crate::placement::survey_to_watch`] makes one.
    ///
    /// # Errors
    /// Which CPUs are online cannot be read.
    pub fn of(site: &Site, survey: Survey) -> Result<ListDevices> {
        let online = topology::online(&site.host)?;
        let pools = survey.pools.into_iter();
        let pools = pools.filter(|pool| is_pool_name(&pool.name)).map(|pool| {
            let levels = Levels::of(&site.host, &pool.cpus().intersection(&online));
            let lists = pool.lists.into_iter();
            DevicePool {
                lists: lists
                    .map(|list| device(&pool.name, list, &levels))
                    .collect(),
                name: pool.name,
                kind: pool.kind,
                reach: Reach {
                    online: online.clone(),
                    allowed: online.clone(),
                },
                levels,
            }
        });
        Ok(ListDevices {
            pools: pools.collect(),
            owners: survey.owners,
            unread: survey.unread,
            doubt: survey.doubt.or(survey.claims_unread),
            remarks: survey.remarks,
        })
    }

    /// These lists, with those that could not be read as they were in an earlier look.
    ///
    /// # Errors
    /// Who owns what is in doubt.
    pub fn completed(mut self, earlier: Option<&ListDevices>) -> Result<ListDevices, Refusal> {
        if let Some(doubt) = self.doubt {
            return Err(doubt);
        }
        let known = earlier.into_iter().flat_map(|earlier| &earlier.pools);
        for known in known.filter(|known| self.unread.contains(&known.name)) {
            let place = self.pools.iter().position(|pool| pool.name == known.name);
            match place {
                Some(place) => self.pools[place].complete(known),
                None => self.pools.push(known.clone()),
            }
        }
        self.pools.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(self)
    }

    /// The owners of a list, dead ones too. Some can be missing: a claim that cannot be read holds
    /// its lists, and does not say which.
    pub fn owners_of(&self, device: &ListDevice) -> impl Iterator<Item = &Owner> {
        let owners = self.owners.iter();
        owners.filter(|owner| owner.holds(&device.exact.pool, &device.name))
    }

    /// Who holds a list and was not started by the kubelet, as a sentence names them; `None` if
    /// nobody is. While there is somebody, the kubelet must not hand out the list.
    pub fn stranger_on(&self, device: &ListDevice) -> Option<String> {
        if device.state != ListState::Owned {
            return None;
        }
        let mut alive = self.owners_of(device).filter(|owner| owner.is_alive());
        let Some(first) = alive.next() else {
            return Some("an owner whose claim cannot be read".to_owned());
        };
        let mut all = std::iter::once(first).chain(alive);
        let stranger = all.find(|owner| !owner.is_of_kubelet())?;
        Some(Shown(&stranger.shown()).to_string())
    }
}

impl DevicePool {
    /// Adds the lists that an earlier look found and this one did not.
    fn complete(&mut self, earlier: &DevicePool) {
        let cpus: CpuSet = self.lists.iter().map(|list| &list.exact.cpus).collect();
        let is_missing = |list: &&ListDevice| list.exact.cpus.intersection(&cpus).is_empty();
        let missing: Vec<ListDevice> = earlier.lists.iter().filter(is_missing).cloned().collect();
        if missing.is_empty() {
            return;
        }
        self.lists.extend(missing);
        self.lists.sort_by_key(|list| list.exact.cpus.first());
        // Of those lists, too.
        self.levels = earlier.levels.clone();
    }

    /// The list whose device has this id.
    pub fn by_id(&self, id: &str) -> Option<&ListDevice> {
        let exact = ExactList::of_device_id(&self.name, id)?;
        self.lists.iter().find(|list| list.exact == exact)
    }

    /// Which `count` of the available devices go together best: in few NUMA nodes, packages and
    /// caches. Those of `must` are among them, and the others near them. Devices are named by their
    /// ids, as in the kubelet's `GetPreferredAllocation`; what is available and no list of this
    /// pool any more, or offline, is passed over. Returns ids by first CPU.
    ///
    /// # Errors
    /// Too few are available, or one that must be among them is no list of this pool.
    pub fn preferred(
        &self,
        available: &[String],
        must: &[String],
        count: usize,
    ) -> Result<Vec<String>, Refusal> {
        let place = |id: &String| {
            let device = self.by_id(id)?;
            let mut lists = self.lists.iter();
            lists.position(|list| std::ptr::eq(list, device))
        };
        let must: Option<Vec<usize>> = must.iter().map(place).collect();
        let must = must.ok_or_else(|| {
            let what = format!("a list that must be chosen is none of pool {}", self.name);
            Refusal::new(what, "choose anew: the pool has changed").because(Reason::Pool)
        })?;
        let available: Vec<usize> = available.iter().filter_map(place).collect();
        let lists = self.lists.iter().enumerate();
        let offers: Vec<Offer<'_>> = lists
            .map(|(place, list)| Offer {
                cpus: &list.exact.cpus,
                owners: usize::from(!available.contains(&place)),
            })
            .collect();
        let situation = Situation {
            kind: Kind::Exclusive,
            offers: &offers,
            former: &[],
            reach: &self.reach,
        };
        let chosen = choose_around(&situation, &must, count, &self.levels).map_err(|_| {
            let what = format!(
                "{count} of the lists of pool {} are asked for, and fewer are available and online",
                self.name
            );
            Refusal::new(what, "ask for fewer, or wait until some are free")
                .because(Reason::Exhausted)
        })?;
        let chosen = chosen.iter().map(|place| &self.lists[*place]);
        chosen.map(|list| list.exact.device_id()).collect()
    }
}

fn device(pool: &str, list: SurveyedList, levels: &Levels) -> ListDevice {
    let nodes = told(&list.cpus, &levels.nodes, &levels.gaps.nodes);
    ListDevice {
        nodes: nodes.map(|node| node.id).collect(),
        exact: ExactList {
            pool: pool.to_owned(),
            cpus: list.cpus,
        },
        name: list.name,
        offline: list.offline,
        state: list.state,
    }
}
