//! `pinfold apply` on pools of this machine's first two CPUs: what is declared is made, once.
// A test that cannot be set up has to fail.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new(config: &str) -> Site {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let site = Site { dir };
        site.declare(config);
        site
    }

    fn declare(&self, config: &str) {
        let path = self.path("config.toml");
        fs::write(&path, config).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn apply(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.pinfold(&[&["apply"], arguments].concat());
        let said = [output.stdout.as_slice(), &output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        (output.status.code().unwrap(), said)
    }

    fn pinfold(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_pinfold"))
            .args(arguments)
            .arg("--conf-dir")
            .arg(self.path("kcm"))
            .arg("--run-dir")
            .arg(self.path("run"))
            .arg("--config")
            .arg(self.path("config.toml"))
            .output()
            .unwrap()
    }

    /// Every path with what tells that it was written: inode, times of change, size.
    fn snapshot(&self) -> Vec<(PathBuf, u64, [i64; 4], u64)> {
        fn visit(path: &Path, seen: &mut Vec<(PathBuf, u64, [i64; 4], u64)>) {
            let meta = path.symlink_metadata().unwrap();
            let times = [
                meta.mtime(),
                meta.mtime_nsec(),
                meta.ctime(),
                meta.ctime_nsec(),
            ];
            seen.push((path.into(), meta.ino(), times, meta.size()));
            if meta.is_dir() {
                for entry in fs::read_dir(path).unwrap() {
                    visit(&entry.unwrap().path(), seen);
                }
            }
        }
        let mut seen = Vec::new();
        visit(self.dir.path(), &mut seen);
        seen.sort();
        seen
    }

    fn lists(&self, pool: &str) -> Vec<String> {
        let pool = fs::read_dir(self.path("kcm/pools").join(pool));
        let entries = pool.into_iter().flatten().flatten();
        let lists = entries.filter(|entry| entry.path().is_dir());
        let mut lists: Vec<String> = lists
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        lists.sort();
        lists
    }
}

const TWO: &str = "[pools.dp]\nkind = 'exclusive'\nlists = ['0']\n\
    [pools.common]\nkind = 'shared'\nlists = ['1']\ndoors = ['cdi']\n";

#[test]
fn what_is_declared_is_made_once_and_then_nothing_is_written() {
    let site = Site::new(TWO);
    let nothing = site.snapshot();
    let (code, said) = site.apply(&["--dry-run"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("would change"), "{said}");
    assert_eq!(site.snapshot(), nothing, "a trial changes nothing");

    let (code, said) = site.apply(&[]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("+ dp      exclusive  0\n"), "{said}");
    assert!(said.contains("+ common  shared     1\n"), "{said}");
    assert_eq!(
        (site.lists("dp"), site.lists("common")),
        (vec!["0".into()], vec!["1".into()])
    );

    let made = site.snapshot();
    for arguments in [&[][..], &["--dry-run"], &["--prune"], &["--json"]] {
        let (code, said) = site.apply(arguments);
        assert_eq!(code, 0, "{said}");
        let expected = if arguments == ["--json"] {
            "\"added\": []"
        } else {
            "nothing to change"
        };
        assert!(said.contains(expected), "{said}");
        assert_eq!(site.snapshot(), made, "{arguments:?} has written something");
    }
}

#[test]
fn pools_follow_their_declaration_and_others_stay() {
    let site = Site::new(TWO);
    assert_eq!(site.apply(&[]).0, 0);
    site.declare("[pools.dp]\nkind = 'exclusive'\nlists = ['0', '1']\n");
    let (code, said) = site.apply(&[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("CPU 1 is in pool common"), "{said}");
    let (code, said) = site.apply(&["--prune", "--json"]);
    assert_eq!(code, 0, "{said}");
    let document: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(document["removed"][0]["pool"], "common");
    assert_eq!(document["added"][0]["list"], "1");
    assert_eq!(site.lists("dp"), ["0", "1"]);
    assert!(!site.path("kcm/pools/common").exists());

    site.declare("[pools.dp]\nkind = 'shared'\nlists = ['0']\n");
    assert_eq!(site.apply(&[]).0, 0);
    assert_eq!(
        fs::read_to_string(site.path("kcm/pools/dp/exclusive")).unwrap(),
        "0"
    );
    assert_eq!(site.lists("dp"), ["0"]);
    site.declare("[pools.dp]\nkind = 'shared'\nlists = ['0-1']\n");
    assert_eq!(site.apply(&[]).0, 0);
    assert_eq!(site.lists("dp"), ["0,1"]);
}

#[test]
fn a_list_with_an_owner_stays_and_its_owner_is_named() {
    let site = Site::new("[pools.dp]\nkind = 'exclusive'\nlists = ['0', '1']\n");
    assert_eq!(site.apply(&[]).0, 0);
    let mut owner = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = owner.id().to_string();
    let tasks = site.path("kcm/pools/dp/1/tasks");
    fs::write(&tasks, &pid).unwrap();
    for config in [
        "[pools.dp]\nkind = 'exclusive'\nlists = ['0']\n",
        "[pools.dp]\nkind = 'shared'\nlists = ['0']\n",
    ] {
        site.declare(config);
        let (code, said) = site.apply(&[]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(&format!("process {pid} owns")), "{said}");
        assert!(said.contains("stop it first"), "{said}");
        assert_eq!(fs::read_to_string(&tasks).unwrap(), pid);
    }
    owner.kill().unwrap();
    owner.wait().unwrap();
    let (code, said) = site.apply(&[]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(site.lists("dp"), ["0"]);
}

#[test]
fn an_error_names_the_key_and_changes_nothing() {
    let site = Site::new(TWO);
    assert_eq!(site.apply(&[]).0, 0);
    for (config, said) in [
        (
            "[pools.dp]\nkind = 'exclusive'\ncores = 9999\n",
            "9999 asked for",
        ),
        (
            "[pools.dp]\nkind = 'exclusive'\ncores = 'all'\n",
            "line 3: cores is",
        ),
        ("[pools.dp]\nkind = 'exclusive'\n", "pools.dp.kind"),
        ("[pools.dp]\ncores = 1\n", "pools.dp.cores"),
        (
            "[pools.dp]\nkind = 'exclusive'\nlists = ['8190']\n",
            "pools.dp.lists: CPU 8190 is not online",
        ),
        ("reserve = 'x'\n", "line 1: reserve"),
    ] {
        site.declare(config);
        let before = site.snapshot();
        let (code, text) = site.apply(&[]);
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(said), "{config}: {text}");
        assert_eq!(site.snapshot(), before, "{config}");
    }
    site.declare("");
    let (code, text) = site.apply(&["--prune"]);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("no pools are declared"), "{text}");
    assert_eq!(site.lists("dp"), ["0"]);
}

/// What an owner elsewhere keeps is no reason to take a pool away, or to make less of it.
#[test]
fn a_pool_that_cannot_be_as_declared_is_not_lost() {
    let site = Site::new(TWO);
    assert_eq!(site.apply(&[]).0, 0);
    let mut owner = Command::new("sleep").arg("600").spawn().unwrap();
    let pid = owner.id().to_string();
    let tasks = site.path("kcm/pools/common/1/tasks");
    fs::write(&tasks, &pid).unwrap();
    let before = site.snapshot();
    for (dp, expected) in [
        ("lists = ['1']", "CPU 1 is in pool common"),
        ("cores = 9999", "9999 asked for"),
    ] {
        site.declare(&format!("[pools.dp]\nkind = 'exclusive'\n{dp}\n"));
        let (code, said) = site.apply(&["--prune"]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains(expected), "{said}");
        assert_eq!(site.lists("dp"), ["0"], "{said}");
    }
    let is_pools = |(path, ..): &&(PathBuf, u64, [i64; 4], u64)| path.starts_with(site.path("kcm"));
    let pools = |all: Vec<_>| all.iter().filter(is_pools).cloned().collect::<Vec<_>>();
    assert_eq!(pools(site.snapshot()), pools(before));
    owner.kill().unwrap();
    owner.wait().unwrap();
    site.declare("[pools.dp]\nkind = 'exclusive'\nlists = ['1']\n");
    let (code, said) = site.apply(&["--prune"]);
    assert_eq!(code, 0, "{said}");
    assert_eq!(site.lists("dp"), ["1"]);
}

/// As `apply --dry-run` tells: a machine of 8 NUMA nodes stands for all that are large enough.
#[test]
fn each_configuration_that_is_handed_out_would_make_its_pools() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let machine = tempfile::tempdir().unwrap();
    let archive = here.join("tests/topologies/emulated-8-nodes-128-threads.tar.gz");
    let mut tar = Command::new("tar");
    tar.arg("-xzf").arg(archive).arg("-C").arg(machine.path());
    assert!(tar.status().unwrap().success());
    let root = machine.path().to_str().unwrap();
    let overlay = [("dataplane", 8), ("latency", 2)];
    let cases = [
        (
            "examples/config.toml",
            &[("common", 1), ("dataplane", 2)][..],
        ),
        ("packaging/kubernetes/base/config.toml", &[("dataplane", 4)]),
        (
            "packaging/kubernetes/examples/overlay/config.toml",
            &overlay,
        ),
        (
            "packaging/kubernetes/examples/overlay-runtimeclass/config.toml",
            &[("dataplane", 4), ("latency", 2)],
        ),
        // Whoever installs the package has no pool declared.
        ("packaging/config.toml", &[]),
    ];
    for (file, pools) in cases {
        let site = Site::new(&fs::read_to_string(here.join(file)).unwrap());
        let (code, said) = site.apply(&["--dry-run", "--host-root", root]);
        assert_eq!(code, 0, "{file}: {said}");
        let made: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("+ "))
            .collect();
        for (pool, count) in pools {
            let of_it = |line: &&&str| line.split_whitespace().next() == Some(*pool);
            assert_eq!(
                made.iter().filter(of_it).count(),
                *count,
                "{file}: {pool}: {said}"
            );
        }
        let lists: usize = pools.iter().map(|(_, count)| count).sum();
        assert_eq!(made.len(), lists, "{file}: {said}");
    }
    let mut written: Vec<_> = ["examples", "packaging"]
        .map(|dir| configurations(&here.join(dir)))
        .concat();
    written.retain(|path| !cases.iter().any(|(file, _)| here.join(file) == *path));
    assert!(written.is_empty(), "these are tried by nobody: {written:?}");
}

/// Every config.toml below a directory.
fn configurations(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(configurations(&path));
        } else if path.ends_with("config.toml") {
            found.push(path);
        }
    }
    found
}
