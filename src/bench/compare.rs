//! This run beside an earlier one, row by row.

use serde_json::Value;

/// A row that both runs have.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// Its name.
    pub name: String,
    /// Seconds in the earlier run.
    pub then: f64,
    /// Seconds in this one.
    pub now: f64,
}

impl Ratio {
    /// Then over now: above 1 where this run is faster.
    pub fn ratio(&self) -> f64 {
        self.then / self.now
    }
}

/// Two runs set against each other.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Comparison {
    /// What differs between the runs besides their times, as sentences.
    pub warnings: Vec<String>,
    /// Rows timed in both, in this run's order.
    pub ratios: Vec<Ratio>,
    /// Names of rows that only the earlier run has timed.
    pub only_then: Vec<String>,
    /// Names of rows that only this run has timed.
    pub only_now: Vec<String>,
}

/// What must be the same for times to be comparable.
const CONDITIONS: [&str; 7] = ["adapter", "clock", "model", "size", "precision", "kernels", "steps"];
/// Figures beside the rows.
const FIGURES: [&str; 1] = ["image_seconds"];

impl Comparison {
    /// The geometric mean of the ratios; `None` without any.
    pub fn mean(&self) -> Option<f64> {
        let sum: f64 = self.ratios.iter().map(|ratio| ratio.ratio().ln()).sum();
        (!self.ratios.is_empty()).then(|| (sum / self.ratios.len() as f64).exp())
    }
}

/// Why `report` is no report of `scumble bench --json`, if it is none.
pub fn fault(report: &Value) -> Option<&'static str> {
    let named = |row: &Value| row["name"].is_string() && row["seconds"].is_number();
    match report["rows"].as_array() {
        None => Some("no list called rows"),
        Some(rows) if !rows.iter().all(named) => Some("a row without name or seconds"),
        Some(_) if !report["adapter"].is_string() => Some("no adapter"),
        Some(_) => None,
    }
}

/// The names and seconds of a report's rows that were timed.
fn timed(report: &Value) -> Vec<(String, f64)> {
    let row = |row: &Value| {
        let seconds = row["seconds"].as_f64().filter(|seconds| *seconds > 0.0)?;
        Some((row["name"].as_str()?.to_owned(), seconds))
    };
    let figure = |name: &str| Some((name.to_owned(), report[name].as_f64().filter(|seconds| *seconds > 0.0)?));
    let rows = report["rows"].as_array().into_iter().flatten().filter_map(row);
    rows.chain(FIGURES.into_iter().filter_map(figure)).collect()
}

/// Sets `now` against `then`, both as `scumble bench --json` writes them.
pub fn compare(then: &Value, now: &Value) -> Comparison {
    let mut comparison = Comparison::default();
    for name in CONDITIONS {
        let (before, after) = (&then[name], &now[name]);
        if before != after && !before.is_null() && !after.is_null() {
            comparison.warnings.push(format!("another {name}: then {before}, now {after}"));
        }
    }
    let (before, after) = (timed(then), timed(now));
    for (name, now) in &after {
        match before.iter().find(|(known, _)| known == name) {
            Some((_, then)) => comparison.ratios.push(Ratio { name: name.clone(), then: *then, now: *now }),
            None => comparison.only_now.push(name.clone()),
        }
    }
    let gone = before.into_iter().filter(|(name, _)| !after.iter().any(|(known, _)| known == name));
    comparison.only_then = gone.map(|(name, _)| name).collect();
    comparison
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ratios_and_missing_rows() {
        let then = json!({
            "adapter": "a card",
            "size": [64, 64],
            "rows": [
                { "name": "conv", "seconds": 2.0 },
                { "name": "gone", "seconds": 1.0 },
                { "name": "wrong then", "seconds": 0.0, "verified": false },
            ],
            "image_seconds": 8.0,
        });
        let now = json!({
            "adapter": "another card",
            "size": [64, 64],
            "rows": [
                { "name": "new", "seconds": 1.0 },
                { "name": "conv", "seconds": 0.5 },
                { "name": "wrong then", "seconds": 1.0 },
            ],
            "image_seconds": 8.0,
        });
        assert_eq!((fault(&then), fault(&now)), (None, None));
        let comparison = compare(&then, &now);
        let ratios: Vec<_> = comparison.ratios.iter().map(|ratio| (ratio.name.as_str(), ratio.ratio())).collect();
        assert_eq!(ratios, [("conv", 4.0), ("image_seconds", 1.0)]);
        assert_eq!(comparison.mean(), Some(2.0));
        assert_eq!(comparison.only_then, ["gone"]);
        assert_eq!(comparison.only_now, ["new", "wrong then"]);
        assert_eq!(comparison.warnings, ["another adapter: then \"a card\", now \"another card\""]);
        assert!(compare(&now, &now).warnings.is_empty());
        assert_eq!(Comparison::default().mean(), None);
    }

    #[test]
    fn other_files_are_no_reports() {
        for bad in [
            json!({}),
            json!([]),
            json!({ "rows": 1, "adapter": "a" }),
            json!({ "rows": [], "adapter": null }),
            json!({ "rows": [{}], "adapter": "a" }),
        ] {
            assert!(fault(&bad).is_some(), "{bad}");
        }
    }
}
