//! Commands on their way to the GPU: launches of one or several graphs, submitted in slices that each end in bounded time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::executor::CompiledLaunch;
use crate::error::Result;
use crate::gpu::Gpu;
use crate::kernels::Call;

/// A slice holds about this much [`work`] as long as nothing was measured: a second on a small integrated GPU.
const FIRST_SLICE: f64 = 100e9;
/// Seconds of one slice. Windows resets a GPU whose work takes 2 s, and a screen shares it meanwhile.
const SLICE_SECONDS: f64 = 0.2;
/// ... and on a CPU adapter, which nothing watches.
const SLICE_SECONDS_CPU: f64 = 1.0;
/// Less work than this says more of latency than of the rate.
const LEAST_MEASURED: f64 = 1e9;
/// A byte that must be moved counts as so many floating-point operations, as adapters have about these of both: norms and
/// other kernels of few operations take time, too.
const OPERATIONS_PER_BYTE: u64 = 16;

/// What a call takes, in floating-point operations or in the time of such.
pub(super) fn work(call: &Call) -> u64 {
    call.flops.max(call.bytes * OPERATIONS_PER_BYTE)
}

/// How fast an adapter was seen to get a graph's work done.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// Work a second, 0 before the first measurement.
    rate: f64,
    /// When the last submission was seen to be done.
    done: Option<Instant>,
}

impl Pace {
    /// The work of one slice.
    fn slice(&self, cpu: bool) -> f64 {
        let seconds = if cpu { SLICE_SECONDS_CPU } else { SLICE_SECONDS };
        if self.rate > 0.0 { self.rate * seconds } else { FIRST_SLICE }
    }

    /// Takes note that `work` submitted at `start` was done at `now`. The GPU began with it at the end of what was
    /// submitted before; seeing an end late makes the rate too low and slices too short, never too long. A lower rate
    /// counts at once, a higher one by half, as the first run of a pipeline may have compiled it.
    fn measured(&mut self, work: f64, start: Instant, now: Instant) {
        let begin = self.done.map_or(start, |done| done.max(start));
        self.done = Some(now);
        let seconds = now.saturating_duration_since(begin).as_secs_f64();
        if work >= LEAST_MEASURED && seconds > 0.0 {
            let rate = work / seconds;
            self.rate = if self.rate > rate || self.rate == 0.0 { rate } else { (self.rate + rate) / 2.0 };
        }
    }
}

/// Commands that are being recorded. Launches of several graphs may follow one another; they run in this order, and those
/// before are seen by those after. What is dropped before [`Recording::submit`] was recorded in vain.
pub struct Recording {
    // Before the encoder, because an open pass must be closed first.
    pass: Option<wgpu::ComputePass<'static>>,
    encoder: wgpu::CommandEncoder,
    /// The pipeline that the open pass has set.
    pipeline: Option<Arc<crate::gpu::Pipeline>>,
    gpu: Arc<Gpu>,
    pace: Arc<Mutex<Pace>>,
    /// Work of a slice, of the present one so far, and of those submitted.
    slice: f64,
    pending: f64,
    submitted: f64,
    start: Instant,
}

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").field("slice", &self.slice).field("pending", &self.pending).finish_non_exhaustive()
    }
}

/// Something submitted, which the GPU will get done.
#[derive(Debug, Clone)]
pub struct Submission {
    gpu: Arc<Gpu>,
    index: wgpu::SubmissionIndex,
}

impl Submission {
    /// Waits until this submission and all before it are done, whatever has been submitted since.
    ///
    /// # Errors
    /// When the device has failed.
    pub fn wait(&self) -> Result<()> {
        self.gpu.wait_for(self.index.clone())
    }
}

impl Recording {
    /// Begins; the slices are cut, and measured, by `pace`.
    pub(super) fn new(gpu: &Arc<Gpu>, pace: &Arc<Mutex<Pace>>) -> Self {
        let slice = pace.lock().unwrap_or_else(PoisonError::into_inner).slice(gpu.is_cpu());
        Self {
            pass: None,
            encoder: encoder(gpu),
            pipeline: None,
            gpu: Arc::clone(gpu),
            pace: Arc::clone(pace),
            slice,
            pending: 0.0,
            submitted: 0.0,
            start: Instant::now(),
        }
    }

    /// Records launches in as few passes as the copies between them allow.
    pub(super) fn launches(&mut self, launches: &[CompiledLaunch]) {
        for launch in launches {
            if self.pending >= self.slice {
                self.cut();
            }
            self.launch(launch);
        }
    }

    fn launch(&mut self, launch: &CompiledLaunch) {
        self.pending += launch.work as f64;
        if !launch.stages.is_empty() {
            self.close();
            launch.stages.iter().for_each(|stage| stage.record(&mut self.encoder));
        }
        let pass = self.pass.get_or_insert_with(|| {
            self.encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime()
        });
        if !self.pipeline.as_ref().is_some_and(|set| Arc::ptr_eq(set, &launch.pipeline)) {
            pass.set_pipeline(&launch.pipeline.pipeline);
            self.pipeline = Some(Arc::clone(&launch.pipeline));
        }
        pass.set_bind_group(0, &launch.bind_group, &[]);
        let [x, y, z] = launch.workgroups;
        pass.dispatch_workgroups(x, y, z);
    }

