//! The command line: types only.

mod front;
pub mod pool;
mod tips;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::error::{ContextKind, ContextValue};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::engines::{self, Engine};
use crate::pools::plan::PoolSpec;
use crate::text::shell_word;

/// Gives a container CPUs of its own
#[derive(Debug, Parser)]
#[command(
    name = "pinfold",
    version,
    after_help = "Example: pinfold init --num-dp-cores 4 --num-cp-cores 1 && pinfold describe",
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

impl Cli {
    /// Are results and errors to be printed as JSON?
    pub fn wants_json(&self) -> bool {
        match &self.verb {
            Verb::Status(args) => args.json || args.look.output == Some(OutputFormat::Json),
            Verb::Describe(args) => args.json || args.look.output == Some(OutputFormat::Json),
            Verb::Stats(args) => args.json || args.look.output == Some(OutputFormat::Json),
            Verb::Topology(args) => args.json,
            Verb::Explain(args) => args.json,
            Verb::Reconcile(args) => args.json,
            Verb::Check(args) => args.json,
            Verb::Apply(args) => args.json,
            Verb::Pool(args) => matches!(&args.action, pool::Action::Show(show) if show.json),
            Verb::Why(args) => args.json,
            Verb::Usage(args) => args.json,
            Verb::Noise(args) => args.json,
            Verb::Setup(_)
            | Verb::Init(_)
            | Verb::Hook(_)
            | Verb::Isolate(_)
            | Verb::Metrics(_)
            | Verb::Release(_)
            | Verb::Install(_)
            | Verb::Uninstall(_)
            | Verb::Cdi(_) => false,
        }
    }

    /// The verb of a command line that cannot be parsed as a whole; `None` if it has none.
    pub fn verb_in(arguments: &[OsString]) -> Option<&str> {
        const WITH_VALUE: [&str; 5] = [
            "--conf-dir",
            "--run-dir",
            "--host-root",
            "--lock-timeout",
            "--config",
        ];
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.to_str()? {
                option if WITH_VALUE.contains(&option) => drop(arguments.next()),
                option if option.starts_with('-') => {}
                verb => return Some(verb),
            }
        }
        None
    }

    /// Parses a command line. A hook's is parsed without clap, because a container's start waits
    /// for it.
    pub fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
        if let Some((hook, options)) = front::hook(arguments) {
            let verb = Verb::Hook(hook);
            return Ok(Cli { verb, options });
        }
        Cli::parse_with_tips(arguments)
    }

    /// Parses a command line with clap. A word that other tools have for a verb gets a tip that
    /// names our verb.
    fn parse_with_tips(arguments: &[OsString]) -> Result<Cli, clap::Error> {
        let name = OsString::from("pinfold");
        Cli::try_parse_from([name].iter().chain(arguments)).map_err(|mut error| {
            let word = match error.get(ContextKind::InvalidSubcommand) {
                Some(ContextValue::String(word)) => word.clone(),
                _ => return error,
            };
            let above = Cli::verb_in(arguments).filter(|verb| *verb != word);
            let words: Vec<&str> = above.into_iter().chain([word.as_str()]).collect();
            if let Some(tip) = tips::tip(&words) {
                error.remove(ContextKind::SuggestedSubcommand);
                let tip = ContextValue::StyledStrs(vec![tip.into()]);
                error.insert(ContextKind::Suggested, tip);
            }
            error
        })
    }
}

