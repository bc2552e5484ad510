use super::*;

fn header(correlation: u64) -> Header {
    Header::new(Kind::Response, correlation)
}

#[test]
fn a_small_message_takes_108_bytes() {
    let mut outbox = Outbox::new(10, 1 << 20);
    outbox.push(&header(1), &[7; 64]).unwrap();
    assert_eq!(outbox.bytes(), 108);
}

#[test]
fn payloads_of_every_length_come_back_in_order() {
    let lengths = [0, 1, 254, 255, 256, 257, 65_535, 65_536];
    let mut outbox = Outbox::new(100, 1 << 30);
    for (number, &length) in lengths.iter().enumerate() {
        outbox
            .push(&header(number as u64), &vec![number as u8; length])
            .unwrap();
    }
    for (number, &length) in lengths.iter().enumerate() {
        let front = outbox.front().unwrap();
        assert_eq!(Header::decode(front.header), Ok(header(number as u64)));
        assert_eq!(front.payload, vec![number as u8; length]);
        outbox.pop_front();
        assert_eq!(outbox.taken().messages, number as u64 + 1);
    }
    assert!(outbox.is_empty() && outbox.front().is_none());
}

#[test]
fn a_dropped_draft_leaves_no_trace() {
    let mut outbox = Outbox::new(10, 1 << 20);
    outbox.push(&header(1), b"stays").unwrap();
    let before = outbox.bytes();
    outbox
        .draft(&header(2))
        .unwrap()
        .payload()
        .extend_from_slice(&[0; 1000]);
    assert_eq!((outbox.bytes(), outbox.messages()), (before, 1));
    assert_eq!(outbox.front().unwrap().payload, b"stays");
}

#[test]
fn a_restarted_draft_carries_only_what_came_after() {
    let mut outbox = Outbox::new(10, 1 << 20);
    let mut draft = outbox.draft(&header(1)).unwrap();
    draft.payload().extend_from_slice(&[0; 1000]);
    draft.restart(&Header::new(Kind::Nack, 9));
    draft.payload().extend_from_slice(b"no");
    draft.commit();
    let front = outbox.front().unwrap();
    assert_eq!(Header::decode(front.header), Ok(Header::new(Kind::Nack, 9)));
    assert_eq!(front.payload, b"no");
}

#[test]
fn bounds_refuse_and_change_nothing() {
    let mut outbox = Outbox::new(2, 1 << 20);
    outbox.push(&header(1), b"").unwrap();
    outbox.push(&header(2), b"").unwrap();
    assert_eq!(outbox.push(&header(3), b""), Err(OutboxFull));
    outbox.pop_front();
    outbox.push(&header(3), b"").unwrap();

    let mut outbox = Outbox::new(100, 64);
    outbox.push(&header(1), &[0; 1000]).unwrap();
    assert_eq!(outbox.push(&header(2), b""), Err(OutboxFull));
    assert_eq!(outbox.messages(), 1);
}

#[test]
fn a_queue_that_never_empties_does_not_grow_for_ever() {
    let mut outbox = Outbox::new(1000, 1 << 30);
    outbox.push(&header(0), &[0; 1000]).unwrap();
    for number in 1..100_000 {
        outbox.push(&header(number), &[0; 1000]).unwrap();
        outbox.pop_front();
    }
    assert!(
        outbox.buffer.capacity() < 1 << 20,
        "{}",
        outbox.buffer.capacity()
    );
}

/// Everything that waits, as an engine would write it, in steps of so many bytes.
fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while outbox.bytes() > 0 {
        let mut slices = [IoSlice::new(&[]); 3];
        let count = outbox.slices(&mut slices);
        let all: Vec<u8> = slices[..count].iter().flat_map(|it| it.to_vec()).collect();
        let step = step.min(all.len());
        bytes.extend_from_slice(&all[..step]);
        outbox.advance(step);
    }
    bytes
}

/// Small and large, copied, shared and lent ones in turn.
fn mixed() -> Outbox {
    let mut outbox = Outbox::new(100, 1 << 30);
    for number in 0..9 {
        let payload = vec![number as u8; 1 + number * 5_000];
        let header = header(number as u64);
        match number % 3 {
            0 => outbox.push(&header, &payload).unwrap(),
            1 => outbox.push_bytes(&header, payload.into()).unwrap(),
            _ => {
                let range = 1..payload.len() + 1;
                let buffer = [&[0], &payload[..], &[0]].concat();
                let draft = outbox.draft(&header).unwrap();
                draft.commit_with_buffer(buffer, range);
            }
        }
    }
    outbox
}

#[test]
fn bytes_leave_in_order_however_they_are_cut() {
    let whole = drain(&mut mixed(), usize::MAX);
    assert_eq!(whole.len(), mixed().bytes());
    for step in [1, 7, 44, 4_096, 16_384, 100_000] {
        let mut outbox = mixed();
        assert!(drain(&mut outbox, step) == whole, "step {step}");
        assert!(outbox.is_empty() && outbox.is_between_messages());
        assert_eq!(outbox.taken().messages, 9);
        let spent = std::iter::from_fn(|| outbox.take_spent());
        assert_eq!(spent.count(), 3, "lent buffers come back");
    }
}

