# Faults: the real relayd, and clients that break. Each test ends by comparing what the server holds
# with what it held at the start.
add_library(relay_faults_kit STATIC faults_peer.c faults_kit.c faults_engine.c)
target_include_directories(relay_faults_kit PUBLIC ${PROJECT_SOURCE_DIR}/tests)
target_link_libraries(relay_faults_kit
  PUBLIC relay_testlib_server relay_wire PkgConfig::GRPC PRIVATE relay_flags relay_kernels)

foreach(name kill peer reader streams fds limits prompts pool stop clock)
  relay_test(NAME e2e.faults_${name} SOURCES faults_${name}_test.c
    LIBS relay_faults_kit Threads::Threads LABELS e2e TIMEOUT 300)
  if(RELAY_SANITIZE)
    target_compile_definitions(test_e2e_faults_${name} PRIVATE RELAY_TEST_SANITIZED)
  endif()
endforeach()

# A standard client in Python: where that says it shorter. Skipped where it has no grpcio.
set(RELAY_TEST_PYTHON python3 CACHE STRING "Python for the tests that want grpcio and grpcio-tools")
add_test(NAME e2e.bad_input
  COMMAND ${RELAY_TEST_PYTHON} ${CMAKE_CURRENT_SOURCE_DIR}/bad_input_test.py $<TARGET_FILE:relayd>
  ${PROJECT_SOURCE_DIR}/proto)
set_tests_properties(e2e.bad_input PROPERTIES LABELS e2e SKIP_RETURN_CODE 77 TIMEOUT 180)
