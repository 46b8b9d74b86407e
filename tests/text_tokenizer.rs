//! Token ids, texts and streamed texts against the `tokenizers` library (tools/golden/text_tokenizers.py).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::Error;
use engine::input::detokenizer::Detokenizer;
use engine::input::prompt::{PromptText, Segment};
use engine::input::tokenizer::Tokenizer;
use serde_json::{Value, json};

const KINDS: [&str; 4] = ["prepend", "metaspace", "bytelevel", "unigram"];

fn dir(kind: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/text").join(kind)
}

fn load(kind: &str) -> (Arc<Tokenizer>, Value) {
    let cases = std::fs::read_to_string(dir(kind).join("cases.json")).unwrap();
    (Arc::new(Tokenizer::load(&dir(kind)).unwrap()), serde_json::from_str(&cases).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// A prompt in which some stretches are literals, made by the guard itself.
fn prompt(segments: &[(bool, &str)]) -> PromptText {
    let mut prompt = PromptText::default();
    for (literal, part) in segments {
        if *literal {
            let guard = engine::input::prompt::TextGuard::new([part.to_string()]).unwrap();
            let marked = guard.protect(part, &mut prompt.literals);
            prompt.text.push_str(&marked);
        } else {
            prompt.text.push_str(part);
        }
    }
    prompt
}

#[test]
fn ids_equal_those_of_the_library() {
    for kind in KINDS {
        let (tokenizer, cases) = load(kind);
        for case in cases["texts"].as_array().unwrap() {
            let raw = PromptText::raw(text(&case["text"]));
            assert_eq!(tokenizer.encode(&raw, false).unwrap(), ids(&case["ids"]), "{kind}: {case}");
            let framed = tokenizer.encode(&raw, true).unwrap();
            assert_eq!(framed, ids(&case["with_special"]), "{kind}: {case}");
            assert_eq!(tokenizer.decode(&ids(&case["ids"]), false).unwrap(), text(&case["decoded"]), "{kind}");
            assert_eq!(tokenizer.decode(&ids(&case["ids"]), true).unwrap(), text(&case["decoded_skip"]), "{kind}");
        }
    }
}

#[test]
fn literals_are_encoded_as_text_in_their_context() {
    for kind in KINDS {
        let (tokenizer, cases) = load(kind);
        for case in cases["prompts"].as_array().unwrap() {
            let segments: Vec<(bool, &str)> = case["segments"]
                .as_array()
                .unwrap()
                .iter()
                .map(|segment| (segment[0] == "L", text(&segment[1])))
                .collect();
            let prompt = prompt(&segments);
            let plain: String = segments.iter().map(|(_, part)| *part).collect();
            assert_eq!(prompt.plain(), plain);
            assert_eq!(tokenizer.encode(&prompt, false).unwrap(), ids(&case["ids"]), "{kind}: {case}");
        }
    }
}

/// Without any literal next to it, the path for prompts with literals gives the library's ids too.
#[test]
fn an_empty_literal_changes_nothing_but_what_it_separates() {
    for kind in KINDS {
        let (tokenizer, cases) = load(kind);
        for case in cases["texts"].as_array().unwrap() {
            let text = text(&case["text"]);
            if text.is_empty() {
                continue;
            }
            let marked = PromptText { text: format!("{text}\u{fdd0}\u{fde0}\u{fdd1}"), literals: vec![String::new()] };
            assert_eq!(tokenizer.encode(&marked, false).unwrap(), ids(&case["ids"]), "{kind}: {case}");
            assert_eq!(tokenizer.encode(&marked, true).unwrap(), ids(&case["with_special"]), "{kind}: {case}");
        }
        let split = PromptText { text: "<ima\u{fdd0}\u{fde0}\u{fdd1}ge>".into(), literals: vec![String::new()] };
        let image = tokenizer.token_to_id("<image>").unwrap();
        assert!(!tokenizer.encode(&split, false).unwrap().contains(&image), "{kind}");
    }
}

#[test]
fn no_text_of_a_user_becomes_a_control_token() {
    for kind in KINDS {
        let tokenizer = load(kind).0;
        let guard = tokenizer.text_guard(Some("{{ '<box>' }}"), &["<row_1>"]).unwrap();
        let control: Vec<u32> = ["<image>", "<fake>", "<end>", "<s>", "</s>", "<mask>", "<alone>", "<left>", "<box>"]
            .iter()
            .map(|token| tokenizer.token_to_id(token).unwrap())
            .collect();
        for user in
            ["<image>", "</s>", "a</s>b", "<s>", "x <end> <fake> <mask>y", "<box>", "</s></s>", "<row_1>", "<alone>"]
        {
            let mut literals = Vec::new();
            let marked = guard.protect(user, &mut literals);
            assert!(!literals.is_empty(), "{user}");
            let prompt = PromptText { text: format!("<image>{marked}<end>"), literals };
            let ids = tokenizer.encode(&prompt, false).unwrap();
            assert_eq!((ids.first(), ids.last()), (Some(&control[0]), Some(&control[2])), "{kind}: {user}");
            let inner = &ids[1..ids.len() - 1];
            assert!(inner.iter().all(|id| !control.contains(id)), "{kind}: {user}: {ids:?}");
            if !inner.contains(&tokenizer.token_to_id("<unk>").unwrap()) {
                assert_eq!(tokenizer.decode(inner, false).unwrap().trim_start(), user, "{kind}");
            }
        }
    }
}

#[test]
fn bos_is_added_once() {
    let (tokenizer, cases) = load("prepend");
    assert!(cases["texts"].as_array().unwrap().len() > 20);
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": true, "add_eos_token": false});
    let json = std::fs::read_to_string(dir("prepend").join("tokenizer.json")).unwrap();
    let (bos, eos) = (tokenizer.token_to_id("<s>").unwrap(), tokenizer.token_to_id("</s>").unwrap());
    let tokenizer = Tokenizer::from_json(&json, &config, &Value::Null).unwrap();
    assert_eq!((tokenizer.special_id("bos_token"), tokenizer.special_id("eos_token")), (Some(bos), Some(eos)));
    let plain = tokenizer.encode(&PromptText::raw("Hello"), false).unwrap();
    assert_eq!(tokenizer.encode(&PromptText::raw("Hello"), true).unwrap(), [vec![bos], plain.clone()].concat());
    let rendered = tokenizer.encode(&PromptText::raw("<s>Hello"), true).unwrap();
    assert_eq!(rendered.iter().filter(|id| **id == bos).count(), 1);
    assert_eq!(rendered[0], bos);
    // What a user writes is no BOS: the true one is added before it.
    let user = prompt(&[(true, "<s>"), (false, "Hello")]);
    let ids = tokenizer.encode(&user, true).unwrap();
    assert_eq!((ids[0], ids[1..].contains(&bos)), (bos, false));

    let both = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false, "add_eos_token": true});
    let tokenizer = Tokenizer::from_json(&json, &both, &Value::Null).unwrap();
    assert_eq!(tokenizer.encode(&PromptText::raw("Hello"), true).unwrap(), [plain, vec![eos]].concat());
}

