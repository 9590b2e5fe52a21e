// What a device could compute at best, by its name: for the share of it that training reaches.
#pragma once
#include <string>

#include "core/base/dtype.h"

namespace carousel {

// FLOP/s of dense matrix multiplications in this dtype, from the makers' data sheets. 0: not known, then
// nothing may be called a share of it.
double PeakFlops(const std::string& device_name, DType compute);
}  // namespace carousel
