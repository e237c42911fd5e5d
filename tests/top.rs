//! The pages of `examples/top`, drawn without a terminal, from this process's figures and from those of another.
#![cfg(not(any(miri, pcpalloc_twin)))]

#[path = "../examples/top/source.rs"]
mod source;
#[path = "../examples/top/view.rs"]
mod view;

use std::io::{Read, Write};
use std::net::TcpListener;

use pcpalloc::tag::Tag;
use pcpalloc::{PcpAlloc, rcu};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use source::Source;
use view::{Tab, View};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::new();

/// The screen's rows.
fn draw(view: &mut View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen");
    terminal.draw(|frame| view.draw(frame)).expect("it is drawn");
    let cells = terminal.backend().buffer().content();
    let row = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect::<String>();
    cells.chunks(width as usize).map(row).collect()
}

/// The words of the row that begins with this one, after it.
fn row(screen: &[String], first: &str) -> Vec<String> {
    let found = screen.iter().find_map(|row| row.strip_prefix(first)?.strip_prefix(' '));
    let row = found.unwrap_or_else(|| panic!("a row {first} in {screen:#?}"));
    row.split_whitespace().map(String::from).collect()
}

/// What is on each page is what the heap says.
///
/// Red if one of the metrics looked at here is asked for by a name that there is not: its figures are then 0.
#[test]
fn pages_show_what_the_heap_says() {
    static TAG: Tag = Tag::new("shown");
    // A class that nothing else uses, and other traffic.
    let held: Vec<Box<[u8; 30_000]>> = (0..40).map(|_| Box::new([1; 30_000])).collect();
    let tagged = allocator_api2::vec::Vec::<u8, &Tag>::with_capacity_in(3 << 20, &TAG);
    GLOBAL.set_latency(true);
    let before = Source::Own.figures().expect("figures");
    (0..3000u64).for_each(|n| rcu::retire(Box::new([n; 8])));
    rcu::synchronize();
    rcu::barrier();
    GLOBAL.drain(pcpalloc::Drain::All);
    let section = rcu::read_lock();
    (0..3000u64).for_each(|n| rcu::retire(Box::new([n; 8])));
    let now = Source::Own.figures().expect("figures");
    drop(section);
    let mut view = View::new("a test", before, now);
    for tab in Tab::ALL {
        assert_eq!(view.tab, tab);
        let screen = draw(&mut view, 110, 130);
        assert!(screen[0].starts_with("pcpalloc  a test") && screen[1].starts_with("resident "), "{screen:#?}");
        assert!(screen[2].starts_with('█'), "{screen:#?}");
        let numbers = |first| -> Vec<f64> {
            row(&screen, first).iter().filter_map(|word| word.trim_end_matches("/s").parse().ok()).collect()
        };
        match tab {
            Tab::Zones => {
                let zone = numbers("0");
                assert!(zone[0] >= zone[1] && zone[1] >= zone[2] && zone[2] >= zone[3] && zone[1] > 1.0, "{zone:?}");
                assert!(numbers("mark high")[0] >= 32.0);
            }
            Tab::Classes => {
                // Active, free, slabs, MiB.
                let class = numbers("30720");
                assert!(class[0] >= 40.0 && class[2] >= 1.0 && class[3] > 1.0, "{class:?}");
            }
            Tab::Cpus => assert!(screen.iter().any(|row| row.contains("empty/s"))),
            Tab::Rcu => {
                assert!(numbers("waiting")[0] >= 2000.0, "{screen:#?}");
                assert!(numbers("marks")[0] > 0.0 && numbers("grace periods")[0] >= 1.0, "{screen:#?}");
                assert!(numbers("called")[1] + numbers("freed")[1] > 0.0, "{screen:#?}");
            }
            Tab::Tags => assert_eq!(row(&screen, "shown")[..2], ["3.00", "1"], "{screen:#?}"),
            Tab::Latency => assert!(numbers("grace_period")[0] >= 1.0, "{screen:#?}"),
        }
        view.turn(1);
    }
    assert_eq!(view.tab, Tab::Zones);
    // Newer figures: what the pages showed is what rates are reckoned from.
    view.update(Source::Own.figures().expect("figures"));
    view.tab = Tab::Rcu;
    let screen = draw(&mut view, 110, 130);
    let called: Vec<f64> =
        row(&screen, "called").iter().filter_map(|word| word.trim_end_matches("/s").parse().ok()).collect();
    assert_eq!(called.len(), 2, "{screen:#?}");
    assert!(screen[4].starts_with(['█', '▇', '▆', ' ']), "{screen:#?}");
    view.tab = Tab::Zones;
    // A screen too small for it is no reason to give up.
    for (width, height) in [(1, 1), (20, 5), (80, 24)] {
        Tab::ALL.iter().for_each(|_| {
            draw(&mut view, width, height);
            view.turn(1);
        });
    }
    drop((held, tagged));
}

/// The heap has every metric that the pages ask for by its name.
///
/// Red if one is renamed, in `src/prometheus.rs` or in the page.
#[test]
fn pages_ask_for_metrics_that_there_are() {
    static TAG: Tag = Tag::new("asked for");
    let tagged = allocator_api2::vec::Vec::<u8, &Tag>::with_capacity_in(1, &TAG);
    let figures = Source::Own.figures().expect("figures");
    let is_name = |text: &str| text.contains('_') && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    let names = include_str!("../examples/top/view.rs").split('"').skip(1).step_by(2).filter(|text| is_name(text));
    // A limit is not set; of zones a part of the name is said.
    let (mut found, others) = (0, ["limit_bytes", "free_resident"]);
    for name in names.filter(|name| !others.contains(name)) {
        assert!(figures.has(name), "there is no {name}");
        found += 1;
    }
    assert!(found > 30, "{found} names");
    drop(tagged);
}

/// Another process's figures, by HTTP; and what is said when they are not to be had.
#[test]
fn another_process_is_seen_by_its_page() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    let page = "# TYPE pcpalloc_in_use_bytes gauge\npcpalloc_in_use_bytes 3145728\n\
                # TYPE pcpalloc_resident_bytes gauge\npcpalloc_resident_bytes 4194304\n";
    let server = std::thread::spawn(move || {
        let foreign = "# TYPE go_goroutines gauge\ngo_goroutines 8\n";
        for (status, page) in [("200 OK", page), ("200 OK", page), ("404 Not Found", page), ("200 OK", foreign)] {
            let (mut stream, _) = listener.accept().expect("a request");
            let asked = stream.read(&mut [0; 4096]).expect("a request");
            assert!(asked > 0);
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", page.len());
            stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(page.as_bytes())).expect("it listens");
        }
    });
    let source = Source::Url(format!("http://{address}/metrics"));
    let mut view = View::new(source.name(), source.figures().expect("figures"), source.figures().expect("figures"));
    let screen = draw(&mut view, 100, 30);
    assert!(screen[1].starts_with("resident 4.0 MiB = in use 3.0 + cached 0.0"), "{screen:#?}");
    let problem = source.figures().err().expect("there is no such page");
    assert!(problem.contains("404"), "{problem}");
    view.problem = Some(problem);
    assert!(draw(&mut view, 100, 30)[29].contains("404"));
    let problem = source.figures().err().expect("another program's metrics");
    assert!(problem.ends_with("no figures of pcpalloc"), "{problem}");
    server.join().expect("it has answered");
    assert!(source.figures().is_err());
}
