//! Timestamps that the device itself writes, and which kinds of them an adapter has.

use super::{Buffer, Gpu};
use crate::error::Result;

/// Where times come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// The device's timestamps between dispatches.
    Dispatches,
    /// The device's timestamps where compute passes begin and end; Apple's GPUs have no others.
    Passes,
    /// The host's clock around submission and wait.
    Wall,
}

impl Clock {
    /// What a report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dispatches => "GPU timestamps (between dispatches)",
            Self::Passes => "GPU timestamps (at passes' borders)",
            Self::Wall => "wall clock",
        }
    }

    /// Whether the device keeps it.
    pub fn on_device(self) -> bool {
        self != Self::Wall
    }
}

/// Room for timestamps: a query set and the buffer that it is resolved into.
#[derive(Debug)]
pub(crate) struct Timestamps {
    set: wgpu::QuerySet,
    resolved: Buffer,
    clock: Clock,
    /// Seconds of one tick.
    period: f64,
}

impl Gpu {
    /// The finest clock that this device has.
    pub fn clock(&self) -> Clock {
        let features = self.device.features();
        let fine = wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES.union(wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS);
        match (features.contains(wgpu::Features::TIMESTAMP_QUERY), features.contains(fine)) {
            (false, _) => Clock::Wall,
            (true, false) => Clock::Passes,
            (true, true) => Clock::Dispatches,
        }
    }

    /// Room for `count` timestamps, at most [`Timestamps::MOST`]; `None` with the wall clock.
    pub(crate) fn timestamps(&self, clock: Clock, count: u32) -> Result<Option<Timestamps>> {
        if clock == Clock::Wall {
            return Ok(None);
        }
        let set = self.device.create_query_set(&wgpu::QuerySetDescriptor {
            label: Some("timestamps"),
            ty: wgpu::QueryType::Timestamp,
            count,
        });
        let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let resolved = self.buffer("timestamps", u64::from(count) * 8, usage)?;
        let period = f64::from(self.queue.get_timestamp_period()) * 1e-9;
        Ok(Some(Timestamps { set, resolved, clock, period }))
    }
}

impl Timestamps {
    /// Timestamps of one set.
    pub const MOST: u32 = wgpu::QUERY_SET_MAX_QUERIES;

    /// Records timestamp `index` between passes. Without timestamps between commands an empty pass carries it.
    pub fn mark(&self, encoder: &mut wgpu::CommandEncoder, index: u32) {
        match self.clock {
            Clock::Dispatches => encoder.write_timestamp(&self.set, index),
            Clock::Passes | Clock::Wall => {
                let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                    query_set: &self.set,
                    beginning_of_pass_write_index: Some(index),
                    end_of_pass_write_index: None,
                });
                encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
            }
        }
    }

    /// Records timestamp `index` inside a pass.
    pub fn mark_inside(&self, pass: &mut wgpu::ComputePass<'_>, index: u32) {
        pass.write_timestamp(&self.set, index);
    }

    /// A pass's own timestamps, at its begin and its end.
    pub fn around(&self, begin: u32) -> wgpu::ComputePassTimestampWrites<'_> {
        wgpu::ComputePassTimestampWrites {
            query_set: &self.set,
            beginning_of_pass_write_index: Some(begin),
            end_of_pass_write_index: Some(begin + 1),
        }
    }

    /// Records that the first `count` timestamps can be read once the commands have run.
    pub fn resolve(&self, encoder: &mut wgpu::CommandEncoder, count: u32) {
        encoder.resolve_query_set(&self.set, 0..count, &self.resolved, 0);
    }

    /// The first `count` timestamps in ticks. Blocks.
    pub fn ticks(&self, gpu: &Gpu, count: u32) -> Result<Vec<u64>> {
        let bytes = gpu.read(&self.resolved, u64::from(count) * 8)?;
        let tick = |bytes: &[u8]| bytes.iter().rev().fold(0, |tick, byte| tick << 8 | u64::from(*byte));
        Ok(bytes.chunks_exact(8).map(tick).collect())
    }

    /// Seconds between two timestamps; `None` where the driver wrote none, or not in order.
    pub fn seconds(&self, from: u64, to: u64) -> Option<f64> {
        let ticks = to.checked_sub(from).filter(|_| from > 0)?;
        Some(ticks as f64 * self.period)
    }
}
