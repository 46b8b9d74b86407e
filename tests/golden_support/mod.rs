//! The golden cases: prompts, images and expected answers, as requests to an engine.
//! In: tests/data/golden. Out: cases, requests, options of the CPU. Not here: what must be equal.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};

use engine::input::message::{Message, Role, messages_from_value};
use engine::run::engine::{Device, EngineOptions};
use engine::run::request::{ImageInput, Prompt, Request};
use serde_json::Value;

pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Cases of a file of the golden folder.
pub fn cases(file: &str) -> Vec<Value> {
    let text = std::fs::read(data().join("golden/idefics2").join(file)).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&text).unwrap();
    assert!(cases.len() >= 10);
    cases
}

pub fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v[key].as_str().unwrap_or_else(|| panic!("{key} in {v}"))
}

pub fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

/// Image files of a case, in prompt order.
pub fn image_files(case: &Value) -> Vec<PathBuf> {
    let own = case["images"].as_array().into_iter().flatten().map(|v| v.as_str().unwrap().to_string());
    let parts = case["messages"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|m| m["content"].as_array().cloned().unwrap_or_default());
    let inline = parts.filter_map(|p| p["path"].as_str().map(str::to_string));
    own.chain(inline).map(|p| data().join(p)).collect()
}

pub fn request(case: &Value) -> Request {
    let images: Vec<ImageInput> = case["images"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|p| ImageInput::Source(data().join(p.as_str().unwrap()).display().to_string()))
        .collect();
    let mut messages = case["messages"].clone();
    for m in messages.as_array_mut().into_iter().flatten() {
        for part in m["content"].as_array_mut().into_iter().flatten() {
            if let Some(p) = part["path"].as_str() {
                part["path"] = data().join(p).display().to_string().into();
            }
        }
    }
    let prompt = match (case["raw"].as_bool().unwrap_or(false), messages.is_null()) {
        (true, _) => Prompt::Raw(text(case, "prompt").to_string()),
        (false, true) => Prompt::Messages(vec![Message::user(images.len(), text(case, "prompt"))]),
        (false, false) => Prompt::Messages(messages_from_value(messages, "messages").unwrap()),
    };
    let prompt = match (prompt, case["system"].as_str()) {
        (Prompt::Messages(mut turns), Some(system)) => {
            turns.insert(0, Message::text(Role::System, system));
            Prompt::Messages(turns)
        }
        (p, _) => p,
    };
    let mut request = Request::new(prompt, images);
    request.sampling.max_tokens = Some(case["max_tokens"].as_u64().unwrap() as usize);
    request.sampling.logprobs = Some(5);
    request
}

pub fn options(model: &str) -> EngineOptions {
    EngineOptions { model: data().join(model).display().to_string(), device: Device::Cpu, ..EngineOptions::default() }
}

pub fn models_of(cases: &[Value]) -> Vec<String> {
    let mut names: Vec<String> = cases.iter().map(|c| text(c, "model").to_string()).collect();
    names.sort();
    names.dedup();
    names
}
