//! Log and metrics of the process.

use std::io;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::util::TryInitError;

use crate::config::{LogFormat, LogSettings};

/// From half a millisecond, the time of a small commit, to a minute, the longest limit.
const SECONDS: [f64; 16] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    60.0,
];

/// What is not a time: rows of a batch, bytes of a stanza.
const SIZES: [f64; 11] =
    [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0];

/// How often samples are moved into their buckets; between, they take memory.
const UPKEEP: Duration = Duration::from_secs(5);

/// Log or metrics could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The environment's filter, which comes over the configured one.
    #[error("RUST_LOG = {value:?}: must be a level, or such as \"info,amphora::link=debug\"")]
    Filter {
        /// What RUST_LOG says.
        value: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The process has a log already.
    #[error("cannot start the log")]
    Log(#[from] TryInitError),
    /// The process has metrics already.
    #[error("cannot start the metrics")]
    Metrics(#[from] BuildError),
    /// No thread for the upkeep.
    #[error("cannot start the upkeep of the metrics")]
    Upkeep(#[source] io::Error),
}

/// What others say that we say, too: each attempt to reach a NATS server.
const QUIET: &str = "async_nats=error";

/// Starts the log of this process, to standard error. `rust_log`, unless absent or empty,
/// comes over the configured filter. To be called once.
pub fn start_log(settings: &LogSettings, rust_log: Option<&str>) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt;
    let directives = rust_log.filter(|value| !value.is_empty()).unwrap_or(&settings.filter);
    // Whatever is said after it comes over it.
    let filter = EnvFilter::try_new(format!("{QUIET},{directives}"))
        .map_err(|source| TelemetryError::Filter { value: directives.to_owned(), source })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match settings.format {
        LogFormat::Text => {
            log.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).finish().try_init()?
        }
        LogFormat::Json => log.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}

/// Starts the metrics of this process, and the thread that keeps them small for as long
/// as it lives. To be called once. Histograms named `*_seconds` have buckets for times,
/// others for sizes.
pub fn start_metrics() -> Result<PrometheusHandle, TelemetryError> {
    let handle = builder()?.install_recorder()?;
    let kept = handle.clone();
    let upkeep = move || loop {
        std::thread::sleep(UPKEEP);
        kept.run_upkeep();
    };
    let thread = std::thread::Builder::new().name("metrics-upkeep".to_owned());
    thread.spawn(upkeep).map_err(TelemetryError::Upkeep)?;
    metrics::describe_gauge!("amphora_build_info", "the version that runs; always 1");
    metrics::gauge!("amphora_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets(&SIZES)?
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_have_their_buckets() {
        let recorder = builder().unwrap().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            metrics::histogram!("a_seconds").record(0.002);
            metrics::histogram!("b_rows").record(20.0);
        });
        let text = recorder.handle().render();
        assert!(
            text.contains("a_seconds_bucket{le=\"0.001\"} 0\na_seconds_bucket{le=\"0.0025\"} 1\n"),
            "{text}"
        );
        assert!(
            text.contains("b_rows_bucket{le=\"16\"} 0\nb_rows_bucket{le=\"64\"} 1\n"),
            "{text}"
        );
    }

    #[test]
    fn a_bad_rust_log_is_named() {
        let settings = LogSettings { filter: "info".to_owned(), format: LogFormat::Text };
        let error = start_log(&settings, Some("a=b=c")).unwrap_err();
        assert!(error.to_string().starts_with("RUST_LOG = \"a=b=c\": must be"), "{error}");
    }
}
