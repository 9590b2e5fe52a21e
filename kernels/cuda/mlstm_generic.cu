// mlstm_generic.cu - the scan of mlstm_records.h for every size and dtype (chunkwise mLSTM,
// arXiv:2503.14376).
//
// Grid: (slices of 64 rows of the state x pairs, segments). Block: 256 threads as 16 x 16, each with 2 x 2
// scores, 2 x 4 elements of the output and 4 x 4 of the state at a time. Shared: three panels of 16 columns
// for products over the width of read and upd, the chunk's rows (32 x 64), and the weighted scores (32 x 32)
// whose memory then holds upd (32 x 64); 29 KB in f32, 58 KB in f64. The state lies in global memory and is
// read and written once per chunk (from L2 where it fits). read and upd are read by every slice, twice each
// for the update. All sums are made in the wide type, in an order that depends on nothing but the sizes.
#include "kernels/cuda/mlstm_generic.h"

#include "core/base/int_math.h"
#include "kernels/cuda/op_check.h"
#include "kernels/cuda/reduce.h"

namespace carousel::CAROUSEL_DEVICE_NS {
namespace {

constexpr int kSide = 16;  // threads per side
constexpr int kTokens = kMlstmChunk, kPerToken = kTokens / kSide;
constexpr int kTile = 64, kPer = kTile / kSide;  // rows of the state per block
constexpr int kThreads = kSide * kSide;
constexpr int kPanel = 16;         // columns of read and upd at a time
constexpr int kPitch = kTile + 1;  // elements; odd, so that rows and columns both spread over the banks
static_assert(kTokens % kSide == 0 && kTokens <= kTile);

template <class W>
struct GenericShared {
  W panels[3][kPanel * kPitch];  // [column][token or row of the state]
  W rows[kTokens * kPitch];      // [token][row]
  W square[kTokens * kPitch];    // weighted scores [u][r], then upd [token][column]
  W a[kTokens], n[kTile];
};

// Does the role own columns of C (dim DHV), or rows (dim DHQK)?
constexpr bool OwnsColumns(MlstmRole role) {
  return role == MlstmRole::kH || role == MlstmRole::kDelta || role == MlstmRole::kDV ||
         role == MlstmRole::kForwardState;
}
// Does it carry n as a vector over the columns of upd (then every slice has the whole of it)?
constexpr bool HasWholeN(MlstmRole role) {
  return role == MlstmRole::kH || role == MlstmRole::kDelta || role == MlstmRole::kForwardState;
}
// Or its own rows of n or dn?
constexpr bool HasSliceN(MlstmRole role) {
  return role == MlstmRole::kDQ || role == MlstmRole::kDK || role == MlstmRole::kBackwardState;
}

template <class T, MlstmRole kRole>
class GenericScan {
 public:
  using W = Wide<T>;
  using Record = MlstmRecord<double, W>;

  __device__ GenericScan(const MlstmGenericArgs<T>& args, W* scratch, GenericShared<W>& shared)
      : x_(args), s_(shared) {
    const int64_t row_dim = OwnsColumns(kRole) ? x_.DHV : x_.DHQK;
    slices_ = (row_dim + kTile - 1) / kTile;
    slice_ = static_cast<int64_t>(blockIdx.x) % slices_;
    pair_ = static_cast<int64_t>(blockIdx.x) / slices_;
    segment_ = blockIdx.y;
    row0_ = slice_ * kTile;
    num_rows_ = row_dim - row0_ < kTile ? row_dim - row0_ : kTile;
    cols_ = OwnsColumns(kRole) ? x_.DHQK : x_.DHV;
    const int64_t pairs = x_.B * x_.NH, place = segment_ * pairs + pair_, size = x_.DHQK * x_.DHV;
    first_chunk_ = segment_ * x_.chunks_per_segment;
    end_chunk_ = first_chunk_ + x_.chunks_per_segment < x_.NC ? first_chunk_ + x_.chunks_per_segment : x_.NC;
    scratch_C_ = scratch + place * size;
    scratch_n_ = scratch + gridDim.y * pairs * size + (place * slices_ + slice_) * x_.DHQK;
    if (!IsState(kRole) && x_.initial.C != nullptr) {
      C_ = x_.initial.C + place * size;
      if (x_.initial.n != nullptr) n_ = x_.initial.n + place * x_.DHQK;
    }
    const bool last_segment = IsReverse(kRole) ? segment_ == 0 : segment_ == x_.num_segments - 1;
    if (x_.final.C != nullptr && (IsState(kRole) || last_segment)) {
      const int64_t to = IsState(kRole) ? place : pair_;
      final_C_ = x_.final.C + to * size;
      if (x_.final.n != nullptr) final_n_ = x_.final.n + to * x_.DHQK;
    }
    tx_ = static_cast<int>(threadIdx.x) % kSide;
    ty_ = static_cast<int>(threadIdx.x) / kSide;
  }

