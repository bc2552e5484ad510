//! One connection, requests and answers both ways, and no room.

use std::time::Duration;

use bytes::Bytes;
use corelane::{
    Runtime,
    error::{CallError, NotSent},
    handler::{inline_raw, spawned_raw},
};

use crate::service::Setup;

/// Each request runs on another shard than the one that reads it, and is answered once its sender
/// has answered a request of the handler's: by the same connection, behind more requests than may
/// be under way to the other shard.
pub(crate) fn answers_do_not_wait_behind_requests_that_wait_for_them(setup: &Setup) {
    const REQUESTS: usize = 50;
    let ask = spawned_raw("ask", |payload: Bytes, cx| async move {
        let asker = cx.peer()?;
        loop {
            let message = cx.client().message("answer").raw(payload.clone());
            match message.to(&asker).request().await {
                Err(CallError::NotSent(refused)) if refused.why == NotSent::Full => {
                    cx.sleep(Duration::from_millis(1)).await;
                }
                answer => return Ok(answer?),
            }
        }
    });
    let config = setup.config(setup.serving, 2, |limits| {
        limits.outgoing_messages_max = 4;
    });
    let config = config.with_oversubscribe(true);
    let service = setup.serve_as(vec![ask.on_shard(1)], config);
    let answer = inline_raw("answer", |payload, reply, _cx| {
        reply.extend_from_slice(payload);
        Ok(())
    });
    let caller = Runtime::builder(setup.config(setup.calling, 1, |_| {}));
    let caller = caller.handler(answer).start().unwrap();
    let endpoint = &service.endpoint;
    let peer = caller.client().connect_routed(0, endpoint).unwrap();
    // The service knows its caller by the time that it has answered anything.
    let health = caller.client().message("_health").to(&peer);
    health.request().wait().unwrap();
    let calls: Vec<_> = (0..REQUESTS)
        .map(|n| {
            let message = caller.client().message("ask").raw(n.to_string());
            message.to(&peer).request().send().unwrap()
        })
        .collect();
    for (n, call) in calls.into_iter().enumerate() {
        assert_eq!(call.wait().unwrap(), n.to_string());
    }
}