#[test]
fn a_message_is_taken_once_its_last_byte_has_left() {
    let mut outbox = mixed();
    let mut one_way = Header::new(Kind::OneWay, 9);
    one_way.handler = crate::wire::HandlerKey::of("x");
    outbox.push(&one_way, b"last").unwrap();
    let total = outbox.bytes();
    let mut left = 0;
    while left + 13 < total {
        outbox.advance(13);
        left += 13;
        let front = outbox.front().expect("something waits");
        let number = outbox.taken().messages as usize;
        let expected = if number == 9 { 4 } else { 1 + number * 5_000 };
        assert_eq!(front.payload.len(), expected, "whole, as long as it waits");
        assert_eq!(outbox.taken().one_way, 0);
    }
    outbox.advance(total - left);
    assert_eq!((outbox.taken().messages, outbox.taken().one_way), (10, 1));
}

#[test]
fn messages_are_appended_whole_and_in_order() {
    for before in [0, 1, 5] {
        let mut outbox = Outbox::new(100, 1 << 30);
        for number in 0..before {
            outbox.push(&header(100 + number), &[7; 300]).unwrap();
        }
        // Part of the first has left already.
        outbox.advance(if before > 0 { 50 } else { 0 });
        let begun = outbox.contiguous().unwrap().to_vec();
        let mut staged = mixed();
        outbox.append(&mut staged);
        assert!(staged.is_empty() && staged.bytes() == 0);
        assert_eq!(outbox.messages() as u64, before + 9);
        let expected = [begun, drain(&mut mixed(), usize::MAX)].concat();
        assert!(drain(&mut outbox, 1_000) == expected);
        staged.push(&header(1), b"usable").unwrap();
        outbox.append(&mut staged);
        assert_eq!(outbox.front().unwrap().payload, b"usable");
    }
}

/// Each of them once, with payloads in every form before and behind it.
#[test]
fn a_call_that_is_withdrawn_leaves_the_others_whole() {
    let lengths = [
        0,
        255,
        256,
        ATTACHED_BYTES_MIN,
        3,
        2 * ATTACHED_BYTES_MIN,
        300,
    ];
    for withdrawn in 0..lengths.len() as u64 {
        let mut outbox = Outbox::new(100, 1 << 30);
        for (number, &length) in (0..).zip(&lengths) {
            let payload = Bytes::from(vec![number as u8; length]);
            let header = Header::new(Kind::Request, number);
            outbox.push_bytes(&header, payload).unwrap();
        }
        assert_eq!(outbox.withdraw(99), None);
        assert_eq!(outbox.withdraw(withdrawn), Some(withdrawn));
        assert_eq!(outbox.withdraw(withdrawn), None);
        let mut bytes = 0;
        for (number, &length) in (0..).zip(&lengths).filter(|it| it.0 != withdrawn) {
            let front = outbox.front().unwrap();
            let expected = Header::new(Kind::Request, number);
            assert_eq!(Header::decode(front.header), Ok(expected));
            assert_eq!(front.payload, vec![number as u8; length]);
            bytes += length;
            outbox.pop_front();
        }
        assert!(outbox.is_empty() && outbox.bytes() == 0, "after {bytes}");
    }
}

/// A connection's promises end with it: those of the one before are nobody's.
#[test]
fn what_was_promised_to_a_connection_that_is_gone_changes_nothing_on_the_next() {
    let mut outbox = Outbox::new(2, 1 << 20);
    let stale = outbox.promise();
    outbox.promise();
    assert!(outbox.is_blocked(), "all places are kept");
    outbox.hold();
    outbox.clear();
    assert!(!outbox.is_blocked(), "the next one is read");

    let own = [(); 2].map(|()| outbox.promise());
    let mut answer = Outbox::new(1, usize::MAX);
    answer.push(&header(1), b"answer").unwrap();
    let frames = answer.contiguous().unwrap().to_vec();
    assert!(!outbox.keep(stale, &mut answer));
    assert!(!outbox.keep_framed(stale, &frames));
    outbox.forgo(stale);
    assert_eq!((outbox.messages(), answer.messages()), (0, 1));
    assert!(outbox.is_blocked(), "its own places are kept");

    assert!(outbox.keep(own[0], &mut answer));
    assert!(outbox.is_blocked(), "one waits, and one is to come");
    outbox.forgo(own[1]);
    assert_eq!((outbox.messages(), answer.messages()), (1, 0));
    assert!(!outbox.is_blocked());
    let own = outbox.promise();
    assert!(outbox.is_blocked());
    assert!(outbox.keep_framed(own, &frames));
    assert_eq!(drain(&mut outbox, 1_000), [&frames[..], &frames].concat());
    outbox.promise();
    assert!(!outbox.is_blocked(), "one place of two is free");
}
