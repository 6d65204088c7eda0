//! The house rules of ARCHITECTURE.md, read off the sources. Every rule also rejects a small bad example of its own.

use std::fs;
use std::path::Path;

/// What each top-level module may name besides itself. Imports run one way: down this list.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "cli",
        &[
            "bench",
            "evaluate",
            "tune",
            "pipelines",
            "models",
            "sampling",
            "text",
            "weights",
            "graph",
            "kernels",
            "gpu",
            "tensor",
            "error",
        ],
    ),
    ("evaluate", &["models", "sampling", "text", "weights", "graph", "kernels", "gpu", "tensor", "error"]),
    ("tune", &["graph", "kernels", "gpu", "tensor", "error"]),
    ("bench", &["pipelines", "models", "sampling", "weights", "graph", "kernels", "gpu", "tensor", "error"]),
    ("pipelines", &["models", "sampling", "text", "weights", "graph", "kernels", "gpu", "tensor", "error"]),
    ("models", &["weights", "graph", "kernels", "tensor", "error"]),
    ("weights", &["graph", "tensor", "error"]),
    ("text", &["tensor", "error"]),
    ("sampling", &["tensor", "error"]),
    ("graph", &["kernels", "tensor", "error"]),
    ("gpu", &["kernels", "tensor", "error"]),
    ("kernels", &["tensor", "error"]),
    ("tensor", &["error"]),
    ("error", &[]),
];

/// The bridges from the graph to the device.
const DEVICE_FILES: &[&str] = &[
    "src/graph/executor.rs",
    "src/graph/recording.rs",
    "src/graph/staging.rs",
    "src/graph/timing.rs",
    "src/graph/trial.rs",
    "src/graph/upload.rs",
];
/// Files that may name wgpu, besides those under `src/gpu/`.
const WGPU_FILES: &[&str] = &[
    "src/graph/executor.rs",
    "src/graph/recording.rs",
    "src/graph/staging.rs",
    "src/graph/timing.rs",
    "src/graph/upload.rs",
];
/// Files of `src/kernels/` that are no kernel, or the bench's yardsticks (`src/bench/roofs.rs` runs and checks them).
const NO_KERNELS: &[&str] = &[
    "mod",
    "bands",
    "roof_coop",
    "roof_copy",
    "roof_fma",
    "roof_half",
    "matrix_lanes",
    "matrix_tiles",
    "resampling",
    "template",
    "attention_coop",
    "attention_shared",
    "attention_lanes",
    "lanes",
    "tuning",
];
const FILE_LINES: usize = 500;
const FUNCTION_LINES: usize = 80;
/// A kernel's body keeps its tiles in registers, which it cannot hand to another function without copies.
const SHADER_FUNCTION_LINES: usize = 120;

/// A fault: `path:line: what`.
type Faults = Vec<String>;

fn fault(path: &str, index: usize, what: impl std::fmt::Display) -> String {
    format!("{path}:{}: {what}", index + 1)
}

/// The line without its comment. A `//` inside a string cuts too much, which hides no import.
fn code(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// The lines before the unit tests at a file's end.
fn shipped(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<&str> = text.lines().collect();
    let is_tests = |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].ends_with('{');
    let end = lines.windows(2).position(is_tests).unwrap_or(lines.len());
    lines.into_iter().take(end).enumerate()
}

fn is_test_file(path: &str) -> bool {
    !path.starts_with("src/") || path.ends_with("_tests.rs") || path.ends_with("/tests.rs")
}

/// Modules of the crate's root that a line names, as `crate::name`, `crate::{name, ..}` or through `super::`.
fn roots_named(path: &str, line: &str) -> Vec<String> {
    let inside = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    let depth = inside.split('/').count();
    let mut prefixes = vec!["crate::".to_owned()];
    prefixes.push("super::".repeat(depth));
    let mut names = Vec::new();
    for prefix in prefixes {
        for (at, _) in line.match_indices(&prefix) {
            let before = &line[..at];
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &line[at + prefix.len()..];
            let group = rest.strip_prefix('{').map(|group| group.split('}').next().unwrap_or(group));
            for item in group.unwrap_or(rest).split(", ") {
                let name: String = item.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                names.push(name);
                if group.is_none() {
                    break;
                }
            }
        }
    }
    names
}

fn arrows(path: &str, text: &str) -> Faults {
    let Some(inside) = path.strip_prefix("src/") else { return Vec::new() };
    let module = inside.split(['/', '.']).next().unwrap_or_default();
    if matches!(module, "lib" | "main") || is_test_file(path) {
        return Vec::new();
    }
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == module) else {
        return vec![fault(path, 0, format!("the module {module} has no place among the arrows of tests/tidy.rs"))];
    };
    let mut faults = Vec::new();
    for (index, line) in shipped(text) {
        for root in roots_named(path, code(line)) {
            let known = ARROWS.iter().any(|(name, _)| *name == root);
            let plain_data = module == "weights" && line.contains("crate::models::config");
            let bridge = root == "gpu" && DEVICE_FILES.contains(&path);
            if known && root != module && !allowed.contains(&root.as_str()) && !plain_data && !bridge {
                faults.push(fault(path, index, format!("{module} must not import {root}")));
            }
        }
    }
    faults
}

