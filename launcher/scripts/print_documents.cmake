# Writes the manual page and the shells' completion scripts, as the program prints them.
#   cmake -DPROGRAM=carousel -DOUTPUT_DIR=documents -P print_documents.cmake
function(print file)
  execute_process(COMMAND ${PROGRAM} ${ARGN} OUTPUT_FILE ${OUTPUT_DIR}/${file} RESULT_VARIABLE result)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${PROGRAM} ${ARGN} failed: ${result}")
  endif()
endfunction()
file(MAKE_DIRECTORY ${OUTPUT_DIR})
print(carousel.1 manual)
print(carousel.bash completion bash)
print(_carousel completion zsh)
