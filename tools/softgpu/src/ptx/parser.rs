//! Grammar of PTX: directives, declarations, statements.
//! In: PTX text (what nvcc 12-13 and Triton write for sm_75 to sm_90). Out: `ast::Module`. Owns: scopes, register names, `.loc` chains.
//! Not here: opcodes and types of operands (`lower`).
//! Source: PTX ISA, chapters "Syntax", "State Spaces, Types, and Variables", "Directives".

mod operands;

use super::ast::*;
use super::lexer::{Lexer, Number, Result};
use std::collections::HashMap;

/// Parses a module.
pub fn parse(text: &str) -> Result<Module> {
    let mut p = Parser { lex: Lexer::new(text), module: Module::default(), parents: HashMap::new() };
    p.module()?;
    Ok(p.module)
}

struct Parser<'a> {
    lex: Lexer<'a>,
    module: Module,
    /// Call site of each inlined position: (file, line, column) -> the same of its caller.
    parents: HashMap<(u32, u32, u32), (u32, u32, u32)>,
}

/// Registers declared in one scope: exact names, and `%r<N>` families by prefix.
#[derive(Default)]
struct RegScope {
    exact: HashMap<String, RegId>,
    families: HashMap<String, (RegId, u32)>,
}

struct Body {
    function: Function,
    open: Vec<u32>,
    regs: Vec<RegScope>,
    stmts: Vec<Stmt>,
    loc: Loc,
}

impl Body {
    fn find(&self, name: &str) -> Option<RegId> {
        let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        for scope in self.open.iter().rev() {
            let s = &self.regs[*scope as usize];
            if let Some(r) = s.exact.get(name) {
                return Some(*r);
            }
            // `%r<N>` may itself end in digits before the number, so every split is tried, the longest number first.
            for cut in name.len() - digits..name.len() {
                if let Some((first, count)) = s.families.get(&name[..cut])
                    && let Ok(n) = name[cut..].parse::<u32>()
                    && n < *count
                    && (n == 0 || !name[cut..].starts_with('0'))
                {
                    return Some(first + n);
                }
            }
        }
        None
    }

    fn scope(&self) -> u32 {
        self.open.last().copied().unwrap_or(1)
    }

    fn add_reg(&mut self, ty: Ty, name: String) -> RegId {
        self.function.regs.push(ty);
        self.function.reg_names.push(name);
        self.function.regs.len() as RegId - 1
    }
}

