//! The program `scumble`: command line, progress, files. Exit codes: 0 done, 1 failed, 2 the command cannot be meant so.

pub mod about;
pub mod args;
pub mod bench;
pub mod bench_tables;
pub mod cache;
pub mod convert;
pub mod dalle_info;
pub mod evaluate;
mod files;
pub mod generate;
pub mod info;
pub mod infotext;
pub mod latents;
pub mod model_hash;
pub mod output;
pub mod painter;
pub mod picture;
pub mod progress;
pub mod systems;
pub mod tune;
pub mod unclip_info;
pub mod upscale;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::error::{Error, ErrorKind, Result};
use args::{Cli, Command, LogArgs};

/// Runs the program on its own arguments; an error is printed once, on stderr, as `error: ...`.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(fault) => {
            // A closed stderr or stdout leaves nobody to tell.
            let _ = fault.print();
            return ExitCode::from(u8::try_from(fault.exit_code()).unwrap_or(2));
        }
    };
    match start_log(&cli.log).and_then(|()| run(&cli.command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(match error.kind() {
                ErrorKind::Usage => 2,
                ErrorKind::Failure | ErrorKind::Memory => 1,
            })
        }
    }
}

fn run(command: &Command) -> Result<()> {
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Upscale(args) => upscale::run(args),
        Command::Info(args) => info::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Tune(args) => tune::run(args),
    }
}

fn start_log(args: &LogArgs) -> Result<()> {
    let filter = match &args.log {
        Some(filter) => filter.clone(),
        None => ["warn", "warn,scumble=info", "warn,scumble=debug", "trace"][usize::from(args.verbose.min(3))].into(),
    };
    let filter = tracing_subscriber::EnvFilter::try_new(&filter).map_err(|fault| {
        Error::usage("log filter").at(&filter).expected("levels such as `info` or `scumble=debug`").found(fault)
    })?;
    // Only fails where a logger is already installed, which then stays.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
    Ok(())
}

/// Writes a line to stdout; a reader who has gone away is no error.
fn print_line(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(fault) if fault.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::new("cannot write to standard output").found(fault))
        }
        _ => Ok(()),
    }
}
