//! Metrics for Prometheus, computed when they are asked for.
//!
//! ```text
//! beta9_pool_ready{pool,asked,used}         1 when the pool has a runtime that works, else 0
//! beta9_pool_fell_back{pool,asked,used}     1 when it is not the one that was asked for: isolation is not what was meant
//! beta9_containers{runtime,status}          containers by runtime and state
//! beta9_container_network_received_bytes_total{container}   what a container that is on the bridge has received,
//! beta9_container_network_sent_bytes_total{container}       and sent
//! beta9_firecracker_…_total{container}      what Firecracker has counted of a VM that runs, once a minute
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use beta9_microvm::EngineCounters;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::error::{Error, Result, chain};
use crate::service::Worker;

/// The exposition format that `encode` writes (OpenMetrics 1.0).
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
    asked: String,
    used: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ContainerLabels {
    runtime: String,
    status: String,
}

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OneContainer {
    container: String,
}

/// One of Firecracker's counters: its name, what it counts, and where it is.
type EngineCounter = (&'static str, &'static str, fn(&EngineCounters) -> u64);

const ENGINE_COUNTERS: [EngineCounter; 7] = [
    ("firecracker_disk_read_bytes", "Bytes that the guest read from its disks", |c| c.disk_read_bytes),
    ("firecracker_disk_written_bytes", "Bytes that the guest wrote to its disks", |c| c.disk_written_bytes),
    ("firecracker_disk_throttled", "Times that a disk waited for its limit", |c| c.disk_throttled),
    ("firecracker_vsock_bytes", "Bytes between guest and host by vsock", |c| c.vsock_bytes),
    ("firecracker_seccomp_faults", "System calls that the engine's filter caught", |c| c.seccomp_faults),
    ("firecracker_vcpu_failures", "Failures of virtual processors", |c| c.vcpu_failures),
    ("firecracker_lost_log_lines", "Lines of the log that found no room", |c| c.lost_log_lines),
];

fn add_engine_counters(registry: &mut Registry, counted: &[(String, EngineCounters)]) {
    for (name, help, number) in ENGINE_COUNTERS {
        let family = Family::<OneContainer, Counter>::default();
        registry.register(name, help, family.clone());
        for (container, counters) in counted {
            let labels = OneContainer { container: container.clone() };
            family.get_or_create(&labels).inc_by(number(counters));
        }
    }
}

/// Serves `GET /metrics` on `address` until the process ends.
pub(crate) async fn serve(address: SocketAddr, worker: Arc<Worker>) -> Result<()> {
    let failed = |e| Error::internal(format!("listen on {address} for metrics"), e);
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let scrape = move || {
        let worker = Arc::clone(&worker);
        async move {
            match render(&worker).await {
                Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, chain(&error)).into_response(),
            }
        }
    };
    tracing::info!(%address, "metrics are served");
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/metrics", get(scrape))).await });
    Ok(())
}

async fn render(worker: &Worker) -> Result<String> {
    let mut registry = Registry::with_prefix("beta9");
    let ready = Family::<PoolLabels, Gauge>::default();
    let fell_back = Family::<PoolLabels, Gauge>::default();
    let containers = Family::<ContainerLabels, Gauge>::default();
    registry.register("pool_ready", "Whether the pool has a runtime that works", ready.clone());
    registry.register(
        "pool_fell_back",
        "Whether it is not the runtime that was asked for",
        fell_back.clone(),
    );
    registry.register("containers", "Containers by runtime and state", containers.clone());
    for pool in worker.pools().decided() {
        let labels = PoolLabels { pool: pool.name, asked: pool.runtime_asked, used: pool.runtime };
        ready.get_or_create(&labels).set(i64::from(pool.ready));
        fell_back.get_or_create(&labels).set(i64::from(pool.fell_back));
    }
    for (runtime, status) in worker.tally().await? {
        containers.get_or_create(&ContainerLabels { runtime, status }).inc();
    }
    let received = Family::<OneContainer, Counter>::default();
    let sent = Family::<OneContainer, Counter>::default();
    registry.register(
        "container_network_received_bytes",
        "What a container on the bridge has received",
        received.clone(),
    );
    registry.register(
        "container_network_sent_bytes",
        "What a container on the bridge has sent",
        sent.clone(),
    );
    for traffic in worker.traffic().await? {
        let labels = OneContainer { container: traffic.container };
        received.get_or_create(&labels).inc_by(traffic.received);
        sent.get_or_create(&labels).inc_by(traffic.sent);
    }
    add_engine_counters(&mut registry, &worker.engine_counters().await?);
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|e| Error::internal("write metrics", e))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_counters_have_a_line_for_each_vm() {
        let mut registry = Registry::with_prefix("beta9");
        let counters = EngineCounters { disk_read_bytes: 7, disk_throttled: 3, ..EngineCounters::default() };
        add_engine_counters(&mut registry, &[("c1".to_owned(), counters)]);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"beta9_firecracker_disk_read_bytes_total{container="c1"} 7"#,
            r#"beta9_firecracker_disk_throttled_total{container="c1"} 3"#,
            r#"beta9_firecracker_vcpu_failures_total{container="c1"} 0"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
