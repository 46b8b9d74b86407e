//! Grammar of one instruction: guard, operands, addresses.
//! In: the lexer after an opcode. Out: a statement in the body. Not here: what an opcode means (`lower`).

use super::super::ast::*;
use super::super::lexer::{Number, Result, parse_number};
use super::{Body, Parser};

impl Parser<'_> {
    pub(super) fn instruction(&mut self, b: &mut Body, guard: Option<(RegId, bool)>, op: String) -> Result<()> {
        let loc = Loc { ptx_line: self.lex.line, ..b.loc };
        let mut operands = Vec::new();
        if !self.lex.take(b';') {
            loop {
                operands.push(self.operand(b)?);
                if self.lex.take(b';') {
                    break;
                }
                // A missing comma (`call (r), f, (p)` and friends always have one) is an error here.
                self.lex.expect(b',')?;
            }
        }
        b.stmts.push(Stmt::Inst(Inst { guard, op, operands, loc }));
        Ok(())
    }

    pub(super) fn operand(&mut self, b: &Body) -> Result<Operand> {
        let first = self.simple_operand(b)?;
        if self.lex.take(b'|') {
            let second = self.simple_operand(b)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    pub(super) fn offset(&mut self) -> Result<i64> {
        if self.lex.take(b'+') {
            return Ok(self.integer()? as i64);
        }
        if self.lex.peek() == b'-' {
            return Ok(self.integer()? as i64);
        }
        Ok(0)
    }

    pub(super) fn simple_operand(&mut self, b: &Body) -> Result<Operand> {
        let c = self.lex.peek();
        match c {
            b'{' | b'(' => {
                self.lex.take(c);
                let close = if c == b'{' { b'}' } else { b')' };
                let mut items = Vec::new();
                while !self.lex.take(close) {
                    items.push(self.operand(b)?);
                    if !self.lex.take(b',') {
                        self.lex.expect(close)?;
                        break;
                    }
                }
                Ok(if c == b'{' { Operand::Vector(items) } else { Operand::List(items) })
            }
            b'[' => {
                self.lex.take(b'[');
                let base = self.simple_operand(b)?;
                let off = self.offset()?;
                self.lex.expect(b']')?;
                Ok(match base {
                    Operand::Name(n, s, o) => Operand::Address(Box::new(Operand::Name(n, s, 0)), o + off),
                    base => Operand::Address(Box::new(base), off),
                })
            }
            b'!' => {
                self.lex.take(b'!');
                Ok(Operand::Not(Box::new(self.simple_operand(b)?)))
            }
            b'-' | b'+' | b'0'..=b'9' => Ok(match self.lex.number()? {
                Number::Int(v) => Operand::Int(v),
                Number::F32(v) => Operand::F32(v),
                Number::F64(v) => Operand::F64(v),
            }),
            _ => {
                let word = self.lex.word();
                if word.is_empty() {
                    return self.lex.error(format!("expected an operand, found `{}`", c as char));
                }
                if word == "_" {
                    return Ok(Operand::Sink);
                }
                if let Some(r) = b.find(word) {
                    return Ok(Operand::Reg(r));
                }
                if word == "WARP_SZ" {
                    return Ok(Operand::Int(32));
                }
                if word.starts_with('%') {
                    return Ok(Operand::Special(word.to_string()));
                }
                if let Some(Number::Int(v)) = parse_number(word) {
                    return Ok(Operand::Int(v));
                }
                // `name+4` as a value; inside brackets the offset is folded by the caller.
                let name = word.to_string();
                let off = self.offset()?;
                Ok(Operand::Name(name, b.scope(), off))
            }
        }
    }
}
