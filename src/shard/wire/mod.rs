//! What crosses from one node to another, as bytes.
//!
//! Nothing here believes a byte: what no node writes is an error. An intercept's message is read
//! again from its own bytes by the one who decides.

mod basics;
mod effect;
mod input;

use bytes::Bytes;

use crate::words::{Bare, LinkId, ShardId};

use super::effect::{Send, ToLink};
use super::input::Input;
use super::request::{Answered, Request};
use basics::{In, Out, flag, list, number, optional, text};

pub use basics::Unreadable;
pub use input::read_input;

/// The form in which nodes write to each other. Those of other forms don't talk: raised with every
/// change to what is written here or in the batches of the channel.
pub const VERSION: u8 = 1;

const ASK: u8 = 1;
const NOT_MINE: u8 = 2;
const TELL: u8 = 3;
const LINK_DOWN: u8 = 4;
const HOST_DOWN: u8 = 5;
const HOSTS: u8 = 6;
const SEND: u8 = 7;
const REQUEST: u8 = 8;
const ANSWERED: u8 = 9;
const COMMAND: u8 = 10;
const REPLY: u8 = 11;

/// A host that a node has a link to, and the bytes that its server takes in one stanza.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LinkedHost {
    /// Its name.
    pub name: std::sync::Arc<str>,
    /// Bytes.
    pub max_stanza: usize,
}

/// What came from another node.
#[derive(Debug)]
pub enum Crossing {
    /// A link of that node says something to a shard that should be here.
    Ask {
        /// Which shard.
        shard: ShardId,
        /// With which epoch the other believes it to be here.
        epoch: u32,
        /// Whose.
        user: Bare,
        /// What.
        input: Input,
    },
    /// A shard that was asked is not at that node, or not with that epoch.
    NotMine {
        /// Which shard.
        shard: ShardId,
        /// With which epoch it was asked.
        epoch: u32,
    },
    /// A shard of that node says something on a link of this one.
    Tell {
        /// The link.
        link: LinkId,
        /// What.
        what: ToLink,
    },
    /// A link of that node has closed.
    LinkDown(LinkId),
    /// The interceptor of a host on a link of that node was loaded anew.
    HostDown(LinkId, std::sync::Arc<str>),
    /// The hosts that the node has links to, all of them.
    Hosts(Vec<LinkedHost>),
    /// A stanza to be sent by a server of this node.
    Send(Send),
    /// Something to be asked of a server of this node.
    Request(Request),
    /// The answer to such a thing, asked by this node.
    Answered {
        /// The request's number.
        number: u64,
        /// The answer.
        answer: Answered,
    },
    /// An administrator's command, for the node that runs the broadcasts.
    Command {
        /// Comes back with the reply.
        number: u64,
        /// The only host that he may ask for; none: any.
        host: Option<std::sync::Arc<str>>,
        /// The command, as it stands on a line of the control socket.
        command: Bytes,
    },
    /// The reply to one.
    Reply {
        /// The command's number.
        number: u64,
        /// The reply, as it stands on a line.
        reply: Bytes,
    },
}

/// One thing on its way to another node: a few words, and what they are about, written once for
/// as often as it has to be sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    head: Head,
    body: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Head {
    Ask { shard: ShardId, epoch: u32, again: bool },
    NotMine { shard: ShardId, epoch: u32 },
    Tell { link: u32 },
    LinkDown { link: u32 },
    HostDown { link: u32 },
    Hosts,
    Send,
    Request,
    Answered,
    Command,
    Reply,
}

impl Entry {
    /// To a shard of the other node, in whose body [`Entry::body_of_ask`] has written what. `again`: it
    /// was sent before.
    pub fn ask(shard: ShardId, epoch: u32, again: bool, body: Bytes) -> Self {
        Entry { head: Head::Ask { shard, epoch, again }, body }
    }

    /// What a link of this node says to a shard; none: it is nothing that leaves a node.
    pub fn body_of_ask(user: &Bare, input: &Input) -> Option<Bytes> {
        // Room for most messages, so that it is not moved.
        let mut out = Vec::with_capacity(1024);
        input::write_input(&mut out, user, input).then(|| out.into())
    }

    /// A shard is not here, or not with that epoch.
    pub fn not_mine(shard: ShardId, epoch: u32) -> Self {
        Entry { head: Head::NotMine { shard, epoch }, body: Bytes::new() }
    }

    /// To a link of the other node; none: a shard says no such thing.
    pub fn tell(link: LinkId, what: &ToLink) -> Option<Self> {
        let head = Head::Tell { link: link.number() };
        let mut out = Vec::with_capacity(128);
        effect::write_to_link(&mut out, what).then(|| Entry { head, body: out.into() })
    }

    /// A link of this node has closed.
    pub fn link_down(link: LinkId) -> Self {
        Entry { head: Head::LinkDown { link: link.number() }, body: Bytes::new() }
    }

    /// An interceptor on a link of this node was loaded anew.
    pub fn host_down(link: LinkId, host: &str) -> Self {
        let body = Bytes::copy_from_slice(host.as_bytes());
        Entry { head: Head::HostDown { link: link.number() }, body }
    }

