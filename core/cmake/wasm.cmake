# The core for bindings/web: sol_rt.wasm, and the ES module sol_rt.js that loads it. JavaScript passes arguments through the module's memory, and files
# through its file system, which lies in memory too.
set(functions malloc free)
set(exported sol_error_code sol_error_message sol_error_release sol_model_options_init sol_model_load sol_model_release sol_model_get_info
  sol_model_get_action sol_model_encode sol_model_encode_rendered sol_model_decode sol_session_create_on sol_session_release sol_session_tokens
  sol_session_rewind sol_generate_options_init sol_session_start sol_session_begin_policy sol_session_end_policy sol_session_begin_step sol_session_end_step sol_session_stop sol_session_result
  sol_session_set_budget sol_graph_weights)
list(APPEND functions ${exported})
list(TRANSFORM functions PREPEND _)
list(JOIN functions "," functions)
set_source_files_properties(${CMAKE_CURRENT_SOURCE_DIR}/src/engine/distribution.cc PROPERTIES COMPILE_OPTIONS "-O3;-msimd128") # onnxruntime-web needs it, too
add_executable(sol_rt ${SOL_RT_OBJECTS})
set_target_properties(sol_rt PROPERTIES LINKER_LANGUAGE CXX SUFFIX .js)
target_link_options(sol_rt PRIVATE -Oz --no-entry -sMODULARIZE -sEXPORT_ES6 -sENVIRONMENT=web,worker,node -sALLOW_MEMORY_GROWTH -sFORCE_FILESYSTEM
  -sSTACK_SIZE=1MB -sEXPORTED_FUNCTIONS=${functions} -sEXPORTED_RUNTIME_METHODS=FS,UTF8ToString,stringToUTF8,lengthBytesUTF8,HEAPU8)
