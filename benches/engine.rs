//! Engine benches.

fn main() {}
