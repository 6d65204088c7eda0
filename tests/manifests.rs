//! Building the graphs of the published models asks for exactly the tensors that the published checkpoints hold. Neither
//! a GPU nor weights are needed.
//!
//! `tests/goldens/keys/*.tsv` list names and shapes of the modules that diffusers and transformers build from the published
//! configs. The configs here are those of `stable-diffusion-v1-5`, `stable-diffusion-2-1` and `stable-diffusion-xl-base-1.0`.

use std::path::Path;

use scumble::error::{Error, Result};
use scumble::graph::{Graph, Shape};
use scumble::kernels::Limits;
use scumble::models::config::{ClassEmbedding, ClipConfig, ClipModelConfig, MovqConfig, UnetConfig, VaeConfig};
use scumble::models::decoder::{movq, vae};
use scumble::models::generator::context::{self, PromptVectors};
use scumble::models::generator::unet::{self, Conditioning};
use scumble::models::text::clip::{self, Take};
use scumble::models::vision::clip_image::clip_image;
use scumble::tensor::DType;
use scumble::weights::shapes::parse_manifest;
use scumble::weights::{Claims, ShapesSource, TensorInfo, Weights, clip as clip_names, keys, open_clip};
use serde_json::{Value, json};

type Tensors = Vec<(String, TensorInfo)>;

fn manifest(name: &str) -> Tensors {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/goldens/keys/{name}.tsv"));
    parse_manifest(name, &std::fs::read_to_string(path).unwrap()).unwrap()
}

fn sd_unet(more: &Value) -> UnetConfig {
    let mut config = json!({
        "act_fn": "silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": false, "cross_attention_dim": 768,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
        "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    UnetConfig::from_json(&config, "unet/config.json").unwrap()
}

fn sd2_unet() -> UnetConfig {
    sd_unet(&json!({
        "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": false,
        "use_linear_projection": true, "upcast_attention": true, "sample_size": 96,
    }))
}

fn sdxl_unet() -> UnetConfig {
    sd_unet(&json!({
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "projection_class_embeddings_input_dim": 2816, "sample_size": 128, "transformer_layers_per_block": [1, 2, 10],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": true,
    }))
}

fn x4_unet() -> UnetConfig {
    sd_unet(&json!({
        "block_out_channels": [256, 512, 512, 1024], "cross_attention_dim": 1024, "in_channels": 7,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "num_class_embeds": 1000, "only_cross_attention": [true, true, true, false], "sample_size": 128,
        "use_linear_projection": true,
    }))
}

/// DeepFloyd IF's first stage; M, L and XL have 192, 320 and 704 channels on the first level.
fn if_unet(channels: u32) -> UnetConfig {
    pixel_unet(&json!({
        "act_fn": "gelu", "addition_embed_type": "text", "addition_embed_type_num_heads": 64,
        "block_out_channels": [channels, 2 * channels, 3 * channels, 4 * channels],
        "cross_attention_dim": 4 * channels, "cross_attention_norm": "group_norm", "encoder_hid_dim": 4096,
        "encoder_hid_dim_type": "text_proj", "in_channels": 3, "out_channels": 6, "resnet_skip_time_act": false,
        "time_embedding_act_fn": null, "timestep_post_act": null,
    }))
}

/// What the UNets of IF, Karlo and Kandinsky have in common.
fn pixel_unet(more: &Value) -> UnetConfig {
    let mut config = json!({
        "act_fn": "silu", "attention_head_dim": 64, "block_out_channels": [320, 640, 960, 1280], "center_input_sample": false,
        "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D",
            "SimpleCrossAttnDownBlock2D"],
        "layers_per_block": 3, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "only_cross_attention": false,
        "resnet_time_scale_shift": "scale_shift", "sample_size": 64,
        "up_block_types": ["SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D",
            "ResnetUpsampleBlock2D"],
    });
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    UnetConfig::from_json(&config, "unet/config.json").unwrap()
}

fn karlo_decoder() -> UnetConfig {
    pixel_unet(&json!({
        "class_embed_type": "identity", "cross_attention_dim": 1536, "in_channels": 3, "out_channels": 6,
    }))
}

fn karlo_super_resolution() -> UnetConfig {
    let config = json!({
        "_class_name": "UNet2DModel", "act_fn": "silu", "add_attention": false, "attention_head_dim": 8,
        "block_out_channels": [320, 640, 960, 1280],
        "down_block_types": ["ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D", "ResnetDownsampleBlock2D",
            "ResnetDownsampleBlock2D"],
        "in_channels": 6, "layers_per_block": 3, "out_channels": 3, "resnet_time_scale_shift": "default",
        "sample_size": 256,
        "up_block_types": ["ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D", "ResnetUpsampleBlock2D",
            "ResnetUpsampleBlock2D"],
    });
    UnetConfig::from_json(&config, "super_res_first/config.json").unwrap()
}

fn kandinsky_decoder() -> UnetConfig {
    pixel_unet(&json!({
        "addition_embed_type": "image", "block_out_channels": [384, 768, 1152, 1536], "cross_attention_dim": 768,
        "encoder_hid_dim": 1280, "encoder_hid_dim_type": "image_proj", "in_channels": 4, "out_channels": 8,
    }))
}

fn decoder() -> VaeConfig {
    let config = json!({
        "act_fn": "silu", "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"],
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
        "sample_size": 512, "scaling_factor": 0.18215,
        "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
    });
    VaeConfig::from_json(&config, "vae/config.json").unwrap()
}

