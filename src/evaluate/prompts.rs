//! Which text belongs to which picture.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Larger files are no lists of prompts.
const LARGEST: u64 = 256 << 20;
/// The key under which a PNG carries the text of how it was made (AUTOMATIC1111's, and scumble's).
const KEY: &str = "parameters";

/// Where the texts come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompts {
    /// One text for every picture.
    One(String),
    /// What the pictures' files themselves say.
    Embedded,
    /// A folder of `.txt` files named as the pictures, or a file: lines in the pictures' order, or `.json`, `.jsonl`, `.csv` or `.tsv` with
    /// names and texts.
    Path(PathBuf),
}

impl Prompts {
    /// The text of each of `pictures`, in their order.
    ///
    /// # Errors
    /// A file that cannot be read or is broken; another number of texts than of pictures; a picture without a text.
    pub fn read(&self, pictures: &[PathBuf]) -> Result<Vec<String>> {
        match self {
            Self::One(text) => Ok(vec![text.clone(); pictures.len()]),
            Self::Embedded => pictures.iter().map(|picture| embedded(picture)).collect(),
            Self::Path(path) if path.is_dir() => {
                let text = |picture: &PathBuf| {
                    let mut name = picture.file_stem().unwrap_or_default().to_owned();
                    name.push(".txt");
                    let path = path.join(name);
                    if !path.is_file() {
                        let error = Error::new("a picture without a prompt").at(picture.display());
                        return Err(error.expected(format!("the file {}", path.display())).found("none"));
                    }
                    Ok(read_text(&path)?.trim().to_owned())
                };
                pictures.iter().map(text).collect()
            }
            Self::Path(path) => from_file(path, pictures),
        }
    }
}

fn read_text(path: &Path) -> Result<String> {
    let fault = |e: &std::io::Error| Error::io("cannot read the prompts", path, e);
    let length = std::fs::metadata(path).map_err(|e| fault(&e))?.len();
    if length > LARGEST {
        let error = Error::new("file too large").at(path.display());
        return Err(error.expected(format!("at most {LARGEST} bytes")).found(length));
    }
    let bytes = std::fs::read(path).map_err(|e| fault(&e))?;
    let text =
        String::from_utf8(bytes).map_err(|e| Error::new("prompts").at(path.display()).expected("UTF-8").found(e))?;
    // Editors on Windows put a mark in front.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// What a file holds: texts in order, or by a picture's name.
enum Listed {
    InOrder(Vec<String>),
    Named(Vec<(String, String)>),
}

fn from_file(path: &Path, pictures: &[PathBuf]) -> Result<Vec<String>> {
    let text = read_text(path)?;
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let listed = match ending.as_str() {
        "json" => from_json(&parse(&text, path)?, path)?,
        "jsonl" => {
            let lines = text.lines().filter(|line| !line.trim().is_empty());
            from_json(&Value::Array(lines.map(|line| parse(line, path)).collect::<Result<_>>()?), path)?
        }
        "csv" => Listed::Named(from_table(&text, ',', path)?),
        "tsv" => Listed::Named(from_table(&text, '\t', path)?),
        _ => Listed::InOrder(text.lines().map(str::to_owned).collect()),
    };
    match listed {
        Listed::InOrder(texts) if texts.len() == pictures.len() => Ok(texts),
        Listed::InOrder(texts) => Err(count(path, pictures.len(), texts.len())),
        Listed::Named(named) => match_names(path, named, pictures),
    }
}

fn count(path: &Path, pictures: usize, texts: usize) -> Error {
    Error::usage("prompts and pictures")
        .at(path.display())
        .expected(format!("as many prompts as pictures, which are {pictures}"))
        .found(format!("{texts} prompts"))
        .hint(
            "one prompt a line in the order of the pictures' names, a file with names and prompts, or --prompt for all",
        )
}

fn parse(text: &str, path: &Path) -> Result<Value> {
    serde_json::from_str(text).map_err(|e| Error::new("broken file").at(path.display()).expected("JSON").found(e))
}

/// An object of names and texts, a list of texts, or a list of objects with a name and a text.
fn from_json(value: &Value, path: &Path) -> Result<Listed> {
    const NAMES: [&str; 6] = ["file_name", "file", "filename", "image", "picture", "name"];
    const TEXTS: [&str; 4] = ["prompt", "text", "caption", "description"];
    let wrong = |found: &Value| {
        let error = Error::new("prompts").at(path.display());
        let error = error.expected("names and texts, texts, or objects with `file_name` and `prompt`");
        error.found(found.to_string().chars().take(80).collect::<String>())
    };
    match value {
        Value::Object(map) => {
            let pair = |(name, text): (&String, &Value)| match text {
                Value::String(text) => Ok((name.clone(), text.clone())),
                other => Err(wrong(other)),
            };
            Ok(Listed::Named(map.iter().map(pair).collect::<Result<_>>()?))
        }
        Value::Array(items) if items.iter().all(Value::is_string) => {
            Ok(Listed::InOrder(items.iter().filter_map(Value::as_str).map(str::to_owned).collect()))
        }
        Value::Array(items) => {
            let word = |item: &Value, keys: &[&str]| {
                keys.iter().find_map(|key| item.get(*key)).and_then(Value::as_str).map(str::to_owned)
            };
            let pair = |item: &Value| Some((word(item, &NAMES)?, word(item, &TEXTS)?));
            let pairs = items.iter().map(|item| pair(item).ok_or_else(|| wrong(item)));
            Ok(Listed::Named(pairs.collect::<Result<_>>()?))
        }
        other => Err(wrong(other)),
    }
}

/// Two columns, name and text, the first line perhaps their names (RFC 4180).
fn from_table(text: &str, separator: char, path: &Path) -> Result<Vec<(String, String)>> {
    const HEADERS: [&str; 8] = ["file_name", "file", "filename", "image", "image_path", "path", "picture", "name"];
    let mut found = Vec::new();
    for (number, row) in rows(text, separator).into_iter().enumerate() {
        match <[String; 2]>::try_from(row) {
            Ok([name, _]) if number == 0 && HEADERS.contains(&name.trim().to_ascii_lowercase().as_str()) => {}
            Ok([name, text]) => found.push((name.trim().to_owned(), text)),
            Err(row) => {
                return Err(Error::new("prompts")
                    .at(format!("{}: row {}", path.display(), number + 1))
                    .expected("two columns, a picture's name and its prompt")
                    .found(format!("{} columns", row.len()))
                    .hint("quotes around a prompt that holds commas"));
            }
        }
    }
    Ok(found)
}

fn rows(text: &str, separator: char) -> Vec<Vec<String>> {
    let (mut rows, mut row, mut cell) = (Vec::new(), Vec::new(), String::new());
    let mut letters = text.chars().peekable();
    let (mut quoted, mut begun) = (false, false);
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => cell.extend(letters.next()),
            '"' if quoted => quoted = false,
            '"' if cell.is_empty() => (quoted, begun) = (true, true),
            '\r' if !quoted && letters.peek() == Some(&'\n') => {}
            '\n' if !quoted => {
                if begun || !cell.is_empty() || !row.is_empty() {
                    row.push(std::mem::take(&mut cell));
                    rows.push(std::mem::take(&mut row));
                }
                begun = false;
            }
            letter if letter == separator && !quoted => row.push(std::mem::take(&mut cell)),
            letter => cell.push(letter),
        }
    }
    if begun || !cell.is_empty() || !row.is_empty() {
        row.push(cell);
        rows.push(row);
    }
    rows
}

