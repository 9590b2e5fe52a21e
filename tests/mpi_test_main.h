// main() of the tests that run under mpirun (carousel_mpi_test in CMakeLists.txt): MPI is up, rank 0 prints
// results, the other ranks only print failures, and a failure on any rank fails the test.
#pragma once
#include "parallel/mpi_communicator.h"

namespace carousel {
MpiSession& TestMpiSession();
}  // namespace carousel
