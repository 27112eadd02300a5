//! The command `amphora`: arguments in, exit code out.

mod broadcast;
mod drain;
mod progress;
mod recipients;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};

use crate::cluster::NatsError;
use crate::config::{self, ConfigError, Loaded};
use crate::node::{self, NodeError};
use crate::store::Moved;
use crate::telemetry::{self, TelemetryError};

/// How the process ends. Where `sysexits.h` has a code, it is that one; a supervisor can
/// tell what a restart may heal from what it cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Done, or stopped on request.
    Ok = 0,
    /// Something failed while running.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// A list or a message that was given is wrong.
    Data = 65,
    /// A file that was named can't be read.
    NoInput = 66,
    /// The store can't be opened.
    StoreUnavailable = 69,
    /// The address of `[http]`, or the control socket, can't be listened on.
    CannotListen = 71,
    /// No node answers, or its server does not; try again.
    NoAnswer = 75,
    /// The cluster, or NATS, does not let this node in.
    Refused = 77,
    /// The configuration is wrong; a restart does not help.
    Config = 78,
    /// Another process has taken the database over. A restart would take it back.
    Superseded = 79,
    /// The cluster found this node silent. After a restart it joins anew.
    Fenced = 80,
}

impl ExitCode {
    const ALL: [ExitCode; 12] = [
        ExitCode::Ok,
        ExitCode::Failure,
        ExitCode::Usage,
        ExitCode::Data,
        ExitCode::NoInput,
        ExitCode::StoreUnavailable,
        ExitCode::CannotListen,
        ExitCode::NoAnswer,
        ExitCode::Refused,
        ExitCode::Config,
        ExitCode::Superseded,
        ExitCode::Fenced,
    ];

    fn meaning(self) -> &'static str {
        match self {
            ExitCode::Ok => "done, or stopped on request",
            ExitCode::Failure => "something failed while running",
            ExitCode::Usage => "the command line is wrong",
            ExitCode::Data => "a list or a message that was given is wrong",
            ExitCode::NoInput => "a file that was named can't be read",
            ExitCode::StoreUnavailable => "the store can't be opened",
            ExitCode::CannotListen => "[http] or the control socket can't be listened on",
            ExitCode::NoAnswer => "no node answers, or its server does not; try again",
            ExitCode::Config => "the configuration is wrong; a restart does not help",
            ExitCode::Refused => "the cluster, or NATS, does not let this node in",
            ExitCode::Superseded => "another process has taken the database over; do not restart",
            ExitCode::Fenced => "the cluster found this node silent; after a restart it joins anew",
        }
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        std::process::ExitCode::from(code as u8)
    }
}

impl From<&NodeError> for ExitCode {
    fn from(error: &NodeError) -> Self {
        match error {
            NodeError::Store(_) | NodeError::Away(..) => ExitCode::StoreUnavailable,
            NodeError::Http(_) | NodeError::Control(_) => ExitCode::CannotListen,
            NodeError::Superseded => ExitCode::Superseded,
            NodeError::Fenced => ExitCode::Fenced,
            NodeError::Nats(NatsError::Settings(_)) => ExitCode::Config,
            NodeError::Nats(NatsError::Refused(_) | NatsError::Tls(_)) => ExitCode::Refused,
            NodeError::Refused(..) => ExitCode::Refused,
            _ => ExitCode::Failure,
        }
    }
}

/// Advanced Message Processing (XEP-0079) and offline messages, beside XMPP servers
#[derive(Debug, Parser)]
#[command(name = "amphora", version, after_help = after_help(), disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until it is told to stop (SIGTERM or SIGINT)
    Run(ConfigArgs),
    /// Check the configuration and print what is in force, without secrets
    CheckConfig(ConfigArgs),
    /// Bring the store's tables up to date, and stop; `run` does so too
    Migrate(ConfigArgs),
    /// Bring stored messages into the databases that the configuration gives their shards to
    Move(MoveArgs),
    /// Send a message to all users of a host, or to a list of them, once each
    Broadcast(broadcast::BroadcastArgs),
    /// Give the shards of a node of a cluster to the others, before it is stopped or worked on
    Drain(drain::DrainArgs),
}

#[derive(Debug, Args)]
struct ConfigArgs {
    /// The configuration file; without it ./amphora.toml or /etc/amphora/amphora.toml, if
    /// there, else the built-in defaults. AMPHORA__SECTION__KEY in the environment comes
    /// over it
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The database, over store.url and AMPHORA__STORE__URL. Other users of this machine can
    /// see a command line: a password belongs in a file, store.password_file
    #[arg(long, value_name = "URL", visible_alias = "amp-repo-uri")]
    store_url: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  amphora move --config /etc/amphora/amphora.toml
      after [[store.part]] or processor.shards have changed
  amphora move --from old.toml
      also from the databases that old.toml names, and that are named no more

No node may run on any of the databases. It can be cut short, and run again with the same
arguments. docs/store.md says when it is needed.")]
struct MoveArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// The configuration file of before. The environment says nothing about its [store] and
    /// [processor]
    #[arg(long, value_name = "OLD")]
    from: Option<PathBuf>,
}

