//! An application that has a GPU device of its own and lends it to scumble: clones of its device and queue go in, and the
//! application goes on submitting work between the pieces of a picture.
//!
//! `cargo run --release --example host_device`

use std::error::Error;
use std::sync::Arc;

use scumble::gpu::Gpu;
use scumble::pipelines::{Event, Precision, Request, StableDiffusion};
use scumble::weights::embedded;

fn main() -> Result<(), Box<dyn Error>> {
    // The application's own set-up, as it would make it for its window. scumble needs WebGPU's default limits, and uses
    // larger ones where the device was opened with them.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = pollster::block_on(instance.request_adapter(&wgpu::RequestAdapterOptions::default()))?;
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("application"),
        required_limits: adapter.limits(),
        ..wgpu::DeviceDescriptor::default()
    };
    let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))?;

    // Handles are counted references: both sides keep theirs. From here errors that the application does not scope itself
    // are reported by scumble's calls.
    let gpu = Arc::new(Gpu::from_device(device.clone(), queue.clone(), adapter.get_info(), false));
    let precision = Precision::Auto.resolve(gpu.is_cpu());
    let model = Arc::new(StableDiffusion::new(gpu, embedded::open()?, precision));

    let request = Request { prompt: "red heart".into(), steps: Some(8), ..Request::default() };
    for event in model.generate(request, 1, false)? {
        match event? {
            Event::Step(done, count) => {
                draw_frame(&device, &queue);
                println!("step {done} of {count}, and a frame of the application");
            }
            Event::Picture(picture) => println!("a picture of {} x {} pixels", picture.width, picture.height),
            _ => {}
        }
    }
    Ok(())
}

/// Stands for the application's own work on the shared queue.
fn draw_frame(device: &wgpu::Device, queue: &wgpu::Queue) {
    let encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some("frame") });
    queue.submit([encoder.finish()]);
}
