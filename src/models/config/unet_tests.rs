use super::*;

fn read(config: Value) -> Result<UnetConfig> {
    UnetConfig::from_json(&config, "config.json")
}

fn kinds(blocks: &[Block]) -> Vec<BlockKind> {
    blocks.iter().map(|block| block.kind).collect()
}

fn depths(blocks: &[Block]) -> Vec<Vec<usize>> {
    blocks.iter().map(|block| block.transformer_layers.clone()).collect()
}

fn of(blocks: &[Block], number: fn(&Block) -> usize) -> Vec<usize> {
    blocks.iter().map(number).collect()
}

/// Golden: the defaults of `inspect.signature(diffusers.UNet2DConditionModel.__init__)`.
#[test]
fn defaults_are_those_of_diffusers() {
    use BlockKind::{CrossAttention, Plain};
    let config = read(json!({})).unwrap();
    assert_eq!(config.block_out_channels, [320, 640, 1280, 1280]);
    assert_eq!(kinds(&config.down), [CrossAttention, CrossAttention, CrossAttention, Plain]);
    assert_eq!(kinds(&config.up), [Plain, CrossAttention, CrossAttention, CrossAttention]);
    assert_eq!((of(&config.down, |b| b.layers), of(&config.up, |b| b.layers)), (vec![2; 4], vec![3; 4]));
    assert_eq!(of(&config.up, |b| b.channels), [1280, 1280, 640, 320]);
    assert_eq!(depths(&config.down), [vec![1; 2], vec![1; 2], vec![1; 2], vec![]]);
    assert_eq!(depths(&config.up), [vec![], vec![1; 3], vec![1; 3], vec![1; 3]]);
    let mid =
        MidBlock { kind: MidKind::CrossAttention, head_count: 8, transformer_layers: 1, only_cross_attention: false };
    assert_eq!(config.mid, Some(mid));
    assert_eq!((config.sample_size, config.in_channels, config.out_channels), (None, 4, 4));
    assert_eq!((of(&config.down, |b| b.head_count), config.cross_attention_dim), (vec![8, 8, 8, 1], 1280));
    assert_eq!((config.norm_num_groups, config.norm_eps, config.freq_shift), (32, 1e-5, 0.0));
    assert_eq!((config.time_embed_dim, config.time_cond_proj_dim, config.text_time), (1280, None, None));
    assert!(config.flip_sin_to_cos && !config.use_linear_projection && !config.upcast_attention);
    assert!(!config.scale_shift && !config.skip_time_act && config.class.is_none() && config.hidden.is_none());
    assert_eq!((config.resnet_scale, config.mid_scale), (1.0, 1.0));
    assert_eq!((config.act, config.out_act, config.embed_act), (Activation::Silu, Activation::Silu, Activation::Silu));
    assert_eq!((config.time_act, config.time_post_act), (Activation::None, Activation::None));
}

/// Golden: the defaults of `inspect.signature(diffusers.UNet2DModel.__init__)`.
#[test]
fn defaults_of_the_unconditional_model() {
    use BlockKind::{Plain, SelfAttention};
    let attends = SelfAttention { by_resnet: false };
    let config = read(json!({ "_class_name": "UNet2DModel" })).unwrap();
    assert_eq!(config.block_out_channels, [224, 448, 672, 896]);
    assert_eq!(kinds(&config.down), [Plain, attends, attends, attends]);
    assert_eq!(kinds(&config.up), [attends, attends, attends, Plain]);
    assert_eq!(of(&config.down, |b| b.head_count), [1, 56, 84, 112]);
    let mid = config.mid.unwrap();
    assert_eq!((mid.kind, mid.head_count), (MidKind::SelfAttention { groups: Some(32) }, 112));
    assert_eq!((config.in_channels, config.out_channels, config.cross_attention_dim), (3, 3, 0));
    assert_eq!((config.text_width(), config.image_width()), (None, None));
    let one = read(json!({ "_class_name": "UNet2DModel", "attention_head_dim": null, "downsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift", "act_fn": "gelu" }))
    .unwrap();
    assert_eq!(of(&one.down, |b| b.head_count), [1; 4]);
    assert_eq!(one.down[1].kind, SelfAttention { by_resnet: true });
    assert_eq!(one.mid.unwrap().kind, MidKind::SelfAttention { groups: None });
    assert_eq!((one.act, one.out_act, one.embed_act), (Activation::Gelu, Activation::Silu, Activation::Silu));
    let none = read(json!({ "_class_name": "UNet2DModel", "add_attention": false })).unwrap();
    assert_eq!(none.mid.unwrap().kind, MidKind::Resnets(2));
}

