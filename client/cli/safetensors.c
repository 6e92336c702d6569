#include "safetensors.h"

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* Entries of __metadata__; the search for doubles is quadratic. */
#define METADATA_MAX 1000

struct relay_safetensors {
    uint8_t *mapped; /* NULL for memory of the caller */
    size_t mapped_bytes;
    cJSON *header;
    const cJSON *metadata;
    struct relay_safetensors_tensor *tensors; /* by offset */
    struct relay_safetensors_tensor **names;  /* by name */
    uint32_t count;
};

static const struct {
    const char *name;
    enum relay_safetensors_dtype dtype;
    size_t bytes;
} dtypes[] = {
    {"F32", RELAY_SAFETENSORS_F32, 4},       {"F16", RELAY_SAFETENSORS_F16, 2},
    {"BF16", RELAY_SAFETENSORS_BF16, 2},     {"F8_E4M3", RELAY_SAFETENSORS_F8_E4M3, 1},
    {"I32", RELAY_SAFETENSORS_I32, 4},       {"F64", RELAY_SAFETENSORS_OTHER, 8},
    {"I64", RELAY_SAFETENSORS_OTHER, 8},     {"U64", RELAY_SAFETENSORS_OTHER, 8},
    {"U32", RELAY_SAFETENSORS_OTHER, 4},     {"I16", RELAY_SAFETENSORS_OTHER, 2},
    {"U16", RELAY_SAFETENSORS_OTHER, 2},     {"I8", RELAY_SAFETENSORS_OTHER, 1},
    {"U8", RELAY_SAFETENSORS_OTHER, 1},      {"BOOL", RELAY_SAFETENSORS_OTHER, 1},
    {"F8_E5M2", RELAY_SAFETENSORS_OTHER, 1},
};

enum relay_dtype relay_safetensors_relay_dtype(enum relay_safetensors_dtype dtype)
{
    switch (dtype) {
    case RELAY_SAFETENSORS_F32:
        return RELAY_DTYPE_F32;
    case RELAY_SAFETENSORS_F16:
        return RELAY_DTYPE_F16;
    case RELAY_SAFETENSORS_BF16:
        return RELAY_DTYPE_BF16;
    case RELAY_SAFETENSORS_F8_E4M3:
        return RELAY_DTYPE_F8_E4M3;
    default:
        return RELAY_DTYPE_UNSPECIFIED;
    }
}

/* A JSON number as an exact size. cJSON keeps numbers as doubles: past 2^53 they are not exact. */
static bool get_size(const cJSON *item, uint64_t *out)
{
    if (!cJSON_IsNumber(item)) {
        return false;
    }
    const double value = item->valuedouble;
    if (!(value >= 0) || value > 9007199254740992.0) {
        return false;
    }
    const uint64_t size = (uint64_t)value;
    if ((double)size != value) {
        return false;
    }
    *out = size;
    return true;
}

static bool multiply(uint64_t a, uint64_t b, uint64_t *out)
{
    if (b != 0 && a > UINT64_MAX / b) {
        return false;
    }
    *out = a * b;
    return true;
}

/* Each key at most once: readers that keep the first and readers that keep the last of two would
 * see different files. */
static enum relay_code check_fields(const cJSON *entry, const char *name, struct relay_error *err)
{
    int seen[3] = {0, 0, 0};
    static const char *const fields[3] = {"dtype", "shape", "data_offsets"};
    const cJSON *item;
    cJSON_ArrayForEach(item, entry)
    {
        int i = 0;
        while (i < 3 && strcmp(item->string, fields[i]) != 0) {
            i++;
        }
        if (i == 3 || seen[i]++) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "safetensors: tensor \"%.64s\": field \"%.32s\" is %s", name,
                              item->string, i == 3 ? "unknown" : "there twice");
        }
    }
    if (!seen[0] || !seen[1] || !seen[2]) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: tensor \"%.64s\" lacks dtype, shape or data_offsets", name);
    }
    return RELAY_OK;
}

static enum relay_code parse_shape(const cJSON *shape, struct relay_safetensors_tensor *tensor,
                                   uint64_t *elements, struct relay_error *err)
{
    *elements = 1;
    tensor->num_dims = 0;
    if (!cJSON_IsArray(shape)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "safetensors: tensor \"%.64s\": no shape",
                          tensor->name);
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, shape)
    {
        uint64_t dim;
        if (tensor->num_dims == RELAY_SAFETENSORS_DIMS_MAX || !get_size(item, &dim) ||
            !multiply(*elements, dim, elements)) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "safetensors: tensor \"%.64s\": bad shape", tensor->name);
        }
        tensor->shape[tensor->num_dims++] = dim;
    }
    return RELAY_OK;
}