/// The options that every verb has. Each is also a key of the configuration file and, but for
/// hooks, a variable of the environment; the order is option, environment, file, default.
#[derive(Debug, Default, Clone, Args)]
#[command(next_help_heading = "Options everywhere")]
pub struct Options {
    /// The pool directory [default: /etc/kcm] [env: PINFOLD_CONF_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub conf_dir: Option<PathBuf>,
    /// The directory of claims [default: /run/pinfold] [env: PINFOLD_RUN_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// Read /sys, /proc and the rest below this directory [default: /] [env: PINFOLD_HOST_ROOT]
    #[arg(long, global = true, value_name = "DIR")]
    pub host_root: Option<PathBuf>,
    /// Wait so many seconds for the lock [default: 30, hooks at most 10] [env:
    /// PINFOLD_LOCK_TIMEOUT]
    #[arg(long, global = true, value_name = "SECONDS", value_parser = seconds)]
    pub lock_timeout: Option<f64>,
    /// The configuration file [default: /etc/pinfold/config.toml, if there] [env: PINFOLD_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say more; twice: even more [env: PINFOLD_LOG=info]
    #[arg(long, short, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

impl Options {
    /// Adds the directories that this command line names to our commands in a text, which stand
    /// there in backquotes: so they work as they are shown.
    pub fn repeated_in(&self, text: &str) -> String {
        let mut named = String::new();
        for (option, path) in [
            ("--conf-dir", &self.conf_dir),
            ("--run-dir", &self.run_dir),
            ("--host-root", &self.host_root),
            ("--config", &self.config),
        ] {
            if let Some(path) = path {
                named += &format!(" {option} {}", shell_word(path));
            }
        }
        let mut parts = text.split("`pinfold ");
        let mut repeated = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (command, rest) = part.split_once('`').unwrap_or((part, ""));
            repeated += &format!("`pinfold {command}{named}`{rest}");
        }
        repeated
    }
}

/// The longest wait for the lock that can be asked for, in seconds.
pub const MOST_SECONDS: f64 = 86400.0;

