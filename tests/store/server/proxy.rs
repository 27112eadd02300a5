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

/// Stands between a store and a server, in plain text.
pub struct Proxy {
    pub port: u16,
    fate: Arc<Mutex<Fate>>,
    cut: Arc<Notify>,
}

impl Proxy {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let port = listener.local_addr().expect("an address").port();
        let fate = Arc::new(Mutex::new(Fate::Passes));
        let cut = Arc::new(Notify::new());
        let (shared, cuts) = (fate.clone(), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, shared.clone(), cuts.clone()));
            }
        });
        Proxy { port, fate, cut }
    }

    /// Breaks all connections, wherever they are.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }

    pub fn next_commit(&self, fate: Fate) {
        *self.fate.lock().expect("not poisoned") = fate;
    }

    /// Whether nothing is planned any more.
    pub fn is_idle(&self) -> bool {
        *self.fate.lock().expect("not poisoned") == Fate::Passes
    }
}

/// Passes bytes on until one side ends, or the fate says so.
async fn pass(mut client: TcpStream, server: u16, fate: Arc<Mutex<Fate>>, cut: Arc<Notify>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else {
        return;
    };
    let (mut asked, mut answered) = (vec![0; 65536], vec![0; 65536]);
    let cut = cut.notified();
    tokio::pin!(cut);
    loop {
        tokio::select! {
            () = &mut cut => return,
            read = client.read(&mut asked) => {
                let Ok(count @ 1..) = read else { return };
                let fate = match asked[..count].windows(6).any(|word| word == b"COMMIT") {
                    true => std::mem::replace(&mut *fate.lock().expect("not poisoned"), Fate::Passes),
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
