//! A connection that breaks when it is told to.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What befalls the next commit that passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// Nothing.
    Passes,
    /// The server never gets it.
    IsLost,
    /// The server does it, and nobody hears of that.
    IsNotAnswered,
}

/// What is to happen, and to whose transaction; empty: anybody's.
type Plan = Arc<Mutex<(Fate, &'static [u8])>>;

/// Stands between a store and a server, in plain text.
pub struct Proxy {
    pub port: u16,
    plan: Plan,
    cut: Arc<Notify>,
    hush: Arc<Notify>,
}

impl Proxy {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let plan: Plan = Arc::new(Mutex::new((Fate::Passes, b"")));
        let cut = Arc::new(Notify::new());
        let hush = Arc::new(Notify::new());
        let (shared, cuts, hushes) = (plan.clone(), cut.clone(), hush.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let passing = pass(client, server, shared.clone(), cuts.clone(), hushes.clone());
                tokio::spawn(passing);
            }
        });
        Proxy { port, plan, cut, hush }
    }

    /// Passes nothing on any more over the connections that there are, and leaves them open. New
    /// ones are as before.
    pub fn fall_silent(&self) {
        self.hush.notify_waiters();
    }

    /// Breaks all connections, wherever they are.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    pub fn next_commit(&self, fate: Fate) {
        *self.plan.lock().expect("not poisoned") = (fate, b"");
    }

    /// Of a transaction that names this recipient. A store may have other connections, which show
    /// now and then that it lives.
    pub fn next_commit_of(&self, recipient: &'static str, fate: Fate) {
        *self.plan.lock().expect("not poisoned") = (fate, recipient.as_bytes());
    }

    /// Whether nothing is planned any more.
    pub fn is_idle(&self) -> bool {
        self.plan.lock().expect("not poisoned").0 == Fate::Passes
    }
}

/// What befalls this transaction.
fn fate(plan: &Plan, transaction: &[u8]) -> Fate {
    let mut plan = plan.lock().expect("not poisoned");
    match plan.1.is_empty() || has(transaction, plan.1) {
        true => std::mem::replace(&mut plan.0, Fate::Passes),
        false => Fate::Passes,
    }
}

fn has(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Passes bytes on until one side ends, or the fate says so.
async fn pass(mut client: TcpStream, server: u16, plan: Plan, cut: Arc<Notify>, hush: Arc<Notify>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    // What was asked since the last commit.
    let mut transaction = Vec::new();
    let (cut, hush) = (cut.notified(), hush.notified());
    tokio::pin!(cut, hush);
    loop {
        tokio::select! {
            () = &mut cut => return,
            () = &mut hush => std::future::pending().await,
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                transaction.extend_from_slice(&asked[..count]);
                let fate = match has(&asked[..count], b"COMMIT") {
                    true => fate(&plan, &std::mem::take(&mut transaction)),
                    false => Fate::Passes,
                };
                if fate == Fate::IsLost || server.write_all(&asked[..count]).await.is_err() {
                    return;
                }
                if fate == Fate::IsNotAnswered {
                    // It is done when it is answered.
                    let _ = server.read(&mut answered).await;
                    return;
                }
            }
            read = server.read(&mut answered) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&answered[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
}
