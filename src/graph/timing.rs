//! How long an executor's launches take, by the device's own timestamps where it has them.
//!
//! A timestamp is written once everything before it has ended, so the time of a launch holds what the device needs to
//! drain the launch before it and to start this one.

use std::time::Instant;

use super::executor::{CompiledLaunch, Executor, Resident};
use crate::error::Result;
use crate::gpu::{Clock, Gpu, Timestamps};

/// Launches of one submission of a profile: two timestamps each must fit a query set.
const PROFILED_LAUNCHES: usize = Timestamps::MOST as usize / 2 - 1;
/// A profile's submissions are cut as a run's are, so that a driver's watchdog sees them end.
const PROFILED_WORK: u64 = 100_000_000_000;

/// One stretch of work.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lap {
    /// Seconds by `clock`.
    pub seconds: f64,
    /// Where `seconds` come from: the wall clock too where the driver's timestamps make no sense.
    pub clock: Clock,
    /// Seconds of the host's clock, from the first submission to the end of the wait.
    pub wall: f64,
}

/// One run, launch by launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Where the times come from. By the wall clock every launch was waited for by itself.
    pub clock: Clock,
    /// Seconds of every node of the graph, in order.
    pub seconds: Vec<f64>,
    /// Dispatches of one run.
    pub dispatches: usize,
}

fn encoder(gpu: &Gpu) -> wgpu::CommandEncoder {
    gpu.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default())
}

/// Times what `work` records or submits. The commands that it is given come first, those that it returns last; it tells
/// when the host's clock starts.
fn lap(
    gpu: &Gpu,
    clock: Clock,
    work: impl FnOnce(wgpu::CommandEncoder) -> (wgpu::CommandEncoder, Instant),
) -> Result<Lap> {
    let stamps = gpu.timestamps(clock, 2)?;
    gpu.wait()?;
    let mut first = encoder(gpu);
    if let Some(stamps) = &stamps {
        stamps.mark(&mut first, 0);
    }
    let (mut last, start) = work(first);
    if let Some(stamps) = &stamps {
        stamps.mark(&mut last, 1);
        stamps.resolve(&mut last, 2);
    }
    gpu.queue.submit([last.finish()]);
    gpu.wait()?;
    let wall = start.elapsed().as_secs_f64();
    let seconds = match &stamps {
        None => None,
        Some(stamps) => {
            let ticks = stamps.ticks(gpu, 2)?;
            stamps.seconds(ticks[0], ticks[1]).filter(|seconds| *seconds > 0.0)
        }
    };
    let clock = if seconds.is_some() { clock } else { Clock::Wall };
    Ok(Lap { seconds: seconds.unwrap_or(wall), clock, wall })
}

impl Executor {
    /// Times `repeats` runs that are recorded together and submitted at once, so that the host does not hold the device up.
    /// Meant for little work: a driver's watchdog must see it end.
    ///
    /// # Errors
    /// When the device fails.
    pub fn time_together(&self, clock: Clock, repeats: u32) -> Result<Lap> {
        lap(&self.gpu, clock, |mut commands| {
            (0..repeats).for_each(|_| record(&mut commands, &self.launches));
            (commands, Instant::now())
        })
    }

    /// Times one run as [`Executor::run`] submits it.
    ///
    /// # Errors
    /// When the device fails.
    pub fn time_run(&self, clock: Clock) -> Result<Lap> {
        lap(&self.gpu, clock, |commands| {
            let start = Instant::now();
            self.gpu.queue.submit([commands.finish()]);
            self.run();
            (encoder(&self.gpu), start)
        })
    }

    /// Times `repeats` of the driver's own copies of `source` into a named value of the same shape.
    ///
    /// # Errors
    /// When there is no such value or the device fails.
    pub fn time_copies(&self, name: &str, source: &Resident, clock: Clock, repeats: u32) -> Result<Lap> {
        let to = self.find(name)?;
        let size = source.buffer.size().min(to.buffer.size());
        lap(&self.gpu, clock, |mut commands| {
            (0..repeats).for_each(|_| commands.copy_buffer_to_buffer(&source.buffer, 0, &to.buffer, 0, size));
            (commands, Instant::now())
        })
    }

