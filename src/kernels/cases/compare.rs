//! The one comparator of the kernel tests and the bench.

use crate::error::{Error, Result};

/// Passes when `got`, which lies at `place`, has as many numbers as `expected` and each is within its tolerance.
///
/// # Errors
/// A different length, nothing to compare, one buffer passed twice, or the worst number outside its tolerance; whatever
/// is NaN is outside.
pub fn compare(place: &str, got: &[f64], expected: &[f64], tolerances: &[f64]) -> Result<()> {
    let fault = |what: &str| Error::new(what).at(place);
    if got.as_ptr() == expected.as_ptr() {
        return Err(fault("one buffer was passed twice"));
    }
    if got.len() != expected.len() || got.len() != tolerances.len() {
        let found = format!("{} numbers and {} tolerances", got.len(), tolerances.len());
        return Err(fault("different lengths").expected(expected.len()).found(found));
    }
    if got.is_empty() {
        return Err(fault("nothing to compare"));
    }
    let within = |i: &usize| (got[*i] - expected[*i]).abs() <= tolerances[*i];
    let mut outside = (0..got.len()).filter(|i| !within(i));
    let Some(first) = outside.next() else { return Ok(()) };
    let count = 1 + outside.count();
    Err(fault("a number is outside its tolerance")
        .at(format!("{place}, element {first}, the first of {count} of {}", got.len()))
        .expected(format!("{} within {:.3e}", expected[first], tolerances[first]))
        .found(format!("{} ({:.3e} off)", got[first], (got[first] - expected[first]).abs())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [f64; 6] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
    const TOLERANCES: [f64; 6] = [0.25; 6];

    fn rejects(got: &[f64]) -> String {
        compare("here", got, &EXPECTED, &TOLERANCES).unwrap_err().to_string()
    }

    #[test]
    fn what_is_close_passes() {
        compare("here", &[1.25, 1.75, 3.0, 4.1, 5.0, 6.0], &EXPECTED, &TOLERANCES).unwrap();
    }

    #[test]
    fn nan_anywhere_is_rejected() {
        for i in 0..6 {
            let mut got = EXPECTED;
            got[i] = f64::NAN;
            assert!(rejects(&got).contains("NaN"));
            assert!(compare("here", &EXPECTED, &got, &TOLERANCES).is_err());
            let mut tolerances = TOLERANCES;
            tolerances[i] = f64::NAN;
            let copy = EXPECTED.to_vec();
            assert!(compare("here", &copy, &EXPECTED, &tolerances).is_err());
        }
        assert!(compare("here", &[f64::INFINITY], &[f64::INFINITY], &[1.0]).is_err());
    }

    #[test]
    fn one_wrong_element_is_rejected() {
        for i in 0..6 {
            let mut got = EXPECTED;
            got[i] += 0.2501;
            assert!(rejects(&got).contains(&format!("element {i}, the first of 1 of 6")));
        }
    }

    #[test]
    fn swapped_axes_are_rejected() {
        assert!(rejects(&[1.0, 4.0, 2.0, 5.0, 3.0, 6.0]).contains("element 1, the first of 4"));
    }

    #[test]
    fn lengths_must_agree() {
        assert!(rejects(&EXPECTED[..5]).contains("different lengths"));
        assert!(rejects(&[]).contains("different lengths"));
        let copy = EXPECTED.to_vec();
        assert!(compare("here", &copy, &EXPECTED, &TOLERANCES[..5]).is_err());
        assert!(compare("here", &[], &[], &[]).is_err());
    }

    #[test]
    fn a_buffer_does_not_vouch_for_itself() {
        let values = EXPECTED.to_vec();
        let error = compare("here", &values, &values, &TOLERANCES).unwrap_err().to_string();
        assert!(error.contains("passed twice"), "{error}");
    }
}
