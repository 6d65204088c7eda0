//! Token ids against transformers' (tools/goldens/tokenizer.py), and what malformed files give.

use serde_json::{Value, json};

use super::{ClipTokenizer, SideFiles, TokenizerFiles};
use crate::error::Result;

const GOLDENS: &str = include_str!("../../tests/goldens/tokenizer.json");

fn emoji(name: &str) -> Option<Vec<u8>> {
    std::fs::read(format!("{}/assets/emoji/tokenizer/{name}", env!("CARGO_MANIFEST_DIR"))).ok()
}

/// The emoji tokenizer's folder with the case's side files in place of its own.
fn emoji_files(case: &Value) -> Result<TokenizerFiles> {
    TokenizerFiles::find("folder", |name| {
        if name == "tokenizer.json" && case["json"] == false {
            return Ok(None);
        }
        Ok(match case["side"].get(name) {
            Some(Value::Null) => None,
            Some(content) => Some(content.to_string().into_bytes()),
            None => emoji(name),
        })
    })
}

#[test]
fn ids_equal_transformers() {
    let goldens: Value = serde_json::from_str(GOLDENS).unwrap();
    let mut compared = 0;
    for case in goldens["tokenizers"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let files = match case["bundled_pad"].as_u64() {
            Some(pad) => TokenizerFiles::Bundled { pad: pad as u32 },
            None => emoji_files(case).unwrap(),
        };
        let tokenizer = ClipTokenizer::load(&files).unwrap();
        assert_eq!(json!(tokenizer.pad_id()), case["pad"], "{name}: padding");
        assert_eq!(json!(tokenizer.bos_id()), case["bos"], "{name}: start");
        assert_eq!(json!(tokenizer.eos_id()), case["eos"], "{name}: end");
        assert_eq!(json!(tokenizer.vocab_size()), case["vocab_size"], "{name}: size");
        assert_eq!(json!(tokenizer.model_max_length()), case["model_max_length"], "{name}: model_max_length");
        let length = case["length"].as_u64().unwrap() as usize;
        let prompts = if case["prompts"].is_null() { &goldens["prompts"] } else { &case["prompts"] };
        for (prompt, ids) in prompts.as_array().unwrap().iter().zip(case["ids"].as_array().unwrap()) {
            let prompt = prompt.as_str().unwrap();
            let mut expected: Vec<u32> = serde_json::from_value(ids.clone()).unwrap();
            expected.resize(length, *expected.last().unwrap());
            assert_eq!(tokenizer.encode(prompt, length).unwrap().ids, expected, "{name}: {prompt:?}");
            compared += 1;
        }
    }
    assert!(compared > 300, "only {compared} rows were compared");
}

#[test]
fn what_is_cut_off_is_told_as_written() {
    let tokenizer = ClipTokenizer::load(&TokenizerFiles::Bundled { pad: 49407 }).unwrap();
    let encoded = tokenizer.encode("one two three FOUR  five, Émile 😀", 5).unwrap();
    assert_eq!(encoded.truncated.as_deref(), Some("FOUR  five, Émile 😀"));
    assert!(encoded.truncated_tokens >= 5, "{encoded:?}");
    assert_eq!(encoded.ids.len(), 5);
    let whole = tokenizer.encode("one two three", 5).unwrap();
    assert_eq!((whole.truncated, whole.truncated_tokens), (None, 0));
    assert!(tokenizer.encode("one", 1).is_err());
    let inside = tokenizer.encode("x 𓀀", 4).unwrap();
    assert_eq!(inside.truncated.as_deref(), Some("𓀀"), "a letter of several tokens is told whole");
}

#[test]
fn a_huge_prompt_takes_no_time() {
    let tokenizer = ClipTokenizer::load(&TokenizerFiles::Bundled { pad: 0 }).unwrap();
    let encoded = tokenizer.encode(&"a big cat, 😀! ".repeat(20_000), 77).unwrap();
    assert_eq!((encoded.ids.len(), encoded.ids[76]), (77, 49407));
}

fn fault(files: Result<TokenizerFiles>) -> String {
    files.and_then(|files| ClipTokenizer::load(&files)).map(drop).unwrap_err().to_string()
}

