/* The embedded descriptors: found by name and by symbol, and really the files' descriptors. */
#include "testlib/check.h"

#include <proto/reflection_data.h>

static void test_reflection_lists_the_services(void)
{
    static const char *const expected[] = {
        "relay.v1.RelayAttention",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    };
    size_t n = sizeof(expected) / sizeof(expected[0]);
    for (size_t i = 0; i < n; i++) {
        CHECK_STR(relay_proto_service(i), expected[i]);
    }
    CHECK(relay_proto_service(n) == NULL);
}

static void test_reflection_finds_symbols(void)
{
    static const struct {
        const char *symbol;
        const char *file;
    } cases[] = {
        {"relay.v1.RelayAttention", "relay/v1/relay.proto"},
        {"relay.v1.RelayAttention.BatchedRelayAttention", "relay/v1/relay.proto"},
        {"relay.v1.ModelSpec", "relay/v1/relay.proto"},
        {"relay.v1.ModelSpec.kinds", "relay/v1/relay.proto"},
        {"relay.v1.DType", "relay/v1/relay.proto"},
        {"grpc.health.v1.Health.Watch", "grpc/health/v1/health.proto"},
        {"grpc.health.v1.HealthCheckResponse.ServingStatus", "grpc/health/v1/health.proto"},
        {"grpc.reflection.v1.ErrorResponse", "grpc/reflection/v1/reflection.proto"},
        {"grpc.reflection.v1alpha.ErrorResponse", "grpc/reflection/v1alpha/reflection.proto"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const struct relay_proto_file *file = relay_proto_file_by_symbol(cases[i].symbol);
        if (file == NULL) {
            CHECK_FAIL("%s is not found", cases[i].symbol);
        }
        CHECK_STR(file->name, cases[i].file);
        CHECK(relay_proto_file_by_name(file->name) == file);
    }
    CHECK(relay_proto_file_by_symbol("relay.v1.Relay") == NULL);
    CHECK(relay_proto_file_by_symbol("") == NULL);
    CHECK(relay_proto_file_by_name("relay.proto") == NULL);
}

/* A FileDescriptorProto starts with its name: field 1, length-delimited. */
static void test_reflection_bytes_are_the_files_descriptor(void)
{
    const struct relay_proto_file *file;
    size_t i;
    for (i = 0; (file = relay_proto_file(i)) != NULL; i++) {
        size_t length = strlen(file->name);
        CHECK(file->size > length + 2);
        CHECK_EQ(file->bytes[0], 0x0a);
        CHECK_EQ(file->bytes[1], length);
        CHECK(memcmp(file->bytes + 2, file->name, length) == 0);
        CHECK_EQ(file->num_services, 1);
        CHECK(file->num_symbols > file->num_services);
    }
    CHECK_EQ(i, 4);
}

int main(void)
{
    CHECK_RUN(test_reflection_lists_the_services);
    CHECK_RUN(test_reflection_finds_symbols);
    CHECK_RUN(test_reflection_bytes_are_the_files_descriptor);
    return check_done();
}
