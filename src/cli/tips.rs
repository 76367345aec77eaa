//! Tips for people who know other tools: which verb of ours their words mean. clap's own
//! suggestions go by spelling alone.

/// The tip for a word that is not a verb. Words after `pool` have tips of their own.
pub(super) fn tip(words: &[&str]) -> Option<&'static str> {
    let (word, tips): (_, &[Tip]) = match words {
        ["pool", word, ..] => (word, &OF_POOL),
        [word, ..] => (word, &OF_PINFOLD),
        [] => return None,
    };
    let word = word.to_lowercase();
    let tip = tips
        .iter()
        .find(|(words, _)| words.contains(&word.as_str()));
    tip.map(|(_, tip)| *tip)
}

/// Words, and the tip for each of them.
type Tip = (&'static [&'static str], &'static str);

const OF_PINFOLD: [Tip; 19] = [
    (
        &[
            "ls",
            "ps",
            "list",
            "owners",
            "containers",
            "show",
            "get",
            "info",
            "stat",
        ],
        "pinfold status shows the pools and who owns what",
    ),
    (
        &["top", "cpu"],
        "pinfold stats shows what owners do with their CPUs",
    ),
    (
        &["account", "accounting", "bill", "history", "report", "sum"],
        "pinfold usage sums up what owners that ended have used",
    ),
    (
        &["create", "new", "add", "mk", "make", "mkpool"],
        "pinfold init makes the pool directory, pinfold pool add another pool",
    ),
    (
        &["rm", "remove", "del", "delete", "destroy", "drop", "rmpool"],
        "pinfold release gives back what an owner holds, pinfold pool remove removes a pool",
    ),
    (
        &["free", "unpin", "give-back", "stop", "kill", "detach"],
        "pinfold release gives back what an owner holds",
    ),
    (
        &[
            "run", "exec", "pin", "start", "launch", "taskset", "numactl",
        ],
        "pinfold isolate runs a command on CPUs of its own",
    ),
    (
        &["inspect"],
        "pinfold status -o json shows all that is known of owners",
    ),
    (
        &[
            "doctor",
            "diagnose",
            "verify",
            "validate",
            "test",
            "health",
            "status-check",
            "lint",
        ],
        "pinfold check looks at everything that a start depends on",
    ),
    (
        &[
            "gc", "clean", "cleanup", "prune", "repair", "fix", "reap", "sync",
        ],
        "pinfold reconcile frees what dead owners hold",
    ),
    (
        &[
            "resize", "grow", "shrink", "scale", "update", "edit", "set", "modify",
        ],
        "pinfold pool resize changes the size of a pool",
    ),
    (&["pools"], "pinfold pool show shows the pools"),
    (
        &["enable", "configure", "config"],
        "pinfold install makes an engine use Pinfold",
    ),
    (
        &["disable", "purge"],
        "pinfold uninstall takes back what pinfold install did",
    ),
    (
        &["topo", "lscpu", "numa", "cpus", "cores", "discover"],
        "pinfold topology draws the machine",
    ),
    (
        &["plan", "simulate", "dry-run", "dryrun", "try"],
        "pinfold explain says what a request would get",
    ),
    (
        &["device", "devices"],
        "pinfold cdi writes a CDI device for each pool",
    ),
    (
        &["help"],
        "pinfold --help lists the verbs, and pinfold VERB --help has an example of each",
    ),
    (&["version"], "pinfold --version tells the version"),
];

const OF_POOL: [Tip; 6] = [
    (
        &[
            "ls", "ps", "list", "get", "info", "describe", "inspect", "status",
        ],
        "pinfold pool show shows the pools",
    ),
    (
        &["create", "new", "mk", "make", "init"],
        "pinfold pool add makes another pool",
    ),
    (
        &["rm", "del", "delete", "destroy", "drop"],
        "pinfold pool remove removes a pool",
    ),
    (
        &["grow", "shrink", "scale", "update", "edit", "modify"],
        "pinfold pool resize changes the size of a pool, pinfold pool set what is said of it",
    ),
    (
        &["release", "free"],
        "pinfold release gives back what an owner holds",
    ),
    (
        &["help"],
        "pinfold pool --help lists what can be done with pools",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    /// All verbs; those of `pool` begin with `pool`.
    fn verbs() -> Vec<String> {
        let command = Cli::command();
        let name = |command: &clap::Command| command.get_name().to_owned();
        let mut verbs: Vec<String> = command.get_subcommands().map(name).collect();
        let pool = command.find_subcommand("pool").unwrap();
        verbs.extend(
            pool.get_subcommands()
                .map(|verb| format!("pool {}", name(verb))),
        );
        verbs
    }

    #[test]
    fn every_tip_names_a_verb_and_no_verb_has_one() {
        let verbs = verbs();
        for (prefix, tips) in [("", &OF_PINFOLD[..]), ("pool ", &OF_POOL)] {
            for (words, tip) in tips {
                let named = tip.split("pinfold ").skip(1);
                for named in named {
                    let is_verb = |verb: &String| named.starts_with(&format!("{verb} "));
                    let is_option = named.starts_with("--") || named.starts_with("VERB --help");
                    assert!(is_option || verbs.iter().any(is_verb), "{tip}");
                }
                for word in *words {
                    assert!(!verbs.contains(&format!("{prefix}{word}")), "{word}");
                }
            }
        }
    }

    #[test]
    fn a_word_is_looked_up_where_it_stands() {
        for (words, part) in [
            (&["ls"][..], Some("pinfold status")),
            (&["LIST", "x"], Some("pinfold status")),
            (&["pool", "list"], Some("pinfold pool show")),
            (&["pool", "rm", "dp"], Some("pinfold pool remove")),
            (&["rm", "pool"], Some("pinfold release")),
            (&["frobnicate"], None),
            (&["pool"], None),
            (&[], None),
        ] {
            let tip = tip(words);
            assert_eq!(tip.is_some(), part.is_some(), "{words:?}");
            assert!(
                part.is_none_or(|part| tip.unwrap().contains(part)),
                "{words:?}"
            );
        }
    }
}