fn vocab_merges(vocab: &str, merges: &str) -> Result<TokenizerFiles> {
    let (vocab, merges) = (vocab.into(), merges.into());
    Ok(TokenizerFiles::VocabMerges { vocab, merges, side: SideFiles::default(), place: "t".into() })
}

fn json_file(tokenizer: &str) -> Result<TokenizerFiles> {
    Ok(TokenizerFiles::Json { tokenizer: tokenizer.into(), side: SideFiles::default(), place: "t".into() })
}

#[test]
fn malformed_files_are_named() {
    let specials = r#""<|startoftext|>": 3, "<|endoftext|>": 4"#;
    let whole = format!(r#"{{"a": 0, "b": 1, "ab": 2, {specials}}}"#);
    ClipTokenizer::load(&vocab_merges(&whole, "#version: 0.2\na b\n").unwrap()).unwrap();
    for (found, files) in [
        ("neither", TokenizerFiles::find("t", |_| Ok(None))),
        ("vocab.json: expected JSON", vocab_merges("", "")),
        ("vocab.json: expected a JSON object, found an array of 0", vocab_merges("[]", "")),
        (r#"vocab.json: expected an id for token "a", found -1"#, vocab_merges(r#"{"a": -1}"#, "")),
        (r#"token "a", found 4294967296"#, vocab_merges(r#"{"a": 4294967296}"#, "")),
        (r#"merges.txt: expected two pieces with a space between them, found "a""#, vocab_merges(&whole, "a")),
        (r#"found "a b c""#, vocab_merges(&whole, "a b c")),
        (r#"found no token "ba""#, vocab_merges(&whole, "b a")),
        (r#"found no token "c""#, vocab_merges(&whole, "a c")),
        (
            "tokenizer.json: expected a model of type BPE, found \"Unigram\"",
            json_file(r#"{"model":{"type":"Unigram"}}"#),
        ),
        ("tokenizer.json: expected a vocabulary", json_file("{}")),
        ("expected model.merges, an array, found none", json_file(r#"{"model":{"vocab":{}}}"#)),
        ("a merge of two pieces, found an array of 3", json_file(r#"{"model":{"vocab":{},"merges":[["a","b","c"]]}}"#)),
        ("a merge of two pieces, found 1", json_file(r#"{"model":{"vocab":{},"merges":[1]}}"#)),
        ("an added token with an id", json_file(r#"{"model":{"vocab":{},"merges":[]},"added_tokens":[{}]}"#)),
        ("an id below 49408, found 49408", Ok(TokenizerFiles::Bundled { pad: 49408 })),
    ] {
        let text = fault(files);
        assert!(text.contains(found), "{found:?} is not in {text:?}");
    }
    let side = |config: &str| {
        let side = SideFiles { config: Some(config.into()), ..SideFiles::default() };
        Ok(TokenizerFiles::VocabMerges { vocab: whole.clone().into(), merges: vec![], side, place: "t".into() })
    };
    for (found, config) in [
        ("expected a pad_token, which fills up short prompts, found null", r#"{"pad_token": null}"#),
        ("tokenizer_config.json: expected bos_token, found null", r#"{"bos_token": null}"#),
        ("expected a token, found 3", r#"{"pad_token": 3}"#),
        ("a token with a text `content`", r#"{"pad_token": {"id": 3}}"#),
        ("padding_side left or right, found \"up\"", r#"{"padding_side": "up"}"#),
        ("a token id in added_tokens_decoder", r#"{"added_tokens_decoder": {"x": {"content": "y"}}}"#),
        ("expected JSON", "{"),
    ] {
        let text = fault(side(config));
        assert!(text.contains(found), "{found:?} is not in {text:?}");
    }
}

proptest::proptest! {
    #[test]
    fn any_prompt_has_ids(prompt in "\\PC*", length in 2usize..100) {
        static TOKENIZER: std::sync::LazyLock<ClipTokenizer> =
            std::sync::LazyLock::new(|| ClipTokenizer::load(&emoji_files(&json!({"side": {}})).unwrap()).unwrap());
        let encoded = TOKENIZER.encode(&prompt, length).unwrap();
        assert_eq!(encoded.ids.len(), length);
        assert!(encoded.ids.iter().all(|id| *id < 3072));
        assert_eq!(encoded.truncated.is_some(), encoded.truncated_tokens > 0);
    }
}
