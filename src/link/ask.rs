//! What the broadcasts of a node ask of servers over a link, and what interceptors ask of
//! the broadcasts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broadcast::{Answered, Command, Payload, ProblemKind, Reply, Report};
use crate::ns;
use crate::shard::{Request, Response, ToLink};
use crate::store::Fate;
use crate::xml::{Element, escape_attribute, escape_text};

use super::session::{Session, State};

/// A request that is not answered for so long has failed; it is asked again, which does no
/// harm. A message that a node can't store waits longer than an append may.
const REQUEST: Duration = Duration::from_secs(30);

/// A request under way.
#[derive(Debug)]
pub(super) struct Asked {
    number: u64,
    host: Arc<str>,
    at: Instant,
}

impl Session<'_> {
    /// Writes a request.
    pub(super) fn ask(&self, state: &mut State, request: Request) {
        state.next_iq += 1;
        let id = format!("b{}", state.next_iq);
        let Request { number, host, ask } = request;
        self.writer.ask(&mut state.out, &host, &id, &ask);
        state.requests.insert(id, Asked { number, host, at: Instant::now() });
    }

    /// Requests that nobody answers.
    pub(super) fn give_up_late_requests(&self, state: &mut State) {
        let now = Instant::now();
        let late = state.requests.extract_if(|_, asked| now.duration_since(asked.at) >= REQUEST);
        for (_, asked) in late {
            self.failed(asked.number, &format!("no answer within {} s", REQUEST.as_secs()));
        }
    }

    /// The link is gone, or the interceptor of a host on it.
    pub(super) fn give_up_requests(&self, host: Option<&str>) {
        let mut state = self.state.borrow_mut();
        let gone = |asked: &Asked| host.is_none_or(|host| *asked.host == *host);
        let numbers: Vec<u64> =
            state.requests.extract_if(|_, asked| gone(asked)).map(|(_, a)| a.number).collect();
        numbers.into_iter().for_each(|number| self.failed(number, CLOSED));
        let greeted =
            |(name, of): (&Arc<str>, &super::session::Host)| of.greeted.then(|| name.clone());
        let hosts: Vec<Arc<str>> = match host {
            Some(host) => {
                state.hosts.keys().find(|name| ***name == *host).cloned().into_iter().collect()
            }
            None => state.hosts.iter().filter_map(greeted).collect(),
        };
        // One that another link reaches is there.
        let away = |host: &Arc<str>| !self.context.outbox.reaches(host);
        hosts.into_iter().filter(away).for_each(|host| self.context.broadcasts.host_down(host));
    }

    /// A request that was not written any more.
    pub(super) fn give_up_request(&self, request: &Request) {
        self.failed(request.number, CLOSED);
    }

    fn failed(&self, number: u64, why: &str) {
        self.answer_to(number, Answered::Failed(why.to_owned()));
    }

    /// Answers a request of this node, or of another: see [`Request::asked_by`].
    fn answer_to(&self, number: u64, answer: Answered) {
        match Request::asked_by(number) {
            (0, number) => self.context.broadcasts.answered(number, answer),
            (peer, number) => self.context.outbox.answer(peer, number, &answer),
        }
    }

    /// An answer, if it is one to a request.
    pub(super) fn request_answered(&self, id: &str, iq: &Element, well: bool) -> bool {
        let Some(asked) = self.state.borrow_mut().requests.remove(id) else {
            return false;
        };
        let answer = if well { answer(iq) } else { refusal(iq) };
        self.answer_to(asked.number, answer);
        true
    }

    /// A command of an administrator of that host.
    pub(super) fn broadcast_command(&self, host: &Arc<str>, id: &str, element: &Element) {
        let (host, request) = (host.clone(), id.to_owned());
        let (outbox, link) = (self.context.outbox.clone(), self.id);
        let (handle, element) = (self.context.broadcasts.clone(), element.clone());
        actix_rt::spawn(async move {
            let reply = match read_commands(&element, &host) {
                Ok(Commands::One(command)) => handle.command(command, Some(host.clone())).await,
                Ok(Commands::List { start, recipients }) => {
                    start_list(&handle, &host, start, recipients).await
                }
                Err(says) => crate::broadcast::Problem::reply(ProblemKind::Request, says),
            };
            let answer = written(&reply);
            outbox.tell(link, vec![ToLink::Response(Response { host, request, answer })]);
        });
    }
}

const CLOSED: &str = "the link was closed";

/// What a result says.
fn answer(iq: &Element) -> Answered {
    if let Some(accounts) = iq.child("accounts", ns::INTERCEPT) {
        let names = accounts.children.iter().filter(|c| c.is("account", ns::INTERCEPT));
        return Answered::Accounts {
            names: names.map(|account| account.text.clone()).collect(),
            complete: matches!(accounts.attr("complete"), Some("true" | "1")),
        };
    }
    let outcome = iq.child("send", ns::INTERCEPT).and_then(|send| send.attr("outcome"));
    Answered::Settled(match outcome {
        Some("stored") => Fate::Stored,
        Some("discarded") => Fate::Discarded,
        // One that does not know of outcomes has routed it.
        _ => Fate::Delivered,
    })
}

