//! The node's side of the control socket.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::broadcast::{BroadcastHandle, Command, Problem, ProblemKind, Reply};
use crate::cluster::Cluster;

use super::drain;
use super::protocol::{LINE, parse_command, to_line};

/// Connections that are served at once. A further one waits.
const CONNECTIONS: usize = 16;

/// How long a connection may be silent, and how long it may take to read an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a command may take: more than a server may take to answer a node.
const COMMAND: Duration = Duration::from_secs(45);

/// Why the socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Another node listens there.
    #[error("another node listens on the control socket '{}': give this one its own node.control", .0.display())]
    InUse(PathBuf),
    /// Something else is there.
    #[error("'{}' is no socket and is not replaced: set node.control to another path", .0.display())]
    NoSocket(PathBuf),
    /// The system says no.
    #[error("cannot listen on the control socket '{}': set node.control to a path that this user can make, of at most 100 bytes", .path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Control {
    /// Takes no more commands, and removes the socket.
    pub fn stop(&self) {
        self.task.abort();
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::debug!("cannot remove the control socket: {error}");
        }
    }
}

/// Listens at `path`, for this user alone. What a node that was killed left there is replaced.
///
/// # Errors
///
/// See [`ControlError`].
pub fn serve(
    path: &Path,
    broadcasts: BroadcastHandle,
    cluster: Option<Cluster>,
) -> Result<Control, ControlError> {
    let listener = listen(path)?;
    let task = actix_rt::spawn(accept(listener, Served { broadcasts, cluster }));
    Ok(Control { path: path.to_owned(), task })
}

fn listen(path: &Path) -> Result<UnixListener, ControlError> {
    let failed = |source| ControlError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(data) if !data.file_type().is_socket() => {
            return Err(ControlError::NoSocket(path.to_owned()));
        }
        Ok(_) if StdStream::connect(path).is_ok() => {
            return Err(ControlError::InUse(path.to_owned()));
        }
        _ => {}
    }
    // It gets its name only when nobody else can open it.
    let mut hidden = path.as_os_str().to_owned();
    hidden.push("~");
    let hidden = PathBuf::from(hidden);
    match fs::remove_file(&hidden) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&hidden).map_err(failed)?;
    fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&hidden, path).map_err(failed)?;
    Ok(listener)
}

/// Whom commands are for.
#[derive(Clone)]
struct Served {
    broadcasts: BroadcastHandle,
    cluster: Option<Cluster>,
}

async fn accept(listener: UnixListener, served: Served) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let served = served.clone();
                actix_rt::spawn(async move {
                    if let Err(error) = converse(stream, &served).await {
                        tracing::debug!("a control connection ended: {error}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("cannot take a control connection: {error}");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Lines and replies, until the other side ends. A list that was not told to its end is
/// forgotten then.
async fn converse(stream: UnixStream, served: &Served) -> io::Result<()> {
    let mut list = None;
    let ended = lines(stream, served, &mut list).await;
    if let Some(broadcast) = list {
        served.broadcasts.command(Command::Cancel { broadcast }, None).await;
    }
    ended
}

async fn lines(stream: UnixStream, served: &Served, list: &mut Option<i64>) -> io::Result<()> {
    let (source, mut sink) = stream.into_split();
    let mut source = BufReader::new(source);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut source).take(LINE as u64 + 1);
        if timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        let too_long = line.len() > LINE;
        let reply = if too_long {
            let says = format!("a line has at most {LINE} bytes");
            to_line(&Problem::reply(ProblemKind::Request, says))
        } else if drain::is_cluster(&line) {
            to_line(&drain::carry_out(&line, served.cluster.as_ref()).await)
        } else {
            to_line(&answer(&line, &served.broadcasts, list).await)
        };
        timeout(PATIENCE, sink.write_all(&reply)).await??;
        if too_long {
            return Ok(());
        }
    }
}

async fn answer(line: &[u8], broadcasts: &BroadcastHandle, list: &mut Option<i64>) -> Reply {
    let command = match parse_command(line) {
        Ok(command) => command,
        Err(problem) => return Reply::Problem(problem),
    };
    let begins = matches!(command, Command::Begin { .. });
    let starts = matches!(command, Command::Start { everyone: false, .. });
    let late = |_| Problem::reply(ProblemKind::Unavailable, "the node did not answer in time");
    let reply = timeout(COMMAND, broadcasts.command(command, None)).await.unwrap_or_else(late);
    if let Reply::Broadcast(report) = &reply {
        if starts {
            *list = Some(report.id);
        } else if begins && *list == Some(report.id) {
            *list = None;
        }
    }
    reply
}