/// A number of seconds from 0 to [`MOST_SECONDS`], fractions allowed.
pub fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=MOST_SECONDS).contains(&seconds) => Ok(seconds),
        _ => Err(format!("it must be from 0 to {MOST_SECONDS} seconds")),
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make pools for this machine, tell the engines on it, and check: all that a first container
    /// needs
    #[command(after_help = "Examples:\n  \
        pinfold setup\n  \
        pinfold setup --yes\n  \
        pinfold setup --engine podman --pool fast=2:exclusive --pool rest=rest:shared\n  \
        pinfold setup --undo\n\n\
        Pools that are there stay as they are. Nothing is restarted: what has to be is named.\n\
        Exit status: 1 where `pinfold check` finds a fault at the end.")]
    Setup(SetupArgs),
    /// Make the pool directory
    #[command(after_help = "Examples:\n  \
        pinfold init\n  \
        pinfold init --num-dp-cores 4 --num-cp-cores 1\n  \
        pinfold init --pool fast=2:exclusive --pool rest=rest:shared --dry-run")]
    Init(InitArgs),
    /// Make the pools as the configuration declares them; no owner loses anything
    #[command(after_help = "Examples:\n  \
        pinfold apply --dry-run\n  \
        pinfold apply && pinfold pool show\n  \
        pinfold apply --json | jq '.added[].list'\n\n\
        In /etc/pinfold/config.toml:\n  \
        [pools.dataplane]\n  \
        kind = \"exclusive\"\n  \
        cores = 4\n  \
        [pools.common]\n  \
        kind = \"shared\"\n  \
        cores = \"rest\"\n\n\
        Where all is so already nothing is written. Exit status: 1 where something stays \
        otherwise,\n\
        as for a list with an owner; what can be done is done then.")]
    Apply(ApplyArgs),
    /// Show the pools, who owns what in them, and how each owner is
    #[command(after_help = "Examples:\n  \
        pinfold status\n  \
        pinfold status --json | jq '.owners[] | select(.state == \"moved\")'\n\n\
        States: running; starting; moved (it runs on other CPUs than it owns: pinfold reconcile \
        mends\n\
        that); offline (CPUs of it are); gone (freed when the pool is next needed); unreadable \
        (its\n\
        claim); unknown.\n\n\
        Exit status: 1 where a pool could not be read.")]
    Status(StatusArgs),
    /// The same under KCM's name, and KCM's JSON document
    #[command(after_help = "Example: pinfold describe --json\n\n\
        Exit status: 1 where a pool could not be read.")]
    Describe(DescribeArgs),
    /// Show what owners do with their CPUs, and who else is on them
    #[command(after_help = "Examples:\n  \
        pinfold stats\n  \
        pinfold stats dataplane --sort noise\n  \
        pinfold stats web --no-stream --json\n\n\
        USED% and NOISE% are shares of the time of an owner's CPUs: what it used, and what \
        somebody else did,\n\
        interrupts (IRQ%) not counted. WAIT%: the time in which a process of its waited for a \
        CPU. THROT%: the\n\
        time in which a limit kept it from running.\n\
        Keys: q quits, s and the arrows choose the column to sort by, r turns the order round.")]
    Stats(StatsArgs),
    /// Watch who else runs on owned CPUs: threads of others, of the kernel, and interrupts
    #[command(after_help = "Examples:\n  \
        pinfold noise\n  \
        pinfold noise dataplane --seconds 10\n  \
        pinfold noise web --json | jq '.foreign[].name'\n\n\
        The kernel's trace tells of everybody; where there is none, /proc is looked at again \
        and again.\n\
        Without a name the owners of exclusive pools are watched; a shared pool is by its name \
        alone.\n\
        Exit status: 0 if nobody but the owners and the kernel ran there, 1 if somebody did,\n\
        2 for a wrong command line, 125 if it could not be measured.")]
    Noise(NoiseArgs),
    /// Sum up what owners that ended have used
    #[command(after_help = "Examples:\n  \
        pinfold usage --since 24h --by pool\n  \
        pinfold usage --by day --json | jq '.usage[] | {day, cpuSeconds}'\n  \
        pinfold usage --since 7d --svg week.svg\n\n\
        ENDED: how many owners. OWNED: the time of their CPUs that was theirs; USED: what they \
        used of it.\n\
        NOISE: what others used of it, as far as it was watched. INEXACT: of how many the last \
        sample counts,\n\
        or nothing is known. Those that still run are in pinfold stats.")]
    Usage(UsageArgs),
    /// Print what is known as OpenMetrics text, for Prometheus
    #[command(after_help = "Examples:\n  \
        pinfold metrics\n  \
        pinfold metrics --textfile /var/lib/prometheus/node-exporter/pinfold.prom\n  \
        pinfold metrics --listen 127.0.0.1:9469")]
    Metrics(MetricsArgs),
    /// Add pools, remove them, change their size; no owner loses anything
    #[command(after_help = "Example: pinfold pool resize dataplane 6 && pinfold pool show")]
    Pool(pool::PoolArgs),
    /// Draw the machine: packages, NUMA nodes, caches, cores, and which pool each is in
    #[command(after_help = "Examples:\n  \
        pinfold topology\n  \
        pinfold topology --svg machine.svg\n  \
        pinfold topology --json --host-root captured-tree\n\n\
        Exit status: 1 where a pool could not be read; the machine is drawn all the same.")]
    Topology(TopologyArgs),
    /// Say what a request would get now, and why, without taking it
    #[command(after_help = "Examples:\n  \
        pinfold explain --pool dataplane --cpus 4\n  \
        pinfold explain --pool dataplane --lists 2 --numa single --near eth0 --json\n\n\
        Exit status: 0 when it would get something, 1 when it would be refused.")]
    Explain(ExplainArgs),
    /// Run by an OCI runtime: pin, or release, the container whose state is on standard input
    #[command(after_help = "Example: pinfold hook createRuntime --conf-dir /etc/kcm < state.json")]
    Hook(HookArgs),
    /// Free what dead owners hold
    #[command(after_help = "Example: pinfold reconcile --interval 60")]
    Reconcile(ReconcileArgs),
    /// Run a command on CPUs of its own
    #[command(after_help = "Examples:\n  \
        pinfold isolate --pool dataplane -- ./forwarder --port 1\n  \
        pinfold isolate --pool dataplane --cpus 4 --near eth0 --mems local -- ./forwarder\n\n\
        Exit status: the command's own; 128 + N when signal N ended it; 125 when Pinfold \
        failed,\n\
        126 when the command cannot be executed, 127 when it is not found.")]
    Isolate(IsolateArgs),
    /// Give back by hand what a container, or a command, holds
    #[command(after_help = "Examples:\n  \
        pinfold release web\n  \
        pinfold release 3f9ac41b\n  \
        pinfold release isolate-4711 --force\n  \
        pinfold release --forget web\n\n\
        Exit status: 1 where nobody is called so, where several are, and where the owner still \
        runs.")]
    Release(ReleaseArgs),
    /// Say why containers were refused their CPUs, the last one last
    #[command(after_help = "Examples:\n  \
        pinfold why\n  \
        pinfold why web\n  \
        pinfold why --since 10m --json\n\n\
        What was refused since the machine started, as much as is kept; `journalctl -t pinfold` \
        has it for longer.\n\
        Exit status: 1 where a container is named of which no refusal is kept.")]
    Why(WhyArgs),
    /// Make an engine use Pinfold
    #[command(after_help = "Examples:\n  \
        pinfold install podman\n  \
        pinfold install containerd --dry-run\n  \
        pinfold install podman --user     # as an ordinary user\n\n\
        A service that has to be restarted is named, never restarted.")]
    Install(InstallArgs),
    /// Take that back: an engine's files become what they were
    #[command(after_help = "Example: pinfold uninstall docker")]
    Uninstall(UninstallArgs),
    /// Write the CDI file: a device for each pool, for any engine
    #[command(after_help = "Example: pinfold cdi && docker run --device \
        pinfold.io/pool=dataplane IMAGE\n\n\
        The verbs that change pools write /etc/cdi/pinfold.json anew, and \
        /etc/cdi/pinfold-lists.json where it is.")]
    Cdi(CdiArgs),
    /// Look at everything that the start of a container depends on
    #[command(after_help = "Examples:\n  \
        pinfold check\n  \
        pinfold check --deep\n  \
        pinfold check --json | jq '.findings[] | select(.level != \"ok\")'\n\n\
        Exit status: 1 where there is a fault: a container that asks for CPUs would not get \
        them.")]
    Check(CheckArgs),
}

