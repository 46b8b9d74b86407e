//! `strftime_now`: the local date and time in a template.
//!
//! In: a strftime format. Out: text, as Python's `datetime.now().strftime(format)`. Not here: anything else about time.

use std::ffi::CString;

use minijinja::{Error, ErrorKind};

/// Longest text a format may give, in bytes.
const MAX_BYTES: usize = 4096;

/// Formats the local time by C's strftime, which Python uses too.
pub fn strftime_now(format: &str) -> Result<String, Error> {
    let invalid = |message: &str| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {message}"));
    if format.is_empty() {
        return Ok(String::new());
    }
    let format = CString::new(format).map_err(|_| invalid("the format holds a NUL character"))?;
    let mut buffer = vec![0u8; MAX_BYTES];
    // SAFETY: `time` accepts null; `localtime_r` gets two valid pointers and fills `fields`, whose all-zero pattern is
    // a valid `tm` before that; `strftime` writes at most `buffer.len()` bytes and reads a NUL-terminated format.
    let length = unsafe {
        let now = libc::time(std::ptr::null_mut());
        let mut fields: libc::tm = std::mem::zeroed();
        if libc::localtime_r(&now, &mut fields).is_null() {
            return Err(invalid("the local time cannot be determined"));
        }
        libc::strftime(buffer.as_mut_ptr().cast(), buffer.len(), format.as_ptr(), &fields)
    };
    if length == 0 {
        return Err(invalid("the text is empty or too long"));
    }
    buffer.truncate(length);
    String::from_utf8(buffer).map_err(|_| invalid("the text is not UTF-8"))
}
