//! The results of `workloads` as pictures.

use std::collections::BTreeMap;
use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::suite::{Measure, Results, Row};

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const COLORS: [RGBColor; 8] = [
    RGBColor(200, 30, 30),
    RGBColor(120, 120, 120),
    RGBColor(30, 90, 180),
    RGBColor(20, 140, 60),
    RGBColor(130, 200, 60),
    RGBColor(220, 140, 20),
    RGBColor(130, 60, 160),
    RGBColor(0, 160, 170),
];

/// Pictures as SVG, each with what it is of.
pub fn pictures(results: &Results) -> Result<Vec<(&'static str, String)>, String> {
    let mut pictures = Vec::new();
    for (kind, key, title) in [
        ("time", "ms", "Time, over that of the fastest"),
        ("peak", "peak_kib", "Peak RSS, over the least"),
        ("rest", "rest_kib", "RSS after the work and a second of rest, over the least"),
    ] {
        let measure = results.measures.iter().find(|measure| measure.key == key).expect("workloads have all of these");
        pictures.push((kind, dots(results, measure, title).map_err(|error| error.to_string())?));
    }
    let families = families(results);
    if !families.is_empty() {
        pictures.push(("scaling", scaling(results, &families).map_err(|error| error.to_string())?));
    }
    Ok(pictures)
}

fn font(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// The names of the allocators with their colours, in a line.
fn legend(area: &Area, allocators: &[&str], (mut x, y): (i32, i32)) -> Result<(), Box<dyn Error>> {
    for (name, color) in allocators.iter().zip(COLORS) {
        area.draw(&Circle::new((x, y), 5, color.filled()))?;
        area.draw(&Text::new(name.to_string(), (x + 10, y - 6), font(14)))?;
        x += 34 + 8 * name.len() as i32;
    }
    Ok(())
}

/// A line for each row, a dot on it for each allocator: how many times the least of the row it takes.
fn dots(results: &Results, measure: &Measure, title: &str) -> Result<String, Box<dyn Error>> {
    const LINE: i32 = 19;
    const TOP: i32 = 84;
    const LEFT: i32 = 170;
    const WIDTH: i32 = 1000;
    /// What is further to the right is drawn there.
    const MOST: f64 = 8.0;
    let bottom = TOP + LINE * results.rows.len() as i32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, (bottom + 34) as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        area.draw(&Text::new(title.to_string(), (LEFT, 10), font(18)))?;
        legend(&area, &results.allocators, (LEFT + 6, 48))?;
        let x = |ratio: f64| LEFT + (ratio.min(MOST).ln() / MOST.ln() * f64::from(WIDTH - LEFT - 40)) as i32;
        for mark in [1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, MOST] {
            area.draw(&PathElement::new([(x(mark), TOP - 8), (x(mark), bottom)], RGBColor(215, 215, 215)))?;
            let more = if mark == MOST { "+" } else { "" };
            area.draw(&Text::new(format!("{mark}{more}"), (x(mark) - 8, bottom + 6), font(13)))?;
        }
        for (number, row) in results.rows.iter().enumerate() {
            let y = TOP + LINE * number as i32 + LINE / 2;
            if number % 2 == 0 {
                let band = Rectangle::new(
                    [(0, y - LINE / 2), (WIDTH, y + LINE / 2 + 1)],
                    RGBColor(0, 0, 0).mix(0.035).filled(),
                );
                area.draw(&band)?;
            }
            area.draw(&Text::new(row.name.clone(), (12, y - 5), font(14)))?;
            let numbers: Vec<Option<f64>> =
                (0..results.allocators.len()).map(|n| results.median(row, n, measure)).collect();
            let least = numbers.iter().flatten().copied().fold(f64::INFINITY, f64::min);
            // Ours last, on top.
            for (n, number) in numbers.iter().enumerate().rev() {
                if let Some(number) = number.filter(|_| least > 0.0) {
                    let size = if n == 0 { 6 } else { 4 };
                    area.draw(&Circle::new((x(number / least), y), size, COLORS[n % COLORS.len()].filled()))?;
                }
            }
        }
        area.present()?;
    }
    Ok(svg)
}

/// Rows whose names end in a number of threads, as `larson_4t`, by what is before it; those that have three or more.
fn families(results: &Results) -> BTreeMap<&str, Vec<(u32, &Row)>> {
    let mut families: BTreeMap<&str, Vec<(u32, &Row)>> = BTreeMap::new();
    for row in &results.rows {
        let parts = row.name.rsplit_once('_');
        let threads = parts.and_then(|(name, threads)| Some((name, threads.strip_suffix('t')?.parse().ok()?)));
        if let Some((name, threads)) = threads {
            families.entry(name).or_default().push((threads, row));
        }
    }
    families.retain(|_, rows| rows.len() >= 3);
    families
}

/// The time of each family by the number of threads, the work being the same.
fn scaling(results: &Results, families: &BTreeMap<&str, Vec<(u32, &Row)>>) -> Result<String, Box<dyn Error>> {
    let measure = results.measures.iter().find(|measure| measure.key == "ms").expect("workloads have a time");
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (1000, 470)).into_drawing_area();
        root.fill(&WHITE)?;
        legend(&root, &results.allocators, (70, 18))?;
        let (_, below) = root.split_vertically(34);
        let panels = below.split_evenly((1, families.len()));
        for ((name, rows), panel) in families.iter().zip(panels) {
            let curve = |n: usize| -> Vec<(f64, f64)> {
                let point =
                    |(threads, row): &(u32, &Row)| Some((f64::from(*threads), results.median(row, n, measure)?));
                rows.iter().filter_map(point).collect()
            };
            let most = rows.iter().map(|(threads, _)| f64::from(*threads)).fold(1.0, f64::max);
            let curves: Vec<_> = (0..results.allocators.len()).map(curve).collect();
            let top = curves.iter().flatten().map(|point| point.1).fold(0.0, f64::max) * 1.08;
            let mut chart = ChartBuilder::on(&panel)
                .margin(12)
                .x_label_area_size(36)
                .y_label_area_size(56)
                .caption(format!("{name}: the same work on more threads"), font(16))
                .build_cartesian_2d((1.0..most * 1.05).log_scale().base(2.0), 0.0..top)?;
            chart
                .configure_mesh()
                .x_desc("threads")
                .y_desc("ms")
                .disable_x_mesh()
                .light_line_style(WHITE)
                .bold_line_style(RGBColor(230, 230, 230))
                .x_label_formatter(&|threads| format!("{threads:.0}"))
                .y_label_formatter(&|ms| format!("{ms:.0}"))
                .draw()?;
            for (n, points) in curves.iter().enumerate().rev() {
                let color = COLORS[n % COLORS.len()];
                let style = color.stroke_width(if n == 0 { 3 } else { 2 });
                chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
                chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
            }
        }
        root.present()?;
    }
    Ok(svg)
}
