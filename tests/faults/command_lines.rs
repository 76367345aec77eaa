//! Command lines of runtimes, put together by chance: the configuration that runc and crun then
//! read is the one that `pinfold-runtime` reads. Each candidate holds what is not JSON, so that
//! nothing is made.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use pinfold::oci::CommandLine;

use crate::campaign::{Dice, number, seed};
use crate::cases::{Case, Need, plain};
use crate::world::World;

/// How many lines each runtime is given.
const LINES: usize = 400;

/// Names of bundles; a line may name them where a runtime takes them for something else.
const BUNDLES: [&str; 4] = [".", "x", "create", "-h"];

pub(crate) fn cases() -> Vec<Case> {
    let needs = |runtime| [Need::Root, Need::Program(runtime)];
    vec![
        plain("command_lines::of_runc", &needs("runc"), |world| {
            as_it_reads(world, "runc");
        }),
        plain("command_lines::of_crun", &needs("crun"), |world| {
            as_it_reads(world, "crun");
        }),
    ]
}

/// Candidates for what a line can name, below one directory.
struct Candidates {
    dir: PathBuf,
    files: Vec<PathBuf>,
}

impl Candidates {
    fn new(dir: &Path) -> Candidates {
        let bundles = BUNDLES
            .iter()
            .map(|name| dir.join(name).join("config.json"));
        let files: Vec<PathBuf> = bundles
            .chain([dir.join("o.json"), dir.join("x/o.json")])
            .collect();
        for file in &files {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "not JSON").unwrap();
        }
        Candidates {
            dir: dir.to_owned(),
            files,
        }
    }

    /// Makes the next read of each show in its access time (mount(8), `relatime`: one that is older
    /// than the last change).
    fn arm(&self) {
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        for file in &self.files {
            let times = fs::FileTimes::new()
                .set_accessed(long_ago)
                .set_modified(SystemTime::now());
            fs::File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_times(times)
                .unwrap();
        }
    }

    /// Which were read since.
    fn read(&self) -> BTreeSet<PathBuf> {
        let was_read = |file: &&PathBuf| file.metadata().unwrap().atime() != 1;
        let read = self.files.iter().filter(was_read);
        read.map(|file| file.canonicalize().unwrap()).collect()
    }
}

fn as_it_reads(world: &World, runtime: &str) {
    let candidates = Candidates::new(&world.run.join("lines"));
    candidates.arm();
    fs::read(&candidates.files[0]).unwrap();
    assert_eq!(
        candidates.read().len(),
        1,
        "this file system tells when a file was read"
    );
    let mut dice = Dice(seed());
    let seconds = number("PINFOLD_TEST_FAULTS_SECONDS").unwrap_or(20);
    let (began, limit) = (Instant::now(), Duration::from_secs(seconds));
    let (mut tried, mut compared) = (0, 0);
    while tried < LINES && began.elapsed() < limit {
        let words = line(&mut dice, runtime, &candidates.dir);
        candidates.arm();
        let mut command = Command::new(runtime);
        command.current_dir(&candidates.dir).args(&words);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().unwrap();
        tried += 1;
        let read = candidates.read();
        // What it refuses before it reads anything makes no container.
        let Some(read) = read.first() else {
            continue;
        };
        compared += 1;
        let ours = CommandLine::parse(&words);
        let path = candidates.dir.join(ours.config_path());
        assert!(
            ours.makes_a_container() && path.canonicalize().ok().as_ref() == Some(read),
            "{runtime} {words:?} reads {}, and we take it for {ours:?}; seed {}",
            read.display(),
            seed()
        );
    }
    println!(
        "{runtime}: {compared} of {tried} lines led to a configuration, seed {}",
        seed()
    );
    assert!(
        compared * 8 > tried,
        "{runtime}: too few lines led to a configuration"
    );
}

/// A line that makes a container, as far as chance allows.
fn line(dice: &mut Dice, runtime: &str, dir: &Path) -> Vec<OsString> {
    let root = dir.join("root").display().to_string();
    let globals = [
        "--debug",
        "--log l",
        "--log=create",
        "--log-format json",
        "--systemd-cgroup",
    ];
    let of_one: [&[&str]; 2] = [
        &["-debug", "-log l"],
        &["--cgroup-manager cgroupfs", "--cgroup-m=cgroupfs"],
    ];
    let for_one: [&[&str]; 2] = [
        &["-bundle x", "-b=x", "-no-pivot", "-pid-file=p", "-b create"],
        &[
            "-bx",
            "-f o.json",
            "--config=o.json",
            "-fo.json",
            "--bun x",
            "--bund=create",
            "-f config.json",
        ],
    ];
    let options = [
        "-b x",
        "--bundle x",
        "--bundle=create",
        "-b .",
        "--no-pivot",
        "--pid-file p",
        "--pid-file=-b",
        "--console-socket s",
        "--pid-file -b",
        "--console-socket --bundle=x",
        "--preserve-fds 0",
        "--preserve-fds=0",
        "-b -h",
        "--no-new-keyring",
        "--bundle ./x",
    ];
    let own = usize::from(runtime == "crun");
    let mut words = vec![format!("--root {root}")];
    for _ in 0..dice.below(3) {
        let all = [&globals[..], of_one[own]].concat();
        words.push(all[dice.below(all.len())].to_owned());
    }
    words.push(["create", "run", "run", "create"][dice.below(4)].to_owned());
    for _ in 0..dice.below(4) {
        let all = [&options[..], for_one[own]].concat();
        words.push(all[dice.below(all.len())].to_owned());
    }
    words.push(["id", "id", "id", "-- id", "id -d", ""][dice.below(6)].to_owned());
    let words = words.iter().flat_map(|word| word.split_whitespace());
    words.map(OsString::from).collect()
}