/// `pinfold setup`
#[derive(Debug, Args)]
pub struct SetupArgs {
    /// Do it without asking
    #[arg(long, short)]
    pub yes: bool,
    /// These engines alone [default: those whose programs are there; containerd not where docker
    /// runs it]
    #[arg(long, value_enum, value_name = "ENGINE")]
    pub engine: Vec<Engine>,
    /// A pool, as init takes it, where there are none yet; without any, pools that fit the machine
    #[arg(long, value_name = "NAME=N|rest:exclusive|shared[,…]", value_parser = pool::spec)]
    pub pool: Vec<PoolSpec>,
    /// The directory of pinfold and pinfold-runtime [default: that of this program]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,
    /// Take back what setup did: the engines' files become what they were, and the pools go that it
    /// made
    #[arg(long, conflicts_with_all = ["engine", "pool", "bin_dir"])]
    pub undo: bool,
}

/// `pinfold init`
#[derive(Debug, Default, Args)]
pub struct InitArgs {
    /// KCM's form: so many physical cores, by number and from CPU 0 on, for the exclusive pool
    /// dataplane; 4 where only the other is given
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "pool",
        value_parser = clap::value_parser!(u16).range(1..=9999)
    )]
    pub num_dp_cores: Option<u16>,
    /// KCM's form: so many for the shared pool controlplane, 1 where only the other is given; all
    /// others go to the shared pool infra
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "pool",
        value_parser = clap::value_parser!(u16).range(1..=9999)
    )]
    pub num_cp_cores: Option<u16>,
    /// A pool of so many physical cores, or of the rest: a CPU list a core (exclusive, of few NUMA
    /// nodes), or one list (shared); without any of these options, pools that fit the machine;
    /// behind that ,numa=pack|spread|NODE ,cache=pack|spread|single ,cores=whole|threads
    #[arg(long, value_name = "NAME=N|rest:exclusive|shared[,…]", value_parser = pool::spec)]
    pub pool: Vec<PoolSpec>,
    /// The CPUs of the host's own work.
    #[command(flatten)]
    pub housekeeping: pool::Housekeeping,
    /// Replace other pools that are there; never while anybody owns anything in them
    #[arg(long)]
    pub force: bool,
    /// Print the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// `pinfold apply`
