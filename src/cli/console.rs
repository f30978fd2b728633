//! `saltern console`: the URL of the daemon's page, with the token that a browser needs once.

use std::io;
use std::net::SocketAddr;

use axum::http::Method;
use serde::Deserialize;

use super::daemon::{Daemon, located, meant, reachable, state_dir_of};
use super::tcp_listener::stranger;
use crate::cli::output::{Failure, print};
use crate::cli::runtime::runtime;
use crate::cli::target::Target;
use crate::config::located::Located;
use crate::http::token;
use crate::units::Secret;

/// The part of the daemon's status that is used here.
#[derive(Deserialize)]
struct Status {
    http: Reached,
}

#[derive(Deserialize)]
struct Reached {
    listen: Option<SocketAddr>,
    tls: bool,
}

pub(super) fn console(target: &Target) -> Result<(), Failure> {
    let target = &meant(target, false)?;
    let Located { general, unread_token } = located(target, false)?;
    let configured = Reached { listen: general.http.listen, tls: general.http.tls.is_some() };
    // The daemon knows best where it listens: the configuration may have changed since.
    let reached = match Daemon::running(target) {
        Ok(Some(daemon)) => runtime()?.block_on(ask(&daemon)).unwrap_or(configured),
        Ok(None) => {
            eprintln!("no daemon seems to run; start it, then this URL works");
            configured
        }
        Err(_) => configured,
    };
    let Some(listen) = reached.listen else {
        return Err(Failure::Usage(
            "http.listen is null, so there is no page for a browser; set http.listen, for instance \
             to 127.0.0.1:4507, and restart the daemon"
                .to_owned(),
        ));
    };
    if let Some(user) = stranger(listen.port(), &general.state_dir) {
        return Err(Failure::Running(format!(
            "the process that listens at {listen} belongs to user {user}, who is neither root nor \
             the owner of {}; no URL is printed, because that process would get the token",
            general.state_dir.display()
        )));
    }
    let acting = match (&general.http.token, unread_token) {
        (Some(token), _) => Ok(token.clone()),
        (None, Some(why)) => {
            let config = target.config.display();
            let message = format!(
                "cannot read http.token of {config}: {why}; run this as root or as the daemon's user"
            );
            Err(Failure::Running(message))
        }
        (None, None) => made(&state_dir_of(target)?),
    };
    // A user who may not read that token may have been given the one that only reads.
    let token = acting.or_else(|failure| general.http.read_token.clone().ok_or(failure))?;
    let scheme = if reached.tls { "https" } else { "http" };
    let mut query = form_urlencoded::Serializer::new(String::new());
    let query = query.append_pair("token", token.expose()).finish();
    print(&format!("{scheme}://{}/?{query}\n", reachable(listen)))
}

async fn ask(daemon: &Daemon) -> Option<Reached> {
    let answer = daemon.ask(Method::GET, &["status"], &[]).await.ok()?;
    let status: Status = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
    Some(status.http)
}

/// The token that the daemon made.
fn made(state_dir: &std::path::Path) -> Result<Secret, Failure> {
    let file = token::file_of(state_dir);
    token::read(&file).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => {
                "a daemon makes it at its first start: start it, or name its state_dir with \
                 --config or --state-dir"
            }
            io::ErrorKind::PermissionDenied => {
                "run this as root or as the daemon's user; for a page that only reads, the \
                 configuration needs an http.read_token that you may read"
            }
            _ => "restart the daemon: it then makes a new one",
        };
        Failure::Running(format!("cannot read the token in {}: {error}; {advice}", file.display()))
    })
}
