//! `scumble generate`: from the command line to PNG files.
//!
//! What can be told before the long work (seeds, places to write, the given noise) is settled first; then the model
//! is loaded and each picture drawn and written. The model is behind [`Painter`], so that all this is tested without one.

use std::path::PathBuf;

use crate::cli::args::GenerateArgs;
use crate::cli::infotext::Infotext;
use crate::cli::latents::{Dump, read_latents};
use crate::cli::model_hash::{HashSource, ModelHash};
use crate::cli::output::{Target, encode_png, with_seed};
use crate::cli::progress::Reporter;
use crate::cli::{about, files, painter, print_line};
use crate::error::{Error, Result};
use crate::pipelines::{Request, Summary};
use crate::tensor::HostTensor;
use crate::text::Encoded;

/// A drawn picture and what the model's defaults came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Rows from the top, red, green, blue: `width * height * 3` bytes.
    pub rgb: Vec<u8>,
    /// What the model's defaults came to.
    pub summary: Summary,
}

/// What this command needs of a loaded model.
pub trait Painter {
    /// The name that the PNG tells, without folders and endings.
    fn model_name(&self) -> String;
    /// What to hash for the PNG.
    fn hash_source(&self) -> HashSource;
    /// Draws one picture: tells `reporter` its stages and gives `dump`, if any, every named intermediate.
    fn draw(&mut self, request: &Request, reporter: &mut Reporter, dump: Option<&mut Dump>) -> Result<Picture>;
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let job = Job::new(args)?;
    let mut reporter = Reporter::stderr();
    if args.explain {
        return print_line(about::explain(args, &job.pictures[0].request)?.trim_end());
    }
    if args.seed.is_none() {
        reporter.line(&format!("seed: {}", job.pictures[0].request.seed));
    }
    let mut painter = painter::load(args, &mut reporter)?;
    reporter.end();
    job.draw(painter.as_mut(), &mut reporter, &mut |path| print_line(&path.display().to_string()))
}

/// A warning for a prompt that did not fit into the text encoder.
pub fn truncation_warning(what: &str, encoded: &Encoded) -> Option<String> {
    let text = encoded.truncated.as_deref()?;
    let (count, room) = (encoded.truncated_tokens, encoded.ids.len());
    Some(format!(
        "warning: the {what} is {count} tokens longer than the {room} that the text encoder takes; left out: {text:?}"
    ))
}

/// One picture with its places.
#[derive(Debug)]
struct Planned {
    request: Request,
    target: Target,
    dump: Option<PathBuf>,
}

/// The pictures of one command.
#[derive(Debug)]
struct Job {
    pictures: Vec<Planned>,
    /// As A1111 counts, for the infotext.
    clip_skip: Option<u32>,
}

impl Job {
    fn new(args: &GenerateArgs) -> Result<Self> {
        let seed = args.seed.map_or_else(random_seed, Ok)?;
        if seed.checked_add(u64::from(args.batch) - 1).is_none() {
            let expected = format!("a seed that can be counted up {} times", args.batch - 1);
            return Err(Error::usage("seed").at("--seed").expected(expected).found(seed).hint("a smaller seed"));
        }
        if args.dump.is_some() && args.dump == args.output {
            return Err(Error::usage("--dump and --output name the same file").hint("two names"));
        }
        let latents = match &args.latents {
            Some(path) => read_latents(path, args.batch)?.into_iter().map(Some).collect(),
            None => vec![None; args.batch as usize],
        };
        let pictures: Vec<Planned> = latents
            .into_iter()
            .zip(seed..)
            .map(|(latents, seed)| Planned {
                request: request(args, seed, latents),
                target: Target::new(args.output.as_deref(), seed, args.batch),
                dump: args.dump.as_ref().map(|path| if args.batch > 1 { with_seed(path, seed) } else { path.clone() }),
            })
            .collect();
        if let (false, Some(first)) = (args.explain, pictures.first()) {
            first.target.check()?;
            first.dump.as_deref().map_or(Ok(()), files::check_writable)?;
        }
        Ok(Self { pictures, clip_skip: args.clip_skip })
    }

