//! What is on the screen.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, Table, TableState, Tabs};

use super::source::Figures;

const MIB: f64 = (1 << 20) as f64;
/// Figures kept for the curves.
const HISTORY: usize = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    Zones,
    Classes,
    Cpus,
    Rcu,
    Tags,
    Latency,
}

impl Tab {
    pub const ALL: [Tab; 6] = [Tab::Zones, Tab::Classes, Tab::Cpus, Tab::Rcu, Tab::Tags, Tab::Latency];

    pub fn name(self) -> &'static str {
        match self {
            Tab::Zones => "zones",
            Tab::Classes => "classes",
            Tab::Cpus => "CPUs",
            Tab::Rcu => "grace periods",
            Tab::Tags => "tags",
            Tab::Latency => "latency",
        }
    }
}

pub struct View {
    pub tab: Tab,
    pub selected: TableState,
    pub source: String,
    pub paused: bool,
    /// What went wrong when figures were last asked for.
    pub problem: Option<String>,
    now: Figures,
    before: Figures,
    in_use: VecDeque<u64>,
    pending: VecDeque<u64>,
}

impl View {
    pub fn new(source: &str, before: Figures, now: Figures) -> View {
        let (in_use, pending) = (VecDeque::new(), VecDeque::new());
        let selected = TableState::default().with_selected(0);
        let source = source.to_string();
        let mut view =
            View { tab: Tab::Zones, selected, source, paused: false, problem: None, now, before, in_use, pending };
        view.remember();
        view
    }

    pub fn update(&mut self, figures: Figures) {
        self.before = std::mem::replace(&mut self.now, figures);
        self.remember();
    }

    fn remember(&mut self) {
        for (curve, name) in [(&mut self.in_use, "in_use_bytes"), (&mut self.pending, "rcu_pending_bytes")] {
            curve.push_front(self.now.get(name, None) as u64 >> 10);
            curve.truncate(HISTORY);
        }
    }

    /// Goes so many tabs on.
    pub fn turn(&mut self, by: usize) {
        self.tab = Tab::ALL[(self.tab as usize + by) % Tab::ALL.len()];
        self.selected.select(Some(0));
    }

    fn get(&self, name: &str) -> f64 {
        self.now.get(name, None)
    }

    fn rate(&self, name: &str, label: Option<&str>) -> f64 {
        self.now.rate(&self.before, name, label)
    }

    pub fn draw(&mut self, frame: &mut Frame) {
        let [title, totals, bar, curve, tabs, table, keys] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Length(4),
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_totals(frame, title, totals, bar);
        let (name, data) = match self.tab {
            Tab::Rcu => ("deferred", &self.pending),
            _ => ("in use", &self.in_use),
        };
        let data = data.iter().copied().take(curve.width.into());
        let most = data.clone().max().unwrap_or(0) as f64 / 1024.0;
        let block =
            Block::new().title(format!("{name}, at most {most:.1} MiB here, the latest on the left")).style(FAINT);
        let curve_style = Style::new().fg(if self.tab == Tab::Rcu { Color::Magenta } else { Color::Blue });
        frame.render_widget(Sparkline::default().block(block).data(data).style(curve_style), curve);
        let titles = Tab::ALL.map(Tab::name);
        frame.render_widget(Tabs::new(titles).select(self.tab as usize).highlight_style(CHOSEN), tabs);
        let widget = self.table();
        frame.render_stateful_widget(widget.row_highlight_style(CHOSEN), table, &mut self.selected);
        let paused = if self.paused { "  PAUSED" } else { "" };
        let keys_line = match &self.problem {
            Some(problem) => Span::styled(problem.clone(), Style::new().fg(Color::Red)),
            None => Span::styled(format!("q quit   tab ←→ pages   ↑↓ rows   space pause{paused}"), FAINT),
        };
        frame.render_widget(Paragraph::new(keys_line), keys);
    }

