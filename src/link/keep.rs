//! The life of one link: connect, serve, come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::Addr;
use tokio::sync::{mpsc, watch};

use crate::amp::SecurityLevel;
use crate::broadcast::BroadcastHandle;
use crate::http::{Health, LinkState};
use crate::router::{Everywhere, Router};
use crate::shard::{DueEvent, Outbox};
use crate::store::Clock;
use crate::words::LinkId;

use super::backoff::Backoff;
use super::error::LinkError;
use super::session::Session;
use super::stream;

/// One server that this node serves.
#[derive(Clone)]
pub struct LinkSettings {
    /// The server's host name or address.
    pub host: String,
    /// Its component port.
    pub port: u16,
    /// The component's domain.
    pub component: Arc<str>,
    /// What proves that we are that component.
    pub secret: String,
    /// The virtual hosts that are served.
    pub hosts: Vec<Arc<str>>,
    /// What is sent on, of all hosts; each host is told its own in the greeting.
    pub redirects: Vec<Redirect>,
}

/// Messages for one address, or for all of a domain, are sent on to another.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// The virtual host that it belongs to.
    pub host: Arc<str>,
    /// A user of that host, or the host itself: then `to` is the domain of a gateway.
    pub from: String,
    /// A user, or a domain.
    pub to: String,
}

/// How far a node has come with stopping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stop {
    /// It runs.
    No,
    /// Links take nothing new, and write what is decided.
    Drain,
    /// Links write what they have and close.
    Close,
}

/// What the links of a node share.
#[derive(Clone)]
pub struct LinkContext {
    /// This node's name.
    pub node: Arc<str>,
    /// Who may use which rules.
    pub security: SecurityLevel,
    /// Finds shards.
    pub router: Addr<Router>,
    /// The broadcasts, which ask servers for things.
    pub broadcasts: BroadcastHandle,
    /// Where shards find links.
    pub outbox: Outbox,
    /// Where links say how they are.
    pub health: Health,
    /// The expiry clock, which is told when notices can be sent again. Bounded by how often
    /// servers greet.
    pub due: mpsc::UnboundedSender<DueEvent>,
    /// Wall time.
    pub clock: Clock,
    /// Numbers links, for ever.
    pub numbers: Arc<AtomicU64>,
    /// Tells when to stop.
    pub stop: watch::Receiver<Stop>,
    /// Whether this node can do anything for a server now. While it can't, it has no links: those
    /// of other nodes can.
    pub useful: watch::Receiver<bool>,
}

/// Keeps a link up until the node stops.
pub async fn run(settings: LinkSettings, context: LinkContext) {
    let mut backoff = Backoff::default();
    let mut stop = context.stop.clone();
    let mut useful = context.useful.clone();
    let component = settings.component.clone();
    loop {
        tokio::select! {
            biased;
            // An error: nobody says otherwise any more.
            _ = useful.wait_for(|useful| *useful) => {}
            _ = stop.wait_for(|stop| *stop != Stop::No) => return,
        }
        context.health.set_link(&component, LinkState::Connecting);
        let error = match serve(&settings, &context, &mut backoff).await {
            Ok(()) | Err(LinkError::Stopping) => return,
            Err(error) => error,
        };
        let pause = backoff.next(fastrand::f64());
        tracing::error!(
            component = &*component,
            server = %format_args!("{}:{}", settings.host, settings.port),
            retry_in_ms = pause.as_millis(),
            "link down: {error}"
        );
        metrics::counter!("amphora_link_failures_total").increment(1);
        context.health.set_link(&component, LinkState::Down(error.to_string()));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop != Stop::No) => return,
        }
    }
}

/// One connection, from connecting to its end.
async fn serve(
    settings: &LinkSettings,
    context: &LinkContext,
    backoff: &mut Backoff,
) -> Result<(), LinkError> {
    let (mut stop, mut useful) = (context.stop.clone(), context.useful.clone());
    let opening = async {
        let socket = stream::connect(&settings.host, settings.port).await?;
        let (source, mut sink) = socket.into_split();
        let incoming =
            stream::authenticate(source, &mut sink, &settings.component, &settings.secret).await?;
        Ok::<_, LinkError>((incoming, sink))
    };
    let (incoming, sink) = tokio::select! {
        opened = opening => opened?,
        () = is_useless(&mut useful) => return Err(LinkError::Useless),
        _ = stop.wait_for(|stop| *stop != Stop::No) => return Ok(()),
    };
    backoff.reset();
    context.health.set_link(&settings.component, LinkState::Connected);
    tracing::info!(component = &*settings.component, "link up");

    let id = LinkId(context.numbers.fetch_add(1, Ordering::Relaxed));
    let (sender, mut shards) = mpsc::unbounded_channel();
    context.outbox.add(id, settings.hosts.clone(), sender);
    let session = Session::new(id, settings, context);
    let ended = tokio::select! {
        ended = session.run(incoming, sink, &mut shards) => ended,
        () = is_useless(&mut useful) => Err(LinkError::Useless),
    };
    context.outbox.remove(id);
    context.router.do_send(Everywhere::LinkDown(id));
    session.give_up_sends(&mut shards);
    ended
}

async fn is_useless(useful: &mut watch::Receiver<bool>) {
    if useful.wait_for(|useful| !*useful).await.is_err() {
        std::future::pending::<()>().await;
    }
}