fn wgpu_stays_inside(path: &str, text: &str) -> Faults {
    if !path.starts_with("src/") || path.starts_with("src/gpu/") || WGPU_FILES.contains(&path) {
        return Vec::new();
    }
    let names = |line: &str| line.contains("wgpu::") || line.contains("use wgpu");
    let lines = text.lines().enumerate().filter(|(_, line)| names(code(line)));
    lines.map(|(index, _)| fault(path, index, "wgpu is named outside gpu and the graph's executor")).collect()
}

fn file_length(path: &str, text: &str) -> Faults {
    let count = text.lines().count();
    let long = count > FILE_LINES;
    long.then(|| fault(path, FILE_LINES, format!("{count} lines, at most {FILE_LINES}"))).into_iter().collect()
}

/// Rust and WGSL, as rustfmt lays them out: a body ends with the first `}` at the indentation of its `fn`.
fn function_length(path: &str, text: &str) -> Faults {
    let lines: Vec<&str> = text.lines().collect();
    let most = if path.ends_with(".wgsl") { SHADER_FUNCTION_LINES } else { FUNCTION_LINES };
    let mut faults = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let body = line.trim_start();
        let words: Vec<&str> = body.split(' ').take_while(|word| !word.contains("fn(")).collect();
        let Some(at) = words.iter().position(|word| *word == "fn") else { continue };
        let modifiers =
            ["pub", "pub(crate)", "pub(super)", "const", "unsafe", "async", "extern", "\"C\"", "\"system\""];
        let starts_item =
            words[..at].iter().all(|word| modifiers.contains(word) || word.starts_with('@') || word.ends_with(')'));
        let name = words.get(at + 1).and_then(|word| word.split(['(', '<']).next()).unwrap_or_default();
        let in_text = name.is_empty() || name.contains(|c: char| !c.is_alphanumeric() && c != '_');
        if !starts_item || in_text || line.ends_with(';') || line.ends_with('}') {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - body.len()]);
        let signature_end = lines[start..].iter().position(|line| line.ends_with('{') || line.ends_with(';'));
        let declared_only = signature_end.is_none_or(|end| lines[start + end].ends_with(';'));
        if declared_only {
            continue;
        }
        let length = lines[start..].iter().position(|line| *line == close).map_or(lines.len() - start, |end| end + 1);
        if length > most {
            faults.push(fault(path, start, format!("a function of {length} lines, at most {most}")));
        }
    }
    faults
}

fn shader_header(path: &str, text: &str) -> Faults {
    let mut lines = text.lines();
    let formula = lines.next().unwrap_or_default();
    let mut faults = Vec::new();
    if !formula.starts_with("// ") || formula.len() < 20 {
        faults.push(fault(path, 0, "the first line must give the formula and its source"));
    }
    for (index, part) in ["Shapes", "Grid", "Host", "Numbers"].into_iter().enumerate() {
        let line = lines.next().unwrap_or_default().replace("**", "");
        let told = line.strip_prefix("// ").and_then(|line| line.strip_prefix(part)).is_some_and(|rest| rest.len() > 5);
        if !told {
            faults.push(fault(path, index + 1, format!("this line must tell {part}")));
        }
    }
    faults
}

/// `cases` is the text of everything under `src/kernels/cases/`, whose imports name the kernels.
fn kernel_has_cases(path: &str, cases: &str) -> Faults {
    let stem = path.strip_prefix("src/kernels/").and_then(|name| name.strip_suffix(".rs")).unwrap_or("mod");
    let exempt = stem.contains('/') || NO_KERNELS.contains(&stem);
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let named = cases
        .lines()
        .filter(|line| line.contains("super::super::"))
        .any(|line| line.split(|c| !word(c)).any(|name| name == stem));
    let missing = !exempt && !named;
    missing.then(|| fault(path, 0, "no case under src/kernels/cases names this kernel")).into_iter().collect()
}

fn leftovers(path: &str, text: &str) -> Faults {
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), "unimplemented!(", concat!("to", "do!("), "dbg!("];
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in words.iter().filter(|word| line.contains(*word)) {
            faults.push(fault(path, index, format!("left over: {word}")));
        }
    }
    faults
}