#[test]
fn control_tokens_of_the_config_are_known() {
    let json = std::fs::read_to_string(dir("bytelevel").join("tokenizer.json")).unwrap();
    let config = json!({
        "image_token": "<|picture|>",
        "added_tokens_decoder": {"489": {"content": "<|turn|>", "lstrip": false, "rstrip": false,
            "normalized": false, "single_word": false, "special": true}}
    });
    let map = json!({"eos_token": {"content": "</s>"}, "image_token": "<other>", "additional_special_tokens": ["<x>"]});
    let tokenizer = Tokenizer::from_json(&json, &config, &map).unwrap();
    assert_eq!(tokenizer.token_to_id("<|turn|>"), Some(489));
    let picture = tokenizer.special_id("image_token").unwrap();
    assert_eq!((picture, tokenizer.id_to_token(picture).as_deref()), (490, Some("<|picture|>")));
    assert!(tokenizer.is_special(489) && tokenizer.is_special(490) && !tokenizer.is_special(20));
    assert_eq!(tokenizer.special_tokens()["eos_token"], "</s>");
    assert_eq!(tokenizer.encode(&PromptText::raw("<|turn|><|picture|>"), false).unwrap(), [489, 490]);
    assert_eq!(tokenizer.vocab_size(), 491);
}

