//! The network of ESRGAN (arXiv:1809.00219) and Real-ESRGAN (arXiv:2107.10833): its files have no config, shapes tell it.

use crate::error::{Error, Result};

/// More than any network of this kind has, and few enough for a hostile file to do no harm.
const MOST_CHANNELS: usize = 4096;

/// Residual-in-residual dense blocks, and what is around them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RrdbConfig {
    /// Channels between the blocks.
    pub width: usize,
    /// Channels that each convolution of a dense block adds.
    pub growth: usize,
    /// Residual-in-residual dense blocks.
    pub blocks: usize,
    /// Doublings of the size behind the blocks.
    pub doublings: usize,
    /// Pixels of the picture, on each axis, that become channels of one before the first convolution (Real-ESRGAN's
    /// pixel-unshuffle); 1 where there is none.
    pub unshuffle: usize,
    /// Whether dense blocks have the further residuals of ESRGAN+ (arXiv:2001.08073), one through a 1x1 convolution.
    pub plus: bool,
}

impl RrdbConfig {
    /// Channels of a picture.
    pub const PICTURE: usize = 3;

    /// Reads the config off tensors under the names that [`crate::models::decoder::rrdb`] asks for; `shape` gives their axes
    /// and `place` names the file in errors.
    ///
    /// # Errors
    /// A tensor that every such network has is missing or no convolution; channels of something else than pictures of red,
    /// green and blue.
    pub fn of<'a>(shape: impl Fn(&str) -> Option<&'a [usize]>, place: &str) -> Result<Self> {
        let convolution = |name: &str| match shape(name) {
            Some(&[outputs, inputs, 3, 3])
                if [outputs, inputs].iter().all(|count| (1..=MOST_CHANNELS).contains(count)) =>
            {
                Ok([outputs, inputs])
            }
            found => Err(Error::new("tensor shape")
                .at(format!("{place}: `{name}`"))
                .expected(format!("a convolution of 3 x 3 places and at most {MOST_CHANNELS} channels"))
                .found(found.map_or("no such tensor".to_owned(), |axes| format!("{axes:?}")))
                .hint("a checkpoint of ESRGAN or Real-ESRGAN")),
        };
        let [width, inputs] = convolution("conv_first.weight")?;
        let [growth, _] = convolution("body.0.rdb1.conv1.weight")?;
        let [outputs, _] = convolution("conv_last.weight")?;
        let count = |name: &dyn Fn(usize) -> String, first: usize| {
            (first..).take_while(|index| shape(&name(*index)).is_some()).count()
        };
        let blocks = count(&|index| format!("body.{index}.rdb1.conv1.weight"), 0);
        let doublings = count(&|index| format!("conv_up{index}.weight"), 1);
        let unsupported = |name: &str, expected: &str, found: usize| {
            let error = Error::new("unsupported model").at(format!("{place}: `{name}`")).expected(expected);
            error.found(format!("{found} channels"))
        };
        if outputs != Self::PICTURE {
            return Err(unsupported("conv_last.weight", "3 channels, red, green and blue", outputs));
        }
        let factor = [1, 2, 4, 8].into_iter().find(|factor| factor * factor * outputs == inputs);
        let Some(unshuffle) = factor.filter(|factor| *factor <= 1 << doublings) else {
            return Err(unsupported("conv_first.weight", "3, 12 or 48 channels, a picture's or its pixels'", inputs));
        };
        let plus = shape("body.0.rdb1.conv1x1.weight").is_some();
        Ok(Self { width, growth, blocks, doublings, unshuffle, plus })
    }

    /// How many times wider and higher the picture becomes.
    pub fn scale(&self) -> usize {
        (1 << self.doublings) / self.unshuffle
    }

    /// How many pixels away a pixel of the given picture can still change one of the result: the convolutions' reach.
    pub fn reach(&self) -> usize {
        // The first one, five in each of three dense blocks, the one behind all; then those behind the doublings, each of
        // which reaches half as far as the one before, and two at the end: 3 at the very most.
        self.unshuffle * (1 + 15 * self.blocks + 1 + 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shapes(inputs: usize, doublings: usize) -> Vec<(String, Vec<usize>)> {
        let mut all =
            vec![("conv_first".to_owned(), vec![64, inputs, 3, 3]), ("conv_last".to_owned(), vec![3, 64, 3, 3])];
        all.extend((0..23).map(|block| (format!("body.{block}.rdb1.conv1"), vec![32, 64, 3, 3])));
        all.extend((1..=doublings).map(|index| (format!("conv_up{index}"), vec![64, 64, 3, 3])));
        all.into_iter().map(|(name, shape)| (format!("{name}.weight"), shape)).collect()
    }

    fn read(tensors: &[(String, Vec<usize>)]) -> Result<RrdbConfig> {
        RrdbConfig::of(
            |name| tensors.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice()),
            "file",
        )
    }

    #[test]
    fn shapes_tell_the_scale() {
        for (inputs, doublings, scale, unshuffle) in
            [(3, 0, 1, 1), (3, 1, 2, 1), (3, 2, 4, 1), (3, 3, 8, 1), (12, 2, 2, 2), (48, 2, 1, 4)]
        {
            let config = read(&shapes(inputs, doublings)).unwrap();
            assert_eq!(
                (config.scale(), config.unshuffle),
                (scale, unshuffle),
                "{inputs} channels, {doublings} doublings"
            );
            assert_eq!((config.width, config.growth, config.blocks, config.plus), (64, 32, 23, false));
        }
    }

    #[test]
    fn other_channels_are_refused() {
        for (inputs, doublings) in [(1, 2), (4, 2), (12, 0), (48, 1), (27, 3)] {
            let error = read(&shapes(inputs, doublings)).unwrap_err().to_string();
            assert!(error.contains("conv_first.weight") && error.contains(&format!("{inputs} channels")), "{error}");
        }
        let mut grey = shapes(3, 2);
        grey[1].1[0] = 1;
        assert!(read(&grey).unwrap_err().to_string().contains("conv_last.weight"));
        assert!(read(&[]).unwrap_err().to_string().contains("no such tensor"));
    }
}
