# Runs the archiver AR with the commands of the file SCRIPT.
execute_process(COMMAND ${AR} -M INPUT_FILE ${SCRIPT} RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${AR} -M ${SCRIPT}: ${failed}")
endif()