    /// Draws and writes every picture; `written` is told each file.
    fn draw(
        &self,
        painter: &mut dyn Painter,
        reporter: &mut Reporter,
        written: &mut dyn FnMut(&std::path::Path) -> Result<()>,
    ) -> Result<()> {
        let mut hashing = Some(ModelHash::start(painter.hash_source()));
        let mut hash = None;
        for planned in &self.pictures {
            let request = &planned.request;
            if self.pictures.len() > 1 {
                reporter.line(&format!("picture with seed {}", request.seed));
            }
            let mut dump = planned.dump.clone().map(Dump::new);
            let picture = painter.draw(request, reporter, dump.as_mut())?;
            reporter.end();
            if let Some(hashing) = hashing.take() {
                hash = hashing.finish();
            }
            let infotext = Infotext {
                prompt: &request.prompt,
                negative_prompt: request.negative_prompt.as_deref().unwrap_or(""),
                summary: &picture.summary,
                guidance_rescale: request.guidance_rescale,
                seed: request.seed,
                width: picture.width,
                height: picture.height,
                model_hash: hash.as_deref(),
                model: &painter.model_name(),
                clip_skip: self.clip_skip,
            };
            let png = encode_png(picture.width, picture.height, &picture.rgb, &infotext.to_string())?;
            if let Some(dump) = dump {
                dump.write()?;
            }
            written(&planned.target.write(&png)?)?;
        }
        Ok(())
    }
}

fn request(args: &GenerateArgs, seed: u64, latents: Option<HostTensor>) -> Request {
    Request {
        prompt: args.prompt.clone(),
        negative_prompt: args.negative_prompt.clone(),
        width: args.width,
        height: args.height,
        steps: args.steps,
        guidance_scale: args.cfg_scale,
        guidance_rescale: args.guidance_rescale,
        sampler: args.sampler.clone(),
        schedule: args.schedule.clone(),
        seed,
        clip_skip: args.clip_skip.map(|layer| layer - 1).filter(|skipped| *skipped > 0),
        latents,
        image: args.image.clone(),
        top_k: args.top_k,
        temperature: args.temperature,
        sr_steps: args.sr_steps,
        prior_steps: args.prior_steps,
        prior_guidance_scale: args.prior_cfg_scale,
        noise_level: args.noise_level,
    }
}

