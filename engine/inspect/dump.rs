//! Collects the values of nodes whose names match a pattern and writes them as safetensors.
//!
//! In: a pattern, the values of a run. Out: a file; a tensor is named after its node, and from the node's second
//! run on `NAME#1`, `NAME#2`, ... (chunks of a prompt, decode steps). Owns: copies of the values.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::Result;
use crate::checkpoint::safetensors;
use crate::run::worker::OwnedProbe;
use crate::tensor::HostTensor;

/// Values collected so far; clones share them.
#[derive(Clone, Default)]
pub struct Dump {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    tensors: Vec<(String, HostTensor)>,
    runs: HashMap<String, usize>,
}

/// Whether `name` matches: `*` stands for any text, everything else for itself.
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = rest.split('*').collect();
    for (i, part) in parts.iter().enumerate() {
        if i + 1 == parts.len() {
            return name.ends_with(part);
        }
        match name.find(part) {
            Some(at) => name = &name[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// The name of a node's `count`-th run, counted from 0.
pub fn run_name(node: &str, count: usize) -> String {
    if count == 0 { node.to_string() } else { format!("{node}#{count}") }
}

impl Dump {
    /// A probe that copies the values of matching nodes.
    pub fn probe(&self, pattern: String) -> OwnedProbe {
        let inner = self.inner.clone();
        Box::new(move |node, shape, values| {
            if matches(&pattern, &node.name) {
                let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
                let count = inner.runs.entry(node.name.clone()).or_default();
                let name = run_name(&node.name, *count);
                *count += 1;
                inner.tensors.push((name, HostTensor::from_f32(shape.to_vec(), values)));
            }
            Ok(())
        })
    }

    /// Writes what was collected; returns the number of tensors.
    pub fn write(&self, path: &Path) -> Result<usize> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        safetensors::write(path, &inner.tensors, &BTreeMap::new())?;
        Ok(inner.tensors.len())
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        for (pattern, name, want) in [
            ("*", "a.b", true),
            ("a.*", "a.b", true),
            ("a.*", "b.a.c", false),
            ("*.q_proj", "layers.0.q_proj", true),
            ("*.q_proj", "layers.0.q_proj.x", false),
            ("*layers.*.mlp*", "model.layers.3.mlp.fc1", true),
            ("*ab*ab", "ab", false),
            ("a", "a", true),
            ("a", "ab", false),
        ] {
            assert_eq!(matches(pattern, name), want, "{pattern} {name}");
        }
    }
}
