# The native core, which runs models for the Python package, as a library beside the operators. pyproject.toml asks for it: what it is built
# with must be there. Without the core a package reads bundles and runs none. With SOL_RT_FETCH, which core/CMakeLists.txt defines, they are fetched and need not be installed.
set(SOL_CORE AUTO CACHE STRING "Build the native core into the package: ON, OFF, or AUTO, where its dependencies are installed")
set_property(CACHE SOL_CORE PROPERTY STRINGS AUTO ON OFF)
if(NOT SOL_CORE)
  message(STATUS "Native core: left out, as SOL_CORE=${SOL_CORE} asks")
  return()
endif()

include(CheckLanguage)
check_language(C)
find_path(SOL_JSON_INCLUDE_DIR nlohmann/json.hpp)
find_path(SOL_PCRE2_INCLUDE_DIR pcre2.h)
find_library(SOL_PCRE2_ARCHIVE NAMES libpcre2-8.a libpcre2-8-static.a pcre2-8-static)
find_path(SOL_UTF8PROC_INCLUDE_DIR utf8proc.h)
find_library(SOL_UTF8PROC_ARCHIVE NAMES libutf8proc.a utf8proc_static)
if(NOT SOL_RT_FETCH AND NOT (CMAKE_C_COMPILER AND SOL_JSON_INCLUDE_DIR AND SOL_PCRE2_INCLUDE_DIR AND SOL_PCRE2_ARCHIVE AND SOL_UTF8PROC_INCLUDE_DIR AND SOL_UTF8PROC_ARCHIVE))
  set(text "Native core: the packages nlohmann-json3-dev, libpcre2-dev and libutf8proc-dev are not all here; run scripts/install-packages.sh, or set SOL_RT_FETCH=ON")
  if(SOL_CORE STREQUAL "AUTO")
    message(NOTICE "${text}. Without the core this package reads bundles and runs none.")
    return()
  endif()
  message(FATAL_ERROR "${text}")
endif()

add_subdirectory(${PROJECT_SOURCE_DIR}/core ${PROJECT_BINARY_DIR}/core EXCLUDE_FROM_ALL)
foreach(folder SOL_JSON_INCLUDE_DIR SOL_PCRE2_INCLUDE_DIR SOL_UTF8PROC_INCLUDE_DIR)  # for the bill of materials: those that were taken
  get_directory_property(${folder} DIRECTORY ${PROJECT_SOURCE_DIR}/core DEFINITION ${folder})
endforeach()
set_target_properties(sol_rt PROPERTIES PREFIX lib EXCLUDE_FROM_ALL OFF)  # on every system: sol_rt/ops/__init__.py looks for this name
add_custom_target(sol_rt_core_library ALL DEPENDS sol_rt)
install(TARGETS sol_rt LIBRARY DESTINATION ${SOL_OPS_DESTINATION} RUNTIME DESTINATION ${SOL_OPS_DESTINATION})