fn after_help() -> String {
    let mut help = "Examples:
  amphora run
      a node with ./amphora.toml, /etc/amphora/amphora.toml or the defaults
  amphora run --config /etc/amphora/amphora.toml
  AMPHORA__STORE__URL=sqlite:///tmp/try.db amphora run
      one setting from the environment
  amphora check-config --config new.toml && systemctl restart amphora

Exit codes:"
        .to_owned();
    for code in ExitCode::ALL {
        // Writing to a string cannot fail.
        let _ = write!(help, "\n  {:>2}  {}", code as u8, code.meaning());
    }
    help
}

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error(transparent)]
    Broadcast(#[from] broadcast::BroadcastError),
    #[error(transparent)]
    Drain(#[from] drain::DrainError),
    #[error("cannot write the answer")]
    Output(#[from] io::Error),
}

impl CliError {
    fn exit_code(&self) -> ExitCode {
        match self {
            CliError::Config(_) | CliError::Telemetry(TelemetryError::Filter { .. }) => {
                ExitCode::Config
            }
            CliError::Telemetry(_) | CliError::Output(_) => ExitCode::Failure,
            CliError::Broadcast(error) => error.exit_code(),
            CliError::Drain(error) => error.exit_code(),
            CliError::Node(error) => error.into(),
        }
    }
}

/// The whole program: reads arguments and environment, does what they say, and tells on
/// standard error why it could not.
pub fn main() -> std::process::ExitCode {
    let code = match Cli::try_parse() {
        Ok(cli) => match carry_out(cli.command) {
            Ok(()) => ExitCode::Ok,
            Err(error) => {
                tell(&with_causes(&error));
                error.exit_code()
            }
        },
        Err(told) => {
            let printed = told.print();
            match (told.use_stderr(), printed) {
                (true, _) => ExitCode::Usage,
                (false, Ok(())) => ExitCode::Ok,
                (false, Err(_)) => ExitCode::Failure,
            }
        }
    };
    code.into()
}

fn carry_out(command: Command) -> Result<(), CliError> {
    match command {
        Command::Run(args) => {
            let Loaded { settings, .. } = start(&args)?;
            Ok(node::run(settings)?)
        }
        Command::Migrate(args) => {
            let Loaded { settings, .. } = start(&args)?;
            Ok(node::migrate(&settings)?)
        }
        Command::Move(args) => move_messages(&args),
        Command::Broadcast(args) => broadcast::carry_out(args),
        Command::Drain(args) => drain::carry_out(&args),
        Command::CheckConfig(args) => {
            let Loaded { settings, file, warnings } =
                load(args.config.as_deref(), args.store_url.as_deref())?;
            for warning in warnings {
                tell(&format!("warning: {warning}"));
            }
            let mut out = io::stdout().lock();
            write!(out, "# configuration file: {file}\n\n{settings}")?;
            Ok(out.flush()?)
        }
    }
}

fn move_messages(args: &MoveArgs) -> Result<(), CliError> {
    let Loaded { settings, .. } = start(&args.config)?;
    let of_store = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("AMPHORA__STORE__") || name.starts_with("AMPHORA__PROCESSOR__")
    };
    let environment = std::env::vars_os().filter(|(name, _)| !of_store(name));
    let old = args.from.as_deref().map(|old| config::load(Some(old), environment)).transpose()?;
    let watched = progress::Moving::new();
    let moved = node::move_messages(&settings, old.as_ref().map(|old| &old.settings), |so_far| {
        watched.show(so_far.messages, so_far.users);
    });
    watched.end();
    let Moved { messages, users, broadcasts, unreadable } = moved?;
    if unreadable > 0 {
        tell(&format!(
            "warning: {unreadable} messages can't be read and stay where they were; the log above names them"
        ));
    }
    let mut out = io::stdout().lock();
    writeln!(out, "moved {messages} messages of {users} users, and {broadcasts} broadcasts")?;
    Ok(out.flush()?)
}

/// A line on standard error; if that is closed, there is nobody to tell.
fn tell(line: &str) {
    let _ = writeln!(io::stderr(), "amphora: {line}");
}

fn load(path: Option<&Path>, store_url: Option<&str>) -> Result<Loaded, ConfigError> {
    let url = store_url.map(|url| ("AMPHORA__STORE__URL".into(), url.into()));
    config::load(path, std::env::vars_os().chain(url))
}

/// Loads the settings, starts the log with them, and says in it where they came from.
fn start(args: &ConfigArgs) -> Result<Loaded, CliError> {
    let loaded = load(args.config.as_deref(), args.store_url.as_deref())?;
    let rust_log = std::env::var_os("RUST_LOG").map(OsString::into_string);
    // What is no text is no filter either; the error names it.
    let rust_log =
        rust_log.map(|value| value.unwrap_or_else(|bytes| bytes.to_string_lossy().into_owned()));
    telemetry::start_log(&loaded.settings.log, rust_log.as_deref())?;
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, node = loaded.settings.node.name, configuration = %loaded.file, "amphora starts");
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    Ok(loaded)
}

/// An error and its causes in one line; a cause that the line says already is left out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            // Writing to a string cannot fail.
            let _ = write!(line, ": {text}");
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn node_errors_have_their_codes() {
        let listen = NodeError::Http(io::Error::other("in use"));
        assert_eq!(ExitCode::from(&listen), ExitCode::CannotListen);
        assert_eq!(ExitCode::from(&NodeError::Other("x".to_owned())), ExitCode::Failure);
    }

    #[test]
    fn causes_are_told_once() {
        let error = ConfigError::Unreadable { path: "a".into(), source: io::Error::other("gone") };
        let error = CliError::from(error);
        assert_eq!(with_causes(&error), "cannot read the configuration file 'a': gone");
    }
}
