//! One authenticated stream: what comes in goes to the router, what shards decide goes out.
//!
//! Reading and writing run side by side and never wait for each other: a node never stops
//! reading a link.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use crate::amp::{self, Refusal, RuleSet, SecurityLevel, StanzaError};
use crate::router::{Everywhere, HostsChanged, Route};
use crate::shard::{
    Answer, Asked, Asker, Available, Do, DueEvent, ITEM_OVERHEAD, Input, Intercept, Leg, Retrieve,
    Retrieved, Sent, Stage, Taken, ToLink, Verdict, reply_to,
};
use crate::stanza::{Message, MessageType};
use crate::words::{Bare, Key, LinkId, MessageId};
use crate::xml::{Element, Frame};
use crate::{amp::Envelope, ns};

use super::ask::Asked as Underway;
use super::counters::Counters;
use super::error::LinkError;
use super::keep::{LinkContext, LinkSettings, Stop};
use super::order::Refused;
use super::read::{Held, Incoming, Malformed, read};
use super::retrieve::{self, Request};
use super::speak::GREETING;
use super::stream::{self, Incoming as Stream};
use super::window::{TOO_MANY_INTERCEPTS, Waiting, Window};
use super::write::Writer;

/// What a server takes in one stanza if its interceptor does not say.
pub(super) const DEFAULT_MAX_STANZA: usize = 512 * 1024;

/// One host on a link.
#[derive(Debug)]
pub(super) struct Host {
    pub greeted: bool,
    pub asked: Option<Instant>,
    pub max_stanza: usize,
}

impl Default for Host {
    fn default() -> Self {
        Host { greeted: false, asked: None, max_stanza: DEFAULT_MAX_STANZA }
    }
}

#[derive(Debug)]
pub(super) struct State {
    pub hosts: HashMap<Arc<str>, Host>,
    pub window: Window,
    pub refused: Refused,
    /// Notices under way, by the id of their request.
    pub sends: HashMap<String, (Bare, MessageId, Instant)>,
    /// Requests of broadcasts under way, by their ids.
    pub requests: HashMap<String, Underway>,
    /// Keys of intercepts that are not answered.
    pub unanswered: HashSet<Key>,
    pub next_iq: u64,
    pub heard: Instant,
    pub pinged: Option<Instant>,
    /// What the reading side has to say.
    pub out: String,
    pub verdicts: Vec<Verdict>,
}

/// One authenticated stream.
pub struct Session<'a> {
    pub(super) id: LinkId,
    pub(super) settings: &'a LinkSettings,
    pub(super) context: &'a LinkContext,
    pub(super) writer: Writer,
    pub(super) counters: Counters,
    pub(super) state: RefCell<State>,
    /// Wakes the writing side.
    pub(super) wake: Notify,
}

impl<'a> Session<'a> {
    /// A stream that was authenticated just now.
    pub fn new(id: LinkId, settings: &'a LinkSettings, context: &'a LinkContext) -> Self {
        let hosts = settings.hosts.iter().map(|h| (h.clone(), Host::default())).collect();
        let state = State {
            hosts,
            window: Window::default(),
            refused: Refused::default(),
            sends: HashMap::new(),
            requests: HashMap::new(),
            unanswered: HashSet::new(),
            next_iq: 0,
            heard: Instant::now(),
            pinged: None,
            out: String::new(),
            verdicts: Vec::new(),
        };
        Session {
            id,
            settings,
            context,
            writer: Writer::new(&settings.component),
            counters: Counters::new(),
            state: RefCell::new(state),
            wake: Notify::new(),
        }
    }

