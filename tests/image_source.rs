//! Images by URL, from a small HTTP server of our own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use engine::input::image::source::{SourceOptions, read};

/// Serves each connection with `answer(path)`: the bytes to send, and whether the connection stays open behind them.
fn serve(answer: impl Fn(&str) -> (Vec<u8>, bool) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut kept: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.windows(4).any(|w| w == b"\r\n\r\n") {
                match stream.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => request.extend_from_slice(&buffer[..count]),
                }
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let (bytes, stays) = answer(request.split(' ').nth(1).unwrap_or(""));
            let _ = stream.write_all(&bytes);
            if stays {
                kept.push(stream);
            }
        }
    });
    address
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n", body.len());
    [head.as_bytes(), body].concat()
}

fn error(url: &str, options: &SourceOptions) -> String {
    let error = read(url, options).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let error = error.to_string();
    assert!(!error.contains('\n'), "{error}");
    error
}

#[test]
fn bodies_statuses_redirects_and_limits() {
    let address = serve(|path| {
        let answer = match path {
            "/ok?secret=1" => response("200 OK", "", b"picture"),
            "/missing?secret=1" => response("404 Not Found", "", b"<html>"),
            "/short" => b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\nabc".to_vec(),
            "/huge" => b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n".to_vec(),
            "/endless" => [&b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"[..], &[7; 5000]].concat(),
            "/drip" => return (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec(), true),
            "/silent" => return (Vec::new(), true),
            "/file" => response("302 Found", "Location: file:///etc/hostname\r\n", b""),
            hop => match hop.strip_prefix("/hop").and_then(|n| n.parse::<u32>().ok()) {
                Some(0) => response("302 Found", "Location: /ok?secret=1\r\n", b""),
                Some(n) => response("302 Found", &format!("Location: /hop{}\r\n", n - 1), b""),
                None => response("400 Bad Request", "", b""),
            },
        };
        (answer, false)
    });
    let options = SourceOptions { max_bytes: 1000, timeout: Duration::from_secs(20), ..SourceOptions::default() };
    let url = |path: &str| format!("http://{address}/{path}");
    assert_eq!(read(&url("ok?secret=1"), &options).unwrap(), b"picture");
    assert_eq!(read(&url("hop4"), &options).unwrap(), b"picture");
    assert!(error(&url("hop5"), &options).ends_with("more than 5 redirects"));
    assert!(error(&url("missing?secret=1"), &options).ends_with("/missing: the server answers 404 Not Found"));
    error(&url("short"), &options);
    assert!(error(&url("huge"), &options).contains("more than the limit of 1000 bytes"));
    assert!(error(&url("endless"), &options).contains("more than the limit of 1000 bytes"));
    error(&url("file"), &options);
    let hasty = SourceOptions { timeout: Duration::from_millis(300), ..options };
    error(&url("drip"), &hasty);
    assert!(error(&url("silent"), &hasty).ends_with("no answer within 0.3 s"));
}

#[test]
fn hosts_off_the_public_internet_are_refused_with_the_same_words() {
    let address = serve(|_| (response("200 OK", "", b"secret"), false));
    let port = address.port();
    assert_eq!(read(&format!("http://127.0.0.1:{port}/"), &SourceOptions::default()).unwrap(), b"secret");
    let words = "this host cannot be fetched from; send a public URL or a data: URI";
    for host in [
        "127.0.0.1",
        "2130706433",
        "0x7f.1",
        "localhost",
        "localhost.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:10.0.0.1]",
        "169.254.169.254",
        "[64:ff9b::7f00:1]",
        "0.0.0.0",
        "user@127.0.0.1",
        "name.invalid",
    ] {
        let error = error(&format!("http://{host}:{port}/"), &SourceOptions::for_server());
        assert!(error.ends_with(words), "{host}: {error}");
    }
}
