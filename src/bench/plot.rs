//! The roofline as a picture (Williams, Waterman and Patterson 2009): what the adapter can do at best against how much is
//! computed for each byte, and where the kernels are. An SVG that needs nothing else.

use std::fmt::Write;

use super::{Family, Roofs, Row};

/// The picture, in pixels.
const WIDTH: f64 = 1280.0;
/// Left, top, right and bottom of the chart.
const CHART: [f64; 4] = [80.0, 70.0, 780.0, 640.0];
/// Rows with a number and a line in the list; further ones are dots whose names a viewer shows under the pointer.
const NUMBERED: usize = 30;
/// Height of a line of the list.
const LINE: f64 = 18.0;
/// A white rim that keeps words readable over lines.
const HALO: &str = "stroke=\"#ffffff\" stroke-width=\"3\" paint-order=\"stroke\"";

/// Colours that differ in brightness too, by family.
fn colour(family: Option<Family>) -> &'static str {
    match family {
        Some(Family::Matrix) => "#0b4f8a",
        Some(Family::Attention) => "#c2410c",
        Some(Family::Norms) => "#15803d",
        Some(Family::Small) | None => "#737373",
    }
}

/// A logarithmic axis from values to pixels.
#[derive(Debug, Clone, Copy)]
struct Axis {
    least: f64,
    most: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that begins and ends on a power of ten and holds all `values`, which are above zero.
    fn around(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (least, most) = values.fold((f64::MAX, f64::MIN_POSITIVE), |(a, b), v| (a.min(v), b.max(v)));
        let (least, most) = if least <= most { (least.log10(), most.log10()) } else { (0.0, 1.0) };
        let (least, most) = ((least - 0.1).floor(), (most + 0.1).ceil());
        Self { least, most: most.max(least + 1.0), from, to }
    }

    fn at(&self, value: f64) -> f64 {
        self.from + (value.log10() - self.least) / (self.most - self.least) * (self.to - self.from)
    }

    /// The powers of ten on it.
    fn ticks(&self) -> impl Iterator<Item = i32> {
        self.least as i32..=self.most as i32
    }

    fn end(&self) -> f64 {
        10f64.powf(self.most)
    }

    fn start(&self) -> f64 {
        10f64.powf(self.least)
    }
}

/// A kernel on the chart.
struct Point<'a> {
    row: &'a Row,
    x: f64,
    y: f64,
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A number with three digits.
fn short(value: f64) -> String {
    let digits = if value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$}")
}

/// Operations a second with a unit.
fn rate(gflops: f64) -> String {
    if gflops >= 1000.0 { format!("{} TFLOP/s", short(gflops / 1000.0)) } else { format!("{} GFLOP/s", short(gflops)) }
}

/// The picture of `rows`, those of single kernels, under `roofs`; `title` names the adapter.
pub fn roofline(title: &str, roofs: &Roofs, rows: &[Row]) -> String {
    let drawn = |row: &&Row| {
        let single = row.family.is_some() && !row.name.contains(": family ");
        single && row.verified && row.flops > 0 && row.bytes > 0 && row.seconds > 0.0
    };
    let rows: Vec<&Row> = rows.iter().filter(drawn).collect();
    let intensity = |row: &Row| row.flops as f64 / row.bytes as f64;
    let ceilings = ceilings(roofs);
    let highest = ceilings.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let ridges = ceilings.iter().map(|(_, rate)| rate * 1e9 / roofs.copy);
    let x = Axis::around(rows.iter().map(|row| intensity(row)).chain(ridges), CHART[0], CHART[2]);
    let y = Axis::around(rows.iter().map(|row| row.gflops()).chain([highest]), CHART[3], CHART[1]);
    let points: Vec<Point<'_>> =
        rows.into_iter().map(|row| Point { row, x: x.at(intensity(row)), y: y.at(row.gflops()) }).collect();
    let listed = points.len().min(NUMBERED);
    let height = (CHART[3] + 70.0).max(CHART[1] + 40.0 + LINE * (listed + 8) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"DejaVu Sans, Arial, sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, CHART[0], 28.0, "font-size=\"18\" font-weight=\"bold\"", "Roofline");
    text(&mut svg, CHART[0], 48.0, "fill=\"#404040\"", &format!("{title}; {}", roofs.clock.name()));
    grid(&mut svg, x, y);
    draw_roofs(&mut svg, x, y, roofs, &ceilings);
    draw_points(&mut svg, &points);
    list(&mut svg, &points);
    svg.push_str("</svg>\n");
    svg
}

