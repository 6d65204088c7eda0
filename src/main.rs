//! The program: everything is in [`scumble::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    skip_display_search();
    scumble::cli::main()
}

/// Mesa's device-select layer asks the Wayland display which GPU it is on, whenever the surface extensions are enabled,
/// as wgpu always does; where there is no session libwayland then prints an error of its own on stderr. Its documented
/// switch (`disable_environment` in `VkLayer_MESA_device_select.json`) is set there, unless the user selects a device.
#[cfg(target_os = "linux")]
fn skip_display_search() {
    use std::env::{set_var, var_os};
    let has_session = var_os("XDG_RUNTIME_DIR").is_some_and(|folder| folder.as_encoded_bytes().starts_with(b"/"));
    if !has_session && var_os("MESA_VK_DEVICE_SELECT").is_none() && var_os("NODEVICE_SELECT").is_none() {
        // SAFETY: this is the first statement of the program; no other thread exists that could read the environment.
        unsafe { set_var("NODEVICE_SELECT", "1") };
    }
}

#[cfg(not(target_os = "linux"))]
fn skip_display_search() {}
