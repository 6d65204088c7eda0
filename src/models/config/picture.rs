//! How a picture is prepared for a network: transformers' `CLIPImageProcessor`.

use serde_json::{Value, json};

use super::fields::{Fields, count};
use crate::error::Result;

/// A filter of resizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResizeFilter {
    /// A windowed sinc.
    Lanczos,
    /// A triangle.
    Bilinear,
    /// Keys' cubic.
    Bicubic,
}

/// Height and width that a picture is resized to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edges {
    /// The shorter one, the other following in proportion.
    Shortest(u32),
    /// Both.
    Both([u32; 2]),
}

/// What is done to a picture of bytes, in this order.
#[derive(Debug, Clone, PartialEq)]
pub struct PicturePreparation {
    /// The size that it is resized to.
    pub size: Option<(Edges, ResizeFilter)>,
    /// Height and width that are cut out of its middle; zeros surround a smaller one.
    pub crop: Option<[u32; 2]>,
    /// What every channel is multiplied with.
    pub factors: [f32; 3],
    /// What is added to that.
    pub shifts: [f32; 3],
}

/// The means and deviations of the colours that CLIP was trained with (openai/CLIP, `clip.py`).
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const DEVIATION: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

impl PicturePreparation {
    /// Reads a `preprocessor_config.json`; `place` names the file in errors. What is left out has the defaults of
    /// transformers' `CLIPImageProcessor` (5.24).
    ///
    /// # Errors
    /// A field that scumble does not implement.
    pub fn from_json(config: &Value, place: &str) -> Result<Self> {
        let fields = Fields::new(config, place)?;
        let kinds = ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"];
        for name in ["image_processor_type", "feature_extractor_type"] {
            fields.neutral(name, &kinds.map(|kind| json!(kind)))?;
        }
        for name in ["do_pad", "use_square_size"] {
            fields.neutral(name, &[json!(false)])?;
        }
        let size = match fields.flag("do_resize", true)? {
            true => Some((edges(&fields)?, filter(&fields)?)),
            false => None,
        };
        let crop = match fields.flag("do_center_crop", true)? {
            true => Some(crop(&fields)?),
            false => None,
        };
        let scale = match fields.flag("do_rescale", true)? {
            true => fields.positive("rescale_factor", 1.0 / 255.0)?,
            false => 1.0,
        };
        let (mean, deviation) = match fields.flag("do_normalize", true)? {
            true => (colours(&fields, "image_mean", MEAN)?, colours(&fields, "image_std", DEVIATION)?),
            false => ([0.0; 3], [1.0; 3]),
        };
        if deviation.contains(&0.0) {
            return Err(fields.unsupported("image_std", "no zeros"));
        }
        let factors = deviation.map(|deviation| (scale / deviation) as f32);
        let shifts = [0, 1, 2].map(|channel| (-mean[channel] / deviation[channel]) as f32);
        Ok(Self { size, crop, factors, shifts })
    }

    /// CLIP's own, for pictures of `side` pixels a side.
    pub fn clip(side: u32) -> Self {
        let factors = DEVIATION.map(|deviation| (1.0 / 255.0 / deviation) as f32);
        let shifts = [0, 1, 2].map(|channel| (-MEAN[channel] / DEVIATION[channel]) as f32);
        Self { size: Some((Edges::Shortest(side), ResizeFilter::Bicubic)), crop: Some([side; 2]), factors, shifts }
    }

    /// Height and width of a picture of [height, width] after resizing.
    pub fn resized(&self, [height, width]: [u32; 2]) -> [u32; 2] {
        match self.size {
            None => [height, width],
            Some((Edges::Both(size), _)) => size,
            Some((Edges::Shortest(side), _)) => {
                let (short, long) = (height.min(width), height.max(width));
                // As Python divides: in f64, and then rounded down.
                let other = (f64::from(side) * f64::from(long) / f64::from(short.max(1))) as u32;
                if width <= height { [other, side] } else { [side, other] }
            }
        }
    }

    /// Height and width of a picture of `size` [height, width] in the end.
    pub fn prepared(&self, size: [u32; 2]) -> [u32; 2] {
        self.crop.unwrap_or_else(|| self.resized(size))
    }
}

/// Larger sides than any model's are a corrupt file.
const LONGEST: usize = 1 << 14;

fn side(value: Option<&Value>) -> Option<u32> {
    value.and_then(count).filter(|side| *side <= LONGEST).map(|side| side as u32)
}

fn edges(fields: &Fields<'_>) -> Result<Edges> {
    let wrong = || fields.unsupported("size", "{\"shortest_edge\": N}, {\"height\": H, \"width\": W} or N");
    let Some(value) = fields.get("size") else { return Ok(Edges::Shortest(224)) };
    let found = match value {
        Value::Array(sides) if sides.len() == 2 => both(side(sides.first()), side(sides.last())),
        Value::Object(sides) => {
            let known: Vec<&str> =
                sides.iter().filter(|(_, side)| !side.is_null()).map(|(name, _)| name.as_str()).collect();
            match known.as_slice() {
                ["shortest_edge"] => side(sides.get("shortest_edge")).map(Edges::Shortest),
                ["height", "width"] | ["width", "height"] => both(side(sides.get("height")), side(sides.get("width"))),
                _ => None,
            }
        }
        number => side(Some(number)).map(Edges::Shortest),
    };
    found.ok_or_else(wrong)
}

