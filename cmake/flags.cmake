# relay_flags: what every target of this project is compiled with. Link it PRIVATE.
include_guard(GLOBAL)

set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_C_VISIBILITY_PRESET hidden)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()

option(RELAY_WERROR "Warnings are errors" OFF)
set(RELAY_SANITIZE "" CACHE STRING "address,undefined | thread | empty")

add_library(relay_flags INTERFACE)
target_compile_definitions(relay_flags INTERFACE _GNU_SOURCE)
target_compile_options(relay_flags INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wvla -Wundef -Wmissing-prototypes
  -Wpointer-arith -Wwrite-strings -fno-common
  $<$<BOOL:${RELAY_WERROR}>:-Werror>)
if(RELAY_SANITIZE)
  target_compile_options(relay_flags INTERFACE
    -fsanitize=${RELAY_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer -g)
  target_link_options(relay_flags INTERFACE -fsanitize=${RELAY_SANITIZE})
endif()
