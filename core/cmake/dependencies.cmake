# What the core is built with: installed packages, or releases that are fetched and compared with their SHA-256.
#   sol_rt_dependencies      headers and archives for the core's own files
#   SOL_RT_FETCHED_OBJECTS   objects of fetched libraries
#   sol_merge_archives(t)    puts the installed archives into the static library t, so that it is complete
option(SOL_RT_FETCH "Fetch nlohmann-json, PCRE2 and utf8proc even where they are installed" OFF)
if(EMSCRIPTEN)
  add_library(Threads::Threads INTERFACE IMPORTED)  # one thread: memory that threads share would need headers of the page's server
else()
  set(THREADS_PREFER_PTHREAD_FLAG ON)
  find_package(Threads REQUIRED)
endif()

# scripts/fetch_headers.py writes to build/headers.
find_path(ONNXRUNTIME_INCLUDE_DIR onnxruntime_c_api.h HINTS ${SOL_RT_ROOT}/build/headers PATH_SUFFIXES onnxruntime onnxruntime/core/session)
find_path(HIGHWAY_INCLUDE_DIR hwy/highway.h HINTS ${SOL_RT_ROOT}/build/headers)
if(SOL_RT_CPU_ENGINE AND NOT ONNXRUNTIME_INCLUDE_DIR)
  message(FATAL_ERROR "ONNX Runtime's header (onnxruntime_c_api.h) was not found; run `python scripts/fetch_headers.py`")
endif()
if(SOL_RT_OPERATORS AND NOT HIGHWAY_INCLUDE_DIR)
  message(FATAL_ERROR "Highway's headers (hwy/highway.h) were not found; run `python scripts/fetch_headers.py`, or pass -DSOL_RT_OPERATORS=OFF")
endif()

add_library(sol_rt_dependencies INTERFACE)
target_compile_definitions(sol_rt_dependencies INTERFACE PCRE2_CODE_UNIT_WIDTH=8 PCRE2_STATIC UTF8PROC_STATIC)
target_link_libraries(sol_rt_dependencies INTERFACE Threads::Threads ${CMAKE_DL_LIBS})
set(SOL_RT_FETCHED_OBJECTS "")
set(SOL_RT_ARCHIVES "")
include(FetchContent)

function(sol_fetch name url sha256)
  FetchContent_Declare(${name} URL ${url} URL_HASH SHA256=${sha256} DOWNLOAD_EXTRACT_TIMESTAMP ON SOURCE_SUBDIR none)
  FetchContent_MakeAvailable(${name})
  set(${name}_SOURCE_DIR ${${name}_SOURCE_DIR} PARENT_SCOPE)
endfunction()

