//! `scumble evaluate fid`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::features::{self, FeatureArgs, check_saved, is_saved};
use crate::cli::print_line;
use crate::cli::progress::{Reporter, Unit};
use crate::error::{Error, Result};
use crate::evaluate::inception::{Extractor, Variant};
use crate::evaluate::saved;
use crate::evaluate::statistics::{Statistics, frechet};

/// Below as many pictures a covariance of 2048 channels is singular.
const ENOUGH: u64 = 2048;

/// `scumble evaluate fid`
#[derive(Debug, Args)]
pub struct FidArgs {
    /// A folder of pictures, or statistics saved as .npz
    #[arg(value_name = "A")]
    pub a: PathBuf,

    /// The other one
    #[arg(value_name = "B")]
    pub b: PathBuf,

    /// How pictures become features.
    #[command(flatten)]
    pub features: FeatureArgs,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// One of the two sets.
struct Set {
    path: PathBuf,
    statistics: Statistics,
    /// Pictures, where it is known.
    count: Option<u64>,
    /// Whether the features were read and not made.
    saved: bool,
    /// Whether the file tells who prepared the pictures.
    told: bool,
}

/// Runs the command.
pub fn run(args: &FidArgs) -> Result<()> {
    let mut reporter = Reporter::stderr();
    let paths = [&args.a, &args.b];
    let files = paths.map(|path| if is_saved(path) { Ok(None) } else { args.features.pictures(path).map(Some) });
    let [a, b] = files;
    let files = [a?, b?];
    for (path, files) in paths.iter().zip(&files) {
        if files.as_ref().is_some_and(|files| files.len() < 2) {
            return Err(Error::new("too few pictures for a covariance")
                .at(path.display())
                .expected("2 or more")
                .found(1));
        }
    }
    let sizes: Vec<usize> = files.iter().flatten().map(Vec::len).collect();
    // What was saved is checked before the long work.
    let mut sets = [None, None];
    for ((path, files), set) in paths.iter().zip(&files).zip(&mut sets) {
        if files.is_none() {
            *set = Some(read(path, &args.features)?);
        }
    }
    let mut extractor = if sizes.is_empty() { None } else { Some(args.features.open(&sizes, &mut reporter)?) };
    for (((path, files), set), name) in paths.iter().zip(&files).zip(&mut sets).zip(["A", "B"]) {
        if let (Some(files), Some(extractor)) = (files, &mut extractor) {
            *set = Some(made(path, files, extractor, name, &mut reporter)?);
        }
    }
    let [Some(a), Some(b)] = sets else { return Err(Error::new("a set without features")) };
    reporter.begin("distance", 0, Unit::Pieces);
    let value = frechet(&a.statistics, &b.statistics)?;
    reporter.end();
    let sets = [&a, &b];
    let notes = notes(&sets, &args.features);
    let text = if args.json {
        told(value, &sets, &args.features, &notes).to_string()
    } else {
        words(value, &sets, &args.features, &notes)
    };
    print_line(&text)
}

fn read(path: &Path, args: &FeatureArgs) -> Result<Set> {
    let found = saved::read(path)?;
    check_saved(path, found.variant, found.statistics.channels(), args)?;
    let told = found.variant.is_some();
    Ok(Set { path: path.to_owned(), statistics: found.statistics, count: found.count, saved: true, told })
}

fn made(path: &Path, files: &[PathBuf], extractor: &mut Extractor, name: &str, reporter: &mut Reporter) -> Result<Set> {
    let features = features::features(extractor, files, name, reporter)?;
    let statistics = Statistics::of(&features)?;
    Ok(Set { path: path.to_owned(), statistics, count: Some(files.len() as u64), saved: false, told: true })
}

/// What the figure means and what it may not be compared with.
fn notes(sets: &[&Set; 2], args: &FeatureArgs) -> Vec<String> {
    let variant = args.variant();
    let mut notes = vec![
        "0 is the distance of equal sets, and less is better. It compares sets, never single pictures.".to_owned(),
        format!(
            "Comparable only with figures of {}'s preparation ({}) on {} channels: other programs resize in other ways.",
            variant.name(),
            variant.resize_words(),
            args.dims.channels()
        ),
        "Comparable only between sets of as many pictures: the fewer, the larger it comes out for the same generator."
            .to_owned(),
    ];
    let few: Vec<u64> = sets.iter().filter_map(|set| set.count).filter(|count| *count < ENOUGH).collect();
    if let Some(least) = few.iter().min() {
        notes.push(format!(
            "warning: {least} pictures are fewer than {ENOUGH}: below that a covariance of 2048 channels is singular and the \
             figure mostly tells how few there are. Published figures take 10,000 to 50,000. `scumble evaluate kid` suits small sets."
        ));
    }
    if args.dims.channels() != 2048 {
        notes.push("warning: published figures take 2048 channels.".to_owned());
    }
    for set in sets.iter().filter(|set| !set.told) {
        notes.push(format!(
            "{} does not tell how its pictures were resized, nor how many there were: it is taken for {}'s.",
            set.path.display(),
            variant.name()
        ));
    }
    notes
}

fn described(set: &Set) -> String {
    let count =
        set.count.map_or_else(|| "an unknown number of pictures".to_owned(), |count| format!("{count} pictures"));
    let saved = if set.saved { ", saved statistics" } else { "" };
    format!("{}, {count}{saved}", set.path.display())
}

fn words(value: f64, sets: &[&Set; 2], args: &FeatureArgs, notes: &[String]) -> String {
    let mut lines = vec![format!("FID ({}, {} channels): {value:.6}", args.variant().name(), args.dims.channels())];
    lines.extend(sets.iter().zip(["A", "B"]).map(|(set, name)| format!("{name}: {}", described(set))));
    lines.extend(notes.iter().cloned());
    lines.join("\n")
}

fn told(value: f64, sets: &[&Set; 2], args: &FeatureArgs, notes: &[String]) -> Value {
    let variant: Variant = args.variant();
    let set = |set: &Set| json!({ "path": set.path.display().to_string(), "pictures": set.count, "saved": set.saved });
    json!({
        "measure": "fid",
        "value": value,
        "variant": variant.name(),
        "resize": variant.resize_words(),
        "dims": args.dims.channels(),
        "a": set(sets[0]),
        "b": set(sets[1]),
        "notes": notes,
    })
}
