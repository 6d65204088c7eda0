use super::*;

fn read(config: Value) -> Result<UnetConfig> {
    UnetConfig::from_json(&config, "config.json")
}

/// Golden: the defaults of `inspect.signature(diffusers.UNet2DConditionModel.__init__)`.
#[test]
fn defaults_are_those_of_diffusers() {
    let config = read(json!({})).unwrap();
    assert_eq!(config.block_out_channels, [320, 640, 1280, 1280]);
    assert_eq!(config.down_attention, [true, true, true, false]);
    assert_eq!(config.up_attention, [false, true, true, true]);
    assert_eq!(config.layers_per_block, [2; 4]);
    assert_eq!(config.down_transformer_layers, vec![vec![1; 2]; 4]);
    assert_eq!(config.up_transformer_layers, vec![vec![1; 3]; 4]);
    assert_eq!((config.mid_block, config.mid_transformer_layers), (true, 1));
    assert_eq!((config.sample_size, config.in_channels, config.out_channels), (None, 4, 4));
    assert_eq!((config.head_count, config.cross_attention_dim), (vec![8; 4], 1280));
    assert_eq!((config.norm_num_groups, config.norm_eps, config.freq_shift), (32, 1e-5, 0.0));
    assert_eq!((config.time_embed_dim, config.time_cond_proj_dim, config.text_time), (1280, None, None));
    assert!(config.flip_sin_to_cos && !config.use_linear_projection && !config.upcast_attention);
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
    assert_eq!(config.down_transformer_layers, vec![vec![1], vec![2, 2], vec![10, 10, 10]]);
    assert_eq!(config.up_transformer_layers, vec![vec![10; 4], vec![2; 3], vec![1; 2]]);
    assert_eq!(config.mid_transformer_layers, 10);
    let mut nested = three;
    nested["transformer_layers_per_block"] = json!([1, [2, 3], [4, 5, 6]]);
    assert!(read(nested.clone()).unwrap_err().to_string().contains("`reverse_transformer_layers_per_block`"));
    nested["reverse_transformer_layers_per_block"] = json!([[6, 5, 4, 3], [2, 1, 0], 1]);
    let config = read(nested).unwrap();
    assert_eq!(config.down_transformer_layers, vec![vec![1], vec![2, 3], vec![4, 5, 6]]);
    assert_eq!(config.up_transformer_layers, vec![vec![6, 5, 4, 3], vec![2, 1, 0], vec![1, 1]]);
    assert_eq!(config.mid_transformer_layers, 4);
}

#[test]
fn what_is_not_implemented_is_named() {
    for (field, value) in [
        ("_class_name", json!("UNet2DModel")),
        ("act_fn", json!("mish")),
        ("addition_embed_type", json!("text")),
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
        ("cross_attention_norm", json!("layer_norm")),
        ("down_block_types", json!(["AttnDownBlock2D", "DownBlock2D", "DownBlock2D", "DownBlock2D"])),
        ("down_block_types", json!(["DownBlock2D"])),
        ("downsample_padding", json!(0)),
        ("dual_cross_attention", json!(true)),
        ("encoder_hid_dim", json!(4096)),
        ("encoder_hid_dim_type", json!("text_proj")),
        ("in_channels", json!("4")),
        ("layers_per_block", json!([2, 2])),
        ("mid_block_only_cross_attention", json!(true)),
        ("mid_block_scale_factor", json!(1.5)),
        ("mid_block_type", json!("UNetMidBlock2DSimpleCrossAttn")),
        ("norm_eps", json!(0)),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(48)),
        ("num_attention_heads", json!(8)),
        ("num_class_embeds", json!(0)),
        ("only_cross_attention", json!([true, true])),
        ("only_cross_attention", json!(3)),
        ("resnet_out_scale_factor", json!(0.7)),
        ("resnet_skip_time_act", json!(true)),
        ("resnet_time_scale_shift", json!("scale_shift")),
        ("sample_size", json!([1, 2, 3])),
        ("time_embedding_act_fn", json!("gelu")),
        ("time_embedding_type", json!("fourier")),
        ("timestep_post_act", json!("silu")),
        ("transformer_layers_per_block", json!([1])),
        ("up_block_types", json!(["UpBlock2D", "UpBlock2D", "UpBlock2D", "ResnetUpsampleBlock2D"])),
        ("use_linear_projection", json!("yes")),
    ] {
        let error =
            read(json!({ (field): value.clone() })).err().unwrap_or_else(|| panic!("{field} {value}")).to_string();
        assert!(error.contains(&format!("config.json: `{field}`")), "{field} {value}: {error}");
    }
    assert!(read(json!([])).is_err());
    let missing = read(json!({ "addition_embed_type": "text_time" })).unwrap_err().to_string();
    assert!(missing.contains("`addition_time_embed_dim`"), "{missing}");
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
    assert_eq!((config.time_cond_proj_dim, config.mid_block), (Some(256), false));
}