    fn close(&mut self) {
        self.pass = None;
        self.pipeline = None;
    }

    /// Submits what is recorded so far.
    fn cut(&mut self) -> wgpu::SubmissionIndex {
        self.close();
        let recorded = std::mem::replace(&mut self.encoder, encoder(&self.gpu));
        self.submitted += std::mem::take(&mut self.pending);
        self.gpu.queue.submit([recorded.finish()])
    }

    /// Submits the last slice. Returns without waiting.
    pub fn submit(mut self) -> Submission {
        self.close();
        self.submitted += self.pending;
        let index = self.gpu.queue.submit([self.encoder.finish()]);
        let (pace, work, start) = (self.pace, self.submitted, self.start);
        // Called when somebody waits or submits; nobody has to wait for it.
        self.gpu.queue.on_submitted_work_done(move || {
            pace.lock().unwrap_or_else(PoisonError::into_inner).measured(work, start, Instant::now());
        });
        Submission { gpu: self.gpu, index }
    }

    /// Records all launches as one slice, finishes its commands as a submission would, and throws them away.
    pub(super) fn discard(mut self, launches: &[CompiledLaunch]) {
        launches.iter().for_each(|launch| self.launch(launch));
        self.close();
        drop(self.encoder.finish());
    }
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::gpu::GpuOptions;
    use crate::graph::executor::Executor;
    use crate::graph::{Graph, Shape};
    use crate::kernels::elementwise::{self, Activation, Elementwise};
    use crate::tensor::{DType, HostTensor};

    /// `nodes` times 2 x + 1, from `x` [1, 3, 1, channels] to `y`.
    fn chain(gpu: &Gpu, nodes: usize, channels: u32) -> Graph {
        let mut g = Graph::new(DType::F32, gpu.limits());
        let shape = Shape::tokens(1, 3, channels);
        let mut value = g.input("x", shape, DType::F32);
        let config = Elementwise { scale_a: 2.0, scale_b: None, shift: 1.0, activation: Activation::None };
        for _ in 0..nodes {
            let call = elementwise::call(config, 3, channels, [DType::F32; 3], g.limits()).unwrap();
            value = g.push("chain", call, vec![value.into(), value.into()], shape, DType::F32);
        }
        g.output("y", value);
        g
    }

    #[test]
    fn slices_and_shared_values_compute_the_same() {
        let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
        let first = Executor::new(&gpu, &chain(&gpu, 5, 4), |_, _| Ok(())).unwrap();
        let y = first.resident("y").unwrap();
        let second = Executor::sharing(&gpu, &chain(&gpu, 2, 4), &[("x", &y)], |_, _| Ok(())).unwrap();
        let data: Vec<f32> = (0..12u8).map(f32::from).collect();
        let wanted: Vec<f32> = data.iter().map(|x| x * 128.0 + 127.0).collect();
        for slice in [FIRST_SLICE, 0.0] {
            first.poison();
            second.poison();
            first.write("x", &HostTensor { shape: vec![3, 4], data: data.clone() }).unwrap();
            let mut recording = first.begin();
            recording.slice = slice;
            first.record(&mut recording);
            second.record(&mut recording);
            recording.submit().wait().unwrap();
            assert_eq!(second.read("y").unwrap().data, wanted, "slices of {slice}");
        }
        let error = Executor::sharing(&gpu, &chain(&gpu, 2, 8), &[("x", &y)], |_, _| Ok(())).unwrap_err();
        assert!(error.to_string().contains("[1, 3, 1, 8] in f32, found [1, 3, 1, 4] in f32"), "{error}");
    }

    #[test]
    fn slices_follow_what_was_measured() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut pace = Pace::default();
        assert_eq!(pace.slice(false), FIRST_SLICE);
        pace.measured(1e12, start, at(1.0));
        assert!((pace.slice(false) / 0.2e12 - 1.0).abs() < 1e-9 && (pace.slice(true) / 1e12 - 1.0).abs() < 1e-9);
        // Submitted while the first ran: it took the second after it.
        pace.measured(3e12, start, at(2.0));
        assert!((pace.slice(false) / 0.4e12 - 1.0).abs() < 1e-9);
        // Slower than before counts at once; next to no work says nothing.
        pace.measured(1e12, at(3.0), at(5.0));
        assert!((pace.slice(false) / 0.1e12 - 1.0).abs() < 1e-9);
        pace.measured(1e6, at(6.0), at(9.0));
        assert!((pace.slice(false) / 0.1e12 - 1.0).abs() < 1e-9);
    }
}
