//! The shell round the machines: it hears keys, asks the database and carries out what they ask
//! for. It runs on the thread of the connection to NATS.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::keys::{Heard, Keys};
use super::machine::{self, Look, Machine, Node, Nodes, Place, Shards};
use super::member::{Says, terms};
use super::members::{MemberInfo, Members};
use super::nats::Nats;
use super::presence::{self, Key, Moment, Presence, Terms};
use super::status::{Member, Status, measure};
use crate::store::{Division, Holding, Incarnation, MoveError};
use crate::words::ShardId;

/// The subject on which nodes say that shards have moved. It only saves time: what is lost is
/// found when the database is asked the next time.
const HINT: &str = "moved";

/// How long the last hint of a node may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Outcomes that may wait to be heard: each machine has one thing under way.
const OUTCOMES: usize = 64;

/// Commands that may wait; whoever gives one waits himself.
const COMMANDS: usize = 16;

/// The shards of this node, as the router and the actors have them.
pub trait Home: Send + Sync + 'static {
    /// Shards are decided elsewhere than before, or are said to be where they were.
    fn place(&self, moved: Vec<(ShardId, Place)>);

    /// Keeps what comes for these, until they are placed; ends when they have nothing under way,
    /// or had time enough.
    fn hold(&self, shards: Vec<ShardId>) -> BoxFuture<'static, ()>;
}

/// What a node brings into its cluster.
pub struct ClusterContext {
    /// The connection.
    pub nats: Nats,
    /// How many NATS servers the settings name.
    pub servers: usize,
    /// The name of the node.
    pub node: Arc<str>,
    /// How long a node may be silent.
    pub lease: Duration,
    /// How many shards there are.
    pub shards: u32,
    /// The databases, open or not.
    pub databases: Vec<Division>,
    /// The components that this node has links as.
    pub components: Vec<Arc<str>>,
    /// The hosts behind these.
    pub hosts: Vec<Arc<str>>,
    /// The shards here.
    pub home: Arc<dyn Home>,
    /// Somebody believes that shards have moved.
    pub look_again: Arc<Notify>,
}

enum Command {
    Drain { stopping: bool },
    Undrain,
    Leave(oneshot::Sender<()>),
}

/// A node's part in its cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    own: Incarnation,
    commands: mpsc::Sender<Command>,
    members: Members,
    status: watch::Receiver<Arc<Status>>,
    refused: watch::Receiver<Option<String>>,
    nats: Nats,
}

impl Cluster {
    /// Joins. To be called when the databases are open.
    pub fn start(context: ClusterContext) -> Cluster {
        let nats = context.nats.clone();
        let (commands, told) = mpsc::channel(COMMANDS);
        let (members, seen) = watch::channel(Arc::default());
        let (status, state) = watch::channel(Arc::default());
        let (refuse, refused) = watch::channel(None);
        let task = Task::new(context, Tell { members, status, refuse });
        let own = task.identity();
        nats.spawn(task.run(told));
        Cluster { own, commands, members: seen, status: state, refused, nats }
    }

    /// Who this process is to the others.
    pub fn own(&self) -> &Incarnation {
        &self.own
    }

    /// The others that live.
    pub fn members(&self) -> Members {
        self.members.clone()
    }

    /// The connection.
    pub fn nats(&self) -> &Nats {
        &self.nats
    }

    /// How it stands now.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// How it stands, and each change of that.
    pub fn watch(&self) -> watch::Receiver<Arc<Status>> {
        self.status.clone()
    }

    /// Gives all shards away, as long as there is somebody to give them to, and takes none; ends
    /// when that is done. `stopping`: this process ends then.
    pub async fn drain(&self, stopping: bool) -> Arc<Status> {
        self.tell(Command::Drain { stopping }).await;
        let mut status = self.status.clone();
        match status.wait_for(|status| status.drained).await {
            Ok(status) => status.clone(),
            Err(_) => self.status(),
        }
    }

    /// Takes shards again.
    pub async fn undrain(&self) -> Arc<Status> {
        self.tell(Command::Undrain).await;
        let mut status = self.status.clone();
        match status.wait_for(|status| !status.draining).await {
            Ok(status) => status.clone(),
            Err(_) => self.status(),
        }
    }

    /// Takes the key of this node back, and moves nothing any more.
    pub async fn leave(&self) {
        let (tell, told) = oneshot::channel();
        self.tell(Command::Leave(tell)).await;
        // An error: it is over already.
        let _ = told.await;
    }

