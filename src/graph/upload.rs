//! Weights on their way to the GPU: small pieces are gathered, so that few staging buffers carry them all.

use crate::error::Result;
use crate::gpu::{Charge, Gpu};

/// Bytes of one write at the most, and of what is gathered for one.
pub(super) const STAGING_BYTES: usize = 16 << 20;
/// Larger pieces are written as they are.
const GATHERED_BYTES: usize = 1 << 20;

/// Writes consecutive pieces into buffers. Of two staging buffers one is filled while the other is copied, so that host
/// memory stays bounded.
pub(super) struct Upload<'a> {
    gpu: &'a Gpu,
    gathered: Vec<u8>,
    /// The buffer and the offset in it where what is gathered belongs.
    place: Option<(&'a wgpu::Buffer, u64)>,
    /// Bytes written since the last submission.
    written: usize,
    copying: Option<wgpu::SubmissionIndex>,
    /// The staging memory of what is written, and of what is copied.
    staging: [Vec<Charge>; 2],
}

impl<'a> Upload<'a> {
    pub fn new(gpu: &'a Gpu) -> Self {
        Self { gpu, gathered: Vec::new(), place: None, written: 0, copying: None, staging: [Vec::new(), Vec::new()] }
    }

    /// Writes `piece` at `offset`, a multiple of four as is its length. A gap behind the piece before is filled with
    /// zeros.
    pub fn write(&mut self, buffer: &'a wgpu::Buffer, offset: u64, piece: &[u8]) -> Result<()> {
        if piece.len() >= GATHERED_BYTES {
            self.flush()?;
            for (index, part) in piece.chunks(STAGING_BYTES).enumerate() {
                self.put(buffer, offset + (index * STAGING_BYTES) as u64, part)?;
            }
            return Ok(());
        }
        let follows = self.place.is_some_and(|(gathering, begin)| {
            let gap = offset.checked_sub(begin + self.gathered.len() as u64);
            gathering == buffer && gap.is_some_and(|gap| gap < GATHERED_BYTES as u64)
        });
        if !follows || self.gathered.len() + 2 * GATHERED_BYTES > STAGING_BYTES {
            self.flush()?;
        }
        let (_, begin) = *self.place.get_or_insert((buffer, offset));
        self.gathered.resize((offset - begin) as usize, 0);
        self.gathered.extend_from_slice(piece);
        Ok(())
    }

    /// Writes the rest and waits for all of it.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        self.gpu.queue.submit([]);
        self.gpu.wait()
    }

    fn flush(&mut self) -> Result<()> {
        if let Some((buffer, offset)) = self.place.take() {
            let gathered = std::mem::take(&mut self.gathered);
            self.put(buffer, offset, &gathered)?;
            self.gathered = gathered;
            self.gathered.clear();
        }
        Ok(())
    }

    fn put(&mut self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        if self.written > 0 && self.written + bytes.len() > STAGING_BYTES {
            self.written = 0;
            let copying = self.copying.replace(self.gpu.queue.submit([]));
            copying.map_or(Ok(()), |earlier| self.gpu.wait_for(earlier))?;
            self.staging[1] = std::mem::take(&mut self.staging[0]);
        }
        self.staging[0].push(self.gpu.charge(bytes.len() as u64));
        self.gpu.queue.write_buffer(buffer, offset, bytes);
        self.written += bytes.len();
        Ok(())
    }
}
