//! From records to API messages.

use beta9_supervisor::Stream;
use beta9_types::Exit;

use crate::api;
use crate::service::lifecycle::Described;

impl From<Described> for api::Container {
    fn from(described: Described) -> Self {
        let Described { record, state, network } = described;
        let request = record.request;
        let pid = state.state.pid().unwrap_or(0);
        let env_name = |entry: &String| entry.split('=').next().unwrap_or_default().to_owned();
        Self {
            id: record.id.to_string(),
            name: request.name.map(String::from).unwrap_or_default(),
            image: request.image.to_string(),
            image_digest: record.image_digest.to_string(),
            args: record.args,
            pool: record.pool,
            runtime_asked: record.runtime_asked.to_string(),
            runtime: record.runtime.to_string(),
            fallback_reason: record.fallback_reason.unwrap_or_default(),
            status: state.state.status().to_owned(),
            pid,
            exit: state.state.exit().map(api::Exit::from),
            created_us: record.created_us,
            timeline: std::iter::once(api::Phase { name: "requested".to_owned(), at_us: record.created_us })
                .chain(
                    state
                        .marks
                        .iter()
                        .map(|mark| api::Phase { name: mark.phase.as_str().to_owned(), at_us: mark.at_us }),
                )
                .collect(),
            mounts: request.mounts.iter().map(api::Mount::from).collect(),
            memory_bytes: request.memory.map_or(0, |memory| memory.get()),
            env_names: request.env.iter().map(env_name).collect(),
            labels: record.labels.into_iter().collect(),
            restart: request.options.life.restart.to_string(),
            restart_count: state.restarts,
            stop_signal: record.stop_signal.get(),
            stop_timeout: record.stop_timeout,
            terminal: request.terminal.is_some(),
            stdin: request.stdin,
            written_bytes: None,
            image_bytes: None,
            network: record.network.mode.to_string(),
            network_end: network,
        }
    }
}

impl From<&Exit> for api::Exit {
    fn from(exit: &Exit) -> Self {
        Self {
            code: u32::from(exit.code),
            reason: exit.reason.as_str().to_owned(),
            message: exit.message.clone().unwrap_or_default(),
        }
    }
}

pub(super) fn stream(stream: Stream) -> api::Stream {
    match stream {
        Stream::Stdout => api::Stream::Stdout,
        Stream::Stderr => api::Stream::Stderr,
    }
}
