//! The connections that read, and the thread that those to a server live on.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use sea_orm::DatabaseConnection;
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use super::error::StoreError;
use super::fault;
use super::owner::Owner;
use super::server;

/// How often a read is asked again: each connection that lay idle may have been lost.
const RECONNECTIONS: u32 = 3;

/// How long a read may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that read.
pub(super) struct Readers {
    database: DatabaseConnection,
    /// Who must not be fenced to be handed messages; none: a file has a lock.
    owner: Option<Owner>,
    /// A socket belongs to the runtime that it was made on, and waits when that one is busy. So
    /// those of a server have a thread of their own, and not whichever asked first.
    home: Option<Home>,
}

struct Home {
    runtime: Handle,
    /// Dropped, it ends the thread.
    _open: oneshot::Sender<()>,
}

impl Readers {
    /// For a file: its connections have threads of their own.
    pub(super) fn of_file(database: DatabaseConnection) -> Self {
        Readers { database, owner: None, home: None }
    }

    /// For a server. The connections are made when they are needed.
    pub(super) fn of_server(database: DatabaseConnection, owner: Owner) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("amphora-reads".to_owned());
        thread.spawn(move || {
            // An error: it was dropped, which is the sign.
            let _ = runtime.block_on(closed);
        })?;
        let home = Home { runtime: handle, _open: open };
        Ok(Readers { database, owner: Some(owner), home: Some(home) })
    }

    /// See [`super::pages::page`].
    pub(super) fn owner(&self) -> Option<Owner> {
        self.owner.clone()
    }

    /// Reads; once more when the connection was lost: another one may do, as after a restart of
    /// the server.
    pub(super) fn read<T, R, F>(
        &self,
        read: R,
    ) -> impl Future<Output = Result<T, StoreError>> + Send + use<T, R, F>
    where
        T: Send + 'static,
        R: Fn(DatabaseConnection) -> F + Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let database = self.database.clone();
        let runtime = self.home.as_ref().map(|home| home.runtime.clone());
        async move {
            let Some(runtime) = runtime else {
                return read(database).await;
            };
            let reading = async move {
                for _ in 0..RECONNECTIONS {
                    match read(database.clone()).await {
                        Err(StoreError::Read(error)) if fault::is_lost(&error) => {}
                        answer => return answer,
                    }
                }
                read(database).await
            };
            let reading = async move {
                timeout(PATIENCE, reading)
                    .await
                    .unwrap_or_else(|_| Err(StoreError::Read(server::silent())))
            };
            Task(runtime.spawn(reading)).await.unwrap_or(Err(StoreError::Closed))
        }
    }

    pub(super) fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        let database = self.database.clone();
        async move {
            if let Err(error) = database.close().await {
                tracing::warn!(%error, "cannot close the connections that read");
            }
        }
    }
}

/// A task that ends with whoever waits for it.
struct Task<T>(JoinHandle<T>);

impl<T> Future for Task<T> {
    type Output = Result<T, JoinError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
