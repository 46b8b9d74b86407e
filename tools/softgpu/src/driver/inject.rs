//! Failures on request: any driver call can be made to fail, and all are counted.
//! In: `SOFTGPU_FAIL`, `SOFTGPU_CALLS`, `SOFTGPU_SITES`, `SOFTGPU_HIDE` and the name of every call made. Out: the `CUresult` to return instead.
//! Owns: the rules and the count of calls. Not here: what calls do, who makes them (sites.rs).
//!
//! A program's error paths are only tested when every call it makes has failed once. `SOFTGPU_CALLS` tells which calls a run
//! makes; one run for each with `SOFTGPU_FAIL` then covers them all.

use super::sites::Sites;
use super::*;
use std::cell::Cell;
use std::collections::BTreeMap;

/// First line of every entry point: counts the call, and returns early when it is to fail. Calls that entry points make
/// among themselves are the same call to the program and are not counted.
macro_rules! entry {
    ($name:expr) => {
        let _entered = match $crate::driver::inject::enter($name) {
            Ok(entered) => entered,
            Err(status) => return status,
        };
    };
}
pub(crate) use entry;

/// One rule of `SOFTGPU_FAIL`.
#[derive(Debug, PartialEq, Eq)]
struct Rule {
    /// Entry point, with or without its `_v2`; `*` is every call.
    name: String,
    /// The call that fails, from 1.
    at: u64,
    /// All later ones fail too.
    onwards: bool,
    /// What it returns.
    code: Status,
}

impl Rule {
    fn parse(text: &str) -> Option<Rule> {
        let mut parts = text.trim().split(':');
        let (name, at, code) = (parts.next()?, parts.next()?, parts.next()?);
        let onwards = at.ends_with('+');
        let at = at.trim_end_matches('+').parse().ok().filter(|n| *n > 0)?;
        let code = code.parse().ok()?;
        let rule = Rule { name: name.to_string(), at, onwards, code };
        (parts.next().is_none() && !name.is_empty()).then_some(rule)
    }

    fn names(&self, call: &str) -> bool {
        same_entry(&self.name, call)
    }
}

/// Whether a name a user wrote means an entry point: equal, or equal without the version.
fn same_entry(written: &str, entry: &str) -> bool {
    written == entry || entry.strip_prefix(written).is_some_and(|rest| rest.starts_with("_v"))
}

/// Rules and counts.
struct Plan {
    rules: Vec<Rule>,
    hidden: Vec<String>,
    count_file: Option<std::path::PathBuf>,
    sites: Option<Sites>,
    calls: Mutex<(u64, BTreeMap<&'static str, u64>)>,
}

static PLAN: LazyLock<Option<Plan>> = LazyLock::new(|| {
    let list = |name: &str| -> Vec<String> {
        let text = std::env::var(name).unwrap_or_default();
        text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_string).collect()
    };
    let mut rules = Vec::new();
    for text in list("SOFTGPU_FAIL") {
        match Rule::parse(&text) {
            Some(rule) => rules.push(rule),
            None => {
                say(&format!(
                    "SOFTGPU_FAIL: `{text}` is not ENTRY:N:CODE or ENTRY:N+:CODE (N from 1, CODE a CUresult)"
                ));
                // A test whose failure is not injected would pass for the wrong reason.
                std::process::abort();
            }
        }
    }
    let hidden = list("SOFTGPU_HIDE");
    let count_file = std::env::var_os("SOFTGPU_CALLS").map(Into::into);
    let sites = Sites::from_environment();
    if rules.is_empty() && hidden.is_empty() && count_file.is_none() && sites.is_none() {
        return None;
    }
    // SAFETY: a plain function without captures; writing the counts must not depend on cuInit having succeeded.
    unsafe { libc::atexit(write_counts) };
    Some(Plan { rules, hidden, count_file, sites, calls: Mutex::default() })
});

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// A call in progress on this thread.
pub struct Entered(bool);

impl Drop for Entered {
    fn drop(&mut self) {
        if self.0 {
            INSIDE.set(false);
        }
    }
}

/// Counts a call. `Err` when it is to fail.
#[inline]
pub fn enter(name: &'static str) -> Result<Entered, Status> {
    match &*PLAN {
        None => Ok(Entered(false)),
        Some(plan) => plan.enter(name),
    }
}

impl Plan {
    fn enter(&self, name: &'static str) -> Result<Entered, Status> {
        if INSIDE.get() {
            return Ok(Entered(false));
        }
        let Ok(mut calls) = self.calls.lock() else { return Ok(Entered(false)) };
        calls.0 += 1;
        let total = calls.0;
        let of_name = calls.1.entry(name).or_default();
        *of_name += 1;
        if let Some(sites) = &self.sites {
            sites.note(name, *of_name);
        }
        let hit = |r: &&Rule| {
            let n = if r.name == "*" { total } else { *of_name };
            (r.name == "*" || r.names(name)) && (n == r.at || r.onwards && n > r.at)
        };
        if let Some(rule) = self.rules.iter().find(hit) {
            say(&format!("{name}, call {of_name} ({total} of all): fails with {} as asked", rule.code));
            drop(calls);
            if sticky(rule.code)
                && let Ok(mut s) = STATE.lock()
            {
                s.sticky = rule.code;
            }
            return Err(rule.code);
        }
        INSIDE.set(true);
        Ok(Entered(true))
    }
}

/// Errors that stay until the context ends, as the driver's manual says of them.
fn sticky(code: Status) -> bool {
    matches!(code, 214 | 220 | 226 | 700 | 702 | 710 | 714..=719 | 721)
}

/// Whether this run pretends that the library has no such entry point.
pub fn hidden(name: &str) -> bool {
    PLAN.as_ref().is_some_and(|p| p.hidden.iter().any(|h| same_entry(h, name)))
}

/// `ENTRY COUNT` a line, the names in order, `*` for all.
extern "C" fn write_counts() {
    let Some(plan) = &*PLAN else { return };
    plan.sites.iter().for_each(Sites::write);
    let (Some(path), Ok(calls)) = (&plan.count_file, plan.calls.lock()) else { return };
    let mut text = format!("* {}\n", calls.0);
    calls.1.iter().for_each(|(name, n)| text.push_str(&format!("{name} {n}\n")));
    if let Err(e) = std::fs::write(path, text) {
        say(&format!("cannot write the counts of calls {}: {e}", path.display()));
    }
}
