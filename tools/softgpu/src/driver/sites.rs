//! Which places of a program make its driver calls.
//! In: `SOFTGPU_SITES` and the name of every call. Out: that file, at exit: one line a place, `ENTRY N,N,... FUNCTION < CALLER < ...`,
//! the N being the numbers that `SOFTGPU_FAIL` takes. Owns: the places seen. Not here: counting and failing.
//!
//! A place is a whole stack of calls, so one helper function used in two ways is two places. Failing a few calls of each place
//! covers what failing every call covers, in a fraction of the runs.

use super::*;
use std::backtrace::Backtrace;
use std::collections::HashMap;
use std::ffi::c_void;

/// Frames looked at, from the entry point outwards.
const DEPTH: usize = 64;

/// A place: its entry point, the calls made there, and the functions on the stack, innermost first.
struct Site {
    entry: &'static str,
    calls: Vec<u64>,
    functions: Vec<String>,
}

/// Places by the return addresses that lead to them.
pub struct Sites {
    file: std::path::PathBuf,
    seen: Mutex<HashMap<Vec<usize>, Site>>,
}

impl Sites {
    /// `None` where nobody asks for them.
    pub fn from_environment() -> Option<Sites> {
        std::env::var_os("SOFTGPU_SITES").map(|file| Sites { file: file.into(), seen: Mutex::default() })
    }

    /// Notes call `number` of `entry`, made by whoever is on this thread's stack.
    pub fn note(&self, entry: &'static str, number: u64) {
        let mut stack = [std::ptr::null_mut::<c_void>(); DEPTH];
        // SAFETY: writes at most DEPTH addresses into an array of that length.
        let depth = unsafe { libc::backtrace(stack.as_mut_ptr(), DEPTH as libc::c_int) };
        let key: Vec<usize> = stack[..depth.max(0) as usize].iter().map(|a| a.addr()).collect();
        let Ok(mut seen) = self.seen.lock() else { return };
        let site = seen.entry(key).or_insert_with(|| Site { entry, calls: Vec::new(), functions: functions(entry) });
        site.calls.push(number);
    }

    /// Writes the file, places in the order of their first calls.
    pub fn write(&self) {
        let Ok(seen) = self.seen.lock() else { return };
        let mut sites: Vec<&Site> = seen.values().collect();
        sites.sort_by_key(|s| (s.entry, s.calls[0]));
        let mut text = String::new();
        for site in sites {
            let calls: Vec<String> = site.calls.iter().map(u64::to_string).collect();
            text.push_str(&format!("{} {} {}\n", site.entry, calls.join(","), site.functions.join(" < ")));
        }
        if let Err(e) = std::fs::write(&self.file, text) {
            say(&format!("cannot write the places of calls {}: {e}", self.file.display()));
        }
    }
}

/// Names of the functions on this thread's stack, the caller of `entry` first, inlined ones too.
fn functions(entry: &str) -> Vec<String> {
    let text = Backtrace::force_capture().to_string();
    // A function a line, `  12: name` or, inlined into the one before it, `name`; beneath it `at file:line`.
    let names = text.lines().map(str::trim).filter(|line| !line.starts_with("at "));
    let names =
        names.map(|line| line.split_once(": ").filter(|(n, _)| n.parse::<u32>().is_ok()).map_or(line, |(_, f)| f));
    names.skip_while(|name| *name != entry).skip(1).map(str::to_string).collect()
}
