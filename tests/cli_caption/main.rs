//! `engine caption`, run as a user runs it, with the tiny checkpoint of random weights.

mod existing;
mod faults;
mod folder;
mod names;
mod output;
mod resume;
mod torture;

#[path = "../cli_support/mod.rs"]
mod cli_support;
