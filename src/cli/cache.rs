//! Where what was measured and compiled is kept between runs.

use std::ffi::OsString;
use std::path::PathBuf;

use etcetera::BaseStrategy;

/// The variable that names another folder; empty, nothing is kept.
pub const VARIABLE: &str = "SCUMBLE_CACHE_DIR";

/// The folder for caches: `SCUMBLE_CACHE_DIR`, or `scumble` where the platform keeps such files. `None` where nothing is
/// to be kept, or the user has no home.
pub fn directory() -> Option<PathBuf> {
    choose(std::env::var_os(VARIABLE), || Some(etcetera::base_strategy::choose_native_strategy().ok()?.cache_dir()))
}

fn choose(named: Option<OsString>, platform: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
    match named {
        Some(folder) if folder.is_empty() => None,
        Some(folder) => Some(folder.into()),
        None => Some(platform()?.join("scumble")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_goes_before_the_platforms_folder() {
        let platform = || Some(PathBuf::from("caches"));
        assert_eq!(choose(None, platform), Some(PathBuf::from("caches").join("scumble")));
        assert_eq!(choose(Some("here".into()), platform), Some("here".into()));
        assert_eq!(choose(Some("".into()), platform), None);
        assert_eq!(choose(None, || None), None);
    }
}
