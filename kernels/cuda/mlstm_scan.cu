// Choosing and launching the tensor-core scans (mlstm_scan.h), and what joins the segments of a split
// sequence.
//
// MlstmCombineKernel. Grid: (blocks of kThreads elements of a pair's C and n, pairs). Shared: one factor per
// segment. Reads and writes every segment's state once, reads gamma of the pair once per block. The state
// after a segment is (product of its gammas) * (the state before it) + (its own state from zero): gamma and
// the segments' states are in the same stabilised units, so that nothing grows.
#include "kernels/cuda/mlstm_scan.h"

#include "kernels/cuda/mlstm_scan_launch.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {
using mlstm_scan::ForWidths;

constexpr int kThreads = 256;
constexpr int64_t kMaxSegments = 64;
constexpr int64_t kMinChunksPerSegment = 8;  // below, launching the extra kernels costs more than it saves
constexpr int64_t kMaxPairsPerLaunch = 32768;

template <class W>
__global__ void __launch_bounds__(kThreads)
    MlstmCombineKernel(const __grid_constant__ MlstmCombineArgs<W> x, int64_t first_pair) {
  SHARED_ARRAY(W, factors, [kMaxSegments]);
  const int64_t pair = first_pair + blockIdx.y, pair_elems = x.DHQK * x.DHV;
  const int tid = static_cast<int>(threadIdx.x);
  if (tid < x.num_segments) {
    W product = 1;
    const int64_t begin = tid * x.chunks_per_segment;
    for (int64_t c = begin; c < begin + x.chunks_per_segment && c < x.NC; ++c)
      product *= x.gamma[pair * x.NC + c];
    factors[tid] = product;
  }
  __syncthreads();  // factors: from the first threads to all
  const int64_t e = static_cast<int64_t>(blockIdx.x) * kThreads + tid;
  if (e >= pair_elems + x.DHQK) return;
  const bool is_n = e >= pair_elems;
  const int64_t size = is_n ? x.DHQK : pair_elems, at = pair * size + (is_n ? e - pair_elems : e);
  const W* const first = is_n ? x.first.n : x.first.C;
  W* const states = is_n ? x.states.n : x.states.C;
  W state = x.first.C != nullptr ? first[at] : W(0);
  for (int64_t i = 0; i < x.num_segments; ++i) {
    const int64_t segment = x.reverse ? x.num_segments - 1 - i : i;
    W& slot = states[segment * x.num_pairs * size + at];
    const W own = slot;
    slot = state;
    state = factors[segment] * state + own;
  }
  if (x.final.C != nullptr) (is_n ? x.final.n : x.final.C)[at] = state;
}

template <MlstmRole kRole>
int SlicesOf(int64_t DHQK, int64_t DHV) {
  return ForWidths<kRole>(DHQK, DHV, 0, [&]<class Choice>() {
    return Choice::kSlices * static_cast<int>(NumMlstmBlocks(DHQK, DHV));
  });
}
template <MlstmRole kRole>
int64_t SharedBytesOf(int64_t DHQK, int64_t DHV) {
  return ForWidths<kRole>(DHQK, DHV, int64_t{0},
                          []<class Choice>() { return static_cast<int64_t>(Choice::Type::kSharedBytes); });
}
// Segments of one head, if `blocks` blocks do its work on one segment.
int64_t SegmentsFor(const DeviceInfo& device, int64_t blocks, int64_t NC) {
  return std::max<int64_t>(
      1, std::min({device.num_sms / std::max<int64_t>(blocks, 1), NC / kMinChunksPerSegment, kMaxSegments}));
}
}  // namespace

bool MlstmScanSupports(const DeviceInfo& device, int64_t DHQK, int64_t DHV) {
  if (device.compute_capability < 80 || MlstmScanSlices(MlstmRole::kH, DHQK, DHV) == 0) return false;
  // the roles that need most
  const int64_t bytes =
      std::max(SharedBytesOf<MlstmRole::kH>(DHQK, DHV), SharedBytesOf<MlstmRole::kDQ>(DHQK, DHV));
  return bytes <= device.max_shared_bytes;
}

int MlstmScanSlices(MlstmRole role, int64_t DHQK, int64_t DHV) {
  switch (role) {
    case MlstmRole::kH:
    case MlstmRole::kDV:
      return SlicesOf<MlstmRole::kH>(DHQK, DHV);
    case MlstmRole::kDQ:
    case MlstmRole::kDK:
    case MlstmRole::kForwardState:
    case MlstmRole::kBackwardState:
      return SlicesOf<MlstmRole::kDQ>(DHQK, DHV);
    case MlstmRole::kDelta:
      break;
  }
  return 0;
}