/// The config of `kandinsky-2-2-decoder`'s MoVQ.
fn kandinsky_movq() -> MovqConfig {
    let config = json!({
        "_class_name": "VQModel", "act_fn": "silu", "block_out_channels": [128, 256, 256, 512],
        "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "in_channels": 3, "latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "norm_type": "spatial",
        "num_vq_embeddings": 16384, "out_channels": 3, "sample_size": 32, "scaling_factor": 0.18215,
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"],
        "vq_embed_dim": 4,
    });
    MovqConfig::from_json(&config, "movq/config.json").unwrap()
}

fn text_encoder(hidden: u32, layers: u32, heads: u32, act: &str, with_projection: bool) -> ClipConfig {
    let config = json!({
        "hidden_act": act, "hidden_size": hidden, "intermediate_size": 4 * hidden, "layer_norm_eps": 1e-05,
        "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": heads,
        "num_hidden_layers": layers, "projection_dim": hidden, "vocab_size": 49408,
    });
    ClipConfig::from_json(&config, with_projection, "text_encoder/config.json").unwrap()
}

/// What building says of `tensors`; also the adapter's limits must not be in the way.
fn build(tensors: Tensors, layers: impl FnOnce(&mut Graph, &Weights<'_>)) -> Result<()> {
    let source = ShapesSource::new("manifest", tensors);
    let claims = Claims::default();
    let mut g = Graph::new(DType::F16, Limits::default());
    layers(&mut g, &Weights::new(0, &source, &claims));
    claims.finish(&source)?;
    match g.fault() {
        Some(fault) => Err(fault.clone()),
        None => Ok(()),
    }
}

fn build_unet(tensors: Tensors, config: &UnetConfig) -> Result<()> {
    build(tensors, |g, w| {
        let row = |channels: usize| Shape::new(2, 1, 1, channels as u32);
        let sample = g.input("sample", Shape::new(2, 64, 64, config.in_channels as u32), DType::F16);
        let pooled = config.text_time.as_ref().map(|added| added.input_dim - 6 * added.time_embed_dim);
        let given = Conditioning {
            timestep: g.input("timestep", row(1), DType::F32),
            pooled: pooled.map(|width| g.input("pooled", row(width), DType::F16)),
            sizes: pooled.map(|_| g.input("sizes", row(6), DType::F32)),
            guidance: None,
            class: config.class.map(|class| match class {
                ClassEmbedding::Identity => g.input("class", row(config.time_embed_dim), DType::F16),
                _ => g.input("class", row(1), DType::F32),
            }),
            mask: None,
        };
        let prompt = PromptVectors {
            text: config.text_width().map(|width| g.input("context", Shape::tokens(2, 77, width as u32), DType::F16)),
            image: config.image_width().map(|width| g.input("image", row(width), DType::F16)),
            pooled: None,
        };
        let text = context::text_keys(g, w, config, prompt);
        let prediction = unet::unet(g, w, config, sample, given, &text);
        assert_eq!(g.shape(prediction), g.shape(sample).with_channels(config.out_channels as u32));
    })
}

fn build_vae(tensors: Tensors) -> Result<()> {
    let decoded =
        tensors.into_iter().filter(|(name, _)| name.starts_with("decoder.") || name.starts_with("post_quant"));
    build(decoded.collect(), |g, w| {
        let latent = g.input("latent", Shape::new(1, 64, 64, 4), DType::F32);
        let picture = vae::decode(g, w, &decoder(), latent);
        assert_eq!(g.shape(picture), Shape::new(1, 512, 512, 3));
    })
}

/// Names of the encoder must all be there; the rest is what the decoder takes.
fn build_movq(tensors: Tensors, dtype: DType, side: u32) -> Result<Graph> {
    let config = kandinsky_movq();
    let encoder = config.encoder_names();
    for name in &encoder {
        assert!(tensors.iter().any(|(key, _)| key == name), "no {name}");
    }
    let rest: Tensors = tensors.into_iter().filter(|(name, _)| !encoder.contains(name)).collect();
    assert!(rest.iter().all(|(name, _)| name.starts_with("decoder.") || name.starts_with("post_quant_conv.")));
    let source = ShapesSource::new("manifest", rest);
    let claims = Claims::default();
    let mut g = Graph::new(dtype, Limits::default());
    let latent = g.input("latent", Shape::new(1, side, side, 4), DType::F32);
    let picture = movq::decode(&mut g, &Weights::new(0, &source, &claims), &config, latent);
    assert_eq!(g.shape(picture), Shape::new(1, 8 * side, 8 * side, 3));
    claims.finish(&source)?;
    Ok(g)
}

fn build_text(tensors: Tensors, config: &ClipConfig) -> Result<()> {
    let with_projection = config.projection_dim.is_some();
    let named =
        |(name, info): (String, TensorInfo)| keys::text_encoder(&name, with_projection).map(|(name, _)| (name, info));
    build(tensors.into_iter().filter_map(named).collect(), |g, w| {
        let ids = g.input("ids", Shape::tokens(1, 77, 1), DType::F32);
        let ends = with_projection.then(|| g.input("ends", Shape::new(1, 1, 1, 1), DType::F32));
        clip::clip(g, w, config, ids, ends, [Take { skip: 1, final_norm: false }; 2]);
    })
}

/// The x4 upscaler's autoencoder has one level less: its decoder's tensors, the others being its encoder's.
#[test]
fn the_upscalers_decoder_takes_every_published_tensor() {
    let levels = |word: &str| vec![word.to_owned(); 3];
    let config = json!({
        "block_out_channels": [128, 256, 512], "down_block_types": levels("DownEncoderBlock2D"), "latent_channels": 4,
        "layers_per_block": 2, "scaling_factor": 0.08333, "up_block_types": levels("UpDecoderBlock2D"),
    });
    let config = VaeConfig::from_json(&config, "vae/config.json").unwrap();
    let encoder = config.encoder_names();
    let all = manifest("SD_x4_VAE_f4");
    assert!(encoder.iter().all(|name| all.iter().any(|(found, _)| found == name)));
    let decoded = all.into_iter().filter(|(name, _)| !encoder.contains(name)).collect();
    build(decoded, |g, w| {
        let latent = g.input("latent", Shape::new(1, 64, 96, 4), DType::F32);
        let picture = vae::decode(g, w, &config, latent);
        assert_eq!(g.shape(picture), Shape::new(1, 256, 384, 3));
    })
    .unwrap();
}

#[test]
fn unets_take_every_published_tensor() {
    build_unet(manifest("SD1.5_UNet_512px_64x64"), &sd_unet(&json!({}))).unwrap();
    build_unet(manifest("SD2.1_UNet_768px_96x96"), &sd2_unet()).unwrap();
    build_unet(manifest("SDXL_base_UNet_1024px"), &sdxl_unet()).unwrap();
    build_unet(manifest("SD_x4_upscaler_UNet_256_1024_lat_256x256"), &x4_unet()).unwrap();
    build_unet(manifest("IF_I_M_UNet_64px"), &if_unet(192)).unwrap();
    build_unet(manifest("IF_I_L_UNet_64px"), &if_unet(320)).unwrap();
    build_unet(manifest("Karlo_decoder_UNet_64px"), &karlo_decoder()).unwrap();
    build_unet(manifest("Karlo_SR_UNet_each_of_2_256px"), &karlo_super_resolution()).unwrap();
    build_unet(manifest("Kandinsky2.2_decoder_UNet_512px_64x64"), &kandinsky_decoder()).unwrap();
    // Its widest convolution is larger than two bindings even in halves.
    build_unet(manifest("IF_I_XL_UNet_64px"), &if_unet(704)).unwrap();
}

#[test]
fn the_decoder_takes_every_published_tensor() {
    build_vae(manifest("VAE_KL_f8_total")).unwrap();
}

/// Within bindings of 128 MiB up to pictures of 1024 x 1024 pixels in floats; a larger one says what does not fit.
#[test]
fn movq_takes_every_published_tensor() {
    let tensors = || manifest("Kandinsky_MoVQ_decode_512px");
    for (dtype, side) in [(DType::F16, 64), (DType::F16, 96), (DType::F32, 64), (DType::F32, 128)] {
        let graph = build_movq(tensors(), dtype, side).unwrap();
        assert!(graph.fault().is_none(), "{dtype:?}, {side}: {:?}", graph.fault());
    }
    let large = build_movq(tensors(), DType::F32, 512).unwrap();
    says(large.fault().expect("a picture of 4096 x 4096 pixels").clone(), &["binding", "attentions.0"]);
    let mut renamed = tensors();
    let place = renamed.iter().position(|(name, _)| name == "decoder.conv_in.bias").unwrap();
    renamed[place].0 = "decoder.conv_in.bais".into();
    says(
        build_movq(renamed, DType::F16, 64).unwrap_err(),
        &["missing tensor", "decoder.conv_in.bias", "decoder.conv_in.bais"],
    );
}

#[test]
fn text_encoders_take_every_published_tensor() {
    build_text(manifest("CLIP_L_text_SD1_SDXL_1"), &text_encoder(768, 12, 12, "quick_gelu", false)).unwrap();
    build_text(manifest("OpenCLIP_H_text_23L_SD2_diffusers"), &text_encoder(1024, 23, 16, "gelu", false)).unwrap();
    build_text(manifest("OpenCLIP_bigG_text_32L_proj_SDXL_2"), &text_encoder(1280, 32, 20, "gelu", true)).unwrap();
}

/// A whole CLIP's config, the text encoder's sizes first: width, layers, heads; then those of the picture encoder and its patches.
fn clip_model(text: [u32; 3], vision: [u32; 3], patch: u32, projection: u32, act: &str) -> ClipModelConfig {
    let tower = |[width, layers, heads]: [u32; 3]| {
        json!({
            "hidden_act": act, "hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads,
            "num_hidden_layers": layers, "patch_size": patch,
        })
    };
    let config = json!({
        "architectures": ["CLIPModel"], "logit_scale_init_value": 2.6592, "model_type": "clip", "projection_dim": projection,
        "text_config": tower(text), "vision_config": tower(vision),
    });
    ClipModelConfig::from_json(&config, "config.json").unwrap()
}

/// Both encoders of a CLIP from one source, as one file holds them.
fn build_clip(tensors: Tensors, config: &ClipModelConfig) -> Result<()> {
    let named = tensors.into_iter().filter_map(|(name, info)| clip_names::name(&name).map(|(name, _)| (name, info)));
    build(named.collect(), |g, w| {
        let ids = g.input("ids", Shape::tokens(2, 77, 1), DType::F32);
        let ends = g.input("ends", Shape::new(2, 1, 1, 1), DType::F32);
        let take = Take { skip: 0, final_norm: true };
        let text = clip::clip(g, w, &config.text, ids, Some(ends), [take; 2]).pooled.unwrap();
        let pixels = g.input("pixels", Shape::new(2, 224, 224, 3), DType::F32);
        let picture = clip_image(g, w, &config.vision, pixels);
        assert_eq!((g.shape(text), g.shape(picture)), (g.shape(picture), g.shape(text)));
    })
}

/// What a file of transformers' `CLIPModel` holds beside the encoders: the factor of the training's logits, and in older files
/// the numbers of the positions. Nothing reads them.
fn unread(vision: u32) -> Tensors {
    let info = |shape: &[usize]| TensorInfo { dtype: DType::F32, shape: shape.to_vec() };
    vec![
        ("logit_scale".into(), info(&[])),
        ("text_model.embeddings.position_ids".into(), info(&[1, 77])),
        ("vision_model.embeddings.position_ids".into(), info(&[1, vision as usize])),
    ]
}

#[test]
fn clips_take_every_published_tensor() {
    let both = |text: &str, vision: &str, tokens: u32| [manifest(text), manifest(vision), unread(tokens)].concat();
    let b32 = clip_model([512, 12, 8], [768, 12, 12], 32, 512, "quick_gelu");
    build_clip(both("CLIP_ViT_B_32_text_tower", "CLIP_ViT_B_32_image_tower_224", 50), &b32).unwrap();
    // B/16 differs in the patches alone.
    let b16 = clip_model([512, 12, 8], [768, 12, 12], 16, 512, "quick_gelu");
    let mut tensors = both("CLIP_ViT_B_32_text_tower", "CLIP_ViT_B_32_image_tower_224", 197);
    for (name, info) in &mut tensors {
        match name.as_str() {
            "vision_model.embeddings.patch_embedding.weight" => info.shape = vec![768, 3, 16, 16],
            "vision_model.embeddings.position_embedding.weight" => info.shape[0] = 197,
            _ => {}
        }
    }
    build_clip(tensors, &b16).unwrap();
    let l14 = clip_model([768, 12, 12], [1024, 24, 16], 14, 768, "quick_gelu");
    build_clip(both("CLIP_L_text_proj_Karlo", "CLIP_ViT_L_14_image_tower_224", 257), &l14).unwrap();
    let h14 = clip_model([1024, 24, 16], [1280, 32, 16], 14, 1024, "gelu");
    build_clip(both("OpenCLIP_H_text_24L_full_proj1024", "OpenCLIP_ViT_H_14_image_tower_224", 257), &h14).unwrap();
    let fault = build_clip(manifest("CLIP_ViT_B_32_text_tower"), &b32).unwrap_err();
    says(fault, &["missing tensor", "vision_model.embeddings.patch_embedding.weight"]);
    let more = both("CLIP_ViT_B_32_text_tower", "CLIP_ViT_B_32_image_tower_224", 50);
    let small = clip_model([512, 12, 8], [768, 11, 12], 32, 512, "quick_gelu");
    says(build_clip(more, &small).unwrap_err(), &["unexpected tensor", "vision_model.encoder.layers.11"]);
}

/// The same model in OpenCLIP's layout: what its names become is what the encoders take, and the shapes tell the config.
#[test]
fn open_clips_names_become_those_of_transformers() {
    let h14 = clip_model([1024, 24, 16], [1280, 32, 16], 14, 1024, "gelu");
    let mut stored: Vec<(String, Vec<usize>)> = Vec::new();
    for (name, info) in manifest("ORIG_OpenCLIP_H_text") {
        stored.push((name, info.shape));
    }
    for (name, shape) in [("logit_scale", vec![]), ("attn_mask", vec![77, 77]), ("visual.class_embedding", vec![1280])]
    {
        stored.push((name.into(), shape));
    }
    for (name, shape) in [
        ("positional_embedding", vec![257, 1280]),
        ("proj", vec![1280, 1024]),
        ("conv1.weight", vec![1280, 3, 14, 14]),
        ("ln_pre.weight", vec![1280]),
        ("ln_pre.bias", vec![1280]),
        ("ln_post.weight", vec![1280]),
        ("ln_post.bias", vec![1280]),
    ] {
        stored.push((format!("visual.{name}"), shape));
    }
    for layer in 0..32 {
        for (name, rows, width) in [
            ("attn.in_proj_", 3840, 1280),
            ("attn.out_proj.", 1280, 1280),
            ("mlp.c_fc.", 5120, 1280),
            ("mlp.c_proj.", 1280, 5120),
            ("ln_1.", 1280, 0),
            ("ln_2.", 1280, 0),
        ] {
            let shape = if width > 0 { vec![rows, width] } else { vec![rows] };
            stored.push((format!("visual.transformer.resblocks.{layer}.{name}weight"), shape));
            stored.push((format!("visual.transformer.resblocks.{layer}.{name}bias"), vec![rows]));
        }
    }
    stored.retain(|(name, _)| name != "text_projection");
    stored.push(("text_projection".into(), vec![1024, 1024]));
    let shapes = stored.into_iter().collect();
    let tensors = open_clip::tensors(&shapes, "open_clip_model.safetensors").unwrap();
    let named: Tensors = tensors
        .into_iter()
        .map(|(stored, name, change)| {
            let shape = scumble::weights::file_source::changed_shape(&shapes[&stored], change);
            (name, TensorInfo { dtype: DType::F32, shape })
        })
        .collect();
    let lengths = named.iter().map(|(name, info)| (name.clone(), info.shape.clone())).collect();
    let mut found = open_clip::config_of(&lengths, &shapes, &Value::Null, "file").unwrap();
    assert_eq!(found.vision, h14.vision);
    assert_eq!((found.text.eos_token_id, found.text.head_count), (2, 16));
    found.text = h14.text.clone();
    build_clip(named, &found).unwrap();
}

fn says(error: Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn what_does_not_match_is_named() {
    const KEY: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight";
    let config = sd_unet(&json!({}));
    let unet = || manifest("SD1.5_UNet_512px_64x64");
    let place = unet().iter().position(|(name, _)| name == KEY).unwrap();
    let mut removed = unet();
    removed.remove(place);
    says(build_unet(removed, &config).unwrap_err(), &["missing tensor", "manifest", KEY, "nearest name"]);
    let mut added = unet();
    added.push(("down_blocks.1.attentions.0.norm_extra.weight".into(), added[place].1.clone()));
    says(build_unet(added, &config).unwrap_err(), &["unexpected tensor", "norm_extra", "attentions.0.norm.weight"]);
    let mut reshaped = unet();
    reshaped[place].1.shape = vec![640, 1024];
    says(build_unet(reshaped, &config).unwrap_err(), &["tensor shape", KEY, "[640, 768]", "[640, 1024]"]);
    let mut renamed = manifest("VAE_KL_f8_total");
    let place = renamed.iter().position(|(name, _)| name == "decoder.conv_in.bias").unwrap();
    renamed[place].0 = "decoder.conv_in.bais".into();
    says(build_vae(renamed).unwrap_err(), &["missing tensor", "decoder.conv_in.bias", "decoder.conv_in.bais"]);
    says(build_unet(manifest("SD2.1_UNet_768px_96x96"), &config).unwrap_err(), &["tensor shape", "1024", "768"]);
    let shallow = text_encoder(768, 11, 12, "quick_gelu", false);
    says(
        build_text(manifest("CLIP_L_text_SD1_SDXL_1"), &shallow).unwrap_err(),
        &["unexpected tensor", "encoder.layers.11"],
    );
    says(
        build_vae(Tensors::new()).unwrap_err(),
        &["missing tensor", "post_quant_conv.weight", "nothing of a similar name"],
    );
}