    /// Runs once and times every launch. Where the device has no timestamps, or writes some that make no sense, every
    /// launch is waited for by itself.
    ///
    /// # Errors
    /// When the device fails.
    pub fn profile(&self, clock: Clock) -> Result<Profile> {
        if clock.on_device()
            && let Some(profile) = self.profile_on_device(clock)?
        {
            return Ok(profile);
        }
        let mut profile = self.empty_profile(Clock::Wall);
        self.gpu.wait()?;
        for launch in &self.launches {
            let start = Instant::now();
            let mut commands = encoder(&self.gpu);
            record(&mut commands, std::slice::from_ref(launch));
            self.gpu.queue.submit([commands.finish()]);
            self.gpu.wait()?;
            profile.seconds[launch.node] += start.elapsed().as_secs_f64();
        }
        Ok(profile)
    }

    fn empty_profile(&self, clock: Clock) -> Profile {
        Profile { clock, seconds: vec![0.0; self.labels.len()], dispatches: self.launches.len() }
    }

    fn profile_on_device(&self, clock: Clock) -> Result<Option<Profile>> {
        let mut profile = self.empty_profile(clock);
        self.gpu.wait()?;
        for launches in submissions(&self.launches) {
            let count = 2 * launches.len() as u32;
            let Some(stamps) = self.gpu.timestamps(clock, count)? else { return Ok(None) };
            let mut commands = encoder(&self.gpu);
            match clock {
                Clock::Dispatches => record_between(&mut commands, launches, &stamps),
                Clock::Passes | Clock::Wall => record_apart(&mut commands, launches, &stamps),
            }
            stamps.resolve(&mut commands, count);
            self.gpu.queue.submit([commands.finish()]);
            let ticks = stamps.ticks(&self.gpu, count)?;
            for (launch, ticks) in launches.iter().zip(ticks.chunks_exact(2)) {
                let Some(seconds) = stamps.seconds(ticks[0], ticks[1]) else { return Ok(None) };
                profile.seconds[launch.node] += seconds;
            }
        }
        Ok(Some(profile))
    }
}

impl CompiledLaunch {
    /// Records the dispatch alone.
    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        let [x, y, z] = self.workgroups;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Records launches in as few passes as the copies between them allow.
fn record(commands: &mut wgpu::CommandEncoder, launches: &[CompiledLaunch]) {
    let mut begin = 0;
    while begin < launches.len() {
        launches[begin].stages.iter().for_each(|stage| stage.record(commands));
        let plain = launches[begin + 1..].iter().take_while(|launch| launch.stages.is_empty()).count();
        let mut pass = commands.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        launches[begin..=begin + plain].iter().for_each(|launch| launch.dispatch(&mut pass));
        begin += plain + 1;
    }
}

/// Cuts a run into submissions with room for their timestamps.
fn submissions(launches: &[CompiledLaunch]) -> Vec<&[CompiledLaunch]> {
    let mut parts = Vec::new();
    let mut begin = 0;
    while begin < launches.len() {
        let mut end = begin;
        let mut work = 0;
        while end < launches.len() && end - begin < PROFILED_LAUNCHES && (work < PROFILED_WORK || end == begin) {
            work += launches[end].work;
            end += 1;
        }
        parts.push(&launches[begin..end]);
        begin = end;
    }
    parts
}

/// Launches as they are recorded for a run, but with a timestamp before each (before its copies, if it has some) and after.
fn record_between(commands: &mut wgpu::CommandEncoder, launches: &[CompiledLaunch], stamps: &Timestamps) {
    let mut begin = 0;
    while begin < launches.len() {
        stamps.mark(commands, 2 * begin as u32);
        launches[begin].stages.iter().for_each(|stage| stage.record(commands));
        let plain = launches[begin + 1..].iter().take_while(|launch| launch.stages.is_empty()).count();
        let mut pass = commands.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
        for (index, launch) in launches.iter().enumerate().skip(begin).take(plain + 1) {
            if index > begin {
                stamps.mark_inside(&mut pass, 2 * index as u32);
            }
            launch.dispatch(&mut pass);
            stamps.mark_inside(&mut pass, 2 * index as u32 + 1);
        }
        begin += plain + 1;
    }
}

/// Every launch in a pass of its own, which carries the timestamps; copies before it do not count.
fn record_apart(commands: &mut wgpu::CommandEncoder, launches: &[CompiledLaunch], stamps: &Timestamps) {
    for (index, launch) in launches.iter().enumerate() {
        launch.stages.iter().for_each(|stage| stage.record(commands));
        let timestamp_writes = Some(stamps.around(2 * index as u32));
        let mut pass = commands.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        launch.dispatch(&mut pass);
    }
}
