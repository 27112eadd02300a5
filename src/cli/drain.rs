//! `amphora drain`: a node of a cluster gives its shards away, by hand.

use std::io::{self, Write};

use clap::Args;

use super::{CliError, ConfigArgs, ExitCode};
use crate::broadcast::ProblemKind;
use crate::control::{Client, ClientError, ClusterCommand, ClusterReport};
use crate::node::{NodeError, control_path};

#[derive(Debug, Args)]
#[command(
    after_help = "A stop (SIGTERM) does the same first: this is for work on a machine while the node goes on
serving its links. It is forgotten when the node stops.

Examples:
  amphora drain --config /etc/amphora/amphora.toml
      returns when the node has no shards, or with 1 if nobody can take them
  amphora drain --cancel"
)]
pub struct DrainArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Take shards again
    #[arg(long)]
    cancel: bool,
}

/// Why a node could not be drained.
#[derive(Debug, thiserror::Error)]
pub enum DrainError {
    /// There is no socket.
    #[error("node.control is \"\": this node takes no commands")]
    Off,
    /// The database's URL names no file.
    #[error(transparent)]
    Path(NodeError),
    /// The node can't be asked, or can't do it.
    #[error(transparent)]
    Node(#[from] ClientError),
    /// There is nobody to give shards to.
    #[error("{0} shards are left: no other node of the cluster can take them")]
    Left(usize),
}

impl DrainError {
    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            DrainError::Off | DrainError::Path(_) => ExitCode::Config,
            DrainError::Node(ClientError::Problem(problem)) => match problem.kind {
                ProblemKind::Unavailable => ExitCode::NoAnswer,
                _ => ExitCode::Failure,
            },
            DrainError::Node(_) => ExitCode::NoAnswer,
            DrainError::Left(_) => ExitCode::Failure,
        }
    }
}

/// Carries out what the arguments say.
pub fn carry_out(args: &DrainArgs) -> Result<(), CliError> {
    let loaded = super::load(args.config.config.as_deref(), args.config.store_url.as_deref())?;
    let path = control_path(&loaded.settings).map_err(DrainError::Path)?;
    let path = path.ok_or(DrainError::Off)?;
    let mut client = Client::connect(&path).map_err(DrainError::Node)?;
    let mut out = io::stdout().lock();
    if args.cancel {
        let report = client.ask_cluster(&ClusterCommand::Undrain {}).map_err(DrainError::Node)?;
        writeln!(out, "it takes shards again; {}", line(&report))?;
        return Ok(out.flush()?);
    }
    loop {
        let report = client.ask_cluster(&ClusterCommand::Drain {}).map_err(DrainError::Node)?;
        if report.drained && report.shards > 0 {
            return Err(DrainError::Left(report.shards).into());
        }
        let done = if report.drained { "drained" } else { "draining" };
        writeln!(out, "{done}; {}", line(&report))?;
        out.flush()?;
        if report.drained {
            return Ok(());
        }
    }
}

fn line(report: &ClusterReport) -> String {
    let ClusterReport { cluster, members, shards, .. } = report;
    format!("{shards} shards here; nodes of '{cluster}': {}", members.join(", "))
}
