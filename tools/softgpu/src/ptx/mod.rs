//! Reading PTX text: `lexer` (characters), `parser` (grammar) into the tree of `ast`.

pub mod ast;
pub mod lexer;
pub mod parser;

pub use ast::*;
pub use lexer::{PtxError, Result};
pub use parser::parse;
