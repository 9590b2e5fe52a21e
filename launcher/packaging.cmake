# What `cmake --install` puts where, and the packages that cpack makes: a .deb, which names what it needs from Debian, and a .tgz.
include(GNUInstallDirs)

# The manual page and the completion scripts come from the program's own tables.
set(documents ${CMAKE_CURRENT_BINARY_DIR}/documents)
add_custom_command(
  OUTPUT ${documents}/carousel.1 ${documents}/carousel.bash ${documents}/_carousel
  COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:carousel> -DOUTPUT_DIR=${documents}
    -P ${CMAKE_CURRENT_SOURCE_DIR}/scripts/print_documents.cmake
  DEPENDS carousel ${CMAKE_CURRENT_SOURCE_DIR}/scripts/print_documents.cmake
  COMMENT "Printing the manual page and the completion scripts"
  VERBATIM)
add_custom_target(carousel_documents ALL DEPENDS ${documents}/carousel.1)

install(TARGETS carousel RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES ${documents}/carousel.1 DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
install(FILES ${documents}/carousel.bash DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME carousel)
install(FILES ${documents}/_carousel DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/configs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/carousel/configs
  FILES_MATCHING PATTERN "*.textproto" PATTERN "run.proto")
install(FILES ${PROJECT_SOURCE_DIR}/README.md ${PROJECT_SOURCE_DIR}/LICENSE ${PROJECT_SOURCE_DIR}/checkpoints/FORMAT.md
  DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB TGZ)
set(CPACK_PACKAGE_NAME carousel)
set(CPACK_PACKAGE_CONTACT "The Carousel developers <carousel@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Pretraining of xLSTM language models on many GPUs and machines")
set(CPACK_PACKAGE_DESCRIPTION
  "Trains xLSTM models (chunkwise mLSTM, head-wise sLSTM) on one CPU or many GPUs, saves sharded checkpoints that any number of\n\
ranks can go on from, and exports weights for inference engines.")
set(CPACK_RESOURCE_FILE_LICENSE ${PROJECT_SOURCE_DIR}/LICENSE)
set(CPACK_STRIP_FILES TRUE)
set(CPACK_DEBIAN_PACKAGE_SECTION science)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS TRUE)  # what the program is linked to
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS openmpi-bin)  # mpirun
include(CPack)
