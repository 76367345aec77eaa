//! Draws what owners used, and the noise on their CPUs, over time.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::layout::GAP;
use super::machine::{LINE, MARGIN};
use super::pools::names;
use super::style::{HEADING, PoolStyle, SMALL, letters};
use super::svg::{Rect, Svg, width};
use super::time::{Periods, minute};

/// What one owner did from its start to its end; both are in seconds since the epoch.
#[derive(Debug, Clone, PartialEq)]
pub struct Span<'a> {
    /// Its pool.
    pub pool: &'a str,
    /// When it was given its CPUs.
    pub start: i64,
    /// When they were free again.
    pub end: i64,
    /// The CPU time that it used, in seconds.
    pub used: f64,
    /// The CPU time that others used on its CPUs meanwhile, in seconds.
    pub noise: f64,
}

/// The width of the charts, in pixels.
const WIDTH: i32 = 840;
/// The height of the chart of what owners used.
const USED: i32 = 220;
/// The height of the chart of noise.
const NOISE: i32 = 90;
/// The width of the numbers beside the charts.
const SCALE: i32 = 56;
/// The least width and height of a part of a column that has room for letters.
const ROOM: (i32, i32) = (9, 12);
/// No machine has used so many CPU seconds: a larger number is wrong, and is shown as this one.
const MOST_SECONDS: f64 = 1e15;

/// Draws this time (in seconds since the epoch) as SVG. What an owner used, and the noise on its
/// CPUs, is divided evenly over the time for which it had them.
pub fn usage(spans: &[Span<'_>], time: &RangeInclusive<i64>) -> String {
    let periods = Periods::of(*time.start(), *time.end());
    let sums = PeriodSums::of(spans, &periods);
    let each = periods.each();
    let (x, mut y) = (MARGIN, MARGIN + HEADING);
    let mut svg = Svg::default();
    let heading = format!("{} to {}", minute(*time.start()), minute(*time.end()));
    svg.text("heading", (x, y), &heading);
    y += GAP;
    let entry = |(pool, of_pool): (&&str, &Vec<f64>)| {
        let total = amount(of_pool.iter().sum());
        ((*pool).to_owned(), format!("{total} CPU seconds"))
    };
    let entries: Vec<(String, String)> = sums.used.iter().map(entry).collect();
    y = names(&mut svg, &entries, (x, y), SCALE + WIDTH);
    let about = match entries.is_empty() {
        true => "Nobody who owned CPUs ended in that time.".to_owned(),
        false => format!(
            "Of owners that ended, CPU seconds {each}. \
             What one used is divided evenly over its time."
        ),
    };
    svg.text("small muted", (x, y + SMALL), &about);
    y += LINE + GAP;
    let used: Vec<&Vec<f64>> = sums.used.values().collect();
    let pools: Vec<&str> = sums.used.keys().copied().collect();
    let chart = Chart {
        periods: &periods,
        x: x + SCALE,
        y,
        height: USED,
    };
    chart.draw(&mut svg, &used, |svg, place, index, rect| {
        let seconds = amount(used[place][index as usize]);
        let when = minute(periods.start(index));
        let title = format!("{when}, pool {}: {seconds} CPU seconds", pools[place]);
        svg.group(&title, |svg| stack(svg, place, rect));
    });
    y += USED + LINE + 2 * GAP;
    let about = format!("Noise: CPU seconds of others on the CPUs of these owners, {each}.");
    svg.text("small muted", (x, y + SMALL), &about);
    y += LINE + GAP;
    let chart = Chart {
        y,
        height: NOISE,
        ..chart
    };
    chart.draw(&mut svg, &[&sums.noise], |svg, _, index, rect| {
        let seconds = amount(sums.noise[index as usize]);
        let title = format!("{}: {seconds} CPU seconds", minute(periods.start(index)));
        svg.group(&title, |svg| svg.rect("noise", rect));
    });
    y += NOISE + LINE;
    let size = (SCALE + WIDTH + 2 * MARGIN, y + MARGIN);
    svg.into_file(size, &format!("CPU time used, {heading}"), &sums.about())
}

/// Draws a pool's part of a column.
fn stack(svg: &mut Svg, place: usize, rect: Rect) {
    let look = PoolStyle::of(place);
    svg.rect(format_args!("cpu {}", look.fill), rect);
    if let Some(stripes) = look.stripes {
        svg.rect(stripes, rect);
    }
    let letters = letters(place);
    let wide = width(&letters, SMALL);
    if rect.width >= wide.max(ROOM.0) && rect.height >= ROOM.1 {
        let x = rect.x + (rect.width - wide) / 2;
        let y = rect.y + (rect.height + SMALL) / 2 - 1;
        svg.text(format_args!("{} small strong", look.ink), (x, y), &letters);
    }
}

/// CPU seconds of each period.
#[derive(Debug)]
struct PeriodSums<'a> {
    /// By pool.
    used: BTreeMap<&'a str, Vec<f64>>,
    noise: Vec<f64>,
}

