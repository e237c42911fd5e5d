//! A live view of a heap in a terminal: zones, size classes, CPUs, grace periods, tags.
//!
//! ```text
//! cargo run --release --example top                                          this process, under a load of its own
//! cargo run --release --example top -- http://127.0.0.1:9180/metrics         another one, by its metrics
//! cargo run --release --example top -- --once                                every page as text, without a terminal
//! ```
//!
//! A heap lives in its process, so another one's is seen by the page on which that process has its metrics, as
//! `--example metrics` does. What a CPU's stacks serve is not counted anywhere, being two dozen instructions; `empty/s`
//! and `full/s` are the operations that they did not serve.

#[path = "../metrics/load.rs"]
mod load;
mod source;
mod view;

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pcpalloc::{Config, PcpAlloc};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind};
use source::Source;
use view::{Tab, View};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().latency(true));

/// How often figures are asked for.
const EVERY: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let (mut source, mut once) = (Source::Own, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--once" => once = true,
            url if url.starts_with("http://") => source = Source::Url(url.to_string()),
            _ => {
                eprintln!("usage: top [--once] [http://HOST:PORT/metrics]");
                return ExitCode::FAILURE;
            }
        }
    }
    if let Err(error) = run(&source, once) {
        eprintln!("top: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(source: &Source, once: bool) -> Result<(), Box<dyn Error>> {
    if let Source::Own = source {
        load::start();
    }
    let before = source.figures()?;
    std::thread::sleep(EVERY);
    let mut view = View::new(source.name(), before, source.figures()?);
    if once {
        return print(&mut view);
    }
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err("this is not a terminal; --once prints every page as text".into());
    }
    let mut terminal = ratatui::try_init()?;
    let result = interact(&mut view, source, &mut terminal);
    ratatui::restore();
    result
}

fn interact(view: &mut View, source: &Source, terminal: &mut ratatui::DefaultTerminal) -> Result<(), Box<dyn Error>> {
    let mut looked = Instant::now();
    loop {
        terminal.draw(|frame| view.draw(frame))?;
        if event::poll(EVERY.saturating_sub(looked.elapsed()))?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(()),
                KeyCode::Tab | KeyCode::Right => view.turn(1),
                KeyCode::BackTab | KeyCode::Left => view.turn(Tab::ALL.len() - 1),
                KeyCode::Down => view.selected.select_next(),
                KeyCode::Up => view.selected.select_previous(),
                KeyCode::Char(' ') => view.paused = !view.paused,
                _ => {}
            }
        }
        if looked.elapsed() >= EVERY {
            looked = Instant::now();
            if !view.paused {
                match source.figures() {
                    Ok(figures) => {
                        view.problem = None;
                        view.update(figures);
                    }
                    Err(problem) => view.problem = Some(problem),
                }
            }
        }
    }
}

/// Every page, with all its rows, under its name.
fn print(view: &mut View) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let mut terminal = Terminal::new(TestBackend::new(100, 140))?;
    for _ in Tab::ALL {
        terminal.draw(|frame| view.draw(frame))?;
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(buffer.area.width as usize);
        let mut rows: Vec<String> = rows.map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect();
        // The last one says which keys there are.
        rows.pop();
        rows.truncate(rows.iter().rposition(|row| !row.trim().is_empty()).map_or(0, |last| last + 1));
        writeln!(out, "--- {} {}", view.tab.name(), "-".repeat(95 - view.tab.name().chars().count()))?;
        rows.iter().try_for_each(|row| writeln!(out, "{}", row.trim_end()))?;
        writeln!(out)?;
        view.turn(1);
    }
    Ok(())
}
