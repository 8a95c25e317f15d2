pub mod limit;
pub mod outcome;
