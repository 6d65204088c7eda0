//! Every module that diffusers' hooks recorded, one network at a time, each fed with diffusers' own inputs.

use std::sync::Arc;

use scumble::graph::executor::Executor;
use scumble::graph::{Graph, Shape};
use scumble::models::decoder::vae;
use scumble::models::generator::context::text_keys;
use scumble::models::generator::unet::{self, Conditioning};
use scumble::models::text::clip::{self, Take};
use scumble::tensor::{DType, HostTensor};
use scumble::weights::{Claims, Source, Weights, pack};

use crate::golden::{Golden, assert_close};
use crate::{checkpoint, gpu};

/// Sums in another order than PyTorch's; a UNet or VAE chains some forty layers, each near 1e-6 of its largest value.
const TOLERANCE: f32 = 5e-5;

fn graph() -> (Arc<scumble::gpu::Gpu>, Graph) {
    let gpu = gpu();
    let graph = Graph::new(DType::F32, gpu.limits()).with_taps();
    (gpu, graph)
}

fn execute(gpu: &Arc<scumble::gpu::Gpu>, graph: &Graph, source: &dyn Source) -> Executor {
    Executor::new(gpu, graph, |spec, sink| pack::pack(spec, Some(source), sink)).unwrap()
}

/// A tap in PyTorch's order of axes: pictures [B, C, H, W] where the golden is one, else [B, T, C].
fn read(executor: &Executor, name: &str, want: &HostTensor) -> Vec<f32> {
    let got = executor.read(name).unwrap();
    if want.shape.len() == 4 { got.channels_first().data } else { got.data }
}

