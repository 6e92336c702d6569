# RELAY_CUDA: whether the cuda backend is built. ON needs nvcc, AUTO takes it where it is, OFF (the
# default) leaves it out. Sets RELAY_WITH_CUDA and, when true, the code generation flags:
# RELAY_CUDA_GENCODE_ALL for kernels of every device from sm_80 on, RELAY_CUDA_GENCODE_90A for those
# that need the instructions of sm_90a.
include_guard(GLOBAL)

set(RELAY_CUDA OFF CACHE STRING "Build the cuda backend: AUTO, ON or OFF")
set_property(CACHE RELAY_CUDA PROPERTY STRINGS AUTO ON OFF)
set(RELAY_CUDA_TARGETS "80;90a" CACHE STRING
  "Machine code for these capabilities; 80 comes with PTX for later devices")
set(RELAY_CUDA_SPINS 0 CACHE STRING
  "Fault after so many looks at a result that does not come (0: wait on), so that tests end")

set(RELAY_WITH_CUDA FALSE)
if(NOT RELAY_CUDA STREQUAL "OFF")
  find_program(RELAY_NVCC nvcc PATHS /usr/local/cuda/bin)
  if(RELAY_NVCC)
    set(RELAY_WITH_CUDA TRUE)
  elseif(RELAY_CUDA STREQUAL "ON")
    message(FATAL_ERROR "RELAY_CUDA is ON and there is no nvcc")
  endif()
endif()
if(NOT RELAY_WITH_CUDA)
  return()
endif()

# Every file has its own code generation flags.
set(CMAKE_CUDA_ARCHITECTURES OFF CACHE STRING "" FORCE)
set(CMAKE_CUDA_COMPILER ${RELAY_NVCC} CACHE FILEPATH "")
enable_language(CUDA)
# CMake 3.25.1 (Debian 12) asks after a target of a library that CUDA 13 does not have any more.
if(NOT TARGET CUDA::nvToolsExt)
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
find_package(CUDAToolkit REQUIRED)
set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static)

set(RELAY_CUDA_GENCODE_ALL)
set(RELAY_CUDA_GENCODE_90A -gencode=arch=compute_90a,code=sm_90a)
foreach(target ${RELAY_CUDA_TARGETS})
  if(target STREQUAL "80")
    list(APPEND RELAY_CUDA_GENCODE_ALL "-gencode=arch=compute_80,code=[sm_80,compute_80]")
  else()
    list(APPEND RELAY_CUDA_GENCODE_ALL "-gencode=arch=compute_${target},code=sm_${target}")
  endif()
endforeach()

# No exceptions: the objects end up in C programs. Warnings about spills stay visible.
add_library(relay_cuda_flags INTERFACE)
target_compile_options(relay_cuda_flags INTERFACE
  $<$<COMPILE_LANGUAGE:CUDA>:-lineinfo -Xcompiler=-fno-exceptions,-fno-rtti
    -Xptxas=--warn-on-spills>)
target_compile_definitions(relay_cuda_flags INTERFACE RELAY_CUDA_SPINS=${RELAY_CUDA_SPINS})
