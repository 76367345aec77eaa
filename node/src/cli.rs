//! The command line: types only.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use pinfold::cli::Options;
use pinfold::engines::Engine;

/// Tells a Kubernetes node's kubelet and engine of Pinfold's CPU lists
#[derive(Debug, Parser)]
#[command(
    name = "pinfold-node",
    version,
    after_help = "Example: pinfold-node run --metrics 127.0.0.1:9470",
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// The options that every verb has.
    #[command(flatten)]
    pub options: Options,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serve this machine's kubelet, its engine by NRI, or both, until SIGTERM or SIGINT
    #[command(after_help = "Examples:\n  \
        pinfold-node run\n  \
        pinfold-node run --metrics 127.0.0.1:9470\n  \
        pinfold-node run --device-plugin --nri --bin-dir /usr/local/bin\n  \
        pinfold-node run --textfile /var/lib/prometheus/node-exporter/pinfold-node.prom\n  \
        pinfold-node run --kubelet-dir /var/lib/k0s/kubelet --conf-dir /etc/kcm\n\n\
        Each exclusive pool is a resource of the node, pinfold.io/POOL, and each of its CPU lists \
        a device.\n\
        Exit status: 0 when it was ended; 1 where it cannot serve, or another serves already; 2 \
        for a\n\
        wrong command line.")]
    Run(RunArgs),
    /// Bring the program pinfold to a host, and make its pools and CDI devices: for the first
    /// container of a DaemonSet's pod
    #[command(after_help = "Examples:\n  \
        pinfold-node install --root /host\n  \
        pinfold-node install --root /host --config-file /config/config.toml\n  \
        pinfold-node install --root /host --bin-dir /opt/pinfold/bin --engine containerd\n\n\
        The program is the one beside pinfold-node, and gets the options below, which name what is \
        on the host.\n\
        A config.toml on the host that this has not written stays as it is, and one that makes no \
        sense is\n\
        not written: exit status 1. Engines that have to be restarted are named, never restarted.")]
    Install(InstallArgs),
}

/// `pinfold-node run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Be a device plugin, as without --nri
    #[arg(long)]
    pub device_plugin: bool,
    /// Be an NRI plugin of the engine, for pods that ask by annotation
    #[arg(long)]
    pub nri: bool,
    /// The engine's NRI socket [default: /var/run/nri/nri.sock]
    #[arg(long, value_name = "FILE", requires = "nri")]
    pub nri_socket: Option<PathBuf>,
    /// The directory of pinfold, as the engine sees it, for hooks [default: that of pinfold-node]
    #[arg(long, value_name = "DIR", requires = "nri")]
    pub bin_dir: Option<PathBuf>,
    /// The kubelet's directory, as its --root-dir names it [default: /var/lib/kubelet]
    #[arg(long, value_name = "DIR")]
    pub kubelet_dir: Option<PathBuf>,
    /// Answer GET /metrics there, for Prometheus
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Write the same to this file four times a minute, for node_exporter's textfile directory
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
}

/// `pinfold-node install`
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// The host's root, as it is mounted here
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// The program's directory on the host
    #[arg(long, value_name = "DIR", default_value = "/usr/local/bin")]
    pub bin_dir: PathBuf,
    /// Copy this configuration to /etc/pinfold/config.toml, which declares the pools
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Have this engine use Pinfold by annotations, too, as `pinfold install` does
    #[arg(long, value_name = "ENGINE", value_parser = engine)]
    pub engine: Vec<Engine>,
}

/// An engine of Kubernetes.
fn engine(word: &str) -> Result<Engine, String> {
    match word {
        "containerd" => Ok(Engine::Containerd),
        "crio" => Ok(Engine::Crio),
        _ => Err("it must be containerd or crio".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    const MANUAL: &str = include_str!("../../docs/pinfold-node.8");

    #[test]
    fn the_manual_page_has_each_option_where_its_verb_is() {
        let (_, commands) = MANUAL.split_once(".SH COMMANDS\n").unwrap();
        let (commands, options) = commands.split_once(".SH OPTIONS\n").unwrap();
        let named = |text: &str, option: &str| {
            let option = format!("\\-\\-{}", option.replace('-', "\\-"));
            let is_end = |rest: &str| rest.starts_with([' ', ',', '\n', '"']);
            text.match_indices(&option)
                .any(|(at, _)| is_end(&text[at + option.len()..]))
        };
        let sections: Vec<&str> = commands.split(".SS ").skip(1).collect();
        let cli = Cli::command();
        assert_eq!(sections.len(), cli.get_subcommands().count());
        for (verb, section) in cli.get_subcommands().zip(&sections) {
            assert!(section.starts_with(&format!("{}\n", verb.get_name())));
            let longs: Vec<&str> = verb
                .get_arguments()
                .filter_map(|arg| arg.get_long())
                .collect();
            for long in &longs {
                assert!(named(section, long), "{}: --{long}", verb.get_name());
            }
            let told = |how: &str| section.matches(&format!(".TP\n.{how} \\-\\-")).count();
            assert_eq!(told("B") + told("BI"), longs.len(), "{}", verb.get_name());
        }
        for arg in cli.get_arguments().filter_map(|arg| arg.get_long()) {
            assert!(named(options, arg), "--{arg}");
        }
    }
}