/// 32 bits, so that every other program takes the number too.
fn random_seed() -> Result<u64> {
    let drawn = getrandom::u32().map_err(|fault| {
        Error::new("the system gives no random numbers").found(fault).hint("choosing a seed yourself with --seed")
    })?;
    Ok(u64::from(drawn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser;

    fn args(words: &[&str]) -> GenerateArgs {
        let cli = Cli::try_parse_from(["scumble", "generate", "a cat"].iter().chain(words)).unwrap();
        let Command::Generate(args) = cli.command else { panic!("another command") };
        *args
    }

    /// Paints a grey of the seed's strength.
    struct Grey {
        fail_at: Option<u64>,
    }

    impl Painter for Grey {
        fn model_name(&self) -> String {
            "grey".into()
        }
        fn hash_source(&self) -> HashSource {
            HashSource::Bytes(b"abc")
        }
        fn draw(&mut self, request: &Request, _: &mut Reporter, dump: Option<&mut Dump>) -> Result<Picture> {
            if self.fail_at == Some(request.seed) {
                return Err(Error::new("no more paint"));
            }
            if let Some(dump) = dump {
                dump.push("image", HostTensor::new(vec![1], vec![request.seed as f32])?);
            }
            let (width, height) = (request.width.unwrap_or(8), request.height.unwrap_or(8));
            Ok(Picture {
                width,
                height,
                rgb: vec![request.seed as u8; (width * height * 3) as usize],
                summary: Summary {
                    steps: Some(20),
                    guidance_scale: Some(request.guidance_scale.unwrap_or(7.5)),
                    sampler: Some("euler_a".into()),
                    schedule: Some("trailing".into()),
                    further: Vec::new(),
                },
            })
        }
    }

    fn draw(job: &Job, fail_at: Option<u64>) -> (Vec<PathBuf>, Result<()>) {
        let mut paths = Vec::new();
        let mut reporter = Reporter::lines(Box::new(std::io::sink()));
        let result = job.draw(&mut Grey { fail_at }, &mut reporter, &mut |path| {
            paths.push(path.to_owned());
            Ok(())
        });
        (paths, result)
    }

    #[test]
    fn a_batch_counts_seeds_and_names() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.png");
        let dump = folder.path().join("d.safetensors");
        let words = ["-b", "3", "-s", "7", "-W", "16", "-o", out.to_str().unwrap(), "--dump", dump.to_str().unwrap()];
        let job = Job::new(&args(&words)).unwrap();
        let (paths, result) = draw(&job, None);
        result.unwrap();
        assert_eq!(paths, [7, 8, 9].map(|seed| folder.path().join(format!("out-{seed}.png"))));
        let mut reader =
            png::Decoder::new(std::io::Cursor::new(std::fs::read(&paths[2]).unwrap())).read_info().unwrap();
        let mut pixels = vec![0; 16 * 8 * 3];
        reader.next_frame(&mut pixels).unwrap();
        assert!(pixels.iter().all(|value| *value == 9));
        let text = &reader.info().uncompressed_latin1_text[0];
        assert_eq!(text.keyword, "parameters");
        for part in ["a cat\nSteps: 20, Sampler: Euler a", "Seed: 9, Size: 16x8, Model hash: ba7816bf8f, Model: grey"] {
            assert!(text.text.contains(part), "{}", text.text);
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 6);
        assert!(folder.path().join("d-8.safetensors").exists());
    }

    #[test]
    fn a_failure_keeps_what_is_done_and_leaves_no_part() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.png");
        let job = Job::new(&args(&["-b", "2", "-s", "0", "-o", out.to_str().unwrap()])).unwrap();
        let (paths, result) = draw(&job, Some(1));
        assert!(result.unwrap_err().to_string().contains("no more paint"));
        assert_eq!(paths, [folder.path().join("out-0.png")]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn requests_carry_what_was_asked() {
        let words =
            ["-n", "-blurry", "-H", "24", "--steps", "3", "--cfg-scale", "2.5", "--clip-skip", "2", "--explain"];
        let job = Job::new(&args(&words)).unwrap();
        let request = &job.pictures[0].request;
        assert_eq!(request.negative_prompt.as_deref(), Some("-blurry"));
        assert_eq!((request.width, request.height, request.steps), (None, Some(24), Some(3)));
        assert_eq!((request.guidance_scale, request.guidance_rescale, request.clip_skip), (Some(2.5), 0.0, Some(1)));
        assert!(request.seed <= u64::from(u32::MAX));
        let first_layer = Job::new(&args(&["--clip-skip", "1", "--explain"])).unwrap();
        assert_eq!(first_layer.pictures[0].request.clip_skip, None);
    }

    #[test]
    fn impossible_requests_are_usage_errors() {
        let fault = |words: &[&str]| Job::new(&args(words)).unwrap_err();
        let seed = fault(&["-s", "18446744073709551615", "-b", "2"]);
        let same = fault(&["-o", "a.png", "--dump", "a.png"]);
        for error in [seed, same] {
            assert_eq!(error.kind(), crate::error::ErrorKind::Usage, "{error}");
        }
    }

    #[test]
    fn a_cut_prompt_is_told() {
        let encoded = Encoded { ids: vec![0; 77], seen: 0..77, truncated: Some("big cat".into()), truncated_tokens: 2 };
        let warning = truncation_warning("prompt", &encoded).unwrap();
        assert!(
            warning.contains("2 tokens longer than the 77") && warning.ends_with("left out: \"big cat\""),
            "{warning}"
        );
        assert_eq!(truncation_warning("prompt", &Encoded { truncated: None, ..encoded }), None);
    }
}
