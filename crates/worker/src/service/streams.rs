//! The streams of the API: a client's messages to a container's stdin, and its output to the client.

use std::sync::Arc;

use beta9_supervisor::{AttachFrom, LogEntry, Piece, Record, SessionInput, SessionOutput, Stream};
use beta9_types::{ExecId, Exit, TerminalSize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::api;
use crate::error::{Error, ErrorKind};
use crate::service::Worker;
use crate::service::attach::{Event, Output, WithStdin};
use crate::service::exec::{ExecStreams, Executed};
use crate::service::grpc::{BoxStream, PENDING};
use crate::service::logs::Query;
use crate::service::view;
use crate::spec::ExecChoices;

/// What a client says on the streams of a process.
enum Said {
    Stdin(Vec<u8>),
    /// End-of-file, also by the end of the messages.
    End,
    Detach,
    /// The client is gone.
    Nothing,
    /// It opened again what is open.
    Open,
}

trait Says {
    fn said(self) -> Said;
}

impl Says for api::AttachRequest {
    fn said(self) -> Said {
        use api::attach_request::Message;
        match self.message {
            Some(Message::Stdin(bytes)) => Said::Stdin(bytes),
            Some(Message::StdinClosed(_)) => Said::End,
            Some(Message::Detach(_)) => Said::Detach,
            Some(Message::Open(_)) => Said::Open,
            None => Said::Nothing,
        }
    }
}

impl Says for api::ExecRequest {
    fn said(self) -> Said {
        use api::exec_request::Message;
        match self.message {
            Some(Message::Stdin(bytes)) => Said::Stdin(bytes),
            Some(Message::StdinClosed(_)) => Said::End,
            Some(Message::Detach(_)) => Said::Detach,
            Some(Message::Open(_)) => Said::Open,
            None => Said::Nothing,
        }
    }
}

/// Why a client's messages are not read any further.
enum Fed {
    /// It has left and wants no more.
    Detached,
    /// It broke the rules.
    Refused(Error),
}

/// Moves a client's messages to the supervisor. Returns when the client has left; its mere end is its connection's, which
/// the other direction sees.
async fn feed<M: Says>(mut messages: Streaming<M>, input: &mut Option<SessionInput>) -> Fed {
    loop {
        let said = match messages.message().await {
            Ok(Some(message)) => message.said(),
            Ok(None) => Said::End,
            Err(_) => Said::Nothing,
        };
        match (said, input.as_mut()) {
            (Said::Detach, session) => {
                if let Some(session) = session {
                    let _ = session.detach().await;
                }
                *input = None;
                return Fed::Detached;
            }
            (Said::Open, _) => {
                return Fed::Refused(Error::new(ErrorKind::Invalid, "streams are opened once"));
            }
            (Said::Stdin(bytes), Some(session)) => {
                if session.send(&bytes).await.is_err() {
                    *input = None;
                }
            }
            (Said::Stdin(_), None) => {}
            (Said::End, session) => {
                if let Some(session) = session {
                    let _ = session.end().await;
                }
                // A client may still leave.
                if !matches!(messages.message().await, Ok(Some(_))) {
                    return std::future::pending().await;
                }
            }
            (Said::Nothing, _) => return std::future::pending().await,
        }
    }
}

type Answers<T> = mpsc::Sender<Result<T, Status>>;

/// Runs until the output is over, the client leaves, or its connection ends.
async fn serve<T>(
    answers: Answers<T>,
    feeding: impl Future<Output = Fed>,
    sending: impl Future<Output = Result<(), Error>>,
) {
    let failed = tokio::select! {
        sent = sending => sent.err(),
        fed = feeding => match fed {
            Fed::Detached => None,
            Fed::Refused(error) => Some(error),
        },
        () = answers.closed() => None,
    };
    if let Some(error) = failed {
        let _ = answers.send(Err(error.into())).await;
    }
}

/// Attaches a client to a container's main process.
pub(super) async fn attach(
    worker: &Worker,
    mut messages: Streaming<api::AttachRequest>,
) -> Result<BoxStream<api::AttachResponse>, Status> {
    use api::attach_request::Message;
    let Some(Message::Open(open)) = messages.message().await?.and_then(|m| m.message) else {
        return Err(Error::new(ErrorKind::Invalid, "the first message of an attach must open it").into());
    };
    let from = match open.from() {
        api::AttachFrom::Start => AttachFrom::Start,
        api::AttachFrom::Now => AttachFrom::Now,
    };
    let with_stdin = if open.no_stdin { WithStdin::No } else { WithStdin::Yes };
    let (output, input) = worker.attach(&open.container, from, with_stdin).await?;
    let (answers, receiver) = mpsc::channel(PENDING);
    let to = answers.clone();
    tokio::spawn(async move {
        let mut input = input;
        serve(answers, feed(messages, &mut input), send_output(output, to)).await;
    });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

async fn send_output(mut output: Output, to: Answers<api::AttachResponse>) -> Result<(), Error> {
    use api::attach_response::Message;
    while let Some(event) = output.next().await? {
        let messages = match event {
            Event::Entries(entries) => merge(entries),
            Event::Exit(exit) => {
                output.see_removal().await;
                vec![Message::Exit((&exit).into())]
            }
        };
        for message in messages {
            if to.send(Ok(api::AttachResponse { message: Some(message) })).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Joins neighbouring pieces of one stream, so that many short lines make few messages.
fn merge(entries: Vec<LogEntry>) -> Vec<api::attach_response::Message> {
    use api::attach_response::Message;
    let mut merged: Vec<Message> = Vec::new();
    for LogEntry { stream, content, .. } in entries {
        match (merged.last_mut(), stream) {
            (Some(Message::Stdout(kept)), Stream::Stdout) => kept.extend(content),
            (Some(Message::Stderr(kept)), Stream::Stderr) => kept.extend(content),
            (_, Stream::Stdout) => merged.push(Message::Stdout(content)),
            (_, Stream::Stderr) => merged.push(Message::Stderr(content)),
        }
    }
    merged
}

/// Starts another process for a client.
pub(super) async fn exec(
    worker: Arc<Worker>,
    mut messages: Streaming<api::ExecRequest>,
) -> Result<BoxStream<api::ExecResponse>, Status> {
    use api::exec_request::Message as Ask;
    use api::exec_response::Message;
    let Some(Ask::Open(open)) = messages.message().await?.and_then(|m| m.message) else {
        return Err(Error::new(ErrorKind::Invalid, "the first message of an exec must open it").into());
    };
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let terminal = terminal_size(open.terminal)?;
    let choices = ExecChoices {
        args: open.command,
        env: open.env,
        cwd: text(open.cwd),
        user: text(open.user).map(|user| user.parse()).transpose().map_err(Error::from)?,
        has_terminal: terminal.is_some(),
    };
    let streams = ExecStreams { stdin: open.stdin, terminal, detach: open.detach };
    let is_detached = open.detach;
    let executed = worker.exec(&open.container, choices, streams).await?;
    let (answers, receiver) = mpsc::channel(PENDING);
    let answer = |message| Ok(api::ExecResponse { message: Some(message) });
    let first = match &executed {
        Ok(executed) => Message::Started(api::ExecStarted { exec: executed.id.to_string() }),
        Err(failure) => Message::Exit((&Exit::start_failed(failure.code, failure.message.clone())).into()),
    };
    let _ = answers.send(answer(first)).await;
    if let Ok(executed) = executed {
        if !is_detached {
            let to = answers.clone();
            tokio::spawn(async move {
                let Executed { input, mut output, id, record } = executed;
                let (mut input, mut exit) = (Some(input), None);
                serve(answers, feed(messages, &mut input), send_pieces(&mut output, to, &mut exit)).await;
                if let Some(input) = &mut input {
                    // A client that is gone sends nothing more, and its process learns of it.
                    let _ = input.end().await;
                }
                see_the_end(&worker, &record, &id, output, exit).await;
            });
        } else if worker.has_events() {
            tokio::spawn(async move {
                let Executed { mut input, output, id, record } = executed;
                let _ = input.end().await;
                see_the_end(&worker, &record, &id, output, None).await;
            });
        }
    }
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Tells of the end of a process, which it waits for where nobody has seen it yet. Without anybody to tell it does not.
async fn see_the_end(
    worker: &Worker,
    record: &Record,
    id: &ExecId,
    mut output: SessionOutput,
    mut exit: Option<Exit>,
) {
    while worker.has_events() && exit.is_none() {
        match output.next().await {
            Ok(Some(Piece::Exit(end))) => exit = Some(end),
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return,
        }
    }
    if let Some(exit) = exit {
        worker.tell(record, "exec_die", &[("exec", id.to_string()), ("exit_code", exit.code.to_string())]);
    }
}

async fn send_pieces(
    output: &mut SessionOutput,
    to: Answers<api::ExecResponse>,
    end: &mut Option<Exit>,
) -> Result<(), Error> {
    use api::exec_response::Message;
    loop {
        let (message, is_last) = match output.next().await? {
            Some(Piece::Stdout(bytes)) => (Message::Stdout(bytes.into()), false),
            Some(Piece::Stderr(bytes)) => (Message::Stderr(bytes.into()), false),
            Some(Piece::Exit(exit)) => (Message::Exit((&*end.insert(exit)).into()), true),
            _ => {
                let text = "the container's supervisor is gone, and with it the end of the process";
                return Err(Error::new(ErrorKind::Internal, text));
            }
        };
        if to.send(Ok(api::ExecResponse { message: Some(message) })).await.is_err() || is_last {
            return Ok(());
        }
    }
}

/// Sends a part of a container's log.
pub(super) async fn logs(
    worker: &Worker,
    request: api::LogsRequest,
) -> Result<BoxStream<api::LogsResponse>, Status> {
    let api::LogsRequest { container, follow, since_unix_ns, until_unix_ns, tail } = request;
    let query = Query { follow, since: since_unix_ns, until: until_unix_ns, tail };
    let mut log = worker.log(&container, query).await?;
    let (answers, receiver) = mpsc::channel(PENDING);
    let entry = |entry: LogEntry| api::LogEntry {
        time: entry.time,
        stream: view::stream(entry.stream).into(),
        content: entry.content,
    };
    let to = answers.clone();
    let sending = async move {
        while let Some(entries) = log.next().await? {
            let entries = entries.into_iter().map(entry).collect();
            if to.send(Ok(api::LogsResponse { entries })).await.is_err() {
                break;
            }
        }
        Ok(())
    };
    tokio::spawn(async move { serve(answers, std::future::pending(), sending).await });
    Ok(Box::pin(ReceiverStream::new(receiver)))
}

/// Checks a size from a client.
pub(super) fn terminal_size(size: Option<api::TerminalSize>) -> Result<Option<TerminalSize>, Error> {
    let checked = |count: u32| {
        let text = || format!("a terminal cannot have {count} rows or columns");
        u16::try_from(count).map_err(|_| Error::new(ErrorKind::Invalid, text()))
    };
    size.map(|size| Ok(TerminalSize { rows: checked(size.rows)?, columns: checked(size.columns)? }))
        .transpose()
}
