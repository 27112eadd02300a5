//! `amphora broadcast`: commands to a node that runs on this machine.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::broadcast::{
    ADD, Command, DEFAULT_RATE, MAX_PAYLOAD, MAX_RATE, Payload, PayloadError, ProblemKind, Reply,
    Report,
};
use crate::control::{Client, ClientError};
use crate::node::{NodeError, control_path};
use crate::store::StoreSettings;
use crate::time::Timestamp;

use super::progress::{self, Progress};
use super::recipients::{self, ListError};
use super::{CliError, ExitCode};

/// How often a broadcast that is followed is looked at.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  amphora broadcast start --to-domain example.org --body 'Maintenance at 20:00' --expires 2h
  amphora broadcast start --to-file staff.txt --stanza notice.xml --expires 2026-12-31T18:00:00Z --wait
  amphora broadcast list
  amphora broadcast status 3 --follow
  amphora broadcast cancel 3

The node must run on this machine, as this user, with the same configuration.
docs/broadcast.md says what 'once' means, and what the limits are.")]
pub struct BroadcastArgs {
    #[command(subcommand)]
    command: BroadcastCommand,
    /// The configuration file of the node, found as for `run`
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// The database of the node, if it was started with this; its socket is found by it
    #[arg(long, value_name = "URL", visible_alias = "amp-repo-uri", global = true)]
    store_url: Option<String>,
}

