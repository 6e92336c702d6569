/* Server reflection, v1 and v1alpha: the same messages under two names. Queue's thread; the data
 * are constant tables built with the program. One answer per request, in order. */
#include "service/rpc/stream.h"

#include <grpc/reflection/v1/reflection.pb-c.h>
#include <proto/reflection_data.h>
#include <proto/wire/unpack.h>
#include <stdlib.h>

static grpc_byte_buffer *answer_error(Grpc__Reflection__V1__ServerReflectionResponse *response,
                                      enum relay_code code, const char *text)
{
    Grpc__Reflection__V1__ErrorResponse error;
    grpc__reflection__v1__error_response__init(&error);
    error.error_code = (int32_t)code;
    error.error_message = (char *)text;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_ERROR_RESPONSE;
    response->error_response = &error;
    return relay_wire_pack(&response->base);
}

/* No file imports another, so a file is its own closure. */
static grpc_byte_buffer *answer_file(Grpc__Reflection__V1__ServerReflectionResponse *response,
                                     const struct relay_proto_file *file)
{
    if (file == NULL) {
        return answer_error(response, RELAY_NOT_FOUND, "no such file or symbol");
    }
    Grpc__Reflection__V1__FileDescriptorResponse files;
    ProtobufCBinaryData data = {.len = file->size, .data = (uint8_t *)file->bytes};
    grpc__reflection__v1__file_descriptor_response__init(&files);
    files.n_file_descriptor_proto = 1;
    files.file_descriptor_proto = &data;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_FILE_DESCRIPTOR_RESPONSE;
    response->file_descriptor_response = &files;
    return relay_wire_pack(&response->base);
}

#define SERVICES_MAX 16u

static grpc_byte_buffer *answer_services(Grpc__Reflection__V1__ServerReflectionResponse *response)
{
    Grpc__Reflection__V1__ListServiceResponse list;
    Grpc__Reflection__V1__ServiceResponse services[SERVICES_MAX];
    Grpc__Reflection__V1__ServiceResponse *pointers[SERVICES_MAX];
    size_t n = 0;
    grpc__reflection__v1__list_service_response__init(&list);
    for (const char *name; n < SERVICES_MAX && (name = relay_proto_service(n)) != NULL; n++) {
        grpc__reflection__v1__service_response__init(&services[n]);
        services[n].name = (char *)name;
        pointers[n] = &services[n];
    }
    list.n_service = n;
    list.service = pointers;
    response->message_response_case =
        GRPC__REFLECTION__V1__SERVER_REFLECTION_RESPONSE__MESSAGE_RESPONSE_LIST_SERVICES_RESPONSE;
    response->list_services_response = &list;
    return relay_wire_pack(&response->base);
}

static grpc_byte_buffer *answer(Grpc__Reflection__V1__ServerReflectionRequest *request)
{
    Grpc__Reflection__V1__ServerReflectionResponse response;
    grpc__reflection__v1__server_reflection_response__init(&response);
    response.valid_host = request->host;
    response.original_request = request;
    switch (request->message_request_case) {
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_BY_FILENAME:
        return answer_file(&response, relay_proto_file_by_name(request->file_by_filename));
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_SYMBOL:
        return answer_file(&response, relay_proto_file_by_symbol(request->file_containing_symbol));
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_LIST_SERVICES:
        return answer_services(&response);
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_FILE_CONTAINING_EXTENSION:
    case GRPC__REFLECTION__V1__SERVER_REFLECTION_REQUEST__MESSAGE_REQUEST_ALL_EXTENSION_NUMBERS_OF_TYPE:
        return answer_error(&response, RELAY_NOT_FOUND, "there are no extensions");
    default:
        return answer_error(&response, RELAY_INVALID_ARGUMENT, "the request asks for nothing");
    }
}

static void message(struct relayd_rpc_stream *stream)
{
    struct relay_wire_view view;
    struct relay_wire_arena arena;
    struct relay_error err = {0};
    ProtobufCMessage *request = NULL;
    relay_wire_arena_init(&arena);
    enum relay_code code = relay_wire_view_init(&view, stream->base.message, &err);
    if (code == RELAY_OK) {
        code = relay_wire_unpack_response(
            &view, relay_wire_whole(&view),
            &grpc__reflection__v1__server_reflection_request__descriptor, &arena, &request, &err);
    }
    if (code == RELAY_OK) {
        relayd_rpc_stream_send(stream,
                               answer((Grpc__Reflection__V1__ServerReflectionRequest *)request));
    } else {
        relayd_rpc_stream_finish(stream, NULL, &err);
    }
    relay_wire_arena_fini(&arena);
}

/* The next request is read when the answer has left: answers cannot pile up. */
static void sent(struct relayd_rpc_stream *stream)
{
    if (!stream->finished) {
        relayd_rpc_stream_recv(stream);
    }
}

static void end(struct relayd_rpc_stream *stream, enum relayd_rpc_end how)
{
    (void)how;
    relayd_rpc_stream_finish(stream, NULL, NULL);
}

static void start(struct relayd_rpc_call *call)
{
    struct relayd_rpc_stream *stream = (struct relayd_rpc_stream *)call;
    relayd_rpc_stream_init(stream);
    relayd_rpc_stream_recv(stream);
}

static void fini(struct relayd_rpc_call *call)
{
    relayd_rpc_stream_fini((struct relayd_rpc_stream *)call);
}

static void destroy(struct relayd_rpc_call *call)
{
    relayd_rpc_stream_destroy((struct relayd_rpc_stream *)call);
}

static const struct relayd_rpc_stream_spec spec = {.message = message, .end = end, .sent = sent};

#define REFLECTION(method_path)                                                                    \
    {                                                                                              \
        .path = (method_path), .posted = 1, .call_bytes = sizeof(struct relayd_rpc_stream),        \
        .start = start, .fini = fini, .destroy = destroy, .spec = &spec,                           \
    }

const struct relayd_rpc_method relayd_rpc_reflection_methods[] = {
    REFLECTION("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"),
    REFLECTION("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    {.start = NULL},
};