    /// Runs until the stream ends or the node stops. The other side is told why.
    pub async fn run<R, W>(
        &self,
        mut incoming: Stream<R>,
        mut sink: W,
        shards: &mut mpsc::UnboundedReceiver<Vec<ToLink>>,
    ) -> Result<(), LinkError>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let ended = tokio::select! {
            read = self.read_all(&mut incoming) => read,
            written = self.write_all(&mut sink, shards) => written,
        };
        let mut last = String::new();
        if let Err(error) = &ended
            && let Some(condition) = error.condition()
        {
            last = format!(
                "<stream:error><{condition} xmlns='{}'/></stream:error>",
                ns::STREAM_ERRORS
            );
        }
        last.push_str("</stream:stream>");
        // The stream is over; whether the other side still reads that changes nothing.
        let _ = tokio::time::timeout(Duration::from_secs(1), sink.write_all(last.as_bytes())).await;
        ended
    }

    /// The notices that were under way, or waited to be sent, come to nothing on this link.
    pub fn give_up_sends(&self, shards: &mut mpsc::UnboundedReceiver<Vec<ToLink>>) {
        shards.close();
        let sent = std::mem::take(&mut self.state.borrow_mut().sends);
        let mut failed: Vec<_> = sent.into_values().map(|(user, id, _)| (user, id)).collect();
        while let Ok(said) = shards.try_recv() {
            failed.extend(said.into_iter().filter_map(|what| match what {
                ToLink::Send(send) => Some((send.user, send.id)),
                ToLink::Request(request) => {
                    self.give_up_request(&request);
                    None
                }
                _ => None,
            }));
        }
        self.give_up_requests(None);
        let inputs = failed
            .into_iter()
            .map(|(user, id)| (user.clone(), Input::Sent { user, id, sent: Sent::Failed }));
        self.context.router.do_send(Route(inputs.collect()));
    }

    async fn read_all<R: AsyncRead + Unpin>(
        &self,
        incoming: &mut Stream<R>,
    ) -> Result<(), LinkError> {
        let mut stop = self.context.stop.clone();
        let mut inputs = Vec::new();
        loop {
            while let Some(frame) = incoming.buffered()? {
                match frame {
                    Frame::Stanza(stanza) => self.stanza(&stanza, &mut inputs)?,
                    Frame::TooDeep | Frame::TooLarge => {
                        tracing::warn!("a stanza that is too deep or too large is left out");
                        metrics::counter!("amphora_stanzas_skipped_total").increment(1);
                    }
                    Frame::Close => return Err(LinkError::Closed),
                    Frame::Open(_) => return Err(LinkError::Protocol("a second stream header")),
                }
            }
            if !inputs.is_empty() {
                self.context.router.do_send(Route(std::mem::take(&mut inputs)));
            }
            let unanswered = self.state.borrow().unanswered.len();
            metrics::gauge!("amphora_intercepts_unanswered", "component" => self.settings.component.to_string()).set(unanswered as f64);
            if unanswered > TOO_MANY_INTERCEPTS {
                return Err(LinkError::Window(TOO_MANY_INTERCEPTS));
            }
            tokio::select! {
                filled = incoming.fill() => filled?,
                // A node that stops takes nothing more, and lets the writing side end.
                // (The guard that `wait_for` gives must not be held on to.)
                () = async { drop(stop.wait_for(|stop| *stop != Stop::No).await) } => {
                    std::future::pending().await
                }
            }
            let mut state = self.state.borrow_mut();
            state.heard = Instant::now();
            state.pinged = None;
        }
    }

    fn stanza(
        &self,
        stanza: &bytes::Bytes,
        inputs: &mut Vec<(Bare, Input)>,
    ) -> Result<(), LinkError> {
        if stanza.starts_with(b"<stream:") {
            let element = stream::top_level(stanza)?;
            return Err(stream::stream_error(&element));
        }
        for said in read(stanza, &self.settings.component, &self.settings.hosts)? {
            match said {
                Incoming::Intercept { host, held } => inputs.extend(self.intercept(&host, *held)),
                Incoming::Malformed(malformed) => self.malformed(malformed),
                Incoming::Available { host, session, n, user, archive } => {
                    let Some(host) = self.host(&host) else {
                        continue;
                    };
                    let batch_bytes = self.max_stanza(&host) / 2;
                    let available = Available {
                        link: self.id,
                        host,
                        session,
                        n,
                        user: user.clone(),
                        archive,
                        batch_bytes,
                    };
                    inputs.push((user, Input::Available(available)));
                }
                Incoming::Taken { host, session, user, batch, ids, ended } => {
                    let Some(host) = self.host(&host) else {
                        continue;
                    };
                    self.taken(&session, batch, ended);
                    if user.is_empty() {
                        continue;
                    }
                    let link = self.id;
                    let taken =
                        Taken { link, host, session, user: user.clone(), batch, ids, ended };
                    inputs.push((user, Input::Taken(taken)));
                }
                Incoming::Hello { host } => self.hello(&host),
                Incoming::Iq(iq) => inputs.extend(self.iq(&iq)),
                Incoming::Unreadable(error) => {
                    tracing::warn!("an iq of a host can't be read and is left out: {error}");
                }
                Incoming::Other => {}
            }
        }
        Ok(())
    }

    /// An interceptor that was loaded anew knows of no node until it is greeted.
    fn hello(&self, host: &str) {
        let Some(host) = self.host(host) else {
            return;
        };
        let mut state = self.state.borrow_mut();
        let known = state.hosts.insert(host.clone(), Host::default());
        state.window.forget_host(&host);
        drop(state);
        if known.is_some_and(|known| known.greeted) {
            self.context.outbox.set_greeted(self.id, &host, None);
            self.give_up_requests(Some(&host));
            self.context.router.do_send(Everywhere::HostDown(self.id, host));
        }
        self.greet();
        self.wake.notify_one();
    }

    fn host(&self, name: &str) -> Option<Arc<str>> {
        self.settings.hosts.iter().find(|host| &***host == name).cloned()
    }

    fn max_stanza(&self, host: &str) -> usize {
        let state = self.state.borrow();
        state.hosts.get(host).map_or(DEFAULT_MAX_STANZA, |h| h.max_stanza)
    }

    fn is_greeted(&self, host: &str) -> bool {
        self.state.borrow().hosts.get(host).is_some_and(|h| h.greeted)
    }

    /// Makes an input of a held message, unless the link answers it itself.
    fn intercept(&self, host: &str, held: Held) -> Option<(Bare, Input)> {
        let host = self.host(host)?;
        if !self.is_greeted(&host) {
            tracing::debug!(host = &*host, key = &*held.key, "an intercept before the greeting");
            return None;
        }
        self.counters.intercept(held.stage);
        let too_large = held.message.raw.len() + ITEM_OVERHEAD > self.max_stanza(&host);
        let rules = rules_of(&held, self.context.security);
        let silent = rules.is_some() && is_silent(&held, self.context.security);
        let intercept = Intercept {
            link: self.id,
            host,
            key: held.key,
            after: self.state.borrow().refused.resolve(held.after),
            again: held.again,
            stage: held.stage,
            leg: held.leg,
            to: held.to,
            account: held.account,
            archived: held.archived,
            sessions: held.sessions,
            forwards_to: held.forwards_to,
            gateway: held.gateway,
            stamp: held.stamp.unwrap_or_else(|| (self.context.clock)()),
            message: held.message,
            silent,
            rules,
        };
        // Until it has left the stage of its rules, a refusal is by the message alone.
        let at_rules = intercept.stage == Stage::Rules;
        if too_large {
            let told = at_rules || !silent;
            let bounce = told.then(|| reply_to::bounce(&intercept, StanzaError::POLICY_VIOLATION));
            self.refuse(&intercept, bounce.flatten());
            return None;
        }
        if silent
            && at_rules
            && let Some(Err(refusal)) = &intercept.rules
        {
            let reply = reply_to::refusal(&intercept, refusal);
            self.refuse(&intercept, Some(reply));
            return None;
        }
        self.state.borrow_mut().unanswered.insert(intercept.key.clone());
        Some((intercept.to.clone(), Input::Intercept(Box::new(intercept))))
    }

    /// Answers an intercept without any shard.
    fn refuse(&self, intercept: &Intercept, reply: Option<String>) {
        let mut state = self.state.borrow_mut();
        state.refused.insert(intercept.key.clone(), intercept.after.clone());
        state.verdicts.push(Verdict {
            host: intercept.host.clone(),
            key: intercept.key.clone(),
            stage: intercept.stage,
            what: Do::Discarded,
            silent: false,
            sends: reply.into_iter().collect(),
        });
        metrics::counter!("amphora_refused_by_link_total").increment(1);
        self.wake.notify_one();
    }

    fn malformed(&self, malformed: Malformed) {
        let Malformed { host, key, stage, may_see_presence, from, to, id, reason } = malformed;
        tracing::error!(
            host,
            key = key.as_deref(),
            "an intercept can't be read, its message is refused: {reason}"
        );
        metrics::counter!("amphora_intercepts_malformed_total").increment(1);
        let (Some(key), Some(host)) = (key, self.host(&host)) else {
            return;
        };
        // It may have had rules.
        let silent =
            stage != Stage::Rules && amp::is_silent(self.context.security, may_see_presence);
        let bounce = from.zip(to).filter(|_| !silent).map(|(from, to)| {
            let envelope =
                Envelope { host: &host, sender: &from, recipient: &to, id: id.as_deref() };
            reply_to::plain(&envelope, StanzaError::BAD_REQUEST)
        });
        let mut state = self.state.borrow_mut();
        state.refused.insert(key.clone(), None);
        let sends = bounce.into_iter().collect();
        let what = Do::Discarded;
        state.verdicts.push(Verdict { host, key, stage, what, silent: false, sends });
        self.wake.notify_one();
    }

    fn taken(&self, session: &Arc<str>, batch: u64, ended: bool) {
        let mut state = self.state.borrow_mut();
        state.window.taken(session, batch);
        if ended {
            state.window.ended(session);
        }
        self.wake.notify_one();
    }

    fn iq(&self, iq: &Element) -> Option<(Bare, Input)> {
        let (from, id) = (iq.attr("from").unwrap_or_default(), iq.attr("id").unwrap_or_default());
        let host = self.host(from)?;
        match iq.attr("type") {
            Some("result") => self.answered(&host, id, iq, true),
            Some("error") => self.answered(&host, id, iq, false),
            Some("set")
                if let Some(removed) = iq.child("account-removed", ns::INTERCEPT)
                    && let Some(jid) = removed.attr("jid") =>
            {
                let user: Bare = jid.into();
                let request = id.to_owned();
                let at = removed.attr("stamp").and_then(|stamp| stamp.parse().ok());
                let at = at.unwrap_or_else(|| (self.context.clock)());
                let asked = Asked { link: self.id, host, request };
                let input = Input::AccountRemoved { user: user.clone(), at, asked };
                Some((user, input))
            }
            Some("get" | "set") if let Some(asked) = iq.child("broadcast", ns::INTERCEPT) => {
                self.broadcast_command(&host, id, asked);
                None
            }
            Some("get") if let Some(retrieve) = iq.child("retrieve", ns::INTERCEPT) => {
                self.retrieve(host, id, retrieve)
            }
            Some("get") if iq.child("ping", "urn:xmpp:ping").is_some() => {
                self.writer.result(&mut self.state.borrow_mut().out, &host, id);
                self.wake.notify_one();
                None
            }
            Some("get" | "set") => {
                let out = &mut self.state.borrow_mut().out;
                self.writer.error(out, &host, id, "cancel", "feature-not-implemented");
                self.wake.notify_one();
                None
            }
            _ => None,
        }
    }

    /// A user asks for his messages. What XEP-0013 does not allow is answered here.
    fn retrieve(&self, host: Arc<str>, id: &str, retrieve: &Element) -> Option<(Bare, Input)> {
        let batch_bytes = self.max_stanza(&host) / 2;
        let request = match retrieve::read(retrieve, &host) {
            Ok(request) => request,
            Err(flaw) => {
                tracing::error!(host = &*host, "a request for a user's messages: {flaw}");
                let out = &mut self.state.borrow_mut().out;
                self.writer.error(out, &host, id, "modify", "bad-request");
                self.wake.notify_one();
                return None;
            }
        };
        let Request { name, user, jid, id: of_user, ask } = request;
        let (link, request) = (self.id, id.to_owned());
        let asker = Asker { link, host, request, name, user, jid, id: of_user };
        metrics::counter!("amphora_retrievals_total").increment(1);
        match ask {
            Ok(ask) => {
                let user = asker.user.clone();
                Some((user, Input::Retrieve(Retrieve { asker, ask, batch_bytes })))
            }
            Err(refused) => {
                let answer = Answer::Refused(refused);
                let retrieved = Waiting::Retrieved(Retrieved { asker, answer });
                self.state.borrow_mut().window.push(retrieved);
                self.wake.notify_one();
                None
            }
        }
    }

    fn answered(
        &self,
        host: &Arc<str>,
        id: &str,
        iq: &Element,
        well: bool,
    ) -> Option<(Bare, Input)> {
        if let Some((user, message, _)) = self.state.borrow_mut().sends.remove(id) {
            let sent = if well { Sent::Done } else { Sent::Failed };
            return Some((user.clone(), Input::Sent { user, id: message, sent }));
        }
        if self.request_answered(id, iq, well) {
            return None;
        }
        if id.starts_with('g') {
            self.greeting_answered(host, iq, well);
        }
        None
    }

    fn greeting_answered(&self, host: &Arc<str>, iq: &Element, well: bool) {
        let greeting = iq.child("greeting", ns::INTERCEPT).filter(|_| well);
        let Some(greeting) = greeting.filter(|g| g.attr("version") == Some("1")) else {
            tracing::warn!(
                component = &*self.settings.component,
                host = &**host,
                "the host does not answer as an interceptor: load the module on it and name this component in its option (`amphora_components` in Prosody); asked again in {} s",
                GREETING.as_secs()
            );
            return;
        };
        let max_stanza = greeting.attr("max-stanza").and_then(|m| m.parse().ok());
        let mut state = self.state.borrow_mut();
        let Some(known) = state.hosts.get_mut(host) else {
            return;
        };
        known.max_stanza = max_stanza.unwrap_or(DEFAULT_MAX_STANZA);
        known.greeted = true;
        tracing::info!(
            component = &*self.settings.component,
            host = &**host,
            server = greeting.attr("server"),
            module = greeting.attr("module"),
            acks = greeting.attr("acks"),
            "host greeted"
        );
        self.context.health.set_host_greeted(&self.settings.component, host);
        self.context.outbox.set_greeted(self.id, host, Some(known.max_stanza));
        self.context.broadcasts.host_up(host.clone(), known.max_stanza);
        self.context.router.do_send(HostsChanged);
        // The clock ends only when the node does.
        let _ = self.context.due.send(DueEvent::Anew);
    }
}

