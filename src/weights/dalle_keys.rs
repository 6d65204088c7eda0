//! Names of DALL-E mini's tensors: dalle-mini's flax tree and taming-transformers' VQGAN in what the models ask for.

use super::flax::leaf;

/// A BART tensor of a flax tree: its part (`encoder` or `decoder`), its name there, and whether all layers lie in it. `None` for
/// a name that is not of such a tree.
///
/// Names: `src/dalle_mini/model/modeling.py` of borisdayma/dalle-mini at f0be4de; the order of flax's automatic numbers is that
/// of the calls.
pub fn bart_from_flax(stored: &str) -> Option<(&'static str, String, bool)> {
    let path = stored.replace('/', ".");
    let path = path.strip_prefix("params.").unwrap_or(&path);
    if let Some(kind) = path.strip_prefix("lm_head.") {
        return Some(("decoder", format!("lm_head.{}", leaf(kind)), false));
    }
    let path = path.strip_prefix("model.")?;
    let (part, rest) = path.split_once('.')?;
    let part = ["encoder", "decoder"].into_iter().find(|known| *known == part)?;
    let Some(rest) = rest.strip_prefix("layers.") else {
        let (place, kind) = rest.rsplit_once('.')?;
        return Some((part, format!("{place}.{}", leaf(kind)), false));
    };
    let (layer, rest) = rest.split_once('.')?;
    let layer = layer.strip_prefix(if part == "encoder" { "FlaxBartEncoderLayer" } else { "FlaxBartDecoderLayer" })?;
    let (place, kind) = rest.rsplit_once('.')?;
    let name = format!("{}.{}", layer_part(place, part), leaf(kind));
    match layer.strip_prefix('_') {
        Some(number) => Some((part, format!("layers.{number}.{name}"), false)),
        None => (layer == "s").then_some((part, name, true)),
    }
}

/// A place inside a layer.
fn layer_part(place: &str, part: &str) -> String {
    let norms: &[&str] = match part {
        "encoder" => &["pre_self_attn_layer_norm", "self_attn_layer_norm"],
        _ => &[
            "pre_self_attn_layer_norm",
            "self_attn_layer_norm",
            "pre_encoder_attn_layer_norm",
            "encoder_attn_layer_norm",
        ],
    };
    let (first, rest) = place.split_once('.').map_or((place, ""), |(first, rest)| (first, rest));
    let first = match first {
        "FlaxBartAttention_0" => "self_attn",
        "FlaxBartAttention_1" => "encoder_attn",
        "GLU_0" => "glu",
        "FFN_0" => "ffn",
        _ => {
            let number = first.strip_prefix("LayerNorm_").and_then(|number| number.parse::<usize>().ok());
            number.and_then(|number| norms.get(number).copied()).unwrap_or(first)
        }
    };
    match rest.split_once('_') {
        Some(("LayerNorm", number)) => format!("{first}.ln{number}"),
        Some(("Dense", number)) => format!("{first}.fc{number}"),
        _ if rest.is_empty() => first.to_owned(),
        _ => format!("{first}.{rest}"),
    }
}

/// A VQGAN tensor of flax or taming-transformers by the name that `models::decoder::vqgan` asks for. `None` for the encoder and
/// what training leaves, which drawing does not need.
pub fn vqgan(stored: &str) -> Option<String> {
    let path = stored.replace('/', ".");
    let path = path.strip_prefix("params.").unwrap_or(&path);
    let path = path.strip_prefix("first_stage_model.").unwrap_or(path);
    let skipped = ["encoder.", "quant_conv.", "loss.", "colorize"];
    if skipped.iter().any(|start| path.starts_with(start)) {
        return None;
    }
    let (place, kind) = path.rsplit_once('.')?;
    let place = place.strip_prefix("quantize.").unwrap_or(place);
    let numbered = |part: &str, known: &str| {
        part.strip_prefix(known).and_then(|rest| rest.strip_prefix('_')).map(|number| format!("{known}.{number}"))
    };
    let up = place.starts_with("decoder.up");
    let attention = place.contains(".attn");
    let parts = place.split('.').map(|part| {
        let flat = if up { ["up", "block", "attn"].iter().find_map(|known| numbered(part, known)) } else { None };
        flat.unwrap_or_else(|| {
            match part {
                "nin_shortcut" => "conv_shortcut",
                "norm" if attention => "group_norm",
                "q" if attention => "to_q",
                "k" if attention => "to_k",
                "v" if attention => "to_v",
                "proj_out" if attention => "to_out.0",
                other => other,
            }
            .to_owned()
        })
    });
    Some(format!("{}.{}", parts.collect::<Vec<_>>().join("."), leaf(kind)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flax_names_become_pytorchs() {
        let cases = [
            ("model/encoder/embed_tokens/embedding", Some(("encoder", "embed_tokens.weight", false))),
            ("model.decoder.layernorm_embedding.scale", Some(("decoder", "layernorm_embedding.weight", false))),
            ("params.model.decoder.final_ln.bias", Some(("decoder", "final_ln.bias", false))),
            ("lm_head.kernel", Some(("decoder", "lm_head.weight", false))),
            (
                "model.encoder.layers.FlaxBartEncoderLayers.FlaxBartAttention_0.q_proj.kernel",
                Some(("encoder", "self_attn.q_proj.weight", true)),
            ),
            (
                "model.decoder.layers.FlaxBartDecoderLayer_11.FlaxBartAttention_1.out_proj.kernel",
                Some(("decoder", "layers.11.encoder_attn.out_proj.weight", false)),
            ),
            (
                "model.decoder.layers.FlaxBartDecoderLayers.LayerNorm_2.bias",
                Some(("decoder", "pre_encoder_attn_layer_norm.bias", true)),
            ),
            (
                "model.encoder.layers.FlaxBartEncoderLayers.GLU_0.Dense_2.kernel",
                Some(("encoder", "glu.fc2.weight", true)),
            ),
            (
                "model.encoder.layers.FlaxBartEncoderLayers.GLU_0.LayerNorm_1.bias",
                Some(("encoder", "glu.ln1.bias", true)),
            ),
            ("layers.0.self_attn.q_proj.weight", None),
        ];
        for (stored, expected) in cases {
            let expected = expected.map(|(part, name, stacked)| (part, name.to_owned(), stacked));
            assert_eq!(bart_from_flax(stored), expected, "{stored}");
        }
    }

    #[test]
    fn vqgan_names_of_both_kinds_are_one() {
        let cases = [
            ("quantize.embedding.embedding", Some("embedding.weight")),
            ("embedding.weight", Some("embedding.weight")),
            ("decoder.up_4.attn_0.norm.scale", Some("decoder.up.4.attn.0.group_norm.weight")),
            ("decoder.up.4.attn.0.proj_out.bias", Some("decoder.up.4.attn.0.to_out.0.bias")),
            ("decoder.mid.attn_1.q.kernel", Some("decoder.mid.attn_1.to_q.weight")),
            ("decoder.mid.block_2.norm1.scale", Some("decoder.mid.block_2.norm1.weight")),
            ("decoder.up_1.block_0.nin_shortcut.kernel", Some("decoder.up.1.block.0.conv_shortcut.weight")),
            ("decoder.up_1.upsample.conv.kernel", Some("decoder.up.1.upsample.conv.weight")),
            ("decoder.norm_out.scale", Some("decoder.norm_out.weight")),
            ("encoder.conv_in.kernel", None),
            ("quant_conv.bias", None),
        ];
        for (stored, expected) in cases {
            assert_eq!(vqgan(stored).as_deref(), expected, "{stored}");
        }
    }
}
