//! The command line of `compare`.

/// A program that is run under every allocator.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Suite {
    Micro,
    Index,
    Memory,
    Workloads,
    Latency,
}

impl Suite {
    pub const ALL: [Suite; 5] = [Suite::Micro, Suite::Index, Suite::Memory, Suite::Workloads, Suite::Latency];

    pub fn name(self) -> &'static str {
        match self {
            Suite::Micro => "micro",
            Suite::Index => "index",
            Suite::Memory => "memory",
            Suite::Workloads => "workloads",
            Suite::Latency => "latency",
        }
    }
}

/// Every allocator there is a feature for; the first is ours.
pub const ALLOCATORS: [&str; 8] =
    ["pcpalloc", "system", "jemalloc", "mimalloc2", "mimalloc3", "snmalloc", "rpmalloc", "tcmalloc"];

/// Ours with other settings than by default, to be compared with if asked for.
const OURS: [&str; 1] = ["pcpalloc-thp"];

pub struct Options {
    pub rounds: usize,
    pub suites: Vec<Suite>,
    /// Ours and its peers.
    pub allocators: Vec<&'static str>,
    /// Rows of the suites, by name or by how their names begin, as in `larson*`; all if empty.
    pub rows: Vec<String>,
    /// Arguments for `index`.
    pub index_args: Vec<String>,
    pub name: Option<String>,
    /// Everything runs on the same CPU.
    pub one_cpu: bool,
    pub smoke: bool,
    /// As it was given.
    pub command_line: String,
}

impl Options {
    pub const USAGE: &str = "\
usage: compare [--rounds N] [--only SUITE,…] [--peers A,B,…] [--rows A,B,…] [--one-cpu] [--name NAME]
               [--smoke] [-- ARGUMENTS OF index]

  --rounds N    how often every allocator runs each row (default 7)
  --only …      of micro, index, memory, workloads, latency; all by default
  --peers …     of system, jemalloc, mimalloc2, mimalloc3, snmalloc, rpmalloc, tcmalloc; all by default; pcpalloc-thp is ours
                with huge pages for everything (thp:always)
  --rows …      rows of the suites, a star standing for the rest of their names; all by default
  --one-cpu     on one CPU only, so that where the scheduler puts threads does not count; results/one-cpu-micro.md and so on
  --name NAME   results/NAME-micro.md and so on, instead of results/micro.md
  --smoke       one short round with the system allocator as the only peer, to see that everything works;
                the results go to target/smoke";

    /// Reads the arguments after the program's name; `None` if they ask for help.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Option<Options>, String> {
        let args: Vec<String> = args.into_iter().collect();
        let mut options = Options {
            rounds: 7,
            suites: Suite::ALL.to_vec(),
            allocators: ALLOCATORS.to_vec(),
            rows: Vec::new(),
            index_args: Vec::new(),
            name: None,
            one_cpu: false,
            smoke: false,
            command_line: args.join(" "),
        };
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "-h" | "--help" => return Ok(None),
                "--rounds" => {
                    options.rounds = match value()?.parse() {
                        Ok(rounds @ 1..=1000) => rounds,
                        _ => return Err("--rounds needs a number from 1 to 1000".into()),
                    }
                }
                "--only" => {
                    let suite = |name: &str| {
                        let found = Suite::ALL.into_iter().find(|suite| suite.name() == name);
                        found.ok_or_else(|| format!("there is no suite {name}"))
                    };
                    options.suites = value()?.split(',').map(suite).collect::<Result<_, _>>()?;
                }
                "--peers" => {
                    options.allocators = vec![ALLOCATORS[0]];
                    for name in value()?.split(',') {
                        match ALLOCATORS.iter().chain(&OURS).find(|known| **known == name) {
                            Some(known) if options.allocators.contains(known) => {}
                            Some(known) => options.allocators.push(known),
                            None => return Err(format!("no allocator {name} is known")),
                        }
                    }
                }
                "--rows" => options.rows = value()?.split(',').map(String::from).collect(),
                "--name" => options.name = Some(value()?),
                "--one-cpu" => options.one_cpu = true,
                "--smoke" => options.smoke = true,
                "--" => {
                    options.index_args = args.by_ref().collect();
                }
                _ => return Err(format!("unknown option {arg}")),
            }
        }
        if options.smoke {
            options.rounds = 1;
            options.allocators = ALLOCATORS[..2].to_vec();
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../src");
            options.index_args = [source, "--repeat-to", "1", "--queries", "200"].map(String::from).to_vec();
        }
        Ok(Some(options))
    }

    /// Whether a row is wanted.
    pub fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|wanted| matches(wanted, row))
    }

    /// What the results of a suite are called.
    pub fn file_name(&self, suite: &Suite) -> String {
        match &self.name {
            Some(name) => format!("{name}-{}", suite.name()),
            None if self.one_cpu => format!("one-cpu-{}", suite.name()),
            None => suite.name().into(),
        }
    }
}

/// Whether a name is what is wanted, or begins as what is wanted does before a star.
pub fn matches(wanted: &str, name: &str) -> bool {
    wanted.strip_suffix('*').map_or(wanted == name, |start| name.starts_with(start))
}
