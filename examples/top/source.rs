//! Where the figures come from: this process's heap, or the `/metrics` page of another.

use std::time::Instant;

use pcpalloc::PcpAlloc;
use prometheus_parse::{Sample, Scrape, Value};

pub enum Source {
    Own,
    /// Where another process has them.
    Url(String),
}

impl Source {
    pub fn name(&self) -> &str {
        match self {
            Source::Own => "this process, under its own load",
            Source::Url(url) => url,
        }
    }

    pub fn figures(&self) -> Result<Figures, String> {
        let text = match self {
            Source::Own => {
                let mut text = String::with_capacity(32 << 10);
                PcpAlloc::new().write_prometheus(&mut text).map_err(|error| error.to_string())?;
                text
            }
            Source::Url(url) => {
                let answer = minreq::get(url).with_timeout(2).send().map_err(|error| format!("{url}: {error}"))?;
                if answer.status_code != 200 {
                    return Err(format!("{url}: {} {}", answer.status_code, answer.reason_phrase));
                }
                answer.as_str().map_err(|error| format!("{url}: {error}"))?.to_string()
            }
        };
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_string()))).map_err(|error| error.to_string())?;
        let figures = Figures { at: Instant::now(), samples: scrape.samples };
        if figures.has("resident_bytes") {
            Ok(figures)
        } else {
            Err(format!("{}: no figures of pcpalloc", self.name()))
        }
    }
}

/// All figures of one moment.
pub struct Figures {
    at: Instant,
    samples: Vec<Sample>,
}

impl Figures {
    /// A figure, by the name that follows `pcpalloc_`; one with a label by the label's value, too. 0 if it is not there.
    pub fn get(&self, name: &str, label: Option<&str>) -> f64 {
        let found = self.rows(name).find(|sample| label.is_none_or(|label| sample.labels.values().any(|v| v == label)));
        match found.map(|sample| &sample.value) {
            Some(Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) => *value,
            _ => 0.0,
        }
    }

    pub fn has(&self, name: &str) -> bool {
        self.rows(name).next().is_some()
    }

    fn rows<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.metric.strip_prefix("pcpalloc_") == Some(name))
    }

    /// The values that a metric's label has, in order.
    pub fn labels(&self, name: &str, label: &str) -> Vec<String> {
        self.rows(name).filter_map(|sample| sample.labels.get(label).map(String::from)).collect()
    }

    /// What was added to a figure in each second since `before`.
    pub fn rate(&self, before: &Figures, name: &str, label: Option<&str>) -> f64 {
        let seconds = self.at.duration_since(before.at).as_secs_f64();
        if seconds > 0.0 { (self.get(name, label) - before.get(name, label)) / seconds } else { 0.0 }
    }

    /// The histogram of a slow path: how many, what they took together in seconds, and upper bounds with how many took
    /// less.
    pub fn histogram(&self, path: &str) -> Option<Vec<(f64, f64)>> {
        let row = self.rows("slow_path_seconds").find(|sample| sample.labels.get("path") == Some(path))?;
        match &row.value {
            Value::Histogram(buckets) => Some(buckets.iter().map(|b| (b.less_than, b.count)).collect()),
            _ => None,
        }
    }
}