#[derive(Debug, Default, Args)]
pub struct ApplyArgs {
    /// Remove pools without owners that are not declared, too
    #[arg(long)]
    pub prune: bool,
    /// The CPUs of the host's own work.
    #[command(flatten)]
    pub housekeeping: pool::Housekeeping,
    /// Print what would be changed and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pinfold status`
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Print JSON, as -o json does
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// How it is shown.
    #[command(flatten)]
    pub look: LookArgs,
}

/// `pinfold stats`
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// These alone: pools, or owners by name, id or the beginning of an id
    #[arg(value_name = "POOL|NAME|ID")]
    pub owners: Vec<String>,
    /// Show one interval, and end
    #[arg(long)]
    pub no_stream: bool,
    /// How long an interval is, in seconds, 0.1 to 3600
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    pub interval: Duration,
    /// What they are sorted by: words from the first on, numbers from the largest down
    #[arg(long, value_enum, value_name = "COLUMN", default_value = "pool")]
    pub sort: SortBy,
    /// Turn the order round
    #[arg(long)]
    pub reverse: bool,
    /// Print JSON, as -o json does: a document, or one a line where it streams
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// How it is shown.
    #[command(flatten)]
    pub look: LookArgs,
}

impl StatsArgs {
    /// Does a column, or the order, need more than the CPU time as a whole, throttling and
    /// pressure?
    pub fn with_everything(&self) -> bool {
        let of_all = matches!(
            self.sort,
            SortBy::User | SortBy::System | SortBy::Switches | SortBy::Moves
        );
        self.json || self.look.output.is_some() || of_all
    }
}

/// A column of `pinfold stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// By name
    Name,
    /// By pool, then by first CPU
    Pool,
    /// By first CPU
    Cpus,
    /// By CPU time
    Time,
    /// By USED%
    Used,
    /// By NOISE%
    Noise,
    /// By IRQ%
    Irq,
    /// By WAIT%
    Wait,
    /// By THROT%
    Throt,
    /// By id, of -o wide, as all below
    Id,
    /// By CPU%
    Cpu,
    /// By the time outside the kernel
    User,
    /// By that inside it
    System,
    /// By SOFTIRQ%
    Softirq,
    /// By STEAL%
    Steal,
    /// By context switches
    Switches,
    /// By moves between CPUs
    Moves,
}

impl SortBy {
    /// The number of columns that are shown without `-o wide`: those before the id.
    pub const NARROW: usize = 9;

    /// The word for it.
    pub fn word(self) -> String {
        let value = self.to_possible_value();
        value.map_or(String::new(), |value| value.get_name().to_owned())
    }
}

/// Parses an interval in seconds.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    match (0.1..=3600.0).contains(&seconds) {
        true => Ok(Duration::from_secs_f64(seconds)),
        false => Err("from 0.1 to 3600 seconds".to_owned()),
    }
}

