//! Tidegate holds back the tide.
pub mod conn;
pub mod io;
pub mod lifecycle;
pub mod limit;
pub mod metrics;
pub mod outcome;
pub mod worker;
