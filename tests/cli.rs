//! The program as its users meet it: exit codes, one error line, help, files.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn scumble(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_scumble"));
    command.args(words).env("SCUMBLE_CACHE_DIR", "").stdin(Stdio::null()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn usage_errors_exit_with_2_and_name_the_option() {
    for (words, parts) in [
        (&["generate", "x", "-W", "100"][..], &["--width", "100", "multiple of 8", "Try 96 or 104"][..]),
        (&["generate", "x", "-H", "-8"], &["--height", "-8"]),
        (&["generate", "x", "-W", "0"], &["--width", "8 to"]),
        (&["generate", "x", "--steps", "0"], &["--steps", "1 or more"]),
        (&["generate", "x", "-b", "0"], &["--batch", "1 or more"]),
        (&["generate", "x", "--cfg-scale", "-1"], &["--cfg-scale", "0 or more"]),
        (&["generate", "x", "--cfg-scale", "NaN"], &["--cfg-scale", "0 or more"]),
        (&["generate", "x", "--cfg-scale", "inf"], &["--cfg-scale", "0 or more"]),
        (&["generate", "x", "--guidance-rescale", "1.5"], &["--guidance-rescale", "0 to 1"]),
        (&["generate", "x", "--seed", "1.5"], &["--seed", "1.5"]),
        (&["generate", "x", "--seed", "18446744073709551615", "-b", "2"], &["--seed", "smaller seed"]),
        (&["generate", "x", "--clip-skip", "0"], &["--clip-skip"]),
        (&["generate", "x", "--precision", "f64"], &["--precision", "auto", "f32", "f16"]),
        (&["generate", "x", "--prediction-type", "y"], &["--prediction-type", "epsilon", "v_prediction", "sample"]),
        (&["generate", "x", "-o", "x.jpg"], &["x.jpg", "Try x.png"]),
        (&["generate", "x", "-o", "a", "--dump", "a"], &["--dump and --output"]),
        (&["generate", "x", "y"], &["unexpected argument 'y'"]),
        (&["generate", "x", "--no-such-option"], &["--no-such-option"]),
        (&["generate"], &["PROMPT"]),
        (&["draw"], &["draw"]),
        (&["--log", "a=b=c", "generate", "x"], &["log filter", "a=b=c"]),
    ] {
        let output = scumble(words);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.starts_with("error: "), "{words:?}: {text}");
        assert_eq!(text.matches("error: ").count(), 1, "{words:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{words:?}: {part:?} is not in {text}");
        }
        assert!(output.stdout.is_empty(), "{words:?}");
    }
    assert_eq!(scumble(&[]).status.code(), Some(2));
}

#[test]
fn failures_exit_with_1_before_the_long_work() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("text"), "no tensors").unwrap();
    for (words, part) in [
        (["-o", &at("missing/out.png")], "no such folder"),
        (["-o", &at("text/out.png")], "a file of that name"),
        (["-o", folder.path().to_str().unwrap()], "found a folder"),
        (["--dump", &at("missing/d.safetensors")], "no such folder"),
        (["--latents", &at("none.safetensors")], "none.safetensors"),
        (["--latents", &at("text")], "expected a safetensors file"),
    ] {
        let output = scumble(&[&["generate", "x", "-s", "1"], &words[..]].concat());
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(text.starts_with("error: ") && text.contains(part) && text.lines().count() == 1, "{words:?}: {text}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");
}

#[cfg(unix)]
#[test]
fn an_unwritable_folder_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o555)).unwrap();
    if std::fs::write(folder.path().join("probe"), "").is_ok() {
        return; // the superuser may write anywhere
    }
    let output = scumble(&["generate", "x", "-o", folder.path().join("out.png").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("a folder that you may write to"), "{}", stderr(&output));
}

#[test]
fn help_names_every_option_with_default_and_unit() {
    let output = scumble(&["generate", "-h"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for part in [
        "-m, --model",
        "-n, --negative-prompt",
        "-W, --width",
        "-H, --height",
        "--steps",
        "--cfg-scale",
        "--guidance-rescale",
        "--sampler",
        "--schedule",
        "-s, --seed",
        "-b, --batch",
        "-o, --output",
        "--precision",
        "--adapter",
        "--latents",
        "--dump",
        "--clip-skip",
        "--prediction-type",
        "--explain",
        "-v, --verbose",
        "--log",
        "-h, --help",
        "dpmpp_2m_sde",
        "sgm_uniform",
        "pixels",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let version = scumble(&["--version"]);
    assert_eq!(String::from_utf8(version.stdout).unwrap(), concat!("scumble ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_closed_pipe_is_no_panic() {
    let run =
        "\"$0\" generate --help | true; \"$0\" generate x -o /nowhere/x.png 2>&1 | true; \"$0\" draw 2>&-; echo $?";
    let program = env!("CARGO_BIN_EXE_scumble");
    let output = Command::new("sh").args(["-c", run, program]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "2\n");
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    assert!(Path::new(program).exists());
}

/// Vulkan's loader finds no driver where it is told to look in an empty place.
#[cfg(target_os = "linux")]
#[test]
fn no_adapter_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("none.png");
    let nowhere = folder.path().join("no-driver.json");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_scumble"))
        .args(["generate", "red apple", "-o"])
        .arg(&out)
        .env("VK_DRIVER_FILES", &nowhere)
        .env("VK_ICD_FILENAMES", &nowhere)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("no GPU adapter") && told.contains("mesa-vulkan-drivers"), "{told}");
    assert!(!out.exists());
}