#[derive(Debug, Subcommand)]
enum BroadcastCommand {
    /// Begin to send a message
    Start(Start),
    /// All broadcasts that are known, a line each
    #[command(after_help = "Example:\n  amphora broadcast list")]
    List,
    /// How one stands
    #[command(
        after_help = "Examples:\n  amphora broadcast status 3\n  amphora broadcast status 3 --follow"
    )]
    Status {
        /// Its number
        id: i64,
        /// Go on until it is over
        #[arg(short, long)]
        follow: bool,
    },
    /// Send nothing more until it is resumed; it expires all the same
    #[command(after_help = "Example:\n  amphora broadcast pause 3")]
    Pause {
        /// Its number
        id: i64,
    },
    /// Go on with one that is paused
    #[command(after_help = "Example:\n  amphora broadcast resume 3")]
    Resume {
        /// Its number
        id: i64,
    },
    /// Send nothing more; what was sent or stored is not taken back
    #[command(after_help = "Example:\n  amphora broadcast cancel 3")]
    Cancel {
        /// Its number
        id: i64,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  amphora broadcast start --to-domain example.org --subject Tonight --body 'Maintenance at 20:00' --expires 2h
  amphora broadcast start --to-file staff.txt --body 'Meeting at 9' --expires 2026-12-31T18:00:00Z --rate 10 --wait
  grep sales staff.txt | amphora broadcast start --to-file - --stanza notice.xml --expires 1day")]
struct Start {
    #[command(flatten)]
    to: To,
    #[command(flatten)]
    what: What,
    /// Its subject
    #[arg(long, value_name = "TEXT", requires = "body")]
    subject: Option<String>,
    /// When it is of no use any more: from now ('90s', '2h', '1day'), or a time in UTC
    /// ('2026-12-31T18:00:00Z'); a year from now at most
    #[arg(long, value_name = "WHEN", value_parser = expiry)]
    expires: Timestamp,
    /// Messages a second at most, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_RATE)))]
    rate: u32,
    /// Wait until it is over; the exit code is 1 if it was cancelled
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct To {
    /// All users of this host
    #[arg(long, value_name = "HOST")]
    to_domain: Option<String>,
    /// The users in this file, a bare JID a line, all of one host; '-': standard input.
    /// Empty lines and lines that begin with '#' are left out
    #[arg(long, value_name = "LIST")]
    to_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct What {
    /// Its text
    #[arg(long, value_name = "TEXT")]
    body: Option<String>,
    /// The message as XML: a file with one <message/> without addresses, id and rules
    #[arg(long, value_name = "FILE")]
    stanza: Option<PathBuf>,
}

/// Why a command about broadcasts failed.
#[derive(Debug, thiserror::Error)]
pub enum BroadcastError {
    /// There is no socket.
    #[error("node.control is \"\": this node takes no commands")]
    Off,
    /// The database's URL names no file.
    #[error(transparent)]
    Path(NodeError),
    /// The node can't be asked, or can't do it.
    #[error(transparent)]
    Node(#[from] ClientError),
    /// The list is wrong.
    #[error(transparent)]
    List(#[from] ListError),
    /// The message is wrong.
    #[error("{0}: {1}")]
    Payload(String, PayloadError),
    /// A file can't be read.
    #[error("cannot read '{0}'")]
    Unreadable(String, #[source] io::Error),
    /// It was waited for, and was cancelled.
    #[error("broadcast {0} was cancelled")]
    Cancelled(i64),
    /// The node answers something else.
    #[error("the node's answer is not what was asked for")]
    Odd,
}

impl BroadcastError {
    /// How the process ends.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            BroadcastError::Off | BroadcastError::Path(_) => ExitCode::Config,
            BroadcastError::Node(ClientError::Problem(problem)) => match problem.kind {
                ProblemKind::Host | ProblemKind::Expiry | ProblemKind::Rate => ExitCode::Usage,
                ProblemKind::Stanza | ProblemKind::Recipients => ExitCode::Data,
                ProblemKind::Unavailable => ExitCode::NoAnswer,
                ProblemKind::Request | ProblemKind::Unknown | ProblemKind::State => {
                    ExitCode::Failure
                }
            },
            BroadcastError::Node(_) => ExitCode::NoAnswer,
            BroadcastError::List(ListError::Unreadable(..)) | BroadcastError::Unreadable(..) => {
                ExitCode::NoInput
            }
            BroadcastError::List(ListError::Wrong(_)) | BroadcastError::Payload(..) => {
                ExitCode::Data
            }
            BroadcastError::Cancelled(_) | BroadcastError::Odd => ExitCode::Failure,
        }
    }
}

/// Carries out what the arguments say.
pub fn carry_out(args: BroadcastArgs) -> Result<(), CliError> {
    let loaded = super::load(args.config.as_deref(), args.store_url.as_deref())?;
    let path = control_path(&loaded.settings).map_err(BroadcastError::Path)?;
    let path = path.ok_or(BroadcastError::Off)?;
    let connect = || Client::connect(&path).map_err(BroadcastError::Node);
    match args.command {
        BroadcastCommand::Start(args) => start(args, connect),
        BroadcastCommand::List => list(&mut connect()?),
        BroadcastCommand::Status { id, follow: true } => follow(&mut connect()?, id).map(drop),
        BroadcastCommand::Status { id, follow: false } => {
            let report = ask(&mut connect()?, &Command::Status { broadcast: id })?;
            print(&progress::page(&report))
        }
        BroadcastCommand::Pause { id } => tell(connect()?, Command::Pause { broadcast: id }),
        BroadcastCommand::Resume { id } => tell(connect()?, Command::Resume { broadcast: id }),
        BroadcastCommand::Cancel { id } => tell(connect()?, Command::Cancel { broadcast: id }),
    }
}

fn ask(client: &mut Client, command: &Command) -> Result<Report, BroadcastError> {
    match client.ask(command)? {
        Reply::Broadcast(report) => Ok(report),
        _ => Err(BroadcastError::Odd),
    }
}

fn tell(mut client: Client, command: Command) -> Result<(), CliError> {
    let report = ask(&mut client, &command)?;
    print(&format!("{}\n", progress::line(&report)))
}

fn print(text: &str) -> Result<(), CliError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn list(client: &mut Client) -> Result<(), CliError> {
    let Reply::Broadcasts(reports) = client.ask(&Command::List {}).map_err(BroadcastError::Node)?
    else {
        return Err(BroadcastError::Odd.into());
    };
    if reports.is_empty() {
        return print("no broadcasts\n");
    }
    let lines: Vec<String> = reports.iter().map(|report| progress::line(report) + "\n").collect();
    print(&lines.concat())
}

fn start(
    args: Start,
    connect: impl FnOnce() -> Result<Client, BroadcastError>,
) -> Result<(), CliError> {
    // All that can be wrong here is looked for before the node is asked.
    let payload = payload(&args)?;
    let list = args.to.to_file.as_deref().map(recipients::read).transpose();
    let list = list.map_err(BroadcastError::List)?;
    let host = match (&list, &args.to.to_domain) {
        (Some(list), _) => list.host.clone(),
        (None, domain) => domain_of(domain.as_deref().unwrap_or_default()),
    };
    let mut client = connect()?;
    let command = Command::Start {
        host,
        everyone: list.is_none(),
        stanza: payload.as_str().to_owned(),
        expires_at: args.expires.to_string(),
        rate: args.rate,
    };
    let mut report = ask(&mut client, &command)?;
    if let Some(list) = list {
        let broadcast = report.id;
        for some in list.jids.chunks(ADD) {
            ask(&mut client, &Command::Add { broadcast, recipients: some.to_vec() })?;
        }
        report = ask(&mut client, &Command::Begin { broadcast })?;
    }
    print(&format!("{}\n", progress::line(&report)))?;
    if args.wait {
        let last = follow(&mut client, report.id)?;
        if last.state == "cancelled" {
            return Err(BroadcastError::Cancelled(last.id).into());
        }
    }
    Ok(())
}

/// As servers write it; what is no domain goes to the node as it is, which knows its hosts.
fn domain_of(text: &str) -> String {
    jid::DomainPart::new(text).map_or_else(|_| text.to_owned(), |domain| domain.to_string())
}

fn payload(args: &Start) -> Result<Payload, BroadcastError> {
    if let Some(body) = &args.what.body {
        return Payload::text(args.subject.as_deref(), body)
            .map_err(|error| BroadcastError::Payload("--body".to_owned(), error));
    }
    let path = args.what.stanza.as_deref().unwrap_or(Path::new("-"));
    let name = path.display().to_string();
    let text = read_limited(path).map_err(|e| BroadcastError::Unreadable(name.clone(), e))?;
    Payload::stanza(&text).map_err(|error| BroadcastError::Payload(name, error))
}

/// One byte more than a payload may have is enough to see that it is too large.
fn read_limited(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_PAYLOAD as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Shows how it goes on until it is over.
fn follow(client: &mut Client, id: i64) -> Result<Report, CliError> {
    let mut progress = Progress::new();
    loop {
        let report = ask(client, &Command::Status { broadcast: id })?;
        progress.show(&report)?;
        if report.is_over() {
            progress.end(&report)?;
            return Ok(report);
        }
        std::thread::sleep(LOOK);
    }
}

fn expiry(text: &str) -> Result<Timestamp, String> {
    expiry_at((StoreSettings::new("").clock)(), text)
}

fn expiry_at(now: Timestamp, text: &str) -> Result<Timestamp, String> {
    let at = match text.parse::<Timestamp>() {
        Ok(at) => at,
        Err(error) if text.contains('T') && text.contains('-') => return Err(error.to_string()),
        Err(_) => {
            let after = humantime::parse_duration(text).map_err(|_| {
                "must be a time from now, as '90s', '2h' or '1day', or one in UTC, as \
                 '2026-12-31T18:00:00Z'"
                    .to_owned()
            })?;
            now.checked_add(after).ok_or("is too far away")?
        }
    };
    if at <= now {
        return Err(format!("is in the past: it is {now} now"));
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expiries() {
        let now = Timestamp::from_micros(0);
        let at = |text| expiry_at(now, text).map(Timestamp::as_micros);
        assert_eq!(at("90s"), Ok(90_000_000));
        assert_eq!(at("1day 2h"), Ok(26 * 3600 * 1_000_000));
        assert_eq!(at("1970-01-01T00:00:01Z"), Ok(1_000_000));
        for bad in ["", "0s", "tomorrow", "5", "1969-12-31T23:59:59Z", "1970-01-01T01:00:00+01:00"]
        {
            assert!(at(bad).is_err(), "{bad}");
        }
        assert!(at("1969-12-31T23:59:59Z").unwrap_err().contains("is in the past"));
    }
}
