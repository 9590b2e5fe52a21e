// The one file that talks to oneDNN. Its objects have no place for the number of threads: they are made and
// run while OpenMP has one thread (inside ParallelFor).
#define DNNL_ENABLE_EXCEPTIONS 0
#include <oneapi/dnnl/dnnl.hpp>

#include "kernels/cpu/matmul.h"
#include "kernels/cpu/op_util.h"

namespace carousel::cpu {
namespace {
bool ProcessorMultipliesBf16() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}
const MatmulTileKernels* TileKernels(bool use_tiles) {
#if defined(__x86_64__)
  if (use_tiles) return &simd_tiles::GetMatmulTileKernels();
#endif
  return nullptr;
}
// With fewer rows, packing the right operand would cost more than the product.
constexpr int64_t kMinTileRows = 24;
// Packed right operand that is held at a time: 1 MiB, which a second-level cache holds, but at least so many
// panels that packing the left operand anew for them is cheap.
constexpr int64_t kMaxPackedElems = int64_t{1} << 19;
constexpr int64_t kMinPanelsAtOnce = 16;
// With c in f32, K is cut into slices that are added up in c: 32 packed rows of a slice stay in the
// first-level cache.
constexpr int64_t kSliceInner = 512;

// How many rows and panels a task of RunTiles has: all panels if that gives at least eight tasks, because
// every task packs its rows anew. A pure function of the shape.
struct TileTasks {
  int64_t rows, panels;
};
TileTasks PickTileTasks(int64_t M, int64_t panels, int64_t K) {
  constexpr int64_t kMinTasks = 8, kMinMultiplyAdds = int64_t{1} << 20;
  TileTasks tasks = {.rows = 2 * kTilePanel, .panels = panels};
  const auto few = [&] {
    return CeilDiv(M, tasks.rows) * CeilDiv(panels, tasks.panels) < kMinTasks &&
           tasks.rows * tasks.panels * kTilePanel * K >= 2 * kMinMultiplyAdds;
  };
  if (few()) tasks.rows = kTilePanel;
  while (few() && tasks.panels > 1) tasks.panels = CeilDiv(tasks.panels, 2);
  return tasks;
}
}  // namespace

struct MatmulEngine::Problem {
  explicit Problem(const MatmulArgs& args)
      : args(args),
        M(args.c.dim[0]),
        N(args.c.dim[1]),
        K(args.transpose_a ? args.a.dim[0] : args.a.dim[1]),
        lda(std::max<int64_t>(args.a.row_stride, 1)),
        ldb(std::max<int64_t>(args.b.row_stride, 1)),
        ldc(std::max<int64_t>(args.c.row_stride, 1)) {}
  // Elements from the start of a or b to the part that a tile beginning at this row or column needs.
  int64_t OffsetA(int64_t row) const { return args.transpose_a ? row : row * lda; }
  int64_t OffsetB(int64_t column) const { return args.transpose_b ? column * ldb : column; }

  const MatmulArgs& args;
  int64_t M, N, K, lda, ldb, ldc;
};

struct MatmulEngine::Tile {
  int64_t row, column, rows, columns;
};

struct MatmulEngine::Primitives {
  // What a primitive is made for: rows, columns, K, lda, ldb, ldc, flags.
  using Key = std::array<int64_t, 7>;
  struct Entry {
    dnnl::memory::desc a, b, bias, c, scratchpad;
    dnnl::matmul primitive;
  };

  explicit Primitives(int num_threads) : engine(dnnl::engine::kind::cpu, 0), scratchpads(num_threads) {
    for (int worker = 0; worker < num_threads; ++worker) streams.emplace_back(engine);
  }

  const Entry& Get(const Problem& p, const Tile& tile);
  void Run(const Entry& entry, const Problem& p, const Tile& tile, int worker);

  dnnl::engine engine;
  std::vector<dnnl::stream> streams;                  // by worker
  std::vector<AlignedBuffer<std::byte>> scratchpads;  // by worker
  std::map<Key, Entry> entries;
};

