//! Pictures of captured and made-up machines: what they show, and that it can be read.

use std::time::Duration;

use pinfold::cpulist::CpuSet;
use pinfold::names::Names;
use pinfold::picture::{DrawnOwner, Load, Scene, Span, machine, usage};
use pinfold::placement::{ListState, Owner, OwnerState, SurveyedList, SurveyedPool};
use pinfold::pools::Kind;
use pinfold::topology::{CoreKind, Topology};
use unicode_width::UnicodeWidthStr;

use crate::machines::{Shape, captured, set};

/// What is drawn of a machine.
struct Drawn {
    topology: Topology,
    pools: Vec<SurveyedPool>,
    owners: Vec<(Owner, Option<Load>)>,
}

impl Drawn {
    fn of(topology: Topology) -> Drawn {
        Drawn {
            topology,
            pools: Vec::new(),
            owners: Vec::new(),
        }
    }

    /// Adds a pool of these lists.
    fn pool(&mut self, name: &str, kind: Kind, lists: &[String]) {
        let list = |name: &String| SurveyedList {
            name: name.clone(),
            cpus: set(name),
            tasks: Vec::new(),
            state: ListState::Free,
            offline: CpuSet::new(),
            owners: 0,
        };
        self.pools.push(SurveyedPool {
            options: Default::default(),
            name: name.to_owned(),
            kind,
            lists: lists.iter().map(list).collect(),
        });
    }

    /// Adds an owner of lists of the last pool, which used and suffered so many hundredths.
    fn owner(&mut self, name: &str, lists: &[String], load: Option<(u32, u32)>) {
        let pool = self.pools.last_mut().unwrap();
        let mut cpus = CpuSet::new();
        for list in pool
            .lists
            .iter_mut()
            .filter(|list| lists.contains(&list.name))
        {
            list.owners += 1;
            list.state = ListState::Owned;
            cpus.extend(&list.cpus);
        }
        let share = |hundredths: u32| f64::from(hundredths) / 100.0;
        let load = load.map(|(used, noise)| Load {
            used: share(used),
            noise: share(noise),
        });
        let owner = Owner {
            kind: None,
            id: Some(format!("{:064x}", self.owners.len())),
            names: Names {
                name: Some(name.to_owned()),
                ..Names::default()
            },
            pid: 4711,
            pool: pool.name.clone(),
            lists: lists.to_vec(),
            cpus,
            runs_on: None,
            group: None,
            state: OwnerState::Running,
            since: None,
            keeping: Default::default(),
            tuning: Default::default(),
            by_default: false,
        };
        self.owners.push((owner, load));
    }

    fn picture(&self) -> String {
        let owners = self.owners.iter();
        let owned = owners.map(|(owner, load)| DrawnOwner { owner, load: *load });
        let is_measured = self.owners.iter().any(|(_, load)| load.is_some());
        machine(&Scene {
            topology: &self.topology,
            pools: &self.pools,
            owners: owned.collect(),
            interval: is_measured.then_some(Duration::from_millis(500)),
        })
    }
}

fn of_tree(name: &str) -> Drawn {
    Drawn::of(Topology::read(&captured(name).host).unwrap())
}

/// Eight CPUs in two nodes, with an exclusive pool, of which a list is owned, and a shared one.
fn small() -> Drawn {
    let mut drawn = of_tree("emulated-2-packages-no-smt");
    drawn.pool("dataplane", Kind::Exclusive, &words("1 2 3 5"));
    drawn.owner("forwarder", &words("1"), None);
    drawn.pool("common", Kind::Shared, &words("4,6-7"));
    drawn
}

/// The picture of the README: 32 CPUs in four nodes, three pools, and what owners do.
fn readme() -> Drawn {
    let mut drawn = of_tree("emulated-2-packages-4-nodes");
    let cores = cores(&drawn.topology);
    drawn.pool("dataplane", Kind::Exclusive, &cores[1..8]);
    drawn.owner("forwarder", &cores[1..3], Some((94, 1)));
    drawn.owner("telco/upf-0", &cores[4..7], Some((71, 18)));
    drawn.pool("realtime", Kind::Exclusive, &cores[12..]);
    drawn.owner("motion.service", &cores[12..13], Some((38, 0)));
    drawn.owner("camera", &cores[15..], Some((6, 3)));
    drawn.pool("common", Kind::Shared, &[joined(&cores[8..12])]);
    let all = [joined(&cores[8..12])];
    drawn.owner("web", &all, Some((22, 31)));
    drawn.owner("metrics", &all, Some((4, 49)));
    drawn
}