fn both(height: Option<u32>, width: Option<u32>) -> Option<Edges> {
    Some(Edges::Both([height?, width?]))
}

fn crop(fields: &Fields<'_>) -> Result<[u32; 2]> {
    let Some(value) = fields.get("crop_size") else { return Ok([224; 2]) };
    let found = match value {
        Value::Array(sides) if sides.len() == 2 => [side(sides.first()), side(sides.last())],
        Value::Object(sides) => ["height", "width"].map(|name| side(sides.get(name))),
        number => [side(Some(number)); 2],
    };
    match found {
        [Some(height), Some(width)] => Ok([height, width]),
        _ => Err(fields.unsupported("crop_size", "{\"height\": H, \"width\": W} or N")),
    }
}

/// Pillow's numbers of filters.
fn filter(fields: &Fields<'_>) -> Result<ResizeFilter> {
    match fields.get("resample").map(Value::as_u64) {
        None | Some(Some(3)) => Ok(ResizeFilter::Bicubic),
        Some(Some(1)) => Ok(ResizeFilter::Lanczos),
        Some(Some(2)) => Ok(ResizeFilter::Bilinear),
        Some(_) => Err(fields.unsupported("resample", "1, 2 or 3 (Lanczos, bilinear or bicubic)")),
    }
}

/// One number for every channel, or one for all.
fn colours(fields: &Fields<'_>, name: &str, default: [f64; 3]) -> Result<[f64; 3]> {
    let wrong = || fields.unsupported(name, "three numbers");
    match fields.get(name) {
        None => Ok(default),
        Some(Value::Array(numbers)) => {
            let numbers: Option<Vec<f64>> = numbers.iter().map(Value::as_f64).collect();
            numbers.and_then(|numbers| <[f64; 3]>::try_from(numbers).ok()).ok_or_else(wrong)
        }
        Some(number) => number.as_f64().map(|number| [number; 3]).ok_or_else(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: Value) -> Result<PicturePreparation> {
        PicturePreparation::from_json(&config, "preprocessor_config.json")
    }

    #[test]
    fn defaults_and_older_forms() {
        assert_eq!(read(json!({})).unwrap(), PicturePreparation::clip(224));
        let older =
            json!({ "feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 32, "resample": 3 });
        assert_eq!(read(older).unwrap(), PicturePreparation::clip(32));
        let newer = json!({
            "image_processor_type": "CLIPImageProcessor", "size": { "shortest_edge": 32, "longest_edge": null },
            "crop_size": { "height": 32, "width": 32 }, "do_pad": null,
        });
        assert_eq!(read(newer).unwrap(), PicturePreparation::clip(32));
        let bare = json!({ "do_resize": false, "do_center_crop": false, "do_rescale": false, "do_normalize": false });
        let bare = read(bare).unwrap();
        assert_eq!((bare.size, bare.crop, bare.factors, bare.shifts), (None, None, [1.0; 3], [0.0; 3]));
        let plain = json!({ "image_mean": 0.5, "image_std": [0.25, 0.5, 1.0], "rescale_factor": 0.5, "resample": 2 });
        let plain = read(plain).unwrap();
        assert_eq!((plain.factors, plain.shifts), ([2.0, 1.0, 0.5], [-2.0, -1.0, -0.5]));
        assert_eq!(plain.size, Some((Edges::Shortest(224), ResizeFilter::Bilinear)));
    }

    #[test]
    fn sizes_are_rounded_down() {
        let clip = PicturePreparation::clip(224);
        assert_eq!(clip.resized([300, 500]), [224, 373]);
        assert_eq!(clip.resized([501, 300]), [374, 224]);
        assert_eq!(clip.resized([64, 64]), [224, 224]);
        assert_eq!(clip.prepared([64, 99]), [224, 224]);
        let both = read(json!({ "size": { "width": 20, "height": 10 }, "do_center_crop": false })).unwrap();
        assert_eq!((both.resized([7, 9]), both.prepared([7, 9])), ([10, 20], [10, 20]));
    }

    #[test]
    fn what_is_not_implemented_is_named() {
        for (field, value) in [
            ("size", json!({ "shortest_edge": 224, "longest_edge": 300 })),
            ("size", json!({ "height": 3 })),
            ("size", json!(0)),
            ("size", json!(1 << 20)),
            ("crop_size", json!({ "shortest_edge": 224 })),
            ("crop_size", json!("224")),
            ("resample", json!(0)),
            ("resample", json!("bicubic")),
            ("image_mean", json!([0.5, 0.5])),
            ("image_std", json!([0.5, 0.5, 0.0])),
            ("image_processor_type", json!("ViTImageProcessor")),
            ("do_pad", json!(true)),
            ("rescale_factor", json!(0)),
        ] {
            let error = read(json!({ (field): value.clone() }));
            let error = error.err().unwrap_or_else(|| panic!("{field} {value}")).to_string();
            assert!(error.contains(&format!("preprocessor_config.json: `{field}`")), "{field} {value}: {error}");
        }
    }
}