# ---- nlohmann-json: headers only --------------------------------------------------------------------------------------------------------------------
find_path(SOL_JSON_INCLUDE_DIR nlohmann/json.hpp)
if(SOL_RT_FETCH OR NOT SOL_JSON_INCLUDE_DIR)
  sol_fetch(json https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
  set(SOL_JSON_INCLUDE_DIR ${json_SOURCE_DIR}/include)
endif()

# ---- PCRE2: 8-bit, with Unicode -----------------------------------------------------------------------------------------------------------------------
find_path(SOL_PCRE2_INCLUDE_DIR pcre2.h)
find_library(SOL_PCRE2_ARCHIVE NAMES libpcre2-8.a libpcre2-8-static.a pcre2-8-static)
if(SOL_RT_FETCH OR NOT SOL_PCRE2_INCLUDE_DIR OR NOT SOL_PCRE2_ARCHIVE)
  sol_fetch(pcre2 https://github.com/PCRE2Project/pcre2/releases/download/pcre2-10.46/pcre2-10.46.tar.gz
    8d28d7f2c3b970c3a4bf3776bcbb5adfc923183ce74bc8df1ebaad8c1985bd07)
  set(made ${CMAKE_CURRENT_BINARY_DIR}/pcre2)
  configure_file(${pcre2_SOURCE_DIR}/src/pcre2.h.generic ${made}/pcre2.h COPYONLY)
  configure_file(${pcre2_SOURCE_DIR}/src/config.h.generic ${made}/config.h COPYONLY)
  configure_file(${pcre2_SOURCE_DIR}/src/pcre2_chartables.c.dist ${made}/pcre2_chartables.c COPYONLY)
  file(GLOB sources ${pcre2_SOURCE_DIR}/src/pcre2_*.c)
  # Programs, and files that others include.
  list(FILTER sources EXCLUDE REGEX "pcre2_(dftables|fuzzsupport|jit_match|jit_misc|jit_test|printint|ucptables)\\.c$")
  list(APPEND sources ${made}/pcre2_chartables.c)
  add_library(sol_rt_pcre2 OBJECT ${sources})
  target_include_directories(sol_rt_pcre2 PRIVATE ${made} ${pcre2_SOURCE_DIR}/src)
  target_compile_definitions(sol_rt_pcre2 PRIVATE HAVE_CONFIG_H PCRE2_CODE_UNIT_WIDTH=8 PCRE2_STATIC SUPPORT_PCRE2_8 SUPPORT_UNICODE)
  list(APPEND SOL_RT_FETCHED_OBJECTS $<TARGET_OBJECTS:sol_rt_pcre2>)
  set(SOL_PCRE2_INCLUDE_DIR ${made})
else()
  list(APPEND SOL_RT_ARCHIVES ${SOL_PCRE2_ARCHIVE})
endif()

# ---- utf8proc -----------------------------------------------------------------------------------------------------------------------------------------
find_path(SOL_UTF8PROC_INCLUDE_DIR utf8proc.h)
find_library(SOL_UTF8PROC_ARCHIVE NAMES libutf8proc.a utf8proc_static)
if(SOL_RT_FETCH OR NOT SOL_UTF8PROC_INCLUDE_DIR OR NOT SOL_UTF8PROC_ARCHIVE)
  sol_fetch(utf8proc https://github.com/JuliaStrings/utf8proc/archive/refs/tags/v2.9.0.tar.gz
    18c1626e9fc5a2e192311e36b3010bfc698078f692888940f1fa150547abb0c1)
  add_library(sol_rt_utf8proc OBJECT ${utf8proc_SOURCE_DIR}/utf8proc.c)
  target_compile_definitions(sol_rt_utf8proc PRIVATE UTF8PROC_STATIC)
  list(APPEND SOL_RT_FETCHED_OBJECTS $<TARGET_OBJECTS:sol_rt_utf8proc>)
  set(SOL_UTF8PROC_INCLUDE_DIR ${utf8proc_SOURCE_DIR})
else()
  list(APPEND SOL_RT_ARCHIVES ${SOL_UTF8PROC_ARCHIVE})
endif()

target_include_directories(sol_rt_dependencies SYSTEM INTERFACE ${SOL_JSON_INCLUDE_DIR} ${SOL_PCRE2_INCLUDE_DIR} ${SOL_UTF8PROC_INCLUDE_DIR})
target_link_libraries(sol_rt_dependencies INTERFACE ${SOL_RT_ARCHIVES})

function(sol_merge_archives target)
  if(NOT SOL_RT_ARCHIVES)
    return()
  endif()
  if(APPLE)
    add_custom_command(TARGET ${target} POST_BUILD VERBATIM
      COMMAND libtool -static -no_warning_for_no_symbols -o $<TARGET_FILE:${target}>.whole $<TARGET_FILE:${target}> ${SOL_RT_ARCHIVES}
      COMMAND ${CMAKE_COMMAND} -E rename $<TARGET_FILE:${target}>.whole $<TARGET_FILE:${target}>)
  elseif(MSVC)
    target_link_options(${target} PRIVATE ${SOL_RT_ARCHIVES})
  else()
    set(lines "CREATE $<TARGET_FILE:${target}>.whole\n")  # LLVM's archiver does not know OPEN
    foreach(archive $<TARGET_FILE:${target}> ${SOL_RT_ARCHIVES})
      string(APPEND lines "ADDLIB ${archive}\n")
    endforeach()
    set(script ${CMAKE_CURRENT_BINARY_DIR}/merge.mri)
    file(GENERATE OUTPUT ${script} CONTENT "${lines}SAVE\nEND\n")
    add_custom_command(TARGET ${target} POST_BUILD VERBATIM
      COMMAND ${CMAKE_COMMAND} -DAR=${CMAKE_AR} -DSCRIPT=${script} -P ${CMAKE_CURRENT_LIST_DIR}/cmake/merge.cmake
      COMMAND ${CMAKE_COMMAND} -E rename $<TARGET_FILE:${target}>.whole $<TARGET_FILE:${target}>)
  endif()
endfunction()
