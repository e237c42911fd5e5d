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

/// Every page, as it would be on a screen of 100 by 32.
fn print(view: &mut View) -> Result<(), Box<dyn Error>> {
    let mut terminal = Terminal::new(TestBackend::new(100, 32))?;
    for _ in Tab::ALL {
        terminal.draw(|frame| view.draw(frame))?;
        let buffer = terminal.backend().buffer();
        for row in buffer.content().chunks(buffer.area.width as usize) {
            println!("{}", row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end());
        }
        view.turn(1);
    }
    Ok(())
}
