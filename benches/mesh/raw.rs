//! What the machine itself makes of many CPUs: threads that echo to themselves over tcp, as the
//! shards do, without any code between the system calls, and with nothing shared.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::rings::{million_per_s, pin, until_over};

/// Of a request of 64 bytes, and of its answer.
const MESSAGE_BYTES: usize = 108;
/// Messages that a write carries: as many as a shard reads in a turn, if it is busy.
const MESSAGES: usize = 32;
/// Round trips between two looks at the clock.
const TRIPS: u64 = 10;

/// A client and a server.
type Pair = (TcpStream, TcpStream);

/// Requests and answers, in millions a second, of so many threads together.
pub(crate) fn measure(threads: usize, cpus: &[usize], span: Duration) -> io::Result<f64> {
    let pairs: Vec<_> = (0..threads).map(|_| connect()).collect::<io::Result<_>>()?;
    let cpus = cpus.iter().copied().cycle();
    thread::scope(|scope| {
        let echo = |(pair, cpu)| scope.spawn(move || echo_to_itself(pair, cpu, span));
        let running: Vec<_> = pairs.into_iter().zip(cpus).map(echo).collect();
        let ended = running.into_iter().map(|it| it.join());
        Ok(ended.map(|it| it.expect("it does not panic")).sum())
    })
}

fn echo_to_itself((mut client, mut server): Pair, cpu: usize, span: Duration) -> f64 {
    pin(cpu);
    let mut buffer = [7; MESSAGES * MESSAGE_BYTES];
    let mut trip = || {
        client.write_all(&buffer)?;
        server.read_exact(&mut buffer)?;
        server.write_all(&buffer)?;
        client.read_exact(&mut buffer)
    };
    let mut trips = || {
        for _ in 0..TRIPS {
            trip().expect("a connection of one thread holds");
        }
        TRIPS * MESSAGES as u64
    };
    until_over(span / 5, &mut trips);
    million_per_s(until_over(span, &mut trips))
}

fn connect() -> io::Result<Pair> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let client = TcpStream::connect(listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    Ok((client, server))
}
