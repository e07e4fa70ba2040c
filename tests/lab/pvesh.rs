//! The host's `pvesh` command: the same calls as root, tasks awaited with their log, failures of tasks not in the exit code.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::Value;

struct Answer {
    status: u16,
    reason: String,
    body: Value,
}

fn call(socket: &Path, method: &str, path: &str, params: &[(String, String)]) -> std::io::Result<Answer> {
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(params).finish();
    let request = if method == "POST" || method == "PUT" {
        format!("{method} /api2/json{path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{form}", form.len())
    } else {
        format!("{method} /api2/json{path}?{form} HTTP/1.1\r\n\r\n")
    };
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.trim_end().splitn(3, ' ').skip(1);
    let status = words.next().and_then(|s| s.parse().ok()).unwrap_or(599);
    let reason = words.next().unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => length = value.parse().unwrap_or(0),
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Answer { status, reason, body: serde_json::from_slice(&body).unwrap_or_default() })
}

/// `--name value` pairs; what formats the output is taken out.
fn options(words: &[String]) -> Option<(String, Vec<(String, String)>)> {
    let mut format = "text".to_owned();
    let mut params = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
        match name.split_once('=').map(|(n, v)| (n.to_owned(), v.to_owned())) {
            Some((name, value)) if name == "output-format" => format = value,
            Some(pair) => params.push(pair),
            None if matches!(name, "noborder" | "noheader" | "quiet" | "human-readable") => {}
            None if name == "output-format" => format = words.next()?.clone(),
            None => params.push((name.to_owned(), words.next()?.clone())),
        }
    }
    Some((format, params))
}

fn print(format: &str, data: &Value) {
    match data {
        Value::Null => {}
        Value::String(text) if format == "text" => println!("{text}"),
        data if format == "json-pretty" => println!("{data:#}"),
        data => println!("{data}"),
    }
}

/// Prints a task's log while it runs; the error of a failed one goes to standard error.
fn follow(socket: &Path, upid: &str) -> std::io::Result<()> {
    let node = upid.split(':').nth(1).unwrap_or_default();
    let task = format!("/nodes/{node}/tasks/{upid}");
    let mut seen = 0;
    loop {
        let done = call(socket, "GET", &format!("{task}/status"), &[])?.body["data"]["status"] == "stopped";
        let window = [("start".to_owned(), seen.to_string()), ("limit".to_owned(), "0".to_owned())];
        let log = call(socket, "GET", &format!("{task}/log"), &window)?.body;
        let lines = log["data"].as_array().into_iter().flatten().filter_map(|row| row["t"].as_str());
        for line in lines.filter(|l| *l != "no content") {
            seen += 1;
            match line.strip_prefix("TASK ERROR: ") {
                Some(why) => eprintln!("{why}"),
                None if line == "TASK OK" || line.starts_with("TASK WARNINGS") => {}
                None => println!("{line}"),
            }
        }
        if done {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Plays `pvesh VERB PATH [--name value]...`.
pub fn main(socket: &Path, words: &[String]) -> ExitCode {
    let words: Vec<_> = words.iter().filter(|w| *w != "--noproxy" && *w != "--nooutput").cloned().collect();
    let [verb, path, rest @ ..] = words.as_slice() else {
        eprintln!("ERROR: no command specified");
        return ExitCode::from(255);
    };
    let method = match verb.as_str() {
        "get" | "ls" => "GET",
        "create" => "POST",
        "set" => "PUT",
        "delete" => "DELETE",
        other => {
            eprintln!("ERROR: unknown command '{other}'");
            return ExitCode::from(255);
        }
    };
    let Some((format, params)) = options(rest) else {
        eprintln!("400 unable to parse option");
        return ExitCode::from(255);
    };
    let path = if path.starts_with('/') { path.clone() } else { format!("/{path}") };
    match call(socket, method, &path, &params) {
        Ok(answer) if answer.status < 400 => {
            let data = &answer.body["data"];
            let task = data.as_str().filter(|text| text.starts_with("UPID:") && method != "GET");
            if let Some(upid) = task
                && let Err(error) = follow(socket, upid)
            {
                eprintln!("{error}");
                return ExitCode::from(255);
            }
            print(&format, data);
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            match answer.body["errors"].as_object() {
                Some(errors) => {
                    eprintln!("400 Parameter verification failed.");
                    errors.iter().for_each(|(name, why)| eprintln!("{name}: {}", why.as_str().unwrap_or_default().trim_end()));
                    eprintln!("pvesh {verb} {path} [OPTIONS] [FORMAT_OPTIONS]");
                }
                None if answer.status == 501 => eprintln!("No '{verb}' handler defined for '{path}'"),
                None => eprintln!("{}", answer.reason),
            }
            ExitCode::from(if answer.status == 400 { 2 } else { 255 })
        }
        Err(error) => {
            eprintln!("pvesh: {}: {error}", socket.display());
            ExitCode::from(255)
        }
    }
}
