//! Two charts of the results: how the cost grows, and what a start takes.

use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

type Drawn = Result<(), Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (760, 380);
const OURS: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const END: RGBColor = RGBColor(0xd9, 0x7a, 0x1e);

/// Draws `growth.svg` and `starts.svg`.
pub(crate) fn draw(result: &Value, dir: &Path) {
    growth(result, &dir.join("growth.svg")).expect("draw growth");
    starts(result, &dir.join("starts.svg")).expect("draw starts");
}

/// System calls of a start and of an end over lists of the pool, and over claims on others.
fn growth(result: &Value, path: &Path) -> Drawn {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let halves = root.split_evenly((1, 2));
    for (area, what) in halves.iter().zip(["lists", "claims"]) {
        let all = result["growth"].as_array().into_iter().flatten();
        let rows: Vec<&Value> = all.filter(|one| one["what"] == what).collect();
        let points = |stage: &str| -> Vec<(f64, f64)> {
            let point = |one: &&Value| {
                // A logarithm has no 0.
                let x = one[what].as_f64()?.max(1.0);
                Some((x, one[stage]["instructions"].as_f64()? / 1000.0))
            };
            rows.iter().filter_map(point).collect()
        };
        let (start, end) = (points("createRuntime"), points("poststop"));
        let most = start
            .iter()
            .chain(&end)
            .map(|point| point.1)
            .fold(1.0, f64::max);
        let first = start.first().map_or(1.0, |point| point.0);
        let last = start.last().map_or(10.0, |point| point.0);
        let title = format!("thousand instructions over {what}");
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 16))
            .margin(10)
            .x_label_area_size(30)
            .y_label_area_size(55)
            .build_cartesian_2d((first..last).log_scale(), 0.0..most * 1.1)?;
        chart.configure_mesh().light_line_style(WHITE).draw()?;
        for (name, points, colour) in [("createRuntime", start, OURS), ("poststop", end, END)] {
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour));
        }
        let mut labels = chart.configure_series_labels();
        labels
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE)
            .draw()?;
    }
    root.present()?;
    Ok(())
}

/// The median of `run` in each way, a bar each.
fn starts(result: &Value, path: &Path) -> Drawn {
    let all = result["runtimes"].as_object().into_iter().flatten();
    let mut bars: Vec<(&str, f64)> = all
        .filter_map(|(name, one)| Some((name.as_str(), one["milliseconds"].as_f64()?)))
        .filter(|(name, _)| name.contains(" run: "))
        .collect();
    bars.sort_by(|a, b| {
        a.0.split(' ')
            .next()
            .cmp(&b.0.split(' ').next())
            .then(a.1.total_cmp(&b.1))
    });
    let most = bars.iter().map(|bar| bar.1).fold(1.0, f64::max);
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let count = i32::try_from(bars.len())?;
    let mut chart = ChartBuilder::on(&root)
        .caption("one start and its end, in milliseconds", ("sans-serif", 16))
        .margin(10)
        .margin_left(170)
        .x_label_area_size(30)
        .build_cartesian_2d(0.0..most * 1.12, 0..count)?;
    chart
        .configure_mesh()
        .disable_y_axis()
        .disable_y_mesh()
        .draw()?;
    for (row, (name, milliseconds)) in (0..).zip(bars.iter().rev()) {
        let colour = if name.starts_with("crun") { OURS } else { END };
        let bar = Rectangle::new(
            [(0.0, row), (*milliseconds, row + 1)],
            colour.mix(0.75).filled(),
        );
        chart.draw_series([bar])?;
        let edge = Rectangle::new(
            [(0.0, row), (*milliseconds, row + 1)],
            WHITE.stroke_width(3),
        );
        chart.draw_series([edge])?;
        let (_, top) = chart.backend_coord(&(0.0, row + 1));
        let (right, bottom) = chart.backend_coord(&(*milliseconds, row));
        let middle = (top + bottom) / 2 - 6;
        let font = ("sans-serif", 13).into_font();
        root.draw(&Text::new((*name).to_owned(), (10, middle), font.clone()))?;
        root.draw(&Text::new(
            format!("{milliseconds:.1}"),
            (right + 6, middle),
            font,
        ))?;
    }
    root.present()?;
    Ok(())
}