const MatmulEngine::Primitives::Entry& MatmulEngine::Primitives::Get(const Problem& p, const Tile& tile) {
  using dnnl::memory;
  const MatmulArgs& args = p.args;
  const int64_t flags = (args.transpose_a ? 1 : 0) | (args.transpose_b ? 2 : 0) | (args.accumulate ? 4 : 0) |
                        (args.bias.defined() ? 8 : 0) | (args.c.dtype == DType::kBF16 ? 16 : 0);
  const Key key = {tile.rows, tile.columns, p.K, p.lda, p.ldb, p.ldc, flags};
  const auto it = entries.find(key);
  if (it != entries.end()) return it->second;

  const auto strides = [](bool transposed, int64_t ld) {
    return transposed ? memory::dims{1, ld} : memory::dims{ld, 1};
  };
  const auto c_type = args.c.dtype == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
  Entry entry;
  entry.a = memory::desc({tile.rows, p.K}, memory::data_type::bf16, strides(args.transpose_a, p.lda));
  entry.b = memory::desc({p.K, tile.columns}, memory::data_type::bf16, strides(args.transpose_b, p.ldb));
  entry.c = memory::desc({tile.rows, tile.columns}, c_type, strides(false, p.ldc));
  if (args.bias.defined()) {
    entry.bias = memory::desc({1, tile.columns}, memory::data_type::f32, memory::dims{tile.columns, 1});
  }
  dnnl::primitive_attr attr;
  attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  if (args.accumulate) {
    dnnl::post_ops sum;
    sum.append_sum(1.0f);
    attr.set_post_ops(sum);
  }
  const dnnl::matmul::primitive_desc desc(dnnl::matmul::desc(entry.a, entry.b, entry.bias, entry.c), attr,
                                          engine);
  entry.scratchpad = desc.scratchpad_desc();
  entry.primitive = dnnl::matmul(desc);
  return entries.emplace(key, std::move(entry)).first->second;
}

void MatmulEngine::Primitives::Run(const Entry& entry, const Problem& p, const Tile& tile, int worker) {
  std::byte* scratchpad = scratchpads[worker].Reserve(static_cast<int64_t>(entry.scratchpad.get_size()));
  const MatmulArgs& args = p.args;
  const int64_t c_offset = (tile.row * p.ldc + tile.column) * SizeOf(args.c.dtype);
  std::unordered_map<int, dnnl::memory> operands = {
      {DNNL_ARG_SRC, {entry.a, engine, args.a.as<bfloat16>() + p.OffsetA(tile.row)}},
      {DNNL_ARG_WEIGHTS, {entry.b, engine, args.b.as<bfloat16>() + p.OffsetB(tile.column)}},
      {DNNL_ARG_DST, {entry.c, engine, static_cast<std::byte*>(args.c.data) + c_offset}},
      {DNNL_ARG_SCRATCHPAD, {entry.scratchpad, engine, scratchpad}}};
  if (args.bias.defined()) {
    operands.emplace(DNNL_ARG_BIAS, dnnl::memory(entry.bias, engine, args.bias.as<float>() + tile.column));
  }
  entry.primitive.execute(streams[worker], operands);
  streams[worker].wait();
}

MatmulEngine::MatmulEngine(ThreadPool& pool, const ElementwiseKernels& elementwise, SimdLevel level,
                           bool use_tiles)
    : pool_(pool),
      elementwise_(elementwise),
      use_onednn_bf16_(level == SimdLevel::kV4 && ProcessorMultipliesBf16()),
      tiles_(TileKernels(use_tiles)),
      primitives_(std::make_unique<Primitives>(pool.num_threads())),
      tile_scratch_(pool.num_threads()),
      packed_a_(pool.num_threads()) {}

MatmulEngine::~MatmulEngine() = default;

