/* The rules of <relay/plan.h> on a build's input, each with its own message. Pure; any thread. */
#include "plan/plan_internal.h"

#include "core/shape.h"

static enum relay_code limits_check(const struct relay_plan_input *in, struct relay_error *err)
{
    if (in->part != RELAY_PART_FULL && in->part != RELAY_PART_PROMPT_ONLY &&
        in->part != RELAY_PART_CONTEXT_ONLY) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "part %d is unknown", (int)in->part);
    }
    if (in->sharing != RELAY_SHARING_AUTO && in->sharing != RELAY_SHARING_ALWAYS &&
        in->sharing != RELAY_SHARING_NEVER) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "sharing %d is unknown", (int)in->sharing);
    }
    if (in->page_tokens == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "page_tokens is 0");
    }
    if (in->block_tokens == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "block_tokens is 0");
    }
    if (in->split_tokens_min == 0 || in->split_tokens_min % in->block_tokens != 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "split_tokens_min %u is not a multiple of block_tokens %u",
                          in->split_tokens_min, in->block_tokens);
    }
    if (in->splits_max == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "splits_max is 0");
    }
    /* One index past the last is RELAY_NO_SEGMENT or RELAY_DIRECT. */
    if ((uint64_t)in->num_segments + in->num_entries >= UINT32_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%u segments and %u entries are too many",
                          in->num_segments, in->num_entries);
    }
    if (in->num_segments != 0 && in->segments == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "segments are missing");
    }
    if (in->num_entries != 0 && in->entries == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "entries are missing");
    }
    return RELAY_OK;
}

static enum relay_code segment_check(const struct relay_plan_input *in, uint32_t i,
                                     struct relay_error *err)
{
    const struct relay_segment *segment = &in->segments[i];
    if (segment->tokens != 0 && segment->pages == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "segments[%u] has tokens but no pages", i);
    }
    if (segment->tokens > UINT32_MAX - segment->position) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "segments[%u]: position %u + %u tokens is out of range", i,
                          segment->position, segment->tokens);
    }
    if (segment->parent == RELAY_NO_SEGMENT) {
        return RELAY_OK;
    }
    if (segment->parent >= i) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "segments[%u].parent %u is not an earlier segment", i, segment->parent);
    }
    /* A window layer may keep only the end of each level, so a gap is fine; overlap never is. */
    if (segment->position <
        in->segments[segment->parent].position + in->segments[segment->parent].tokens) {
        return RELAY_FAIL(
            err, RELAY_INVALID_ARGUMENT, "segments[%u] at position %u overlaps its parent's end %u",
            i, segment->position,
            in->segments[segment->parent].position + in->segments[segment->parent].tokens);
    }
    return RELAY_OK;
}

static enum relay_code context_check(const struct relay_plan_input *in, uint32_t i,
                                     struct relay_error *err)
{
    const struct relay_entry *e = &in->entries[i];
    uint32_t end;
    if (e->context_tokens != 0 && e->pages == NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "entries[%u] has context but no pages", i);
    }
    if (e->context_tokens > UINT32_MAX - e->context_position) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "entries[%u]: context_position %u + %u tokens is out of range", i,
                          e->context_position, e->context_tokens);
    }
    end = e->context_position + e->context_tokens;
    if (e->context_tokens != 0 && e->segment != RELAY_NO_SEGMENT) {
        const struct relay_segment *prompt = &in->segments[e->segment];
        if (e->context_position < prompt->position + prompt->tokens) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "entries[%u]: context at position %u overlaps the prompt's end %u", i,
                              e->context_position, prompt->position + prompt->tokens);
        }
    }
    if (e->append && (e->position < e->context_position || e->position + e->q_len > end)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "entries[%u] appends at [%u, %u) outside its context [%u, %u)", i,
                          e->position, e->position + e->q_len, e->context_position, end);
    }
    return RELAY_OK;
}

static enum relay_code entry_check(const struct relay_plan_input *in, uint32_t i,
                                   struct relay_error *err)
{
    const struct relay_entry *e = &in->entries[i];
    if (e->q_len == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "entries[%u].q_len is 0", i);
    }
    if (e->q_len > UINT32_MAX - e->position || e->q_len > UINT32_MAX - e->row_begin) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "entries[%u]: position %u or row_begin %u + q_len %u is out of range", i,
                          e->position, e->row_begin, e->q_len);
    }
    if (e->segment != RELAY_NO_SEGMENT && e->segment >= in->num_segments) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "entries[%u].segment %u is not below %u", i,
                          e->segment, in->num_segments);
    }
    if (in->part == RELAY_PART_PROMPT_ONLY) {
        if (e->append) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "entries[%u] appends, which PROMPT_ONLY cannot", i);
        }
        return RELAY_OK; /* own pages are not looked at */
    }
    return context_check(in, i, err);
}

enum relay_code plan_check(const struct relay_plan_input *in, struct relay_error *err)
{
    enum relay_code code = relay_shape_validate(in->shape, err);
    if (code == RELAY_OK) {
        code = limits_check(in, err);
    }
    for (uint32_t i = 0; code == RELAY_OK && i < in->num_segments; i++) {
        code = segment_check(in, i, err);
    }
    for (uint32_t i = 0; code == RELAY_OK && i < in->num_entries; i++) {
        code = entry_check(in, i, err);
    }
    return code;
}