#[test]
fn streamed_text_equals_decoded_text() {
    for kind in KINDS {
        let (tokenizer, cases) = load(kind);
        let texts = cases["texts"].as_array().unwrap().iter().chain(cases["streams"].as_array().unwrap());
        for case in texts {
            for (skip, expected) in [(false, "decoded"), (true, "decoded_skip")] {
                let mut stream = Detokenizer::new(tokenizer.clone(), &[], skip).unwrap();
                let mut streamed = String::new();
                for id in ids(&case["ids"]) {
                    streamed.extend(stream.push(id).unwrap());
                }
                streamed.extend(stream.flush().unwrap());
                assert_eq!(streamed, text(&case[expected]), "{kind}, skip {skip}: {case}");
                assert_eq!(stream.flush().unwrap(), None);
            }
        }
    }
}

#[test]
fn characters_come_whole() {
    for kind in ["prepend", "metaspace", "bytelevel"] {
        let tokenizer = load(kind).0;
        let text = "A \u{1f600}\u{1f469}\u{200d}\u{1f467} and \u{4f60}\u{597d} end";
        let ids = tokenizer.encode(&PromptText::raw(text), false).unwrap();
        assert!(ids.len() > 25, "{kind}: characters are split over tokens");
        let mut stream = Detokenizer::new(tokenizer.clone(), &[], true).unwrap();
        let mut pieces = Vec::new();
        for id in ids {
            pieces.extend(stream.push(id).unwrap());
            assert!(!pieces.concat().contains('\u{fffd}'), "{kind}: {pieces:?}");
        }
        pieces.extend(stream.flush().unwrap());
        assert_eq!(pieces.concat(), text, "{kind}");
        assert!(pieces.len() > 4, "{kind}: text comes as it is generated: {pieces:?}");
    }
}

#[test]
fn a_cut_character_shows_at_the_end_only() {
    for kind in ["prepend", "bytelevel"] {
        let tokenizer = load(kind).0;
        let ids = tokenizer.encode(&PromptText::raw("x\u{1f600}"), false).unwrap();
        let cut = &ids[..ids.len() - 1];
        let mut stream = Detokenizer::new(tokenizer.clone(), &[], true).unwrap();
        let streamed: String = cut.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
        assert_eq!(streamed, "x", "{kind}");
        let rest = stream.flush().unwrap().unwrap();
        assert!(rest.chars().all(|c| c == '\u{fffd}'), "{kind}: {rest:?}");
        assert_eq!(streamed + &rest, tokenizer.decode(cut, true).unwrap());
    }
}

#[test]
fn a_stream_goes_on_where_its_context_ends() {
    for kind in KINDS {
        let tokenizer = load(kind).0;
        let ids = tokenizer.encode(&PromptText::raw("There are two cats in the picture, and they're"), false).unwrap();
        for cut in [1, 5, ids.len() - 1] {
            let mut stream = Detokenizer::new(tokenizer.clone(), &ids[..cut], true).unwrap();
            let mut streamed: String = ids[cut..].iter().filter_map(|&id| stream.push(id).unwrap()).collect();
            streamed.extend(stream.flush().unwrap());
            let whole = tokenizer.decode(&ids, true).unwrap();
            assert_eq!(tokenizer.decode(&ids[..cut], true).unwrap() + &streamed, whole, "{kind}");
        }
    }
}