  __device__ void Run() {
    const int thread = static_cast<int>(threadIdx.x);
    if (HasSliceN(kRole) && thread < kTile)
      s_.n[thread] = n_ != nullptr && thread < num_rows_ ? n_[row0_ + thread] : W(0);
    if (first_chunk_ >= end_chunk_) return CopyState();
    for (int64_t i = first_chunk_; i < end_chunk_; ++i) {
      const int64_t chunk = IsReverse(kRole) ? end_chunk_ - 1 - (i - first_chunk_) : i;
      t0_ = chunk * kMlstmChunk;
      len_ = static_cast<int>(x_.num_tokens - t0_ < kMlstmChunk ? x_.num_tokens - t0_ : kMlstmChunk);
      record_ = x_.records + pair_ * x_.NC + chunk;
      LoadRows();
      if constexpr (!IsState(kRole)) Output();
      const bool last = i + 1 == end_chunk_;
      if (!last || final_C_ != nullptr) Update(x_.gamma[pair_ * x_.NC + chunk], last);
    }
    if (HasSliceN(kRole) && final_n_ != nullptr && thread < num_rows_)
      final_n_[row0_ + thread] = s_.n[thread];
  }

 private:
  // The row of token t0 + index in a tensor whose heads are `width` columns wide.
  template <class P>
  __device__ P* Row(const MlstmRows<P>& rows, int64_t width, int index) const {
    return rows.data + (pair_ / x_.NH * x_.num_tokens + t0_ + index) * rows.row_stride +
           pair_ % x_.NH * width;
  }
  __device__ const MlstmRows<const T>& Read() const {
    return kRole == MlstmRole::kDQ   ? x_.dh
           : kRole == MlstmRole::kDV ? x_.k
           : kRole == MlstmRole::kDK ? x_.v
                                     : x_.q;
  }
  __device__ const MlstmRows<const T>& Upd() const {
    return kRole == MlstmRole::kDQ                                         ? x_.v
           : kRole == MlstmRole::kDV                                       ? x_.q
           : kRole == MlstmRole::kDK || kRole == MlstmRole::kBackwardState ? x_.dh
                                                                           : x_.k;
  }
  __device__ const MlstmRows<const T>& RowOperand() const {
    return kRole == MlstmRole::kDQ                                         ? x_.k
           : kRole == MlstmRole::kDV                                       ? x_.dh
           : kRole == MlstmRole::kDK || kRole == MlstmRole::kBackwardState ? x_.q
                                                                           : x_.v;
  }
  // What the row of an output is multiplied by for `dots`.
  __device__ const MlstmRows<const T>& DotOperand() const {
    return kRole == MlstmRole::kDelta ? x_.dh : kRole == MlstmRole::kDQ ? x_.q : x_.k;
  }
  __device__ W ReadWeight(int r) const { return IsReverse(kRole) ? record_->kappa[r] : record_->rho[r]; }
  __device__ W UpdWeight(int u) const { return IsReverse(kRole) ? record_->rho[u] : record_->kappa[u]; }
  __device__ W Weight(int r, int u) const {
    const int t = IsReverse(kRole) ? u : r, s = IsReverse(kRole) ? r : u;  // s <= t
    if (s > t || s < record_->begin[t]) return 0;
    return exp2(static_cast<W>(record_->alpha[t] + record_->beta[s]));
  }
  __device__ int64_t StateOffset(int64_t row, int64_t col) const {
    return OwnsColumns(kRole) ? col * x_.DHV + row0_ + row : (row0_ + row) * x_.DHV + col;
  }

