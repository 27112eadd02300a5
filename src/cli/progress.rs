//! How long work goes on, for a person who watches, or for a log.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::broadcast::Report;

/// A bar on a terminal; elsewhere a line for each change.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    pub fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}");
            // A template that can't be read is no reason to say nothing.
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        Progress { bar, last: String::new() }
    }

    /// Shows how it stands now.
    pub fn show(&mut self, report: &Report) -> io::Result<()> {
        if let Some(bar) = &self.bar {
            bar.set_length(report.total);
            bar.set_position(report.settled());
            bar.set_message(remark(report));
            return Ok(());
        }
        let line = line(report);
        if line != self.last {
            writeln!(io::stdout(), "{line}")?;
            self.last = line;
        }
        Ok(())
    }

    /// The last word.
    pub fn end(self, report: &Report) -> io::Result<()> {
        let Some(bar) = self.bar else { return Ok(()) };
        bar.finish_and_clear();
        writeln!(io::stdout(), "{}", line(report))
    }
}

/// What was moved so far, on a terminal. How much there is nobody has counted.
pub struct Moving(Option<ProgressBar>);

impl Moving {
    pub fn new() -> Self {
        Moving(io::stderr().is_terminal().then(ProgressBar::new_spinner))
    }

    pub fn show(&self, messages: u64, users: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("{messages} messages of {users} users"));
            bar.tick();
        }
    }

    /// The line is cleared: another says how it ended.
    pub fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// To whom, before the host.
fn to(report: &Report) -> &'static str {
    if report.everyone { "everyone on " } else { "a list of users of " }
}

/// What a bar does not show.
fn remark(report: &Report) -> String {
    let counting = if report.counting { ", still counting" } else { "" };
    let trouble = report.trouble.as_ref().map(|t| format!("; {t}")).unwrap_or_default();
    format!("{}{counting}{trouble}", report.state)
}

/// All of it in one line.
pub fn line(report: &Report) -> String {
    format!(
        "broadcast {}: {}{}, {} of {} settled ({} delivered, {} stored, {} discarded, {} expired, \
         {} cancelled), {}",
        report.id,
        to(report),
        report.host,
        report.settled(),
        report.total,
        report.delivered,
        report.stored,
        report.discarded,
        report.expired,
        report.cancelled,
        remark(report),
    )
}

/// All of it in several.
pub fn page(report: &Report) -> String {
    let ended = report.ended_at.as_ref().map(|at| format!("  ended      {at}\n"));
    let trouble = report.trouble.as_ref().map(|text| format!("  trouble    {text}\n"));
    format!(
        "broadcast {}\n  state      {}{}\n  to         {}{}\n  started    {}\n  expires    {}\n{}  \
         rate       {} a second\n  recipients {}\n  delivered  {}\n  stored     {}\n  \
         discarded  {}\n  expired    {}\n  cancelled  {}\n  left       {}\n{}",
        report.id,
        report.state,
        if report.counting { ", still counting recipients" } else { "" },
        to(report),
        report.host,
        report.created_at,
        report.expires_at,
        ended.unwrap_or_default(),
        report.rate,
        report.total,
        report.delivered,
        report.stored,
        report.discarded,
        report.expired,
        report.cancelled,
        report.left,
        trouble.unwrap_or_default(),
    )
}
