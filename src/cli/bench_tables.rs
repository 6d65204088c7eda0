//! What `scumble bench` prints for people.

use crate::bench::compare::Comparison;
use crate::bench::image::{ImageReport, ImageTimes};
use crate::bench::stages::StageReport;
use crate::bench::{Bound, Roofs, Row};
use crate::cli::info::size;
use crate::cli::print_line;
use crate::error::Result;

/// Seconds with a unit that suits them.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 100.0 => format!("{s:.0} s"),
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} us", s * 1e6),
    }
}

/// Operations a second with a unit that suits them.
fn rate(flops: f64) -> String {
    match flops {
        f if f >= 1e12 => format!("{:.1} TFLOP/s", f / 1e12),
        f => format!("{:.2} GFLOP/s", f / 1e9),
    }
}

/// The roofs; `cooperative` is the size of the matrices.
pub fn roofs(roofs: &Roofs, cooperative: u32) -> Result<()> {
    let (copy, kernel, cache) = (roofs.copy / 1e9, roofs.kernel_copy / 1e9, roofs.cache_copy / 1e9);
    print_line(&format!("roofs: copy {copy:.2} GB/s (by a kernel {kernel:.2}; within the cache {cache:.2})"))?;
    let half = roofs.half_fma.map_or("none".into(), rate);
    let matrices = match roofs.cooperative {
        None => "none".into(),
        Some(flops) => format!("{cooperative}x{cooperative}x{cooperative} f16 {}", rate(flops)),
    };
    print_line(&format!(
        "       f32 multiply-add {}, packed f16 {half}, cooperative matrices {matrices}",
        rate(roofs.fma)
    ))?;
    print_line(&format!(
        "       from one dispatch to the next that waits for it {}, host to device and back {}",
        time(roofs.launch_gap),
        time(roofs.round_trip)
    ))
}

/// Rows for people; with `total` also each one's share of that time.
pub fn rows(title: &str, rows: &[Row], total: Option<f64>) -> Result<()> {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(title.len());
    let of = if total.is_some() { "  of it" } else { "" };
    print_line(&format!("{title:<width$}      median     least{of}   GFLOP/s      GB/s   roof  which"))?;
    for row in rows {
        let name = &row.name;
        if !row.verified {
            print_line(&format!("{name:<width$}  WRONG, not timed"))?;
            continue;
        }
        let of = total.map_or_else(String::new, |total| format!("{:>5.0} %", row.seconds / total.max(1e-12) * 100.0));
        let (median, least) = (time(row.seconds), time(row.minimum));
        let (gflops, gbps, share) = (row.gflops(), row.gbps(), row.share() * 100.0);
        let bound = row.bound().map_or("", Bound::name);
        print_line(&format!(
            "{name:<width$}{median:>12}{least:>10}{of}{gflops:>10.2}{gbps:>10.2}{share:>5.0} %  {bound}"
        ))?;
    }
    Ok(())
}

/// A stage as a whole, then its tables.
pub fn stage(what: &str, timed: &StageReport, measured: &Roofs) -> Result<()> {
    let Row { name, seconds, minimum, flops, clock, samples, doubt, .. } = &timed.whole;
    let rates = format!("{:.2} GFLOP, {}", *flops as f64 / 1e9, rate(timed.whole.gflops() * 1e9));
    let share = timed.whole.share() * 100.0;
    print_line(&format!("\n{name}: {what}: {}, {rates}, {share:.0} % of the roof", time(*seconds)))?;
    let sure = if doubt.is_finite() { format!(", sure to {:.1} %", doubt * 100.0) } else { String::new() };
    let (least, wall) = (time(*minimum), time(timed.wall));
    print_line(&format!("  median of {samples} by {}{sure}, least {least}; wall clock {wall}", clock.name()))?;
    print_line(&format!("  at the roofs it would take {}", time(timed.whole.ideal())))?;
    print_line(&format!(
        "  {} dispatches; empty ones would take {}; timed one by one ({}) they sum up to {}, {} {}",
        timed.dispatches,
        time(timed.launch_floor(measured)),
        timed.clock.name(),
        time(timed.launched),
        time((seconds - timed.launched).abs()),
        if timed.launched <= *seconds { "less than the whole" } else { "more than the whole, where they overlap" }
    ))?;
    print_line(&format!("  verified; {} on the adapter", size(timed.bytes)))?;
    let total = Some(timed.launched);
    rows("by place", &timed.scopes, total)?;
    rows("by family", &timed.families, total)?;
    rows("by kernel", &timed.kernels, total)
}

/// A whole picture.
pub fn image(what: &str, timed: &ImageReport) -> Result<()> {
    print_line(&format!(
        "\nimage: {what}: {} without loading, {:.2} steps/s (wall clock)",
        time(timed.warm.picture()),
        timed.steps_per_second()
    ))?;
    let line = |which: &str, times: &ImageTimes| {
        print_line(&format!(
            "  {which}: loading {}, first step done after {}; text {}, steps {}, decoding {}",
            time(times.loading),
            time(times.to_first_step),
            time(times.encoding),
            time(times.denoising),
            time(times.decoding)
        ))
    };
    line("first picture", &timed.first)?;
    if timed.count > 1 {
        line("next picture ", &timed.warm)?;
    }
    print_line(&format!("  verified; at most {} on the adapter at once", size(timed.bytes)))
}

/// This run beside an earlier one.
pub fn comparison(found: &Comparison) -> Result<()> {
    let names = found.ratios.iter().map(|ratio| ratio.name.chars().count());
    let title = "compared with the earlier run";
    let width = names.max().unwrap_or(0).max(title.len());
    print_line("")?;
    for warning in &found.warnings {
        print_line(&format!("warning: {warning}"))?;
    }
    print_line(&format!("{title:<width$}        then         now  then/now"))?;
    for ratio in &found.ratios {
        let (name, then, now) = (&ratio.name, time(ratio.then), time(ratio.now));
        print_line(&format!("{name:<width$}{then:>12}{now:>12}{:>10.3}", ratio.ratio()))?;
    }
    if let Some(mean) = found.mean() {
        print_line(&format!("{:<width$}{:>34.3}", "geometric mean", mean))?;
    }
    for (which, names) in [("earlier", &found.only_then), ("this", &found.only_now)] {
        for name in names {
            print_line(&format!("only in {which} run: {name}"))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_suit() {
        assert_eq!([200.0, 1.5, 0.0123, 4.2e-6].map(time), ["200 s", "1.50 s", "12.30 ms", "4.2 us"]);
        assert_eq!([2e9, 3.21e14].map(rate), ["2.00 GFLOP/s", "321.0 TFLOP/s"]);
    }
}
