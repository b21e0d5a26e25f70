//! The API's messages and services, generated from `proto/`.

#![allow(missing_docs, unreachable_pub, reason = "generated; the .proto has the words")]
#![allow(clippy::all, reason = "generated")]

tonic::include_proto!("beta9.worker.v1");

/// Requests are logged when something is searched for; these must not be.
impl std::fmt::Debug for RegistryCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RegistryCredentials(redacted)")
    }
}
