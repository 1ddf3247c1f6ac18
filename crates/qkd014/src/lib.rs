#![doc = include_str!("../README.md")]

pub mod bench;
pub mod cli;
mod client;
pub mod conformance;
mod credentials;
mod https;
mod wire;

pub use client::{Client, ClientError};
pub use credentials::{Credentials, CredentialsError};
pub use https::{KmeUrl, UrlError};
pub use kme::SecretBytes;
pub use wire::{DeliveredKey, KeyContainer, KeyRequest, KmeStatus};
