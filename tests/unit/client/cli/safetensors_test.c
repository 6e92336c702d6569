/* The safetensors reader: what it reads, and hostile files of every kind it must refuse. */
#include "testlib/check.h"

#include "client/cli/safetensors.h"

#include <unistd.h>

struct file {
    uint8_t *bytes; /* exactly as long as the file: a byte too far is seen by the sanitizer */
    size_t n;
};

static struct file make(const char *header, size_t data_bytes)
{
    const size_t header_bytes = strlen(header);
    struct file file = {malloc(8 + header_bytes + data_bytes), 8 + header_bytes + data_bytes};
    for (size_t i = 0; i < 8; i++) {
        file.bytes[i] = (uint8_t)((uint64_t)header_bytes >> (8 * i));
    }
    memcpy(file.bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; i++) {
        file.bytes[8 + header_bytes + i] = (uint8_t)i;
    }
    return file;
}

static enum relay_code parse(const char *header, size_t data_bytes, char *why)
{
    struct file file = make(header, data_bytes);
    struct relay_safetensors *parsed = NULL;
    struct relay_error err = {.code = RELAY_OK};
    const enum relay_code code = relay_safetensors_parse(file.bytes, file.n, &parsed, &err);
    if (why != NULL) {
        snprintf(why, RELAY_ERROR_MSG_BYTES, "%s", code == RELAY_OK ? "" : err.msg);
    }
    relay_safetensors_close(parsed);
    free(file.bytes);
    return code;
}

static const char *const good =
    "{\"__metadata__\":{\"model\":\"{}\"},"
    "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[8,20]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
    "\"none\":{\"dtype\":\"I32\",\"shape\":[0,5],\"data_offsets\":[20,20]},"
    "\"one\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[20,21]}}   ";

static void test_safetensors_reads_tensors_and_metadata(void)
{
    struct file file = make(good, 21);
    struct relay_safetensors *parsed = NULL;
    struct relay_error err;
    CHECK_OK(relay_safetensors_parse(file.bytes, file.n, &parsed, &err), err);
    CHECK_EQ(relay_safetensors_count(parsed), 4);
    CHECK_STR(relay_safetensors_at(parsed, 0)->name, "a");
    CHECK_STR(relay_safetensors_metadata(parsed, "model"), "{}");
    CHECK(relay_safetensors_metadata(parsed, "other") == NULL);
    CHECK(relay_safetensors_find(parsed, "c") == NULL);
    const struct relay_safetensors_tensor *b = relay_safetensors_find(parsed, "b");
    CHECK(b != NULL);
    CHECK_EQ(b->dtype, RELAY_SAFETENSORS_BF16);
    CHECK_EQ(relay_safetensors_relay_dtype(b->dtype), RELAY_DTYPE_BF16);
    CHECK_EQ(b->num_dims, 2);
    CHECK_EQ(b->shape[1], 3);
    CHECK_EQ(b->bytes, 12);
    CHECK_EQ(b->data[0], 8);
    CHECK_EQ(relay_safetensors_find(parsed, "none")->bytes, 0);
    CHECK_EQ(relay_safetensors_find(parsed, "one")->num_dims, 0);
    relay_safetensors_close(parsed);
    free(file.bytes);
    relay_safetensors_close(NULL);
}

static void test_safetensors_of_nothing(void)
{
    CHECK_CODE(parse("{}", 0, NULL), RELAY_OK);
    CHECK_CODE(parse("{\"__metadata__\":{}}", 0, NULL), RELAY_OK);
}

/* Cut anywhere, a file is refused: its header, or its data, is then too short. */
static void test_safetensors_truncated_anywhere(void)
{
    struct file file = make(good, 21);
    for (size_t n = 0; n < file.n; n++) {
        uint8_t *cut = malloc(n > 0 ? n : 1);
        struct relay_safetensors *parsed = NULL;
        CHECK(cut != NULL);
        memcpy(cut, file.bytes, n);
        CHECK_CODE(relay_safetensors_parse(cut, n, &parsed, NULL), RELAY_INVALID_ARGUMENT);
        CHECK(parsed == NULL);
        free(cut);
    }
    free(file.bytes);
}

