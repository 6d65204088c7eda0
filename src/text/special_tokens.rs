//! Which tokens are special, as transformers 5.23 resolves its tokenizer files.
//!
//! Source: transformers 5.23, `tokenization_utils_base.py` (`_from_pretrained`, `PreTrainedTokenizerBase.__init__`),
//! `tokenization_utils_tokenizers.py` (`TokenizersBackend.__init__`) and `models/clip/tokenization_clip.py`.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::tokenizer_files::{Parts, brief, malformed};
use crate::error::Result;

/// The roles that a token can be named for, in transformers' order.
const ROLES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A token as a file gives it: bare text, or text with rules for matching it.
#[derive(Debug, Clone, PartialEq)]
enum Named {
    Text(String),
    Rules(AddedToken),
}

impl Named {
    fn content(&self) -> &str {
        match self {
            Named::Text(text) => text,
            Named::Rules(token) => &token.content,
        }
    }
}

/// The special tokens of one tokenizer.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    pub bos: String,
    pub eos: String,
    pub unknown: String,
    pub pad: Option<String>,
    /// What to add to the vocabulary, in order; a later token replaces an equal earlier one.
    pub added: Vec<AddedToken>,
}

impl SpecialTokens {
    pub(super) fn resolve(parts: &Parts) -> Result<Self> {
        let mut config = parts.config.clone();
        let mut decoder = Vec::new();
        if let Some(Value::Object(tokens)) = config.get("added_tokens_decoder") {
            for (id, token) in tokens {
                decoder.push((number(id, parts)?, rules(token, false, parts)?));
            }
        } else {
            merge_special_tokens_map(&mut config, parts);
            decoder = added_tokens(&config, parts)?;
        }
        let mut roles = Vec::new();
        for role in ROLES {
            if let Some(token) = role_token(&config, role, parts)? {
                let rules = decoder.iter().rev().find(|(_, known)| known.content == token.content());
                let from_file = config.contains_key(role);
                roles.push((
                    role,
                    match rules {
                        Some((_, known)) if from_file => Named::Rules(known.clone()),
                        _ => token,
                    },
                ));
            }
        }
        let text =
            |role: &str| roles.iter().find(|(name, _)| *name == role).map(|(_, token)| token.content().to_owned());
        let required = |role: &str| {
            text(role).ok_or_else(|| malformed(&format!("{}/tokenizer_config.json", parts.place), role, "null"))
        };
        Ok(Self {
            bos: required("bos_token")?,
            eos: required("eos_token")?,
            unknown: text("unk_token").unwrap_or_else(|| "None".into()),
            pad: text("pad_token"),
            added: tokens_to_add(decoder, roles.into_iter().map(|(_, token)| token), extra(&config, parts)?),
        })
    }
}

/// `special_tokens_map.json` wins over `tokenizer_config.json` unless the latter has an `added_tokens_decoder`.
fn merge_special_tokens_map(config: &mut Map<String, Value>, parts: &Parts) {
    for (key, value) in &parts.special_tokens_map {
        let mut value = value.clone();
        if let Value::Object(token) = &mut value {
            token.insert("special".into(), Value::Bool(true));
        }
        config.insert(key.clone(), value);
    }
}

/// `added_tokens.json`, then the `added_tokens` of `tokenizer.json`.
fn added_tokens(config: &Map<String, Value>, parts: &Parts) -> Result<Vec<(u64, AddedToken)>> {
    let mut special: Vec<String> = Vec::new();
    for role in ROLES {
        if config.contains_key(role) {
            special.extend(role_token(config, role, parts)?.map(|token| token.content().to_owned()));
        }
    }
    special.extend(extra(config, parts)?.iter().map(|token| token.content().to_owned()));
    let mut found: Vec<(u64, AddedToken)> = Vec::new();
    let mut keep = |id: u64, token: AddedToken| {
        found.retain(|(known, _)| *known != id);
        found.push((id, token));
    };
    for (content, id) in &parts.added_tokens {
        let file = || format!("{}/added_tokens.json", parts.place);
        let id = id.as_u64().ok_or_else(|| malformed(&file(), "an id", &brief(id)))?;
        keep(id, AddedToken::from(content.clone(), special.contains(content)));
    }
    if let Some(Value::Array(tokens)) = parts.tokenizer.get("added_tokens") {
        for token in tokens {
            let file = || format!("{}/tokenizer.json", parts.place);
            let id = token.get("id").and_then(Value::as_u64);
            let id = id.ok_or_else(|| malformed(&file(), "an added token with an id", &brief(token)))?;
            keep(id, rules(token, false, parts)?);
        }
    }
    Ok(found)
}

