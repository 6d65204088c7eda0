//! Splitting one operation over rows into several dispatches, where a binding or a grid would be too large.

use super::Limits;

/// The rows that one dispatch computes, and what it binds of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Byte offset of the binding.
    pub offset: u64,
    /// Byte size of the binding.
    pub size: u64,
    /// The binding's first vector of four, counted from the tensor's start.
    pub base: u32,
}

/// The part of a tensor from row `begin` to row `end`, widened to the alignment of bindings.
pub fn span(begin: u64, end: u64, row_bytes: u64, vector_bytes: u64, limits: &Limits) -> Span {
    let first = begin * row_bytes;
    let offset = first - first % limits.alignment;
    Span { offset, size: end * row_bytes - offset, base: (offset / vector_bytes) as u32 }
}

/// Cuts `rows` into the fewest equal bands for which `fits` holds; `None` when a single row does not fit.
pub fn split(rows: u64, fits: impl Fn(u64, u64) -> bool) -> Option<Vec<(u64, u64)>> {
    let mut count = 1;
    loop {
        let height = rows.div_ceil(count);
        let bands: Vec<_> = (0..rows.div_ceil(height)).map(|i| (i * height, ((i + 1) * height).min(rows))).collect();
        if bands.iter().all(|&(begin, end)| fits(begin, end)) {
            return Some(bands);
        }
        if height == 1 {
            return None;
        }
        count = (count + count.div_ceil(4)).min(rows);
    }
}

/// The launches of a kernel that maps rows to rows, one invocation a vector of four.
///
/// `tensors` are the bytes of one row and of one vector of each row-mapped binding; `params` makes the parameters from
/// the first and last row and the bound parts. Returns, per launch, the rows, the parts and the grid.
pub fn rows(count: u64, tensors: &[(u64, u64)], vectors: u64, limits: &Limits) -> Option<Vec<(u64, u64, Vec<Span>)>> {
    let spans = |begin, end| -> Vec<Span> {
        tensors.iter().map(|(row, vector)| span(begin, end, *row, *vector, limits)).collect()
    };
    let fits = |begin: u64, end: u64| {
        spans(begin, end).iter().all(|part| part.size <= limits.binding)
            && super::folds(((end - begin) * vectors).div_ceil(super::LANES), limits)
    };
    let bands = split(count, fits)?;
    Some(bands.into_iter().map(|(begin, end)| (begin, end, spans(begin, end))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_cover_all_rows_once() {
        let bands = split(1000, |begin, end| end - begin <= 300).unwrap();
        assert_eq!(bands.first().unwrap().0, 0);
        assert_eq!(bands.last().unwrap().1, 1000);
        assert!(bands.windows(2).all(|pair| pair[0].1 == pair[1].0));
        assert!(bands.iter().all(|band| band.1 - band.0 <= 300));
        assert_eq!(split(10, |_, _| false), None);
    }

    #[test]
    fn spans_start_on_the_alignment() {
        let limits = Limits::default();
        let part = span(3, 5, 48, 16, &limits);
        assert_eq!((part.offset, part.size, part.base), (0, 240, 0));
        let part = span(6, 8, 48, 16, &limits);
        assert_eq!((part.offset, part.size, part.base), (256, 128, 16));
    }

    proptest::proptest! {
        #[test]
        fn rows_are_cut_without_gap_or_overlap(
            count in 1u64..3000, width in 1u64..200, half in proptest::bool::ANY, binding in 256u64..60_000,
        ) {
            let limits = Limits { binding, workgroups: 40, ..Limits::default() };
            let vector = if half { 8 } else { 16 };
            let tensors = [(width * vector, vector), (8 * vector, vector)];
            let Some(bands) = rows(count, &tensors, width, &limits) else {
                // Not even one row fits: it is too large, or starts too far behind an aligned offset.
                proptest::prop_assert!((width.max(8)) * vector + limits.alignment > binding);
                return Ok(());
            };
            let mut next = 0;
            for (begin, end, parts) in bands {
                proptest::prop_assert!(begin == next && end > begin);
                next = end;
                for (part, (row, vector)) in parts.iter().zip(&tensors) {
                    proptest::prop_assert!(part.size <= binding && part.offset % limits.alignment == 0);
                    proptest::prop_assert!(part.offset <= begin * row && part.offset + part.size == end * row);
                    proptest::prop_assert_eq!(u64::from(part.base) * vector, part.offset);
                }
            }
            proptest::prop_assert_eq!(next, count);
        }
    }
}
