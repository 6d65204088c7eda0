//! The library in use: opens the built-in model and the best adapter, draws one picture and writes it as a PNG.
//!
//! `cargo run --release --example generate -- "red apple" apple.png`

use std::error::Error;
use std::fs::File;
use std::io::BufWriter;
use std::sync::Arc;

use scumble::gpu::{Gpu, GpuOptions};
use scumble::pipelines::{Event, Picture, Precision, Request, StableDiffusion};
use scumble::weights::embedded;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let prompt = arguments.next().unwrap_or_else(|| "red apple".into());
    let path = arguments.next().unwrap_or_else(|| "apple.png".into());

    let gpu = Arc::new(Gpu::open(&GpuOptions::default())?);
    println!("{}", gpu.describe());
    // `Checkpoint::open(path)` opens a diffusers directory or a single .safetensors file instead.
    let checkpoint = embedded::open()?;
    let precision = Precision::Auto.resolve(gpu.is_cpu());
    let model = Arc::new(StableDiffusion::new(gpu, checkpoint, precision));

    // Every item is one piece of work; whoever calls decides when the next one is done, and may stop at any time.
    let request = Request { prompt, seed: 3, ..Request::default() };
    for event in model.generate(request, 1, false)? {
        match event? {
            Event::Step(done, count) => println!("step {done} of {count}"),
            Event::Picture(picture) => write_png(&path, &picture)?,
            _ => {}
        }
    }
    println!("{path}");
    Ok(())
}

fn write_png(path: &str, picture: &Picture) -> Result<(), Box<dyn Error>> {
    let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.write_header()?.write_image_data(&picture.rgb)?;
    Ok(())
}