/// `pinfold noise`
#[derive(Debug, Args)]
pub struct NoiseArgs {
    /// On which CPUs: those that owners have of a pool, or of one owner, by name, id or the
    /// beginning of an id; without it those of all exclusive pools
    #[arg(value_name = "POOL|ID")]
    pub of: Option<String>,
    /// How long, in seconds, 0.1 to 3600
    #[arg(long, value_name = "N", default_value = "5", value_parser = interval)]
    pub seconds: Duration,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pinfold usage`
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// Only owners that ended within this time, such as 10m, 24h or 7d
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// What they are summed up by; days are those of UTC on which they ended
    #[arg(
        long,
        value_enum,
        value_name = "pool|name|day",
        default_value = "pool",
        hide_possible_values = true
    )]
    pub by: SumBy,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Draw it over time, by pool, into a file, or to standard output (-), as an SVG picture
    #[arg(long, value_name = "FILE", conflicts_with_all = ["by", "json", "no_trunc"])]
    pub svg: Option<PathBuf>,
    /// Shorten nothing to fit the line
    #[arg(long, conflicts_with = "json")]
    pub no_trunc: bool,
}

/// `pinfold metrics`
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Write them to this file, replacing it in one step: for node_exporter's textfile directory
    #[arg(long, value_name = "FILE")]
    pub textfile: Option<PathBuf>,
    /// Answer GET /metrics there, until it is ended; whoever can reach it can read them
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "textfile")]
    pub listen: Option<SocketAddr>,
}

/// What `pinfold usage` sums up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SumBy {
    /// By pool
    Pool,
    /// By name
    Name,
    /// By day
    Day,
}

impl SumBy {
    /// The word for it, which is also a key of the JSON document.
    pub fn word(self) -> &'static str {
        match self {
            SumBy::Pool => "pool",
            SumBy::Name => "name",
            SumBy::Day => "day",
        }
    }

    /// The heading of its column.
    pub fn heading(self) -> &'static str {
        match self {
            SumBy::Pool => "POOL",
            SumBy::Name => "NAME",
            SumBy::Day => "DAY",
        }
    }
}

/// `pinfold describe`
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Print KCM's JSON document
    #[arg(long, conflicts_with = "output")]
    pub json: bool,
    /// How it is shown.
    #[command(flatten)]
    pub look: LookArgs,
}

/// How owners are shown.
#[derive(Debug, Clone, Copy, Args)]
pub struct LookArgs {
    /// wide: all columns, whole; json: Pinfold's JSON document
    #[arg(long, short, value_enum, value_name = "FORM")]
    pub output: Option<OutputFormat>,
    /// Shorten nothing to fit the line
    #[arg(long)]
    pub no_trunc: bool,
}

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// All columns, whole
    Wide,
    /// Pinfold's JSON document
    Json,
}

/// `pinfold topology`
#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// Print it as JSON
    #[arg(long, conflicts_with = "svg")]
    pub json: bool,
    /// Draw it into a file, or to standard output (-), as an SVG picture with owners and what they
    /// do with their CPUs
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}

/// `pinfold hook`
#[derive(Debug, Args)]
pub struct HookArgs {
    /// The stage of the container's life
    #[arg(value_enum)]
    pub stage: Stage,
    /// The engine whose marks in the annotations count
    #[arg(long, value_enum)]
    pub engine: Option<Engine>,
    /// The CDI device that the container was given: a pool's name, with .N behind it for N CPU
    /// lists
    #[arg(long, value_name = "POOL[.N]")]
    pub device: Option<String>,
    /// The CPU list that the container was given as a device: POOL:LIST, the list as the kernel
    /// writes it, such as dataplane:4,12. Each device has a hook of its own, which adds its list
    #[arg(long, value_name = "POOL:LIST", conflicts_with_all = ["device", "reservation"])]
    pub list: Option<String>,
    /// This hook was added by pinfold-runtime
    #[arg(long)]
    pub shim: bool,
    /// The nonce of what pinfold-runtime reserved for the container
    #[arg(long, value_name = "NONCE")]
    pub reservation: Option<String>,
    /// A container that asks for nothing gets CPUs of the configuration's default pool
    #[arg(long)]
    pub default_pool: bool,
}

/// The stages of the OCI runtime specification ("POSIX-platform Hooks") that there is something to
/// do at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// The older name of createRuntime
    #[value(name = "prestart")]
    Prestart,
    /// Pin the container
    #[value(name = "createRuntime")]
    CreateRuntime,
    /// Give its CPUs back
    #[value(name = "poststop")]
    Poststop,
}

/// `pinfold reconcile`
#[derive(Debug, Args)]
pub struct ReconcileArgs {
    /// Print KCM's JSON document
    #[arg(long)]
    pub json: bool,
    /// Do it again every so many seconds, 1 to 86400
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86400))]
    pub interval: Option<u64>,
    /// Instead: give the host's units the CPUs back that confine keeps them off
    #[arg(long, conflicts_with_all = ["json", "interval"])]
    pub let_host_in: bool,
}

/// What `isolate` asks for and `explain` asks about: the same as a container's annotations.
#[derive(Debug, Args)]
pub struct Wanted {
    /// The pool
    #[arg(long, value_name = "NAME")]
    pub pool: String,
    /// How many CPU lists of an exclusive pool, 1 to 9999 [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9999))]
    pub lists: Option<u16>,
    /// Instead: at least so many CPUs
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "lists",
        value_parser = clap::value_parser!(u16).range(1..=9999)
    )]
    pub cpus: Option<u16>,
    /// best, single (one NUMA node or none at all), spread (evenly over several), or a node's
    /// number
    #[arg(long, value_name = "WHERE")]
    pub numa: Option<String>,
    /// single: under one last-level cache, or none at all
    #[arg(long, value_name = "any|single")]
    pub cache: Option<String>,
    /// Near a PCI address, a network interface, a block device, or a path below /dev
    #[arg(long, value_name = "DEVICE")]
    pub near: Option<String>,
    /// local: memory only from the NUMA nodes of the CPUs
    #[arg(long, value_name = "inherit|local")]
    pub mems: Option<String>,
}

/// `pinfold explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// What is asked about.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pinfold isolate`
#[derive(Debug, Args)]
pub struct IsolateArgs {
    /// What is asked for.
    #[command(flatten)]
    pub wanted: Wanted,
    /// Do not confine the command: it reads KCM_CPUS_ASSIGNED and places itself
    #[arg(long)]
    pub no_affinity: bool,
    /// The command and its arguments, executed directly
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
}

/// `pinfold release`
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The owner: its id or the beginning of it, its name, POD/NAME, or its unit; pinfold status
    /// shows them
    #[arg(value_name = "OWNER")]
    pub owner: String,
    /// Take the CPUs from a live owner too, after letting it out of them
    #[arg(long)]
    pub force: bool,
    /// Give nothing back, but forget which CPU lists containers of this name had last: they get any
    /// when they come back
    #[arg(long, conflicts_with = "force")]
    pub forget: bool,
}

