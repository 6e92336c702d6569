# The kernels: one line an instantiation, one instantiation a file, better ones first.
#
#   name              engine dtype K/V dim stages warpgroups  capability (least, most; 0 = no limit)
#
# With two warpgroups a block fills a multiprocessor, and they share tiles of 128 rows; such kernels
# are for plans with long items of so many rows. With one, two blocks do, of two launches if need be.
# beside is wgmma with units of many rows that finish their rows, for plans where requests' own
# tokens stream beside them; more code, so short steps do without. It stands behind the kernels that
# are better for shorter rows. wgmma needs sm_90a code, which runs on 9.0 alone; not for F8 of head
# dim 64, where ptxas 13.0 gives the registers of the queries to the weights.
# -DRELAY_KERNELS=<regex> builds those whose names match (and the kernel for every shape), for quick
# work on one of them.
set(RELAY_CUDA_VARIANTS
  "pair_bf16_64      wgmma  bf16  bf16  64 6 2     90 90"
  "pair_f16_64       wgmma  f16   f16   64 6 2     90 90"
  "pair_bf16_128     wgmma  bf16  bf16 128 3 2     90 90"
  "pair_f16_128      wgmma  f16   f16  128 3 2     90 90"
  "wgmma_bf16_64     wgmma  bf16  bf16  64 6 1     90 90"
  "wgmma_f16_64      wgmma  f16   f16   64 6 1     90 90"
  "beside_bf16_128   beside bf16  bf16 128 3 1     90 90"
  "beside_f16_128    beside f16   f16  128 3 1     90 90"
  "wgmma_bf16_128    wgmma  bf16  bf16 128 3 1     90 90"
  "wgmma_f16_128     wgmma  f16   f16  128 3 1     90 90"
  "mma_bf16_64       mma    bf16  bf16  64 4 1     80 0"
  "mma_f16_64        mma    f16   f16   64 4 1     80 0"
  "mma_bf16_96       mma    bf16  bf16  96 3 1     80 0"
  "mma_f16_96        mma    f16   f16   96 3 1     80 0"
  "mma_bf16_128      mma    bf16  bf16 128 2 1     80 0"
  "mma_f16_128       mma    f16   f16  128 2 1     80 0"
  "mma_bf16_192      mma    bf16  bf16 192 2 1     80 0"
  "mma_f16_192       mma    f16   f16  192 2 1     80 0"
  "mma_bf16_256      mma    bf16  bf16 256 2 1     80 0"
  "mma_f16_256       mma    f16   f16  256 2 1     80 0"
  "mma_bf16_f8_64    mma    bf16  f8    64 6 1     80 0"
  "mma_f16_f8_64     mma    f16   f8    64 6 1     80 0"
  "wgmma_bf16_f8_128 wgmma  bf16  f8   128 4 1     90 90"
  "wgmma_f16_f8_128  wgmma  f16   f8   128 4 1     90 90"
  "mma_bf16_f8_128   mma    bf16  f8   128 3 1     80 0"
  "mma_f16_f8_128    mma    f16   f8   128 3 1     80 0"
  "mma_bf16_f8_256   mma    bf16  f8   256 3 1     80 0"
  "mma_f16_f8_256    mma    f16   f8   256 3 1     80 0")

set(RELAY_KERNELS "" CACHE STRING "Regular expression of the CUDA kernels to build; empty = all")

# Writes the files of the variants and their table into the build tree; sets both variables.
function(relay_cuda_generate sources table_source)
  set(files)
  set(KERNEL_EXTERNS "")
  set(KERNEL_ROWS "")
  foreach(line ${RELAY_CUDA_VARIANTS})
    string(REGEX REPLACE " +" ";" fields "${line}")
    list(GET fields 0 KERNEL_NAME)
    list(GET fields 1 engine)
    list(GET fields 2 dtype)
    list(GET fields 3 kv_dtype)
    list(GET fields 4 KERNEL_DIM)
    list(GET fields 5 KERNEL_STAGES)
    list(GET fields 6 KERNEL_GROUPS)
    list(GET fields 7 KERNEL_LEAST)
    list(GET fields 8 KERNEL_MOST)
    if(RELAY_KERNELS AND NOT KERNEL_NAME MATCHES "${RELAY_KERNELS}")
      continue()
    endif()
    set(KERNEL_WGMMA false)
    set(KERNEL_FINALS false)
    set(KERNEL_SHARING RELAY_CUDA_SINGLE)
    if(engine MATCHES "^(wgmma|beside)$")
      set(KERNEL_WGMMA true)
    endif()
    if(engine STREQUAL "beside")
      set(KERNEL_FINALS true)
      set(KERNEL_SHARING RELAY_CUDA_BESIDE)
    elseif(KERNEL_GROUPS EQUAL 2)
      set(KERNEL_SHARING RELAY_CUDA_PAIRED)
    endif()
    set(KERNEL_TYPE __nv_bfloat16)
    set(KERNEL_DTYPE RELAY_DTYPE_BF16)
    if(dtype STREQUAL "f16")
      set(KERNEL_TYPE __half)
      set(KERNEL_DTYPE RELAY_DTYPE_F16)
    endif()
    set(KERNEL_F8 false)
    set(KERNEL_KV_DTYPE ${KERNEL_DTYPE})
    if(kv_dtype STREQUAL "f8")
      set(KERNEL_F8 true)
      set(KERNEL_KV_DTYPE RELAY_DTYPE_F8_E4M3)
    endif()
    set(file ${CMAKE_CURRENT_BINARY_DIR}/attend_${KERNEL_NAME}.cu)
    configure_file(${CMAKE_CURRENT_SOURCE_DIR}/attend.cu.in ${file} @ONLY)
    list(APPEND files ${file})
    set(architectures ${RELAY_CUDA_GENCODE_ALL})
    if(KERNEL_WGMMA)
      set(architectures ${RELAY_CUDA_GENCODE_90A})
    endif()
    set_source_files_properties(${file} PROPERTIES COMPILE_OPTIONS "${architectures}")
    string(APPEND KERNEL_EXTERNS
      "extern const struct relay_cuda_kernel relay_cuda_kernel_${KERNEL_NAME};\n")
    string(APPEND KERNEL_ROWS "    &relay_cuda_kernel_${KERNEL_NAME},\n")
  endforeach()
  set(table ${CMAKE_CURRENT_BINARY_DIR}/kernel_table.c)
  configure_file(${CMAKE_CURRENT_SOURCE_DIR}/kernel_table.c.in ${table} @ONLY)
  set(${sources} ${files} PARENT_SCOPE)
  set(${table_source} ${table} PARENT_SCOPE)
endfunction()