impl<'a> PeriodSums<'a> {
    fn of(spans: &[Span<'a>], periods: &Periods) -> PeriodSums<'a> {
        let none = vec![0.0; usize::try_from(periods.count).unwrap_or_default()];
        let mut sums = PeriodSums {
            used: BTreeMap::new(),
            noise: none.clone(),
        };
        for span in spans {
            let time = (span.start, span.end);
            let of_pool = sums.used.entry(span.pool).or_insert_with(|| none.clone());
            periods.spread(time, seconds(span.used), of_pool);
            periods.spread(time, seconds(span.noise), &mut sums.noise);
        }
        sums
    }

    /// Describes the picture in words.
    fn about(&self) -> String {
        let mut about = String::new();
        for (pool, of_pool) in &self.used {
            let total = amount(of_pool.iter().sum());
            about.push_str(&format!("Pool {pool}: {total} CPU seconds. "));
        }
        about + &format!("Noise: {} CPU seconds.", amount(self.noise.iter().sum()))
    }
}

/// Makes a number of seconds of what a file says: from 0 to [`MOST_SECONDS`].
fn seconds(told: f64) -> f64 {
    match told.is_finite() {
        true => told.clamp(0.0, MOST_SECONDS),
        false => 0.0,
    }
}

/// A chart of columns over time, with a scale beside them.
#[derive(Debug, Clone, Copy)]
struct Chart<'a> {
    periods: &'a Periods,
    x: i32,
    y: i32,
    height: i32,
}

impl Chart<'_> {
    /// Draws the chart. The layers' parts of a column stand on each other, and `part` draws one of
    /// them: of this layer, in this period.
    fn draw(&self, svg: &mut Svg, layers: &[&Vec<f64>], part: impl Fn(&mut Svg, usize, i64, Rect)) {
        let count = self.periods.count;
        let sum = |index: i64| {
            layers
                .iter()
                .map(|layer| layer[index as usize])
                .sum::<f64>()
        };
        let most = (0..count).map(sum).fold(0.0, f64::max);
        let (step, steps) = scale(most);
        let top = step * f64::from(steps);
        for index in 0..=steps {
            let y = self.y + self.height - self.height * index / steps;
            svg.line("grid", (self.x, y), (self.x + WIDTH, y));
            let number = amount(step * f64::from(index));
            svg.text("small muted end", (self.x - 6, y + 4), &number);
        }
        let wide = WIDTH / i32::try_from(count).unwrap_or(1).max(1);
        let base = self.y + self.height;
        let x = |index: i64| self.x + i32::try_from(index).unwrap_or_default() * wide;
        for index in 0..count {
            let mut below = 0.0;
            let pixels = |amount: f64| (f64::from(self.height) * amount / top).round() as i32;
            for (place, layer) in layers.iter().enumerate() {
                let above = below + layer[index as usize];
                let (low, high) = (pixels(below), pixels(above));
                below = above;
                if high > low {
                    let rect = Rect {
                        x: x(index) + 1,
                        y: base - high,
                        width: (wide - 2).max(1),
                        height: high - low,
                    };
                    part(svg, place, index, rect);
                }
            }
        }
        let name = width("00:00", SMALL) + GAP;
        for (index, name) in self.periods.named(wide, name) {
            svg.line("grid", (x(index), base), (x(index), base + 4));
            svg.text("small muted", (x(index), base + SMALL + 4), &name);
        }
    }
}

/// The distance between the lines of a scale up to `most`, and their number above 0.
fn scale(most: f64) -> (f64, i32) {
    // A shorter scale would show two numbers alike.
    let most = most.max(0.04);
    let power = 10f64.powf((most / 4.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    let step = steps.into_iter().find(|step| step * 4.0 >= most);
    let step = step.unwrap_or(most / 4.0);
    (step, (most / step).ceil().max(1.0) as i32)
}

/// A number of seconds with few digits, because there is little room: `0.25`, `1.5`, `120`, `12k`,
/// `3.5M`.
fn amount(seconds: f64) -> String {
    let (number, unit) = match seconds {
        _ if seconds >= 999_500_000.0 => (seconds / 1e9, "G"),
        _ if seconds >= 999_500.0 => (seconds / 1e6, "M"),
        _ if seconds >= 9_999.5 => (seconds / 1e3, "k"),
        _ => (seconds, ""),
    };
    let text = match number {
        _ if number >= 99.95 || number == 0.0 => format!("{number:.0}"),
        _ if number >= 9.995 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    };
    match text.contains('.') {
        true => format!("{}{unit}", text.trim_end_matches('0').trim_end_matches('.')),
        false => format!("{text}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (seconds, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.5, "1.5"),
            (20.0, "20"),
            (123.4, "123"),
            (12_000.0, "12k"),
            (3_500_000.0, "3.5M"),
            (2e9, "2G"),
        ] {
            assert_eq!(amount(seconds), text);
        }
    }

    #[test]
    fn a_scale_has_a_few_round_steps() {
        for (most, step, steps) in [
            (0.0, 0.01, 4),
            (7.0, 2.0, 4),
            (40.0, 10.0, 4),
            (41.0, 20.0, 3),
            (100.0, 50.0, 2),
        ] {
            let (found, count) = scale(most);
            assert!(
                (found - step).abs() < 1e-9 && count == steps,
                "{most}: {found} {count}"
            );
        }
        assert!(scale(MOST_SECONDS * 1e6).1 <= 4);
    }
}
