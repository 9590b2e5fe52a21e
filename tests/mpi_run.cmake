# Runs a program under mpirun and checks its exit code and output. Called by carousel_mpi_run in CMakeLists.txt:
#   cmake -DMPIEXEC=mpirun -DRANKS=2 -DPROGRAM=p "-DARGS=a;b" -DEXIT=0 "-DPRINTS=text" -P mpi_run.cmake
# Open MPI refuses to start as root, or more ranks than cores, unless told that it may; other MPIs ignore this.
set(ENV{OMPI_ALLOW_RUN_AS_ROOT} 1)
set(ENV{OMPI_ALLOW_RUN_AS_ROOT_CONFIRM} 1)
set(ENV{OMPI_MCA_rmaps_base_oversubscribe} 1)
set(ENV{OMPI_MCA_hwloc_base_binding_policy} none)
set(ENV{ASAN_OPTIONS} detect_leaks=0)  # what MPI libraries leave behind is not ours
execute_process(COMMAND ${MPIEXEC} -np ${RANKS} ${PROGRAM} ${ARGS} TIMEOUT 240
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
message("${output}")
if(NOT result STREQUAL "${EXIT}")
  message(FATAL_ERROR "exit code ${result}, expected ${EXIT}")
endif()
if(PRINTS)
  string(FIND "${output}" "${PRINTS}" place)
  if(place EQUAL -1)
    message(FATAL_ERROR "did not print: ${PRINTS}")
  endif()
endif()
