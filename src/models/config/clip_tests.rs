use super::*;

fn read(config: Value, with_projection: bool) -> Result<ClipConfig> {
    ClipConfig::from_json(&config, with_projection, "config.json")
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = read(json!({}), true).unwrap();
    assert_eq!((config.vocab_size, config.hidden_size, config.intermediate_size), (49408, 512, 2048));
    assert_eq!((config.num_layers, config.head_count, config.max_positions), (12, 8, 77));
    assert_eq!((config.activation, config.layer_norm_eps), (Activation::QuickGelu, 1e-5));
    assert_eq!((config.projection_dim, config.eos_token_id), (Some(512), 49407));
    assert_eq!((config.bos_token_id, config.pad_token_id), (Some(49406), Some(1)));
}

#[test]
fn the_text_half_of_a_whole_clip_is_read() {
    let inner = json!({ "hidden_size": 64, "num_attention_heads": 4, "hidden_act": "gelu", "pad_token_id": null });
    let config = read(json!({ "model_type": "clip", "hidden_size": 9, "text_config": inner.clone() }), false).unwrap();
    assert_eq!(config, read(inner, false).unwrap());
    assert_eq!((config.hidden_size, config.projection_dim, config.pad_token_id), (64, None, None));
    assert_eq!(config.activation, Activation::Gelu);
}

#[test]
fn what_is_not_implemented_is_named() {
    for (field, value) in [
        ("hidden_act", json!("gelu_new")),
        ("hidden_act", json!(1)),
        ("model_type", json!("t5")),
        ("num_attention_heads", json!(7)),
        ("num_hidden_layers", json!(0)),
        ("vocab_size", json!(-3)),
        ("layer_norm_eps", json!(-1.0)),
        ("eos_token_id", json!(null)),
        ("eos_token_id", json!([1, 2])),
        ("bos_token_id", json!(1u64 << 40)),
    ] {
        let error = read(json!({ (field): value.clone() }), false);
        let error = error.err().unwrap_or_else(|| panic!("{field} {value}")).to_string();
        assert!(error.contains(&format!("config.json: `{field}`")), "{field} {value}: {error}");
    }
    assert!(read(json!(3), false).is_err());
}