#[test]
fn widths_of_heads_are_not_mirrored() {
    let simple = |way: &str| json!([format!("SimpleCrossAttn{way}Block2D"), format!("SimpleCrossAttn{way}Block2D")]);
    let config = read(json!({
        "block_out_channels": [64, 128], "attention_head_dim": [8, 16], "only_cross_attention": [true, false],
        "down_block_types": simple("Down"), "up_block_types": simple("Up"), "cross_attention_norm": "group_norm",
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "encoder_hid_dim": 48, "addition_embed_type": "text",
        "addition_embed_type_num_heads": 6, "class_embed_type": "timestep", "cross_attention_dim": 64,
    }))
    .unwrap();
    assert_eq!((of(&config.down, |b| b.head_count), of(&config.up, |b| b.head_count)), (vec![8, 8], vec![16, 4]));
    let only = |blocks: &[Block]| blocks.iter().map(|block| block.only_cross_attention).collect::<Vec<_>>();
    assert_eq!((only(&config.down), only(&config.up)), (vec![true, false], vec![false, true]));
    let mid = config.mid.unwrap();
    assert_eq!((mid.head_count, mid.only_cross_attention), (8, false));
    assert_eq!((config.hidden, config.text_width()), (Some(HiddenProjection::Text { width: 48 }), Some(48)));
    assert_eq!(config.addition, Some(Addition::Text { heads: 6 }));
    assert_eq!(config.class, Some(ClassEmbedding::Timestep));
}

#[test]
fn lists_and_counts_mean_the_same() {
    let lists = json!({
        "layers_per_block": [2, 2, 2, 2], "transformer_layers_per_block": [1, 1, 1, 1],
        "attention_head_dim": [8, 8, 8, 8], "cross_attention_dim": [1280, 1280, 1280, 1280],
        "only_cross_attention": [false, false, false, false], "sample_size": null,
    });
    assert_eq!(read(lists).unwrap(), read(json!({})).unwrap());
    assert_eq!(read(json!({ "sample_size": [64, 96] })).unwrap().sample_size, Some([64, 96]));
    assert_eq!(read(json!({ "sample_size": 64 })).unwrap().sample_size, Some([64, 64]));
}

#[test]
fn depths_are_mirrored_on_the_way_up() {
    let three = json!({
        "block_out_channels": [320, 640, 1280], "layers_per_block": [1, 2, 3],
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10], "attention_head_dim": [5, 10, 20],
    });
    let config = read(three.clone()).unwrap();
    assert_eq!(depths(&config.down), [vec![], vec![2, 2], vec![10, 10, 10]]);
    assert_eq!(depths(&config.up), [vec![10; 4], vec![2; 3], vec![]]);
    assert_eq!(config.mid.unwrap().transformer_layers, 10);
    let mut nested = three;
    nested["transformer_layers_per_block"] = json!([1, [2, 3], [4, 5, 6]]);
    assert!(read(nested.clone()).unwrap_err().to_string().contains("`reverse_transformer_layers_per_block`"));
    nested["reverse_transformer_layers_per_block"] = json!([[6, 5, 4, 3], [2, 1, 0], 1]);
    let config = read(nested).unwrap();
    assert_eq!(depths(&config.down), [vec![], vec![2, 3], vec![4, 5, 6]]);
    assert_eq!(depths(&config.up), [vec![6, 5, 4, 3], vec![2, 1, 0], vec![]]);
    assert_eq!(config.mid.unwrap().transformer_layers, 4);
}

