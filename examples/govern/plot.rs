//! The picture.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

/// One run: seconds and MiB.
#[derive(Default)]
pub struct Curve {
    pub name: String,
    pub resident: Vec<(f64, f64)>,
    pub live: Vec<(f64, f64)>,
    pub events: Vec<(f64, String)>,
}

impl Curve {
    /// The most that was resident, and what was in the end.
    pub fn summary(&self) -> (f64, f64) {
        let most = self.resident.iter().map(|point| point.1).fold(0.0, f64::max);
        (most, self.resident.last().map_or(0.0, |point| point.1))
    }
}

const COLORS: [RGBColor; 7] = [
    RGBColor(200, 30, 30),
    RGBColor(110, 110, 110),
    RGBColor(30, 90, 180),
    RGBColor(20, 140, 60),
    RGBColor(220, 140, 20),
    RGBColor(130, 60, 160),
    RGBColor(0, 150, 160),
];

/// All curves on one axis; what is live in the first run as an area behind them, and its events as lines across.
pub fn draw(to: &Path, curves: &[Curve]) -> Result<(), Box<dyn Error>> {
    let first = curves.first().ok_or("nothing to draw")?;
    let end = curves.iter().filter_map(|curve| curve.resident.last()).map(|point| point.0).fold(1.0, f64::max);
    let top = curves.iter().map(|curve| curve.summary().0).fold(1.0, f64::max) * 1.18;
    let root = SVGBackend::new(to, (1000, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(54)
        .caption("A service that bursts and rests: resident memory", ("sans-serif", 18))
        .build_cartesian_2d(0.0..end, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("seconds")
        .y_desc("MiB")
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(230, 230, 230))
        .x_label_formatter(&|seconds| format!("{seconds:.0}"))
        .y_label_formatter(&|mib| format!("{mib:.0}"))
        .draw()?;
    let shade = RGBColor(225, 228, 235);
    chart
        .draw_series(AreaSeries::new(first.live.iter().copied(), 0.0, shade))?
        .label("live")
        .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], shade.filled()));
    // Ours last, on top.
    for (curve, color) in curves.iter().zip(COLORS).rev() {
        let style = color.stroke_width(if std::ptr::eq(curve, first) { 3 } else { 2 });
        chart
            .draw_series(LineSeries::new(curve.resident.iter().copied(), style))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    for (n, (at, text)) in first.events.iter().enumerate() {
        let height = top * (0.97 - 0.045 * (n % 2) as f64);
        chart.draw_series([PathElement::new([(*at, 0.0), (*at, height)], COLORS[0].mix(0.5))])?;
        // The last ones are too near the edge for text to their right.
        let left = *at > end * 0.8;
        let offset = if left { -4 - 6 * text.len() as i32 } else { 4 };
        let label = EmptyElement::at((*at, height)) + Text::new(text.clone(), (offset, 0), ("sans-serif", 12));
        chart.draw_series([label])?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}