    /// Tells the others that this process has let its databases go.
    pub async fn hint(&self) {
        let said = async {
            hint(&self.nats, &self.own).await;
            self.nats.client().flush().await
        };
        // Without a connection it would wait for one.
        let _ = timeout(LAST_WORDS, said).await;
    }

    /// Ends when this node must not join; why.
    pub fn refused(&self) -> impl Future<Output = String> + Send + use<> {
        let mut refused = self.refused.clone();
        async move {
            let why = refused.wait_for(Option::is_some).await.map(|why| why.clone());
            match why {
                Ok(why) => why.unwrap_or_default(),
                Err(_) => std::future::pending().await,
            }
        }
    }

    async fn tell(&self, command: Command) {
        // An error: it is over already.
        let _ = self.commands.send(command).await;
    }
}

async fn hint(nats: &Nats, own: &Incarnation) {
    if *nats.up().borrow() {
        let sent = nats.client().publish(nats.subject(HINT), own.to_string().into()).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "cannot tell the others that shards have moved");
        }
    }
}

/// Where the task tells what it knows.
struct Tell {
    members: watch::Sender<Arc<Vec<MemberInfo>>>,
    status: watch::Sender<Arc<Status>>,
    refuse: watch::Sender<Option<String>>,
}

/// What a database's machine asked for has come to its end.
enum Outcome {
    Looked(usize, Option<Look>),
    Quiet(usize),
    Moved(usize, bool),
}

/// The machine of a database that is open.
struct Database {
    machine: Machine,
    own: Incarnation,
    division: Division,
}

struct Task {
    nats: Nats,
    keys: Option<Keys>,
    node: Arc<str>,
    process: u32,
    lease: Duration,
    shards: u32,
    /// Those that could not be opened yet.
    closed: Vec<Division>,
    databases: Vec<Database>,
    home: Arc<dyn Home>,
    look_again: Arc<Notify>,
    presence: Presence<Says>,
    began: Instant,
    draining: bool,
    stopping: bool,
    /// As the machines say, and as it was told.
    places: BTreeMap<ShardId, (usize, Place)>,
    told: BTreeMap<ShardId, Place>,
    outcomes: mpsc::Sender<Outcome>,
    heard: Option<(mpsc::Receiver<Heard>, JoinHandle<()>)>,
    tell: Tell,
}

impl Task {
    fn new(context: ClusterContext, tell: Tell) -> Task {
        let ClusterContext { nats, servers, node, lease, shards, databases, home, .. } = context;
        let process = process_number(&databases);
        let (components, hosts) = (context.components, context.hosts);
        let version = env!("CARGO_PKG_VERSION").into();
        let rest = Says { version, numbers: BTreeMap::new(), components, hosts };
        let key = Key { process, lease, draining: false, terms: terms(shards), rest };
        Task {
            keys: Some(Keys::new(nats.clone(), node.clone(), lease, servers)),
            nats,
            presence: Presence::new(node.clone(), key),
            node,
            process,
            lease,
            shards,
            closed: databases,
            databases: Vec::new(),
            home,
            look_again: context.look_again,
            began: Instant::now(),
            draining: false,
            stopping: false,
            places: BTreeMap::new(),
            told: BTreeMap::new(),
            outcomes: mpsc::channel(1).0,
            heard: None,
            tell,
        }
    }

