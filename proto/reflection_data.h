/* The descriptors of every .proto file of this tree, for server reflection.
 *
 * Built from protoc-c's descriptor set; constant data, any thread. No file here imports another, so
 * one file's descriptor is always its whole closure. */
#ifndef RELAY_PROTO_REFLECTION_DATA_H
#define RELAY_PROTO_REFLECTION_DATA_H

#include <stddef.h>
#include <stdint.h>

struct relay_proto_file {
    const char *name;           /* "relay/v1/relay.proto" */
    const uint8_t *bytes;       /* serialized google.protobuf.FileDescriptorProto */
    size_t size;                /* bytes */
    const char *const *symbols; /* fully qualified services, methods, messages, fields, enums */
    size_t num_symbols;
    const char *const *services; /* fully qualified */
    size_t num_services;
};

/* The i-th file, NULL past the end. */
const struct relay_proto_file *relay_proto_file(size_t i);
/* By "relay/v1/relay.proto"; NULL when there is none. */
const struct relay_proto_file *relay_proto_file_by_name(const char *name);
/* By "relay.v1.RelayAttention" or any other symbol; NULL when there is none. */
const struct relay_proto_file *relay_proto_file_by_symbol(const char *symbol);
/* Fully qualified name of the i-th service over all files, NULL past the end. */
const char *relay_proto_service(size_t i);

#endif