fn library_is_silent(path: &str, text: &str) -> Faults {
    if !path.starts_with("src/") || path.starts_with("src/cli/") || is_test_file(path) {
        return Vec::new();
    }
    let prints = |line: &str| ["println!(", "print!(", "eprintln!(", "eprint!("].iter().any(|call| line.contains(call));
    let lines = shipped(text).filter(|(_, line)| prints(code(line)));
    lines.map(|(index, _)| fault(path, index, "the library must not print")).collect()
}

fn no_unwrap(path: &str, text: &str) -> Faults {
    if is_test_file(path) {
        return Vec::new();
    }
    let panics = |line: &str| line.contains(".unwrap()") || line.contains(".expect(");
    let lines = shipped(text).filter(|(_, line)| panics(code(line)));
    lines.map(|(index, _)| fault(path, index, "unwrap or expect outside a test")).collect()
}

fn telling_name(path: &str, _: &str) -> Faults {
    let stem = path.rsplit('/').next().and_then(|name| name.split('.').next()).unwrap_or_default();
    let empty = ["utils", "util", "helpers", "helper", "misc", "common"].contains(&stem) && path.starts_with("src/");
    let numbered = stem.ends_with("_v2") || stem.ends_with("_new") || stem.ends_with("_old");
    (empty || numbered).then(|| fault(path, 0, "a name that says nothing")).into_iter().collect()
}

/// Paths of somebody's machine and hosts that packages come from do not belong into a repository.
fn no_machine_names(path: &str, text: &str) -> Faults {
    let names = [
        "/ho\u{6d}e/",
        "/roo\u{74}/",
        "/User\u{73}/",
        "/wor\u{6b}/",
        "/opt/re\u{66}",
        "C:\\User\u{73}",
        "/tmp/bas\u{68}",
    ];
    let hosts = [
        "pypi.or\u{67}",
        "pythonhoste\u{64}",
        "static.crates.i\u{6f}",
        "index.crates.i\u{6f}",
        "artifactor\u{79}",
        "localhos\u{74}",
    ];
    let mut faults = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for name in names.iter().chain(&hosts).filter(|name| line.contains(*name)) {
            faults.push(fault(path, index, format!("names a machine or a package host: {name}")));
        }
    }
    faults
}

/// Every text file of the repository: path from its root, and text.
fn sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in ["src", "shaders", "tests", "benches", "examples", "tools", "assets", "docs", ".ci", ".github"] {
        collect(root, &root.join(folder), &mut found);
    }
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        read(root, &entry.path(), &mut found);
    }
    assert!(found.len() > 100, "the sources were not found under {}", root.display());
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("__pycache__") {
            collect(root, &path, found);
        } else if path.is_file() {
            read(root, &path, found);
        }
    }
}

/// Binary files are left out.
fn read(root: &Path, path: &Path, found: &mut Vec<(String, String)>) {
    let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
    let binary = [".safetensors", ".png", ".gz"].iter().any(|ending| name.ends_with(ending));
    // In a linked worktree `.git` is a file.
    let skip = binary || name == ".git";
    if let (false, Ok(text)) = (skip, fs::read_to_string(path)) {
        found.push((name, text));
    }
}

