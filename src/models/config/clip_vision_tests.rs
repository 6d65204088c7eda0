use super::*;

#[test]
fn defaults_are_those_of_transformers() {
    let config = ClipVisionConfig::from_json(&json!({}), "config.json").unwrap();
    assert_eq!((config.hidden_size, config.intermediate_size, config.projection_dim), (768, 3072, 512));
    assert_eq!((config.num_layers, config.head_count, config.image_size, config.patch_size), (12, 12, 224, 32));
    assert_eq!((config.activation, config.layer_norm_eps), (Activation::QuickGelu, 1e-5));
    assert_eq!((config.grid(), config.tokens()), (7, 50));
    let whole = ClipModelConfig::from_json(&json!({ "model_type": "clip" }), "config.json").unwrap();
    assert_eq!(whole.vision, config);
    assert_eq!((whole.text.hidden_size, whole.text.projection_dim), (512, Some(512)));
}

#[test]
fn the_outer_width_and_the_older_dictionaries_win() {
    let config = json!({
        "projection_dim": 24,
        "text_config": { "hidden_size": 64, "projection_dim": 7, "num_hidden_layers": 3 },
        "text_config_dict": { "hidden_size": 32 },
        "vision_config": { "hidden_size": 48, "num_attention_heads": 4, "projection_dim": 9, "hidden_act": "gelu" },
        "vision_config_dict": null,
    });
    let found = ClipModelConfig::from_json(&config, "config.json").unwrap();
    assert_eq!((found.text.hidden_size, found.text.num_layers, found.text.projection_dim), (32, 12, Some(24)));
    assert_eq!((found.vision.hidden_size, found.vision.projection_dim), (48, 24));
    assert_eq!(found.vision.activation, Activation::Gelu);
    let alone = ClipVisionConfig::from_json(&config, "config.json").unwrap();
    assert_eq!((alone.hidden_size, alone.projection_dim), (48, 9));
}

#[test]
fn what_is_not_implemented_is_named() {
    for (field, value) in [
        ("hidden_act", json!("gelu_new")),
        ("model_type", json!("siglip_vision_model")),
        ("num_attention_heads", json!(7)),
        ("num_channels", json!(1)),
        ("image_size", json!([224, 224])),
        ("patch_size", json!(225)),
        ("patch_size", json!(0)),
        ("image_size", json!(1 << 20)),
    ] {
        let error = ClipVisionConfig::from_json(&json!({ (field): value.clone() }), "config.json");
        let error = error.err().unwrap_or_else(|| panic!("{field} {value}")).to_string();
        assert!(error.contains(&format!("config.json: `{field}`")), "{field} {value}: {error}");
    }
    for config in [json!({ "model_type": "chinese_clip" }), json!({ "text_config": 3 }), json!([])] {
        assert!(ClipModelConfig::from_json(&config, "config.json").is_err(), "{config}");
    }
}
