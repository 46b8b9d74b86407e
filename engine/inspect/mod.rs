//! Looking inside: any node's values written out, two runs compared node by node, what a checkpoint holds.

pub mod backends;
pub mod compare;
pub mod dump;
pub mod summary;