/// `pinfold why`
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// Only of this container: its id or the beginning of it, its name, or POD/NAME
    pub container: Option<String>,
    /// Only what is not older than this, such as 10m or 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub since: Option<Duration>,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
}

/// `pinfold install`
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Which engine, and where it is.
    #[command(flatten)]
    pub place: InstallPlaceArgs,
    /// The directory of pinfold and pinfold-runtime [default: that of this program]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
}

/// `pinfold uninstall`
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// Which engine, and where it is.
    #[command(flatten)]
    pub place: InstallPlaceArgs,
    /// Even while containers of it own CPUs: what they own comes back later, and a restart of
    /// theirs is not pinned
    #[arg(long)]
    pub force: bool,
}

/// The options that `install` and `uninstall` share. Paths are as the engine sees them, below
/// `--host-root`.
#[derive(Debug, Args)]
pub struct InstallPlaceArgs {
    /// The engine, or the devices
    #[arg(value_enum)]
    pub target: TargetArg,
    /// Its configuration file; of podman and CRI-O, Pinfold's drop-in file [default: the engine's
    /// own place]
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    pub engine_config: Option<String>,
    /// The directory for hook files of podman or CRI-O [default: for podman what its configuration
    /// says]
    #[arg(long, value_name = "DIR", value_parser = absolute)]
    pub hooks_dir: Option<String>,
    /// podman without root: in your own directories, with your own pools
    #[arg(long)]
    pub user: bool,
    /// Print the change and make none
    #[arg(long)]
    pub dry_run: bool,
}

/// `pinfold check`
#[derive(Debug, Default, Args)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Hold every claim, link, tasks file and cgroup against the others and against every live
    /// process, too
    #[arg(long)]
    pub deep: bool,
    /// An engine's configuration file, or our drop-in file for podman and CRI-O, as the engine sees
    /// it
    #[arg(long, value_name = "ENGINE=FILE")]
    pub engine_config: Vec<EngineFile>,
    /// Where hook files of podman or CRI-O were installed
    #[arg(long, value_name = "ENGINE=DIR")]
    pub hooks_dir: Vec<EngineFile>,
}

