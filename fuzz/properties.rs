//! What holds for any bytes. The fuzz targets and `tests/xml` run the same.

use amphora::control::{parse_command, to_line};
use amphora::link::{read_retrieve, retrieve_reply};
use amphora::shard::wire::{Crossing, Entry, read_input};
use amphora::shard::{Answer, Ask, Asker, Listed, MAX_ITEMS, Retrieved};
use amphora::stanza::Message;
use amphora::words::LinkId;
use amphora::xml::{Element, Frame, FrameError, Framer, Limits};
use bytes::Bytes;

const OPEN: &[u8] = b"<stream:stream xmlns:stream='http://etherx.jabber.org/streams'>";
const ROOMY: Limits = Limits { stanza_bytes: 64 << 20, depth: 64 };

/// All frames, and how it ended.
type Story = (Vec<Frame>, Option<FrameError>);

/// Pushes the pieces one after the other.
fn story<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits) -> Story {
    let mut framer = Framer::new(limits);
    let mut frames = Vec::new();
    for piece in pieces {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(framer.next(), Err(error.clone()), "an error stays");
                    assert!(!error.condition().is_empty());
                    return (frames, Some(error));
                }
            }
        }
        assert!(framer.buffer().len() <= limits.stanza_bytes, "it holds one stanza at most");
    }
    (frames, None)
}

/// However bytes are split over reads, the frames are the same, and within limits.
pub fn framer(data: &[u8]) {
    for limits in [ROOMY, Limits { stanza_bytes: 40, depth: 2 }] {
        let whole = story([data], limits);
        let sizes = [1, 2, 3, 7, 64];
        for size in sizes {
            assert_eq!(story(data.chunks(size), limits), whole, "in pieces of {size}");
        }
        for frame in &whole.0 {
            if let Frame::Open(bytes) | Frame::Stanza(bytes) = frame {
                assert!(bytes.len() <= limits.stanza_bytes);
                assert!(std::str::from_utf8(bytes).is_ok());
            }
        }
    }
}

/// What the reader takes, the framer cuts out of a stream at the same places; and what is
/// written reads back as the same tree.
pub fn element(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(element) = Element::parse(text) else {
        return;
    };
    one_stanza(text.trim_matches([' ', '\t', '\r', '\n']).as_bytes());
    let written = element.to_xml();
    one_stanza(written.as_bytes());
    let again = Element::parse(&written).map_err(|error| format!("{error}: {written}"));
    assert_eq!(again.as_ref(), Ok(&element));
    assert_eq!(written, again.map(|again| again.to_xml()).unwrap_or_default());
    let inherited = Element::parse_in(&written, "urn:inherited").map_err(|error| error.to_string());
    assert_eq!(inherited.map(|e| e.name), Ok(element.name));
}

/// A message is read alike again; only forged delays go, and they are gone at once.
pub fn stanza(data: &[u8]) {
    let raw = Bytes::copy_from_slice(data);
    let Ok(message) = Message::parse(raw.clone(), "example.org") else {
        return;
    };
    one_stanza(message.raw.trim_ascii());
    assert!(
        message.raw.len() < raw.len() || message.raw.as_ptr() == raw.as_ptr(),
        "copied for nothing"
    );
    let again =
        Message::parse(message.raw.clone(), "example.org").map_err(|error| error.to_string());
    assert_eq!(again.as_ref().map(facts), Ok(facts(&message)));
    assert_eq!(again.map(|again| again.raw), Ok(message.raw.clone()));
    let _ = (message.storable(), message.is_amp_reply());
}

/// Any line is a command, which reads back the same, or is answered.
pub fn control(data: &[u8]) {
    match parse_command(data) {
        Ok(command) => {
            let line = to_line(&command);
            assert_eq!(line.iter().filter(|byte| **byte == b'\n').count(), 1, "one line");
            assert_eq!(parse_command(&line), Ok(command));
        }
        Err(problem) => assert!(to_line(&problem).len() < 8 * 1024, "an answer is short"),
    }
}

