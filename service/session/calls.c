/* Unary calls: checked, placed in a slot, admitted, handed over. Nothing here allocates once a slot
 * has been used before. Any thread. */
#include "service/session/internal.h"

static void fill_entries(const struct relayd_call_desc *desc, struct relayd_call *call)
{
    uint32_t row = 0;
    call->num_entries = desc->num_entries;
    for (uint32_t i = 0; i < desc->num_entries; i++) {
        uint32_t q_len = desc->q_lens == NULL ? 1 : desc->q_lens[i];
        call->entries[i] = (struct relayd_call_entry){
            .row_begin = row,
            .q_len = q_len,
            .position = desc->positions[i],
        };
        row += q_len;
    }
}

enum relay_code relayd_session_call_begin(struct relayd_session *session,
                                          const struct relayd_call_desc *desc,
                                          struct relayd_call **out, struct relay_error *err)
{
    struct relayd_placement place = {
        .layer = desc->layer,
        .part = desc->part,
        .want_lse = desc->want_lse,
        .q_bytes = desc->q_bytes,
        .k_bytes = desc->k_bytes,
        .v_bytes = desc->v_bytes,
    };
    struct relayd_call *call = NULL;
    enum relay_code code = relayd_session_check_entries(session, desc->q_lens, desc->positions,
                                                        desc->num_entries, &place.rows, err);
    if (code == RELAY_OK) {
        code = relayd_session_place(session, &place, &call, err);
    }
    if (code != RELAY_OK) {
        return code;
    }
    call->step_id = desc->step_id;
    call->sharing = desc->sharing;
    call->want_timings = desc->want_timings;
    call->received_ns = desc->received_ns;
    call->deadline_ns = desc->deadline_ns;
    fill_entries(desc, call);
    *out = call;
    return RELAY_OK;
}

static void unlend_all(struct relayd_call *call)
{
    for (uint32_t i = 0; i < call->num_entries; i++) {
        relayd_request_unlend(call->entries[i].request);
    }
}

enum relay_code relayd_session_call_submit(struct relayd_session *session, struct relayd_call *call,
                                           const uint64_t *handles, relayd_call_done_fn on_done,
                                           void *user, struct relayd_entry_errors *errors,
                                           struct relay_error *err)
{
    call->give_back = unlend_all;
    call->on_done = on_done;
    call->user = user;
    pthread_mutex_lock(&session->mutex);
    enum relay_code code = relayd_session_admit(session,
                                                &(struct relayd_admission){
                                                    .handles = handles,
                                                    .entries = call->entries,
                                                    .num_entries = call->num_entries,
                                                    .step_id = call->step_id,
                                                    .repeats = call->part == RELAY_PART_PROMPT_ONLY,
                                                    .reserve = call->has_kv,
                                                },
                                                NULL, errors, err);
    if (code == RELAY_OK) {
        /* Handed over under the mutex, so that a session's calls reach the executor in the order in
         * which their requests were lent. */
        code = relayd_executor_submit(session->sessions->opt.executor, call, err);
        if (code != RELAY_OK) {
            unlend_all(call);
        }
    }
    pthread_mutex_unlock(&session->mutex);
    return code;
}