/// The roofs of arithmetic in GFLOP/s, with their names.
fn ceilings(roofs: &Roofs) -> Vec<(&'static str, f64)> {
    let all = [
        ("f32 multiply-add", Some(roofs.fma)),
        ("f16 multiply-add", roofs.half_fma),
        ("cooperative matrices, f16", roofs.cooperative),
    ];
    all.into_iter().filter_map(|(name, rate)| Some((name, rate? / 1e9))).collect()
}

// Writing into a `String` does not fail, so the results of `write!` below are not looked at.

fn text(svg: &mut String, x: f64, y: f64, style: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{}</text>", escape(words));
}

fn line(svg: &mut String, from: [f64; 2], to: [f64; 2], style: &str) {
    let ([x1, y1], [x2, y2]) = (from, to);
    let _ = writeln!(svg, "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>");
}

fn grid(svg: &mut String, x: Axis, y: Axis) {
    let [left, top, right, bottom] = CHART;
    for power in x.ticks() {
        let at = x.at(10f64.powi(power));
        line(svg, [at, top], [at, bottom], "stroke=\"#e5e5e5\"");
        let label = if power < 0 {
            format!("{:.*}", -power as usize, 10f64.powi(power))
        } else {
            format!("{}", 10f64.powi(power))
        };
        text(svg, at, bottom + 18.0, "text-anchor=\"middle\" fill=\"#404040\"", &label);
    }
    for power in y.ticks() {
        let at = y.at(10f64.powi(power));
        line(svg, [left, at], [right, at], "stroke=\"#e5e5e5\"");
        let value = 10f64.powi(power);
        let label = if power < 0 { format!("{value:.*}", -power as usize) } else { format!("{value}") };
        text(svg, left - 8.0, at + 4.0, "text-anchor=\"end\" fill=\"#404040\"", &label);
    }
    let (width, height) = (right - left, bottom - top);
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#a3a3a3\"/>"
    );
    text(svg, (left + right) / 2.0, bottom + 42.0, "text-anchor=\"middle\"", "operations per byte moved (FLOP/byte)");
    let middle = (top + bottom) / 2.0;
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 22 {middle:.1})\"");
    text(svg, 22.0, middle, &turned, "GFLOP/s");
}

/// The slope of memory and the ceilings of arithmetic, each with its name.
fn draw_roofs(svg: &mut String, x: Axis, y: Axis, roofs: &Roofs, ceilings: &[(&str, f64)]) {
    let highest = ceilings.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    // The slope enters the chart at its left or its bottom, whichever it meets first.
    let slope = |gbps: f64| {
        let enters = x.start().max(y.start() / gbps);
        let ends = (highest / gbps).min(x.end());
        (ends > enters).then(|| ([x.at(enters), y.at(enters * gbps)], [x.at(ends), y.at(ends * gbps)]))
    };
    for (name, rate, style) in [
        ("copy", roofs.copy / 1e9, "stroke=\"#171717\" stroke-width=\"2\""),
        ("copy within the cache", roofs.cache_copy / 1e9, "stroke=\"#a3a3a3\" stroke-dasharray=\"6 4\""),
    ] {
        let Some((from, to)) = slope(rate) else { continue };
        line(svg, from, to, style);
        let angle = (to[1] - from[1]).atan2(to[0] - from[0]).to_degrees();
        let share = if name == "copy" { 0.3 } else { 0.55 };
        let at = [from[0] + share * (to[0] - from[0]), from[1] + share * (to[1] - from[1]) - 6.0];
        let turned = format!(
            "text-anchor=\"middle\" fill=\"#404040\" transform=\"rotate({angle:.1} {:.1} {:.1})\"",
            at[0], at[1]
        );
        text(svg, at[0], at[1], &turned, &format!("{name}: {} GB/s", short(rate)));
    }
    // Names of ceilings that are close to each other go to both sides of their lines.
    let mut heights: Vec<f64> = Vec::new();
    for (name, gflops) in ceilings {
        let height = y.at(*gflops);
        let begin = x.at((gflops * 1e9 / roofs.copy).max(x.start()));
        line(svg, [begin, height], [CHART[2], height], "stroke=\"#171717\" stroke-width=\"2\"");
        let close = heights.iter().any(|other| (other - height).abs() < 16.0);
        let above = if close && heights.iter().any(|other| *other <= height) { height + 14.0 } else { height - 6.0 };
        heights.push(height);
        text(
            svg,
            CHART[2] - 6.0,
            above,
            &format!("text-anchor=\"end\" fill=\"#404040\" {HALO}"),
            &format!("{name}: {}", rate(*gflops)),
        );
    }
}

