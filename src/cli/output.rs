//! Where pictures go and how they become PNG files.

use std::path::{Path, PathBuf};

use crate::cli::files;
use crate::error::{Error, Result};

/// Name endings of picture formats that scumble does not write.
const OTHER_FORMATS: [&str; 10] = ["jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "avif", "jxl", "heic"];
/// How many names are tried before giving up on finding a free one.
const NAME_TRIES: u32 = 100_000;

/// The place of one picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// This file; an old one is replaced.
    Exact(PathBuf),
    /// `scumble-SEED.png` in this folder, or with -1, -2, ... where that exists.
    Fresh {
        /// The folder.
        folder: PathBuf,
        /// The picture's seed.
        seed: u64,
    },
}

impl Target {
    /// The place of the picture with `seed`, one of `count`, for the option `-o` (or none).
    pub fn new(output: Option<&Path>, seed: u64, count: u32) -> Self {
        match output {
            None => Self::Fresh { folder: PathBuf::from("."), seed },
            Some(path) if count == 1 => Self::Exact(path.to_owned()),
            Some(path) => Self::Exact(with_seed(path, seed)),
        }
    }

    /// Finds out before the long work whether this place can be written.
    pub fn check(&self) -> Result<()> {
        match self {
            Self::Exact(path) => {
                let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or("").to_ascii_lowercase();
                if OTHER_FORMATS.contains(&ending.as_str()) {
                    return Err(Error::usage("picture format")
                        .at(path.display())
                        .expected("a name that ends in .png")
                        .found(format!(".{ending}"))
                        .hint(path.with_extension("png").display()));
                }
                files::check_writable(path)
            }
            Self::Fresh { folder, .. } => files::check_folder(folder),
        }
    }

    /// Writes the picture's bytes, whole or not at all; gives the name that it has now.
    pub fn write(&self, bytes: &[u8]) -> Result<PathBuf> {
        match self {
            Self::Exact(path) => {
                files::replace_file(path, |out| out.write_all(bytes))?;
                Ok(path.clone())
            }
            Self::Fresh { folder, seed } => {
                let names = (0..NAME_TRIES).map(|number| match number {
                    0 => format!("scumble-{seed}.png"),
                    _ => format!("scumble-{seed}-{number}.png"),
                });
                let folder = if folder == Path::new(".") { Path::new("") } else { folder };
                files::create_file(names.map(|name| folder.join(name)), |out| out.write_all(bytes))
            }
        }
    }
}

/// `out.png` -> `out-SEED.png`
pub fn with_seed(path: &Path, seed: u64) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{seed}"));
    if let Some(ending) = path.extension() {
        name.push(".");
        name.push(ending);
    }
    path.with_file_name(name)
}

/// A PNG of 8-bit RGB (`rgb`: rows from the top, `width * height * 3` bytes) that carries `infotext` under the key
/// `parameters`: as tEXt, or as iTXt where a letter is not in Latin-1.
pub fn encode_png(width: u32, height: u32, rgb: &[u8], infotext: &str) -> Result<Vec<u8>> {
    let expected = u64::from(width) * u64::from(height) * 3;
    if expected != rgb.len() as u64 {
        return Err(Error::new("picture size").at(format!("{width}x{height}")).expected(expected).found(rgb.len()));
    }
    let fault = |fault: png::EncodingError| Error::new("cannot encode the PNG").found(fault);
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Balanced);
    // PNG's text ends at a zero byte.
    let text = infotext.replace('\0', "\u{fffd}");
    let key = "parameters".to_owned();
    if text.chars().all(|letter| u32::from(letter) < 256) {
        encoder.add_text_chunk(key, text).map_err(fault)?;
    } else {
        encoder.add_itxt_chunk(key, text).map_err(fault)?;
    }
    let mut writer = encoder.write_header().map_err(fault)?;
    writer.write_image_data(rgb).map_err(fault)?;
    writer.finish().map_err(fault)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_count_and_seed() {
        let out = Path::new("some.dir/out.v2.png");
        assert_eq!(Target::new(Some(out), 7, 1), Target::Exact(out.into()));
        assert_eq!(Target::new(Some(out), 7, 4), Target::Exact("some.dir/out.v2-7.png".into()));
        assert_eq!(with_seed(Path::new("out"), 7), PathBuf::from("out-7"));
        assert_eq!(Target::new(None, 7, 4), Target::Fresh { folder: ".".into(), seed: 7 });
    }

    #[test]
    fn a_default_name_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let target = Target::Fresh { folder: folder.path().into(), seed: 5 };
        target.check().unwrap();
        let names: Vec<_> = (0..3).map(|_| target.write(b"x").unwrap()).collect();
        let expected = ["scumble-5.png", "scumble-5-1.png", "scumble-5-2.png"].map(|name| folder.path().join(name));
        assert_eq!(names, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn other_formats_are_refused() {
        let error = Target::Exact("out.JPG".into()).check().unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Usage);
        assert!(error.to_string().contains("Try out.png"), "{error}");
    }

    /// Chunks by hand: length, kind, data, checksum (PNG specification, 5.3).
    fn chunks(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut rest = &bytes[8..];
        let mut found = Vec::new();
        while !rest.is_empty() {
            let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
            found.push((String::from_utf8(rest[4..8].to_vec()).unwrap(), rest[8..8 + length].to_vec()));
            rest = &rest[12 + length..];
        }
        found
    }

    #[test]
    fn a_png_carries_pixels_and_text() {
        let rgb: Vec<u8> = (0..3 * 5 * 3).map(|i| i as u8 * 5).collect();
        for (text, kind, prefix) in [
            ("a caf\u{e9}\nSteps: 1", "tEXt", &b"parameters\0"[..]),
            ("日本語 😀\nSteps: 1", "iTXt", &b"parameters\0\0\0\0\0"[..]),
        ] {
            let bytes = encode_png(3, 5, &rgb, text).unwrap();
            let found = chunks(&bytes);
            let data = &found.iter().find(|(name, _)| name == kind).unwrap().1;
            let payload = data.strip_prefix(prefix).unwrap();
            let decoded = match kind {
                "tEXt" => payload.iter().map(|byte| char::from(*byte)).collect(),
                _ => String::from_utf8(payload.to_vec()).unwrap(),
            };
            assert_eq!(decoded, text);
            let mut reader = png::Decoder::new(std::io::Cursor::new(&bytes)).read_info().unwrap();
            let mut pixels = vec![0; rgb.len()];
            let info = reader.next_frame(&mut pixels).unwrap();
            assert_eq!((info.width, info.height, info.color_type), (3, 5, png::ColorType::Rgb));
            assert_eq!(pixels, rgb);
        }
        assert!(encode_png(3, 5, &rgb[1..], "").is_err());
    }
}
