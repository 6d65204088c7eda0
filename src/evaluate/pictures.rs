//! Files of pictures: which of a folder's files are some, and their pixels.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Endings of files that are taken for pictures, whatever their case; what a file really is follows from its first bytes.
pub const ENDINGS: [&str; 8] = ["bmp", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "webp"];
/// Endings that other evaluators read and scumble does not. Such files must not be left out unseen.
const UNREAD: [&str; 2] = ["tif", "tiff"];

/// A picture of 8-bit sRGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Rows from the top, red, green, blue: `width * height * 3` bytes.
    pub rgb: Vec<u8>,
}

/// The pictures in `folder`, sorted by their path; with `deep` those in folders below it too. Hidden files are left out.
///
/// # Errors
/// No such folder, none with a picture, or one that holds pictures of a kind that scumble does not read.
pub fn list(folder: &Path, deep: bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    collect(folder, deep, &mut found)?;
    found.sort();
    if found.is_empty() {
        let error = Error::new("no pictures").at(folder.display()).expected(format!("files ending in {}", endings()));
        return Err(if deep { error } else { error.hint("the folder that holds the pictures themselves") });
    }
    Ok(found)
}

fn endings() -> String {
    ENDINGS.map(|ending| format!(".{ending}")).join(", ")
}

fn collect(folder: &Path, deep: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let fault = |e: std::io::Error| Error::io("cannot read the folder", folder, &e);
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        if path.is_dir() {
            if deep {
                collect(&path, deep, found)?;
            }
            continue;
        }
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        if UNREAD.contains(&ending.as_str()) {
            return Err(Error::new("a picture of a kind that scumble does not read")
                .at(path.display())
                .expected(endings())
                .found(format!(".{ending}"))
                .hint("converting it to PNG"));
        }
        if ENDINGS.contains(&ending.as_str()) {
            found.push(path);
        }
    }
    Ok(())
}

/// The file's pixels. Transparency is dropped, grey is repeated, and orientation tags are not heeded, as Pillow's
/// `Image.open(path).convert("RGB")` does.
///
/// # Errors
/// A file that cannot be read or is broken; it names the file.
pub fn read(path: &Path) -> Result<Pixels> {
    let broken = |fault: &dyn std::fmt::Display| {
        let error =
            Error::new("broken picture").at(path.display()).expected("PNG, JPEG, WebP, BMP or PNM").found(fault);
        error.hint("removing the file, or saving it again as PNG")
    };
    let reader = image::ImageReader::open(path).map_err(|e| Error::io("cannot read the picture", path, &e))?;
    let reader = reader.with_guessed_format().map_err(|e| Error::io("cannot read the picture", path, &e))?;
    let picture = reader.decode().map_err(|e| broken(&e))?.into_rgb8();
    let (width, height) = picture.dimensions();
    if width == 0 || height == 0 {
        return Err(broken(&"a picture without pixels"));
    }
    Ok(Pixels { width, height, rgb: picture.into_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pictures_are_listed_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("deep")).unwrap();
        for name in ["b.PNG", "a.jpeg", ".c.png", "notes.txt", "deep/d.webp", "10.bmp", "9.ppm"] {
            std::fs::write(at(name), b"").unwrap();
        }
        let names = |deep: bool| -> Vec<String> {
            let paths = list(folder.path(), deep).unwrap();
            let name = |path: PathBuf| path.strip_prefix(folder.path()).unwrap().to_str().unwrap().replace('\\', "/");
            paths.into_iter().map(name).collect()
        };
        assert_eq!(names(false), ["10.bmp", "9.ppm", "a.jpeg", "b.PNG"]);
        assert_eq!(names(true), ["10.bmp", "9.ppm", "a.jpeg", "b.PNG", "deep/d.webp"]);
        std::fs::write(at("e.tiff"), b"").unwrap();
        let fault = list(folder.path(), false).unwrap_err().to_string();
        assert!(fault.contains("e.tiff") && fault.contains("Try converting"), "{fault}");
        assert!(list(&at("deep"), false).is_ok());
        std::fs::remove_file(at("deep/d.webp")).unwrap();
        let fault = list(&at("deep"), false).unwrap_err().to_string();
        assert!(fault.starts_with("no pictures") && fault.contains(".png"), "{fault}");
        assert!(list(&at("none"), false).unwrap_err().to_string().contains("none"));
    }

    #[test]
    fn pixels_are_those_of_the_file_and_faults_name_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("grey.png");
        image::GrayImage::from_fn(3, 2, |x, y| image::Luma([(10 * x + y) as u8])).save(&path).unwrap();
        let grey = read(&path).unwrap();
        assert_eq!((grey.width, grey.height), (3, 2));
        assert_eq!(grey.rgb[3..6], [10, 10, 10]);
        // A name that lies about its contents does not matter.
        let other = folder.path().join("colour.jpg");
        let colours = image::RgbaImage::from_fn(2, 1, |x, _| image::Rgba([1, 2, x as u8, 7]));
        colours.save_with_format(&other, image::ImageFormat::Png).unwrap();
        assert_eq!(read(&other).unwrap().rgb, [1, 2, 0, 1, 2, 1]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let fault = read(&path).unwrap_err().to_string();
        assert!(fault.contains("broken picture") && fault.contains("grey.png"), "{fault}");
        std::fs::write(&path, b"nothing").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("grey.png"));
    }
}
