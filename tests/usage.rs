//! `pinfold usage`: what it sums up, how fast, and what it says of what it cannot read.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test that cannot be set up has to fail.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        let only_ours = PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(dir.path().join("run"), only_ours).unwrap();
        Site { dir }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("run/usage.jsonl")
    }

    fn usage(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pinfold"));
        command.arg("--conf-dir").arg(self.dir.path().join("kcm"));
        command.arg("--run-dir").arg(self.dir.path().join("run"));
        command.arg("usage").args(arguments);
        command.env_remove("COLUMNS").output().unwrap()
    }

    fn document(&self, arguments: &[&str]) -> Value {
        let ran = self.usage(&[&["--json"], arguments].concat());
        assert!(ran.status.success(), "{ran:?}");
        serde_json::from_slice(&ran.stdout).unwrap()
    }
}

fn stderr(ran: &Output) -> String {
    String::from_utf8_lossy(&ran.stderr).into_owned()
}

/// The record of an owner that ended so many seconds ago, after an hour.
fn record(number: u64, name: &str, pool: &str, ago: u64) -> Value {
    // The clock is read once: between two readings a second can pass.
    let end = SystemTime::now() - Duration::from_secs(ago);
    let start = end - Duration::from_secs(3600);
    let time = |time| humantime::format_rfc3339_seconds(time).to_string();
    json!({
        "version": 1,
        "id": format!("{number:064x}"),
        "name": name,
        "kind": "container",
        "pool": pool,
        "lists": ["2,6"],
        "cpus": 2,
        "start": time(start),
        "end": time(end),
        "cpuSeconds": 2.5,
        "userSeconds": 2.0,
        "systemSeconds": 0.5,
        "noiseSeconds": 0.25,
        "watchedSeconds": 3000.0,
        "exactness": if number % 2 == 0 { "exact" } else { "sampled" },
        "read": time(end),
        "owner": format!("boot {number}-7"),
        "later": "programs can add to it",
    })
}

#[test]
fn ten_thousand_records_are_summed_up_in_less_than_a_second() {
    let site = Site::new();
    let records = (0..10_000).map(|number| {
        let pool = ["dp", "cp"][number as usize % 2];
        // An hour apart, from half an hour ago on.
        format!(
            "{}\n",
            record(
                number,
                &format!("web-{}", number % 7),
                pool,
                1800 + number * 3600
            )
        )
    });
    std::fs::write(site.log(), records.collect::<String>()).unwrap();
    let began = Instant::now();
    let document = site.document(&["--by", "pool"]);
    let took = began.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let dp = &document["usage"][1];
    assert_eq!((&dp["pool"], &dp["ended"]), (&json!("dp"), &json!(5000)));
    assert_eq!((&dp["exact"], &dp["sampled"]), (&json!(5000), &json!(0)));
    assert_eq!(dp["cpuSeconds"], json!(12_500.0));
    assert_eq!(dp["noiseSeconds"], json!(1250.0));
    assert_eq!(dp["ownedSeconds"], json!(5000.0 * 7200.0));
    // Those of the last day, by name: 24 of them.
    let document = site.document(&["--by", "name", "--since", "24h"]);
    let of_day = document["usage"].as_array().unwrap();
    let ended: u64 = of_day
        .iter()
        .map(|one| one["ended"].as_u64().unwrap())
        .sum();
    assert_eq!((of_day.len(), ended), (7, 24));
    let days = site.document(&["--by", "day"]);
    let days = days["usage"].as_array().unwrap();
    assert!((417..=419).contains(&days.len()), "{}", days.len());
    assert!(
        days.windows(2)
            .all(|two| two[0]["day"].as_str() < two[1]["day"].as_str())
    );
}

#[test]
fn a_table_fits_the_line_and_shows_nothing_raw() {
    let site = Site::new();
    let long = format!("pod\u{1b}[2J{}", "x".repeat(100));
    let text: String = [(1, long.as_str()), (2, "short")]
        .map(|(number, name)| format!("{}\n", record(number, name, "dp", 60)))
        .concat();
    std::fs::write(site.log(), text).unwrap();
    let ran = site.usage(&["--by", "name"]);
    let shown = String::from_utf8(ran.stdout).unwrap();
    assert!(
        shown.lines().all(|line| line.chars().count() <= 80),
        "{shown}"
    );
    assert!(
        shown.starts_with("NAME ") && !shown.contains('\u{1b}'),
        "{shown}"
    );
    assert!(shown.contains("7200.0s") && shown.contains('…'), "{shown}");
    let whole = site.usage(&["--by", "name", "--no-trunc"]);
    assert!(String::from_utf8_lossy(&whole.stdout).contains(&"x".repeat(100)));
    let none = site.usage(&["--since", "1s"]);
    assert_eq!(
        String::from_utf8_lossy(&none.stdout),
        "Nobody who owned CPUs has ended in that time.\n"
    );
}

