//! The kubelet's CPU manager: whether it can give CPUs of exclusive pools to pods, and whether it
//! writes the CPUs of containers that have a pool's.

use anyhow::{Context, Result, bail};
use saphyr::{LoadableYamlNode, Yaml};

use super::{Finding, Outcome, Report};
use crate::cpulist::CpuSet;
use crate::files;
use crate::host::Host;
use crate::placement::Site;
use crate::pools::{Kind, PoolDirectory};
use crate::process;
use crate::refusal::Refusal;
use crate::text::Shown;

/// Where the kubelet's configuration is if its command line names no other place (kubeadm).
const CONFIG: &str = "/var/lib/kubelet/config.yaml";

/// What the static CPU manager remembers, and refuses to start with after its policy has changed.
const STATE: &str = "/var/lib/kubelet/cpu_manager_state";

/// What matters here of a kubelet's settings (Kubernetes: KubeletConfiguration v1beta1, and the
/// options of kubelet).
#[derive(Debug, Default, PartialEq)]
struct Settings {
    /// `static` or `none`, which is the default.
    policy: Option<String>,
    /// The CPUs that it gives to no pod.
    reserved: Option<String>,
    /// Are they kept from pods without CPUs of their own, too (`strict-cpu-reservation`)?
    is_strict: Option<bool>,
}

pub(super) fn check(site: &Site, report: &mut Report) {
    let mut lines = command_lines(&site.host);
    if lines.is_empty() {
        // One that does not run now has a configuration all the same.
        lines.push(Vec::new());
    }
    let mut of_each = Report::default();
    for line in lines {
        check_one(site, &line, &mut of_each);
    }
    let badness = |finding: &Finding| match finding.outcome {
        Outcome::Ok => 0,
        Outcome::Warning(_) => 1,
        Outcome::Fault(_) => 2,
    };
    let worst = of_each.findings.into_iter().max_by_key(badness);
    report.findings.extend(worst);
}

/// Checks a kubelet with this command line; it is empty where none runs.
fn check_one(site: &Site, line: &[String], report: &mut Report) {
    let named = option(line, "--config").unwrap_or(CONFIG);
    let settings = match of_file(&site.host, named) {
        Ok(None) if line.is_empty() => return,
        Ok(settings) => Settings::of_line(line).or(settings.unwrap_or_default()),
        Err(error) if files::is_denied_to_us(&error) => {
            let text = format!("its configuration {} cannot be read", Shown(named));
            return report.warn("kubelet", text, "run this as root");
        }
        Err(error) => return report.error("kubelet", &error),
    };
    // The check of the pools has said what is wrong with them.
    if let Ok(exclusive) = exclusive(site) {
        judge(&settings, named, &exclusive, report);
    }
}

fn judge(settings: &Settings, named: &str, exclusive: &CpuSet, report: &mut Report) {
    if settings.policy.as_deref() != Some("static") {
        let text = "its CPU manager leaves CPUs alone: cpuManagerPolicy is not static";
        return report.ok("kubelet", text);
    }
    let again = format!("then remove {STATE}, and restart the kubelet");
    let reserved = settings.reserved.as_deref().unwrap_or_default();
    let reserved: CpuSet = match reserved.parse() {
        Ok(reserved) => reserved,
        Err(error) => {
            let text = format!("its reservedSystemCPUs: {error}");
            let remedy = format!("mend it in {}", Shown(named));
            return report.fault("kubelet", text, remedy);
        }
    };
    let open = exclusive.difference(&reserved);
    if !open.is_empty() {
        let all: CpuSet = [&reserved, exclusive].into_iter().collect();
        return report.fault(
            "kubelet",
            format!("its static CPU manager can give pods {open}, which exclusive pools have"),
            format!(
                "have cpuManagerPolicy none in {}, or else reservedSystemCPUs {all}; {again}",
                Shown(named)
            ),
        );
    }
    let remedy = format!("have cpuManagerPolicy none in {}; {again}", Shown(named));
    if settings.is_strict == Some(true) {
        let text = "with strict-cpu-reservation its static CPU manager gives every container CPUs, \
                    and one that asks for a pool's is refused";
        return report.fault("kubelet", text, remedy);
    }
    let text = "its static CPU manager writes the CPUs of containers again and again: one that has \
                a pool's keeps them only where the NRI plugin of pinfold-node guards them";
    report.warn("kubelet", text, remedy);
}

impl Settings {
    /// What a command line says: it comes before the file.
    fn of_line(line: &[String]) -> Settings {
        let options = option(line, "--cpu-manager-policy-options");
        let strict = options.and_then(|options| {
            let mut pairs = options.split(',').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| *name == "strict-cpu-reservation")
        });
        Settings {
            policy: option(line, "--cpu-manager-policy").map(str::to_owned),
            reserved: option(line, "--reserved-cpus").map(str::to_owned),
            is_strict: strict.map(|(_, value)| value == "true"),
        }
    }

    /// Parses a configuration; JSON is YAML too.
    fn parse(text: &str) -> Result<Settings> {
        let documents = Yaml::load_from_str(text).context("it is not YAML")?;
        let root = documents.first();
        let text = |yaml: Option<&Yaml<'_>>| Some(yaml?.as_str()?.to_owned());
        let get = |key: &str| root.and_then(|root| root.as_mapping_get(key));
        let options = get("cpuManagerPolicyOptions");
        let strict = options.and_then(|all| all.as_mapping_get("strict-cpu-reservation"));
        Ok(Settings {
            policy: text(get("cpuManagerPolicy")),
            // A single CPU without quotes is a number.
            reserved: get("reservedSystemCPUs").and_then(|yaml| {
                let number = yaml.as_integer().map(|number| number.to_string());
                number.or_else(|| text(Some(yaml)))
            }),
            is_strict: strict
                .map(|yaml| yaml.as_bool() == Some(true) || yaml.as_str() == Some("true")),
        })
    }

    fn or(self, other: Settings) -> Settings {
        Settings {
            policy: self.policy.or(other.policy),
            reserved: self.reserved.or(other.reserved),
            is_strict: self.is_strict.or(other.is_strict),
        }
    }
}