/// What an error says: of type modify, it will be the same next time.
fn refusal(iq: &Element) -> Answered {
    let error = iq.children.iter().find(|child| child.name == "error");
    let kind = error.and_then(|error| error.attr("type")).unwrap_or("cancel");
    let text = error.and_then(|error| error.child("text", ns::STANZAS)).map(|t| t.text.clone());
    let condition = error.and_then(|error| error.children.iter().find(|c| c.ns == ns::STANZAS));
    let condition = condition.map_or("undefined-condition", |c| c.name.as_str()).to_owned();
    let says: String = text.unwrap_or(condition).chars().take(200).collect();
    if kind == "modify" { Answered::Refused(says) } else { Answered::Failed(says) }
}

enum Commands {
    One(Command),
    /// A broadcast to a list: several commands.
    List {
        start: Command,
        recipients: Vec<String>,
    },
}

fn read_commands(element: &Element, host: &str) -> Result<Commands, String> {
    let attr = |name: &str| element.attr(name).ok_or_else(|| format!("'{name}' is missing"));
    let broadcast = || -> Result<i64, String> {
        attr("id")?.parse().map_err(|_| "'id' is no number".to_owned())
    };
    Ok(Commands::One(match attr("action")? {
        "start" => return start(element, host),
        "list" => Command::List {},
        "status" => Command::Status { broadcast: broadcast()? },
        "pause" => Command::Pause { broadcast: broadcast()? },
        "resume" => Command::Resume { broadcast: broadcast()? },
        "cancel" => Command::Cancel { broadcast: broadcast()? },
        other => return Err(format!("'{other}' is no action")),
    }))
}

fn start(element: &Element, host: &str) -> Result<Commands, String> {
    let text = |name: &str| element.child(name, ns::INTERCEPT).map(|c| c.text.as_str());
    let body = text("body").unwrap_or_default();
    let payload = Payload::text(text("subject"), body).map_err(|e| format!("the message: {e}"))?;
    let rate = element.attr("rate").map_or(Ok(crate::broadcast::DEFAULT_RATE), str::parse);
    let recipients = element.children.iter().filter(|c| c.is("recipient", ns::INTERCEPT));
    let recipients: Vec<String> =
        recipients.filter_map(|c| c.attr("jid")).map(str::to_owned).collect();
    let everyone = matches!(element.attr("everyone"), Some("true" | "1"));
    let start = Command::Start {
        host: host.to_owned(),
        everyone,
        stanza: payload.as_str().to_owned(),
        expires_at: element.attr("expires").unwrap_or_default().to_owned(),
        rate: rate.map_err(|_| "'rate' is no number".to_owned())?,
    };
    match (everyone, recipients.is_empty()) {
        (true, true) => Ok(Commands::One(start)),
        (false, false) => Ok(Commands::List { start, recipients }),
        (true, false) => Err("it is to everyone, and to a list as well".to_owned()),
        (false, true) => Err("it has no recipients".to_owned()),
    }
}

/// A broadcast whose list came with it. One that can't be begun is cancelled.
async fn start_list(
    handle: &crate::broadcast::BroadcastHandle,
    host: &Arc<str>,
    start: Command,
    recipients: Vec<String>,
) -> Reply {
    let command = |command: Command| handle.command(command, Some(host.clone()));
    let broadcast = match command(start).await {
        Reply::Broadcast(report) => report.id,
        other => return other,
    };
    for some in recipients.chunks(crate::broadcast::ADD) {
        let added = command(Command::Add { broadcast, recipients: some.to_vec() }).await;
        if let Reply::Problem(_) = added {
            command(Command::Cancel { broadcast }).await;
            return added;
        }
    }
    command(Command::Begin { broadcast }).await
}

/// A reply as an interceptor reads it.
fn written(reply: &Reply) -> Result<String, (&'static str, &'static str, String)> {
    let reports = match reply {
        Reply::Broadcast(report) => std::slice::from_ref(report),
        Reply::Broadcasts(reports) => reports,
        Reply::Problem(problem) => {
            let (kind, condition) = match problem.kind {
                ProblemKind::Unknown => ("cancel", "item-not-found"),
                ProblemKind::State => ("cancel", "unexpected-request"),
                ProblemKind::Unavailable => ("wait", "recipient-unavailable"),
                _ => ("modify", "not-acceptable"),
            };
            return Err((kind, condition, problem.says.clone()));
        }
    };
    let reports: String = reports.iter().map(report).collect();
    Ok(format!("<broadcasts xmlns='{}'>{reports}</broadcasts>", ns::INTERCEPT))
}

fn report(report: &Report) -> String {
    let optional = |name: &str, value: &Option<String>| match value {
        Some(value) => format!(" {name}='{}'", escape_attribute(value)),
        None => String::new(),
    };
    format!(
        "<broadcast id='{}' state='{}' everyone='{}' created='{}' expires='{}'{} rate='{}' \
         counting='{}' total='{}' delivered='{}' stored='{}' discarded='{}' expired='{}' \
         cancelled='{}' left='{}'>{}</broadcast>",
        report.id,
        escape_attribute(&report.state),
        report.everyone,
        report.created_at,
        report.expires_at,
        optional("ended", &report.ended_at),
        report.rate,
        report.counting,
        report.total,
        report.delivered,
        report.stored,
        report.discarded,
        report.expired,
        report.cancelled,
        report.left,
        report.trouble.as_deref().map(escape_text).unwrap_or_default(),
    )
}
