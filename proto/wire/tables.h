/* Tables and helpers that several messages share. Private to this room. */
#ifndef RELAY_WIRE_TABLES_H
#define RELAY_WIRE_TABLES_H

#include <proto/wire/attend.h>
#include <proto/wire/fields.h>
#include <proto/wire/writer.h>

#define RELAY_WIRE_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* The three arrays of entries while they are read. */
struct relay_wire_entry_arrays {
    struct relay_wire_array handles;
    struct relay_wire_array q_lens;
    struct relay_wire_array positions;
};

/* Into struct relay_wire_timings. */
extern const struct relay_wire_table relay_wire_timings_table;

struct relay_wire_entry_arrays relay_wire_entry_arrays_of(
    const struct relay_wire_entry_storage *storage);
struct relay_wire_entries relay_wire_entries_of(const struct relay_wire_entry_arrays *arrays);

/* The most bytes the entries take in a head. */
size_t relay_wire_entries_bytes_max(const struct relay_wire_entries *entries);
/* Fields 7, 8, 9 of BatchedRelayAttentionRequest and of BeginStep. */
void relay_wire_put_entries(struct relay_wire_writer *writer,
                            const struct relay_wire_entries *entries);

#define RELAY_WIRE_TIMINGS_BYTES_MAX (9 * RELAY_WIRE_SCALAR_BYTES_MAX)
void relay_wire_put_timings(struct relay_wire_writer *writer, uint32_t number,
                            const struct relay_wire_timings *timings);

#endif
