//! Characters of a PTX text.
//! In: the text. Out: words, numbers, punctuation with their line. Owns: comments, literals, line counting.
//! Not here: grammar (`parser`).

/// A parse error: line of the PTX text and what is wrong there.
#[derive(Clone, Debug, PartialEq)]
pub struct PtxError {
    /// Line from 1.
    pub line: u32,
    /// What was found and what was expected.
    pub message: String,
}

impl std::fmt::Display for PtxError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PTX line {}: {}", self.line, self.message)
    }
}

impl std::error::Error for PtxError {}

/// Result of parsing and lowering.
pub type Result<T> = std::result::Result<T, PtxError>;

/// A literal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// Integer, two's complement.
    Int(u64),
    /// Bits of a single.
    F32(u32),
    /// Bits of a double.
    F64(u64),
}

/// A cursor over the text.
pub struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
    /// Current line, from 1.
    pub line: u32,
}

fn word_byte(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'%' | b'.')
}

impl<'a> Lexer<'a> {
    /// Starts at the beginning of `text`.
    pub fn new(text: &'a str) -> Self {
        Lexer { text: text.as_bytes(), at: 0, line: 1 }
    }

    /// An error at the current line.
    pub fn error<T>(&self, message: impl Into<String>) -> Result<T> {
        Err(PtxError { line: self.line, message: message.into() })
    }

    fn byte(&self, ahead: usize) -> u8 {
        self.text.get(self.at + ahead).copied().unwrap_or(0)
    }

    /// Skips white space and comments.
    pub fn skip(&mut self) {
        loop {
            match self.byte(0) {
                b'\n' => {
                    self.line += 1;
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' => self.at += 1,
                b'/' if self.byte(1) == b'/' => {
                    while self.at < self.text.len() && self.byte(0) != b'\n' {
                        self.at += 1;
                    }
                }
                b'/' if self.byte(1) == b'*' => {
                    self.at += 2;
                    while self.at < self.text.len() && !(self.byte(0) == b'*' && self.byte(1) == b'/') {
                        self.line += u32::from(self.byte(0) == b'\n');
                        self.at += 1;
                    }
                    self.at = (self.at + 2).min(self.text.len());
                }
                _ => return,
            }
        }
    }

    /// The next character after white space, 0 at the end.
    pub fn peek(&mut self) -> u8 {
        self.skip();
        // A NUL ends the text: drivers take C strings.
        self.byte(0)
    }

    /// Takes `c` when it comes next.
    pub fn take(&mut self, c: u8) -> bool {
        if self.peek() == c && c != 0 {
            self.at += 1;
            return true;
        }
        false
    }

    /// Demands `c`.
    pub fn expect(&mut self, c: u8) -> Result<()> {
        if self.take(c) {
            return Ok(());
        }
        let found = self.peek();
        let found = if found == 0 { "end of text".to_string() } else { format!("`{}`", found as char) };
        self.error(format!("expected `{}`, found {found}", c as char))
    }

    /// A word: letters, digits, `_ $ % .` and `::`. Empty when none comes.
    pub fn word(&mut self) -> &'a str {
        self.skip();
        let start = self.at;
        // Directives may follow each other without a space (`.reg.b16`); opcodes keep their dots.
        let directive = self.byte(0) == b'.';
        loop {
            if directive && self.at > start && self.byte(0) == b'.' {
                break;
            }
            if word_byte(self.byte(0)) {
                self.at += 1;
            } else if self.at > start && self.byte(0) == b':' && self.byte(1) == b':' && word_byte(self.byte(2)) {
                self.at += 2;
            } else {
                break;
            }
        }
        std::str::from_utf8(&self.text[start..self.at]).unwrap_or("")
    }

    /// The rest of the current line, the cursor after it.
    pub fn rest_of_line(&mut self) -> &'a str {
        let start = self.at;
        while self.at < self.text.len() && self.byte(0) != b'\n' {
            self.at += 1;
        }
        std::str::from_utf8(&self.text[start..self.at]).unwrap_or("")
    }

    /// A quoted string without escapes (file names, pragmas).
    pub fn quoted(&mut self) -> Result<String> {
        self.expect(b'"')?;
        let start = self.at;
        while self.at < self.text.len() && self.byte(0) != b'"' && self.byte(0) != b'\n' {
            self.at += 1;
        }
        let s = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        self.expect(b'"')?;
        Ok(s)
    }

    /// A literal, with its sign.
    pub fn number(&mut self) -> Result<Number> {
        let negative = self.take(b'-');
        if !negative {
            self.take(b'+');
        }
        let word = self.word();
        let Some(value) = parse_number(word) else { return self.error(format!("expected a number, found `{word}`")) };
        Ok(match value {
            Number::Int(v) if negative => Number::Int(v.wrapping_neg()),
            Number::F32(v) if negative => Number::F32(v ^ 1 << 31),
            Number::F64(v) if negative => Number::F64(v ^ 1 << 63),
            v => v,
        })
    }
}

/// Reads a literal word: decimal, hexadecimal, octal, binary, `0f`, `0d`, decimal fraction.
pub fn parse_number(word: &str) -> Option<Number> {
    let bytes = word.as_bytes();
    if !bytes.first()?.is_ascii_digit() {
        return None;
    }
    let (prefix, rest) = word.split_at(word.len().min(2));
    match prefix {
        "0f" | "0F" => return u32::from_str_radix(rest, 16).ok().map(Number::F32),
        "0d" | "0D" => return u64::from_str_radix(rest, 16).ok().map(Number::F64),
        _ => {}
    }
    if word.contains('.') {
        return word.parse::<f64>().ok().map(|v| Number::F64(v.to_bits()));
    }
    let digits = word.strip_suffix(['U', 'u']).unwrap_or(word);
    let value = match prefix {
        "0x" | "0X" => u64::from_str_radix(&digits[2..], 16),
        "0b" | "0B" => u64::from_str_radix(&digits[2..], 2),
        _ if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8),
        _ => digits.parse(),
    };
    value.ok().map(Number::Int)
}