  // panel = columns col0 .. col0 + 15 of the chunk's tokens, zeros outside.
  __device__ void LoadPanel(W* panel, const MlstmRows<const T>& from, int64_t col0) const {
    for (int e = static_cast<int>(threadIdx.x); e < kPanel * kTokens; e += kThreads) {
      const int col = e % kPanel, index = e / kPanel;
      const bool inside = index < len_ && col0 + col < cols_;
      panel[col * kPitch + index] = inside ? gpu::convert<W>(Row(from, cols_, index)[col0 + col]) : W(0);
    }
  }
  // The same columns of the block's rows of the state.
  __device__ void LoadStatePanel(W* panel, int64_t col0) const {
    for (int e = static_cast<int>(threadIdx.x); e < kPanel * kTile; e += kThreads) {
      const int col = OwnsColumns(kRole) ? e / kTile : e % kPanel;
      const int row = OwnsColumns(kRole) ? e % kTile : e / kPanel;
      const bool inside = row < num_rows_ && col0 + col < cols_;
      panel[col * kPitch + row] = inside ? C_[StateOffset(row, col0 + col)] : W(0);
    }
  }
  __device__ void LoadRows() {
    const int64_t width = OwnsColumns(kRole) ? x_.DHV : x_.DHQK;
    for (int e = static_cast<int>(threadIdx.x); e < kTokens * kTile; e += kThreads) {
      const int row = e % kTile, index = e / kTile;
      const bool inside = index < len_ && row < num_rows_;
      s_.rows[index * kPitch + row] =
          inside ? gpu::convert<W>(Row(RowOperand(), width, index)[row0_ + row]) : W(0);
    }
  }

