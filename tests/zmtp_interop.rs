//! Our ZMTP against libzmq's: a blocking TCP stream shakes hands with a ROUTER and with a DEALER of
//! the `zmq` crate, and messages, PINGs and refusals go both ways.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::time::Duration;

use corelane::wire::zmtp::{
    Command, Handshake, Introduction, Role, SplitLimits, Splitter, Unit, write_ping, write_pong,
};

const LIMITS: SplitLimits = SplitLimits {
    payload_bytes_max: 1 << 20,
    header_bytes_max: 512,
    frames_max: 64,
    command_bytes_max: 512,
    skip_bytes_max: 1 << 24,
};
const PATIENCE: Duration = Duration::from_secs(20);

/// One connection that reads a little at a time, so that units arrive in pieces.
struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    splitter: Splitter,
}

enum Got {
    Message(Vec<u8>, Vec<u8>),
    Ping(u16, Vec<u8>),
    Pong(Vec<u8>),
}

impl Connection {
    fn shake_hands(stream: TcpStream, role: Role) -> (Self, Introduction) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let splitter = Splitter::new(LIMITS);
        let mut connection = Self {
            stream,
            input: Vec::new(),
            splitter,
        };
        let mut handshake = Handshake::new(role, 512);
        let mut out = Vec::new();
        handshake.open(&mut out);
        loop {
            let progress = handshake.advance(&connection.input, &mut out).unwrap();
            connection.send(&out);
            out.clear();
            connection.input.drain(..progress.consumed);
            if let Some(introduction) = progress.done {
                return (connection, introduction);
            }
            connection.read();
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn send_message(&mut self, header: &[u8], payload: &[u8]) {
        let header_head = [1, u8::try_from(header.len()).unwrap()];
        let mut payload_head = vec![2];
        payload_head.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        self.send(&[&header_head, header, &payload_head, payload].concat());
    }

    fn read(&mut self) {
        let mut piece = [0; 333];
        let bytes = self.stream.read(&mut piece).unwrap();
        assert!(bytes > 0, "the peer has closed");
        self.input.extend_from_slice(&piece[..bytes]);
    }

    fn receive(&mut self) -> Got {
        loop {
            let bytes = |range: Range<usize>| self.input[range].to_vec();
            let (got, end) = match self.splitter.next(&self.input).unwrap() {
                Unit::Need { .. } => {
                    self.read();
                    continue;
                }
                Unit::Message {
                    header,
                    payload,
                    end,
                } => (Got::Message(bytes(header), bytes(payload)), end),
                Unit::Command { body, end } => {
                    let got = match Command::decode(&self.input[body]).unwrap() {
                        Command::Ping { ttl_ds, context } => Got::Ping(ttl_ds, context.to_vec()),
                        Command::Pong { context } => Got::Pong(context.to_vec()),
                        other => panic!("{other:?}"),
                    };
                    (got, end)
                }
                other => panic!("{other:?}"),
            };
            self.input.drain(..end);
            return got;
        }
    }

    fn receive_message(&mut self) -> (Vec<u8>, Vec<u8>) {
        match self.receive() {
            Got::Message(header, payload) => (header, payload),
            Got::Ping(..) | Got::Pong(_) => self.receive_message(),
        }
    }
}

fn socket(context: &zmq::Context, kind: zmq::SocketType) -> zmq::Socket {
    let socket = context.socket(kind).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    socket
}

fn router(context: &zmq::Context) -> (zmq::Socket, String) {
    let router = socket(context, zmq::ROUTER);
    router.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = router.get_last_endpoint().unwrap().unwrap();
    let address = endpoint.strip_prefix("tcp://").unwrap().to_owned();
    (router, address)
}

/// Some that take the short form, some the long.
fn payloads() -> [Vec<u8>; 4] {
    [0, 255, 256, 100_000].map(|bytes| vec![7; bytes])
}

#[test]
fn we_dial_a_router() {
    let context = zmq::Context::new();
    let (router, address) = router(&context);
    let stream = TcpStream::connect(address).unwrap();
    let (mut connection, introduction) = Connection::shake_hands(stream, Role::Dialer);
    assert_eq!(introduction.socket_type, "ROUTER");
    assert_eq!(introduction.minor, 1);
    for payload in payloads() {
        connection.send_message(b"header", &payload);
        let read = router.recv_multipart(0).unwrap();
        assert_eq!(read[1..], [b"header".to_vec(), payload.clone()]);
        let answer = [&read[0], &b"answer"[..], &payload];
        router.send_multipart(answer, 0).unwrap();
        assert_eq!(connection.receive_message(), (b"answer".to_vec(), payload));
    }
}

#[test]
fn a_dealer_dials_us() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let context = zmq::Context::new();
    let dealer = socket(&context, zmq::DEALER);
    dealer.set_identity(b"me").unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    dealer.connect(&endpoint).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let (mut connection, introduction) = Connection::shake_hands(stream, Role::Listener);
    assert_eq!(introduction.socket_type, "DEALER");
    assert_eq!(introduction.identity, b"me");
    for payload in payloads() {
        dealer
            .send_multipart([&b"header"[..], &payload], 0)
            .unwrap();
        assert_eq!(
            connection.receive_message(),
            (b"header".to_vec(), payload.clone())
        );
        connection.send_message(b"answer", &payload);
        assert_eq!(
            dealer.recv_multipart(0).unwrap(),
            [b"answer".to_vec(), payload]
        );
    }
}

