//! `pull` and `push`, and what other commands need of them.

use std::process::ExitCode;

use beta9_registry::{Credentials, DockerConfig};
use beta9_types::{ImageReference, ParseError, Platform, PullPolicy, RegistryHost};
use clap::Args;

use crate::api;
use crate::cli::transfer::Layers;
use crate::cli::{Failure, Outcome};
use crate::client::Client;
use crate::terminal;

const PULL_EXAMPLES: &str = "\
Examples:
  beta9-worker pull debian
  beta9-worker pull registry.example:5000/team/app:1.2
  beta9-worker pull --platform linux/arm64 python:3.12

Credentials are those that `beta9-worker login` or `docker login` stored.";

#[derive(Args)]
#[command(after_help = PULL_EXAMPLES)]
pub(super) struct PullArgs {
    /// Take the image for this machine: os/architecture[/variant].
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<Platform>,
    /// Speak HTTP without TLS, to whoever listens. Registries on loopback need no flag.
    #[arg(long)]
    plain_http: bool,
    /// Print nothing but the image's digest.
    #[arg(short, long)]
    quiet: bool,
    /// The image: [HOST[:PORT]/]NAME[:TAG] or [HOST[:PORT]/]NAME@DIGEST; docker.io where there is no host.
    image: ImageReference,
}

#[derive(Args)]
pub(super) struct PushArgs {
    /// Speak HTTP without TLS, to whoever listens. Registries on loopback need no flag.
    #[arg(long)]
    plain_http: bool,
    /// Print nothing but the digest.
    #[arg(short, long)]
    quiet: bool,
    /// The image: a name or the beginning of a digest.
    image: String,
    /// Its name there; the same where absent.
    destination: Option<ImageReference>,
}

/// What a command takes that runs an image.
#[derive(Args, Debug, Clone)]
pub(super) struct ImageFlags {
    /// Pull the image first: always, when it is missing, or never.
    #[arg(long, value_name = "WHEN", default_value_t)]
    pub(super) pull: PullPolicy,
    /// Take the image for this machine: os/architecture[/variant].
    #[arg(long, value_name = "PLATFORM")]
    pub(super) platform: Option<Platform>,
    /// Do not show the progress of a pull.
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// What a pull needs beside the image's name.
struct Ask<'a> {
    policy: PullPolicy,
    platform: Option<&'a Platform>,
    plain_http: bool,
    is_quiet: bool,
}

pub(super) async fn pull(client: &mut Client, args: PullArgs) -> Outcome {
    let ask = Ask {
        policy: PullPolicy::Always,
        platform: args.platform.as_ref(),
        plain_http: args.plain_http,
        is_quiet: args.quiet,
    };
    let image = fetch(client, &args.image, &ask).await?;
    if args.quiet {
        terminal::line(&image.digest)?;
    } else {
        terminal::line(&format!("{} {}", image.reference, image.digest))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Creates a container, its image pulled first if that is needed, with the progress shown.
pub(super) async fn create(
    client: &mut Client,
    mut request: api::CreateRequest,
    flags: &ImageFlags,
) -> Result<api::CreateResponse, Failure> {
    let reference: ImageReference =
        request.image.parse().map_err(|e: ParseError| Failure::new(e.to_string()))?;
    let ask = Ask {
        policy: flags.pull,
        platform: flags.platform.as_ref(),
        plain_http: false,
        is_quiet: flags.quiet,
    };
    request.pull = PullPolicy::Never.to_string();
    request.platform = text(flags.platform.as_ref());
    if flags.pull == PullPolicy::Always {
        fetch(client, &reference, &ask).await?;
    }
    match client.containers.create(request.clone()).await {
        // Most images are here, and are not asked for twice.
        Err(status) if flags.pull == PullPolicy::Missing && may_be_missing(&status) => {
            fetch(client, &reference, &ask).await?;
            Ok(client.containers.create(request).await?.into_inner())
        }
        done => Ok(done?.into_inner()),
    }
}

fn may_be_missing(status: &tonic::Status) -> bool {
    // Or it is here for another machine.
    matches!(status.code(), tonic::Code::NotFound | tonic::Code::FailedPrecondition)
        && status.message().starts_with("image ")
}

async fn fetch(
    client: &mut Client,
    reference: &ImageReference,
    ask: &Ask<'_>,
) -> Result<api::Image, Failure> {
    use api::pull_response::Message;
    let request = api::PullRequest {
        image: reference.to_string(),
        platform: text(ask.platform),
        pull: ask.policy.to_string(),
        plain_http: ask.plain_http.then_some(true),
        credentials: credentials(reference.host()).await?,
    };
    let mut answers = client.images.pull(request).await?.into_inner();
    let mut layers = (!ask.is_quiet).then(|| Layers::new("fetching"));
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Message::Progress(progress)) => {
                if let Some(layers) = &mut layers {
                    layers.see(&progress);
                }
            }
            Some(Message::Image(image)) => return Ok(image),
            None => {}
        }
    }
    Err(Failure::new("the worker closed the connection before the image was here"))
}

pub(super) async fn push(client: &mut Client, args: PushArgs) -> Outcome {
    use api::push_response::Message;
    let host = match (&args.destination, ImageReference::parse(&args.image)) {
        (Some(destination), _) => destination.host().to_owned(),
        (None, Ok(reference)) => reference.host().to_owned(),
        (None, Err(_)) => return Err(Failure::new(format!("say where {} is pushed to", args.image))),
    };
    let request = api::PushRequest {
        image: args.image,
        destination: args.destination.map_or_else(String::new, |name| name.to_string()),
        plain_http: args.plain_http.then_some(true),
        credentials: credentials(&host).await?,
    };
    let mut answers = client.images.push(request).await?.into_inner();
    let mut layers = (!args.quiet).then(|| Layers::new("sending"));
    while let Some(answer) = answers.message().await? {
        match answer.message {
            Some(Message::Progress(progress)) => {
                if let Some(layers) = &mut layers {
                    layers.see(&progress);
                }
            }
            Some(Message::Image(image)) if args.quiet => {
                terminal::line(&image.digest)?;
                return Ok(ExitCode::SUCCESS);
            }
            Some(Message::Image(image)) => {
                terminal::line(&format!("{} {}", image.reference, image.digest))?;
                return Ok(ExitCode::SUCCESS);
            }
            None => {}
        }
    }
    Err(Failure::new("the worker closed the connection before the image was there"))
}

fn text(platform: Option<&Platform>) -> String {
    platform.map_or_else(String::new, ToString::to_string)
}

/// What this user has stored for a registry.
async fn credentials(host: &str) -> Result<Option<api::RegistryCredentials>, Failure> {
    let host = RegistryHost::parse(host).map_err(|e| Failure::new(e.to_string()))?;
    let config = docker_config()?;
    let found = config.credentials(&host).await.map_err(|e| Failure::new(e.chain()))?;
    Ok(found.map(|found| message(&found)))
}

/// The user's own `config.json`.
pub(super) fn docker_config() -> Result<DockerConfig, Failure> {
    DockerConfig::load(|name| std::env::var_os(name)).map_err(|e| Failure::new(e.chain()))
}

/// Credentials as the worker takes them.
pub(super) fn message(credentials: &Credentials) -> api::RegistryCredentials {
    let mut message = api::RegistryCredentials::default();
    match credentials {
        Credentials::Password { username, password } => {
            username.clone_into(&mut message.username);
            password.reveal().clone_into(&mut message.password);
        }
        Credentials::IdentityToken(token) => token.reveal().clone_into(&mut message.identity_token),
    }
    message
}
