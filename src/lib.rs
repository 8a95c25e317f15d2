//! Tidegate holds back the tide.
pub mod admin;
pub mod app;
pub mod cli;
pub mod client;
pub mod config;
pub mod conn;
pub mod demo;
pub mod doctor;
pub mod io;
pub mod lifecycle;
pub mod limit;
pub mod metrics;
pub mod outcome;
pub mod settings;
pub mod telemetry;
pub mod worker;