    fn draw_totals(&self, frame: &mut Frame, title: Rect, totals: Rect, bar: Rect) {
        let heading = Span::styled(format!("pcpalloc  {}", self.source), Style::new().add_modifier(Modifier::BOLD));
        frame.render_widget(Paragraph::new(heading), title);
        let parts = [
            ("in use", "in_use_bytes", Color::Blue),
            ("cached", "percpu_cached_bytes", Color::Yellow),
            ("free", "free_resident_bytes", Color::Green),
            ("metadata", "metadata_bytes", Color::Gray),
        ];
        let resident = self.get("resident_bytes");
        let mut text = vec![Span::raw(format!("resident {:.1} MiB = ", resident / MIB))];
        let mut strip = Vec::new();
        for (n, (label, name, colour)) in parts.into_iter().enumerate() {
            let bytes = self.get(name);
            let style = Style::new().fg(colour);
            text.push(Span::raw(if n == 0 { "" } else { " + " }));
            text.push(Span::styled(format!("{label} {:.1}", bytes / MIB), style));
            let width = (bytes / resident.max(1.0) * bar.width as f64).round() as usize;
            strip.push(Span::styled("█".repeat(width), style));
        }
        frame.render_widget(Paragraph::new(Line::from(text)), totals);
        frame.render_widget(Paragraph::new(Line::from(strip)), bar);
    }