void MatmulEngine::Run(const MatmulArgs& args) {
  const Problem p(args);
  if (p.M == 0 || p.N == 0) return;
  if (args.a.dtype == DType::kF32) {
    RunF32(p, args.a.as<float>(), args.b.as<float>());
  } else if (tiles_ != nullptr && p.M >= kMinTileRows) {
    RunTiles(p);
  } else if (use_onednn_bf16_ && p.K > 0) {
    RunOneDnn(p);
  } else {
    RunBf16ThroughF32(p);
  }
}

void MatmulEngine::RunF32(const Problem& p, const float* a, const float* b) {
  const MatmulArgs& args = p.args;
  const MatmulTiling tiling = PickMatmulTiling(p.M, p.N, p.K, /*whole_rows=*/false);
  const int64_t columns_of_tiles = CeilDiv(p.N, tiling.columns);
  const bool round_to_bf16 = args.c.dtype == DType::kBF16;
  pool_.ParallelFor(CeilDiv(p.M, tiling.rows) * columns_of_tiles, [&](int64_t task, int worker) {
    const int64_t row = task / columns_of_tiles * tiling.rows, rows = std::min(tiling.rows, p.M - row);
    const int64_t column = task % columns_of_tiles * tiling.columns,
                  columns = std::min(tiling.columns, p.N - column);
    // The tile in f32: in place, or in scratch memory if c is bf16.
    float* tile;
    int64_t tile_stride;
    if (round_to_bf16) {
      tile = tile_scratch_[worker].Reserve(tiling.rows * tiling.columns);
      tile_stride = columns;
    } else {
      tile = args.c.as<float>() + row * p.ldc + column;
      tile_stride = p.ldc;
    }
    const bool add_in_gemm = args.accumulate && !round_to_bf16;
    if (p.K > 0) {
      const dnnl_status_t status =
          dnnl_sgemm(args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N', rows, columns, p.K, 1.0f,
                     a + p.OffsetA(row), p.lda, b + p.OffsetB(column), p.ldb, add_in_gemm ? 1.0f : 0.0f, tile,
                     tile_stride);
      CAROUSEL_CHECK_EQ(static_cast<int>(status), static_cast<int>(dnnl_success));
    } else if (!add_in_gemm) {
      for (int64_t r = 0; r < rows; ++r) std::fill_n(tile + r * tile_stride, columns, 0.0f);
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* values = tile + r * tile_stride;
      if (args.bias.defined()) {
        const float* bias = args.bias.as<float>() + column;
        elementwise_.add[0][0][0](values, values, bias, columns);
      }
      if (!round_to_bf16) continue;
      uint16_t* c = RawData<uint16_t>(args.c) + (row + r) * p.ldc + column;
      if (args.accumulate) {
        elementwise_.add[1][0][1](c, values, c, columns);
      } else {
        elementwise_.f32_to_bf16(c, values, columns);
      }
    }
  });
}

void MatmulEngine::RunOneDnn(const Problem& p) {
  // oneDNN's fastest implementation wants the output's rows whole and without gaps.
  const MatmulTiling tiling =
      PickMatmulTiling(p.M, p.N, p.K, /*whole_rows=*/!p.args.transpose_a && p.ldc == p.N);
  const int64_t columns_of_tiles = CeilDiv(p.N, tiling.columns);
  const auto tile_of = [&](int64_t task) {
    const int64_t row = task / columns_of_tiles * tiling.rows,
                  column = task % columns_of_tiles * tiling.columns;
    return Tile{.row = row,
                .column = column,
                .rows = std::min(tiling.rows, p.M - row),
                .columns = std::min(tiling.columns, p.N - column)};
  };
  const int64_t num_tiles = CeilDiv(p.M, tiling.rows) * columns_of_tiles;
  std::vector<const Primitives::Entry*> entries(num_tiles);
  pool_.ParallelFor(1, [&](int64_t) {
    for (int64_t task = 0; task < num_tiles; ++task) entries[task] = &primitives_->Get(p, tile_of(task));
  });
  pool_.ParallelFor(num_tiles, [&](int64_t task, int worker) {
    primitives_->Run(*entries[task], p, tile_of(task), worker);
  });
}

