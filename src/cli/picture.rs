//! Pictures from files: PNG, JPEG and WebP, as diffusers' `load_image` reads them.

use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader};

use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// Pixels of the largest picture that is read: 8192 x 8192.
const MOST_PIXELS: u64 = 1 << 26;

/// Reads a picture: [1, 3, H, W] from -1 to 1. The camera's orientation is applied, transparency is dropped and of 16 bits
/// the upper 8 are taken, as Pillow does.
///
/// # Errors
/// No such file, another kind of file, a broken or a too large one.
pub fn read(path: &Path) -> Result<HostTensor> {
    const WHAT: &str = "cannot read the picture";
    let reader = ImageReader::open(path).and_then(ImageReader::with_guessed_format);
    let reader = reader.map_err(|fault| Error::io(WHAT, path, &fault))?;
    let error = || Error::new(WHAT).at(path.display()).expected("a PNG, JPEG or WebP file");
    if reader.format().is_none() {
        return Err(error().found("another kind of file"));
    }
    let broken = |fault: image::ImageError| error().found(fault);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(Error::new("the picture is too large")
            .at(path.display())
            .expected(format!("at most {MOST_PIXELS} pixels"))
            .found(format!("{width} x {height}")));
    }
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    tensor(&picture)
}

/// The picture [1, 3, H, W] from -1 to 1.
fn tensor(picture: &DynamicImage) -> Result<HostTensor> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let rgb: Vec<u8> = match picture {
        DynamicImage::ImageLuma16(_)
        | DynamicImage::ImageLumaA16(_)
        | DynamicImage::ImageRgb16(_)
        | DynamicImage::ImageRgba16(_) => {
            picture.to_rgb16().into_raw().iter().map(|value| (value >> 8) as u8).collect()
        }
        _ => picture.to_rgb8().into_raw(),
    };
    let data = rgb.iter().map(|value| f32::from(*value) / 127.5 - 1.0).collect();
    Ok(HostTensor::new(vec![1, height, width, 3], data)?.channels_first())
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
    use image::{ExtendedColorType, ImageBuffer, ImageEncoder, Luma, Rgba};

    fn bytes(tensor: &HostTensor) -> Vec<u8> {
        tensor.data.iter().map(|value| ((value + 1.0) * 127.5).round() as u8).collect()
    }

    fn read_back(picture: &DynamicImage, name: &str) -> HostTensor {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        picture.save(&path).unwrap();
        read(&path).unwrap()
    }

    #[test]
    fn transparency_is_dropped_and_16_bits_are_cut() {
        let pixels = vec![10, 20, 30, 0, 255, 0, 128, 77];
        let clear = DynamicImage::ImageRgba8(ImageBuffer::<Rgba<u8>, _>::from_raw(2, 1, pixels).unwrap());
        let got = read_back(&clear, "clear.png");
        assert_eq!((got.shape.as_slice(), bytes(&got)), (&[1, 3, 1, 2][..], vec![10, 255, 20, 0, 30, 128]));
        let deep = ImageBuffer::<Luma<u16>, _>::from_raw(1, 2, vec![0x12ff, 0xffff]).unwrap();
        let got = read_back(&DynamicImage::ImageLuma16(deep), "deep.png");
        assert_eq!((got.shape.as_slice(), bytes(&got)), (&[1, 3, 2, 1][..], [0x12, 0xff].repeat(3)));
    }

    /// A picture that a camera held on its side (orientation 6) is turned by a quarter clockwise.
    #[test]
    fn orientation_is_applied() {
        let exif = [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"[..], &[0; 4]].concat();
        let folder = tempfile::tempdir().unwrap();
        let pixels = [[200, 0, 0].repeat(16), [0, 0, 200].repeat(16)].concat();
        let png = folder.path().join("turned.png");
        let mut encoder = PngEncoder::new(std::fs::File::create(&png).unwrap());
        encoder.set_exif_metadata(exif.clone()).unwrap();
        encoder.write_image(&pixels, 16, 2, ExtendedColorType::Rgb8).unwrap();
        let jpeg = folder.path().join("turned.jpg");
        let mut encoder = JpegEncoder::new_with_quality(std::fs::File::create(&jpeg).unwrap(), 100);
        encoder.set_exif_metadata(exif).unwrap();
        encoder.write_image(&pixels, 16, 2, ExtendedColorType::Rgb8).unwrap();
        for path in [png, jpeg] {
            let got = read(&path).unwrap();
            assert_eq!(got.shape, [1, 3, 16, 2], "{}", path.display());
            // The upper row, red, is now the right column; JPEG blurs colours across the border.
            let [left, right] = [0, 1].map(|column| got.data[column] - got.data[2 * 16 * 2 + column]);
            assert!(left < -0.2 && right > 0.2, "{}: {left} {right}", path.display());
        }
    }

    #[test]
    fn what_is_no_picture_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.png");
        assert!(read(&path).unwrap_err().to_string().contains("cannot read the picture"));
        std::fs::write(&path, "text, not pixels").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("expected a PNG, JPEG or WebP file"));
        let mut cut = Vec::new();
        let picture = DynamicImage::new_rgb8(9, 9);
        picture.write_to(&mut std::io::Cursor::new(&mut cut), image::ImageFormat::Png).unwrap();
        std::fs::write(&path, &cut[..cut.len() / 2]).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("expected a PNG, JPEG or WebP file"));
    }
}
