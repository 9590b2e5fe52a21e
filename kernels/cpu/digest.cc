// Digest: a number that tells tensors apart, bit for bit.
#include <cstring>
#include <vector>

#include "kernels/cpu/cpu_ops.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {

template <class Bits>
uint64_t DigestOfPart(const void* x, int64_t begin, int64_t end, uint64_t salt) {
  uint64_t sum = 0;
  for (int64_t e = begin; e < end; ++e) {
    Bits bits;
    std::memcpy(&bits, static_cast<const std::byte*>(x) + e * static_cast<int64_t>(sizeof(bits)),
                sizeof(bits));
    sum += DigestTerm(salt + static_cast<uint64_t>(e), bits);
  }
  return sum;
}
}  // namespace

void CpuOps::Digest(const DigestArgs& a) {
  CheckArgs(a);
  const int64_t n = a.x.num_elems();
  std::vector<uint64_t> parts(static_cast<size_t>(CeilDiv(n, kElemsPerTask)), 0);
  pool_.ParallelForBlocks(n, kElemsPerTask, [&](int64_t begin, int64_t end) {
    parts[static_cast<size_t>(begin / kElemsPerTask)] +=
        SizeOf(a.x.dtype) == 4 ? DigestOfPart<uint32_t>(a.x.data, begin, end, a.salt)
                               : DigestOfPart<uint64_t>(a.x.data, begin, end, a.salt);
  });
  uint64_t sum = static_cast<uint64_t>(*a.digest.as<int64_t>());
  for (const uint64_t part : parts) sum += part;
  *a.digest.as<int64_t>() = static_cast<int64_t>(sum);
}
}  // namespace carousel::cpu