/// Whether nothing about the message may go back. Never at the sender's leg: what is decided
/// there depends on the message and the clock alone, and the recipient's own server applies
/// its level to what reaches it.
fn is_silent(held: &Held, security: SecurityLevel) -> bool {
    held.leg == Leg::Recipient && amp::is_silent(security, held.may_see_presence)
}

/// The rules that are to be looked at, validated: none in errors, in what a room says
/// or is said about, and in replies of this system. Of a right that was lost after the
/// rules had been accepted, only the answers are.
fn rules_of(held: &Held, security: SecurityLevel) -> Option<Result<RuleSet, Refusal>> {
    let message: &Message = &held.message;
    let looked_at = !message.amp.is_empty()
        && !message.is_amp_reply()
        && !message.muc
        && !matches!(message.kind, MessageType::Error | MessageType::Groupchat);
    looked_at.then(|| {
        let rules = amp::check(&message.amp, message.id.as_deref())?;
        let may_see = held.may_see_presence || held.leg != Leg::Recipient;
        if held.stage == Stage::Rules || !is_silent(held, security) {
            amp::permit(&rules, security, may_see)?;
        }
        Ok(rules)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message with that rule on that leg, from someone who may not see the presence.
    fn held(action: &str, leg: &str) -> Held {
        let stanza = format!(
            "<message from='h' to='amp.h'><intercept xmlns='{}' key='k' stage='rules' leg='{leg}' \
             to='b@h'><forwarded xmlns='{}'><message xmlns='jabber:client' from='a@h/r' to='b@h' \
             id='1'><amp xmlns='{}'><rule action='{action}' condition='deliver' value='direct'/>\
             </amp></message></forwarded></intercept></message>",
            ns::INTERCEPT,
            ns::FORWARD,
            ns::AMP
        );
        let said = read(&stanza.into(), "amp.h", &["h".into()]).unwrap();
        match said.into_iter().next() {
            Some(Incoming::Intercept { held, .. }) => *held,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn r71_r72_a_level_asks_for_presence_at_the_recipients_leg_alone() {
        use SecurityLevel::{None, Performance, Strict};
        for (security, leg, action, accepted) in [
            (Strict, "recipient", "notify", false),
            (Strict, "sender", "notify", true),
            (Performance, "recipient", "notify", false),
            (Performance, "sender", "notify", false),
            (Performance, "sender", "drop", true),
            (None, "recipient", "notify", true),
            (None, "sender", "notify", true),
        ] {
            let rules = rules_of(&held(action, leg), security).unwrap();
            assert_eq!(rules.is_ok(), accepted, "{security:?} at the {leg}'s: {action}");
            let silent = security == Strict && leg == "recipient";
            assert_eq!(is_silent(&held(action, leg), security), silent, "{security:?}, {leg}");
        }
    }
}
