//! The CPUs that the kernel's command line isolates.

use anyhow::{Context, Result};

use crate::cpulist::{BadCpuList, CpuSet, LARGEST_CPU};
use crate::files;
use crate::host::Host;

/// The CPUs that `isolcpus=` on the kernel's command line takes out of the scheduler's domains.
pub fn isolated(host: &Host) -> Result<CpuSet> {
    let path = host.kernel_command_line();
    let Some(text) = files::read_if_there(&path)? else {
        return Ok(CpuSet::new());
    };
    parse_isolcpus(&text).with_context(|| format!("read isolcpus= in {}", path.display()))
}

/// Parses `isolcpus=[flag,…,]<cpu-list>` (kernel: Documentation/admin-guide/kernel-parameters.txt).
///
/// The CPUs are isolated if there is no flag, or `domain` is a flag; `nohz` and `managed_irq` alone
/// isolate nothing from the scheduler. `all` and `N`, the last CPU, stand for numbers as in any
/// bitmap list. The caller drops CPUs that the machine does not have.
fn parse_isolcpus(command_line: &str) -> Result<CpuSet, BadCpuList> {
    let Some(value) = command_line
        .split_whitespace()
        .take_while(|word| *word != "--")
        .find_map(|word| word.trim_matches('"').strip_prefix("isolcpus="))
    else {
        return Ok(CpuSet::new());
    };
    let (flags, list): (Vec<&str>, Vec<&str>) = value
        .split(',')
        .partition(|part| matches!(*part, "nohz" | "domain" | "managed_irq"));
    if !flags.is_empty() && !flags.contains(&"domain") {
        return Ok(CpuSet::new());
    }
    let last = LARGEST_CPU.to_string();
    list.join(",")
        .replace("all", &format!("0-{last}"))
        .replace('N', &last)
        .parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolcpus_with_flags_and_strides() {
        for (line, cpus) in [
            ("quiet root=/dev/sda1", ""),
            ("isolcpus=2-5", "2-5"),
            ("quiet isolcpus=2,4 ro", "2,4"),
            ("isolcpus=managed_irq,domain,2-5", "2-5"),
            ("isolcpus=nohz,domain,managed_irq,2-5,8", "2-5,8"),
            ("isolcpus=managed_irq,2-5", ""),
            ("isolcpus=nohz,2-5", ""),
            ("isolcpus=0-31:2/8", "0-1,8-9,16-17,24-25"),
            ("init=/bin/x -- isolcpus=2", ""),
            ("\"isolcpus=1\"", "1"),
        ] {
            assert_eq!(
                parse_isolcpus(line).unwrap(),
                cpus.parse().unwrap(),
                "{line}"
            );
        }
        assert_eq!(
            parse_isolcpus("isolcpus=8190-N").unwrap(),
            "8190-8191".parse().unwrap()
        );
        assert_eq!(parse_isolcpus("isolcpus=all").unwrap().len(), 8192);
        assert!(parse_isolcpus("isolcpus=2-x").is_err());
    }
}
