//! `scumble evaluate kid`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::features::{self, FeatureArgs, check_saved, is_saved};
use crate::cli::print_line;
use crate::cli::progress::{Reporter, Unit};
use crate::error::{Error, Result};
use crate::evaluate::kid::{Kid, Subsets, kid};
use crate::evaluate::saved;
use crate::evaluate::statistics::Features;

/// `scumble evaluate kid`
#[derive(Debug, Args)]
pub struct KidArgs {
    /// A folder of pictures, or features saved as .npz by `stats --features`
    #[arg(value_name = "A")]
    pub a: PathBuf,

    /// The other one
    #[arg(value_name = "B")]
    pub b: PathBuf,

    /// Random subsets whose distances are averaged
    #[arg(long, value_name = "COUNT", default_value = "100", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub subsets: u32,

    /// Pictures of each set in a subset [default: 1000, or as many as the smaller set has]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(2..))]
    pub subset_size: Option<u32>,

    /// Seed of the choice of subsets, the same as torch's
    #[arg(short, long, value_name = "SEED", default_value = "0")]
    pub seed: u64,

    /// How pictures become features.
    #[command(flatten)]
    pub features: FeatureArgs,

    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Pictures of a subset unless it is said, as in torchmetrics, torch-fidelity and clean-fid.
const SIZE: usize = 1000;

/// Runs the command.
pub fn run(args: &KidArgs) -> Result<()> {
    let mut reporter = Reporter::stderr();
    let paths = [&args.a, &args.b];
    let [a, b] = paths.map(|path| if is_saved(path) { Ok(None) } else { args.features.pictures(path).map(Some) });
    let files = [a?, b?];
    let mut sets: [Option<Features>; 2] = [None, None];
    for ((path, files), set) in paths.iter().zip(&files).zip(&mut sets) {
        if files.is_none() {
            let (features, variant) = saved::read_features(path)?;
            check_saved(path, variant, features.channels, &args.features)?;
            *set = Some(features);
        }
    }
    let count = |set: &Option<Features>, files: &Option<Vec<PathBuf>>| {
        files.as_ref().map_or_else(|| set.as_ref().map_or(0, Features::count), Vec::len)
    };
    let counts = [0, 1].map(|index: usize| count(&sets[index], &files[index]));
    let size = size(args, counts)?;
    let sizes: Vec<usize> = files.iter().flatten().map(Vec::len).collect();
    let mut extractor = if sizes.is_empty() { None } else { Some(args.features.open(&sizes, &mut reporter)?) };
    for ((files, set), name) in files.iter().zip(&mut sets).zip(["A", "B"]) {
        if let (Some(files), Some(extractor)) = (files, &mut extractor) {
            *set = Some(features::features(extractor, files, name, &mut reporter)?);
        }
    }
    let [Some(a), Some(b)] = sets else { return Err(Error::new("a set without features")) };
    let whole = counts == [size; 2];
    let subsets = Subsets { count: if whole { 1 } else { args.subsets }, size, seed: args.seed };
    reporter.begin("subsets", u64::from(subsets.count), Unit::Pieces);
    let found = kid(&a, &b, subsets, &mut |done| reporter.set(u64::from(done)))?;
    reporter.end();
    let notes = notes(args, &subsets, whole);
    let text = if args.json {
        told(found, args, &subsets, counts, &notes).to_string()
    } else {
        words(found, args, &subsets, counts, &notes)
    };
    print_line(&text)
}

/// The size of a subset; what was asked for must fit, the default shrinks.
fn size(args: &KidArgs, counts: [usize; 2]) -> Result<usize> {
    let least = counts[0].min(counts[1]);
    let smaller: &Path = if counts[0] <= counts[1] { &args.a } else { &args.b };
    let asked = args.subset_size.map(|size| size as usize);
    if least < 2 || asked.is_some_and(|asked| asked > least) {
        let wanted = asked.unwrap_or(2);
        return Err(Error::usage("a subset is larger than a set of pictures")
            .at(smaller.display())
            .expected(format!("{wanted} or more pictures"))
            .found(least)
            .hint(if least < 2 { "a larger set".to_owned() } else { format!("--subset-size {least}") }));
    }
    Ok(asked.unwrap_or(SIZE.min(least)))
}

fn notes(args: &KidArgs, subsets: &Subsets, whole: bool) -> Vec<String> {
    let variant = args.features.variant();
    let mut notes = vec![
        "Equal distributions have 0 on average; less is better, and slightly below 0 is chance. Papers often print it times 1000.".to_owned(),
        format!(
            "Comparable only with figures of {}'s preparation ({}) on {} channels. Unlike FID it does not depend on how many \
             pictures there are, but its spread does.",
            variant.name(),
            variant.resize_words(),
            args.features.dims.channels()
        ),
        "The deviation is that of one subset's distance, not the error of the mean.".to_owned(),
    ];
    if args.subset_size.is_none() && subsets.size < SIZE {
        notes.push(format!(
            "note: subsets have {} pictures, as many as the smaller set, instead of {SIZE}.",
            subsets.size
        ));
    }
    if whole {
        notes.push(
            "note: a subset is the whole of both sets, so there is only one and its deviation says nothing.".to_owned(),
        );
    }
    notes
}

fn words(found: Kid, args: &KidArgs, subsets: &Subsets, counts: [usize; 2], notes: &[String]) -> String {
    let Kid { mean, deviation } = found;
    let (variant, dims) = (args.features.variant().name(), args.features.dims.channels());
    let mut lines = vec![
        format!("KID ({variant}, {dims} channels): {mean:.8}, deviation {deviation:.8}"),
        format!("{} subsets of {} pictures, seed {}", subsets.count, subsets.size, subsets.seed),
    ];
    for ((path, count), name) in [&args.a, &args.b].iter().zip(counts).zip(["A", "B"]) {
        lines.push(format!("{name}: {}, {count} pictures", path.display()));
    }
    lines.extend(notes.iter().cloned());
    lines.join("\n")
}

fn told(found: Kid, args: &KidArgs, subsets: &Subsets, counts: [usize; 2], notes: &[String]) -> Value {
    let variant = args.features.variant();
    let set = |path: &Path, count: usize| json!({ "path": path.display().to_string(), "pictures": count });
    json!({
        "measure": "kid",
        "value": found.mean,
        "deviation": found.deviation,
        "subsets": subsets.count,
        "subset_size": subsets.size,
        "seed": subsets.seed,
        "variant": variant.name(),
        "resize": variant.resize_words(),
        "dims": args.features.dims.channels(),
        "a": set(&args.a, counts[0]),
        "b": set(&args.b, counts[1]),
        "notes": notes,
    })
}
