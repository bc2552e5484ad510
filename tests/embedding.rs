//! The runtime as a program embeds it: real shards, real sockets, over tcp and ipc. One suite for
//! every engine, and for every pairing of two; another one joins by a line at the end.

#[path = "embedding/awaiting.rs"]
mod awaiting;
#[path = "embedding/batched.rs"]
mod batched;
#[path = "embedding/blocking.rs"]
mod blocking;
#[path = "embedding/both_ways.rs"]
mod both_ways;
#[path = "embedding/callers.rs"]
mod callers;
#[path = "embedding/cancelling.rs"]
mod cancelling;
#[path = "embedding/changing.rs"]
mod changing;
#[path = "embedding/failures.rs"]
mod failures;
#[path = "embedding/kinds.rs"]
mod kinds;
#[path = "embedding/metrics.rs"]
mod metrics;
#[path = "embedding/nearby.rs"]
mod nearby;
#[path = "embedding/operators.rs"]
mod operators;
#[path = "embedding/ordered.rs"]
mod ordered;
#[path = "embedding/peers.rs"]
mod peers;
#[path = "embedding/requests.rs"]
mod requests;
#[path = "embedding/service.rs"]
mod service;
#[path = "embedding/stopping.rs"]
mod stopping;
#[path = "embedding/waking.rs"]
mod waking;

use corelane::config::EngineKind;
use service::{Setup, Transport};

macro_rules! cases {
    ($setup:expr; $($module:ident: $($case:ident)+;)+) => {
        $($(
            #[test]
            fn $case() {
                $module::$case(&$setup);
            }
        )+)+
    };
}

macro_rules! suite {
    ($name:ident: $serving:ident, $calling:ident, $transport:ident) => {
        mod $name {
            use crate::*;

            pub(crate) const SETUP: Setup = Setup {
                serving: EngineKind::$serving,
                calling: EngineKind::$calling,
                transport: Transport::$transport,
            };

            cases! { SETUP;
                both_ways:
                    answers_do_not_wait_behind_requests_that_wait_for_them;
                requests:
                    typed_values_come_back_in_both_codecs
                    bytes_go_raw_and_in_place
                    each_shard_has_a_state_of_its_own
                    tasks_sleep_fail_panic_and_need_no_send
                    failures_are_nacks_and_the_shard_goes_on
                    any_executor_may_wait
                    a_handler_calls_another_peer
                    pipelined_answers_find_their_calls
                    a_guest_runs_on_its_shard_and_its_panic_is_its_own
                    tasks_of_a_parked_shard_wait_for_whatever_they_like
                    a_mebibyte_comes_back_and_more_is_refused
                    names_of_called_handlers_are_learnt
                    one_way_messages_are_accounted_for;
                failures:
                    a_deadline_that_passes_is_indeterminate
                    any_duration_is_a_deadline
                    nobody_there_is_not_sent_with_the_payload_back
                    a_killed_peer_is_indeterminate_and_the_next_one_is_found
                    a_flooding_peer_that_dies_ends_nobody
                    a_full_queue_gives_the_payload_back
                    a_full_inbox_gives_the_payload_and_the_credit_back
                    handles_may_be_dropped_in_any_order;
                blocking:
                    a_shard_goes_on_while_all_threads_block
                    a_full_pool_refuses_what_it_does_not_run
                    a_deadline_that_passes_in_the_queue_runs_nothing
                    every_end_is_an_answer_and_the_thread_lives
                    large_payloads_come_whole_to_a_thread
                    the_end_wakes_a_parked_shard
                    threads_keep_off_the_shards_cpus
                    a_blocking_handler_calls_another
                    a_drain_waits_for_the_pool
                    a_drain_that_runs_out_leaves_the_rest_alone
                    what_panics_as_it_goes_ends_no_thread;
                cancelling:
                    a_dropped_call_stops_its_handler
                    a_handler_is_stopped_at_its_deadline;
                batched:
                    a_batch_runs_by_count_bytes_or_age
                    each_message_of_a_batch_ends_on_its_own
                    what_waits_for_a_batch_may_be_cancelled_and_is_drained;
                kinds:
                    no_more_run_at_once_than_a_handler_allows
                    calls_of_a_handler_end_with_the_call_that_it_serves
                    a_handler_that_outruns_its_budget_is_demoted;
                waking:
                    no_wake_up_from_another_thread_is_lost;
                awaiting:
                    a_handler_is_awaited_until_every_shard_serves_it
                    what_awaits_a_handler_ends_as_any_task
                    a_drain_answers_what_awaits_a_handler;
                changing:
                    handlers_come_and_go_on_every_shard
                    what_cannot_be_served_is_served_nowhere
                    the_first_blocking_handler_may_come_later
                    what_was_accepted_before_a_removal_is_handled
                    connected_peers_learn_what_is_served
                    only_who_asks_for_it_is_told_of_changes
                    many_threads_may_change_what_is_served_under_load;
                ordered:
                    one_peers_messages_run_one_after_the_other
                    what_waits_for_its_turn_may_be_late_or_cancelled
                    a_drain_ends_what_waits_for_its_turn;
                metrics:
                    each_figure_is_told_in_three_ways;
                operators:
                    health_and_handlers_are_told
                    questions_that_are_none_are_refused
                    metrics_are_numbers_and_names_alone
                    a_shard_that_spins_is_named_and_nothing_of_it_is_lost
                    peers_are_listed_by_shard
                    a_dump_is_written_when_asked_for
                    a_drain_is_asked_for_only_by_leave
                    a_draining_process_still_says_how_it_is;
                nearby:
                    a_process_of_this_host_is_reached_by_ipc
                    further_shards_are_reached_by_ipc
                    only_the_same_process_will_do
                    what_was_dialed_is_found_again;
                peers:
                    peers_that_come_drain_and_go_are_events
                    who_says_hello_again_is_the_same_peer
                    a_handler_calls_its_caller_back
                    a_peer_that_has_connected_is_called_by_instance
                    of_two_with_one_identity_the_later_is_sent_to
                    a_caller_is_known_on_the_shard_that_runs_it
                    a_peer_that_drains_is_sent_nothing_new
                    a_call_to_a_peer_that_is_cut_off_ends_then;
                callers:
                    a_caller_that_drains_says_so_to_whom_it_has_dialed
                    a_further_shard_that_sends_back_is_known;
                stopping:
                    a_drain_finishes_what_runs_and_its_totals_add_up
                    a_drain_that_runs_out_of_time_says_so
                    a_shard_that_is_stuck_is_asked_once_and_holds_up_no_drain
                    a_draining_process_refuses_what_is_new
                    a_stopped_runtime_refuses_with_the_payload_back;
            }
        }
    };
}

suite!(native_over_tcp: Native, Native, Tcp);
suite!(native_over_ipc: Native, Native, Ipc);
suite!(libzmq_over_tcp: Libzmq, Libzmq, Tcp);
suite!(libzmq_over_ipc: Libzmq, Libzmq, Ipc);
suite!(libzmq_calls_native_over_tcp: Native, Libzmq, Tcp);
suite!(libzmq_calls_native_over_ipc: Native, Libzmq, Ipc);
suite!(native_calls_libzmq_over_tcp: Libzmq, Native, Tcp);
suite!(native_calls_libzmq_over_ipc: Libzmq, Native, Ipc);
