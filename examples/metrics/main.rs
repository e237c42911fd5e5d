//! A small HTTP service that shows its own memory: `/metrics` for Prometheus, `/` for people.
//!
//! ```text
//! cargo run --release --example metrics [-- ADDRESS | --check]
//! ```
//!
//! The address is 127.0.0.1:9180 unless given. The service works in bursts and rests between them, so that there is
//! something to see; its parts have tags, and what slow paths take is measured. `--check` fetches both pages once over
//! HTTP, reads the figures with a parser of another crate, and ends.

mod load;

use std::error::Error;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use pcpalloc::{Config, PcpAlloc};
use prometheus_parse::{Scrape, Value};
use tiny_http::{Header, Request, Response, Server};

#[global_allocator]
static GLOBAL: PcpAlloc = PcpAlloc::with_config(Config::new().latency(true));

const ADDRESS: &str = "127.0.0.1:9180";

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let result = match argument.as_deref() {
        Some("--check") => check(),
        Some(option) if option.starts_with('-') => Err("usage: metrics [ADDRESS | --check]".into()),
        address => run(address.unwrap_or(ADDRESS)),
    };
    if let Err(error) = result {
        eprintln!("metrics: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn run(address: &str) -> Result<(), Box<dyn Error>> {
    let server = Server::http(address).map_err(|error| format!("{address}: {error}"))?;
    println!("http://{}/ and /metrics", server.server_addr());
    load::start();
    serve(&server);
    Ok(())
}

fn serve(server: &Server) {
    for request in server.incoming_requests() {
        // Whoever asked has gone: nothing to be done about it.
        let _ = answer(request);
    }
}

fn answer(request: Request) -> std::io::Result<()> {
    let (text, kind, status) = match request.url() {
        "/" => (include_str!("page.html").into(), "text/html; charset=utf-8", 200),
        "/metrics" => (metrics(), "text/plain; version=0.0.4; charset=utf-8", 200),
        _ => ("There are / and /metrics.\n".into(), "text/plain; charset=utf-8", 404),
    };
    let header = Header::from_bytes("Content-Type", kind).expect("a header");
    request.respond(Response::from_string(text).with_header(header).with_status_code(status))
}

/// The heap's figures, and what the kernel says is resident of the process.
fn metrics() -> String {
    let mut text = String::with_capacity(32 << 10);
    GLOBAL.write_prometheus(&mut text).expect("a string takes everything");
    if let Some(bytes) = resident() {
        text.push_str("# HELP process_resident_memory_bytes Resident memory size in bytes.\n");
        text.push_str("# TYPE process_resident_memory_bytes gauge\n");
        text.push_str(&format!("process_resident_memory_bytes {bytes}\n"));
    }
    text
}

fn resident() -> Option<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    // SAFETY: sysconf has no preconditions.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    Some(statm.split(' ').nth(1)?.parse::<usize>().ok()? * page)
}

/// Serves, and asks itself.
fn check() -> Result<(), Box<dyn Error>> {
    let server = Server::http("127.0.0.1:0").map_err(|error| error.to_string())?;
    let address = server.server_addr();
    load::start();
    thread::spawn(move || serve(&server));
    thread::sleep(Duration::from_millis(300));
    let page = minreq::get(format!("http://{address}/")).send()?;
    if page.status_code != 200 || !page.as_str()?.contains("<svg") && !page.as_str()?.contains("\"svg\"") {
        return Err("the page is not there".into());
    }
    let response = minreq::get(format!("http://{address}/metrics")).send()?;
    let text = response.as_str()?;
    let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_string())))?;
    let rows = text.lines().filter(|line| !line.starts_with('#')).count();
    let understood = scrape.samples.iter().map(|sample| match &sample.value {
        Value::Histogram(buckets) => buckets.len(),
        _ => 1,
    });
    let understood: usize = understood.sum();
    if understood != rows {
        return Err(format!("{rows} rows are written and {understood} understood").into());
    }
    for name in ["pcpalloc_in_use_bytes", "pcpalloc_resident_bytes", "process_resident_memory_bytes"] {
        let sample = scrape.samples.iter().find(|sample| sample.metric == name).ok_or_else(|| name.to_string())?;
        match sample.value {
            Value::Gauge(bytes) if bytes > 100_000.0 => println!("{name} {bytes}"),
            _ => return Err(format!("{name} is {:?}", sample.value).into()),
        }
    }
    println!("{rows} rows in {} bytes", text.len());
    Ok(())
}