#[test]
fn libzmq_answers_our_ping_also_within_a_message() {
    let context = zmq::Context::new();
    let (router, address) = router(&context);
    let stream = TcpStream::connect(address).unwrap();
    let (mut connection, _) = Connection::shake_hands(stream, Role::Dialer);
    let mut bytes = b"\x01\x02hd".to_vec();
    write_ping(600, b"0123456789abcdef", &mut bytes);
    bytes.extend_from_slice(b"\x00\x01p");
    connection.send(&bytes);
    let Got::Pong(pong) = connection.receive() else {
        panic!("no PONG");
    };
    assert_eq!(pong, b"0123456789abcdef");
    let read = router.recv_multipart(0).unwrap();
    assert_eq!(read[1..], [b"hd".to_vec(), b"p".to_vec()]);
}

#[test]
fn we_answer_libzmqs_ping() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let context = zmq::Context::new();
    let dealer = socket(&context, zmq::DEALER);
    dealer.set_heartbeat_ivl(20).unwrap();
    dealer.set_heartbeat_ttl(5_000).unwrap();
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    dealer.connect(&endpoint).unwrap();
    let (stream, _) = listener.accept().unwrap();
    let (mut connection, _) = Connection::shake_hands(stream, Role::Listener);
    for _ in 0..3 {
        let Got::Ping(ttl_ds, ping) = connection.receive() else {
            panic!("no PING");
        };
        assert_eq!(ttl_ds, 50);
        let mut pong = Vec::new();
        write_pong(&ping, &mut pong);
        connection.send(&pong);
    }
    connection.send_message(b"answer", b"still here");
    assert_eq!(dealer.recv_multipart(0).unwrap()[1], b"still here");
}

#[test]
fn a_socket_of_another_kind_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let context = zmq::Context::new();
    let sub = socket(&context, zmq::SUB);
    let endpoint = format!("tcp://{}", listener.local_addr().unwrap());
    sub.connect(&endpoint).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut handshake = Handshake::new(Role::Listener, 512);
    let (mut input, mut out) = (Vec::new(), Vec::new());
    handshake.open(&mut out);
    let error = loop {
        stream.write_all(&out).unwrap();
        out.clear();
        let mut piece = [0; 7];
        let bytes = stream.read(&mut piece).unwrap();
        input.extend_from_slice(&piece[..bytes]);
        match handshake.advance(&input, &mut out) {
            Ok(progress) => drop(input.drain(..progress.consumed)),
            Err(error) => break error,
        }
    };
    assert_eq!(
        error.to_string(),
        "the peer is a \"SUB\" socket; connect a DEALER socket"
    );
    let Ok(Command::Error { reason }) = Command::decode(&out[2..]) else {
        panic!("no ERROR: {out:?}");
    };
    assert_eq!(reason, error.to_string().as_bytes());
}
