//! What the application does with a request: its path says so, `?name=number` says how much.
//!
//! | path | answer |
//! |---|---|
//! | `/work?ms=` | its id after so long; goes on working when nobody waits any more |
//! | `/worker?ms=` | the same, by one of 8 workers |
//! | `/held` | its id when released |
//! | `/stream?n=&ms=` | so many parts of 1000 bytes, so far apart |
//! | `/held-stream` | a part at once, the rest when released |
//! | `/held-down?n=` | so many bytes of the pattern when released |
//! | `/down?n=` and `/down-chunked?n=` | so many bytes of the pattern |
//! | `/up` | reads the body to its end, then says how much it was |
//! | `/echo` | each part of the body, when it comes |
//! | `/early?status=` | answers before it reads the body, which it reads then |
//! | `/deaf?status=` | answers, never reads the body, closes |
//! | `/status?code=` | that status, no body |
//! | `/hints` | 103, then 200 |
//! | `/trailers` | a part, then trailers |
//! | `/to-close` | a body that ends with the connection |
//! | `/break?n=` | promises 10 000 bytes, sends so many, closes |
//! | `/tunnel` | 101 if asked to upgrade, then echoes bytes; else `ok` |
//! | `/grpc.health.v1.Health/Check` | that it is serving |
//! | `/never` | nothing, for ever |
//! | else | `ok` |

use std::io;
use std::time::Duration;

use crate::support::pattern::{self, Checker};

use super::exchange::{Exchange, Length};

pub(crate) async fn play(exchange: &mut Exchange<'_>) -> io::Result<()> {
    let seen = exchange.entry.seen();
    let (path, query) = seen.path.split_once('?').unwrap_or((&seen.path, ""));
    let number = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map_or(0, |(_, value)| value.parse::<u64>().expect("a number"))
    };
    let ms = Duration::from_millis(number("ms"));
    let id = seen.id.unwrap_or(0).to_string();
    match path {
        "/work" => {
            tokio::time::sleep(ms).await;
            exchange.whole(200, id.as_bytes()).await
        }
        "/worker" => {
            let workers = std::sync::Arc::clone(&exchange.entry.books);
            let _worker = workers.workers.acquire().await.expect("never closed");
            // A thread that sleeps, as workers do: the timer of this runtime has a grain of 1 ms, which
            // would look like work.
            let work = tokio::task::spawn_blocking(move || std::thread::sleep(ms));
            work.await.expect("it only sleeps");
            exchange.whole(200, id.as_bytes()).await
        }
        "/held" => {
            released(exchange).await;
            exchange.whole(200, id.as_bytes()).await
        }
        "/stream" => {
            exchange.head(200, Length::Unknown).await?;
            for left in (0..number("n")).rev() {
                if left == 0 {
                    return exchange.last(&[b'x'; 1000], &[]).await;
                }
                exchange.part(&[b'x'; 1000]).await?;
                tokio::time::sleep(ms).await;
            }
            exchange.last(b"", &[]).await
        }
        "/held-stream" => {
            exchange.head(200, Length::Unknown).await?;
            exchange.part(b"first ").await?;
            released(exchange).await;
            exchange.last(b"last", &[]).await
        }
        "/held-down" => {
            released(exchange).await;
            exchange.head(200, Length::Known(number("n"))).await?;
            down(exchange, number("n")).await
        }
        "/down" => {
            exchange.head(200, Length::Known(number("n"))).await?;
            down(exchange, number("n")).await
        }
        "/down-chunked" => {
            exchange.head(200, Length::Unknown).await?;
            down(exchange, number("n")).await
        }
        "/up" => {
            read_body(exchange).await?;
            let seen = exchange.entry.seen();
            let said = format!("{} {}", seen.body, if seen.damaged { "damaged" } else { "intact" });
            exchange.whole(200, said.as_bytes()).await
        }
        "/echo" => {
            exchange.head(200, Length::Unknown).await?;
            while let Some(part) = exchange.receive().await? {
                exchange.part(&part).await?;
            }
            exchange.last(b"", &[]).await
        }
        "/early" => {
            exchange.head(number("status") as u16, Length::Known(5)).await?;
            exchange.part(b"earl").await?;
            read_body(exchange).await?;
            exchange.last(b"y", &[]).await
        }
        "/deaf" => {
            exchange.closes();
            exchange.whole(number("status") as u16, b"deaf").await
        }
        "/status" => exchange.whole(number("code") as u16, b"").await,
        "/hints" => {
            exchange.hints().await?;
            exchange.whole(200, b"ok").await
        }
        "/trailers" => {
            exchange.head(200, Length::Unknown).await?;
            exchange.part(b"part").await?;
            exchange.last(b"", &[("x-sum", "4")]).await
        }
        "/to-close" => {
            exchange.closes();
            exchange.head(200, Length::ToClose).await?;
            exchange.part(b"until ").await?;
            exchange.last(b"closed", &[]).await
        }
        "/break" => {
            exchange.closes();
            exchange.head(200, Length::Known(10_000)).await?;
            exchange.part(&vec![b'x'; number("n") as usize]).await?;
            Err(io::ErrorKind::Other.into())
        }
        "/tunnel" if seen.header("upgrade").is_some() => exchange.tunnel().await,
        // A message of two bytes: of its field 1, 1.
        "/grpc.health.v1.Health/Check" => exchange.whole(200, &[0, 0, 0, 0, 2, 8, 1]).await,
        "/never" => std::future::pending().await,
        _ => {
            read_body(exchange).await?;
            exchange.whole(200, b"ok").await
        }
    }
}

async fn released(exchange: &Exchange<'_>) {
    let released = exchange.entry.books.releases.acquire().await;
    released.expect("never closed").forget();
}

async fn down(exchange: &mut Exchange<'_>, length: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < length {
        let part = pattern::slice(sent, length - sent);
        sent += part.len() as u64;
        match sent < length {
            true => exchange.part(part).await?,
            false => return exchange.last(part, &[]).await,
        }
    }
    exchange.last(b"", &[]).await
}

/// Reads the body to its end and compares it with the pattern.
async fn read_body(exchange: &mut Exchange<'_>) -> io::Result<()> {
    let mut checker = Checker::default();
    while let Some(part) = exchange.receive().await? {
        checker.take(&part);
        let damaged = checker.damaged;
        exchange.entry.note(|seen| seen.damaged = damaged);
    }
    Ok(())
}
