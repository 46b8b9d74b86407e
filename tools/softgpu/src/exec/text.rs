//! printf, assert and trap from kernels.
//! In: generic addresses of strings and packed arguments. Out: text of the block, or a fault. Owns: format conversion.
//! Not here: when the text is shown (`grid`: block by block, in block order).

use super::fault::FaultKind;
use super::memory::{lanes, resolve};
use super::status;
use super::warp::Warp;
use crate::ir::Instr;
use crate::ptx::Space;

/// Reads bytes at a generic address of a lane; `None` outside all memory.
unsafe fn read(w: &mut Warp, lane: usize, address: u64, bytes: usize) -> Option<Vec<u8>> {
    let (space, off) = resolve(address);
    let p = match space {
        Space::Local => {
            let frame = u64::from(w.block().launch().kernel.local_bytes);
            if off + bytes as u64 > frame {
                return None;
            }
            w.local.add(lane * frame as usize + off as usize) as *const u8
        }
        Space::Shared => {
            if off + bytes as u64 > u64::from(w.block().shared.bytes) {
                return None;
            }
            w.block().shared.pointer().add(off as usize) as *const u8
        }
        _ => {
            let r = w.block().launch().view.find(off)?;
            if off + bytes as u64 > r.end {
                return None;
            }
            off as *const u8
        }
    };
    Some(std::slice::from_raw_parts(p, bytes).to_vec())
}

unsafe fn string(w: &mut Warp, lane: usize, address: u64) -> String {
    let mut out = Vec::new();
    while let Some(b) = read(w, lane, address + out.len() as u64, 1) {
        if b[0] == 0 || out.len() > 4096 {
            break;
        }
        out.push(b[0]);
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// `vprintf(format, arguments)`: rows `a`, `b`; `d` (or NONE) gets the number of arguments.
pub unsafe fn print(w: &mut Warp, i: &Instr) -> u32 {
    let format = *(w.regs.add(i.a as usize) as *const [u64; 32]);
    let arguments = *(w.regs.add(i.b as usize) as *const [u64; 32]);
    for l in lanes(w.m) {
        let text = string(w, l, format[l]);
        let (out, n) = expand(w, l, &text, arguments[l]);
        w.block().output.push_str(&out);
        if i.d != crate::ir::NONE {
            *(w.regs.add(i.d as usize) as *mut u32).add(l) = n;
        }
    }
    status::OK
}

unsafe fn expand(w: &mut Warp, lane: usize, format: &str, arguments: u64) -> (String, u32) {
    let (mut out, mut n, mut at) = (String::new(), 0, 0u64);
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = String::new();
        let mut kind = '%';
        for c in rest.by_ref() {
            if c.is_ascii_alphabetic() && !matches!(c, 'l' | 'h' | 'z' | 'j' | 't') || c == '%' {
                kind = c;
                break;
            }
            spec.push(c);
        }
        if kind == '%' {
            out.push('%');
            continue;
        }
        // Arguments lie as C promotes them, each aligned to its size.
        let wide = spec.contains('l')
            || spec.contains('z')
            || spec.contains('j')
            || matches!(kind, 'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 's' | 'p');
        let size = if wide { 8 } else { 4 };
        at = at.next_multiple_of(size);
        let raw = read(w, lane, arguments + at, size as usize).unwrap_or_default();
        at += size;
        n += 1;
        let mut bytes = [0u8; 8];
        bytes[..raw.len()].copy_from_slice(&raw);
        let v = u64::from_le_bytes(bytes);
        let flags: String = spec.chars().filter(|c| !c.is_ascii_alphabetic()).collect();
        let text = if kind == 's' { string(w, lane, v) } else { String::new() };
        out.push_str(&conversion(&flags, kind, v, wide, &text));
    }
    (out, n)
}

/// One conversion of C's printf: flags, width, precision, kind.
pub fn conversion(flags: &str, kind: char, v: u64, wide: bool, text: &str) -> String {
    let body = flags.trim_start_matches(['-', '0', '+', ' ', '#']);
    let marks = &flags[..flags.len() - body.len()];
    let (width, precision) = body.split_once('.').map_or((body, None), |(a, b)| (a, Some(b.parse().unwrap_or(0usize))));
    let width: usize = width.parse().unwrap_or(0);
    let float = f64::from_bits(v);
    let mut s = match kind {
        'd' | 'i' => (if wide { v as i64 } else { i64::from(v as i32) }).to_string(),
        'u' => v.to_string(),
        'x' => format!("{v:x}"),
        'X' => format!("{v:X}"),
        'o' => format!("{v:o}"),
        'c' => char::from(v as u8).to_string(),
        'p' => format!("{v:#x}"),
        's' => match precision {
            Some(p) => text.chars().take(p).collect(),
            None => text.to_string(),
        },
        'f' | 'F' if float.is_finite() => format!("{float:.*}", precision.unwrap_or(6)),
        'e' | 'E' | 'g' | 'G' if float.is_finite() => scientific(float, kind, precision.unwrap_or(6)),
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            if float.is_nan() {
                "nan".into()
            } else {
                float.to_string()
            }
        }
        _ => format!("%{kind}"),
    };
    let numeric = !matches!(kind, 's' | 'c');
    if numeric && !s.starts_with('-') {
        if marks.contains('+') {
            s.insert(0, '+');
        } else if marks.contains(' ') {
            s.insert(0, ' ');
        }
    }
    let missing = width.saturating_sub(s.chars().count());
    if marks.contains('-') {
        s + &" ".repeat(missing)
    } else if marks.contains('0') && numeric {
        let sign = usize::from(s.starts_with(['-', '+']));
        format!("{}{}{}", &s[..sign], "0".repeat(missing), &s[sign..])
    } else {
        " ".repeat(missing) + &s
    }
}

fn scientific(v: f64, kind: char, precision: usize) -> String {
    let c_form = |p: usize| {
        let s = format!("{v:.p$e}");
        let (m, e) = s.split_once('e').unwrap_or((&s, "0"));
        let e: i32 = e.parse().unwrap_or(0);
        (m.to_string(), e, format!("e{}{:02}", if e < 0 { '-' } else { '+' }, e.abs()))
    };
    if kind.eq_ignore_ascii_case(&'e') {
        let (m, _, e) = c_form(precision);
        return m + &e;
    }
    let p = precision.max(1);
    let (m, e, text) = c_form(p - 1);
    let trim = |s: String| if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_string() } else { s };
    if e < -4 || e >= p as i32 { trim(m) + &text } else { trim(format!("{v:.*}", (p as i32 - 1 - e).max(0) as usize)) }
}

/// `__assertfail(message, file, line, function, size)`: rows `a`, `b`, `c`, `xs[0]`.
pub unsafe fn assert_fail(w: &mut Warp, i: &Instr) -> u32 {
    let l = (w.m.trailing_zeros() & 31) as usize;
    let at = |w: &Warp, row: u32| *(w.regs.add(row as usize) as *const u64).add(l);
    let line = *(w.regs.add(i.c as usize) as *const u32).add(l);
    let (message, file, function) = (at(w, i.a), at(w, i.b), at(w, *w.xs.add(i.xs as usize)));
    let (message, file, function) = (string(w, l, message), string(w, l, file), string(w, l, function));
    w.fault(FaultKind::Assert, l as u32, None, format!("{file}:{line}: {function}: assertion `{message}` failed"))
}

/// `trap`.
pub unsafe fn trap(w: &mut Warp, _: &Instr) -> u32 {
    let l = w.m.trailing_zeros() & 31;
    w.fault(FaultKind::Trap, l, None, String::new())
}
