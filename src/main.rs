//! The `dqkd` program.

fn main() {}
