//! A minimal HTTP server (RFC 9112) for scrapes: answers a GET of `/metrics`, a few at once.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{Builder, scope, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::metrics::CONTENT_TYPE;
use crate::settings::news;

/// How long a client may take to ask, and again to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How many clients are answered at once: fewer slow clients than this keep nobody out.
const AT_ONCE: usize = 8;
/// The longest request, in bytes.
const MOST_BYTES: usize = 8 << 10;
/// The pause after a failed accept: descriptors may be free by then.
const PAUSE: Duration = Duration::from_millis(100);

/// A bound address.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Binds the address, and says so.
    ///
    /// # Errors
    /// It cannot listen there.
    pub fn bind(address: SocketAddr) -> Result<Listener> {
        let bound = TcpListener::bind(address);
        let listener = bound.with_context(|| format!("listen on {address}"))?;
        let address = listener.local_addr().context("find out the address")?;
        if !address.ip().is_loopback() {
            log::warn!(
                "whoever can reach {address} can read the names of owners and what they use"
            );
        }
        log::info!("listening on {address}");
        Ok(Listener(listener))
    }

    /// Serves for ever.
    pub fn serve(&self, metrics: impl Fn() -> Result<String> + Sync) -> ! {
        let (metrics, served) = (&metrics, &AtomicUsize::new(0));
        scope(|scope| {
            loop {
                while served.load(Ordering::Acquire) >= AT_ONCE {
                    sleep(PAUSE);
                }
                let begun = self.0.accept().and_then(|(client, _)| {
                    news::begin_round();
                    served.fetch_add(1, Ordering::AcqRel);
                    let serve = move || {
                        if let Err(error) = answer(client, metrics) {
                            log::info!("answer a scrape: {error}");
                        }
                        served.fetch_sub(1, Ordering::AcqRel);
                    };
                    let begun = Builder::new().spawn_scoped(scope, serve);
                    if begun.is_err() {
                        served.fetch_sub(1, Ordering::AcqRel);
                    }
                    begun.map(drop)
                });
                if let Err(error) = begun {
                    log::info!("accept a scrape: {error}");
                    sleep(PAUSE);
                }
            }
        })
    }
}

fn answer(mut client: TcpStream, metrics: impl Fn() -> Result<String>) -> io::Result<()> {
    let Some(request) = read_request(&mut client)? else {
        return respond(
            &mut client,
            "400 Bad Request",
            "not a request that is understood\n",
        );
    };
    match request.as_str() {
        "/metrics" => match metrics() {
            Ok(text) => respond(&mut client, "200 OK", &text),
            Err(error) => {
                log::error!("{error:#}");
                let status = "500 Internal Server Error";
                respond(
                    &mut client,
                    status,
                    "the metrics cannot be read: see Pinfold's log\n",
                )
            }
        },
        "" => respond(&mut client, "405 Method Not Allowed", "only GET\n"),
        _ => respond(&mut client, "404 Not Found", "see /metrics\n"),
    }
}

/// The path of a GET request, without its query; empty for another method. `None` if the request is
/// malformed or too long.
fn read_request(client: &mut TcpStream) -> io::Result<Option<String>> {
    let deadline = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        let read = client.read(&mut chunk)?;
        request.extend_from_slice(&chunk[..read]);
        if read == 0 || request.len() > MOST_BYTES {
            return Ok(None);
        }
    }
    let text = String::from_utf8_lossy(&request);
    let line = text.lines().next().unwrap_or_default();
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words.as_slice() {
        ["GET", path, version] if version.starts_with("HTTP/1.") => {
            path.split('?').next().map(str::to_owned)
        }
        [_, _, version] if version.starts_with("HTTP/1.") => Some(String::new()),
        _ => None,
    })
}

fn respond(client: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    let kind = match status.starts_with("200") {
        true => CONTENT_TYPE,
        false => "text/plain; charset=utf-8",
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n",
        body.len()
    );
    let deadline = Instant::now() + PATIENCE;
    let answer = [head.as_bytes(), body.as_bytes()].concat();
    let mut rest = answer.as_slice();
    while !rest.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        client.set_write_timeout(Some(left))?;
        match client.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