  // out (and denominator, a, dots) of the chunk
  __device__ void Output() {
    const int thread = static_cast<int>(threadIdx.x);
    constexpr bool kNormaliser = kRole == MlstmRole::kH || kRole == MlstmRole::kDelta;
    W scores[kPerToken][kPerToken] = {}, out[kPerToken][kPer] = {}, a = 0;  // a: token `thread`
    for (int64_t col0 = 0; col0 < cols_; col0 += kPanel) {
      __syncthreads();  // panels: the reads of the panel before, then these writes
      LoadPanel(s_.panels[0], Read(), col0);
      LoadPanel(s_.panels[1], Upd(), col0);
      if (C_ != nullptr) LoadStatePanel(s_.panels[2], col0);
      __syncthreads();  // panels: the writes, then everybody's reads
      for (int c = 0; c < kPanel; ++c) {
        W read[kPerToken], upd[kPerToken], state[kPer];
#pragma unroll
        for (int i = 0; i < kPerToken; ++i) read[i] = s_.panels[0][c * kPitch + ty_ + kSide * i];
#pragma unroll
        for (int j = 0; j < kPerToken; ++j) upd[j] = s_.panels[1][c * kPitch + tx_ + kSide * j];
        Accumulate(scores, read, upd);
        if (C_ == nullptr) continue;
#pragma unroll
        for (int j = 0; j < kPer; ++j) state[j] = s_.panels[2][c * kPitch + tx_ + kSide * j];
        Accumulate(out, read, state);
      }
      if (kNormaliser && n_ != nullptr && thread < kTokens) {
        for (int c = 0; c < kPanel && col0 + c < cols_; ++c)
          a += s_.panels[0][c * kPitch + thread] * n_[col0 + c];
      }
    }
    StoreWeighted(scores);
    __syncthreads();  // rows and square: the writes, then everybody's reads
    if (kNormaliser && thread < kTokens) {
      a *= ReadWeight(thread);
      for (int u = 0; u < kTokens; ++u) a += s_.square[u * kPitch + thread];
      s_.a[thread] = a;
    }
#pragma unroll
    for (int i = 0; i < kPerToken; ++i) {
      const int r = ty_ + kSide * i;
      const W weight = ReadWeight(r);
      W of_n = 0;  // the factor of n
      if constexpr (kRole == MlstmRole::kDQ) of_n = weight * record_->addend[r];
      if constexpr (kRole == MlstmRole::kDK) of_n = weight;
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        out[i][j] *= weight;
        if constexpr (HasSliceN(kRole)) out[i][j] += of_n * s_.n[tx_ + kSide * j];
      }
    }
    for (int u = 0; u < kTokens; ++u) {
      W weights[kPerToken], rows[kPer];
#pragma unroll
      for (int i = 0; i < kPerToken; ++i) weights[i] = s_.square[u * kPitch + ty_ + kSide * i];
#pragma unroll
      for (int j = 0; j < kPer; ++j) rows[j] = s_.rows[u * kPitch + tx_ + kSide * j];
      Accumulate(out, weights, rows);
    }
    __syncthreads();  // a: the writes, then everybody's reads; square and n: the reads, then Update's writes
    if constexpr (kNormaliser) WriteNormaliser();
    StoreOutput(out);
  }
  template <int kI, int kJ>
  __device__ static void Accumulate(W (&sums)[kI][kJ], const W (&left)[kI], const W (&right)[kJ]) {
#pragma unroll
    for (int i = 0; i < kI; ++i) {
#pragma unroll
      for (int j = 0; j < kJ; ++j) sums[i][j] += left[i] * right[j];
    }
  }
  // square = weights times scores, [u][r]
  __device__ void StoreWeighted(const W (&scores)[kPerToken][kPerToken]) {
#pragma unroll
    for (int i = 0; i < kPerToken; ++i) {
#pragma unroll
      for (int j = 0; j < kPerToken; ++j) {
        const int r = ty_ + kSide * i, u = tx_ + kSide * j;
        W score = scores[i][j];
        if constexpr (kRole == MlstmRole::kDQ) score += record_->addend[r];
        if constexpr (kRole == MlstmRole::kDK) score += record_->addend[u];
        s_.square[u * kPitch + r] = score * Weight(r, u);
      }
    }
  }
  __device__ W Denominator(int r) const {
    const W a = fabs(s_.a[r]), floor = record_->floor[r];
    return x_.normalize ? (a > floor ? a : floor) : W(1);
  }
  __device__ void WriteNormaliser() {
    const int r = static_cast<int>(threadIdx.x);
    if (slice_ != 0 || r >= len_) return;
    if constexpr (kRole == MlstmRole::kH) {
      *Row(x_.denominator, 1, r) = Denominator(r);
    } else {
      x_.a[pair_ * x_.NC * kMlstmChunk + t0_ + r] = s_.a[r];
    }
  }
  __device__ void StoreOutput(const W (&out)[kPerToken][kPer]) {
    constexpr bool kDots = kRole == MlstmRole::kDelta || kRole == MlstmRole::kDQ || kRole == MlstmRole::kDK;
    const int64_t width = OwnsColumns(kRole) ? x_.DHV : x_.DHQK;
#pragma unroll
    for (int i = 0; i < kPerToken; ++i) {
      const int r = ty_ + kSide * i;
      W dot = 0, divisor = 1;
      if (kRole == MlstmRole::kH && x_.normalize) divisor = Denominator(r) + x_.eps;
      if (r < len_) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          const int row = tx_ + kSide * j;
          if (row >= num_rows_) continue;
          if (kDots) dot += out[i][j] * gpu::convert<W>(Row(DotOperand(), width, r)[row0_ + row]);
          if (kRole != MlstmRole::kDelta)
            Row(x_.out, width, r)[row0_ + row] =
                gpu::convert<T>(kRole == MlstmRole::kH ? out[i][j] / divisor : out[i][j]);
        }
      }
      if constexpr (kDots) {
        dot = GroupReduce(dot, kSide, SumOf());  // over tx
        if (tx_ == 0 && r < len_) {
          const int64_t place = slice_ * x_.B * x_.NH + pair_;
          x_.dots[place * x_.NC * kMlstmChunk + t0_ + r] = dot;
        }
      }
    }
  }

  // The state after the chunk; `last`: into final.
  __device__ void Update(W gamma, bool last) {
    const int thread = static_cast<int>(threadIdx.x);
    W* const to = last ? final_C_ : scratch_C_;
    W* const to_n = last ? (slice_ == 0 ? final_n_ : nullptr) : scratch_n_;
    for (int e = thread; e < kTokens * kTile; e += kThreads)  // those that LoadRows gave to this thread
      s_.rows[e / kTile * kPitch + e % kTile] *= UpdWeight(e / kTile);
    for (int64_t col0 = 0; col0 < cols_; col0 += kTile) {
      __syncthreads();  // square: the reads of the tile before, then these writes
      for (int e = thread; e < kTokens * kTile; e += kThreads) {
        const int col = e % kTile, index = e / kTile;
        const bool inside = index < len_ && col0 + col < cols_;
        s_.square[index * kPitch + col] =
            inside ? gpu::convert<W>(Row(Upd(), cols_, index)[col0 + col]) : W(0);
      }
      __syncthreads();  // rows and square: the writes, then everybody's reads
      // elements next to each other in memory go to neighbouring threads
      const int row_lane = OwnsColumns(kRole) ? tx_ : ty_, col_lane = OwnsColumns(kRole) ? ty_ : tx_;
      W sums[kPer][kPer] = {};
      for (int u = 0; u < kTokens; ++u) {
        W rows[kPer], upd[kPer];
#pragma unroll
        for (int i = 0; i < kPer; ++i) rows[i] = s_.rows[u * kPitch + row_lane + kSide * i];
#pragma unroll
        for (int j = 0; j < kPer; ++j) upd[j] = s_.square[u * kPitch + col_lane + kSide * j];
        Accumulate(sums, rows, upd);
      }
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) {
          const int row = row_lane + kSide * i;
          const int64_t col = col0 + col_lane + kSide * j;
          if (row >= num_rows_ || col >= cols_) continue;
          const int64_t at = StateOffset(row, col);
          if (C_ != nullptr && gamma != 0) sums[i][j] += gamma * C_[at];
          to[at] = sums[i][j];
        }
      }
      if (HasWholeN(kRole) && to_n != nullptr && thread < kTile && col0 + thread < cols_) {
        W n = n_ != nullptr && gamma != 0 ? gamma * n_[col0 + thread] : W(0);
        for (int u = 0; u < kTokens; ++u) n += UpdWeight(u) * s_.square[u * kPitch + thread];
        to_n[col0 + thread] = n;
      }
    }
    if (HasSliceN(kRole) && thread < kTile) {
      W n = gamma != 0 ? gamma * s_.n[thread] : W(0);
      for (int u = 0; u < kTokens; ++u)
        n += s_.rows[u * kPitch + thread] * (IsReverse(kRole) ? record_->addend[u] : W(1));
      s_.n[thread] = n;
    }
    C_ = scratch_C_;
    n_ = scratch_n_;
    // The state and n in memory and in n: the writes, then everybody's reads; rows and square: the reads,
    // then the next chunk's writes
    __syncthreads();
  }

  // A segment without tokens.
  __device__ void CopyState() const {
    if (final_C_ == nullptr) return;
    for (int64_t e = threadIdx.x; e < num_rows_ * cols_; e += kThreads) {
      const int64_t at =
          OwnsColumns(kRole) ? StateOffset(e % num_rows_, e / num_rows_) : StateOffset(e / cols_, e % cols_);
      final_C_[at] = C_ != nullptr ? C_[at] : W(0);
    }
    if (final_n_ == nullptr || slice_ != 0) return;
    for (int64_t d = threadIdx.x; d < x_.DHQK; d += kThreads) final_n_[d] = n_ != nullptr ? n_[d] : W(0);
  }

  const MlstmGenericArgs<T>& x_;
  GenericShared<W>& s_;
  int64_t slices_, slice_, pair_, segment_, row0_, num_rows_, cols_, first_chunk_, end_chunk_;
  W *scratch_C_, *scratch_n_;
  const W *C_ = nullptr, *n_ = nullptr;  // the state before the chunk; null: zero
  W *final_C_ = nullptr, *final_n_ = nullptr;
  int tx_, ty_;
  int64_t t0_ = 0;
  int len_ = 0;
  const Record* record_ = nullptr;
};

