//! Runs, the library on disk, hardware, and the supervision of workers. No tensor in sight.
//!
//! [`Host`] is the in-process [`EngineLink`]: commands in, events out, the work on threads of its own. Every job ends
//! with exactly one `Done` or `Failed`.

mod adapters;
mod browse;
mod cache;
mod chats;
pub mod config;
mod cuda;
mod db;
mod devices;
mod doctor;
mod download;
mod downloads;
mod error;
mod files;
mod gpus;
mod hardware;
mod host;
mod hub;
mod job;
mod models;
mod net;
mod paths;
mod probe;
mod runs;
mod s3;
mod samples;
mod settings;
#[cfg(test)]
mod testing;
mod token;
mod token_cache;
mod units;
mod viewers;
mod worker;

pub use error::Result;
pub(crate) use host::Shared;
pub use host::{Host, HostOptions};
pub use net::NetOptions;
pub use paths::Paths;
pub use runs::recovery_hint;
pub use s3::S3Options;
pub use samples::write_samples;
pub use viewers::{Sink, ViewerId, Viewers};