    fn identity(&self) -> Incarnation {
        Incarnation { node: self.node.to_string(), number: self.process }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        let (outcomes, mut ended) = mpsc::channel(OUTCOMES);
        self.outcomes = outcomes;
        self.open();
        let mut up = self.nats.up();
        let mut ticks = interval((self.lease / 30).max(Duration::from_millis(50)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let look_again = self.look_again.clone();
        let hints = self.nats.client().subscribe(self.nats.subject(HINT)).await;
        // Without them the database is still looked at, each lease.
        let mut hints = hints
            .inspect_err(|error| tracing::warn!("moves of shards are noticed late: {error}"))
            .ok();
        if *up.borrow_and_update() {
            self.present(presence::Input::Up);
        }
        loop {
            // What was heard comes before the time: who was heard is not dead.
            tokio::select! {
                biased;
                Ok(()) = up.changed() => {
                    // A connection that came at once after one that was lost is not the same.
                    self.present(presence::Input::Lost);
                    if *up.borrow_and_update() {
                        self.present(presence::Input::Up);
                    }
                }
                (node, number, key) = next(&mut self.heard) => {
                    self.present(presence::Input::Heard(node, number, key));
                }
                Some(outcome) = ended.recv() => self.learn(outcome),
                command = commands.recv() => match command {
                    Some(Command::Leave(told)) => {
                        self.leave().await;
                        // Whoever asked may be gone.
                        let _ = told.send(());
                        return;
                    }
                    Some(Command::Drain { stopping }) => self.drain(true, stopping),
                    Some(Command::Undrain) => self.drain(false, false),
                    None => return self.leave().await,
                },
                hint = next_hint(&mut hints) => match hint {
                    Some(from) if from != self.identity().to_string().as_bytes() => {
                        self.tell_all(&machine::Input::Hint);
                    }
                    Some(_) => {}
                    None => hints = None,
                },
                () = look_again.notified() => self.tell_all(&machine::Input::LookAgain),
                _ = ticks.tick() => {
                    self.open();
                    self.present(presence::Input::Tick);
                }
            }
        }
    }

    async fn leave(&mut self) {
        if let Some((_, task)) = self.heard.take() {
            task.abort();
        }
        if let Some(keys) = self.keys.take() {
            keys.take_back().await;
        }
    }

    /// Makes machines for databases that are open now.
    fn open(&mut self) {
        let mut opened = false;
        for division in std::mem::take(&mut self.closed) {
            let Some(own) = division.incarnation() else {
                self.closed.push(division);
                continue;
            };
            let shards = Shards(division.shards().clone());
            let settings = machine::Settings { own: own.clone(), shards, lease: self.lease };
            self.databases.push(Database { machine: Machine::new(settings), own, division });
            opened = true;
        }
        if opened {
            self.say();
        }
    }

    /// What this node says of itself has changed.
    fn say(&mut self) {
        let number = |database: &Database| (database.division.name().clone(), database.own.number);
        let numbers = self.databases.iter().map(number).collect();
        let rest = Says { numbers, ..self.presence.own().rest.clone() };
        self.present(presence::Input::Say { draining: self.draining, rest });
    }

    fn drain(&mut self, draining: bool, stopping: bool) {
        if draining != self.draining {
            match draining {
                true => tracing::info!("giving the shards of this node away"),
                false => tracing::info!("taking shards again"),
            }
        }
        (self.draining, self.stopping) = (draining, stopping);
        self.say();
    }

    fn present(&mut self, input: presence::Input<Says>) {
        let before = self.who();
        let now = self.now();
        let heard = self.presence.hears(now);
        let effects = self.presence.handle(now, input);
        for effect in effects {
            match effect {
                presence::Effect::Publish(key) => {
                    if let Some(keys) = &self.keys {
                        keys.publish(&key);
                    }
                }
                presence::Effect::Watch => self.watch(),
                presence::Effect::Elsewhere => {
                    // The loss of the connection, and a new one, are told as any other.
                    if !self.keys.as_ref().is_some_and(Keys::elsewhere) {
                        self.watch();
                    }
                }
                presence::Effect::Refused(node, terms) => self.refuse(&node, &terms),
                presence::Effect::Stranger(node, terms) => {
                    tracing::warn!(
                        node = &*node,
                        "a node can't be in this cluster: {}",
                        difference(&self.presence.own().terms, &terms)
                    );
                }
            }
        }
        self.note(heard, &before);
        self.tell_all(&machine::Input::Nodes(Nodes::default()));
        self.report();
    }

    /// Watches the keys from the beginning.
    fn watch(&mut self) {
        if let Some((_, task)) = self.heard.take() {
            task.abort();
        }
        self.heard = self.keys.as_ref().map(Keys::watch);
    }

    /// The nodes that live, but this one.
    fn who(&self) -> Vec<Arc<str>> {
        let now = self.now();
        let live = self.presence.others().filter(|(_, other)| other.lives(now));
        live.map(|(node, _)| node.clone()).collect()
    }

    fn note(&mut self, heard: bool, before: &[Arc<str>]) {
        let (after, now) = (self.who(), self.now());
        let hears = self.presence.hears(now);
        match (heard, hears) {
            (false, true) => tracing::info!(nodes = after.len() + 1, "in the cluster"),
            (true, false) => {
                tracing::warn!(
                    "nothing is heard over NATS; this node keeps the shards that it has"
                );
            }
            _ => {}
        }
        for node in after.iter().filter(|node| !before.contains(node)) {
            tracing::info!(node = &**node, "a node of the cluster is there");
        }
        for node in before.iter().filter(|node| !after.contains(node)) {
            tracing::info!(node = &**node, "a node of the cluster has left, or is silent");
        }
    }

    fn refuse(&self, node: &str, terms: &Terms) {
        let why = difference(&self.presence.own().terms, terms);
        self.tell.refuse.send_replace(Some(format!("'{node}' runs in it, {why}")));
    }

    /// Tells each machine; in place of `Nodes` each gets those of its database.
    fn tell_all(&mut self, input: &machine::Input) {
        for place in 0..self.databases.len() {
            let input = match input {
                machine::Input::Nodes(_) => machine::Input::Nodes(self.nodes(place)),
                input => input.clone(),
            };
            self.handle(place, input);
        }
        self.place();
    }

    fn learn(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Looked(place, look) => self.handle(place, machine::Input::Looked(look)),
            Outcome::Quiet(place) => self.handle(place, machine::Input::Quiet),
            Outcome::Moved(place, done) => self.handle(place, machine::Input::Moved(done)),
        }
        self.place();
        self.report();
    }

    fn nodes(&self, place: usize) -> Nodes {
        let now = self.now();
        let name = self.databases[place].division.name();
        let others = self.presence.others().filter_map(|(node, other)| {
            let number = *other.key.rest.numbers.get(name)?;
            Some(Node {
                incarnation: Incarnation { node: node.to_string(), number },
                draining: other.key.draining,
                heard: other.heard,
                lease: other.key.lease,
            })
        });
        Nodes {
            hears: self.presence.hears(now),
            hears_all: self.presence.hears_all(now),
            draining: self.draining,
            stopping: self.stopping,
            others: others.collect(),
        }
    }

    fn handle(&mut self, place: usize, input: machine::Input) {
        let now = self.now();
        for effect in self.databases[place].machine.handle(now, input) {
            self.carry_out(place, effect);
        }
    }

    fn carry_out(&mut self, place: usize, effect: machine::Effect) {
        let division = self.databases[place].division.clone();
        match effect {
            machine::Effect::Look => {
                self.spawn(async move { Outcome::Looked(place, look(&division).await) });
            }
            machine::Effect::Take(seen) => {
                self.spawn(async move { Outcome::Moved(place, take(&division, seen).await) });
            }
            machine::Effect::Hold(shards) => {
                let quiet = self.home.hold(shards);
                self.spawn(async move {
                    quiet.await;
                    Outcome::Quiet(place)
                });
            }
            machine::Effect::Give(shards, to) => {
                self.spawn(async move { Outcome::Moved(place, give(&division, shards, to).await) });
            }
            machine::Effect::Place(moved) => {
                for (shard, to) in moved {
                    // Said again, it is told again.
                    self.told.remove(&shard);
                    self.places.insert(shard, (place, to));
                }
            }
            machine::Effect::Hint => {
                let (nats, own) = (self.nats.clone(), self.identity());
                self.nats.spawn(async move { hint(&nats, &own).await });
            }
        }
    }

    fn spawn(&self, work: impl Future<Output = Outcome> + Send + 'static) {
        let outcomes = self.outcomes.clone();
        self.nats.spawn(async move {
            // An error: this node has left.
            let _ = outcomes.send(work.await).await;
        });
    }

    /// Tells where shards are, in the words of the cluster: a database's number of a process is
    /// not what that process is known by.
    fn place(&mut self) {
        let mut moved = Vec::new();
        for (shard, (database, place)) in &self.places {
            let place = match place {
                Place::Peer { node, epoch } => match self.process_of(*database, node) {
                    Some(node) => Place::Peer { node, epoch: *epoch },
                    None => Place::Nowhere,
                },
                place => place.clone(),
            };
            if self.told.get(shard) != Some(&place) {
                moved.push((*shard, place));
            }
        }
        if !moved.is_empty() {
            self.told.extend(moved.iter().cloned());
            self.home.place(moved);
        }
    }

    fn process_of(&self, database: usize, owner: &Incarnation) -> Option<Incarnation> {
        let name = self.databases[database].division.name();
        if name.is_empty() {
            return Some(owner.clone());
        }
        let mut others = self.presence.others();
        let (node, other) = others.find(|(node, other)| {
            ***node == *owner.node && other.key.rest.numbers.get(name) == Some(&owner.number)
        })?;
        Some(Incarnation { node: node.to_string(), number: other.key.process })
    }

    fn report(&mut self) {
        let now = self.now();
        let live = self.presence.others().filter(|(_, other)| other.lives(now));
        let live: Vec<_> = live.collect();
        let info = live.iter().map(|(node, other)| MemberInfo {
            incarnation: Incarnation { node: node.to_string(), number: other.key.process },
            hosts: other.key.rest.hosts.clone(),
        });
        let info: Vec<MemberInfo> = info.collect();
        self.tell.members.send_if_modified(|members| {
            let changed = **members != info;
            if changed {
                *members = Arc::new(info);
            }
            changed
        });
        let member = |node: &Arc<str>, key: &Key<Says>| Member {
            node: node.clone(),
            version: key.rest.version.clone(),
            draining: key.draining,
        };
        let mut members: Vec<Member> =
            live.iter().map(|(node, other)| member(node, &other.key)).collect();
        members.push(member(&self.node, self.presence.own()));
        members.sort_by(|one, other| one.node.cmp(&other.node));
        let own = self.databases.iter().map(|database| database.machine.own()).sum();
        let placed = self.told.values().filter(|place| **place != Place::Nowhere).count();
        let has_drained = |database: &Database| database.machine.has_drained(now);
        let status = Status {
            cluster: self.nats.cluster().into(),
            hears: self.presence.hears(now),
            members,
            own,
            shards: self.shards,
            nowhere: (self.shards as usize).saturating_sub(placed),
            draining: self.draining,
            drained: self.draining && self.databases.iter().all(has_drained),
        };
        self.tell.status.send_if_modified(|told| {
            let changed = **told != status;
            if changed {
                measure(&status);
                *told = Arc::new(status);
            }
            changed
        });
    }
}

/// One database numbers the starts of all nodes. Several do so each for itself: then a process
/// chooses.
fn process_number(databases: &[Division]) -> u32 {
    match databases {
        [one] if one.name().is_empty() => one.incarnation().map_or(1, |own| own.number),
        _ => fastrand::u32(1..),
    }
}

fn difference(own: &Terms, theirs: &Terms) -> String {
    if own.shards != theirs.shards {
        return format!("with {} shards, and this one has {}", theirs.shards, own.shards);
    }
    if own.protocol != theirs.protocol {
        return format!(
            "speaking version {} of the protocol, and this one speaks {}",
            theirs.protocol, own.protocol
        );
    }
    format!("spreading shards by '{}', and this one does by '{}'", theirs.hash, own.hash)
}

async fn next(heard: &mut Option<(mpsc::Receiver<Heard>, JoinHandle<()>)>) -> Heard {
    match heard {
        Some((heard, _)) => match heard.recv().await {
            Some(heard) => heard,
            // The thread of NATS has ended: with it the process.
            None => std::future::pending().await,
        },
        None => std::future::pending().await,
    }
}

async fn next_hint(hints: &mut Option<async_nats::Subscriber>) -> Option<Vec<u8>> {
    match hints {
        Some(hints) => hints.next().await.map(|hint| hint.payload.to_vec()),
        None => std::future::pending().await,
    }
}

async fn look(division: &Division) -> Option<Look> {
    match division.ownership().await {
        Ok(ownership) => {
            let members = ownership.members.into_iter().filter(|member| !member.fenced);
            let writers = members.map(|member| member.incarnation).collect();
            Some(Look { writers, shards: ownership.shards })
        }
        Err(MoveError::Fenced | MoveError::Closed) => None,
        Err(error) => {
            tracing::warn!(?division, "cannot look who owns the shards: {error}");
            None
        }
    }
}

async fn take(division: &Division, seen: Vec<Holding>) -> bool {
    let shards = seen.len();
    let mut from: Vec<String> = seen
        .iter()
        .map(|one| one.owner.as_ref().map_or_else(|| "nobody".to_owned(), Incarnation::to_string))
        .collect();
    from.sort();
    from.dedup();
    let from = from.join(", ");
    let moved = division.take(seen).await;
    match &moved {
        Ok(()) => {
            tracing::info!(shards, from, "took shards");
            metrics::counter!("amphora_cluster_moves_total", "kind" => "take").increment(1);
        }
        Err(error) => tracing::info!(shards, from, "took no shards: {error}"),
    }
    moved.is_ok()
}

async fn give(division: &Division, shards: Vec<ShardId>, to: Incarnation) -> bool {
    let count = shards.len();
    let moved = division.give(shards, to.clone()).await;
    match &moved {
        Ok(()) => {
            tracing::info!(shards = count, %to, "gave shards");
            metrics::counter!("amphora_cluster_moves_total", "kind" => "give").increment(1);
        }
        Err(error) => tracing::info!(shards = count, %to, "gave no shards: {error}"),
    }
    moved.is_ok()
}
