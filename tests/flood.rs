//! A peer that sends more than libzmq's queue holds to a shard that does not read, and goes.
//!
//! libzmq 4.3 then stops reading its socket, remembers the error when it closes, and aborted the
//! process at its next heartbeat: `Assertion failed: !_io_error`.

use std::{thread::sleep, time::Duration};

use corelane::{
    Config, Runtime,
    handler::{inline, inline_raw},
    wire::{HandlerKey, Header, Kind},
};

#[test]
fn a_peer_that_floods_a_stalled_shard_and_goes_harms_nobody() {
    let config = Config::default()
        .with_shards(1)
        .with_listen(["tcp://127.0.0.1:0"])
        .with_limits(|limits| limits.heartbeat_interval_ms = 100);
    let runtime = Runtime::builder(config)
        .handler(inline("stall", |ms: u64, _cx| {
            sleep(Duration::from_millis(ms));
            Ok(())
        }))
        .handler(inline_raw("ignore", |_, _, _| Ok(())))
        .start()
        .unwrap();
    let client = runtime.client();
    let peer = client.connect(&runtime.endpoints()[0]).unwrap();
    client.message("ignore").to(&peer).confirm().wait().unwrap();

    // Far longer than a heartbeat, and than the flood takes.
    let stall = client.message("stall").json(&1_500).unwrap();
    let stall = stall.to(&peer).request::<()>().send().unwrap();
    let context = zmq::Context::new();
    let flood = context.socket(zmq::DEALER).unwrap();
    flood.set_linger(0).unwrap();
    flood.connect(&runtime.endpoints()[0]).unwrap();
    let mut header = Header::new(Kind::OneWay, 1);
    header.handler = HandlerKey::of("ignore");
    // Until both queues of 1,000 messages and the kernel's buffers are full, and stay so.
    let mut refusals = 0;
    while refusals < 100 {
        let frames = [&header.encode()[..], &[0; 10_000]];
        if flood.send_multipart(frames, zmq::DONTWAIT).is_err() {
            refusals += 1;
            sleep(Duration::from_millis(1));
        }
    }
    drop(flood);

    stall.wait().unwrap();
    client.message("ignore").to(&peer).confirm().wait().unwrap();
}
