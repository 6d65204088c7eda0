//! The program: everything is in [`scumble::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    // Mesa's device-select layer asks the display server for its device, and prints an error where there is none.
    if cfg!(target_os = "linux") && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the program has started no other thread yet that could read the environment.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
    scumble::cli::main()
}
