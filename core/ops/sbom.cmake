# Writes the wheel's software bill of materials (CycloneDX, PEP 770): what is compiled into the libraries, with version and
# licence. What the package needs beside it stands in the wheel's METADATA. It names no time and no path, so that two
# builds of the same source have the same one.
file(READ ${PROJECT_SOURCE_DIR}/sol_rt/__init__.py SOL_INIT)
string(REGEX MATCH "__version__ = \"([^\"]+)\"" SOL_INIT "${SOL_INIT}")
set(SOL_VERSION ${CMAKE_MATCH_1})
set(SOL_COMPONENTS "")
set(SOL_COMPONENT_REFS "")

# Adds a component. `licence` is an SPDX expression.
function(sol_component name version licence purl)
  set(separator "")
  if(SOL_COMPONENTS)
    set(separator ", ")
  endif()
  string(CONCAT entry
    "{\"type\": \"library\", \"bom-ref\": \"${name}\", \"name\": \"${name}\", \"version\": \"${version}\", "
    "\"purl\": \"${purl}@${version}\", \"licenses\": [{\"expression\": \"${licence}\"}]}")
  set(SOL_COMPONENTS "${SOL_COMPONENTS}${separator}${entry}" PARENT_SCOPE)
  set(SOL_COMPONENT_REFS "${SOL_COMPONENT_REFS}${separator}\"${name}\"" PARENT_SCOPE)
endfunction()

# Adds a component whose header defines its version in the numbers `prefix` and one of the further arguments each.
function(sol_component_of_header name header prefix licence purl)
  set(version "")
  foreach(part ${ARGN})
    sol_defined(number ${header} ${prefix}${part})
    list(APPEND version ${number})
  endforeach()
  list(JOIN version "." version)
  sol_component("${name}" "${version}" "${licence}" "${purl}")
  set(SOL_COMPONENTS "${SOL_COMPONENTS}" PARENT_SCOPE)
  set(SOL_COMPONENT_REFS "${SOL_COMPONENT_REFS}" PARENT_SCOPE)
endfunction()

# Sets `result` to the number that a header defines as `name`.
function(sol_defined result header name)
  set(number "")
  if(EXISTS ${header})  # without it the build stops with the compiler's own words
    file(STRINGS ${header} line REGEX "^#define ${name}[ \t]+[0-9]+")
    string(REGEX REPLACE "^#define ${name}[ \t]+([0-9]+).*" "\\1" number "${line}")
  endif()
  set(${result} ${number} PARENT_SCOPE)
endfunction()

sol_component_of_header("highway" ${HIGHWAY_INCLUDE_DIR}/hwy/base.h HWY_ "Apache-2.0 OR BSD-3-Clause" "pkg:github/google/highway"
  MAJOR MINOR PATCH)
# The header names the version of the C API, which is the second part of a release's version.
sol_defined(SOL_ORT_API ${ONNXRUNTIME_INCLUDE_DIR}/onnxruntime_c_api.h ORT_API_VERSION)
sol_component("onnxruntime-c-api" "1.${SOL_ORT_API}.0" "MIT" "pkg:github/microsoft/onnxruntime")
# The language's own library is linked statically; a linker of clang takes that of its system.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  sol_component("libstdc++" "${CMAKE_CXX_COMPILER_VERSION}" "GPL-3.0-or-later WITH GCC-exception-3.1" "pkg:generic/gcc")
elseif(CMAKE_CXX_COMPILER_ID MATCHES "Clang" AND NOT APPLE AND NOT MSVC)
  sol_component("libc++" "${CMAKE_CXX_COMPILER_VERSION}" "Apache-2.0 WITH LLVM-exception" "pkg:github/llvm/llvm-project")
endif()
if(MINGW)  # so are its start-up code and threads
  find_path(SOL_MINGW_INCLUDE_DIR _mingw_mac.h HINTS ${CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES})
  sol_component_of_header("mingw-w64" ${SOL_MINGW_INCLUDE_DIR}/_mingw_mac.h __MINGW64_VERSION_ "ZPL-2.1" "pkg:sourceforge/mingw-w64"
    MAJOR MINOR BUGFIX)
endif()
if(TARGET sol_rt)  # the native core
  sol_component_of_header("nlohmann-json" ${SOL_JSON_INCLUDE_DIR}/nlohmann/detail/abi_macros.hpp NLOHMANN_JSON_VERSION_ "MIT"
    "pkg:github/nlohmann/json" MAJOR MINOR PATCH)
  sol_component_of_header("pcre2" ${SOL_PCRE2_INCLUDE_DIR}/pcre2.h PCRE2_ "BSD-3-Clause WITH PCRE2-exception" "pkg:github/PCRE2Project/pcre2"
    MAJOR MINOR)
  sol_component_of_header("utf8proc" ${SOL_UTF8PROC_INCLUDE_DIR}/utf8proc.h UTF8PROC_VERSION_ "MIT" "pkg:github/JuliaStrings/utf8proc"
    MAJOR MINOR PATCH)
endif()
if(TARGET sol_ops_cuda)
  sol_component("cudart" "${SOL_CUDA_VERSION}" "LicenseRef-NVIDIA-CUDA-EULA" "pkg:generic/nvidia-cuda-runtime")
endif()

configure_file(${CMAKE_CURRENT_LIST_DIR}/sbom.cdx.json.in ${CMAKE_CURRENT_BINARY_DIR}/sol-rt.cdx.json @ONLY)
if(DEFINED SKBUILD_METADATA_DIR)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/sol-rt.cdx.json DESTINATION ${SKBUILD_METADATA_DIR}/sboms)
endif()
