// The checker of kernel accesses (checker.h).
#include "kernels/simt/checker.h"