#[test]
fn long_streams_keep_a_short_window() {
    let (tokenizer, cases) = load("metaspace");
    let unit: Vec<u32> = cases["streams"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|c| !c["ids"].is_null())
        .flat_map(|c| ids(&c["ids"]))
        .collect();
    let all: Vec<u32> = unit.iter().copied().cycle().take(20_000).collect();
    let mut stream = Detokenizer::new(tokenizer.clone(), &[], true).unwrap();
    let mut streamed: String = all.iter().filter_map(|&id| stream.push(id).unwrap()).collect();
    streamed.extend(stream.flush().unwrap());
    assert_eq!(streamed, tokenizer.decode(&all, true).unwrap());
}

#[test]
fn missing_and_damaged_files_are_named() {
    let empty = tempfile::tempdir().unwrap();
    let message = |result: engine::Result<Tokenizer>| match result {
        Err(Error::Config(message)) => message,
        other => panic!("{other:?}"),
    };
    assert!(message(Tokenizer::load(empty.path())).contains("tokenizer.json: not found"));
    std::fs::write(empty.path().join("tokenizer.model"), b"x").unwrap();
    let only_model = message(Tokenizer::load(empty.path()));
    assert!(only_model.contains("only tokenizer.model") && only_model.contains("save_pretrained"), "{only_model}");
    std::fs::write(empty.path().join("tokenizer.json"), b"{\"model\":").unwrap();
    assert!(message(Tokenizer::load(empty.path())).starts_with("tokenizer.json: "));
    std::fs::write(empty.path().join("tokenizer.json"), b"\xff\xfe").unwrap();
    assert!(message(Tokenizer::load(empty.path())).contains("UTF-8"));
    std::fs::copy(dir("unigram").join("tokenizer.json"), empty.path().join("tokenizer.json")).unwrap();
    std::fs::write(empty.path().join("tokenizer_config.json"), b"[").unwrap();
    assert!(message(Tokenizer::load(empty.path())).starts_with("tokenizer_config.json: "));
    std::fs::write(empty.path().join("tokenizer_config.json"), b"{\"added_tokens_decoder\": {\"x\": {}}}").unwrap();
    assert!(message(Tokenizer::load(empty.path())).contains("added_tokens_decoder"));
}

/// Damaged tokenizer files give an error or a tokenizer that works; nothing panics.
#[test]
fn mutated_files_do_not_panic() {
    let mut state = 12345u64;
    let mut random = move |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let prompt = prompt(&[(false, "Hello <image>\u{4f60} "), (true, "<image>"), (false, "</box>")]);
    let mut loaded = 0;
    for kind in KINDS {
        let good = std::fs::read(dir(kind).join("tokenizer.json")).unwrap();
        for _ in 0..60 {
            let mut bytes = good.clone();
            for _ in 0..1 + random(3) {
                let at = random(bytes.len());
                match random(5) {
                    0 | 1 => bytes[at] = b"0123456789aetrlsu{}[]\",:"[random(24)],
                    2 => drop(bytes.drain(at..(at + random(40)).min(bytes.len()))),
                    3 if random(4) == 0 => bytes.truncate(at),
                    _ => bytes.insert(at, b"0123456789aetrlsu{}[]\",:"[random(24)]),
                }
                if bytes.is_empty() {
                    bytes = good.clone();
                }
            }
            let Ok(json) = String::from_utf8(bytes) else { continue };
            if let Ok(tokenizer) = Tokenizer::from_json(&json, &Value::Null, &Value::Null) {
                loaded += 1;
                if let Ok(ids) = tokenizer.encode(&prompt, true) {
                    let _ = tokenizer.decode(&ids, false);
                }
            }
        }
    }
    assert!(loaded > 10, "{loaded} mutated files loaded");
}

#[test]
fn segments_of_a_guarded_prompt() {
    let prompt = prompt(&[(false, "a"), (true, "<image>"), (false, "b")]);
    assert_eq!(prompt.segments(), [Segment::Trusted("a"), Segment::Literal("<image>"), Segment::Trusted("b")]);
}
