//! Opening a stream and proving the secret (XEP-0114 section 3).

use std::time::Duration;

use bytes::BytesMut;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::ns;
use crate::xml::{Element, Frame, Framer, Limits, escape_attribute};

use super::error::LinkError;

/// How long connecting and authenticating may take, each.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server may send in one stanza: several intercepts may share one, and each of
/// these may be as large as the server's own limit (512 KiB in Prosody) and be escaped.
const STANZA_BYTES: usize = 4 * 1024 * 1024;

/// How deep a stanza may be; deeper ones are skipped. XMPP needs about ten, interceptors
/// refuse messages of more than 60. Those in between are read as far as it takes to refuse
/// them.
const DEPTH: usize = 1_024;

/// Bytes read at once.
const READ: usize = 64 * 1024;

/// The reading side of a stream.
pub struct Incoming<R> {
    source: R,
    framer: Framer,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    fn new(source: R) -> Self {
        let limits = Limits { stanza_bytes: STANZA_BYTES, depth: DEPTH };
        Incoming { source, framer: Framer::new(limits), buffer: BytesMut::with_capacity(READ) }
    }

    /// The next frame among the bytes that were read, without waiting.
    pub fn buffered(&mut self) -> Result<Option<Frame>, LinkError> {
        Ok(self.framer.next()?)
    }

    /// Waits for more bytes. Safe to cancel: nothing that was read is lost.
    pub async fn fill(&mut self) -> Result<(), LinkError> {
        self.buffer.clear();
        self.buffer.reserve(READ);
        if self.source.read_buf(&mut self.buffer).await? == 0 {
            return Err(LinkError::Closed);
        }
        self.framer.push(&self.buffer);
        Ok(())
    }

    async fn frame(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }
}

/// Connects to a server's component port.
///
/// # Errors
///
/// [`LinkError::Connect`] where nobody listens, [`LinkError::Silence`] after ten seconds.
pub async fn connect(host: &str, port: u16) -> Result<TcpStream, LinkError> {
    let address = || format!("{host}:{port}");
    let connected = timeout(PATIENCE, TcpStream::connect((host, port))).await;
    let stream = connected
        .map_err(|_| LinkError::Silence(PATIENCE.as_secs()))?
        .map_err(|source| LinkError::Connect { address: address(), source })?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Opens the stream and proves the secret.
///
/// # Errors
///
/// The server refuses the component or the secret, breaks the protocol, or is silent for
/// ten seconds.
pub async fn authenticate<R, W>(
    source: R,
    sink: &mut W,
    component: &str,
    secret: &str,
) -> Result<Incoming<R>, LinkError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut incoming = Incoming::new(source);
    let handshake = async {
        let open = format!(
            "<?xml version='1.0'?><stream:stream xmlns='{}' xmlns:stream='{}' to='{}'>",
            ns::COMPONENT,
            ns::STREAMS,
            escape_attribute(component)
        );
        sink.write_all(open.as_bytes()).await?;
        let id = match incoming.frame().await? {
            Frame::Open(bytes) => stream_id(&bytes)?,
            _ => return Err(LinkError::Protocol("it did not open a stream")),
        };
        let proof = format!("<handshake>{}</handshake>", proof(&id, secret));
        sink.write_all(proof.as_bytes()).await?;
        match incoming.frame().await? {
            Frame::Stanza(bytes) => authenticated(&bytes),
            _ => Err(LinkError::Closed),
        }
    };
    timeout(PATIENCE, handshake).await.map_err(|_| LinkError::Silence(PATIENCE.as_secs()))??;
    Ok(incoming)
}

fn stream_id(open: &[u8]) -> Result<String, LinkError> {
    let header = Element::parse(&format!("{}</stream:stream>", String::from_utf8_lossy(open)))?;
    if !header.is("stream", ns::STREAMS) {
        return Err(LinkError::Protocol("it did not open a stream of XMPP"));
    }
    // A server that refuses sends its header without an id first, then the error; an
    // empty id lets that error be read.
    Ok(header.attr("id").unwrap_or_default().to_owned())
}

/// Lower-case hexadecimal SHA-1 of the stream's id and the secret (XEP-0114 section 3).
fn proof(id: &str, secret: &str) -> String {
    use std::fmt::Write as _;
    let digest = Sha1::new().chain_update(id).chain_update(secret).finalize();
    digest.iter().fold(String::with_capacity(40), |mut hex, byte| {
        // reason: writing to a String cannot fail
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn authenticated(stanza: &[u8]) -> Result<(), LinkError> {
    let element = top_level(stanza)?;
    if element.is("error", ns::STREAMS) {
        return Err(stream_error(&element));
    }
    if element.name == "handshake" { Ok(()) } else { Err(LinkError::Protocol("no handshake")) }
}

/// Reads a child of the stream, with the prefix that the stream's header declares.
pub fn top_level(stanza: &[u8]) -> Result<Element, LinkError> {
    let wrapped = format!(
        "<s xmlns='{}' xmlns:stream='{}'>{}</s>",
        ns::COMPONENT,
        ns::STREAMS,
        String::from_utf8_lossy(stanza)
    );
    let mut outer = Element::parse(&wrapped)?;
    outer.children.pop().ok_or(LinkError::Protocol("an empty stanza"))
}

/// The stream error that a server sent.
pub fn stream_error(error: &Element) -> LinkError {
    let of =
        |name: &str| error.children.iter().find(|c| c.ns == ns::STREAM_ERRORS && c.name == name);
    let condition = error
        .children
        .iter()
        .find(|c| c.ns == ns::STREAM_ERRORS && c.name != "text")
        .map_or("undefined-condition", |c| c.name.as_str());
    let text = of("text").map(|t| t.text.chars().take(200).collect());
    LinkError::stream(condition, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c2_the_proof_is_that_of_the_xep() {
        // XEP-0114 gives no vector; printf '3BF96D32secret' | sha1sum
        assert_eq!(proof("3BF96D32", "secret"), PROOF);
    }
    const PROOF: &str = "b09ea9b3b7f586be8a08d0a3dd7466f110aeb136";
}
