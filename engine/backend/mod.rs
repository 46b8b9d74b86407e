//! backend
pub mod cpu;
