//! The API's messages and services, generated from `proto/`.

#![allow(missing_docs, unreachable_pub, reason = "generated; the .proto has the words")]
#![allow(clippy::all, reason = "generated")]

tonic::include_proto!("beta9.worker.v1");
