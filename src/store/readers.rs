//! The connections that read, and the thread that those to a server live on.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
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
use super::place::Server;
use super::server;

/// How often a read is asked again: each connection that lay idle may have been lost.
const RECONNECTIONS: u32 = 3;

/// How long a read may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Connections that read.
pub(super) struct Readers {
    pool: Arc<RwLock<Pool>>,
    /// Who must not be fenced to be handed messages; none: a file has a lock.
    owner: Option<Owner>,
    /// A socket belongs to the runtime that it was made on, and waits when that one is busy. So
    /// those of a server have a thread of their own, and not whichever asked first.
    home: Option<Home>,
}

/// The connections that there are.
struct Pool {
    database: DatabaseConnection,
    /// How many there were before.
    number: usize,
}

impl Pool {
    fn new(database: DatabaseConnection) -> Arc<RwLock<Pool>> {
        Arc::new(RwLock::new(Pool { database, number: 0 }))
    }
}

fn now(pool: &RwLock<Pool>) -> (usize, DatabaseConnection) {
    let pool = pool.read().unwrap_or_else(PoisonError::into_inner);
    (pool.number, pool.database.clone())
}

/// Where connections to a server live.
#[derive(Clone)]
struct Home {
    server: Arc<Server>,
    connections: u32,
    runtime: Handle,
    /// Dropped, it ends the thread.
    _open: Arc<oneshot::Sender<()>>,
}

impl Home {
    /// Makes the connections of this number anew: one of them was silent for too long. The pool asks a
    /// connection that comes back whether it is there, and has no end to its patience: the others would
    /// have to do without it.
    async fn replace(&self, pool: &RwLock<Pool>, number: usize) {
        let former = {
            let mut pool = pool.write().unwrap_or_else(PoisonError::into_inner);
            if pool.number != number {
                return;
            }
            pool.number += 1;
            std::mem::replace(&mut pool.database, self.server.readers(self.connections))
        };
        tracing::warn!("the database does not answer who reads; connecting again");
        server::let_go(former).await;
    }
}

impl Readers {
    /// For a file: its connections have threads of their own.
    pub(super) fn of_file(database: DatabaseConnection) -> Self {
        Readers { pool: Pool::new(database), owner: None, home: None }
    }

    /// For a server. The connections are made when they are needed.
    pub(super) fn of_server(server: Server, connections: u32, owner: Owner) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (open, closed) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("amphora-reads".to_owned());
        thread.spawn(move || {
            // An error: it was dropped, which is the sign.
            let _ = runtime.block_on(closed);
        })?;
        let (server, open) = (Arc::new(server), Arc::new(open));
        let database = server.readers(connections);
        let home = Home { server, connections, runtime: handle, _open: open };
        Ok(Readers { pool: Pool::new(database), owner: Some(owner), home: Some(home) })
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
        let (pool, home) = (self.pool.clone(), self.home.clone());
        async move {
            let (number, database) = now(&pool);
            let Some(home) = home else {
                return read(database).await;
            };
            let runtime = home.runtime.clone();
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
                match timeout(PATIENCE, reading).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        home.replace(&pool, number).await;
                        Err(StoreError::Read(server::silent()))
                    }
                }
            };
            Task(runtime.spawn(reading)).await.unwrap_or(Err(StoreError::Closed))
        }
    }

    pub(super) fn close(&self) -> impl Future<Output = ()> + Send + use<> {
        let (_, database) = now(&self.pool);
        let on_server = self.home.is_some();
        async move {
            if on_server {
                return server::let_go(database).await;
            }
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