fn differences(a: Vec<f32>, b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// The transformer blocks' taps include the residual that diffusers' modules have not added yet.
fn without_residual(executor: &Executor, name: &str, want: &HostTensor) -> Vec<f32> {
    let got = read(executor, name, want);
    let Some((block, layer)) = name.rsplit_once('.') else { return got };
    let before = match layer {
        "attn1" => "input",
        "attn2" => "attn1",
        "ff" => "attn2",
        _ => return got,
    };
    differences(got, &read(executor, &format!("{block}.{before}"), want))
}

fn unet_taps(name: &'static str) {
    let (gpu, mut g) = graph();
    let golden = Golden::open(name);
    let part = checkpoint(name).unet;
    let inputs = [
        "unet.sample",
        "unet.timestep",
        "unet.encoder_hidden_states",
        "unet.text_embeds",
        "unet.time_ids",
        "unet.timestep_cond",
    ];
    let sample = golden.get("unet.sample");
    let [batch, channels, height, width] =
        <[usize; 4]>::try_from(sample.shape.clone()).unwrap().map(|axis| axis as u32);
    let context = golden.get("unet.encoder_hidden_states");
    let row = |channels: u32| Shape::new(batch, 1, 1, channels);
    let f32 = DType::F32;
    let value = g.input("sample", Shape::new(batch, height, width, channels), f32);
    let given = Conditioning {
        timestep: g.input("timestep", row(1), f32),
        pooled: golden.find("unet.text_embeds").map(|pooled| g.input("pooled", row(pooled.shape[1] as u32), f32)),
        sizes: golden.find("unet.time_ids").map(|_| g.input("sizes", row(6), f32)),
        guidance: golden.find("unet.timestep_cond").map(|_| g.input("guidance", row(1), f32)),
        class: None,
        mask: None,
    };
    let claims = Claims::default();
    let source = part.weights.as_ref();
    let w = Weights::new(0, source, &claims);
    let vectors = Shape::tokens(batch, context.shape[1] as u32, context.shape[2] as u32);
    let vectors = g.input("context", vectors, f32);
    let text = text_keys(&mut g, &w, &part.config, vectors);
    unet::unet(&mut g, &w, &part.config, value, given, &text);
    claims.finish(source).unwrap();
    let executor = execute(&gpu, &g, source);
    let scalar = |value: f32| HostTensor { shape: vec![batch as usize], data: vec![value; batch as usize] };
    executor.write("sample", &sample.channels_last()).unwrap();
    executor.write("timestep", &scalar(golden.get("unet.timestep").data[0])).unwrap();
    executor.write("context", context).unwrap();
    golden.find("unet.text_embeds").into_iter().for_each(|pooled| executor.write("pooled", pooled).unwrap());
    golden.find("unet.time_ids").into_iter().for_each(|sizes| executor.write("sizes", sizes).unwrap());
    if golden.find("unet.timestep_cond").is_some() {
        executor.write("guidance", &scalar(golden.request().guidance_scale.unwrap() - 1.0)).unwrap();
    }
    executor.run();
    let embeddings = ["unet.time_embedding", "unet.add_embedding"];
    for tap in golden.names("unet").filter(|tap| !inputs.contains(tap) && !embeddings.contains(tap)) {
        let want = golden.get(tap);
        assert_close(&format!("{name}: {tap}"), &without_residual(&executor, tap, want), &want.data, TOLERANCE);
    }
    let time = golden.get(embeddings[0]);
    let added = golden.find(embeddings[1]).map_or_else(|| vec![0.0; time.data.len()], |added| added.data.clone());
    let want: Vec<f32> = time.data.iter().zip(added).map(|(time, added)| silu(time + added)).collect();
    assert_close(&format!("{name}: unet.time"), &read(&executor, "unet.time", time), &want, TOLERANCE);
}

fn vae_taps(name: &'static str) {
    let (gpu, mut g) = graph();
    let golden = Golden::open(name);
    let part = checkpoint(name).vae;
    let last = golden.get(&format!("latents.{}", golden.names("latents.").count() - 1));
    let [_, channels, height, width] = <[usize; 4]>::try_from(last.shape.clone()).unwrap().map(|axis| axis as u32);
    let latent = g.input("latent", Shape::new(1, height, width, channels), DType::F32);
    let claims = Claims::default();
    let source = part.weights.as_ref();
    vae::decode(&mut g, &Weights::new(0, source, &claims), &part.config, latent);
    claims.finish(source).unwrap();
    let executor = execute(&gpu, &g, source);
    executor.write("latent", &last.channels_last()).unwrap();
    executor.run();
    for tap in golden.names("vae.") {
        let want = golden.get(tap);
        assert_close(&format!("{name}: {tap}"), &read(&executor, tap, want), &want.data, TOLERANCE);
    }
}

fn text_taps(name: &'static str) {
    let golden = Golden::open(name);
    for (index, part) in checkpoint(name).text_encoders.into_iter().enumerate() {
        let (gpu, mut g) = graph();
        let (encoder, tokens) = [("text_encoder", "tokens"), ("text_encoder_2", "tokens_2")][index];
        let tokens = golden.get(tokens);
        let ids = g.input("ids", Shape::tokens(1, tokens.data.len() as u32, 1), DType::F32);
        let claims = Claims::default();
        let source = part.weights.as_ref();
        let take = Take { skip: 0, final_norm: true };
        clip::clip(&mut g, &Weights::new(0, source, &claims), &part.config, ids, None, [take; 2]);
        claims.finish(source).unwrap();
        let executor = execute(&gpu, &g, source);
        let words: Vec<u32> = tokens.data.iter().flat_map(|id| [*id as u32, 0, 0, 0]).collect();
        executor.write_bytes("ids", &words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>()).unwrap();
        executor.run();
        let prefix = format!("{encoder}.");
        for tap in golden.names(&prefix) {
            let want = golden.get(tap);
            assert_close(
                &format!("{name}: {tap}"),
                &read(&executor, &tap[prefix.len()..], want),
                &want.data,
                TOLERANCE,
            );
        }
    }
}

#[test]
fn every_module_of_the_unets_agrees() {
    ["sd1", "sd2_v", "sdxl", "lcm"].into_iter().for_each(unet_taps);
}

#[test]
fn every_module_of_the_decoders_agrees() {
    ["sd1", "sd2_v", "sdxl", "sdxl_turbo"].into_iter().for_each(vae_taps);
}

#[test]
fn every_layer_of_the_text_encoders_agrees() {
    ["sd1", "sd2_v", "sdxl"].into_iter().for_each(text_taps);
}