    /// The hosts that this node has links to.
    pub fn hosts(hosts: &[LinkedHost]) -> Self {
        Self::written(Head::Hosts, |out| {
            list(out, hosts, |out, host| {
                text(out, &host.name);
                number(out, host.max_stanza as u64);
            });
        })
    }

    /// To be sent by a server of the other node.
    pub fn send(send: &Send) -> Self {
        Self::written(Head::Send, |out| effect::write_send(out, send))
    }

    /// To be asked of a server of the other node.
    pub fn request(request: &Request) -> Self {
        Self::written(Head::Request, |out| effect::write_request(out, request))
    }

    /// The answer to what the other node asked.
    pub fn answered(number: u64, answer: &Answered) -> Self {
        Self::written(Head::Answered, |out| effect::write_answered(out, number, answer))
    }

    /// A command for the node that runs the broadcasts.
    pub fn command(number: u64, host: Option<&str>, command: &[u8]) -> Self {
        Self::written(Head::Command, |out| {
            basics::number(out, number);
            optional(out, host, text);
            basics::bytes(out, command);
        })
    }

    /// The reply to one.
    pub fn reply(number: u64, reply: &[u8]) -> Self {
        Self::written(Head::Reply, |out| {
            basics::number(out, number);
            basics::bytes(out, reply);
        })
    }

    fn written(head: Head, write: impl FnOnce(&mut Out)) -> Self {
        let mut out = Vec::with_capacity(256);
        write(&mut out);
        Entry { head, body: out.into() }
    }

    /// Appends it to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self.head {
            Head::Ask { shard, epoch, again } => {
                out.push(ASK);
                write_shard(out, shard, epoch);
                flag(out, again);
            }
            Head::NotMine { shard, epoch } => {
                out.push(NOT_MINE);
                write_shard(out, shard, epoch);
            }
            Head::Tell { link } => write_link(out, TELL, link),
            Head::LinkDown { link } => write_link(out, LINK_DOWN, link),
            Head::HostDown { link } => write_link(out, HOST_DOWN, link),
            Head::Hosts => out.push(HOSTS),
            Head::Send => out.push(SEND),
            Head::Request => out.push(REQUEST),
            Head::Answered => out.push(ANSWERED),
            Head::Command => out.push(COMMAND),
            Head::Reply => out.push(REPLY),
        }
        out.extend_from_slice(&self.body);
    }

    /// Bytes that it takes, and never less.
    pub fn size(&self) -> usize {
        HEAD + self.body.len()
    }
}

/// The most bytes of the words in front.
const HEAD: usize = 12;

fn write_shard(out: &mut Out, shard: ShardId, epoch: u32) {
    number(out, u64::from(shard.0));
    number(out, u64::from(epoch));
}

fn write_link(out: &mut Out, kind: u8, link: u32) {
    out.push(kind);
    number(out, u64::from(link));
}

impl Crossing {
    /// Reads what the node with that incarnation number has written. What is cut out shares the
    /// memory of `bytes`.
    ///
    /// # Errors
    ///
    /// It is not what a node writes.
    pub fn read(bytes: Bytes, from: u32) -> Result<Crossing, Unreadable> {
        let mut body = In::new(bytes);
        let crossing = match body.byte()? {
            ASK => return ask(body, from),
            NOT_MINE => Crossing::NotMine { shard: ShardId(body.small()?), epoch: body.small()? },
            TELL => {
                let link = LinkId(u64::from(body.small()?));
                Crossing::Tell { link, what: effect::read_to_link(&mut body)? }
            }
            LINK_DOWN => Crossing::LinkDown(peer_link(&mut body, from)?),
            HOST_DOWN => {
                let link = peer_link(&mut body, from)?;
                let host = body.rest();
                let host = std::str::from_utf8(&host);
                let host = host.map_err(|_| Unreadable("a text is not UTF-8"))?.into();
                return Ok(Crossing::HostDown(link, host));
            }
            HOSTS => Crossing::Hosts(body.list(|body| {
                let name = body.text()?;
                Ok(LinkedHost { name, max_stanza: body.size()? })
            })?),
            SEND => Crossing::Send(effect::read_send(&mut body)?),
            REQUEST => Crossing::Request(effect::read_request(&mut body)?),
            ANSWERED => {
                let (number, answer) = effect::read_answered(&mut body)?;
                Crossing::Answered { number, answer }
            }
            COMMAND => Crossing::Command {
                number: body.number()?,
                host: body.optional(In::text)?,
                command: body.bytes()?,
            },
            REPLY => Crossing::Reply { number: body.number()?, reply: body.bytes()? },
            _ => return Err(Unreadable("an unknown kind")),
        };
        body.end()?;
        Ok(crossing)
    }
}

fn ask(mut body: In, from: u32) -> Result<Crossing, Unreadable> {
    let (shard, epoch) = (ShardId(body.small()?), body.small()?);
    let again = body.flag()?;
    let (user, mut input) = read_input(body.rest(), from)?;
    if let Input::Intercept(intercept) = &mut input {
        intercept.again |= again;
    }
    Ok(Crossing::Ask { shard, epoch, user, input })
}

fn peer_link(body: &mut In, from: u32) -> Result<LinkId, Unreadable> {
    match body.small()? {
        0 => Err(Unreadable("no link has the number zero")),
        link => Ok(LinkId::of_peer(from, link)),
    }
}

#[cfg(test)]
mod tests;
