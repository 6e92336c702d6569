/* Every message that one end takes from the other, for tests that go through all of them. */
#ifndef TESTS_WIRE_TYPES_H
#define TESTS_WIRE_TYPES_H

#include <grpc/health/v1/health.pb-c.h>
#include <grpc/reflection/v1/reflection.pb-c.h>
#include <grpc/reflection/v1alpha/reflection.pb-c.h>
#include <relay/v1/relay.pb-c.h>

static const ProtobufCMessageDescriptor *const wire_types[] = {
    &relay__v1__get_server_info_request__descriptor,
    &relay__v1__get_server_info_response__descriptor,
    &relay__v1__open_session_request__descriptor,
    &relay__v1__open_session_response__descriptor,
    &relay__v1__close_session_request__descriptor,
    &relay__v1__register_prompt_request__descriptor,
    &relay__v1__register_prompt_response__descriptor,
    &relay__v1__get_prompt_request__descriptor,
    &relay__v1__list_prompts_request__descriptor,
    &relay__v1__list_prompts_response__descriptor,
    &relay__v1__update_prompt_request__descriptor,
    &relay__v1__unregister_prompt_request__descriptor,
    &relay__v1__open_requests_request__descriptor,
    &relay__v1__open_requests_response__descriptor,
    &relay__v1__get_requests_request__descriptor,
    &relay__v1__get_requests_response__descriptor,
    &relay__v1__append_kv_request__descriptor,
    &relay__v1__append_kv_response__descriptor,
    &relay__v1__truncate_requests_request__descriptor,
    &relay__v1__truncate_requests_response__descriptor,
    &relay__v1__close_requests_request__descriptor,
    &relay__v1__batched_relay_attention_request__descriptor,
    &relay__v1__stream_request__descriptor,
    &relay__v1__stream_response__descriptor,
    &relay__v1__error_detail__descriptor,
    &grpc__health__v1__health_check_request__descriptor,
    &grpc__health__v1__health_check_response__descriptor,
    &grpc__reflection__v1__server_reflection_request__descriptor,
    &grpc__reflection__v1__server_reflection_response__descriptor,
    &grpc__reflection__v1alpha__server_reflection_request__descriptor,
};
#define WIRE_TYPES_COUNT (sizeof(wire_types) / sizeof(wire_types[0]))

#endif
