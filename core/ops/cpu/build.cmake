# Builds the operators' code for the CPU: a library of their own here, a part of the core there.

# Relative to this folder.
set(SOL_CPU_SOURCES
  attention/attention.cc
  attention/attention_kernels.cc
  elementwise/elementwise_kernels.cc
  host/read_bytes.cc
  host/session_rows.cc
  host/softmax_sums.cc
  host/tune.cc
  layer/decoder_layer.cc
  layer/mlp.cc
  matmul/channel_matmul.cc
  matmul/matmul_kernels.cc
  matmul/packed_matrix.cc
  operators/block_matmul.cc
  operators/nested_gather.cc
  operators/nested_matmul.cc
  operators/pruned_matmul.cc
  operators/pruned_mlp.cc
  operators/screened_product.cc
  operators/sparse_attention.cc
  simd/matmul_avx_vnni.cc
  simd/target.cc
)
set(SOL_DISABLED_TARGETS "HWY_SSSE3;HWY_AVX3_ZEN4;HWY_AVX3_SPR;HWY_SVE;HWY_SVE2;HWY_SVE_256;HWY_SVE2_128" CACHE STRING
  "Highway's targets that are not compiled. By default those that add nothing here, to build faster")

# On x86 the kernels begin at SSE4.2, the level x86-64-v2. SSE2's would be another 180 KB.
include(CheckCXXSourceCompiles)
check_cxx_source_compiles("#if !defined(__x86_64__)\n#error\n#endif\nint main() { return 0; }" SOL_X86_64)

# Optional kernels, as inline assembly: an assembler that does not know their instructions builds all others.
check_cxx_source_compiles("int main() { __asm__(\"{vex} vpdpbusd %ymm0, %ymm0, %ymm0; {vex} vpdpwssd %ymm0, %ymm0, %ymm0\"); }" SOL_ASSEMBLES_AVX_VNNI)

# Language, includes and flags. Needs SOL_OPS_SOURCE_DIR, ONNXRUNTIME_INCLUDE_DIR and HIGHWAY_INCLUDE_DIR.
function(sol_cpu_settings target)
  set_target_properties(${target} PROPERTIES
    CXX_STANDARD 17
    CXX_STANDARD_REQUIRED ON
    CXX_EXTENSIONS OFF
    CXX_VISIBILITY_PRESET hidden
    VISIBILITY_INLINES_HIDDEN ON
    MSVC_RUNTIME_LIBRARY MultiThreaded
  )
  target_include_directories(${target} PRIVATE ${SOL_OPS_SOURCE_DIR})
  target_include_directories(${target} SYSTEM PRIVATE ${ONNXRUNTIME_INCLUDE_DIR} ${HIGHWAY_INCLUDE_DIR})
  if(NOT MSVC)
    target_compile_options(${target} PRIVATE -Wall -Wextra -fno-math-errno)
    if(NOT SOL_SANITIZE)
      # These check shapes and call kernels; at -O3 they would be up to twice as large.
      get_target_property(checks ${target} SOURCES)
      list(FILTER checks INCLUDE REGEX "(layer/decoder_layer|operators/(block_matmul|nested_gather|nested_matmul|pruned_matmul|pruned_mlp|sparse_attention))\\.cc$")
      set_source_files_properties(${checks} PROPERTIES COMPILE_OPTIONS $<$<CONFIG:Release>:-O2>)
    endif()
  endif()
  # One build serves every processor of the architecture.
  string(REPLACE ";" "|" mask "${SOL_DISABLED_TARGETS}")
  target_compile_definitions(${target} PRIVATE HWY_WANT_AVX3_DL "HWY_DISABLED_TARGETS=(${mask})" $<$<BOOL:${SOL_X86_64}>:HWY_BASELINE_TARGETS=HWY_SSE4>
    $<$<BOOL:${SOL_ASSEMBLES_AVX_VNNI}>:SOL_ASSEMBLES_AVX_VNNI=1>)
endfunction()