int MlstmScanAnchorParts(int64_t DHQK, int64_t DHV) {
  return ForWidths<MlstmRole::kDK>(DHQK, DHV, 0, [&]<class Choice>() {
    return Choice::kSlices * static_cast<int>(NumMlstmBlocks(DHQK, DHV)) * Choice::Type::kThreads;
  });
}

void LaunchMlstmScan(Context& context, MlstmRole role, const MlstmFastScanArgs& args) {
  CAROUSEL_CHECK(args.B > 0 && args.NH > 0 && args.num_segments > 0);
  CAROUSEL_CHECK_EQ(args.NC, CeilDiv(args.num_tokens, kMlstmChunk));
  CAROUSEL_CHECK(args.B * args.num_tokens <= INT_MAX &&
                 args.B * args.NH * MlstmScanMaxSlices(args.DHQK, args.DHV) <=
                     INT_MAX);  // token and pair are int
  const bool blocked = MlstmBlockWidth(args.DHQK, args.DHV) > 0;
  CAROUSEL_CHECK(!blocked || IsState(role) ||
                 (args.partials != nullptr && (role != MlstmRole::kH || args.a != nullptr)));
  CAROUSEL_CHECK(args.num_segments * args.chunks_per_segment >= args.NC);
  CAROUSEL_CHECK((role != MlstmRole::kDQ && role != MlstmRole::kDK) || NumMlstmAnchors(args.NC) == 0 ||
                 args.anchors.C != nullptr);
  CAROUSEL_CHECK(args.NC == 0 || (args.num_segments - 1) * args.chunks_per_segment < args.NC);
  const auto launch = [&] {
    switch (role) {
      case MlstmRole::kH:
        return mlstm_scan::LaunchH(context, args);
      case MlstmRole::kDQ:
        return mlstm_scan::LaunchDQ(context, args);
      case MlstmRole::kDV:
        return mlstm_scan::LaunchDV(context, args);
      case MlstmRole::kDK:
        return mlstm_scan::LaunchDK(context, args);
      case MlstmRole::kForwardState:
        return mlstm_scan::LaunchForwardState(context, args);
      case MlstmRole::kBackwardState:
        return mlstm_scan::LaunchBackwardState(context, args);
      case MlstmRole::kDelta:
        break;
    }
    return false;
  };
  CAROUSEL_CHECK_MSG(launch(), "no tensor-core scan for this role and these head widths");
  if (blocked && !IsState(role)) LaunchMlstmJoin(context, role, args);
}

MlstmSegments PickMlstmSegments(const DeviceInfo& device, const MlstmShape& s) {
  const int64_t NC = CeilDiv(s.T, kMlstmChunk);
  const int64_t blocks = s.B * s.NH * MlstmScanSlices(MlstmRole::kH, s.DHQK, s.DHV);
  const int64_t wanted = SegmentsFor(device, blocks, NC);
  // whole distances of anchors, so that a step of several chunks does not step over one
  const int64_t chunks_per_segment =
      wanted == 1 ? std::max<int64_t>(1, NC) : RoundUp(CeilDiv(NC, wanted), kMlstmAnchorChunks);
  return {.num_segments = std::max<int64_t>(1, CeilDiv(NC, chunks_per_segment)),
          .chunks_per_segment = chunks_per_segment};
}

int64_t MaxMlstmSegmentStates(const DeviceInfo& device, const MlstmShape& s) {
  // B' * (num_sms / (B' * blocks)) <= num_sms / blocks for every B'
  const int64_t blocks = s.NH * MlstmScanSlices(MlstmRole::kH, s.DHQK, s.DHV), NC = CeilDiv(s.T, kMlstmChunk);
  const int64_t by_device = device.num_sms / std::max<int64_t>(blocks, 1);
  const int64_t by_length = s.B * std::max<int64_t>(1, std::min(NC / kMinChunksPerSegment, kMaxSegments));
  return std::max(s.B, std::min(by_device, by_length));
}

template <class W>
void LaunchMlstmCombine(Context& context, const MlstmCombineArgs<W>& args) {
  CAROUSEL_CHECK(args.num_segments >= 1 && args.num_segments <= kMaxSegments);
  const int64_t elems = args.DHQK * args.DHV + args.DHQK;
  for (int64_t pair = 0; pair < args.num_pairs; pair += kMaxPairsPerLaunch) {
    const int64_t pairs = std::min(kMaxPairsPerLaunch, args.num_pairs - pair);
    context.Launch(MlstmCombineKernel<W>,
                   {.grid = dim3(GridExtent(CeilDiv(elems, kThreads)), GridExtent(pairs)),
                    .block = dim3(kThreads),
                    .name = "MlstmCombineKernel"},
                   args, pair);
  }
}
template void LaunchMlstmCombine<float>(Context&, const MlstmCombineArgs<float>&);

}  // namespace carousel::CAROUSEL_DEVICE_NS
