//! Statistics in files: numpy's `.npz` with `mu` and `sigma`, as pytorch-fid and clean-fid write and read them.
//!
//! scumble adds `count` (pictures), `variant` (its name, as bytes) and, where asked for, `feats` (the features, under clean-fid's name);
//! other programs do not look at them.

use std::io::{Read, Seek, Write};
use std::path::Path;

use faer::Mat;
use npyz::{NpyFile, Order, TypeChar, WriterBuilder};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::inception::Variant;
use super::statistics::{Features, Statistics};
use crate::error::{Error, Result};

/// Channels of a feature at most; the networks in use have up to 2048.
const MOST_CHANNELS: u64 = 1 << 14;
/// Numbers of stored features at most: a million pictures of 2048 channels.
const MOST_VALUES: u64 = 1 << 31;

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Mean and covariance.
    pub statistics: Statistics,
    /// Of how many pictures; other programs do not tell.
    pub count: Option<u64>,
    /// How the features were made; other programs do not tell.
    pub variant: Option<Variant>,
}

/// Writes statistics, and the features where they are given.
///
/// # Errors
/// Those of `out`.
pub fn write(
    out: &mut (impl Write + Seek),
    statistics: &Statistics,
    count: u64,
    variant: Variant,
    features: Option<&Features>,
) -> std::io::Result<()> {
    let channels = statistics.channels() as u64;
    let mut zip = ZipWriter::new(out);
    let covariance = &statistics.covariance;
    let rows = (0..covariance.nrows()).flat_map(|i| (0..covariance.ncols()).map(move |j| covariance[(i, j)]));
    array(&mut zip, "mu", &[channels], statistics.mean.iter().copied())?;
    array(&mut zip, "sigma", &[channels, channels], rows)?;
    array(&mut zip, "count", &[], [i64::try_from(count).unwrap_or(i64::MAX)].into_iter())?;
    let name = variant.name().as_bytes();
    array(&mut zip, "variant", &[name.len() as u64], name.iter().copied())?;
    if let Some(features) = features {
        array(&mut zip, "feats", &[features.count() as u64, channels], features.values.iter().copied())?;
    }
    zip.finish().map_err(std::io::Error::other)?.flush()
}

fn array<T: npyz::AutoSerialize>(
    zip: &mut ZipWriter<&mut (impl Write + Seek)>,
    name: &str,
    shape: &[u64],
    values: impl Iterator<Item = T>,
) -> std::io::Result<()> {
    // Random numbers hardly shrink, and numpy's own `savez` stores them, too.
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored).large_file(true);
    zip.start_file(format!("{name}.npy"), options).map_err(std::io::Error::other)?;
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(shape).writer(zip).begin_nd()?;
    writer.extend(values)?;
    writer.finish()
}

/// Reads statistics.
///
/// # Errors
/// A file that is no `.npz`, lacks `mu` or `sigma`, or whose arrays are none that a mean and a covariance can be.
pub fn read(path: &Path) -> Result<Saved> {
    let mut archive = Archive::open(path)?;
    let (shape, mean) = archive.need("mu", MOST_CHANNELS)?;
    if shape.len() != 1 {
        return Err(archive.shape_fault("mu", "one axis", &shape));
    }
    let channels = shape[0];
    let (shape, covariance) = archive.need("sigma", channels * channels)?;
    if shape != [channels, channels] {
        return Err(archive.shape_fault("sigma", &format!("[{channels}, {channels}]"), &shape));
    }
    let side = mean.len();
    let covariance = Mat::from_fn(side, side, |i, j| covariance[i * side + j]);
    let statistics = Statistics::given(mean, covariance).map_err(|fault| fault.at(path.display()))?;
    let count = archive.find("count", 1)?.and_then(|(_, values)| values.first().map(|count| *count as u64));
    let name = archive.find("variant", 64)?.map(|(_, values)| values.iter().map(|byte| *byte as u8 as char).collect());
    let variant = name.and_then(|name: String| Variant::ALL.into_iter().find(|variant| variant.name() == name));
    Ok(Saved { statistics, count, variant })
}

/// Reads features, the array `feats`.
///
/// # Errors
/// A file that is no `.npz` or has no such array of two axes.
pub fn read_features(path: &Path) -> Result<(Features, Option<Variant>)> {
    let mut archive = Archive::open(path)?;
    let (shape, values) = archive.need("feats", MOST_VALUES)?;
    let &[_, channels] = shape.as_slice() else { return Err(archive.shape_fault("feats", "two axes", &shape)) };
    let name = archive.find("variant", 64)?.map(|(_, values)| values.iter().map(|byte| *byte as u8 as char).collect());
    let variant = name.and_then(|name: String| Variant::ALL.into_iter().find(|variant| variant.name() == name));
    #[allow(clippy::cast_possible_truncation, reason = "features are made in single precision")]
    let values = values.into_iter().map(|value| value as f32).collect();
    Ok((Features { channels: channels as usize, values }, variant))
}

/// An opened `.npz`.
struct Archive<'a> {
    zip: ZipArchive<std::io::BufReader<std::fs::File>>,
    path: &'a Path,
}

/// Shape and values of an array, in row-major order.
type Array = (Vec<u64>, Vec<f64>);