fn judge(select: impl Fn(&str) -> bool, rule: impl Fn(&str, &str) -> Faults) {
    let sources = sources();
    let mut judged = sources.iter().filter(|(path, _)| select(path)).peekable();
    assert!(judged.peek().is_some(), "the rule met no file");
    let faults: Faults = judged.flat_map(|(path, text)| rule(path, text)).collect();
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn rust(path: &str) -> bool {
    path.ends_with(".rs")
}

fn rust_or_wgsl(path: &str) -> bool {
    rust(path) || path.ends_with(".wgsl")
}

#[test]
fn imports_run_one_way() {
    judge(rust, arrows);
    let bad = |path: &str, line: &str| assert_eq!(arrows(path, line).len(), 1, "{path}: {line}");
    bad("src/kernels/concat.rs", "use crate::graph::Graph;");
    bad("src/kernels/concat.rs", "use super::super::graph::Graph;");
    bad("src/kernels/mod.rs", "use super::graph::Graph;");
    bad("src/graph/plan.rs", "use crate::gpu::Gpu;");
    bad("src/weights/keys.rs", "use crate::models::nn;");
    bad("src/sampling/noise.rs", "use crate::{error::Error, gpu::Gpu};");
    bad("src/error.rs", "    let limits: crate::kernels::Limits;");
    bad("src/extra/mod.rs", "");
    let good = |path: &str, line: &str| assert_eq!(arrows(path, line), Faults::new(), "{path}: {line}");
    good("src/graph/executor.rs", "use crate::gpu::Gpu;");
    good("src/weights/keys.rs", "use crate::models::config::ClipConfig;");
    good("src/models/nn.rs", "use super::config; // not crate::cli");
    good("src/kernels/concat.rs", "#[cfg(test)]\nmod tests {\n    use crate::graph::Graph;\n}");
}

#[test]
fn wgpu_is_named_in_few_places() {
    judge(rust, wgpu_stays_inside);
    assert_eq!(wgpu_stays_inside("src/graph/plan.rs", "fn f(b: wgpu::Buffer) {}").len(), 1);
    assert_eq!(wgpu_stays_inside("src/cli/mod.rs", "use wgpu;").len(), 1);
}

#[test]
fn files_are_short() {
    judge(rust_or_wgsl, file_length);
    assert_eq!(file_length("src/a.rs", &"x\n".repeat(501)).len(), 1);
    assert!(file_length("src/a.rs", &"x\n".repeat(500)).is_empty());
}

#[test]
fn functions_are_short() {
    judge(rust_or_wgsl, function_length);
    let function = |opening: &str, lines: usize| format!("{opening}\n{}    }}\n}}\n", "        x();\n".repeat(lines));
    for opening in ["    pub fn f() {", "    pub(super) const fn f(\n        a: u32,\n    ) -> u32 {", "    fn f() {"] {
        let fixed = opening.lines().count() + 1;
        assert_eq!(function_length("src/a.rs", &function(opening, 81 - fixed)).len(), 1, "{opening}");
        assert!(function_length("src/a.rs", &function(opening, 80 - fixed)).is_empty(), "{opening}");
    }
    assert!(
        function_length("src/a.rs", &function("    fn declared(\n        a: u32,\n    );\n    mod x {", 90)).is_empty()
    );
    let shader = format!("@compute fn main() {{\n{}}}\n", "  x();\n".repeat(120));
    assert_eq!(function_length("shaders/a.wgsl", &shader).len(), 1);
}

#[test]
fn shaders_open_with_five_lines() {
    judge(|path| path.ends_with(".wgsl"), shader_header);
    let good = "// y = a + b (arXiv:1234.5678).\n// Shapes: a, b [P].\n// Grid: one lane.\n// **Host** counts.\n// Numbers: exact.\n";
    assert_eq!(shader_header("shaders/a.wgsl", good), Faults::new());
    assert_eq!(shader_header("shaders/a.wgsl", &good.replace("Grid", "Size")).len(), 1);
    assert_eq!(shader_header("shaders/a.wgsl", &good.replace("Numbers: exact.", "Numbers")).len(), 1);
    assert_eq!(shader_header("shaders/a.wgsl", "fn main() {}").len(), 5);
}

#[test]
fn kernels_have_cases() {
    let sources = sources();
    let under_cases = sources.iter().filter(|(path, _)| path.starts_with("src/kernels/cases"));
    let cases: String = under_cases.map(|(_, text)| text.as_str()).collect();
    judge(|path| path.starts_with("src/kernels/"), |path, _| kernel_has_cases(path, &cases));
    assert_eq!(kernel_has_cases("src/kernels/twirl.rs", &cases).len(), 1);
}

#[test]
fn nothing_is_left_over() {
    judge(|path| path != "tests/tidy.rs" && rust_or_wgsl(path), leftovers);
    for bad in [concat!("// TO", "DO later"), concat!("// FIX", "ME"), "unimplemented!()", "todo!()", "dbg!(x)"] {
        assert_eq!(leftovers("src/a.rs", bad).len(), 1, "{bad}");
    }
}

#[test]
fn the_library_prints_nothing() {
    judge(rust, library_is_silent);
    assert_eq!(library_is_silent("src/graph/mod.rs", "    eprintln!(\"x\");").len(), 1);
    assert!(library_is_silent("src/cli/mod.rs", "    println!(\"x\");").is_empty());
}

#[test]
fn input_never_unwraps() {
    judge(rust, no_unwrap);
    assert_eq!(no_unwrap("src/text/mod.rs", "let a = b.unwrap();").len(), 1);
    assert_eq!(no_unwrap("src/text/mod.rs", "let a = b.expect(\"c\");").len(), 1);
    assert!(no_unwrap("src/text/mod.rs", "#[cfg(test)]\nmod tests {\n    a.unwrap();\n}").is_empty());
    assert!(no_unwrap("src/text/mod.rs", "let a = b.unwrap_or(0); Error::new(\"x\").expected(1);").is_empty());
}

#[test]
fn names_tell_something() {
    judge(|_| true, telling_name);
    assert_eq!(telling_name("src/graph/utils.rs", "").len(), 1);
    assert_eq!(telling_name("shaders/conv2d_v2.wgsl", "").len(), 1);
}

#[test]
fn no_machine_is_named() {
    judge(|path| path != "Cargo.lock", no_machine_names);
    assert_eq!(no_machine_names("README.md", "see /hom\u{65}/me/model").len(), 1);
    assert_eq!(no_machine_names("tools/README.md", "https://pypi.or\u{67}/simple").len(), 1);
}
