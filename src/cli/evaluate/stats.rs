//! `scumble evaluate stats`.

use std::path::PathBuf;

use clap::Args;

use super::features::{self, FeatureArgs};
use crate::cli::progress::Reporter;
use crate::cli::{files, print_line};
use crate::error::{Error, Result};
use crate::evaluate::saved;
use crate::evaluate::statistics::Statistics;

/// `scumble evaluate stats`
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// A folder of pictures
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,

    /// Where to write mean and covariance, as pytorch-fid reads them; must end in .npz
    #[arg(value_name = "OUT.npz")]
    pub output: PathBuf,

    /// Write the features, too, which `kid` needs
    #[arg(long)]
    pub features: bool,

    /// How pictures become features.
    #[command(flatten)]
    pub how: FeatureArgs,
}

/// Runs the command.
pub fn run(args: &StatsArgs) -> Result<()> {
    let place = args.output.display();
    if !args.output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npz")) {
        let hint = args.output.with_extension("npz").display().to_string();
        return Err(Error::usage("name of the statistics").at(place).expected("a name that ends in .npz").hint(hint));
    }
    files::check_writable(&args.output)?;
    let mut reporter = Reporter::stderr();
    let pictures = args.how.pictures(&args.folder)?;
    if pictures.len() < 2 {
        let error = Error::new("too few pictures for a covariance").at(args.folder.display());
        return Err(error.expected("2 or more").found(pictures.len()));
    }
    let mut extractor = args.how.open(&[pictures.len()], &mut reporter)?;
    let found = features::features(&mut extractor, &pictures, "the pictures", &mut reporter)?;
    let statistics = Statistics::of(&found)?;
    let kept = args.features.then_some(&found);
    // A zip's directory is written by seeking, so the file is made in memory and written whole.
    let mut bytes = std::io::Cursor::new(Vec::new());
    saved::write(&mut bytes, &statistics, pictures.len() as u64, args.how.variant(), kept)
        .map_err(|fault| Error::new("cannot make the statistics").at(place).found(fault))?;
    files::replace_file(&args.output, |out| std::io::Write::write_all(out, bytes.get_ref()))?;
    print_line(&args.output.display().to_string())
}
