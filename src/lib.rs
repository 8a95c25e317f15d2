pub mod outcome;
pub mod limit;
