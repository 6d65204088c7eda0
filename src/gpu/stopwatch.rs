//! Seconds between two places of a command encoder, by the GPU's own clock where it has one.

use std::time::Instant;

use super::{Buffer, Gpu};
use crate::error::Result;

const QUERIES: u32 = 2;
const BYTES: u64 = QUERIES as u64 * wgpu::QUERY_SIZE as u64;

/// A clock to start and stop in one encoder.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    queries: Option<(wgpu::QuerySet, Buffer)>,
    wall: Instant,
}

impl Stopwatch {
    /// Waits for the device and starts in `encoder`.
    pub fn start(gpu: &Gpu, encoder: &mut wgpu::CommandEncoder) -> Result<Self> {
        let has = gpu.device.features().contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);
        let queries = has.then(|| {
            let descriptor =
                wgpu::QuerySetDescriptor { label: Some("stopwatch"), ty: wgpu::QueryType::Timestamp, count: QUERIES };
            let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
            gpu.buffer("stopwatch", BYTES, usage).map(|buffer| (gpu.device.create_query_set(&descriptor), buffer))
        });
        let queries = queries.transpose()?;
        if let Some((set, _)) = &queries {
            encoder.write_timestamp(set, 0);
        }
        gpu.wait()?;
        Ok(Self { queries, wall: Instant::now() })
    }

    /// Stops in `encoder`, submits it and waits; the seconds between. Blocks.
    pub fn stop(self, gpu: &Gpu, mut encoder: wgpu::CommandEncoder) -> Result<f64> {
        if let Some((set, buffer)) = &self.queries {
            encoder.write_timestamp(set, 1);
            encoder.resolve_query_set(set, 0..QUERIES, buffer, 0);
        }
        gpu.queue.submit([encoder.finish()]);
        gpu.wait()?;
        let wall = self.wall.elapsed().as_secs_f64();
        let Some((_, buffer)) = &self.queries else { return Ok(wall) };
        let bytes = gpu.read(buffer, BYTES)?;
        let tick =
            |index: usize| bytes[8 * index..][..8].iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let ticks = tick(1).saturating_sub(tick(0));
        let seconds = ticks as f64 * f64::from(gpu.queue.get_timestamp_period()) * 1e-9;
        // A clock that stands still, or runs for longer than the wall's, tells nothing.
        Ok(if seconds > 0.0 && seconds <= wall { seconds } else { wall })
    }
}
