//! A service on tokio, and its clients.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;

use crate::object::Random;
use crate::usage::Watch;
use crate::{Row, Scale, mix, mix_bytes};

pub const ROWS: &[Row] = &[Row {
    name: "tokio",
    what: "an HTTP/1.1 service on tokio with 2 workers that keeps documents of 100 to 4,000 bytes: 32 clients in the same \
           process put and get theirs, 16 requests at a time on a connection of 128; 120,000 requests",
    run: serve,
}];

const CLIENTS: usize = 32;
/// Requests that a client sends before it reads the answers, and those after which it connects anew.
const PIPELINED: usize = 16;
const CONNECTION: usize = 128;

type Documents = Arc<Mutex<HashMap<String, Arc<Vec<u8>>>>>;

/// A first line, header fields, and a body.
async fn message(from: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<(String, Vec<u8>)>> {
    let mut first = String::new();
    if from.read_line(&mut first).await? == 0 {
        return Ok(None);
    }
    let mut fields = HashMap::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => fields.insert(name.to_ascii_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    let length = fields.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    from.read_exact(&mut body).await?;
    Ok(Some((first, body)))
}

async fn connection(mut stream: TcpStream, documents: Documents) -> io::Result<()> {
    let (from, mut to) = stream.split();
    let mut from = BufReader::new(from);
    let mut answers = Vec::new();
    while let Some((first, body)) = message(&mut from).await? {
        let mut words = first.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = if method == "PUT" {
            let old = documents.lock().expect("no task has panicked").insert(path.to_string(), Arc::new(body));
            if old.is_some() { "HTTP/1.1 204 No Content\r\n\r\n".into() } else { "HTTP/1.1 201 Created\r\n\r\n".into() }
        } else {
            let found = documents.lock().expect("no task has panicked").get(path).cloned();
            let body = found.as_deref().map_or(&b""[..], Vec::as_slice);
            let head = format!("HTTP/1.1 200 OK\r\nServer: workloads\r\nContent-Length: {}\r\n\r\n", body.len());
            [head.as_bytes(), body].concat()
        };
        answers.extend(answer);
        // Answers are sent together if more requests are there already.
        if from.buffer().is_empty() {
            to.write_all(&answers).await?;
            answers = Vec::new();
        }
    }
    to.write_all(&answers).await
}

async fn client(number: usize, requests: usize, port: u16) -> io::Result<u64> {
    let mut random = Random::new(number as u64 + 1);
    let (mut sum, mut done) = (0, 0);
    while done < requests {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let (from, mut to) = stream.split();
        let mut from = BufReader::new(from);
        for _ in 0..CONNECTION / PIPELINED {
            let mut sent = Vec::new();
            for _ in 0..PIPELINED {
                let bits = random.next();
                let path = format!("/client-{number}/document-{}", bits >> 32 & 15);
                if bits & 1 == 0 {
                    let body = vec![b'a' + (bits >> 8 & 15) as u8; 100 + (bits >> 16) as usize % 3900];
                    let head =
                        format!("PUT {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n", body.len());
                    sent.extend(head.into_bytes());
                    sent.extend(body);
                } else {
                    sent.extend(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n").into_bytes());
                }
            }
            let write = async { to.write_all(&sent).await };
            let read = async {
                for _ in 0..PIPELINED {
                    let answer = message(&mut from).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
                    sum = mix_bytes(mix_bytes(sum, answer.0.as_bytes()), &answer.1);
                }
                Ok(())
            };
            tokio::try_join!(write, read)?;
        }
        done += CONNECTION;
    }
    Ok(sum)
}

fn serve(scale: &Scale, watch: &mut Watch) -> u64 {
    let requests = scale.of(120_000).div_ceil(CLIENTS);
    watch.begin();
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let sums = runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let port = listener.local_addr()?.port();
        tokio::spawn(async move {
            let documents = Documents::default();
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(connection(stream, documents.clone()));
            }
        });
        let clients: Vec<_> = (0..CLIENTS).map(|number| tokio::spawn(client(number, requests, port))).collect();
        let mut sums = Vec::new();
        for client in clients {
            sums.push(client.await.expect("a client")?);
        }
        io::Result::Ok(sums)
    });
    sums.expect("connections over loopback").into_iter().fold(0, mix)
}