/// A request for stored messages is read without harm, and asks for no more than one may;
/// its answer is one well-formed stanza, whatever stood in the request.
pub fn retrieve(data: &[u8]) {
    let host = "example.org";
    let read = |xml: &str| {
        let element = Element::parse(xml).ok()?;
        read_retrieve(&element, host).ok()
    };
    let Some(request) = std::str::from_utf8(data).ok().and_then(read) else {
        return;
    };
    assert!(request.jid.starts_with(&format!("{}/", request.user)));
    assert!(request.user.ends_with("@example.org"));
    let answers = match request.ask {
        Ok(Ask::View(ids) | Ask::Remove(ids)) => {
            assert!((1..=MAX_ITEMS).contains(&ids.len()));
            let sender = request.jid.clone();
            vec![Answer::List(
                ids.into_iter().map(|id| Listed { id, sender: sender.clone() }).collect(),
            )]
        }
        Ok(_) => vec![Answer::Done, Answer::Count(u64::MAX)],
        Err(refused) => vec![Answer::Refused(refused)],
    };
    let asker = Asker {
        link: LinkId(1),
        host: host.into(),
        request: "r".into(),
        name: request.name,
        user: request.user,
        jid: request.jid,
        id: request.id,
    };
    for answer in answers {
        let mut xml = String::new();
        retrieve_reply(&mut xml, &Retrieved { asker: asker.clone(), answer });
        one_stanza(xml.as_bytes());
        let iq = Element::parse(&xml).map_err(|error| format!("{error}: {xml}"));
        let iq = iq.as_ref();
        assert_eq!(iq.map(|iq| iq.attr("to")), Ok(Some(&*asker.jid)));
        assert_eq!(iq.map(|iq| iq.attr("id")), Ok(Some(&*asker.id)));
    }
}

fn facts(message: &Message) -> String {
    format!("{:?}", Message { raw: Bytes::new(), ..message.clone() })
}

fn one_stanza(xml: &[u8]) {
    let (frames, error) = story([OPEN, xml], ROOMY);
    assert_eq!(error, None, "{}", String::from_utf8_lossy(xml));
    assert_eq!(frames[1..], [Frame::Stanza(Bytes::copy_from_slice(xml))]);
}

/// What another node says is read without harm; what was read is written, and reads the same.
pub fn crossing(data: &[u8]) {
    let read = |bytes: Bytes| Crossing::read(bytes, 7);
    let Ok(crossing) = read(Bytes::copy_from_slice(data)) else {
        return;
    };
    let text = format!("{crossing:?}");
    let entry = match crossing {
        Crossing::Ask { shard, epoch, user, input } => {
            // Only a node's own links are written: read as they are by their own node.
            let own = read_input(body_of_ask(data), 0);
            let Ok((_, own)) = own else { panic!("read once, and not again: {text}") };
            let body = Entry::body_of_ask(&user, &own).expect("what was read can be written");
            drop(input);
            Entry::ask(shard, epoch, ask_again(data), body)
        }
        Crossing::NotMine { shard, epoch } => Entry::not_mine(shard, epoch),
        Crossing::Tell { link, what } => {
            Entry::tell(LinkId::of_peer(7, link.number()), &what).expect("what was read")
        }
        Crossing::LinkDown(link) => Entry::link_down(LinkId(link.number().into())),
        Crossing::HostDown(link, host) => Entry::host_down(LinkId(link.number().into()), &host),
        Crossing::Hosts(hosts) => Entry::hosts(&hosts),
        Crossing::Send(send) => Entry::send(&send),
        Crossing::Request(request) => Entry::request(&request),
        Crossing::Answered { number, answer } => Entry::answered(number, &answer),
        Crossing::Command { number, host, command } => {
            Entry::command(number, host.as_deref(), &command)
        }
        Crossing::Reply { number, reply } => Entry::reply(number, &reply),
    };
    let mut bytes = Vec::new();
    entry.write(&mut bytes);
    assert!(bytes.len() <= entry.size());
    let again = read(bytes.into()).map(|again| format!("{again:?}"));
    assert_eq!(again.as_ref(), Ok(&text));
}

/// The flag of an ask, and what stands behind it: behind the kind and two numbers.
fn after_numbers(data: &[u8]) -> usize {
    let mut at = 1;
    for _ in 0..2 {
        while data[at] & 0x80 != 0 {
            at += 1;
        }
        at += 1;
    }
    at
}

fn ask_again(data: &[u8]) -> bool {
    data[after_numbers(data)] == 1
}

fn body_of_ask(data: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&data[after_numbers(data) + 1..])
}
