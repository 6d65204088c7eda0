//! dalle-mini's text normaliser (`TextNormalizer`, borisdayma/dalle-mini at f0be4de, `src/dalle_mini/model/text.py`).
//!
//! Left out is what needs data that scumble does not have: the repair of garbled Unicode (ftfy), names for emoji, letters of
//! other scripts in Latin ones (unidecode; accents are dropped as there), the splitting of hashtags into words by their
//! frequencies, and the replacement of `<person>`, which only captions for training have.

use tokenizers::{NormalizedString, Normalizer, normalizers::NFKD};

/// Marks that stand for characters which must outlive the removal of punctuation; they count as letters.
const DOT: char = '\u{1}';
const QUOTE: char = '\u{2}';
const SLASH: char = '\u{3}';

/// A prompt as dalle-mini's tokenizer is given it: a space, then words, commas and quotation marks.
pub fn normalize(text: &str) -> String {
    let text = unescape(&unescape(text));
    let text = ascii(&text).to_lowercase();
    let text = without_reference(&text);
    let text = without_tags(&text);
    let text = without_urls(&text);
    let text = join(&join(&text, ',', &digit, &three_digits, None), ',', &digit, &three_digits, None);
    let text = join(&text, '.', &is_word, &starts_word, Some(DOT));
    let text = contractions(&text);
    let text = join(&text, '/', &digit, &starts_digit, Some(SLASH));
    let text = join(&text, '-', &is_word, &starts_word, Some(' '));
    let text = replace(&text, "%&/$*", |c| format!(" {c} "));
    let text = replace(&text, "_#\\", |_| " ".to_owned());
    let text = replace(&text, "'\"`", |_| " \" ".to_owned());
    let text = replace(&text, "()[].,|:;?!=+~-/{}", |_| ",".to_owned());
    let text = text.replace(DOT, ".").replace(QUOTE, "'").replace(SLASH, "/");
    let text = without_repetitions(&text);
    let text = merged(&text, '"', " \" ");
    let text = merged(&text, ',', ", ");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.strip_suffix(',').unwrap_or(&text);
    let text = text.strip_prefix(',').unwrap_or(text);
    format!(" {}", text.trim())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || [DOT, QUOTE, SLASH].contains(&c)
}

fn digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn starts_word(rest: &[char]) -> bool {
    rest.first().is_some_and(|c| is_word(*c))
}

fn starts_digit(rest: &[char]) -> bool {
    rest.first().is_some_and(|c| digit(*c))
}

fn three_digits(rest: &[char]) -> bool {
    rest.len() >= 3 && rest[..3].iter().all(|c| digit(*c))
}

/// The named and numbered characters of HTML that captions have.
fn unescape(text: &str) -> String {
    const NAMED: [(&str, &str); 7] =
        [("amp", "&"), ("lt", "<"), ("gt", ">"), ("quot", "\""), ("apos", "'"), ("nbsp", " "), ("hellip", "...")];
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(';').filter(|end| *end <= 10);
        let character = end.and_then(|end| {
            let name = &rest[1..end];
            let number = name.strip_prefix('#').and_then(|number| match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => number.parse().ok(),
            });
            let named = NAMED.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned());
            number.and_then(char::from_u32).map(String::from).or(named)
        });
        match (character, end) {
            (Some(character), Some(end)) => {
                out.push_str(&character);
                rest = &rest[end + 1..];
            }
            _ => {
                out.push('&');
                rest = &rest[1..];
            }
        }
    }
    out + rest
}

/// Letters without their accents; what is not ASCII then is dropped.
fn ascii(text: &str) -> String {
    let typographic = |c: char| match c {
        '\u{2018}' | '\u{2019}' => '\'',
        '\u{201c}' | '\u{201d}' => '"',
        '\u{2010}'..='\u{2015}' => '-',
        other => other,
    };
    let mut normalized = NormalizedString::from(text.chars().map(typographic).collect::<String>());
    // Decomposition cannot fail.
    let _ = NFKD.normalize(&mut normalized);
    normalized.get().chars().filter(char::is_ascii).collect()
}