template <class T, MlstmRole kRole>
__global__ void __launch_bounds__(kThreads, sizeof(Wide<T>) == 8 ? 1 : 2)
    MlstmGenericScanKernel(MlstmGenericArgs<T> args, Wide<T>* scratch) {
  GenericScan<T, kRole>(args, scratch, *gpu::dyn_shared<GenericShared<Wide<T>>>()).Run();
}

template <class T, MlstmRole kRole>
void Launch(Context& context, const MlstmGenericArgs<T>& args, Wide<T>* scratch) {
  const int64_t blocks = MlstmGenericSlices(kRole, args.DHQK, args.DHV) * args.B * args.NH;
  context.Launch(MlstmGenericScanKernel<T, kRole>,
                 {.grid = {GridExtent(blocks), GridExtent(args.num_segments)},
                  .block = kThreads,
                  .smem = sizeof(GenericShared<Wide<T>>),
                  .name = "MlstmGenericScanKernel"},
                 args, scratch);
}
}  // namespace

int64_t MlstmGenericSlices(MlstmRole role, int64_t DHQK, int64_t DHV) {
  return CeilDiv(OwnsColumns(role) ? DHV : DHQK, kTile);
}
int64_t MlstmGenericScratchElems(int64_t B, int64_t NH, int64_t DHQK, int64_t DHV, int64_t num_segments) {
  return num_segments * B * NH * DHQK * (DHV + CeilDiv(DHV, kTile));
}