/// A picture goes by its file's name, with the ending or without; folders in a listed name do not matter.
fn match_names(path: &Path, named: Vec<(String, String)>, pictures: &[PathBuf]) -> Result<Vec<String>> {
    let mut texts: BTreeMap<String, String> = BTreeMap::new();
    for (name, text) in named {
        let key = name.rsplit(['/', '\\']).next().unwrap_or(&name).to_owned();
        if let Some(other) = texts.insert(key, text) {
            let error = Error::usage("two prompts for one picture").at(format!("{}: {name}", path.display()));
            return Err(error.expected("one").found(format!("{other:?} and another")));
        }
    }
    let mut used = 0;
    let mut found = Vec::with_capacity(pictures.len());
    for picture in pictures {
        let [name, stem] =
            [picture.file_name(), picture.file_stem()].map(|name| name.unwrap_or_default().to_string_lossy());
        match texts.get(name.as_ref()).or_else(|| texts.get(stem.as_ref())) {
            Some(text) => found.push(text.clone()),
            None => {
                return Err(Error::usage("a picture without a prompt")
                    .at(picture.display())
                    .expected(format!("its name among the {} of {}", texts.len(), path.display()))
                    .found("none")
                    .hint("the names of the pictures' files"));
            }
        }
        used += 1;
    }
    if texts.len() > used {
        return Err(count(path, used, texts.len()));
    }
    Ok(found)
}

/// The prompt in a PNG's text.
fn embedded(picture: &Path) -> Result<String> {
    let none = |found: &str| {
        Error::new("a picture that does not tell its prompt")
            .at(picture.display())
            .expected(format!("a PNG with the text `{KEY}`, as scumble and AUTOMATIC1111's web UI write it"))
            .found(found)
            .hint("a file of prompts")
    };
    let file = File::open(picture).map_err(|e| Error::io("cannot read the picture", picture, &e))?;
    let mut decoder = png::Decoder::new(BufReader::new(file));
    decoder.set_ignore_text_chunk(false);
    let mut reader = decoder.read_info().map_err(|_| none("no PNG"))?;
    // Texts may stand behind the pixels.
    let _ = reader.finish();
    let info = reader.info();
    let plain = info.uncompressed_latin1_text.iter().find(|chunk| chunk.keyword == KEY).map(|chunk| chunk.text.clone());
    let packed = || {
        let chunk = info.compressed_latin1_text.iter().find(|chunk| chunk.keyword == KEY)?;
        chunk.get_text().ok()
    };
    let wide = || info.utf8_text.iter().find(|chunk| chunk.keyword == KEY)?.get_text().ok();
    let text = plain.or_else(packed).or_else(wide).ok_or_else(|| none("no such text"))?;
    Ok(prompt_of(&text).to_owned())
}

/// The prompt of a picture's text: what stands before `Negative prompt:` and before the last line's fields.
pub fn prompt_of(text: &str) -> &str {
    let text = text.trim_end();
    let (above, last) = text.rsplit_once('\n').unwrap_or(("", text));
    let fields = last.matches(": ").count() >= 3 && last.contains("Seed: ") && last.contains("Size: ");
    let text = if fields { above } else { text };
    let begins = |at: &usize| *at == 0 || text.as_bytes()[at - 1] == b'\n';
    let negative = text.match_indices("Negative prompt:").map(|(at, _)| at).find(begins);
    text[..negative.unwrap_or(text.len())].trim()
}

#[cfg(test)]
#[path = "prompts_tests.rs"]
mod tests;
