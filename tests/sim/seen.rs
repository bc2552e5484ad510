//! What came about over all seeds: those that hardly ever come to something would prove nothing
//! about it.

use crate::{load::ENDS, scenario::Trace};

/// How often, by the end of a trace's line.
#[derive(Default)]
pub(crate) struct Seen {
    ends: [usize; ENDS.len()],
    /// Seeds in which messages crossed shards, in which handlers were stopped, and in which what
    /// had waited was shed.
    crossed: usize,
    stopped: usize,
    shed: usize,
}

impl Seen {
    pub(crate) fn add(&mut self, trace: &Trace) {
        let counters = trace.last().expect("the counters are its last line");
        self.crossed += usize::from(!counters.contains("hopped_in: 0"));
        self.stopped += usize::from(!counters.contains("stopped: 0"));
        self.shed += usize::from(!counters.contains("shed: 0"));
        for line in trace {
            if let Some(at) = ENDS.iter().position(|end| line.ends_with(end)) {
                self.ends[at] += 1;
            }
        }
    }

    pub(crate) fn and(mut self, other: Self) -> Self {
        self.crossed += other.crossed;
        self.stopped += other.stopped;
        self.shed += other.shed;
        for (count, other) in self.ends.iter_mut().zip(other.ends) {
            *count += other;
        }
        self
    }

    pub(crate) fn print(&self) {
        for (end, count) in ENDS.iter().zip(self.ends) {
            println!("{count:10} {end}");
        }
    }

    pub(crate) fn assert_enough(&self) {
        let Self {
            crossed,
            stopped,
            shed,
            ..
        } = self;
        assert!(*crossed >= 25, "messages crossed in only {crossed} seeds");
        assert!(*stopped >= 25, "handlers stopped in only {stopped} seeds");
        assert!(*shed >= 25, "messages were shed in only {shed} seeds");
        for (end, count) in ENDS.iter().zip(self.ends) {
            let least = if *end == "Lost(SlowConsumer)" { 2 } else { 5 };
            assert!(count >= least, "{end:?} came about only {count} times");
        }
    }
}
