//! The network, from a job's own thread: a runtime for as long as the job asks, ended at once when it is told to stop.

mod options;
mod retries;
#[cfg(test)]
mod tests;
mod trouble;

use std::{fs, future::Future, pin::pin, time::Duration};

use futures::future::{Either, select};
use lathe_protocol::{ErrorCode, ErrorInfo};
use reqwest::{Certificate, Client};

pub use options::NetOptions;
pub(crate) use retries::{Retries, patiently};
pub(crate) use trouble::{Trouble, of_request};

use crate::{
    error::{Result, io_error},
    job::Job,
};

/// How often a job looks whether it is to stop.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Waits for `work` on this thread, and calls `each` several times a second. What is left of the work when the job is
/// told to stop is dropped.
pub(crate) fn block_on<T>(
    job: &Job,
    each: &dyn Fn() -> Result<()>,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().thread_name("net").build().map_err(
            |error| ErrorInfo::new(ErrorCode::Internal, format!("The network cannot be used: {error}")),
        )?;
    let watch = async {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if let Err(error) = job.check_stop().and_then(|()| each()) {
                return error;
            }
        }
    };
    let outcome = runtime.block_on(async {
        match select(pin!(work), pin!(watch)).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right((error, _)) => Err(error),
        }
    });
    // A name that is still being looked up is waited for by nobody.
    runtime.shutdown_background();
    outcome
}

/// Trusts what the system does (`SSL_CERT_FILE` too) and the certificates of `ca_bundles`; goes through the proxy that the
/// environment names.
pub(crate) fn client(options: &NetOptions) -> Result<Client> {
    let mut certificates = Vec::new();
    for path in &options.ca_bundles {
        let pem = fs::read(path).map_err(io_error("read the certificates", path))?;
        let read = Certificate::from_pem_bundle(&pem).map_err(|error| {
            ErrorInfo::new(
                ErrorCode::Network,
                format!("Not certificates in PEM: {error}: {}", path.display()),
            )
            .hint("REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE names the file")
        })?;
        certificates.extend(read);
    }
    Client::builder()
        .user_agent(concat!("lathe/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(options.stall)
        .read_timeout(options.stall)
        .tls_certs_merge(certificates)
        .build()
        .map_err(|error| {
            let cause =
                std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            let paths: Vec<String> =
                options.ca_bundles.iter().map(|path| path.display().to_string()).collect();
            ErrorInfo::new(
                ErrorCode::Network,
                format!("The network cannot be used: {cause}; with certificates of {}", paths.join(", ")),
            )
            .hint("REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE name files of certificates in PEM")
        })
}
