//! A NATS server of our own.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::process::Family;

/// Ends when it is dropped.
pub struct NatsServer {
    child: Child,
    pub port: u16,
}

impl NatsServer {
    /// With JetStream, if it gets a folder for it.
    pub fn start(store: Option<&Path>) -> Self {
        let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let port = free.expect("a port").port();
        let mut command = Command::new("nats-server");
        command.args(["-a", "127.0.0.1", "-p", &port.to_string()]);
        if let Some(store) = store {
            command.arg("-js").arg("-sd").arg(store);
        }
        let child = command.stderr(Stdio::null()).spawn().expect("nats-server in the PATH");
        NatsServer { child, port }
    }

    pub fn family(&self) -> Family {
        Family::of(self.child.id())
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
