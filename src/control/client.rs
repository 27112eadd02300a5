//! A command's side of the control socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::broadcast::{Command, Problem, Reply};

use super::drain::{ClusterCommand, ClusterReply, ClusterReport};
use super::protocol::{LINE, parse_reply, to_line};

/// How long the node may take to answer: longer than it lets a command take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no node answers on '{}': is one running, with this configuration, as this user? `amphora check-config` shows node.control and store.url, by which the socket is found", .path.display())]
    NoNode {
        /// Where it was looked for.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke.
    #[error("the node did not answer")]
    Broken(#[from] io::Error),
    /// What came is no reply.
    #[error("the node's answer can't be read: {0}")]
    Unreadable(String),
    /// The node can't do it.
    #[error("{}", .0.says)]
    Problem(Problem),
}

/// A connection to a node.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the node that listens at `path`.
    ///
    /// # Errors
    ///
    /// [`ClientError::NoNode`].
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path)
            .map_err(|source| ClientError::NoNode { path: path.to_owned(), source })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    /// Gives a command and waits for the reply, which is no problem.
    ///
    /// # Errors
    ///
    /// The connection breaks, or the node can't do it.
    pub fn ask(&mut self, command: &Command) -> Result<Reply, ClientError> {
        match self.exchange(command)? {
            Reply::Problem(problem) => Err(ClientError::Problem(problem)),
            reply => Ok(reply),
        }
    }

    /// The same for the cluster.
    ///
    /// # Errors
    ///
    /// The connection breaks, or the node can't do it.
    pub fn ask_cluster(&mut self, command: &ClusterCommand) -> Result<ClusterReport, ClientError> {
        match self.exchange(command)? {
            ClusterReply::Problem(problem) => Err(ClientError::Problem(problem)),
            ClusterReply::Cluster(report) => Ok(report),
        }
    }

    fn exchange<T: DeserializeOwned>(
        &mut self,
        command: &impl Serialize,
    ) -> Result<T, ClientError> {
        self.stream.get_mut().write_all(&to_line(command))?;
        let mut line = Vec::new();
        // A list of broadcasts is the longest reply, and far shorter.
        (&mut self.stream).take(LINE as u64).read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        parse_reply(&line).map_err(ClientError::Unreadable)
    }
}