/// 256 CPUs, with more pools than there are colours, and names as people give them.
fn large() -> Drawn {
    let shape = Shape::regular([2, 4, 4, 4, 2]);
    let mut drawn = Drawn::of(Topology::read(&shape.tree().host).unwrap());
    let cores = cores(&drawn.topology);
    for (place, cores) in cores.chunks(14).enumerate() {
        drawn.pool(&format!("pool-{place}"), Kind::Exclusive, cores);
        for (index, core) in cores.iter().enumerate().filter(|(index, _)| index % 3 > 0) {
            let name = match index % 2 {
                0 => format!("worker-{place}-{index}"),
                _ => format!("kube-system/a-deployment-of-some-length-7d4b9c6f5d-{place}x{index}"),
            };
            let load = (index as u32 * 7 % 90, place as u32);
            drawn.owner(&name, std::slice::from_ref(core), Some(load));
        }
    }
    drawn
}

/// The CPUs of each core.
fn cores(topology: &Topology) -> Vec<String> {
    let cores = topology.levels.cores.iter();
    cores.map(|core| core.cpus.to_string()).collect()
}

fn joined(lists: &[String]) -> String {
    let mut all = CpuSet::new();
    lists.iter().for_each(|list| all.extend(&set(list)));
    all.to_string()
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Names of others, and lists that overlap, with owners that are not as they should be.
fn hostile() -> Drawn {
    let mut hostile = of_tree("emulated-2-packages-no-smt");
    for (lists, name) in [
        ("1", HOSTILE),
        ("2,4", ""),
        ("2-3", "日本日本日本日本日本日本"),
    ] {
        hostile.pool(&name.repeat(3), Kind::Exclusive, &words(lists));
        hostile.owner(name, &words(lists), Some((250, 250)));
    }
    for (state, (owner, _)) in [OwnerState::Gone, OwnerState::Moved]
        .into_iter()
        .zip(&mut hostile.owners)
    {
        owner.state = state;
    }
    hostile
}

/// Machines and sites of every kind that looks different.
fn all() -> Vec<(&'static str, Drawn)> {
    let of_shape = |shape: Shape| Drawn::of(Topology::read(&shape.tree().host).unwrap());
    let mut offline = of_tree("emulated-offline-holes");
    offline.pool("a", Kind::Exclusive, &words("2 3 4"));
    offline.owner("b", &words("3"), Some((0, 100)));
    let mut hybrid = of_shape(Shape::regular([1, 1, 1, 8, 1]));
    for (name, cpus) in [("capacity 1024", "0-3"), ("capacity 446", "4-7")] {
        let cpus = set(cpus);
        let name = name.to_owned();
        hybrid.topology.kinds.push(CoreKind { name, cpus });
    }
    hybrid.topology.isolated = set("2-5");
    hybrid.pool("dp", Kind::Exclusive, &words("2 3"));
    let mut threads = of_shape(Shape::regular([2, 1, 1, 12, 8]));
    threads.pool("one", Kind::Exclusive, &words("0,24 48 72"));
    threads.owner("web", &words("48"), None);
    let mut crowd = of_tree("real-2-cpus");
    crowd.pool("common", Kind::Shared, &words("0-1"));
    for number in 0..300 {
        crowd.owner(&format!("owner-{number}"), &words("0-1"), None);
    }
    // Packages and nodes that lie across each other.
    let mut crossed = Shape::regular([2, 1, 1, 4, 1]);
    for (number, cpu) in &mut crossed.cpus {
        cpu.node = u32::from(*number == 0 || *number > 4);
    }
    let mut many = of_shape(Shape::regular([1, 1, 1, 40, 1]));
    for number in 0..40 {
        many.pool(
            &format!("p{number}"),
            Kind::Exclusive,
            &[number.to_string()],
        );
        many.owner("x", &[number.to_string()], None);
    }
    vec![
        ("small", small()),
        ("readme", readme()),
        ("large", large()),
        ("offline", offline),
        ("hostile", hostile()),
        ("hybrid", hybrid),
        ("threads", threads),
        ("crowd", crowd),
        ("many", many),
        ("crossed", of_shape(crossed)),
        ("nodes", of_tree("emulated-8-nodes-128-threads")),
        ("memory", of_tree("emulated-memory-node")),
        ("single", of_shape(Shape::regular([1; 5]))),
    ]
}

/// What nobody may take for XML, or for the way to draw.
const HOSTILE: &str = "</text><script>alert(1)</script>&amp;\u{1b}\u{202e}\u{ffff}\"'";

/// A text or a box of a picture, with the pixels that it takes.
#[derive(Debug, Clone)]
struct Mark {
    classes: Vec<String>,
    text: String,
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Mark {
    fn of(node: roxmltree::Node<'_, '_>) -> Mark {
        let number = |name: &str| -> f64 {
            let value = node.attribute(name).unwrap_or("0");
            value.parse().unwrap()
        };
        let classes = node.attribute("class").unwrap().split(' ');
        let classes: Vec<String> = classes.map(str::to_owned).collect();
        let has = |class: &str| classes.iter().any(|one| one == class);
        let text = node.text().unwrap_or_default().to_owned();
        let (mut left, mut top) = (number("x"), number("y"));
        let (mut width, mut height) = (number("width"), number("height"));
        if node.has_tag_name("text") {
            height = match (has("heading"), has("small")) {
                (true, _) => 16.0,
                (_, true) => 11.0,
                _ => 12.0,
            };
            // Of a font of fixed width: 0.602 of its size in DejaVu's, less in others.
            width = text.width() as f64 * height * 0.602;
            left -= if has("end") { width } else { 0.0 };
            top -= height * 0.8;
        }
        Mark {
            right: left + width,
            bottom: top + height,
            classes,
            text,
            left,
            top,
        }
    }

    fn is(&self, class: &str) -> bool {
        self.classes.iter().any(|one| one == class)
    }

    fn is_within(&self, other: &Mark) -> bool {
        let is_beside = self.left >= other.left && self.right <= other.right;
        is_beside && self.top >= other.top && self.bottom <= other.bottom
    }

    fn overlaps(&self, other: &Mark) -> bool {
        let is_beside = self.right <= other.left || other.right <= self.left;
        !is_beside && self.top < other.bottom && other.top < self.bottom
    }
}

/// Checks that a picture can be read: nothing leaves it, no text leaves its box or meets another,
/// and boxes lie within each other or apart. Returns its texts.
fn readable(name: &str, picture: &str) -> Vec<Mark> {
    let document = roxmltree::Document::parse(picture).unwrap_or_else(|error| {
        panic!("{name}: {error}");
    });
    let root = document.root_element();
    for node in root.descendants().filter(roxmltree::Node::is_element) {
        let tag = node.tag_name().name();
        let known = "svg title desc style defs pattern line g rect text";
        assert!(known.split(' ').any(|known| known == tag), "{name}: {tag}");
        for attribute in node.attributes() {
            let is_act = attribute.name().starts_with("on") || attribute.name().contains("href");
            assert!(!is_act, "{name}: {attribute:?}");
        }
    }
    for tag in ["title", "desc"] {
        let mut children = root.children();
        let words = children.find(|node| node.has_tag_name(tag)).unwrap().text();
        assert!(
            words.is_some_and(|words| !words.is_empty()),
            "{name}: {tag}"
        );
    }
    let marks = |tag: &'static str| -> Vec<Mark> {
        let nodes = root.descendants().filter(|node| node.has_tag_name(tag));
        nodes.map(Mark::of).collect()
    };
    let (texts, mut boxes) = (marks("text"), marks("rect"));
    let page = boxes.remove(0);
    assert!(page.is("page"));
    boxes.retain(|one| !one.is("light-stripes") && !one.is("dark-stripes"));
    for (index, text) in texts.iter().enumerate() {
        assert!(text.is_within(&page), "{name}: {text:?} leaves {page:?}");
        for one in boxes.iter().filter(|one| text.overlaps(one)) {
            assert!(text.is_within(one), "{name}: {text:?} leaves {one:?}");
        }
        for other in &texts[index + 1..] {
            assert!(!text.overlaps(other), "{name}: {text:?} meets {other:?}");
        }
    }
    let bars = ["track", "used", "noise"];
    boxes.retain(|one| !bars.iter().any(|bar| one.is(bar)));
    for (index, one) in boxes.iter().enumerate() {
        assert!(one.is_within(&page), "{name}: {one:?} leaves {page:?}");
        for other in boxes[index + 1..]
            .iter()
            .filter(|other| one.overlaps(other))
        {
            let is_nested = one.is_within(other) || other.is_within(one);
            assert!(is_nested, "{name}: {one:?} meets {other:?}");
        }
    }
    texts
}

#[test]
fn every_picture_can_be_read_and_shows_each_cpu_once() {
    for (name, drawn) in all() {
        let picture = drawn.picture();
        assert_eq!(picture, drawn.picture(), "{name}");
        let texts = readable(name, &picture);
        let numbers = texts.iter().filter(|text| !text.is("small"));
        let mut cpus: Vec<u32> = numbers.filter_map(|text| text.text.parse().ok()).collect();
        cpus.sort_unstable();
        let mut expected = drawn.topology.online.clone();
        expected.extend(&drawn.topology.offline);
        assert_eq!(cpus, expected.iter().collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn what_others_named_stays_text() {
    let picture = hostile().picture();
    let document = roxmltree::Document::parse(&picture).unwrap();
    let shown = HOSTILE.replace('\u{1b}', "\\u{1b}");
    let shown = shown
        .replace('\u{202e}', "\\u{202e}")
        .replace('\u{ffff}', "\\u{ffff}");
    let titles = document
        .descendants()
        .filter(|node| node.has_tag_name("title"));
    let titles: Vec<&str> = titles.filter_map(|node| node.text()).collect();
    assert!(
        titles.iter().any(|title| title.contains(&shown)),
        "{titles:?}"
    );
    let texts = readable("hostile", &picture);
    let is_state = |text: &&Mark| text.text == "gone" || text.text == "moved";
    assert_eq!(texts.iter().filter(is_state).count(), 2);
}

/// Names of pods begin alike: what has no room is left out of their middle.
#[test]
fn owners_are_told_by_name_and_by_what_they_did() {
    let texts = readable("large", &large().picture());
    let count = |shown: &str| texts.iter().filter(|text| text.text == shown).count();
    assert_eq!(count("kube-sy…5d-1x5"), 1);
    assert_eq!(count("worker-2-4"), 2, "in its core, and in the table");
    assert_eq!(count("free"), 9 * 5 + 1);
    let texts = readable("readme", &readme().picture());
    let count = |shown: &str| texts.iter().filter(|text| text.text == shown).count();
    assert_eq!((count("forwarder"), count("94.0")), (3, 1));
    assert_eq!(count("web, metrics"), 4);
}

/// Made anew by `PINFOLD_TEST_DRAW=1 cargo test --test choosing pictures`.
#[test]
fn pictures_are_what_they_were() {
    let hour = BEGIN + 10 * 3600..=BEGIN + 11 * 3600;
    for (file, picture) in [
        ("docs/topology.svg", readme().picture()),
        ("tests/pictures/8-cpus.svg", small().picture()),
        ("tests/pictures/usage.svg", usage(&day(), &hour)),
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        if std::env::var_os("PINFOLD_TEST_DRAW").is_some() {
            std::fs::write(&path, &picture).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(
            kept == picture,
            "{file} is not what is drawn now: make it anew, and look at it"
        );
    }
}

/// 2026-01-01, in seconds since the epoch.
const BEGIN: i64 = 1_767_225_600;

/// A day of a machine, as the log of usage tells it: what runs for long, and many that are short.
fn day() -> Vec<Span<'static>> {
    const HOUR: i64 = 3600;
    let span = |pool, start, end, used, noise| Span {
        pool,
        start,
        end,
        used,
        noise,
    };
    let at = |hours: i64| BEGIN + hours * HOUR;
    let mut spans = vec![
        span("dataplane", at(0), at(20), 120_000.0, 900.0),
        span("dataplane", at(5), at(11), 41_000.0, 3_000.0),
        span("realtime", at(2), at(24), 30_000.0, 0.0),
        span("common", at(7), at(9), 9_000.0, 14_000.0),
    ];
    for minute in 0..300 {
        let start = at(10) + minute * 120;
        spans.push(span("batch", start, start + 90, 60.0 + minute as f64, 7.0));
    }
    spans
}

#[test]
fn usage_over_time_can_be_read() {
    let day = day();
    let many: Vec<String> = (0..12)
        .map(|number| format!("pool-{number}{HOSTILE}"))
        .collect();
    let many = many.iter().zip(1..).map(|(pool, number)| Span {
        pool,
        start: BEGIN + number * 86_400 * 20,
        end: BEGIN + number * 86_400 * 40,
        used: f64::MAX * number as f64,
        noise: -1.0,
    });
    let charts = [
        ("day", usage(&day, &(BEGIN..=BEGIN + 86_400))),
        ("hour", usage(&day, &(BEGIN + 36_000..=BEGIN + 39_600))),
        ("none", usage(&[], &(BEGIN..=BEGIN))),
        (
            "odd",
            usage(&many.collect::<Vec<_>>(), &(BEGIN..=BEGIN + 86_400 * 400)),
        ),
    ];
    for (name, picture) in charts {
        let texts = readable(name, &picture);
        let has = |shown: &str| texts.iter().any(|text| text.text == shown);
        // An hour of two owners, and the five minutes after it of one.
        assert_eq!(has("13.3k CPU seconds"), name == "hour", "{name}");
        assert!(has("0"), "{name}");
    }
}
