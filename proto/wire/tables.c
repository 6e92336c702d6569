/* Parts that the attention messages share: see tables.h. Constant data, any thread. */
#include <proto/wire/tables.h>

#define TIMING(number, kind, member)                                                               \
    {                                                                                              \
        number, kind, #member, offsetof(struct relay_wire_timings, member), 0, 0, NULL             \
    }

static const struct relay_wire_field timings_fields[] = {
    TIMING(1, RELAY_WIRE_FIELD_U32, queue_us),       TIMING(2, RELAY_WIRE_FIELD_U32, plan_us),
    TIMING(3, RELAY_WIRE_FIELD_U32, compute_us),     TIMING(4, RELAY_WIRE_FIELD_U64, prompt_bytes),
    TIMING(5, RELAY_WIRE_FIELD_U64, kv_bytes),       TIMING(6, RELAY_WIRE_FIELD_U32, batch_rows),
    TIMING(7, RELAY_WIRE_FIELD_U32, batch_sessions),
};

const struct relay_wire_table relay_wire_timings_table = {
    .name = "Timings",
    .fields = timings_fields,
    .num_fields = RELAY_WIRE_COUNT(timings_fields),
    .skip_unknown = true,
};

struct relay_wire_entry_arrays relay_wire_entry_arrays_of(
    const struct relay_wire_entry_storage *storage)
{
    return (struct relay_wire_entry_arrays){
        .handles = {storage->handles, 0, storage->entries_max},
        .q_lens = {storage->q_lens, 0, storage->entries_max},
        .positions = {storage->positions, 0, storage->entries_max},
    };
}

struct relay_wire_entries relay_wire_entries_of(const struct relay_wire_entry_arrays *arrays)
{
    return (struct relay_wire_entries){
        .handles = arrays->handles.data,
        .q_lens = arrays->q_lens.data,
        .positions = arrays->positions.data,
        .num_handles = arrays->handles.count,
        .num_q_lens = arrays->q_lens.count,
        .num_positions = arrays->positions.count,
    };
}

size_t relay_wire_entries_bytes_max(const struct relay_wire_entries *entries)
{
    return 3 * RELAY_WIRE_SCALAR_BYTES_MAX + 8 * (size_t)entries->num_handles +
           5 * ((size_t)entries->num_q_lens + entries->num_positions);
}

void relay_wire_put_entries(struct relay_wire_writer *writer,
                            const struct relay_wire_entries *entries)
{
    relay_wire_put_fixed64s(writer, 7, entries->handles, entries->num_handles);
    relay_wire_put_u32s(writer, 8, entries->q_lens, entries->num_q_lens);
    relay_wire_put_u32s(writer, 9, entries->positions, entries->num_positions);
}

void relay_wire_put_timings(struct relay_wire_writer *writer, uint32_t number,
                            const struct relay_wire_timings *timings)
{
    /* The body is at most 7 scalars, shorter than 128 bytes, so its length is one byte. */
    uint8_t *body;
    relay_wire_put_varint(writer, (uint64_t)number << 3 | RELAY_WIRE_LENGTH);
    body = ++writer->at;
    relay_wire_put_u64(writer, 1, timings->queue_us);
    relay_wire_put_u64(writer, 2, timings->plan_us);
    relay_wire_put_u64(writer, 3, timings->compute_us);
    relay_wire_put_u64(writer, 4, timings->prompt_bytes);
    relay_wire_put_u64(writer, 5, timings->kv_bytes);
    relay_wire_put_u64(writer, 6, timings->batch_rows);
    relay_wire_put_u64(writer, 7, timings->batch_sessions);
    body[-1] = (uint8_t)(writer->at - body);
}