static enum relay_code parse_tensor(const cJSON *entry, const uint8_t *data, size_t data_bytes,
                                    struct relay_safetensors_tensor *tensor,
                                    struct relay_error *err)
{
    tensor->name = entry->string;
    if (!cJSON_IsObject(entry)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "safetensors: tensor \"%.64s\" is no object",
                          tensor->name);
    }
    enum relay_code code = check_fields(entry, tensor->name, err);
    if (code != RELAY_OK) {
        return code;
    }
    const char *dtype = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(entry, "dtype"));
    size_t element_bytes = 0;
    for (size_t i = 0; dtype != NULL && i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(dtype, dtypes[i].name) == 0) {
            tensor->dtype = dtypes[i].dtype;
            element_bytes = dtypes[i].bytes;
        }
    }
    if (element_bytes == 0) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: tensor \"%.64s\": dtype \"%.16s\" is not known",
                          tensor->name, dtype != NULL ? dtype : "");
    }
    uint64_t elements, bytes, begin, end;
    code = parse_shape(cJSON_GetObjectItemCaseSensitive(entry, "shape"), tensor, &elements, err);
    if (code != RELAY_OK) {
        return code;
    }
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !get_size(offsets->child, &begin) || !get_size(offsets->child->next, &end) || begin > end ||
        end > data_bytes) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: tensor \"%.64s\": bad data_offsets (the file has %zu bytes "
                          "of data)",
                          tensor->name, data_bytes);
    }
    if (!multiply(elements, element_bytes, &bytes) || bytes != end - begin) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: tensor \"%.64s\": shape and dtype do not make %llu bytes",
                          tensor->name, (unsigned long long)(end - begin));
    }
    tensor->data = data + begin;
    tensor->bytes = (size_t)bytes;
    return RELAY_OK;
}

static int compare_data(const void *a, const void *b)
{
    const struct relay_safetensors_tensor *x = a, *y = b;
    if (x->data != y->data) {
        return x->data < y->data ? -1 : 1;
    }
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

static int compare_names(const void *a, const void *b)
{
    const struct relay_safetensors_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* Sorted both ways: the data must be covered exactly once, and names must differ. */
static enum relay_code check_layout(struct relay_safetensors *file, const uint8_t *data,
                                    size_t data_bytes, struct relay_error *err)
{
    if (file->count > 0) {
        qsort(file->tensors, file->count, sizeof(file->tensors[0]), compare_data);
    }
    const uint8_t *at = data;
    for (uint32_t i = 0; i < file->count; i++) {
        const struct relay_safetensors_tensor *tensor = &file->tensors[i];
        if (tensor->data != at) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "safetensors: tensor \"%.64s\" %s",
                              tensor->name,
                              tensor->data < at ? "overlaps another" : "leaves a hole before it");
        }
        at += tensor->bytes;
        file->names[i] = &file->tensors[i];
    }
    if (at != data + data_bytes) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: %zu bytes after the last tensor",
                          (size_t)(data + data_bytes - at));
    }
    if (file->count > 0) {
        qsort(file->names, file->count, sizeof(struct relay_safetensors_tensor *), compare_names);
    }
    for (uint32_t i = 1; i < file->count; i++) {
        if (strcmp(file->names[i - 1]->name, file->names[i]->name) == 0) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "safetensors: tensor \"%.64s\" is there twice", file->names[i]->name);
        }
    }
    return RELAY_OK;
}

static enum relay_code check_metadata(struct relay_safetensors *file, const cJSON *metadata,
                                      struct relay_error *err)
{
    if (file->metadata != NULL || !cJSON_IsObject(metadata)) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: __metadata__ is no object, or there twice");
    }
    if (cJSON_GetArraySize(metadata) > METADATA_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: more than %d entries of __metadata__", METADATA_MAX);
    }
    const cJSON *item;
    cJSON_ArrayForEach(item, metadata)
    {
        if (!cJSON_IsString(item)) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "safetensors: __metadata__ \"%.64s\" is no string", item->string);
        }
        if (cJSON_GetObjectItemCaseSensitive(metadata, item->string) != item) {
            return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                              "safetensors: __metadata__ \"%.64s\" is there twice", item->string);
        }
    }
    file->metadata = metadata;
    return RELAY_OK;
}

