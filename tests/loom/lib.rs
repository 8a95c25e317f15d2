//! What the gate needs of the gateway: see `Cargo.toml` beside this.

#[path = "../../src/limit/mod.rs"]
pub mod limit;
#[path = "../../src/outcome.rs"]
pub mod outcome;