impl Parser<'_> {
    fn module(&mut self) -> Result<()> {
        let (mut external, mut saw_version) = (false, false);
        loop {
            if self.lex.peek() == 0 {
                break;
            }
            let word = self.lex.word().to_string();
            match word.as_str() {
                ".version" => {
                    let w = self.lex.word().to_string();
                    let (a, b) = w.split_once('.').unwrap_or((&w, "0"));
                    self.module.version = (a.parse().unwrap_or(0), b.parse().unwrap_or(0));
                    saw_version = true;
                }
                ".target" => loop {
                    let w = self.lex.word().to_string();
                    if let Some(n) = w.strip_prefix("sm_") {
                        self.module.target = n.trim_end_matches(['a', 'f']).parse().unwrap_or(0);
                    }
                    if !self.lex.take(b',') {
                        break;
                    }
                },
                ".address_size" => {
                    if self.lex.number()? != Number::Int(64) {
                        return self.lex.error("only .address_size 64 is supported");
                    }
                }
                ".file" => self.file()?,
                ".loc" => {
                    self.lex.rest_of_line();
                }
                ".section" => self.section()?,
                ".pragma" => {
                    self.lex.quoted()?;
                    self.lex.expect(b';')?;
                }
                ".visible" | ".weak" | ".common" => external = false,
                ".extern" => external = true,
                ".entry" | ".func" => {
                    let f = self.function(word == ".entry")?;
                    self.add_function(f);
                    external = false;
                }
                ".alias" => {
                    let name = self.lex.word().to_string();
                    self.lex.expect(b',')?;
                    let of = self.lex.word().to_string();
                    self.lex.expect(b';')?;
                    if let Some(f) = self.module.functions.iter().find(|f| f.name == of).cloned() {
                        self.add_function(Function { name, ..f });
                    }
                }
                ".global" | ".const" | ".shared" => {
                    let space = match word.as_str() {
                        ".global" => Space::Global,
                        ".const" => Space::Const,
                        _ => Space::Shared,
                    };
                    let vars = self.variables(space, 0, external)?;
                    for v in vars {
                        match self.module.vars.iter_mut().find(|o| o.name == v.name) {
                            // A declaration and its definition, in either order.
                            Some(old) if old.external => *old = v,
                            Some(_) if v.external => {}
                            Some(_) => return self.lex.error(format!("variable `{}` is defined twice", v.name)),
                            None => self.module.vars.push(v),
                        }
                    }
                    external = false;
                }
                "" => {
                    let c = self.lex.peek() as char;
                    return self.lex.error(format!("expected a directive, found `{c}`"));
                }
                other => return self.lex.error(format!("unknown module directive `{other}`")),
            }
        }
        if !saw_version {
            return self.lex.error("not a PTX module: no .version directive");
        }
        Ok(())
    }

    fn add_function(&mut self, f: Function) {
        match self.module.functions.iter_mut().find(|o| o.name == f.name) {
            Some(old) if old.body.is_none() => *old = f,
            Some(_) => {}
            None => self.module.functions.push(f),
        }
    }

    fn file(&mut self) -> Result<()> {
        if let Number::Int(n) = self.lex.number()? {
            let name = self.lex.quoted()?;
            self.module.files.insert(n as u32, name);
            // Optional ", timestamp, size".
            self.lex.rest_of_line();
        }
        Ok(())
    }

    /// Debug sections hold bytes that nothing here reads.
    fn section(&mut self) -> Result<()> {
        self.lex.word();
        self.lex.expect(b'{')?;
        while !self.lex.take(b'}') {
            if self.lex.peek() == 0 {
                return self.lex.error("unterminated .section");
            }
            self.lex.rest_of_line();
        }
        Ok(())
    }

    /// `.align N .ty name[dims] = init, ...;` after the state space.
    fn variables(&mut self, space: Space, scope: u32, external: bool) -> Result<Vec<Var>> {
        let mut out = Vec::new();
        let (mut align, mut ty, mut lanes) = (0, None, 1u64);
        while self.lex.peek() == b'.' {
            let w = self.lex.word().to_string();
            match w.as_str() {
                ".align" => align = self.integer()? as u32,
                ".v2" => lanes = 2,
                ".v4" => lanes = 4,
                ".attribute" | ".ptr" => self.parenthesised()?,
                other => match Ty::parse(&other[1..]) {
                    Some(t) => ty = Some(t),
                    None => return self.lex.error(format!("unknown word `{other}` in a variable declaration")),
                },
            }
        }
        let Some(ty) = ty else { return self.lex.error("a variable declaration needs a type") };
        loop {
            let mut v = self.declarator(space, scope, ty, lanes, align)?;
            v.external = external;
            if self.lex.take(b'=') {
                self.initialiser(&mut v.init)?;
            }
            if v.bytes == 0 && !v.init.is_empty() {
                v.bytes = v.init.len() as u64 * u64::from(ty.bytes());
            }
            out.push(v);
            if self.lex.take(b';') {
                return Ok(out);
            }
            self.lex.expect(b',')?;
        }
    }

    fn parenthesised(&mut self) -> Result<()> {
        if self.lex.take(b'(') {
            while !self.lex.take(b')') {
                if self.lex.word().is_empty() && !self.lex.take(b',') {
                    return self.lex.error("unterminated attribute");
                }
            }
        }
        Ok(())
    }

    fn integer(&mut self) -> Result<u64> {
        match self.lex.number()? {
            Number::Int(v) => Ok(v),
            _ => self.lex.error("expected an integer"),
        }
    }

    fn declarator(&mut self, space: Space, scope: u32, ty: Ty, lanes: u64, align: u32) -> Result<Var> {
        let name = self.lex.word().to_string();
        if name.is_empty() {
            return self.lex.error("a variable needs a name");
        }
        let mut count = lanes;
        while self.lex.take(b'[') {
            if self.lex.take(b']') {
                count = 0;
                continue;
            }
            count = count.saturating_mul(self.integer()?);
            self.lex.expect(b']')?;
        }
        let Some(bytes) = count.checked_mul(u64::from(ty.bytes())).filter(|b| *b < 1 << 40) else {
            return self.lex.error(format!("variable `{name}` is too large"));
        };
        let align = if align == 0 { ty.bytes() * lanes as u32 } else { align };
        if !align.is_power_of_two() {
            return self.lex.error(format!("alignment {align} of `{name}` is no power of two"));
        }
        Ok(Var { name, scope, space, align, ty, bytes, init: Vec::new(), external: false })
    }

    fn initialiser(&mut self, out: &mut Vec<Init>) -> Result<()> {
        if self.lex.take(b'{') {
            while !self.lex.take(b'}') {
                self.initialiser(out)?;
                if !self.lex.take(b',') {
                    self.lex.expect(b'}')?;
                    break;
                }
            }
            return Ok(());
        }
        let c = self.lex.peek();
        if c.is_ascii_digit() || c == b'-' {
            out.push(Init::Bits(match self.lex.number()? {
                Number::Int(v) | Number::F64(v) => v,
                Number::F32(v) => u64::from(v),
            }));
            return Ok(());
        }
        let mut name = self.lex.word().to_string();
        if name == "generic" {
            self.lex.expect(b'(')?;
            name = self.lex.word().to_string();
            let off = if self.lex.take(b'+') { self.integer()? as i64 } else { 0 };
            self.lex.expect(b')')?;
            out.push(Init::Symbol(name, off));
            return Ok(());
        }
        if name.is_empty() {
            return self.lex.error("bad initialiser");
        }
        let off = if self.lex.take(b'+') { self.integer()? as i64 } else { 0 };
        out.push(Init::Symbol(name, off));
        Ok(())
    }

    /// `(.param ... name, ...)`.
    fn parameters(&mut self) -> Result<Vec<Var>> {
        let mut out = Vec::new();
        if !self.lex.take(b'(') {
            return Ok(out);
        }
        while !self.lex.take(b')') {
            let (mut align, mut ty, mut lanes, mut pointer) = (0, None, 1, false);
            while self.lex.peek() == b'.' {
                let w = self.lex.word().to_string();
                match w.as_str() {
                    ".param" | ".reg" | ".global" | ".shared" | ".const" | ".local" => {}
                    ".ptr" => pointer = true,
                    ".align" => align = self.integer()? as u32,
                    ".v2" => lanes = 2,
                    ".v4" => lanes = 4,
                    other => match Ty::parse(&other[1..]) {
                        Some(t) => ty = Some(t),
                        None => return self.lex.error(format!("unknown word `{other}` in a parameter")),
                    },
                }
            }
            let Some(ty) = ty else { return self.lex.error("a parameter needs a type") };
            // The alignment of `.ptr .align N` speaks of the pointee, not of the parameter itself.
            let own = if pointer { 0 } else { align };
            let v = if self.lex.peek() == b',' || self.lex.peek() == b')' {
                let name = format!("param_{}", out.len());
                let bytes = u64::from(ty.bytes());
                let align = ty.bytes();
                Var { name, scope: 1, space: Space::Param, align, ty, bytes, init: Vec::new(), external: false }
            } else {
                self.declarator(Space::Param, 1, ty, lanes, own)?
            };
            out.push(v);
            if !self.lex.take(b',') {
                self.lex.expect(b')')?;
                break;
            }
        }
        Ok(out)
    }

    fn function(&mut self, entry: bool) -> Result<Function> {
        let mut f = Function { entry, line: self.lex.line, scopes: vec![0, 0], ..Function::default() };
        if self.lex.peek() == b'(' {
            f.returns = self.parameters()?;
        }
        f.name = self.lex.word().to_string();
        if f.name.is_empty() {
            return self.lex.error("a function needs a name");
        }
        f.params = self.parameters()?;
        loop {
            match self.lex.peek() {
                b'{' => break,
                b';' => {
                    self.lex.take(b';');
                    return Ok(f);
                }
                b'.' => {}
                _ => return self.lex.error(format!("expected the body of `{}`", f.name)),
            }
            let word = self.lex.word().to_string();
            match word.as_str() {
                ".maxntid" | ".reqntid" | ".reqnctapercluster" => {
                    let mut dims = [1u32; 3];
                    for d in &mut dims {
                        *d = self.integer()? as u32;
                        if !self.lex.take(b',') {
                            break;
                        }
                    }
                    match word.as_str() {
                        ".maxntid" => f.max_threads = dims.iter().fold(1u32, |a, b| a.saturating_mul(*b)),
                        ".reqntid" => f.required_threads = Some(dims),
                        _ => {}
                    }
                }
                ".minnctapersm" => f.min_blocks = self.integer()? as u32,
                ".maxnreg" => f.max_registers = self.integer()? as u32,
                ".maxclusterrank" => {
                    self.integer()?;
                }
                ".noreturn" | ".explicitcluster" | ".blocksareclusters" => {}
                ".pragma" => {
                    self.lex.quoted()?;
                    self.lex.expect(b';')?;
                }
                ".attribute" => self.parenthesised()?,
                other => return self.lex.error(format!("unknown function directive `{other}`")),
            }
        }
        self.lex.expect(b'{')?;
        let regs = vec![RegScope::default(), RegScope::default()];
        let mut body = Body { function: f, open: vec![1], regs, stmts: Vec::new(), loc: Loc::default() };
        self.body(&mut body)?;
        let mut f = body.function;
        f.body = Some(body.stmts);
        Ok(f)
    }

    fn body(&mut self, b: &mut Body) -> Result<()> {
        loop {
            match self.lex.peek() {
                0 => return self.lex.error(format!("the body of `{}` does not end", b.function.name)),
                b'{' => {
                    self.lex.take(b'{');
                    let id = b.function.scopes.len() as u32;
                    b.function.scopes.push(b.scope());
                    b.regs.push(RegScope::default());
                    b.open.push(id);
                }
                b'}' => {
                    self.lex.take(b'}');
                    b.open.pop();
                    if b.open.is_empty() {
                        return Ok(());
                    }
                }
                b';' => {
                    self.lex.take(b';');
                }
                b'.' => self.body_directive(b)?,
                b'@' => {
                    self.lex.take(b'@');
                    let negated = self.lex.take(b'!');
                    let name = self.lex.word().to_string();
                    let Some(r) = b.find(&name) else { return self.lex.error(format!("unknown predicate `{name}`")) };
                    let op = self.lex.word().to_string();
                    self.instruction(b, Some((r, negated)), op)?;
                }
                _ => {
                    let word = self.lex.word().to_string();
                    if word.is_empty() {
                        let c = self.lex.peek() as char;
                        return self.lex.error(format!("expected an instruction, found `{c}`"));
                    }
                    if self.lex.take(b':') {
                        let scope = b.scope();
                        if self.lex.peek() == b'.' {
                            self.labelled_directive(b, &word)?;
                        } else {
                            b.stmts.push(Stmt::Label(word, scope));
                        }
                        continue;
                    }
                    self.instruction(b, None, word)?;
                }
            }
        }
    }

    /// After `label:`, a `.branchtargets`, `.calltargets` or `.callprototype`, or any other directive behind a plain label.
    fn labelled_directive(&mut self, b: &mut Body, label: &str) -> Result<()> {
        let word = self.lex.word().to_string();
        match word.as_str() {
            ".branchtargets" | ".calltargets" => {
                let mut targets = Vec::new();
                loop {
                    targets.push(self.lex.word().to_string());
                    if !self.lex.take(b',') {
                        break;
                    }
                }
                self.lex.expect(b';')?;
                b.stmts.push(Stmt::Targets(label.to_string(), b.scope(), targets));
                Ok(())
            }
            ".callprototype" => {
                self.parameters()?;
                self.lex.word();
                self.parameters()?;
                while self.lex.peek() == b'.' {
                    self.lex.word();
                }
                self.lex.expect(b';')?;
                b.stmts.push(Stmt::Targets(label.to_string(), b.scope(), Vec::new()));
                Ok(())
            }
            other => {
                b.stmts.push(Stmt::Label(label.to_string(), b.scope()));
                self.directive_word(b, other)
            }
        }
    }

    fn body_directive(&mut self, b: &mut Body) -> Result<()> {
        let word = self.lex.word().to_string();
        self.directive_word(b, &word)
    }

    fn directive_word(&mut self, b: &mut Body, word: &str) -> Result<()> {
        match word {
            ".reg" => {
                let mut lanes = 1;
                let mut word = self.lex.word().to_string();
                if word == ".v2" || word == ".v4" {
                    lanes = if word == ".v2" { 2 } else { 4 };
                    word = self.lex.word().to_string();
                }
                let Some(ty) = Ty::parse(word.trim_start_matches('.')) else {
                    return self.lex.error(format!("unknown register type `{word}`"));
                };
                if lanes != 1 {
                    return self.lex.error("vector registers (.reg .v2/.v4) are not supported");
                }
                loop {
                    let name = self.lex.word().to_string();
                    let scope = b.scope() as usize;
                    if self.lex.take(b'<') {
                        let count = self.integer()?.min(1 << 20) as u32;
                        self.lex.expect(b'>')?;
                        let first = b.function.regs.len() as RegId;
                        for n in 0..count {
                            b.add_reg(ty, format!("{name}{n}"));
                        }
                        b.regs[scope].families.insert(name, (first, count));
                    } else {
                        let id = b.add_reg(ty, name.clone());
                        b.regs[scope].exact.insert(name, id);
                    }
                    if self.lex.take(b';') {
                        return Ok(());
                    }
                    self.lex.expect(b',')?;
                }
            }
            ".local" | ".shared" | ".param" | ".global" | ".const" => {
                let space = match word {
                    ".local" => Space::Local,
                    ".shared" => Space::Shared,
                    ".param" => Space::Param,
                    ".global" => Space::Global,
                    _ => Space::Const,
                };
                let scope = b.scope();
                let vars = self.variables(space, scope, false)?;
                b.function.vars.extend(vars);
                Ok(())
            }
            ".loc" => {
                let line = self.lex.rest_of_line();
                self.location(b, line);
                Ok(())
            }
            ".file" => self.file(),
            ".pragma" => {
                self.lex.quoted()?;
                self.lex.expect(b';')
            }
            other => self.lex.error(format!("unknown directive `{other}` in a function")),
        }
    }

    /// `.loc file line column[, function_name label[+n], inlined_at file line column]`.
    fn location(&mut self, b: &mut Body, text: &str) {
        let mut numbers = text.split([' ', '\t', ',']).filter_map(|w| w.parse::<u32>().ok());
        let mut next = || numbers.next().unwrap_or(0);
        let here = (next(), next(), next());
        let mut outer = (0, 0);
        if let Some((_, at)) = text.split_once("inlined_at") {
            let mut numbers = at.split([' ', '\t', ',']).filter_map(|w| w.parse::<u32>().ok());
            let mut next = || numbers.next().unwrap_or(0);
            let parent = (next(), next(), next());
            self.parents.insert(here, parent);
            let mut top = parent;
            // Chains end at the kernel itself; the bound keeps odd tables from looping.
            for _ in 0..64 {
                match self.parents.get(&top) {
                    Some(up) if *up != top => top = *up,
                    _ => break,
                }
            }
            outer = (top.0, top.1);
        }
        b.loc = Loc { ptx_line: 0, file: here.0, line: here.1, outer };
    }
}
