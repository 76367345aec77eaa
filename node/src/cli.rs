//! The command line: types only.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use pinfold::cli::Options;

/// Tells a Kubernetes node's kubelet of Pinfold's CPU lists
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
    /// Serve the kubelet of this machine, until SIGTERM or SIGINT
    #[command(after_help = "Examples:\n  \
        pinfold-node run\n  \
        pinfold-node run --metrics 127.0.0.1:9470\n  \
        pinfold-node run --textfile /var/lib/prometheus/node-exporter/pinfold-node.prom\n  \
        pinfold-node run --kubelet-dir /var/lib/k0s/kubelet --conf-dir /etc/kcm\n\n\
        Each exclusive pool is a resource of the node, pinfold.io/POOL, and each of its CPU lists \
        a device.\n\
        Exit status: 0 when it was ended; 1 where it cannot serve, or another serves already; 2 \
        for a\n\
        wrong command line.")]
    Run(RunArgs),
}

/// `pinfold-node run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Be a device plugin
    #[arg(long)]
    pub device_plugin: bool,
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
