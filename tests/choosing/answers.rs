//! What `pinfold explain` answers, word for word: what it would give and why, and each refusal.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::machines::{Shape, Tree};

/// Two packages of one node, of two last-level caches, of two cores: the CPUs 0 to 7.
struct Machine {
    tree: Tree,
}

impl Machine {
    /// With the CPUs that are offline.
    fn new(offline: &str) -> Machine {
        let shape = Shape::regular([2, 1, 2, 2, 1]).without(offline);
        Machine { tree: shape.tree() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.tree.dir.path().join(name)
    }

    /// A pool of these lists; an owner has those with a star.
    fn pool(&self, name: &str, exclusive: &str, lists: &str) {
        let pools = self.path("kcm/pools");
        for list in lists.split_whitespace() {
            let dir = pools.join(name).join(list.trim_end_matches('*'));
            fs::create_dir_all(&dir).unwrap();
            let owner = if list.ends_with('*') { "1" } else { "" };
            fs::write(dir.join("tasks"), owner).unwrap();
        }
        fs::write(pools.join(name).join("exclusive"), exclusive).unwrap();
        fs::write(self.path("kcm/lock"), "").unwrap();
    }

    /// What is said, and the exit code.
    fn explain(&self, wanted: &str) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let ran = Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .arg("explain")
            .args(wanted.split_whitespace())
            .args(["--host-root", &path("")])
            .args(["--conf-dir", &path("kcm"), "--run-dir", &path("run")])
            .env_clear()
            .output()
            .unwrap();
        let text = [ran.stdout, ran.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        let text = text.concat().replace(&path(""), "ROOT/");
        format!("{}{}\n", text, ran.status.code().unwrap())
    }
}

/// The answers to what is asked of these machines.
fn all() -> String {
    let mut all = String::new();
    let mut ask = |machine: &Machine, about: &str, asked: &[&str]| {
        all += &format!("## {about}\n");
        for wanted in asked {
            all += &format!("\n$ explain {wanted}\n{}", machine.explain(wanted));
        }
        all += "\n";
    };
    let machine = Machine::new("");
    machine.pool("dp", "1", "1* 2 3 5 6 7*");
    machine.pool("big", "1", "0,4");
    ask(
        &machine,
        "Two nodes; of dp, 1 and 7 are owned",
        &[
            "--pool dp",
            "--pool dp --lists 2",
            "--pool dp --cpus 3 --numa spread",
            "--pool dp --lists 3 --numa single",
            "--pool dp --cpus 3 --numa single",
            "--pool dp --lists 5",
            "--pool dp --lists 7",
            "--pool dp --lists 3 --numa 1",
            "--pool dp --numa 9",
            "--pool dp --lists 3 --cache single",
            "--pool dp --lists 3 --cache single --numa 0",
            "--pool big --cpus 1",
            "--pool big --numa single",
            "--pool big --cache single",
        ],
    );
    let machine = Machine::new("5-6");
    machine.pool("dp", "1", "1* 2 6");
    machine.pool("gone", "1", "5");
    machine.pool("shared", "0", "0,4");
    ask(
        &machine,
        "The same with 5 and 6 offline",
        &[
            "--pool dp",
            "--pool dp --lists 2",
            "--pool dp --lists 4",
            "--pool dp --cpus 3 --cache single",
            "--pool gone",
            "--pool shared",
            "--pool shared --lists 2",
            "--pool shared --cpus 3",
            "--pool shared --numa single",
        ],
    );
    all
}

#[test]
fn answers_are_what_they_were() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/choosing/answers.txt");
    let answers = all();
    if std::env::var_os("PINFOLD_TEST_DRAW").is_some() {
        fs::write(&path, &answers).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap();
    for (now, before) in answers.split("\n$ ").zip(kept.split("\n$ ")) {
        assert_eq!(now, before, "read it, and PINFOLD_TEST_DRAW=1 keeps it");
    }
    assert_eq!(answers, kept);
}