static enum relay_code parse_header(struct relay_safetensors *file, const uint8_t *data,
                                    size_t data_bytes, struct relay_error *err)
{
    uint32_t entries = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, file->header)
    {
        entries++;
    }
    if (!cJSON_IsObject(file->header) || entries > RELAY_SAFETENSORS_TENSORS_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: the header is no object, or has more than %u entries",
                          RELAY_SAFETENSORS_TENSORS_MAX);
    }
    file->tensors = calloc((size_t)entries + 1, sizeof(file->tensors[0]));
    file->names = calloc((size_t)entries + 1, sizeof(struct relay_safetensors_tensor *));
    if (file->tensors == NULL || file->names == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    cJSON_ArrayForEach(item, file->header)
    {
        const enum relay_code code =
            strcmp(item->string, "__metadata__") == 0
                ? check_metadata(file, item, err)
                : parse_tensor(item, data, data_bytes, &file->tensors[file->count++], err);
        if (code != RELAY_OK) {
            return code;
        }
    }
    return check_layout(file, data, data_bytes, err);
}

enum relay_code relay_safetensors_parse(const uint8_t *data, size_t bytes,
                                        struct relay_safetensors **out, struct relay_error *err)
{
    uint64_t header_bytes = 0;
    if (bytes < 8) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: the file has %zu bytes, too few for a header", bytes);
    }
    for (uint32_t i = 0; i < 8; i++) {
        header_bytes |= (uint64_t)data[i] << (8 * i);
    }
    if (header_bytes > bytes - 8 || header_bytes > RELAY_SAFETENSORS_HEADER_MAX) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT,
                          "safetensors: a header of %llu bytes does not fit (the file has %zu)",
                          (unsigned long long)header_bytes, bytes);
    }
    const char *json = (const char *)data + 8;
    /* Strings would be cut there, and what follows would be hidden. */
    if (memchr(json, '\0', (size_t)header_bytes) != NULL) {
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "safetensors: a NUL byte in the header");
    }
    struct relay_safetensors *file = calloc(1, sizeof(*file));
    if (file == NULL) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "out of memory");
    }
    enum relay_code code;
    const char *end = NULL;
    file->header = cJSON_ParseWithLengthOpts(json, (size_t)header_bytes, &end, 0);
    while (file->header != NULL && end < json + header_bytes && *end == ' ') {
        end++;
    }
    if (file->header == NULL || end != json + header_bytes) {
        code = RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "safetensors: the header is no JSON object");
    } else {
        code = parse_header(file, data + 8 + header_bytes, bytes - 8 - (size_t)header_bytes, err);
    }
    if (code != RELAY_OK) {
        relay_safetensors_close(file);
        return code;
    }
    *out = file;
    return RELAY_OK;
}

enum relay_code relay_safetensors_open(const char *path, struct relay_safetensors **out,
                                       struct relay_error *err)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    if (fd < 0) {
        return RELAY_FAIL(err, RELAY_NOT_FOUND, "%.160s: cannot be opened", path);
    }
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 8) {
        close(fd);
        return RELAY_FAIL(err, RELAY_INVALID_ARGUMENT, "%.160s: no safetensors file", path);
    }
    const size_t bytes = (size_t)st.st_size;
    uint8_t *mapped = mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) {
        return RELAY_FAIL(err, RELAY_RESOURCE_EXHAUSTED, "%.160s: cannot be mapped", path);
    }
    const enum relay_code code = relay_safetensors_parse(mapped, bytes, out, err);
    if (code != RELAY_OK) {
        munmap(mapped, bytes);
        return code;
    }
    (*out)->mapped = mapped;
    (*out)->mapped_bytes = bytes;
    return RELAY_OK;
}

void relay_safetensors_close(struct relay_safetensors *file)
{
    if (file == NULL) {
        return;
    }
    cJSON_Delete(file->header);
    free(file->tensors);
    free(file->names);
    if (file->mapped != NULL) {
        munmap(file->mapped, file->mapped_bytes);
    }
    free(file);
}

uint32_t relay_safetensors_count(const struct relay_safetensors *file)
{
    return file->count;
}

const struct relay_safetensors_tensor *relay_safetensors_at(const struct relay_safetensors *file,
                                                            uint32_t i)
{
    return &file->tensors[i];
}

const struct relay_safetensors_tensor *relay_safetensors_find(const struct relay_safetensors *file,
                                                              const char *name)
{
    const struct relay_safetensors_tensor key = {.name = name};
    const struct relay_safetensors_tensor *key_at = &key;
    if (file->count == 0) {
        return NULL;
    }
    struct relay_safetensors_tensor *const *found =
        bsearch(&key_at, file->names, file->count, sizeof(struct relay_safetensors_tensor *),
                compare_names);
    return found != NULL ? *found : NULL;
}

const char *relay_safetensors_metadata(const struct relay_safetensors *file, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(file->metadata, key));
}