/// `ENGINE=PATH`.
#[derive(Debug, Clone)]
pub struct EngineFile {
    /// The engine.
    pub engine: Engine,
    /// An absolute path.
    pub path: String,
}

impl FromStr for EngineFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (engine, path) = text
            .split_once('=')
            .ok_or("it must be like docker=/etc/docker/daemon.json")?;
        Ok(EngineFile {
            engine: <Engine as ValueEnum>::from_str(engine, false).map_err(|_| {
                let words: Vec<&str> = engines::Engine::ALL.map(engines::Engine::word).to_vec();
                format!("the engine must be one of {}", words.join(", "))
            })?,
            path: absolute(path)?,
        })
    }
}

fn absolute(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        Ok(text.to_owned())
    } else {
        Err("it must be an absolute path".to_owned())
    }
}

/// What `install` sets up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetArg {
    /// An engine.
    Engine(Engine),
    /// CDI devices, a pool each, for any engine.
    Cdi,
    /// CDI devices, a CPU list each, for who hands out single lists.
    CdiLists,
}

impl TargetArg {
    /// The engine; `None` for the devices.
    pub fn engine(self) -> Option<Engine> {
        match self {
            TargetArg::Engine(engine) => Some(engine),
            TargetArg::Cdi | TargetArg::CdiLists => None,
        }
    }
}

impl ValueEnum for TargetArg {
    fn value_variants<'a>() -> &'a [TargetArg] {
        const ALL: [TargetArg; 6] = [
            TargetArg::Engine(Engine::Podman),
            TargetArg::Engine(Engine::Crio),
            TargetArg::Engine(Engine::Containerd),
            TargetArg::Engine(Engine::Docker),
            TargetArg::Cdi,
            TargetArg::CdiLists,
        ];
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            TargetArg::Engine(engine) => engine.to_possible_value(),
            TargetArg::Cdi => {
                let help = "CDI devices, a pool each, for any engine: what `pinfold cdi` does";
                Some(PossibleValue::new("cdi").help(help))
            }
            TargetArg::CdiLists => {
                let help = "CDI devices, a CPU list each, for a device plugin: what `pinfold cdi \
                            --lists` does";
                Some(PossibleValue::new("cdi-lists").help(help))
            }
        }
    }
}

impl ValueEnum for Engine {
    fn value_variants<'a>() -> &'a [Engine] {
        &Engine::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Engine::Podman => "podman: hook files, and a drop-in file for containers.conf",
            Engine::Crio => "CRI-O: hook files, and a drop-in file with a runtime handler",
            Engine::Containerd => "containerd: a runtime handler in config.toml",
            Engine::Docker => "docker: a runtime, and CDI devices, in daemon.json",
        };
        Some(PossibleValue::new(self.word()).help(help))
    }
}

/// `pinfold cdi`
#[derive(Debug, Args)]
pub struct CdiArgs {
    /// The file, as engines see it [default: /etc/cdi/pinfold.json, or with --lists
    /// /etc/cdi/pinfold-lists.json]
    #[arg(long, value_name = "FILE", value_parser = absolute)]
    pub output: Option<String>,
    /// A device for each CPU list, for who hands out single lists: a device plugin of Kubernetes
    #[arg(long)]
    pub lists: bool,
    /// The directory of pinfold [default: that of this program]
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Print the change and make none
    #[arg(long)]
    pub dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_found_behind_options_and_their_values() {
        for (line, verb) in [
            ("isolate --bogus", Some("isolate")),
            ("--conf-dir isolate hook x", Some("hook")),
            (
                "-v --lock-timeout=3 release isolate --bogus",
                Some("release"),
            ),
            ("--bogus", None),
            ("", None),
        ] {
            let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
            assert_eq!(Cli::verb_in(&words), verb, "{line}");
        }
    }
}
