//! The connections that read, and the thread that those to a server live on.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

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
    home: Option<Arc<Home>>,
}

/// The connections that there are.
struct Pool {
    database: DatabaseConnection,
    /// How many there were before.
    number: usize,
    made: Instant,
    /// When one of them answered last, in milliseconds since they were made.
    answered: AtomicU64,
}

impl Pool {
    fn new(database: DatabaseConnection) -> Arc<RwLock<Pool>> {
        Arc::new(RwLock::new(Self::numbered(0, database)))
    }

    fn numbered(number: usize, database: DatabaseConnection) -> Pool {
        Pool { database, number, made: Instant::now(), answered: AtomicU64::new(0) }
    }

    fn age(&self) -> u64 {
        self.made.elapsed().as_millis() as u64
    }

    fn is_silent(&self) -> bool {
        let silent = self.age().saturating_sub(self.answered.load(Ordering::Relaxed));
        u128::from(silent) >= PATIENCE.as_millis()
    }
}

/// Remembers that a connection of this number has answered.
fn has_answered(pool: &RwLock<Pool>, number: usize) {
    let pool = pool.read().unwrap_or_else(PoisonError::into_inner);
    if pool.number == number {
        pool.answered.store(pool.age(), Ordering::Relaxed);
    }
}

fn now(pool: &RwLock<Pool>) -> (usize, DatabaseConnection) {
    let pool = pool.read().unwrap_or_else(PoisonError::into_inner);
    (pool.number, pool.database.clone())
}

/// Where connections to a server live.
struct Home {
    server: Server,
    connections: u32,
    runtime: Handle,
    /// Dropped, it ends the thread.
    _open: oneshot::Sender<()>,
}

impl Home {
    /// Makes the connections of this number anew: one of them was silent for too long, or all of them
    /// are. The pool asks a connection that comes back whether it is there, and has no end to its
    /// patience: others would have to do without it.
    async fn replace(&self, pool: &RwLock<Pool>, number: usize) {
        let former = {
            let mut pool = pool.write().unwrap_or_else(PoisonError::into_inner);
            if pool.number != number {
                return;
            }
            let next = Pool::numbered(number + 1, self.server.readers(self.connections));
            std::mem::replace(&mut *pool, next).database
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
        let pool = Pool::new(server.readers(connections));
        let home = Arc::new(Home { server, connections, runtime: handle, _open: open });
        Ok(Readers { pool, owner: Some(owner), home: Some(home) })
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
            let Some(home) = home else {
                return read(now(&pool).1).await;
            };
            let runtime = home.runtime.clone();
            let reading = async move {
                let tried = AtomicUsize::new(0);
                let (these, number) = (&*pool, &tried);
                let attempts = async move {
                    for _ in 0..RECONNECTIONS {
                        let (now_tried, database) = now(these);
                        number.store(now_tried, Ordering::Relaxed);
                        match read(database).await {
                            Err(StoreError::Read(error)) if fault::is_lost(&error) => {}
                            // It waited for one of those that were replaced.
                            Err(StoreError::Closed) if now(these).0 != now_tried => {}
                            answer => return answer,
                        }
                    }
                    read(now(these).1).await
                };
                match timeout(PATIENCE, attempts).await {
                    Ok(Err(StoreError::Read(error))) if fault::is_acquiring(&error) => {
                        let silent = pool.read().is_ok_and(|pool| pool.is_silent());
                        if silent {
                            home.replace(&pool, tried.into_inner()).await;
                        }
                        Err(StoreError::Read(error))
                    }
                    Ok(answer) => {
                        has_answered(&pool, tried.into_inner());
                        answer
                    }
                    Err(_) => {
                        home.replace(&pool, tried.into_inner()).await;
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
