// The sort of kernels/cuda/sort.h without a GPU: std::stable_sort, queued on the stream like a kernel.
#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/cuda/sort.h"
#include "kernels/simt/emulator.h"
#include "kernels/simt/fake_cudart.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

void CheckArray(const char* name, const void* data, int64_t bytes, bool is_read) {
  const auto fail = [&](const char* what) {
    throw emulator::KernelError(std::string("sort: array ") + name + what);
  };
  if (!emulator::device_owns(data, static_cast<size_t>(bytes))) fail(" lies outside of device memory");
  if (is_read && !emulator::is_initialized(data, bytes)) fail(" has elements that were never written");
  if (!is_read) emulator::mark_initialized(data, bytes);
}

void SortNow(const SortPairsArgs& args) {
  const int64_t bytes = args.n * static_cast<int64_t>(sizeof(int32_t));
  CheckArray("keys", args.keys, bytes, /*is_read=*/true);
  CheckArray("values", args.values, bytes, /*is_read=*/true);
  CheckArray("keys_out", args.keys_out, bytes, /*is_read=*/false);
  CheckArray("values_out", args.values_out, bytes, /*is_read=*/false);
  CheckArray("workspace", args.workspace, SortPairsWorkspaceBytes(args.n, args.num_bits), /*is_read=*/false);
  const uint32_t mask = (uint32_t{1} << args.num_bits) - 1;  // a radix sort sees no other bits
  std::vector<int64_t> order(args.n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t i, int64_t j) {
    return (static_cast<uint32_t>(args.keys[i]) & mask) < (static_cast<uint32_t>(args.keys[j]) & mask);
  });
  for (int64_t i = 0; i < args.n; ++i) {
    args.keys_out[i] = args.keys[order[i]];
    args.values_out[i] = args.values[order[i]];
  }
}
}  // namespace

// As much as a GPU's sort might ask for, so that its memory is planned in tests too.
int64_t SortPairsWorkspaceBytes(int64_t n, int) { return 1024 + 8 * n; }

void SortPairs(const SortPairsArgs& args) {
  if (args.n == 0) return;
  const auto operation = [args] {
    SortNow(args);
    return fake_cuda::Progress::kDone;
  };
  CheckCuda(fake_cuda::Enqueue(args.stream, operation), "sort");
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
