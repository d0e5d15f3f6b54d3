# Compiles through ccache where it is installed: the package, the core alone and the tests' programs hold the same files.
# Build folders differ, so their names stay out of what ccache compares.
find_program(SOL_CCACHE ccache)
if(SOL_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  get_filename_component(SOL_CCACHE_BASE ${CMAKE_CURRENT_LIST_DIR}/../../.. ABSOLUTE)
  foreach(language C CXX)
    set(CMAKE_${language}_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${SOL_CCACHE_BASE} CCACHE_NOHASHDIR=1 ${SOL_CCACHE})
  endforeach()
endif()
