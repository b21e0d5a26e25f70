//! Metrics for Prometheus, computed when they are asked for.
//!
//! ```text
//! beta9_pool_ready{pool,asked,used}         1 when the pool has a runtime that works, else 0
//! beta9_pool_fell_back{pool,asked,used}     1 when it is not the one that was asked for: isolation is not what was meant
//! beta9_containers{runtime,status}          containers by runtime and state
//! beta9_container_network_received_bytes_total{id,runtime}   what a container that is on the bridge has received,
//! beta9_container_network_sent_bytes_total{id,runtime}       and sent
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
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
struct TrafficLabels {
    id: String,
    runtime: String,
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
    let received = Family::<TrafficLabels, Counter>::default();
    let sent = Family::<TrafficLabels, Counter>::default();
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
        let labels = TrafficLabels { id: traffic.id, runtime: traffic.runtime };
        received.get_or_create(&labels).inc_by(traffic.received);
        sent.get_or_create(&labels).inc_by(traffic.sent);
    }
    let mut text = String::new();
    encode(&mut text, &registry).map_err(|e| Error::internal("write metrics", e))?;
    Ok(text)
}
