//! Peers that ask for more than they may.

use corelane::{engine::EngineOptions, error::Lost, wire::Reason};

use crate::{
    plain::{COMMAND, MORE, Plain, frame, greeting, head, header, message, ready},
    world::{Seen, World, options, tcp},
};

const BYTES_MAX: usize = 10_000;

fn small() -> EngineOptions {
    EngineOptions {
        message_bytes_max: BYTES_MAX,
        ..options()
    }
}

#[test]
fn a_message_that_is_too_large_is_declined_and_the_next_one_arrives() {
    let (mut world, at) = World::serving(small(), &tcp());
    let mut plains = Vec::new();
    for bytes in [BYTES_MAX + 1, 2 * BYTES_MAX, 4 * BYTES_MAX] {
        let mut plain = Plain::dealer(&at);
        plain.write(&message(1, b"before"));
        plain.write(&message(2, &vec![7; bytes]));
        plain.write(&message(3, &[7; BYTES_MAX]));
        world.until("the one behind it", |world| {
            world.server().messages().len() == 2
        });
        let seen = world.server().take();
        let Seen::Up(id) = seen[0] else {
            panic!("{seen:?}");
        };
        assert_eq!(seen[1], Seen::Message(id, 1, b"before".to_vec()));
        assert_eq!(seen[2], Seen::Declined(id, 2, Reason::TooLarge));
        assert_eq!(seen[3], Seen::Message(id, 3, vec![7; BYTES_MAX]));
        assert_eq!(seen.len(), 4);
        plains.push(plain);
    }
}

#[test]
fn what_is_not_even_skipped_closes_the_connection() {
    let mut beyond: Vec<Vec<u8>> = [4 * BYTES_MAX as u64 + 1, 1 << 40, i64::MAX as u64]
        .map(|length| [header(1), head(0, length)].concat())
        .to_vec();
    beyond.push([header(1), head(0, u64::MAX)].concat());
    beyond.push(head(MORE, i64::MAX as u64));
    beyond.push(head(COMMAND, i64::MAX as u64));
    beyond.push(frame(MORE, &[]).repeat(17));
    beyond.push([header(1), frame(MORE, &[7; 300]).repeat(1_000)].concat());
    beyond.push(frame(COMMAND, b""));
    beyond.push(frame(COMMAND, b"\x04PING"));
    beyond.push(frame(0x80, b""));
    let (mut world, at) = World::serving(small(), &tcp());
    for bytes in beyond {
        let mut plain = Plain::dealer(&at);
        plain.write(&message(1, b"before"));
        plain.write(&bytes);
        world.until("it is closed", |_| plain.read().is_closed);
        let begins = &bytes[..bytes.len().min(60)];
        assert_eq!(world.server().messages().len(), 1, "{begins:?}");
        let downs = world.server().downs();
        assert!(matches!(downs[..], [(_, Lost::Protocol(_))]), "{downs:?}");
        world.server().take();
    }
}

#[test]
fn a_multipart_of_another_shape_is_malformed_and_the_connection_lives() {
    let (mut world, at) = World::serving(small(), &tcp());
    let mut plain = Plain::dealer(&at);
    plain.write(&frame(0, b"alone"));
    plain.write(&[frame(MORE, b""), frame(MORE, b""), frame(0, b"")].concat());
    plain.write(&message(3, b"good"));
    world.until("the good one", |world| {
        !world.server().messages().is_empty()
    });
    let seen = world.server().take();
    let id = match seen[0] {
        Seen::Up(id) => id,
        _ => panic!("{seen:?}"),
    };
    let good = Seen::Message(id, 3, b"good".to_vec());
    assert_eq!(
        seen[1..],
        [Seen::Malformed(id, 1), Seen::Malformed(id, 3), good]
    );
}

#[test]
fn too_many_in_their_handshake_pause_accepting() {
    let options = EngineOptions {
        unauthenticated_max: 4,
        ..options()
    };
    for parks in [false, true] {
        let (mut world, at) = World::serving(options.clone(), &tcp());
        world.server().parks = parks;
        let mut silent: Vec<Plain> = (0..4).map(|_| Plain::connect(&at)).collect();
        // Each is greeted as it is accepted.
        world.until("they are accepted", |_| {
            silent.iter_mut().all(|it| it.read().has_arrived())
        });
        let mut good = Plain::dealer(&at);
        world.turns(200);
        assert!(!good.read().has_arrived(), "it waits to be accepted");
        assert_eq!(world.server().seen, []);
        // One goes, and there is room for one.
        silent.pop();
        world.until("it is up", |world| !world.server().ups().is_empty());
        let mut more = Plain::dealer(&at);
        world.until("another one", |world| world.server().ups().len() == 2);
        // The others run out of time; a fifth one in their place.
        silent.extend((0..3).map(|_| Plain::connect(&at)));
        world.turns(200);
        let is_greeted = |it: &mut Plain| it.read().has_arrived();
        let greeted = silent.iter_mut().map(is_greeted);
        assert_eq!(greeted.filter(|it| !it).count(), 2);
        world.now += options.handshake + std::time::Duration::from_millis(1);
        world.until("the others are accepted", |_| {
            good.take_all();
            more.take_all();
            silent.iter_mut().all(|it| it.read().has_arrived())
        });
    }
}

#[test]
fn garbage_is_closed_at_once() {
    let (mut world, at) = World::serving(options(), &tcp());
    let version_1 = b"\x01\x00".to_vec();
    let mut curve = greeting(1);
    curve[12..17].copy_from_slice(b"CURVE");
    for bytes in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        version_1,
        vec![0; 1_000],
        curve,
    ] {
        let mut plain = Plain::connect(&at);
        plain.write(&bytes);
        world.until("it is closed", |_| plain.read().is_closed);
    }
    assert_eq!(world.server().seen, [], "nobody was told");
}

#[test]
fn a_peer_of_the_wrong_kind_is_told_so() {
    let (mut world, at) = World::serving(options(), &tcp());
    let no_type = frame(COMMAND, b"\x05READY");
    let long = frame(COMMAND, &[b"\x05READY".to_vec(), vec![0; 5_000]].concat());
    for said in [ready("SUB"), no_type, long, message(1, b"too early")] {
        let mut plain = Plain::connect(&at);
        plain.write(&[greeting(1), said].concat());
        let mut answers = Vec::new();
        world.until("it is closed", |_| {
            answers.extend(plain.take_all());
            plain.is_closed
        });
        assert!(answers[0].is_command("READY"), "{answers:?}");
        assert!(answers[1].is_command("ERROR"), "{answers:?}");
    }
    assert_eq!(world.server().seen, []);
}