/// The settings of a configuration file; `None` where there is none.
fn of_file(host: &Host, path: &str) -> Result<Option<Settings>> {
    let real = host.resolve(path);
    let real = match real {
        Err(error) if files::is_gone(&error) => return Ok(None),
        real => real.with_context(|| format!("look at {}", Shown(path)))?,
    };
    // Opening a device can do anything.
    if files::metadata_if_there(&real)?.is_some_and(|named| !named.is_file()) {
        bail!(Refusal::new(
            format!("{} is not a regular file", Shown(path)),
            "name the kubelet's configuration in its --config"
        ));
    }
    let Some(text) = files::read_text_if_there(&real)? else {
        return Ok(None);
    };
    let settings = Settings::parse(&text);
    settings
        .with_context(|| format!("read {}", Shown(path)))
        .map(Some)
}

/// The command lines of the kubelets that run. Only the machine's count: anybody can call a process
/// so.
fn command_lines(host: &Host) -> Vec<Vec<String>> {
    let names = files::directories_in(&host.processes()).unwrap_or_default();
    let pids = names.iter().filter_map(|name| name.parse::<i32>().ok());
    let is_kubelet = |pid: &i32| {
        process::name(host, *pid).as_deref() == Some("kubelet")
            && process::is_the_machines(host, *pid)
    };
    let lines = pids.filter(is_kubelet).map(|pid| {
        let words = process::command_line(host, pid).into_iter();
        words.filter_map(|word| word.into_string().ok()).collect()
    });
    lines.collect()
}

/// The value of the last option of this name: `--name=value` or `--name value`.
fn option<'a>(line: &'a [String], name: &str) -> Option<&'a str> {
    let mut found = None;
    for (place, word) in line.iter().enumerate() {
        match word.strip_prefix(name) {
            Some("") => found = line.get(place + 1).map(String::as_str),
            Some(rest) => found = rest.strip_prefix('=').or(found),
            None => {}
        }
    }
    found
}

/// The CPUs of all exclusive pools.
fn exclusive(site: &Site) -> Result<CpuSet> {
    let directory = PoolDirectory::open(&site.host, &site.conf_dir)?;
    let mut all = CpuSet::new();
    for name in directory.pool_names()? {
        let pool = directory.pool(&name)?;
        let lists = pool.lists.iter().filter(|_| pool.kind == Kind::Exclusive);
        lists.for_each(|list| all.extend(&list.cpus));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(policy: &str, reserved: &str, is_strict: Option<bool>) -> Settings {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Settings {
            policy: some(policy),
            reserved: some(reserved),
            is_strict,
        }
    }

    #[test]
    fn what_a_configuration_says() {
        let yaml = "kind: KubeletConfiguration\ncpuManagerPolicy: static\n\
                    cpuManagerPolicyOptions:\n  strict-cpu-reservation: \"true\"\n\
                    reservedSystemCPUs: 0-1,8\n";
        for (text, expected) in [
            (yaml, settings("static", "0-1,8", Some(true))),
            (
                r#"{"cpuManagerPolicy":"none","reservedSystemCPUs":"0"}"#,
                settings("none", "0", None),
            ),
            ("reservedSystemCPUs: 3", settings("", "3", None)),
            (
                "cpuManagerPolicyOptions: {strict-cpu-reservation: false}",
                settings("", "", Some(false)),
            ),
            ("# nothing", Settings::default()),
            ("", Settings::default()),
            ("[1, 2]", Settings::default()),
            ("cpuManagerPolicy: [static]", Settings::default()),
        ] {
            assert_eq!(Settings::parse(text).unwrap(), expected, "{text}");
        }
        assert!(Settings::parse("a: [").is_err());
    }

    #[test]
    fn what_a_command_line_says_comes_first() {
        let line = |text: &str| -> Vec<String> { text.split(' ').map(str::to_owned).collect() };
        let of = |text: &str| Settings::of_line(&line(text));
        assert_eq!(
            of("kubelet --cpu-manager-policy=static --reserved-cpus 0-3 \
                --cpu-manager-policy-options=a=1,strict-cpu-reservation=true"),
            settings("static", "0-3", Some(true))
        );
        let both = of("kubelet --reserved-cpus=0").or(settings("static", "1", None));
        assert_eq!(both, settings("static", "0", None));
        let line = line("kubelet --configuration=a --config b --config=c --config-dir=d");
        assert_eq!(option(&line, "--config"), Some("c"));
        assert_eq!(option(&line[..1], "--config"), None);
        assert_eq!(option(&line[..1], "kubelet"), None);
    }
}