static void test_safetensors_header_lengths(void)
{
    static const uint64_t lengths[] = {0,        1,          1000,      UINT32_MAX,
                                       1u << 31, UINT64_MAX, INT64_MAX, UINT64_MAX - 7};
    struct file file = make(good, 21);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        struct relay_safetensors *parsed = NULL;
        for (int b = 0; b < 8; b++) {
            file.bytes[b] = (uint8_t)(lengths[i] >> (8 * b));
        }
        CHECK_CODE(relay_safetensors_parse(file.bytes, file.n, &parsed, NULL),
                   RELAY_INVALID_ARGUMENT);
    }
    free(file.bytes);
}

static void test_safetensors_refuses_what_is_not_exact(void)
{
#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"
    static const struct {
        const char *header, *why;
    } cases[] = {
        {"[]", "no object"},
        {"null", "no object"},
        {"{} {}", "no JSON"},
        {"{}x", "no JSON"},
        {"{\"a\":1}", "no object"},
        {"{\"a\":{}}", "lacks"},
        {"{\"a\":" T("\"F32\"", "[2]", "[0,8]") ",\"a\":" T("\"F32\"", "[2]", "[8,16]") "}",
         "there twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}",
         "there twice"},
        {"{\"a\":{\"dtype\":\"F32\",\"x\":1,\"shape\":[4],\"data_offsets\":[0,16]}}", "unknown"},
        {"{\"a\":" T("\"F33\"", "[4]", "[0,16]") "}", "not known"},
        {"{\"a\":" T("7", "[4]", "[0,16]") "}", "not known"},
        {"{\"a\":" T("\"F32\"", "4", "[0,16]") "}", "no shape"},
        {"{\"a\":" T("\"F32\"", "[-4]", "[0,16]") "}", "bad shape"},
        {"{\"a\":" T("\"F32\"", "[4.5]", "[0,16]") "}", "bad shape"},
        {"{\"a\":" T("\"F32\"", "[\"4\"]", "[0,16]") "}", "bad shape"},
        {"{\"a\":" T("\"F32\"", "[1,1,1,1,1,1,1,1,4]", "[0,16]") "}", "bad shape"},
        {"{\"a\":" T("\"F32\"", "[1e300]", "[0,16]") "}", "bad shape"},
        /* 2^33 * 2^31 = 2^64: elements overflow to 0, times 4 bytes fits nothing */
        {"{\"a\":" T("\"F32\"", "[8589934592,2147483648]", "[0,16]") "}", "bad shape"},
        /* 2^62 elements: only their bytes overflow, to 0 */
        {"{\"a\":" T("\"F32\"", "[2147483648,2147483648]", "[0,0]") "}", "do not make"},
        {"{\"a\":" T("\"F32\"", "[4]", "[0]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[0,16,16]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[16,0]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[-16,0]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[0,17]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[0,18446744073709551616]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[18446744073709551600,18446744073709551616]") "}",
         "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[4]", "[0,9007199254740994]") "}", "data_offsets"},
        {"{\"a\":" T("\"F32\"", "[3]", "[0,16]") "}", "do not make"},
        {"{\"a\":" T("\"F32\"", "[3]", "[0,12]") "}", "after the last"},
        {"{\"a\":" T("\"F32\"", "[3]", "[4,16]") "}", "hole"},
        {"{\"a\":" T("\"F32\"", "[3]", "[0,12]") ",\"b\":" T("\"F32\"", "[2]", "[8,16]") "}",
         "overlaps"},
        {"{\"a\":" T("\"F32\"", "[4]", "[0,16]") ",\"b\":" T("\"F32\"", "[4]", "[0,16]") "}",
         "overlaps"},
        {"{\"__metadata__\":[],\"a\":" T("\"F32\"", "[4]", "[0,16]") "}", "__metadata__"},
        {"{\"__metadata__\":{\"m\":1},\"a\":" T("\"F32\"", "[4]", "[0,16]") "}", "no string"},
        {"{\"__metadata__\":{},\"__metadata__\":{},\"a\":" T("\"F32\"", "[4]", "[0,16]") "}",
         "there twice"},
        {"{\"__metadata__\":{\"m\":\"1\",\"m\":\"2\"},\"a\":" T("\"F32\"", "[4]", "[0,16]") "}",
         "there twice"},
    };
