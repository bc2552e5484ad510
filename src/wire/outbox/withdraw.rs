//! Taking a call back that has not left.

use super::{HEADER_FRAME_BYTES, Kind, LONG, LONG_BYTES, Outbox, SHORT_BYTES};
use crate::wire::Header;

impl Outbox {
    /// Takes the confirm or request of this correlation out, of whose bytes none may have left.
    /// Returns how many messages stand before it. Looks at one message after the other, and moves
    /// what follows.
    pub fn withdraw(&mut self, correlation: u64) -> Option<u64> {
        if self.left != self.front {
            return None;
        }
        let (mut begin, mut attached) = (self.front, 0);
        for index in 0..self.waiting.messages {
            let frame = begin + HEADER_FRAME_BYTES;
            let is_long = self.buffer[frame] & LONG != 0;
            let payload = frame + if is_long { LONG_BYTES } else { SHORT_BYTES };
            let beside = self.attached.get(attached);
            let is_attached = is_long && beside.is_some_and(|it| it.at == payload);
            let bytes = match (is_attached, is_long) {
                (true, _) => 0,
                (false, false) => usize::from(self.buffer[frame + 1]),
                (false, true) => {
                    let length = self.buffer[frame + 1..payload].try_into();
                    u64::from_be_bytes(length.expect("eight bytes")) as usize
                }
            };
            let end = payload + bytes;
            let header = Header::decode(&self.buffer[begin + 2..frame]);
            let is_it = header.is_ok_and(|header| {
                header.correlation == correlation
                    && matches!(header.kind, Kind::Confirm | Kind::Request)
            });
            if is_it {
                let beside = is_attached.then_some(attached);
                self.cut_out(begin, end, beside);
                return Some(index);
            }
            attached += usize::from(is_attached);
            begin = end;
        }
        None
    }

    fn cut_out(&mut self, begin: usize, end: usize, beside: Option<usize>) {
        if let Some(payload) = beside.and_then(|at| self.attached.remove(at)) {
            self.attached_bytes -= payload.payload.bytes().len();
        }
        self.buffer.drain(begin..end);
        for attached in self.attached.iter_mut().filter(|it| it.at >= end) {
            attached.at -= end - begin;
        }
        self.waiting.messages -= 1;
        self.pushed.messages -= 1;
    }
}