fn draw_points(svg: &mut String, points: &[Point<'_>]) {
    for (index, point) in points.iter().enumerate().rev() {
        let (x, y, fill) = (point.x, point.y, colour(point.row.family));
        let (radius, opacity) = if index < NUMBERED { (4.5, 1.0) } else { (2.5, 0.6) };
        let share = point.row.share() * 100.0;
        let told = format!("{}: {}, {share:.0} % of the roof", point.row.name, rate(point.row.gflops()));
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" fill-opacity=\"{opacity}\" \
             stroke=\"#ffffff\" stroke-width=\"0.8\"><title>{}</title></circle>",
            escape(&told)
        );
    }
    // A number stands where it covers neither a numbered point nor another number, if there is such a place beside its point.
    let numbered = &points[..points.len().min(NUMBERED)];
    let mut taken: Vec<[f64; 2]> = Vec::new();
    for (index, point) in numbered.iter().enumerate() {
        let around = (0..24).map(|turn| {
            let (angle, radius) = (f64::from(turn % 8) * std::f64::consts::FRAC_PI_4, 14.0 + 9.0 * f64::from(turn / 8));
            [point.x + radius * angle.cos(), point.y - radius * angle.sin()]
        });
        let free = |at: &[f64; 2]| {
            let inside =
                at[0] > CHART[0] + 8.0 && at[0] < CHART[2] - 8.0 && at[1] > CHART[1] + 8.0 && at[1] < CHART[3] - 8.0;
            let clear = |x: f64, y: f64, width: f64| (at[0] - x).abs() >= width || (at[1] - y).abs() >= 11.0;
            inside
                && taken.iter().all(|other| clear(other[0], other[1], 17.0))
                && numbered.iter().all(|other| clear(other.x, other.y, 11.0))
        };
        let at = around.into_iter().find(free).unwrap_or([point.x + 14.0, point.y]);
        taken.push(at);
        line(svg, [point.x, point.y], at, "stroke=\"#a3a3a3\" stroke-width=\"0.6\"");
        let style = format!("text-anchor=\"middle\" font-weight=\"bold\" fill=\"{}\" {HALO}", colour(point.row.family));
        text(svg, at[0], at[1] + 4.0, &style, &(index + 1).to_string());
    }
}

