// A block of the sm_90a scan: which part of the work is its own, where things lie, and the copies that feed
// it. The arithmetic: mlstm_scan_sm90_kernel.h.
#pragma once
#include "kernels/cuda/mlstm_scan_sm90_config.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

// What TMA reads and writes: (columns, tokens, batch entries), boxes of 64 columns and C::L tokens, of
// dot_rows C::kMyTokens and of out, dv and dq C::kStoreTokens.
struct Sm90Maps {
  gpu::TensorMap read, upd, row, out, dot_rows;  // dot_rows: kDQ q, kDK k
  gpu::TensorMap dv, dq;                         // kGivesDV, kGivesDQ
};

#if CAROUSEL_DEVICE_HAS_WGMMA
// Members are registers of a thread.
template <class C>
class Sm90Block {
 protected:
  static constexpr int L = C::L;

  __device__ __forceinline__ Sm90Block(const Sm90Maps& the_maps, const MlstmFastScanArgs& a)
      : maps(the_maps),
        args(a),
        smem(gpu::dyn_shared<unsigned char>()),
        // the same for all lanes of a warp, which wgmma asks of the addresses made from it
        warp(__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0) & 15),
        lane(static_cast<int>(threadIdx.x) % 32) {
    const int64_t begin = blockIdx.y * a.chunks_per_segment;
    const int64_t end = begin + a.chunks_per_segment < a.NC ? begin + a.chunks_per_segment : a.NC;
    first_chunk = static_cast<int>(begin);
    num_chunks = static_cast<int>(end - begin);
    num_steps = (num_chunks + C::kRecords - 1) / C::kRecords;
    if constexpr (C::kBlocked) {
      const unsigned slices = static_cast<unsigned>(HeadRows()) / C::kRows;
      slice = static_cast<int>(blockIdx.x % slices);
      pair = static_cast<int>(blockIdx.x / slices);
    } else {
      slice = static_cast<int>(blockIdx.x % C::kSlices);
      pair = static_cast<int>(blockIdx.x / C::kSlices);
    }
    head = pair % static_cast<int>(a.NH);
    entry = pair / static_cast<int>(a.NH);
  }

  __device__ __forceinline__ int Thread() const { return warp % 4 * 32 + lane; }  // in its warpgroup

  // For the compiler, which would keep the lane's places in registers through the loop.
  __device__ __forceinline__ void ForgetPlaces() {
    gpu::opaque(lane);
    lane &= 31;
  }

  // Of the head's state; the first of the block's columns in it.
  __device__ __forceinline__ int64_t HeadColumns() const {
    return !C::kBlocked ? C::kColumns : C::kDots ? args.DHV : args.DHQK;
  }
  __device__ __forceinline__ int64_t HeadRows() const {
    return !C::kBlocked ? C::kSlices * C::kRows : C::kDots ? args.DHQK : args.DHV;
  }
  __device__ __forceinline__ static int ColumnBlock() {
    return C::kBlocked ? static_cast<int>(blockIdx.z) : 0;
  }
  __device__ __forceinline__ static int FirstColumn() { return ColumnBlock() * C::kColumns; }
  // The block has the column of the normaliser (n or dn), if the role carries one.
  __device__ __forceinline__ static bool HasNormalizer() { return ColumnBlock() == 0; }
  // In the cluster.
  __device__ __forceinline__ int Rank() const { return C::kBlocked ? slice % C::kSlices : slice; }

  // ---- places
  __device__ __forceinline__ uint64_t* Full(int s) const {
    return reinterpret_cast<uint64_t*>(smem + C::kBarriersAt) + s;
  }
  __device__ __forceinline__ uint64_t* Empty(int s) const { return Full(C::kStages + s); }
  __device__ __forceinline__ uint64_t* WeightsReady(int i) const { return Full(2 * C::kStages + i); }
  __device__ __forceinline__ uint64_t* DotRowsReady(int group) const {
    return Full(2 * C::kStages + 2 + group);
  }
  // kGivesDV, of the step's rounded state: written, and read.
  __device__ __forceinline__ uint64_t* RoundedReady(int step) const {
    return Full(2 * C::kStages + 2 + step % C::kRounded);
  }
  __device__ __forceinline__ uint64_t* RoundedFree(int step) const {
    return Full(2 * C::kStages + 2 + C::kRounded + step % C::kRounded);
  }
  // The state that the kStates scan left before the step's pair of steps: bytes have come.
  __device__ __forceinline__ uint64_t* SavedReady() const {
    return Full(2 * C::kStages + 2 + 2 * C::kRounded);
  }
  __device__ __forceinline__ unsigned char* SavedAt(int chunk) const {
    const int64_t index =
        pair * ((args.NC + kMlstmSavedChunks - 1) / kMlstmSavedChunks) + chunk / kMlstmSavedChunks;
    return reinterpret_cast<unsigned char*>(args.anchors.C) + index * C::kSavedBytes;
  }
  __device__ __forceinline__ unsigned char* RoundedOf(int step) const {
    return smem + C::kRoundedAt + step % C::kRounded * (C::kBoxes * C::kRoundedBox);
  }
  __device__ __forceinline__ unsigned char* StageOf(int step) const {
    return smem + step % C::kStages * C::kStageBytes;
  }
  __device__ __forceinline__ unsigned char* WeightsOf(int step) const {
    return smem + C::kWeightsAt + step % 2 * C::kBox;
  }
  __device__ __forceinline__ float* InverseOf(int step) const {
    return reinterpret_cast<float*>(smem + C::kInverseAt) + step % 2 * L;
  }
  // The step's chunk (of 32 tokens). Of two records the next chunk is the second half, unless the segment
  // ends between them.
  __device__ __forceinline__ int ChunkOf(int step) const {
    return first_chunk + C::kRecords * (C::kReverse ? num_steps - 1 - step : step);
  }
  __device__ __forceinline__ bool HasSecond(int step) const {
    return C::kRecords == 2 && ChunkOf(step) + 1 < first_chunk + num_chunks;
  }
  __device__ __forceinline__ static const MlstmFastRecord& RecordOf(const unsigned char* stage, int half) {
    return reinterpret_cast<const MlstmFastRecord*>(stage + C::kRecordAt)[half];
  }
  // 128-byte lines in groups of 8; k-th product of 16.
  __device__ __forceinline__ static uint64_t KMajor(const unsigned char* box, int k) {
    return gpu::make_smem_desc(gpu::smem_addr(box) + static_cast<unsigned>(k) * 32, 16, 8 * C::kLine, 1);
  }
  __device__ __forceinline__ static uint64_t MnMajor(const unsigned char* box, int k, unsigned next_box) {
    return gpu::make_smem_desc(gpu::smem_addr(box) + static_cast<unsigned>(k) * 16 * C::kLine, next_box,
                               8 * C::kLine, 1);
  }
  // Byte of 16-byte piece `piece` of line `line` of a box.
  __device__ __forceinline__ static int Swizzled(int line, int piece) {
    return line * C::kLine + ((piece ^ (line & 7)) << 4);
  }

  // How a step's halves are joined: factors of the records' rho and kappa, and of the state. Without a second
  // half nothing reaches it, and nothing comes of it.
  struct Joint {
    float rho_second, kappa_first, kappa_second, gamma;
  };
  __device__ __forceinline__ Joint JointOf(int step) const {
    const float* const gamma = args.gamma + pair * args.NC + ChunkOf(step);
    const bool second = HasSecond(step);
    const float first = gamma[0], next = second ? gamma[1] : 1.0f;
    return {second ? first : 0.0f, next, second ? 1.0f : 0.0f, first * next};
  }

  // ---- copies, started by one thread
  __device__ __forceinline__ void LoadBox(unsigned char* to, const gpu::TensorMap& map, int column, int token,
                                          uint64_t* full) const {
    if constexpr (C::kSlices > 1) {
      gpu::tma_load_4d_multicast(to, map, column, token, entry, 0, full,
                                 static_cast<uint16_t>((1u << C::kSlices) - 1));
    } else {
      gpu::tma_load_4d(to, map, column, token, entry, 0, full);
    }
  }
  __device__ __forceinline__ void Load(int step) const {
    unsigned char* const stage = StageOf(step);
    uint64_t* const full = Full(step % C::kStages);
    const int chunk = ChunkOf(step), token = chunk * kMlstmChunk;
    if constexpr (C::kBlocked && C::kDots) {
      gpu::mbar_arrive_expect_tx(
          full, HasNormalizer() ? C::kStageCopies : C::kStageCopies - C::kRecords * C::kAddendBytes);
    } else {
      gpu::mbar_arrive_expect_tx(full, C::kStageCopies);
    }
    // Of read and upd, for the whole cluster, this block's part.
#pragma unroll 1
    for (int i = 0; i < C::kMyBoxes; ++i) {
      const int box = Rank() * C::kMyBoxes + i;
      const int column = head * static_cast<int>(HeadColumns()) + FirstColumn() + box * 64;
      if constexpr (!C::kStatesOnly) LoadBox(stage + box * C::kBox, maps.read, column, token, full);
      LoadBox(stage + C::kUpdAt + box * C::kUpdBox, maps.upd, column, token, full);
    }
    const int row = C::kBlocked ? head * static_cast<int>(HeadRows()) + slice * C::kRows
                                : (head * C::kSlices + slice) * C::kRows;
#pragma unroll 1
    for (int g = 0; g < C::kRowGroups; ++g) {
      gpu::tma_load_4d(stage + C::kRowAt + g * C::kBox, maps.row, row + g * 64, token, entry, 0, full);
      if constexpr (C::kGivesDV) {
        gpu::tma_load_4d(stage + C::kKeyAt + g * C::kBox, maps.dot_rows, row + g * 64, token, entry, 0, full);
      }
    }
    // A missing second half gets the first one's record: finite numbers.
    const MlstmFastRecord* const records = args.records + pair * args.NC + chunk;
    LoadRecord(stage + C::kRecordAt, records, full);
    if constexpr (C::kRecords == 2) {
      LoadRecord(stage + C::kRecordAt + C::kRecordBytes, records + (HasSecond(step) ? 1 : 0), full);
    }
  }
  __device__ __forceinline__ void LoadRecord(unsigned char* to, const MlstmFastRecord* record,
                                             uint64_t* full) const {
    if constexpr (C::kBlocked && C::kDots) {
      if (!HasNormalizer()) {  // all but the addends (ClearAddends)
        constexpr int kBehind = C::kAddendAt + C::kAddendBytes;
        const auto* const from = reinterpret_cast<const unsigned char*>(record);
        gpu::bulk_g2s(to, from, C::kAddendAt, full);
        gpu::bulk_g2s(to + kBehind, from + kBehind, C::kRecordBytes - kBehind, full);
        return;
      }
    }
    gpu::bulk_g2s(to, record, C::kRecordBytes, full);
  }
  // In every stage, for good: addends of a block without the normaliser.
  __device__ __forceinline__ void ClearAddends() const {
    const int i = static_cast<int>(threadIdx.x), record = i / kMlstmChunk;
    static_assert(C::kStages * C::kRecords * kMlstmChunk <= C::kThreads);
    if (HasNormalizer() || record >= C::kStages * C::kRecords) return;
    unsigned char* const stage = StageOf(record / C::kRecords);
    auto* const to = reinterpret_cast<MlstmFastRecord*>(stage + C::kRecordAt) + record % C::kRecords;
    to->addend[i % kMlstmChunk] = 0;
  }

  const Sm90Maps& maps;
  const MlstmFastScanArgs& args;
  unsigned char* const smem;
  const int warp;  // in the block
  int lane;
  int first_chunk, num_chunks, num_steps, slice, pair, head, entry;
};
#endif

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
