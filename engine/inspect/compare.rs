//! Compares a run with a file of expected values, node by node, and names the first node that differs.
//!
//! In: a safetensors file whose tensors are named after nodes (a dump of ours, or of the reference implementation).
//! Out: a report in graph order. Owns: the comparison.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::dump::run_name;
use crate::checkpoint::SafetensorsFile;
use crate::run::worker::OwnedProbe;
use crate::tensor::HostTensor;
use crate::{Error, Result};

/// A value differs when `|a - b| > TOLERANCE * (1 + |b|)`: f32 sums in another order stay below, a wrong operation
/// does not.
pub const TOLERANCE: f32 = 1e-3;

/// One compared tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub name: String,
    /// Largest `|a - b| / (1 + |b|)`; infinite where shapes differ or a value is not a number.
    pub error: f32,
    /// What else is to be said: shapes, the first place that differs.
    pub note: String,
}

/// A comparison in progress; clones share it.
#[derive(Clone)]
pub struct Comparison {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    expected: HashMap<String, HostTensor>,
    runs: HashMap<String, usize>,
    rows: Vec<Row>,
}

impl Comparison {
    /// Opens the file of expected values. A file that cannot be read is the request's fault, not the checkpoint's.
    pub fn open(path: &Path) -> Result<Comparison> {
        let file = SafetensorsFile::open(path).map_err(|e| match e {
            Error::Checkpoint(m) => Error::Request(format!("--compare-to: {m}")),
            other => other,
        })?;
        let expected =
            file.tensors().map(|(name, _)| Ok((name.to_string(), file.tensor(name)?))).collect::<Result<_>>()?;
        Ok(Comparison { inner: Arc::new(Mutex::new(Inner { expected, runs: HashMap::new(), rows: Vec::new() })) })
    }

    /// A probe that compares every node that the file has.
    pub fn probe(&self) -> OwnedProbe {
        let inner = self.inner.clone();
        Box::new(move |node, shape, values| {
            let mut inner = inner.lock().unwrap_or_else(PoisonError::into_inner);
            let count = inner.runs.entry(node.name.clone()).or_default();
            let name = run_name(&node.name, *count);
            *count += 1;
            if let Some(want) = inner.expected.remove(&name) {
                let row = compare(name, shape, values, &want)?;
                inner.rows.push(row);
            }
            Ok(())
        })
    }

    /// What was found so far.
    pub fn report(&self) -> Report {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut missing: Vec<String> = inner.expected.keys().cloned().collect();
        missing.sort();
        Report { rows: inner.rows.clone(), missing }
    }
}

fn compare(name: String, shape: &[usize], values: &[f32], want: &HostTensor) -> Result<Row> {
    // Leading dimensions of one are a batch of one.
    let trimmed: Vec<usize> = {
        let ones = want.shape().iter().take_while(|d| **d == 1).count();
        want.shape()[ones.min(want.shape().len().saturating_sub(shape.len()))..].to_vec()
    };
    if trimmed != shape {
        return Ok(Row { name, error: f32::INFINITY, note: format!("shape {shape:?}, expected {:?}", want.shape()) });
    }
    let want = want.to_f32()?;
    let mut error = 0.0f32;
    let mut first = None;
    for (i, (a, b)) in values.iter().zip(want.iter()).enumerate() {
        let e = (a - b).abs() / (1.0 + b.abs());
        let e = if e.is_nan() && !(a.is_nan() && b.is_nan()) { f32::INFINITY } else { e };
        if e > TOLERANCE && first.is_none() {
            first = Some(format!("first at element {i} of {shape:?}: {a}, expected {b}"));
        }
        error = error.max(e);
    }
    Ok(Row { name, error, note: first.unwrap_or_default() })
}

/// The outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// In the order of the run.
    pub rows: Vec<Row>,
    /// Expected tensors that no node was named after.
    pub missing: Vec<String>,
}

impl Report {
    /// The first node out of tolerance.
    pub fn first_difference(&self) -> Option<&Row> {
        self.rows.iter().find(|r| r.error > TOLERANCE)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for r in &self.rows {
            let mark = if r.error > TOLERANCE { "DIFFERS" } else { "ok" };
            writeln!(f, "{mark:8} {:9.2e}  {} {}", r.error, r.name, r.note)?;
        }
        if !self.missing.is_empty() {
            writeln!(f, "not seen in this run: {}", self.missing.join(", "))?;
        }
        match self.first_difference() {
            Some(r) => write!(f, "first difference: {}", r.name),
            None => write!(f, "{} nodes compared, none differs by more than {TOLERANCE:e}", self.rows.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_name_what_differs() {
        let want = HostTensor::from_f32(vec![1, 2, 2], &[1.0, 2.0, 3.0, 4.0]);
        let same = compare("n".into(), &[2, 2], &[1.0, 2.0, 3.0, 4.001], &want).unwrap();
        assert!(same.error < TOLERANCE && same.note.is_empty());
        let off = compare("n".into(), &[2, 2], &[1.0, 2.5, 3.0, 4.0], &want).unwrap();
        assert!(off.error > 0.1 && off.note.contains("element 1"), "{}", off.note);
        let nan = compare("n".into(), &[2, 2], &[1.0, f32::NAN, 3.0, 4.0], &want).unwrap();
        assert_eq!(nan.error, f32::INFINITY);
        let shape = compare("n".into(), &[4], &[1.0; 4], &want).unwrap();
        assert_eq!(shape.error, f32::INFINITY);
    }
}