/// Without a reference such as `[12]` at the beginning and at the end.
fn without_reference(text: &str) -> String {
    let inside = |body: &str| !body.is_empty() && body.chars().all(digit);
    let begin = text.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let text = begin.filter(|(body, _)| inside(body)).map_or(text, |(_, rest)| rest);
    let end = text.trim_end().strip_suffix(']').and_then(|rest| rest.rsplit_once('['));
    end.filter(|(_, body)| inside(body)).map_or(text, |(rest, _)| rest).to_owned()
}

fn without_tags(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut i = 0;
    while i < chars.len() {
        let body = chars[i + 1..].iter().take_while(|c| **c != '<').collect::<Vec<_>>();
        let end = body.iter().skip(1).position(|c| **c == '>');
        match end.filter(|_| chars[i] == '<') {
            Some(end) => {
                out.push(' ');
                i += end + 3;
            }
            None => {
                out.push(chars[i]);
                i += 1;
            }
        }
    }
    out
}

fn without_urls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("http") {
        let length = rest[at..].find(char::is_whitespace).unwrap_or(rest.len() - at);
        out.push_str(&rest[..at]);
        out.push_str(if length == 4 { "http" } else { "" });
        rest = &rest[at + length..];
    }
    out + rest
}

/// Replaces `mark` between a character that is `before` and a rest that is `after`; a character that ended one place cannot
/// begin the next.
fn join(
    text: &str,
    mark: char,
    before: &dyn Fn(char) -> bool,
    after: &dyn Fn(&[char]) -> bool,
    with: Option<char>,
) -> String {
    let chars: Vec<char> = text.chars().collect();
    // A number's comma takes three digits with it, all others one character.
    let taken = if with.is_none() { 3 } else { 1 };
    let mut out = String::new();
    let mut free = 0;
    let mut i = 0;
    while i < chars.len() {
        if chars[i] == mark && i > free && before(chars[i - 1]) && after(&chars[i + 1..]) {
            out.extend(with);
            out.extend(&chars[i + 1..i + 1 + taken]);
            i += 1 + taken;
            free = i;
        } else {
            out.push(chars[i]);
            i += 1;
        }
    }
    out
}

/// Apostrophes of 's, 't, 'd, 'm, 'll, 're and 've.
fn contractions(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let follows = |i: usize| {
        ["s", "t", "d", "m", "ll", "re", "ve"].iter().any(|ending| {
            let rest = &chars[i + 1..];
            rest.len() >= ending.len()
                && rest.iter().zip(ending.chars()).all(|(c, e)| *c == e)
                && rest.get(ending.len()).is_none_or(|c| !is_word(*c))
        })
    };
    (0..chars.len()).map(|i| if chars[i] == '\'' && follows(i) { QUOTE } else { chars[i] }).collect()
}

fn replace(text: &str, marks: &str, with: impl Fn(char) -> String) -> String {
    text.chars().map(|c| if marks.contains(c) { with(c) } else { c.to_string() }).collect()
}

/// A character that is no digit and stands four times or more, once.
fn without_repetitions(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    for run in chars.chunk_by(|a, b| a == b) {
        let kept = if run.len() >= 4 && !digit(run[0]) { 1 } else { run.len() };
        out.extend(&run[..kept]);
    }
    out
}

/// Runs of `mark` and white space that hold the mark, as `with`.
fn merged(text: &str, mark: char, with: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let part = |c: &char| c.is_whitespace() || *c == mark;
    let mut out = String::new();
    for run in chars.chunk_by(|a, b| part(a) == part(b)) {
        if part(&run[0]) && run.contains(&mark) {
            out.push_str(with);
        } else {
            out.extend(run);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::normalize;

    /// What dalle-mini's functions give for these (run without its word frequencies on prompts without hashtags).
    #[test]
    fn prompts_become_dalle_minis() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/goldens/dalle/normalizer.json")).unwrap();
        for case in golden.as_array().unwrap() {
            let [text, expected] = [&case[0], &case[1]].map(|part| part.as_str().unwrap());
            assert_eq!(normalize(text), expected, "{text:?}");
        }
    }
}
