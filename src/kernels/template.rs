//! Text templates of shaders, for what WGSL cannot express: matrices in registers, which no loop may index.
//!
//! Lines between `//@for i in NAME` and `//@end` are repeated NAME times, NAME being a constant of the variant or a
//! number, with `{i}` replaced by 0, 1, ..; a count of 0 or 1 makes a condition. `{NAME}` is a constant's value.

/// The text with its loops unrolled and its constants filled in.
///
/// # Panics
/// When a loop has no end or names no constant, which is a fault of the shader.
pub fn expand(text: &str, constants: &[(&'static str, u32)]) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::with_capacity(4 * text.len());
    let names: Vec<(String, String)> =
        constants.iter().map(|(name, value)| (format!("{{{name}}}"), value.to_string())).collect();
    unroll(&lines, constants, &names, &mut out);
    out
}

fn unroll(lines: &[&str], constants: &[(&'static str, u32)], names: &[(String, String)], out: &mut String) {
    let mut at = 0;
    while at < lines.len() {
        let Some(head) = lines[at].trim_start().strip_prefix("//@for ") else {
            let line = names.iter().fold(lines[at].to_owned(), |line, (name, value)| line.replace(name, value));
            out.push_str(&line);
            out.push('\n');
            at += 1;
            continue;
        };
        let (variable, bound) = head.split_once(" in ").unwrap_or_else(|| panic!("no bound in `{head}`"));
        let constant = constants.iter().find(|(name, _)| *name == bound.trim()).map(|(_, value)| *value);
        let count = constant.or_else(|| bound.trim().parse().ok()).unwrap_or_else(|| panic!("no constant in `{head}`"));
        let length = body(&lines[at + 1..]).unwrap_or_else(|| panic!("`{head}` has no end"));
        for value in 0..count {
            let mut inner = names.to_vec();
            inner.push((format!("{{{variable}}}"), value.to_string()));
            unroll(&lines[at + 1..at + 1 + length], constants, &inner, out);
        }
        at += length + 2;
    }
}

/// Lines before the end of the loop that was just opened.
fn body(lines: &[&str]) -> Option<usize> {
    let mut depth = 0;
    lines.iter().position(|line| {
        let line = line.trim_start();
        depth += i32::from(line.starts_with("//@for ")) - i32::from(line.starts_with("//@end"));
        depth < 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loops_nest_and_constants_are_filled_in() {
        let text =
            "a\n//@for i in N\n  x{i}\n  //@for j in 2\n  y{i}{j}{N}\n  //@end\n//@end\n//@for i in ZERO\nz\n//@end\nb";
        let out = expand(text, &[("N", 2), ("ZERO", 0)]);
        assert_eq!(out, "a\n  x0\n  y002\n  y012\n  x1\n  y102\n  y112\nb\n");
    }

    #[test]
    fn plain_text_stays() {
        assert_eq!(expand("fn f() { {N} }", &[("M", 2)]), "fn f() { {N} }\n");
    }

    #[test]
    #[should_panic(expected = "has no end")]
    fn an_open_loop_is_a_fault() {
        expand("//@for i in 2\nx", &[]);
    }
}