#[test]
fn what_is_not_implemented_is_named() {
    for (field, value) in [
        ("_class_name", json!("UNet1DModel")),
        ("act_fn", json!("mish")),
        ("addition_embed_type", json!("image_hint")),
        ("attention_head_dim", json!([8, 8])),
        ("attention_head_dim", json!(7)),
        ("attention_head_dim", json!([8, 8, null, 8])),
        ("attention_type", json!("gated")),
        ("block_out_channels", json!([])),
        ("block_out_channels", json!([320, 0, 1, 1])),
        ("block_out_channels", json!([320, 1u64 << 40, 1280, 1280])),
        ("center_input_sample", json!(true)),
        ("class_embed_type", json!("fourier")),
        ("class_embeddings_concat", json!(true)),
        ("conv_in_kernel", json!(1)),
        ("conv_out_kernel", json!(5)),
        ("cross_attention_dim", json!([768, 768, 768, 1024])),
        ("cross_attention_norm", json!("rms_norm")),
        ("down_block_types", json!(["KDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("down_block_types", json!(["DownBlock2D"])),
        ("downsample_padding", json!(0)),
        ("dual_cross_attention", json!(true)),
        ("encoder_hid_dim", json!(0)),
        ("in_channels", json!("4")),
        ("layers_per_block", json!([2, 2])),
        ("mid_block_only_cross_attention", json!("yes")),
        ("mid_block_scale_factor", json!(0)),
        ("mid_block_type", json!("UNetMidBlock3D")),
        ("norm_eps", json!(0)),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(48)),
        ("num_attention_heads", json!(8)),
        ("num_class_embeds", json!(0)),
        ("only_cross_attention", json!([true, true])),
        ("only_cross_attention", json!(3)),
        ("resnet_out_scale_factor", json!(-1)),
        ("resnet_skip_time_act", json!("yes")),
        ("resnet_time_scale_shift", json!("spatial")),
        ("sample_size", json!([1, 2, 3])),
        ("time_embedding_act_fn", json!("mish")),
        ("time_embedding_type", json!("fourier")),
        ("timestep_post_act", json!("relu")),
        ("transformer_layers_per_block", json!([1])),
        ("up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D", "SkipUpBlock2D"])),
        ("use_linear_projection", json!("yes")),
    ] {
        let error =
            read(json!({ (field): value.clone() })).err().unwrap_or_else(|| panic!("{field} {value}")).to_string();
        assert!(error.contains(&format!("config.json: `{field}`")), "{field} {value}: {error}");
    }
    assert!(read(json!([])).is_err());
    let missing = read(json!({ "addition_embed_type": "text_time" })).unwrap_err().to_string();
    assert!(missing.contains("`addition_time_embed_dim`"), "{missing}");
    for (fields, named) in [
        (json!({ "encoder_hid_dim_type": "text_proj" }), "`encoder_hid_dim`"),
        (json!({ "addition_embed_type": "image" }), "`encoder_hid_dim`"),
        (json!({ "addition_embed_type": "text", "cross_attention_dim": 100 }), "`addition_embed_type_num_heads`"),
        (json!({ "encoder_hid_dim": 8, "encoder_hid_dim_type": "ip_image_proj" }), "`encoder_hid_dim_type`"),
        (json!({ "class_embed_type": "projection" }), "`projection_class_embeddings_input_dim`"),
        (
            json!({ "mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "cross_attention_norm": "layer_norm",
                "cross_attention_dim": 64 }),
            "`cross_attention_norm`",
        ),
    ] {
        let error = read(fields.clone()).err().unwrap_or_else(|| panic!("{fields}")).to_string();
        assert!(error.contains(named), "{fields}: {error}");
    }
}

#[test]
fn optional_inputs_are_read() {
    let config = read(json!({
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816, "time_cond_proj_dim": 256, "mid_block_type": null,
        "act_fn": "swish", "mid_block_scale_factor": 1.0, "unheard_of": 3,
    }))
    .unwrap();
    assert_eq!(config.text_time, Some(TextTimeConfig { time_embed_dim: 256, input_dim: 2816 }));
    assert_eq!((config.time_cond_proj_dim, config.mid), (Some(256), None));
}
