#!/usr/bin/env python3
"""relayd's standard services with grpcio's own clients: health, and reflection good enough to call
a method without having its .proto. Usage: standard_services.py TARGET
"""
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

channel = grpc.insecure_channel(sys.argv[1])
health = health_pb2_grpc.HealthStub(channel)
for service in ("", "relay.v1.RelayAttention"):
    answer = health.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING, answer
    watched = next(iter(health.Watch(health_pb2.HealthCheckRequest(service=service))))
    assert watched.status == health_pb2.HealthCheckResponse.SERVING, watched
print("health: SERVING")

database = ProtoReflectionDescriptorDatabase(channel)
services = database.get_services()
print("reflection:", ", ".join(services))
assert {"relay.v1.RelayAttention", "grpc.health.v1.Health"} <= set(services)

pool = DescriptorPool(database)
method = pool.FindServiceByName("relay.v1.RelayAttention").FindMethodByName("GetServerInfo")
call = channel.unary_unary(
    "/relay.v1.RelayAttention/GetServerInfo", request_serializer=lambda message: message.SerializeToString(),
    response_deserializer=GetMessageClass(method.output_type).FromString)
info = call(GetMessageClass(method.input_type)())
print(f"GetServerInfo, from its reflected description: relayd {info.version}, backend {info.backend}")
assert info.version and info.limits.rows_max > 0
