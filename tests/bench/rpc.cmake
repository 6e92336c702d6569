# The RPC path: tests/bench/run.sh rpc runs it all.
add_executable(rpc_bench rpc_bench.c rpc_echo.c)
target_include_directories(rpc_bench PRIVATE ${PROJECT_SOURCE_DIR}/tests)
target_link_libraries(rpc_bench PRIVATE relay_flags relay_testlib_server PkgConfig::GRPC)
add_test(NAME bench.rpc.smoke COMMAND rpc_bench --rounds 3 --rows 2)
set_tests_properties(bench.rpc.smoke PROPERTIES LABELS cpu TIMEOUT 120
  PASS_REGULAR_EXPRESSION "\"stream_to_echo_p50\": [0-9.]+")

add_executable(rpc_admission_bench rpc_admission_bench.c)
target_include_directories(rpc_admission_bench PRIVATE ${PROJECT_SOURCE_DIR})
target_link_libraries(rpc_admission_bench PRIVATE
  relay_flags relayd_session relayd_batch relayd_store relayd_base relay_kernels)
add_test(NAME bench.admission.smoke COMMAND rpc_admission_bench 3 5)
set_tests_properties(bench.admission.smoke PROPERTIES LABELS cpu TIMEOUT 120
  PASS_REGULAR_EXPRESSION "\"begin_p50_us\": [0-9.]+")
