//! The program: everything is in [`scumble::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    scumble::cli::main()
}