#undef T
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char why[RELAY_ERROR_MSG_BYTES];
        if (parse(cases[i].header, 16, why) != RELAY_INVALID_ARGUMENT ||
            strstr(why, cases[i].why) == NULL) {
            CHECK_FAIL("%s: \"%s\" instead of \"%s\"", cases[i].header, why, cases[i].why);
        }
    }
}

static void test_safetensors_refuses_nul_and_depth(void)
{
    struct file file = make(good, 21);
    struct relay_safetensors *parsed = NULL;
    file.bytes[8 + strlen(good) - 1] = '\0';
    CHECK_CODE(relay_safetensors_parse(file.bytes, file.n, &parsed, NULL), RELAY_INVALID_ARGUMENT);
    free(file.bytes);
    char *deep = malloc(100001);
    CHECK(deep != NULL);
    memset(deep, '[', 100000);
    deep[100000] = '\0';
    CHECK_CODE(parse(deep, 0, NULL), RELAY_INVALID_ARGUMENT);
    free(deep);
}

static void test_safetensors_refuses_too_many_tensors(void)
{
    const size_t n = RELAY_SAFETENSORS_TENSORS_MAX + 1;
    char *header = malloc(n * 64 + 16);
    size_t used = 1;
    CHECK(header != NULL);
    header[0] = '{';
    for (size_t i = 0; i < n; i++) {
        used += (size_t)snprintf(header + used, 64, "%s\"%zx\":{}", i > 0 ? "," : "", i);
    }
    header[used++] = '}';
    header[used] = '\0';
    char why[RELAY_ERROR_MSG_BYTES];
    CHECK_CODE(parse(header, 0, why), RELAY_INVALID_ARGUMENT);
    CHECK(strstr(why, "more than") != NULL);
    free(header);
}

/* Every single byte of a file flipped: refused, or read; never out of bounds (the sanitizer looks).
 */
static void test_safetensors_survives_flipped_bytes(void)
{
    struct file file = make(good, 21);
    size_t refused = 0;
    for (size_t i = 0; i < file.n - 21; i++) {
        for (int bit = 0; bit < 8; bit++) {
            struct relay_safetensors *parsed = NULL;
            file.bytes[i] ^= (uint8_t)(1 << bit);
            if (relay_safetensors_parse(file.bytes, file.n, &parsed, NULL) != RELAY_OK) {
                refused++;
            }
            relay_safetensors_close(parsed);
            file.bytes[i] ^= (uint8_t)(1 << bit);
        }
    }
    CHECK(refused > file.n);
    free(file.bytes);
}

static void test_safetensors_opens_files_only(void)
{
    struct relay_safetensors *parsed = NULL;
    struct relay_error err;
    char path[] = "/tmp/relay-safetensors-XXXXXX";
    CHECK_CODE(relay_safetensors_open("/nonexistent/file", &parsed, &err), RELAY_NOT_FOUND);
    CHECK_CODE(relay_safetensors_open("/tmp", &parsed, &err), RELAY_INVALID_ARGUMENT);
    const int fd = mkstemp(path);
    CHECK(fd >= 0);
    CHECK_CODE(relay_safetensors_open(path, &parsed, &err), RELAY_INVALID_ARGUMENT);
    struct file file = make(good, 21);
    CHECK(write(fd, file.bytes, file.n) == (ssize_t)file.n);
    CHECK_OK(relay_safetensors_open(path, &parsed, &err), err);
    CHECK_EQ(relay_safetensors_find(parsed, "b")->data[0], 8);
    relay_safetensors_close(parsed);
    free(file.bytes);
    close(fd);
    unlink(path);
}

int main(void)
{
    CHECK_RUN(test_safetensors_reads_tensors_and_metadata);
    CHECK_RUN(test_safetensors_of_nothing);
    CHECK_RUN(test_safetensors_truncated_anywhere);
    CHECK_RUN(test_safetensors_header_lengths);
    CHECK_RUN(test_safetensors_refuses_what_is_not_exact);
    CHECK_RUN(test_safetensors_refuses_nul_and_depth);
    CHECK_RUN(test_safetensors_refuses_too_many_tensors);
    CHECK_RUN(test_safetensors_survives_flipped_bytes);
    CHECK_RUN(test_safetensors_opens_files_only);
    return check_done();
}
