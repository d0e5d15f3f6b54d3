# Flags of a build with mingw-w64, for the folder that includes this and those below it.
include_guard()
if(MINGW)
  # What ONNX Runtime's header expects of every compiler on Windows: an annotation of Microsoft's sal.h, and a keyword that is no name in standard C++.
  add_compile_options("-D_Return_type_success_(condition)=" -D_stdcall=__stdcall)
  add_link_options(-static)  # mingw's own libraries, which no Windows has
endif()
