//! Progress on stderr: a bar per stage on a terminal, sparse lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A line is due at the latest after this time.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// What a stage counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Denoising steps, shown with their rate.
    Steps,
    /// Bytes.
    Bytes,
    /// Pieces of work of no special kind: kernels, tiles, parts.
    Pieces,
}

/// Shows one stage after the other.
pub struct Reporter {
    out: Output,
    stage: Option<Stage>,
}

enum Output {
    Bars,
    Lines(Box<dyn Write + Send>),
}

struct Stage {
    name: String,
    unit: Unit,
    total: u64,
    done: u64,
    start: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Reporter {
    /// For stderr: bars where it is a terminal.
    pub fn stderr() -> Self {
        match std::io::stderr().is_terminal() {
            true => Self { out: Output::Bars, stage: None },
            false => Self::lines(Box::new(std::io::stderr())),
        }
    }

    /// Plain lines into `out`.
    pub fn lines(out: Box<dyn Write + Send>) -> Self {
        Self { out: Output::Lines(out), stage: None }
    }

    /// Ends the stage before and starts one that counts up to `total` (0: not known).
    pub fn begin(&mut self, name: impl Into<String>, total: u64, unit: Unit) {
        self.end();
        let now = Instant::now();
        let name = name.into();
        let bar = match self.out {
            Output::Bars => Some(bar(&name, total, unit)),
            Output::Lines(_) => None,
        };
        self.stage = Some(Stage { name, unit, total, done: 0, start: now, told: now, bar });
    }

    /// The present stage has come this far; `done` counts from 0 and never falls.
    pub fn set(&mut self, done: u64) {
        let Some(stage) = &mut self.stage else { return };
        let before = std::mem::replace(&mut stage.done, done);
        if let Some(bar) = &stage.bar {
            bar.set_position(done);
        } else if done < stage.total && line_due(before, done, stage.total, stage.told.elapsed()) {
            stage.told = Instant::now();
            let line = stage.progress_line();
            self.line(&line);
        }
    }

    /// Ends the present stage, if any, and says how long it took.
    pub fn end(&mut self) {
        let Some(stage) = self.stage.take() else { return };
        let line = stage.last_line();
        match &stage.bar {
            Some(bar) => {
                bar.finish_and_clear();
                self.line(&line);
            }
            None => self.line(&line),
        }
    }

    /// A line of its own, such as a warning.
    pub fn line(&mut self, line: &str) {
        // Nobody reads a closed stderr; the work goes on.
        let _ = match (&mut self.out, self.stage.as_ref().and_then(|stage| stage.bar.as_ref())) {
            (Output::Lines(out), _) => writeln!(out, "{line}"),
            (Output::Bars, Some(bar)) => bar.suspend(|| writeln!(std::io::stderr(), "{line}")),
            (Output::Bars, None) => writeln!(std::io::stderr(), "{line}"),
        };
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(Stage { bar: Some(bar), .. }) = &self.stage {
            bar.abandon();
        }
    }
}

/// At every full tenth, and where the last line is long ago.
fn line_due(before: u64, done: u64, total: u64, silence: Duration) -> bool {
    done > before && (done * 10 / total > before * 10 / total || silence >= LONGEST_SILENCE)
}

impl Stage {
    fn amount(&self, count: u64) -> String {
        match self.unit {
            Unit::Bytes => format!("{:.0} MiB", count as f64 / f64::from(1 << 20)),
            Unit::Steps | Unit::Pieces => count.to_string(),
        }
    }

    fn progress_line(&self) -> String {
        let rate = match self.unit {
            Unit::Steps => format!(", {}", rate(self.done, self.start.elapsed())),
            Unit::Bytes | Unit::Pieces => String::new(),
        };
        format!("{}: {} of {}{rate}", self.name, self.amount(self.done), self.amount(self.total))
    }

    fn last_line(&self) -> String {
        let elapsed = self.start.elapsed();
        let time = format!("{:.1} s", elapsed.as_secs_f64());
        match (self.unit, self.done) {
            (_, 0) => format!("{}: {time}", self.name),
            (Unit::Steps, done) => format!("{}: {done} steps in {time}, {}", self.name, rate(done, elapsed)),
            (_, done) => format!("{}: {} in {time}", self.name, self.amount(done)),
        }
    }
}

/// Iterations per second, or seconds per iteration where that is above one.
fn rate(done: u64, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(1e-9);
    let per_second = done as f64 / seconds;
    match per_second >= 1.0 || done == 0 {
        true => format!("{per_second:.2} it/s"),
        false => format!("{:.2} s/it", 1.0 / per_second),
    }
}

fn bar(name: &str, total: u64, unit: Unit) -> ProgressBar {
    let counts = match unit {
        Unit::Steps => "{pos}/{len} {elapsed}<{eta}, {rate}",
        Unit::Bytes => "{bytes}/{total_bytes} {elapsed}",
        Unit::Pieces => "{pos}/{len} {elapsed}",
    };
    let template = match total {
        0 => "{prefix:<12} {spinner} {elapsed}".to_owned(),
        _ => format!("{{prefix:<12}} {{bar:30}} {counts}"),
    };
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar()).with_key(
        "rate",
        |state: &indicatif::ProgressState, out: &mut dyn std::fmt::Write| {
            // Writing into the bar's own text does not fail.
            let _ = out.write_str(&rate(state.pos(), state.elapsed()));
        },
    );
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    bar.set_style(style);
    bar.set_prefix(name.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_sparse() {
        let shared = Shared::default();
        let mut reporter = Reporter::lines(Box::new(shared.clone()));
        reporter.set(3);
        reporter.begin("load", 0, Unit::Pieces);
        reporter.begin("denoise", 1000, Unit::Steps);
        (0..=1000).for_each(|done| reporter.set(done));
        reporter.line("a warning");
        reporter.end();
        reporter.end();
        let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("load: 0.0 s"), "{text}");
        assert!(lines[1].starts_with("denoise: 100 of 1000, ") && lines[1].ends_with(" it/s"), "{text}");
        assert_eq!(lines[lines.len() - 2], "a warning");
        assert!(lines[lines.len() - 1].starts_with("denoise: 1000 steps in "), "{text}");
        assert_eq!(lines.len(), 1 + 9 + 1 + 1, "{text}");
    }

    #[test]
    fn slow_steps_are_told_one_by_one() {
        let soon = Duration::from_millis(10);
        assert!(!line_due(0, 1, 50, soon));
        assert!(line_due(0, 1, 50, LONGEST_SILENCE));
        assert!(!line_due(1, 1, 50, LONGEST_SILENCE));
        assert!(line_due(4, 5, 50, soon));
        assert_eq!(rate(4, Duration::from_secs(2)), "2.00 it/s");
        assert_eq!(rate(1, Duration::from_secs(90)), "90.00 s/it");
    }

    #[test]
    fn a_closed_reader_is_no_matter() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let mut reporter = Reporter::lines(Box::new(Closed));
        reporter.begin("load", 1, Unit::Bytes);
        reporter.set(1);
        reporter.end();
    }

    #[test]
    fn every_bar_can_be_drawn() {
        for unit in [Unit::Steps, Unit::Bytes, Unit::Pieces] {
            for total in [0, 10] {
                bar("denoise", total, unit).finish_and_clear();
            }
        }
    }
}