impl<'a> Archive<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let file = std::fs::File::open(path).map_err(|e| Error::io("cannot open the statistics", path, &e))?;
        let zip = ZipArchive::new(std::io::BufReader::new(file)).map_err(|fault| {
            Error::new("broken statistics").at(path.display()).expected("numpy's .npz").found(fault)
        })?;
        Ok(Self { zip, path })
    }

    fn at(&self, name: &str) -> String {
        format!("{}: `{name}`", self.path.display())
    }

    fn shape_fault(&self, name: &str, expected: &str, shape: &[u64]) -> Error {
        shape_fault(&self.at(name), expected, shape)
    }

    fn need(&mut self, name: &str, most: u64) -> Result<Array> {
        let place = self.at(name);
        let names = self.zip.file_names().filter_map(|name| Some(name.ok()?.trim_end_matches(".npy").to_owned()));
        let names: Vec<String> = names.take(8).collect();
        self.find(name, most)?.ok_or_else(|| {
            let error = Error::new("missing array").at(place).expected("one of that name").found(names.join(", "));
            error.hint(match name {
                "feats" => "a file written by `scumble evaluate stats --features`, or clean-fid's of features",
                _ => "a file written by `scumble evaluate stats`, pytorch-fid or clean-fid",
            })
        })
    }

    /// An array of at most `most` numbers of any real type.
    fn find(&mut self, name: &str, most: u64) -> Result<Option<Array>> {
        let place = self.at(name);
        let fault = |found: &dyn std::fmt::Display| Error::new("broken array").at(&place).found(found);
        let entry = format!("{name}.npy");
        if self.zip.index_for_name(&entry).is_none() {
            return Ok(None);
        }
        let file = self.zip.by_name(&entry).map_err(|e| fault(&e))?;
        let header_and_values = most.saturating_mul(16).saturating_add(1 << 16);
        let npy = NpyFile::new(file.take(header_and_values)).map_err(|e| fault(&e))?;
        let shape = npy.shape().to_vec();
        let count = shape.iter().try_fold(1u64, |count, axis| count.checked_mul(*axis));
        if count.is_none_or(|count| count > most) {
            return Err(shape_fault(&place, &format!("at most {most} numbers"), &shape));
        }
        if npy.order() == Order::Fortran && shape.len() > 1 {
            // A covariance is the same either way; features are not.
            if name != "sigma" {
                return Err(fault(&"an array in Fortran's order").expected("C's order"));
            }
        }
        Ok(Some((shape, numbers(npy).map_err(|e| fault(&e))?)))
    }
}

fn shape_fault(place: &str, expected: &str, shape: &[u64]) -> Error {
    Error::new("shape of an array").at(place).expected(expected).found(format!("{shape:?}"))
}

fn numbers(npy: NpyFile<impl Read>) -> std::io::Result<Vec<f64>> {
    let npyz::DType::Plain(kind) = npy.dtype() else {
        return Err(std::io::Error::other("an array of structures"));
    };
    match (kind.type_char(), kind.size_field()) {
        (TypeChar::Float, 8) => npy.into_vec::<f64>(),
        (TypeChar::Float, 4) => Ok(npy.into_vec::<f32>()?.into_iter().map(f64::from).collect()),
        (TypeChar::Int, 8) => Ok(npy.into_vec::<i64>()?.into_iter().map(|value| value as f64).collect()),
        (TypeChar::Uint, 1) => Ok(npy.into_vec::<u8>()?.into_iter().map(f64::from).collect()),
        _ => Err(std::io::Error::other(format!("an array of type {kind}, expected <f8 or <f4"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sampling::TorchGenerator;

    fn features() -> Features {
        Features { channels: 5, values: TorchGenerator::new(1).randn(60) }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let features = features();
        let statistics = Statistics::of(&features).unwrap();
        let mut file = std::fs::File::create(&path).unwrap();
        write(&mut file, &statistics, 12, Variant::CleanFid, Some(&features)).unwrap();
        let found = read(&path).unwrap();
        assert_eq!((found.count, found.variant), (Some(12), Some(Variant::CleanFid)));
        assert_eq!(found.statistics.mean, statistics.mean);
        assert!((0..25).all(|i| found.statistics.covariance[(i / 5, i % 5)] == statistics.covariance[(i / 5, i % 5)]));
        assert_eq!(read_features(&path).unwrap(), (features, Some(Variant::CleanFid)));
    }

    #[test]
    fn what_is_no_statistics_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npz");
        let says = |fault: Error, part: &str| {
            let text = fault.to_string();
            assert!(text.contains("a.npz") && text.contains(part), "{part:?}: {text}");
        };
        says(read(&path).unwrap_err(), "cannot open");
        std::fs::write(&path, b"PK nothing").unwrap();
        says(read(&path).unwrap_err(), "numpy's .npz");
        let store = |arrays: &[(&str, &[u64], usize)]| {
            let mut file = std::fs::File::create(&path).unwrap();
            let mut zip = ZipWriter::new(&mut file);
            for (name, shape, count) in arrays {
                array(&mut zip, name, shape, std::iter::repeat_n(1.0f64, *count)).unwrap();
            }
            zip.finish().unwrap();
        };
        store(&[("mu", &[2], 2)]);
        says(read(&path).unwrap_err(), "missing array");
        says(read_features(&path).unwrap_err(), "missing array");
        store(&[("mu", &[2], 2), ("sigma", &[2, 3], 6)]);
        says(read(&path).unwrap_err(), "at most 4 numbers");
        store(&[("mu", &[2], 2), ("sigma", &[4], 4)]);
        says(read(&path).unwrap_err(), "[2, 2]");
        store(&[("mu", &[1, 2], 2), ("sigma", &[2, 2], 4)]);
        says(read(&path).unwrap_err(), "one axis");
        store(&[("mu", &[0], 0), ("sigma", &[0, 0], 0)]);
        says(read(&path).unwrap_err(), "do not fit");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 30]).unwrap();
        says(read(&path).unwrap_err(), "broken statistics");
    }
}
