//! Rows by name: what programs that measure one thing a process have in common.

use std::process::ExitCode;

use serde_json::json;

/// Something that can be measured, by a function `F`.
pub struct Row<F> {
    pub name: &'static str,
    /// What it does.
    pub what: &'static str,
    pub run: F,
}

/// The row that the command line names, and which of these flags it has. Otherwise rows are listed, or the usage is
/// said, and the process is to end.
pub fn chosen<'r, F, const FLAGS: usize>(
    program: &str,
    rows: &[&'r Row<F>],
    flags: [&str; FLAGS],
) -> Result<(&'r Row<F>, [bool; FLAGS]), ExitCode> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    if args == ["--list"] {
        rows.iter().for_each(|row| println!("{}", json!({ "row": row.name, "operation": row.what })));
        return Err(ExitCode::SUCCESS);
    }
    let flagged = flags.map(|flag| args.iter().position(|arg| arg == flag).map(|at| args.remove(at)).is_some());
    let [name] = args.as_slice() else {
        let flags: String = flags.iter().map(|flag| format!("[{flag}] ")).collect();
        eprintln!("usage: {program} {flags}[--list] ROW");
        return Err(ExitCode::from(2));
    };
    match rows.iter().find(|row| row.name == name) {
        Some(row) => Ok((row, flagged)),
        None => {
            eprintln!("{program}: no row {name}");
            Err(ExitCode::from(2))
        }
    }
}
