//! The power of CPUs: which governor sets a frequency
//! (kernel: Documentation/admin-guide/pm/cpufreq.rst), and how long one that sleeps may take to
//! wake (kernel: Documentation/ABI/testing/sysfs-devices-power).

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;

use super::Obstacle;
use super::knobs::Knob;
use super::records::Tuned;
use crate::cgroup::{Mounts, cpu};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::isolation::tuning::{Key, Tuning};
use crate::text::{Shown, one_line};

pub(super) fn latency_file(host: &Host, cpu: u32) -> PathBuf {
    host.sys_cpu(&format!("cpu{cpu}/power/pm_qos_resume_latency_us"))
}

/// The governor of some CPUs that share one; it is shown by each of them that is online.
pub(super) fn governor_file(host: &Host, cpus: &CpuSet, online: &CpuSet) -> PathBuf {
    let cpu = cpus.intersection(online).first().or(cpus.first());
    policy_file(host, cpu.unwrap_or_default(), "scaling_governor")
}

fn policy_file(host: &Host, cpu: u32, file: &str) -> PathBuf {
    host.sys_cpu(&format!("cpu{cpu}/cpufreq/{file}"))
}

/// What has to be set for an owner.
///
/// # Errors
/// It cannot be found out.
pub(super) fn knobs_of(host: &Host, tuned: &Tuned) -> Result<BTreeSet<Knob>> {
    let mut knobs = BTreeSet::new();
    for cpu in tuned.cpus.iter() {
        if tuned.tuning.governor.is_some() {
            let path = policy_file(host, cpu, "related_cpus");
            // The kernel refuses (EBUSY) where no CPU of the policy is online: nothing is set there
            // now, and what was is still recorded.
            let text = files::read_record_if_there(&path).unwrap_or_else(|error| {
                log::debug!("{error:#}");
                None
            });
            // They are separated by spaces.
            if let Some(text) = text {
                let cpus: Vec<&str> = text.split_whitespace().collect();
                let cpus: CpuSet = cpus.join(",").parse()?;
                knobs.insert(Knob::Governor(cpus.to_string()));
            }
        }
        if tuned.tuning.resume_latency.is_some() {
            knobs.insert(Knob::Latency(cpu));
        }
    }
    Ok(knobs)
}

/// What of a tuning the machine has, and what it lacks.
///
/// # Errors
/// It cannot be found out.
pub fn possible(host: &Host, cpus: &CpuSet, wanted: &Tuning) -> Result<(Tuning, Vec<Obstacle>)> {
    let mut tuning = wanted.clone();
    let mut obstacles = Vec::new();
    let Some(cpu) = cpus.first() else {
        return Ok((tuning, obstacles));
    };
    if let Some(governor) = &wanted.governor {
        let path = policy_file(host, cpu, "scaling_governor");
        if files::entry_if_there(&path)?.is_none() {
            tuning.governor = None;
            obstacles.push(Obstacle::of_machine(
                "no-cpufreq",
                format!(
                    "CPU {cpu} has no cpufreq, and so no governor {}",
                    Shown(governor)
                ),
                "say governor=keep; where it is a virtual machine, set it on its host",
            ));
        } else {
            let path = policy_file(host, cpu, "scaling_available_governors");
            // Refused while the CPU is offline: whether it has that governor is seen later.
            let text = files::read_record_if_there(&path).unwrap_or_default();
            let lacks = |text: &String| !text.split_whitespace().any(|one| one == governor);
            if let Some(text) = text.filter(lacks) {
                tuning.governor = None;
                obstacles.push(Obstacle::of_machine(
                    "no-such-governor",
                    format!(
                        "CPU {cpu} has no governor {}, but {}",
                        Shown(governor),
                        one_line(text.trim())
                    ),
                    "say one of these",
                ));
            }
        }
    }
    if wanted.resume_latency.is_some() && files::entry_if_there(&latency_file(host, cpu))?.is_none()
    {
        tuning.resume_latency = None;
        obstacles.push(Obstacle::of_machine(
            "no-resume-latency",
            format!("the kernel lets nobody limit how long CPU {cpu} takes to wake"),
            "say resume-latency=keep",
        ));
    }
    Ok((tuning, obstacles))
}

/// A file that does not hold any more what it was given for a live owner.
#[derive(Debug, PartialEq, Eq)]
pub struct Astray {
    /// What of the owner's tuning that is.
    pub key: Key,
    /// The file.
    pub path: PathBuf,
    /// What is in it, on one line.
    pub now: String,
}

/// What does not hold any more what it was given for a live owner.
///
/// # Errors
/// It cannot be looked at.
pub fn astray(host: &Host, tuned: &Tuned, online: &CpuSet) -> Result<Vec<Astray>> {
    let mut astray = Vec::new();
    for knob in knobs_of(host, tuned)? {
        let (key, path, wanted) = match &knob {
            Knob::Governor(cpus) => (
                Key::Governor,
                governor_file(host, &cpus.parse()?, online),
                &tuned.tuning.governor,
            ),
            Knob::Latency(cpu) => (
                Key::ResumeLatency,
                latency_file(host, *cpu),
                &tuned.tuning.resume_latency,
            ),
            _ => continue,
        };
        let Some(text) = files::read_record_if_there(&path)? else {
            continue;
        };
        let now = text.lines().next().unwrap_or_default().trim();
        if wanted.as_deref() != Some(now) {
            let now = one_line(now);
            astray.push(Astray { key, path, now });
        }
    }
    if tuned.tuning.quota_lifted {
        astray.extend(limited_again(host, tuned)?);
    }
    Ok(astray)
}

/// The limits of CPU time that a lifted owner has again.
fn limited_again(host: &Host, tuned: &Tuned) -> Result<Vec<Astray>> {
    let hierarchy = cpu::hierarchy(&Mounts::read(host)?)?;
    let mut astray = Vec::new();
    for limited in &tuned.limited {
        let Some(group) = limited.group_in(&hierarchy)? else {
            continue;
        };
        let path = cpu::quota_file(&group);
        let text = files::read_record_if_there(&path)?.unwrap_or_default();
        let now = text.lines().next().unwrap_or_default().trim();
        if cpu::without_quota(now).is_some() {
            let (key, now) = (Key::Quota, one_line(now));
            astray.push(Astray { key, path, now });
        }
    }
    Ok(astray)
}