/// What owners used is drawn over the time for which they had their CPUs.
#[test]
fn a_picture_shows_what_was_used_over_time() {
    let site = Site::new();
    let hostile = "</text>\u{1b}\u{202e}&";
    let text: String = [(1, "dp", 60), (2, hostile, 1800), (3, "old", 90_000)]
        .map(|(number, pool, ago)| format!("{}\n", record(number, "web", pool, ago)))
        .concat();
    std::fs::write(site.log(), text + "junk\n").unwrap();
    let texts = |ran: &Output| -> Vec<String> {
        assert!(ran.status.success(), "{ran:?}");
        let picture = String::from_utf8(ran.stdout.clone()).unwrap();
        let document = roxmltree::Document::parse(&picture).unwrap();
        let texts = document
            .descendants()
            .filter(|node| node.has_tag_name("text"));
        texts
            .filter_map(|node| node.text().map(str::to_owned))
            .collect()
    };
    let has = |texts: &[String], shown: &str| texts.iter().any(|text| text == shown);
    let ran = site.usage(&["--svg", "-"]);
    assert!(stderr(&ran).contains("line 4 of"), "{ran:?}");
    let all = texts(&ran);
    for shown in ["dp", "old", "</text>\\u{1b}\\u{202e}&", "2.5 CPU seconds"] {
        assert!(has(&all, shown), "{shown}: {all:?}");
    }
    // Of the last half hour and a bit there is half of what the first used, and less of the second.
    let ran = site.usage(&["--svg", "-", "--since", "1900s"]);
    let some = texts(&ran);
    assert!(has(&some, "dp") && !has(&some, "old"), "{some:?}");
    assert!(!has(&some, "2.5 CPU seconds"), "{some:?}");
    let none = texts(&site.usage(&["--svg", "-", "--since", "1s"]));
    assert!(
        has(&none, "Nobody who owned CPUs ended in that time."),
        "{none:?}"
    );
    let file = site.dir.path().join("week.svg");
    let ran = site.usage(&["--svg", file.to_str().unwrap()]);
    assert!(ran.status.success() && ran.stdout.is_empty(), "{ran:?}");
    let drawn = std::fs::read_to_string(&file).unwrap();
    assert!(drawn.starts_with("<svg ") && drawn.ends_with("</svg>\n"));
    for other in ["--json", "--no-trunc", "--by=pool"] {
        let ran = site.usage(&["--svg", "-", other]);
        assert_eq!(ran.status.code(), Some(2), "{other}: {ran:?}");
    }
    let ran = site.usage(&["--svg", site.dir.path().to_str().unwrap()]);
    assert!(stderr(&ran).contains("is not a regular file"), "{ran:?}");
}

#[test]
fn broken_lines_are_skipped_counted_and_said() {
    let site = Site::new();
    let good = record(2, "web", "dp", 60).to_string();
    std::fs::write(site.log(), format!("{good}\nnonsense\n{{\"version\":1}}\n")).unwrap();
    let ran = site.usage(&[]);
    assert!(ran.status.success());
    let said = stderr(&ran);
    let path = site.log().display().to_string();
    assert!(
        said.contains("2 lines are not records, and are left out") && said.contains(&path),
        "{said}"
    );
    let document = site.document(&[]);
    assert_eq!(document["brokenLines"], 2);
    assert_eq!(document["usage"][0]["ended"], 1);
    std::fs::write(site.log(), format!("{good}\n\u{fffd}")).unwrap();
    assert!(stderr(&site.usage(&[])).contains("line 2 of "));
}

#[test]
fn what_is_there_before_anybody_ended_or_is_switched_off_is_said() {
    let site = Site::new();
    let ran = site.usage(&[]);
    assert_eq!(
        String::from_utf8_lossy(&ran.stdout),
        "Nobody who owned CPUs has ended yet.\n"
    );
    assert!(ran.status.success() && stderr(&ran).is_empty(), "{ran:?}");
    let config = site.dir.path().join("config.toml");
    std::fs::write(&config, "[usage]\nenabled = false\n").unwrap();
    let off = site.usage(&["--config", config.to_str().unwrap()]);
    assert_eq!(off.status.code(), Some(1));
    assert!(stderr(&off).contains("usage.enabled is false"), "{off:?}");
    for bad in [["--by", "week"], ["--since", "soon"]] {
        assert_eq!(site.usage(&bad).status.code(), Some(2), "{bad:?}");
    }
    // One that leads elsewhere is not followed.
    std::os::unix::fs::symlink("/etc/hostname", site.log()).unwrap();
    let link = site.usage(&[]);
    assert_eq!(link.status.code(), Some(1));
    assert!(stderr(&link).contains("symbolic link"), "{link:?}");
}
