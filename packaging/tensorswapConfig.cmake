# How a CMake project uses an installed tensorswap, in C and in C++:
#
#   find_package(tensorswap 0.1 REQUIRED)                       # the shared library
#   find_package(tensorswap 0.1 REQUIRED COMPONENTS static)     # or the static one
#   target_link_libraries(your_program PRIVATE tensorswap::tensorswap)
#
# Everything is found from where this file is, share/cmake/tensorswap, so a prefix may be moved.

if(NOT TARGET tensorswap::tensorswap)
  get_filename_component(_tensorswap_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
  set(_tensorswap_kind shared)
  foreach(_tensorswap_component IN LISTS tensorswap_FIND_COMPONENTS)
    if(_tensorswap_component MATCHES "^(shared|static)$")
      set(_tensorswap_kind ${_tensorswap_component})
      set(tensorswap_${_tensorswap_component}_FOUND TRUE)
    elseif(tensorswap_FIND_REQUIRED_${_tensorswap_component})
      set(tensorswap_FOUND FALSE)
      set(tensorswap_NOT_FOUND_MESSAGE
          "tensorswap has the components shared and static, not ${_tensorswap_component}")
      return()
    endif()
  endforeach()
  if(tensorswap_shared_FOUND AND tensorswap_static_FOUND)
    set(tensorswap_FOUND FALSE)
    set(tensorswap_NOT_FOUND_MESSAGE "one of the components shared and static is to be named")
    return()
  endif()

  set(_tensorswap_name libtensorswap.so)
  if(_tensorswap_kind STREQUAL "static")
    set(_tensorswap_name libtensorswap.a)
  endif()
  set(_tensorswap_file "")
  foreach(_tensorswap_directory "lib/${CMAKE_LIBRARY_ARCHITECTURE}" lib64 lib)
    if(NOT _tensorswap_file
       AND EXISTS "${_tensorswap_prefix}/${_tensorswap_directory}/${_tensorswap_name}")
      set(_tensorswap_file "${_tensorswap_prefix}/${_tensorswap_directory}/${_tensorswap_name}")
    endif()
  endforeach()
  if(NOT _tensorswap_file OR NOT EXISTS "${_tensorswap_prefix}/include/tensorswap.h")
    set(tensorswap_FOUND FALSE)
    set(tensorswap_NOT_FOUND_MESSAGE
        "${_tensorswap_name} or include/tensorswap.h is missing in ${_tensorswap_prefix}")
    return()
  endif()

  if(_tensorswap_kind STREQUAL "static")
    add_library(tensorswap::tensorswap STATIC IMPORTED)
    # What a static Rust library needs of the system.
    set_target_properties(tensorswap::tensorswap PROPERTIES
      INTERFACE_LINK_LIBRARIES "gcc_s;util;rt;pthread;m;dl;c")
  else()
    add_library(tensorswap::tensorswap SHARED IMPORTED)
  endif()
  set_target_properties(tensorswap::tensorswap PROPERTIES
    IMPORTED_LOCATION "${_tensorswap_file}"
    INTERFACE_INCLUDE_DIRECTORIES "${_tensorswap_prefix}/include")
  unset(_tensorswap_prefix)
  unset(_tensorswap_kind)
  unset(_tensorswap_name)
  unset(_tensorswap_file)
  unset(_tensorswap_component)
  unset(_tensorswap_directory)
endif()