template <class T>
void LaunchMlstmGeneric(Context& context, MlstmRole role, const MlstmGenericArgs<T>& args, Wide<T>* scratch) {
  switch (role) {
    case MlstmRole::kH:
      return Launch<T, MlstmRole::kH>(context, args, scratch);
    case MlstmRole::kDelta:
      return Launch<T, MlstmRole::kDelta>(context, args, scratch);
    case MlstmRole::kDQ:
      return Launch<T, MlstmRole::kDQ>(context, args, scratch);
    case MlstmRole::kDV:
      return Launch<T, MlstmRole::kDV>(context, args, scratch);
    case MlstmRole::kDK:
      return Launch<T, MlstmRole::kDK>(context, args, scratch);
    case MlstmRole::kForwardState:
      return Launch<T, MlstmRole::kForwardState>(context, args, scratch);
    case MlstmRole::kBackwardState:
      return Launch<T, MlstmRole::kBackwardState>(context, args, scratch);
  }
}
template void LaunchMlstmGeneric<bfloat16>(Context&, MlstmRole, const MlstmGenericArgs<bfloat16>&, float*);
template void LaunchMlstmGeneric<float>(Context&, MlstmRole, const MlstmGenericArgs<float>&, float*);
template void LaunchMlstmGeneric<double>(Context&, MlstmRole, const MlstmGenericArgs<double>&, double*);
}  // namespace carousel::CAROUSEL_DEVICE_NS
