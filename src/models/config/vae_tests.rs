use super::*;

#[test]
fn defaults_are_those_of_diffusers() {
    let config = VaeConfig::from_json(&json!({}), "config.json").unwrap();
    assert_eq!((config.out_channels, config.latent_channels, config.layers_per_block), (3, 4, 1));
    assert_eq!((config.block_out_channels.as_slice(), config.norm_num_groups, config.scale()), (&[64][..], 32, 1));
    assert_eq!((config.scaling_factor, config.shift_factor), (0.18215, 0.0));
    assert!(config.force_upcast && config.use_quant_conv && config.use_post_quant_conv);
    assert!(config.mid_block_add_attention);
}

#[test]
fn what_is_not_implemented_is_named() {
    for (field, value) in [
        ("_class_name", json!("AutoencoderTiny")),
        ("act_fn", json!("relu")),
        ("latents_mean", json!([0.0, 0.0])),
        ("latents_std", json!([1.0])),
        ("down_block_types", json!(["AttnDownEncoderBlock2D"])),
        ("up_block_types", json!(["UpDecoderBlock2D", "UpDecoderBlock2D"])),
        ("norm_num_groups", json!(null)),
        ("norm_num_groups", json!(48)),
        ("out_channels", json!(1)),
        ("scaling_factor", json!(0.0)),
        ("scaling_factor", json!("big")),
        ("layers_per_block", json!([1, 2])),
        ("force_upcast", json!(1)),
    ] {
        let error = VaeConfig::from_json(&json!({ (field): value.clone() }), "config.json");
        let error = error.err().unwrap_or_else(|| panic!("{field} {value}")).to_string();
        assert!(error.contains(&format!("config.json: `{field}`")), "{field} {value}: {error}");
    }
}

#[test]
fn null_flags_are_false_as_in_python() {
    let config = VaeConfig::from_json(&json!({ "force_upcast": null, "shift_factor": null }), "config.json").unwrap();
    assert!(!config.force_upcast);
    assert_eq!(config.shift_factor, 0.0);
}
