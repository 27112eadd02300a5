//! The HTTP server: `/healthz`, `/readyz` and `/metrics`, plain text all.

use std::io;
use std::net::SocketAddr;

use actix_web::dev::ServerHandle;
use actix_web::http::header;
use actix_web::{App, HttpResponse, HttpResponseBuilder, HttpServer, Resource, Route, guard, web};
use metrics_exporter_prometheus::PrometheusHandle;

use super::Health;

/// Far more than probes and scrapers need; those beyond wait to be accepted.
const MAX_CONNECTIONS: usize = 64;
/// Connections that wait to be accepted; those beyond are refused by the kernel.
const BACKLOG: u32 = 64;
/// Seconds that requests under way get when the server stops.
const STOP_SECONDS: u64 = 1;

const PAGE: &str = "amphora
/healthz  200 while the process is alive; names the parts of the store that are not well
/readyz   200 if every link is greeted, the store is healthy and the cluster is whole, 503 otherwise
/metrics  for Prometheus
";

/// The server, running. It runs on if this is dropped.
#[derive(Clone)]
pub struct Http {
    /// Where it listens; the port is the real one, if 0 was asked for.
    pub address: SocketAddr,
    handle: ServerHandle,
}

impl Http {
    /// Finishes the requests under way and closes the port.
    pub async fn stop(&self) {
        self.handle.stop(true).await;
    }
}

/// Binds `listen` and serves in the background. To be called within an actix system.
///
/// The error names the address.
pub fn serve(listen: SocketAddr, health: Health, metrics: PrometheusHandle) -> io::Result<Http> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen for HTTP on {listen}: {error}"))
    };
    let server = HttpServer::new(move || {
        let (health, metrics) = (web::Data::new(health.clone()), web::Data::new(metrics.clone()));
        App::new().app_data(health).app_data(metrics).configure(routes)
    });
    let server = server
        .workers(1)
        .max_connections(MAX_CONNECTIONS)
        .backlog(BACKLOG)
        .shutdown_timeout(STOP_SECONDS)
        .disable_signals()
        .bind(listen)
        .map_err(named)?;
    let address = server.addrs().first().copied().unwrap_or(listen);
    let server = server.run();
    let handle = server.handle();
    actix_rt::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the http server has ended");
        }
    });
    Ok(Http { address, handle })
}

fn routes(app: &mut web::ServiceConfig) {
    app.service(page("/").route(read().to(async || text(HttpResponse::Ok(), PAGE))))
        .service(page("/healthz").route(read().to(healthz)))
        .service(page("/readyz").route(read().to(readyz)))
        .service(page("/metrics").route(read().to(prometheus)))
        .default_service(web::to(async || text(HttpResponse::NotFound(), "not found\n")));
}

/// A path that answers to no method but those of its routes.
fn page(path: &str) -> Resource {
    web::resource(path).default_service(web::to(async || {
        let mut refusal = HttpResponse::MethodNotAllowed();
        refusal.insert_header((header::ALLOW, "GET, HEAD"));
        text(refusal, "only GET and HEAD\n")
    }))
}

fn read() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}

async fn healthz(health: web::Data<Health>) -> HttpResponse {
    text(HttpResponse::Ok(), format!("alive\n{}", health.snapshot().unwell()))
}

async fn readyz(health: web::Data<Health>) -> HttpResponse {
    let snapshot = health.snapshot();
    let status =
        if snapshot.ready() { HttpResponse::Ok() } else { HttpResponse::ServiceUnavailable() };
    text(status, snapshot.to_string())
}

async fn prometheus(metrics: web::Data<PrometheusHandle>) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/plain; version=0.0.4; charset=utf-8")
        .body(metrics.render())
}

fn text(mut response: HttpResponseBuilder, body: impl Into<String>) -> HttpResponse {
    response.content_type("text/plain; charset=utf-8").body(body.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;
    use crate::http::LinkState;

    fn start(health: &Health) -> Http {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        metrics::with_local_recorder(&recorder, || metrics::counter!("some_total").increment(7));
        serve(([127, 0, 0, 1], 0).into(), health.clone(), recorder.handle()).unwrap()
    }

    /// The status line, the head and the body of the answer.
    async fn ask(http: &Http, method: &str, path: &str) -> (String, String, String) {
        let (address, request) = (
            http.address,
            format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        );
        let answer = web::block(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        });
        let answer = answer.await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let (status, head) = head.split_once("\r\n").unwrap();
        (status.to_owned(), head.to_lowercase(), body.to_owned())
    }

    #[actix_web::test]
    async fn the_pages() {
        let http = start(&Health::new());
        assert_ne!(http.address.port(), 0);
        assert_eq!(ask(&http, "GET", "/").await.2, PAGE);
        assert_eq!(ask(&http, "GET", "/healthz").await.2, "alive\n");
        let (status, head, body) = ask(&http, "GET", "/metrics").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        assert!(body.contains("\nsome_total 7\n"), "{body}");
        assert_eq!(ask(&http, "HEAD", "/healthz").await.0, "HTTP/1.1 200 OK");
        http.stop().await;
        assert!(TcpStream::connect(http.address).is_err());
    }

    #[actix_web::test]
    async fn ready_only_when_all_is() {
        let health = Health::new();
        health.add_link("amp.a", ["a"]);
        let http = start(&health);
        let (status, _, body) = ask(&http, "GET", "/readyz").await;
        assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
        assert_eq!(body, health.snapshot().to_string());
        health.set_store(|| false);
        health.add_part("b", || crate::http::StoreHealth::Unhealthy);
        health.set_link("amp.a", LinkState::Greeted);
        assert!(ask(&http, "GET", "/readyz").await.0.contains("503"));
        let (status, _, body) = ask(&http, "GET", "/healthz").await;
        assert_eq!((status.contains("200"), &*body), (true, "alive\npart b: unhealthy\n"));
        health.set_store(|| true);
        health.add_part("b", || crate::http::StoreHealth::Healthy);
        let (status, _, body) = ask(&http, "GET", "/readyz").await;
        assert_eq!(status, "HTTP/1.1 200 OK");
        assert_eq!(
            body,
            "ready\nstore: healthy\npart b: healthy\nlink amp.a: greeted\nhost a on amp.a: greeted\n"
        );
        http.stop().await;
    }

    #[actix_web::test]
    async fn what_is_not_served() {
        let http = start(&Health::new());
        assert_eq!(ask(&http, "GET", "/other").await.0, "HTTP/1.1 404 Not Found");
        assert_eq!(ask(&http, "POST", "/other").await.0, "HTTP/1.1 404 Not Found");
        let (status, head, _) = ask(&http, "POST", "/metrics").await;
        assert_eq!(status, "HTTP/1.1 405 Method Not Allowed");
        assert!(head.contains("allow: get, head"), "{head}");
        http.stop().await;
    }

    #[actix_web::test]
    async fn an_address_in_use_is_named() {
        let http = start(&Health::new());
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let error = serve(http.address, Health::new(), recorder.handle()).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&http.address.to_string()), "{error}");
        http.stop().await;
    }
}
