/* Reads safetensors files: 8 bytes of header length, a JSON header, then tensors back to back.
 *
 * The file is untrusted: every offset, shape and name is checked before anything is believed, and
 * what is not exactly right is refused. The data is mapped, not read. A file belongs to one thread
 * at a time; pointers live until close. */
#ifndef RELAY_CLI_SAFETENSORS_H
#define RELAY_CLI_SAFETENSORS_H

#include <relay/types.h>

#define RELAY_SAFETENSORS_DIMS_MAX    8u
#define RELAY_SAFETENSORS_TENSORS_MAX 65536u
#define RELAY_SAFETENSORS_HEADER_MAX  ((size_t)8 << 20)

enum relay_safetensors_dtype {
    RELAY_SAFETENSORS_F32,
    RELAY_SAFETENSORS_F16,
    RELAY_SAFETENSORS_BF16,
    RELAY_SAFETENSORS_F8_E4M3,
    RELAY_SAFETENSORS_I32,
    RELAY_SAFETENSORS_OTHER, /* known to the format, not to us */
};

struct relay_safetensors_tensor {
    const char *name;
    enum relay_safetensors_dtype dtype;
    uint32_t num_dims;
    uint64_t shape[RELAY_SAFETENSORS_DIMS_MAX];
    const uint8_t *data; /* not aligned */
    size_t bytes;
};

struct relay_safetensors;

/* INVALID_ARGUMENT saying what is wrong, NOT_FOUND when the file cannot be opened,
 * RESOURCE_EXHAUSTED. */
RELAY_MUST_CHECK enum relay_code relay_safetensors_open(const char *path,
                                                        struct relay_safetensors **out,
                                                        struct relay_error *err);
/* The same over memory that outlives it, for tests. */
RELAY_MUST_CHECK enum relay_code relay_safetensors_parse(const uint8_t *data, size_t bytes,
                                                         struct relay_safetensors **out,
                                                         struct relay_error *err);
void relay_safetensors_close(struct relay_safetensors *file);

uint32_t relay_safetensors_count(const struct relay_safetensors *file);
/* i < count; in the order of the data. */
const struct relay_safetensors_tensor *relay_safetensors_at(const struct relay_safetensors *file,
                                                            uint32_t i);
/* NULL when there is none of that name. */
const struct relay_safetensors_tensor *relay_safetensors_find(const struct relay_safetensors *file,
                                                              const char *name);
/* The value of a key of __metadata__, or NULL. */
const char *relay_safetensors_metadata(const struct relay_safetensors *file, const char *key);

/* UNSPECIFIED for a dtype that K/V cannot have. */
enum relay_dtype relay_safetensors_relay_dtype(enum relay_safetensors_dtype dtype);

#endif