void MatmulEngine::RunTiles(const Problem& p) {
  const MatmulArgs& args = p.args;
  TileProduct product = {.c = args.c.data,
                         .a = RawData<uint16_t>(args.a),
                         .b = RawData<uint16_t>(args.b),
                         .bias = RawDataOrNull<float>(args.bias),
                         .M = p.M,
                         .N = p.N,
                         .K = p.K,
                         .lda = p.lda,
                         .ldb = p.ldb,
                         .ldc = p.ldc,
                         .transpose_a = args.transpose_a,
                         .transpose_b = args.transpose_b,
                         .accumulate = args.accumulate,
                         .c_is_bf16 = args.c.dtype == DType::kBF16};
  const int64_t num_slices = product.c_is_bf16 ? 1 : std::max<int64_t>(1, CeilDiv(p.K, kSliceInner));
  const int64_t slice_inner = RoundUp(CeilDiv(p.K, num_slices), kTileInner);
  for (int64_t k = 0; k == 0 || k < p.K; k += slice_inner) {
    product.K = std::min(slice_inner, p.K - k);
    MultiplySlice(product);
    product.a += args.transpose_a ? slice_inner * p.lda : slice_inner;
    product.b += args.transpose_b ? slice_inner : slice_inner * p.ldb;
    product.bias = nullptr;
    product.accumulate = true;
  }
}

void MatmulEngine::MultiplySlice(const TileProduct& product) {
  const int64_t panel_elems = PackedPanelElems(product.K);
  const int64_t all_panels = CeilDiv(product.N, kTilePanel);
  const int64_t panels_at_once =
      std::min(all_panels, std::max(kMinPanelsAtOnce, kMaxPackedElems / std::max<int64_t>(panel_elems, 1)));
  const TileTasks tasks = PickTileTasks(product.M, panels_at_once, product.K);
  uint16_t* packed_b = packed_b_.Reserve(panels_at_once * panel_elems);
  const int64_t row_blocks = CeilDiv(product.M, tasks.rows);
  for (int64_t first = 0; first < all_panels; first += panels_at_once) {
    const int64_t num_panels = std::min(panels_at_once, all_panels - first);
    pool_.ParallelFor(num_panels, [&](int64_t panel) {
      tiles_->pack_panel(product, (first + panel) * kTilePanel, packed_b + panel * panel_elems);
    });
    const int64_t panel_blocks = CeilDiv(num_panels, tasks.panels);
    pool_.ParallelFor(row_blocks * panel_blocks, [&](int64_t task, int worker) {
      const int64_t row = task / panel_blocks * tasks.rows, panel = task % panel_blocks * tasks.panels;
      tiles_->multiply(product, row, std::min(tasks.rows, product.M - row), (first + panel) * kTilePanel,
                       std::min(tasks.panels, num_panels - panel), packed_b + panel * panel_elems,
                       packed_a_[worker].Reserve(panel_elems));
    });
  }
}

void MatmulEngine::RunBf16ThroughF32(const Problem& p) {
  // Both operands without gaps, in f32.
  MatmulArgs args = p.args;
  const int64_t a_elems = args.a.num_elems(), b_elems = args.b.num_elems();
  float* operands = operands_.Reserve(a_elems + b_elems);
  const auto convert = [&](Tensor& x, float* to) {
    pool_.ParallelForBlocks(x.dim[0], RowsPerTask(x.dim[1]), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        elementwise_.bf16_to_f32(to + r * x.dim[1], RawData<uint16_t>(x) + r * x.row_stride, x.dim[1]);
      }
    });
    x = Tensor(to, DType::kF32, {x.dim[0], x.dim[1]});
  };
  convert(args.a, operands);
  convert(args.b, operands + a_elems);
  RunF32(Problem(args), args.a.as<float>(), args.b.as<float>());
}
}  // namespace carousel::cpu
