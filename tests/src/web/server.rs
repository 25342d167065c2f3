//! The server: as much of HTTP/1.1 as its clients speak, connections kept for ever.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context as _;

/// The file of words.
const FILE: &str = "words";
/// The longest body of a request.
const LONGEST: usize = 1 << 16;

struct Words {
    file: File,
    all: Vec<String>,
}

/// Serves until it is killed.
///
/// # Errors
/// When the directory or the port cannot be had.
pub fn run(directory: &Path, port: u16) -> anyhow::Result<()> {
    let path = directory.join(FILE);
    let mut options = OpenOptions::new();
    let mut file = options.create(true).append(true).read(true).open(path)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let words = Words {
        file,
        all: text.lines().map(str::to_owned).collect(),
    };
    let words = Arc::new(Mutex::new(words));
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    for stream in listener.incoming() {
        let (stream, words) = (stream?, Arc::clone(&words));
        // The end of a connection is its client's affair.
        thread::spawn(move || drop(serve(stream, &words)));
    }
    Ok(())
}

fn serve(stream: TcpStream, words: &Mutex<Words>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    while let Some((method, path)) = question(&mut stream)? {
        let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = if method == "POST" {
            words.append(path.trim_start_matches('/'))?
        } else {
            words.all.join("\n")
        };
        drop(words);
        let length = answer.len();
        let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{answer}");
        stream.get_mut().write_all(text.as_bytes())?;
    }
    Ok(())
}

/// A request's method and path; none at the end.
fn question(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Option<(String, String)>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim_end().is_empty() {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let length = lines
        .iter()
        .find_map(|line| line.strip_prefix("Content-Length: "));
    let length: usize = length.unwrap_or("0").parse()?;
    anyhow::ensure!(length <= LONGEST, "a body of {length} bytes");
    io::copy(
        &mut stream.by_ref().take(u64::try_from(length)?),
        &mut io::sink(),
    )?;
    let mut words = lines.first().context("no request")?.split(' ');
    let (method, path) = (words.next(), words.next());
    Ok(method
        .zip(path)
        .map(|(method, path)| (method.to_owned(), path.to_owned())))
}

impl Words {
    fn append(&mut self, word: &str) -> io::Result<String> {
        self.file.write_all(format!("{word}\n").as_bytes())?;
        self.file.sync_data()?;
        self.all.push(word.to_owned());
        Ok(format!("kept {word}"))
    }
}