    fn table(&self) -> Table<'static> {
        match self.tab {
            Tab::Zones => self.zones(),
            Tab::Classes => self.classes(),
            Tab::Cpus => self.cpus(),
            Tab::Rcu => self.rcu(),
            Tab::Tags => self.tags(),
            Tab::Latency => self.latency(),
        }
    }

    fn zones(&self) -> Table<'static> {
        let mib = |name: &str, zone: &str| format!("{:.1}", self.now.get(name, Some(zone)) / MIB);
        let rows = self.now.labels("zone_spanned_bytes", "zone").into_iter().map(|zone| {
            let fields = ["spanned", "committed", "free", "free_resident"];
            let sizes = fields.map(|field| mib(&format!("zone_{field}_bytes"), &zone));
            std::iter::once(zone).chain(sizes).collect()
        });
        let mut rows: Vec<Vec<String>> = rows.collect();
        rows.push(vec![]);
        let mut line = |name: &str, value: String| rows.push(vec![name.to_string(), value]);
        for mark in ["min", "low", "high"] {
            line(&format!("mark {mark}"), format!("{:.1}", self.now.get("watermark_bytes", Some(mark)) / MIB));
        }
        if self.now.has("limit_bytes") {
            line("limit", format!("{:.1}", self.get("limit_bytes") / MIB));
        }
        line("mappings", format!("{}", self.get("mappings")));
        line("released MiB/s", format!("{:.1}", self.rate("released_bytes_total", None) / MIB));
        // Of what was released, what was wanted again within about a second.
        line("refaulted MiB/s", format!("{:.1}", self.rate("refaulted_bytes_total", None) / MIB));
        line("populated MiB/s", format!("{:.1}", self.rate("populated_bytes_total", None) / MIB));
        line("growths/s", format!("{:.1}", self.rate("zone_growths_total", None)));
        table(&["zone, MiB", "spanned", "committed", "free", "of it resident"], rows)
    }

    fn classes(&self) -> Table<'static> {
        let rows = self.now.labels("class_slabs", "size").into_iter().map(|size| {
            let of = |name: &str| self.now.get(name, Some(&size));
            let (active, free) = (of("class_active_blocks"), of("class_free_blocks"));
            let bytes = size.parse::<f64>().unwrap_or(0.0);
            vec![
                size.clone(),
                format!("{active}"),
                format!("{free}"),
                format!("{}", of("class_slabs")),
                format!("{:.2}", (active + free) * bytes / MIB),
                format!("{:.0} %", 100.0 * active / (active + free).max(1.0)),
                format!("{:+.0}", self.rate("class_active_blocks", Some(&size))),
            ]
        });
        table(&["size", "active", "free", "slabs", "MiB", "used", "active/s"], rows.collect())
    }

    fn cpus(&self) -> Table<'static> {
        let rows = self.now.labels("cpu_cached_bytes", "cpu").into_iter().map(|cpu| {
            let of = |name: &str| self.now.get(name, Some(&cpu));
            let rate = |name: &str| format!("{:.0}", self.rate(name, Some(&cpu)));
            vec![
                if cpu.is_empty() { "threads".to_string() } else { cpu.clone() },
                format!("{:.0}", of("cpu_cached_bytes") / 1024.0),
                format!("{}", of("cpu_cached_blocks")),
                format!("{}", of("cpu_capacity_blocks")),
                rate("cpu_refills_total"),
                rate("cpu_flushes_total"),
                rate("cpu_sent_home_total"),
                rate("cpu_drains_total"),
                rate("cpu_nolock_hits_total"),
                rate("cpu_nolock_misses_total"),
            ]
        });
        let headings = [
            "CPU",
            "cached KiB",
            "blocks",
            "room",
            "empty/s",
            "full/s",
            "home/s",
            "drains/s",
            "nolock/s",
            "nolock miss/s",
        ];
        table(&headings, rows.collect())
    }

    fn rcu(&self) -> Table<'static> {
        let mib = |value: f64| format!("{:.2} MiB", value / MIB);
        let mark = |mark| mib(self.now.get("rcu_watermark_bytes", Some(mark)));
        let rate = |name: &str| format!("{:.0}/s", self.rate(name, None));
        let row = |name: &str, first: String, second: String| vec![name.to_string(), first, second];
        let waiting = [
            row("waiting", format!("{} objects", self.get("rcu_pending")), mib(self.get("rcu_pending_bytes"))),
            row("marks", format!("low {}", mark("low")), format!("high {}", mark("high"))),
            row("pages of pointers", format!("{}", self.get("rcu_pages")), String::new()),
        ];
        let counted = [
            ("grace periods", "rcu_grace_periods_total"),
            ("expedited waits", "rcu_expedited_total"),
            ("freed", "rcu_freed_total"),
            ("called", "rcu_called_total"),
            ("waits at the high mark", "rcu_waits_total"),
            ("pages not at hand", "rcu_fallbacks_total"),
            ("chained by their heads", "rcu_chained_total"),
            ("stalls", "rcu_stalls_total"),
            ("lost", "rcu_leaked_total"),
        ];
        let counted = counted.map(|(text, name)| row(text, format!("{}", self.get(name)), rate(name)));
        table(&["default domain", "so far", "now"], waiting.into_iter().chain(counted).collect())
    }

    fn tags(&self) -> Table<'static> {
        let rows = self.now.labels("tag_bytes", "tag").into_iter().map(|tag| {
            vec![
                tag.clone(),
                format!("{:.2}", self.now.get("tag_bytes", Some(&tag)) / MIB),
                format!("{}", self.now.get("tag_blocks", Some(&tag))),
                format!("{:+.0}", self.rate("tag_blocks", Some(&tag))),
            ]
        });
        table(&["tag", "MiB", "blocks", "blocks/s"], rows.collect())
    }

    fn latency(&self) -> Table<'static> {
        let paths = pcpalloc::SlowPath::ALL.map(|path| path.name());
        let rows = paths.into_iter().filter_map(|path| {
            let buckets = self.now.histogram(path)?;
            let all = buckets.last()?.1;
            let before = self.before.histogram(path).and_then(|buckets| Some(buckets.last()?.1)).unwrap_or(0.0);
            let quantile = |q: f64| {
                let bound =
                    buckets.iter().find(|&&(_, count)| count >= all * q).map_or(f64::INFINITY, |bucket| bucket.0);
                format!("{:.1}", bound * 1e6)
            };
            let more = format!("{}", all - before);
            Some(vec![path.to_string(), format!("{all}"), more, quantile(0.5), quantile(0.99), quantile(0.999)])
        });
        let mut rows: Vec<Vec<String>> = rows.collect();
        if rows.is_empty() {
            rows.push(vec!["not measured: PCPALLOC_CONF=latency:on".to_string()]);
        }
        table(&["slow path", "times", "since the last look", "p50 µs ≤", "p99 µs ≤", "p99.9 µs ≤"], rows)
    }
}

const FAINT: Style = Style::new().fg(Color::DarkGray);
const CHOSEN: Style = Style::new().add_modifier(Modifier::REVERSED);

/// A table whose first column is text and whose others are numbers.
fn table(headings: &[&'static str], rows: Vec<Vec<String>>) -> Table<'static> {
    let widths: Vec<usize> = (0..headings.len())
        .map(|n| {
            let cells = rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count());
            cells.chain([headings[n].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let align = |n: usize, cell: &str| {
        let pad = widths[n].saturating_sub(cell.chars().count());
        Cell::new(if n == 0 { cell.to_string() } else { format!("{}{cell}", " ".repeat(pad)) })
    };
    let heading = Row::new(headings.iter().enumerate().map(|(n, text)| align(n, text))).style(FAINT);
    let constraints = widths.iter().map(|&width| Constraint::Length(width as u16));
    let body: Vec<Row> =
        rows.iter().map(|row| Row::new(row.iter().enumerate().map(|(n, cell)| align(n, cell)))).collect();
    Table::new(body, constraints.collect::<Vec<_>>()).header(heading).column_spacing(2)
}