fn list(svg: &mut String, points: &[Point<'_>]) {
    let left = CHART[2] + 30.0;
    let mut y = CHART[1] + 4.0;
    for family in Family::ALL {
        let x = left + 105.0 * (family as usize as f64);
        let _ =
            writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4.5\" fill=\"{}\"/>", y - 4.0, colour(Some(family)));
        text(svg, x + 9.0, y, "", family.name());
    }
    y += 1.5 * LINE;
    for (index, point) in points.iter().take(NUMBERED).enumerate() {
        let style = format!("text-anchor=\"end\" font-weight=\"bold\" fill=\"{}\"", colour(point.row.family));
        text(svg, left + 14.0, y, &style, &(index + 1).to_string());
        let mut name: String = point.row.name.chars().take(66).collect();
        if name.len() < point.row.name.len() {
            name.push('…');
        }
        text(svg, left + 22.0, y, "font-size=\"11\"", &name);
        let share = format!("{:.0} %", point.row.share() * 100.0);
        text(svg, WIDTH - 24.0, y, "font-size=\"11\" text-anchor=\"end\"", &share);
        y += LINE;
    }
    let more = points.len().saturating_sub(NUMBERED);
    let mut notes = vec!["Right: the share of the least time at the roofs.".to_owned()];
    if more > 0 {
        notes.push(format!("{more} more as small dots without a number."));
    }
    notes.push("Kernels that compute nothing are not on the chart.".to_owned());
    for note in notes {
        text(svg, left, y + 8.0, "font-size=\"11\" fill=\"#525252\"", &note);
        y += LINE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Work;
    use crate::gpu::Clock;

    fn roofs() -> Roofs {
        Roofs {
            copy: 2e11,
            kernel_copy: 2e11,
            cache_copy: 6e11,
            fma: 8e12,
            half_fma: Some(1.6e13),
            cooperative: Some(6e13),
            launch_gap: 2e-6,
            round_trip: 2e-5,
            clock: Clock::Dispatches,
        }
    }

    fn row(name: &str, family: Family, flops: u64, bytes: u64) -> Row {
        let mut row = Row { family: Some(family), ..Row::empty(name, Clock::Dispatches) };
        row.add(Work { flops, bytes, half_matrices: false }, 1e-3, &roofs());
        row
    }

    /// Every tag that is opened is closed, in order, and no attribute or text holds a bare `<` or `&`.
    fn check_well_formed(svg: &str) {
        let mut open: Vec<&str> = Vec::new();
        let mut rest = svg;
        while let Some(at) = rest.find('<') {
            let (before, tag) = rest.split_at(at);
            assert!(!before.contains('>'), "a stray > in {before:?}");
            for (place, _) in before.match_indices('&') {
                assert!(
                    ["&amp;", "&lt;", "&gt;", "&quot;"].iter().any(|e| before[place..].starts_with(e)),
                    "{before:?}"
                );
            }
            let end = tag.find('>').expect("a tag without an end");
            let inside = &tag[1..end];
            assert!(inside.matches('"').count().is_multiple_of(2) && !inside.contains('<'), "{inside:?}");
            match inside.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name)),
                None if inside.ends_with('/') => {}
                None => open.push(inside.split(' ').next().unwrap()),
            }
            rest = &tag[end + 1..];
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest:?}");
    }

    #[test]
    fn the_picture_is_well_formed_and_complete() {
        let mut rows: Vec<Row> =
            (0..40).map(|i| row(&format!("conv2d: case {i}"), Family::Matrix, 1 << (20 + i / 3), 1 << 22)).collect();
        rows[0].name = "a <b> & \"c\"".to_owned();
        rows.push(row("step: family matrix", Family::Matrix, 1 << 30, 1 << 20));
        rows.push(row("pixels: no arithmetic", Family::Small, 0, 1 << 20));
        rows.push(Row::wrong("conv2d: wrong"));
        let svg = roofline("a card & its driver", &roofs(), &rows);
        check_well_formed(&svg);
        assert_eq!(svg.matches("<title>").count(), 40);
        for part in [
            "a &lt;b&gt; &amp; &quot;c&quot;",
            "a card &amp; its driver",
            "copy: 200 GB/s",
            "f32 multiply-add: 8.00 TFLOP/s",
            "cooperative matrices, f16: 60.0 TFLOP/s",
            "10 more as small dots",
            "FLOP/byte",
        ] {
            assert!(svg.contains(part), "{part:?} is missing");
        }
        for number in svg.split('"').filter_map(|word| word.parse::<f64>().ok()) {
            assert!(number.is_finite());
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn without_kernels_the_roofs_are_drawn() {
        let svg = roofline("x", &Roofs { half_fma: None, cooperative: None, ..roofs() }, &[]);
        check_well_formed(&svg);
        assert!(svg.contains("f32 multiply-add") && !svg.contains("cooperative") && !svg.contains("NaN"));
    }

    #[test]
    fn axes_hold_their_values() {
        let axis = Axis::around([0.5, 300.0].into_iter(), 0.0, 100.0);
        assert_eq!((axis.least, axis.most), (-1.0, 3.0));
        assert_eq!((axis.at(0.1), axis.at(1000.0), axis.at(10.0)), (0.0, 100.0, 50.0));
        let none = Axis::around(std::iter::empty(), 0.0, 100.0);
        assert!(none.most > none.least);
    }
}