/// The order and the rule for repeats of `TokenizersBackend.__init__`.
fn tokens_to_add(
    mut decoder: Vec<(u64, AddedToken)>,
    roles: impl Iterator<Item = Named>,
    extra: Vec<Named>,
) -> Vec<AddedToken> {
    decoder.sort_by_key(|(id, _)| *id);
    let mut tokens: Vec<Named> = decoder.into_iter().map(|(_, token)| Named::Rules(token)).collect();
    let known: Vec<String> = tokens.iter().map(|token| token.content().to_owned()).collect();
    let mut named = Vec::new();
    for token in roles {
        named.push(token.content().to_owned());
        if !known.iter().any(|content| content == token.content()) && !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    for token in extra {
        if !known.iter().any(|content| content == token.content()) && !tokens.contains(&token) {
            tokens.push(token);
        }
    }
    tokens
        .into_iter()
        .map(|token| match token {
            Named::Text(text) => AddedToken::from(text, true),
            Named::Rules(token) => {
                let special = token.special || named.contains(&token.content);
                token.special(special)
            }
        })
        .collect()
}

/// A role's token: the file's, or `CLIPTokenizer`'s default; `None` where there is none or the file says null.
fn role_token(config: &Map<String, Value>, role: &str, parts: &Parts) -> Result<Option<Named>> {
    let default = match role {
        "bos_token" => "<|startoftext|>",
        "eos_token" | "unk_token" | "pad_token" => "<|endoftext|>",
        _ => return config.get(role).map_or(Ok(None), |value| named(value, parts)),
    };
    config.get(role).map_or(Ok(Some(Named::Text(default.into()))), |value| named(value, parts))
}

/// `extra_special_tokens` (a list, or an object of names), formerly `additional_special_tokens`.
fn extra(config: &Map<String, Value>, parts: &Parts) -> Result<Vec<Named>> {
    let filled = |key: &str| match config.get(key) {
        Some(Value::Array(tokens)) if !tokens.is_empty() => Some(tokens.iter().collect::<Vec<_>>()),
        Some(Value::Object(tokens)) if !tokens.is_empty() => Some(tokens.values().collect()),
        _ => None,
    };
    let tokens = filled("extra_special_tokens").or_else(|| filled("additional_special_tokens")).unwrap_or_default();
    Ok(tokens.into_iter().map(|token| named(token, parts)).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn named(value: &Value, parts: &Parts) -> Result<Option<Named>> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(Named::Text(text.clone()))),
        Value::Object(_) => Ok(Some(Named::Rules(rules(value, false, parts)?))),
        other => Err(malformed(&format!("{}/tokenizer_config.json", parts.place), "a token", &brief(other))),
    }
}

/// A token with its rules; what is left out has the defaults of the tokenizers library.
fn rules(value: &Value, special: bool, parts: &Parts) -> Result<AddedToken> {
    let content = match value.get("content") {
        Some(Value::String(content)) => content.clone(),
        _ => return Err(malformed(&parts.place, "a token with a text `content`", &brief(value))),
    };
    let flag = |name: &str, default: bool| value.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", special);
    Ok(AddedToken::from(content, special)
        .normalized(flag("normalized", !special))
        .single_word(flag("single_word", false))
        .lstrip(flag("lstrip", false))
        .rstrip(flag("rstrip", false)))
}

fn number(text: &str, parts: &Parts) -> Result<u64> {
    let file = format!("{}/tokenizer_config.json", parts.place);
    text.parse().map_err(|_| malformed(&file, "a token id in added_tokens_decoder", &format!("{text:?}")))
}
