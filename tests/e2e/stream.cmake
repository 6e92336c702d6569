# librelay's steps on a stream.
add_library(relay_stream_kit STATIC stream_kit.c stream_wire.c)
target_include_directories(relay_stream_kit PUBLIC ${PROJECT_SOURCE_DIR}/tests)
target_link_libraries(relay_stream_kit
  PUBLIC relay_testlib relay_testlib_server Threads::Threads PRIVATE relay_flags m)

relay_test(NAME e2e.stream SOURCES stream_test.c
  LIBS relay_stream_kit LABELS e2e TIMEOUT 300)
relay_test(NAME e2e.stream_four SOURCES stream_four_test.c
  LIBS relay_stream_kit LABELS e2e TIMEOUT 300)
relay_test(NAME e2e.stream_breaks SOURCES stream_breaks_test.c
  LIBS relay_stream_kit LABELS e2e TIMEOUT 300)
if(RELAY_SANITIZE)
  target_compile_definitions(test_e2e_stream_breaks PRIVATE RELAY_TEST_SANITIZED)
endif()
