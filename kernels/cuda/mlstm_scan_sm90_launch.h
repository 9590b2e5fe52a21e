// Which Sm90Config a role and head width takes, and launching it. Each role is compiled in a file of its own.
#pragma once
#include <type_traits>

#include "kernels/cuda/mlstm_blocks.h"
#include "kernels/cuda/mlstm_scan_sm90.h"
#include "kernels/cuda/mlstm_scan_sm90_save.h"
#include "kernels/cuda/op_check.h"

namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90 {

template <MlstmRole kRole, int kDHQK, int kDHV, bool kBlocked = false>
using ConfigOf = std::conditional_t<kRole == MlstmRole::kH || kRole == MlstmRole::kDV,
                                    Sm90Config<kRole, kDHQK, kDHV, Sm90Gives::kOut, kBlocked>,
                                    Sm90Config<kRole, kDHV, kDHQK, Sm90Gives::kOut, kBlocked>>;

// fn.operator()<Sm90Config>() for the widths that have one, or of a block of the heads that are cut;
// otherwise `otherwise`.
template <MlstmRole kRole, class R, class Fn>
R ForWidths(int64_t DHQK, int64_t DHV, R otherwise, Fn&& fn) {
  if (DHQK == 64 && DHV == 64) return fn.template operator()<ConfigOf<kRole, 64, 64>>();
  if (DHQK == 64 && DHV == 128) return fn.template operator()<ConfigOf<kRole, 64, 128>>();
  if (DHQK == 128 && DHV == 128) return fn.template operator()<ConfigOf<kRole, 128, 128>>();
  if (DHQK == 128 && DHV == 256) return fn.template operator()<ConfigOf<kRole, 128, 256>>();
  if (DHQK == 192 && DHV == 384) return fn.template operator()<ConfigOf<kRole, 192, 384>>();
  if (DHQK == 256 && DHV == 256) return fn.template operator()<ConfigOf<kRole, 256, 256>>();
  if (DHQK == 256 && DHV == 512) return fn.template operator()<ConfigOf<kRole, 256, 512>>();
  if (DHQK == 384 && DHV == 384) return fn.template operator()<ConfigOf<kRole, 384, 384>>();
  if (DHQK == 512 && DHV == 512) return fn.template operator()<ConfigOf<kRole, 512, 512>>();
  switch (MlstmBlockWidth(DHQK, DHV)) {
    case 256:
      return fn.template operator()<ConfigOf<kRole, 256, 256, true>>();
    case 384:
      return fn.template operator()<ConfigOf<kRole, 384, 384, true>>();
    case 512:
      return fn.template operator()<ConfigOf<kRole, 512, 512, true>>();
    default:
      return otherwise;
  }
}

// kDK that gives dv too: where a block holds all rows of the state, and the tiles of both fit into it.
template <class R, class Fn>
R ForWidthsOfDKV(int64_t DHQK, int64_t DHV, R otherwise, Fn&& fn) {
  if (DHQK == 128 && DHV == 128) {
    return fn.template operator()<Sm90Config<MlstmRole::kDK, 128, 128, Sm90Gives::kDKV>>();
  }
  return otherwise;
}
// And dq, with states from a kDQ that gives nothing else: kGives is kAll or kStates.
template <Sm90Gives kGives, class R, class Fn>
R ForWidthsOfAll(int64_t DHQK, int64_t DHV, R otherwise, Fn&& fn) {
  constexpr MlstmRole kRole = kGives == Sm90Gives::kAll ? MlstmRole::kDK : MlstmRole::kDQ;
  if (DHQK == 64 && DHV == 64) return fn.template operator()<Sm90Config<kRole, 64, 64, kGives>>();
  if (DHQK == 64 && DHV == 128) return fn.template operator()<Sm90Config<kRole, 128, 64, kGives>>();
  return otherwise;
}

// Tokens of a batch entry in boxes of 64 columns and `box_tokens` tokens.
template <class T>
gpu::TensorMap MapOf(const MlstmRows<T>& rows, int64_t columns, const MlstmFastScanArgs& args,
                     uint32_t box_tokens) {
  const auto token_bytes = static_cast<uint64_t>(rows.row_stride) * sizeof(bfloat16),
             entry_bytes = token_bytes * static_cast<uint64_t>(args.num_tokens);
  const uint64_t dim[4] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(args.num_tokens),
                           static_cast<uint64_t>(args.B), 1};
  const uint64_t stride_bytes[3] = {token_bytes, entry_bytes, entry_bytes * dim[2]};
  const uint32_t box[4] = {64, box_tokens, 1, 1};
  return gpu::make_tensor_map_4d(rows.data, dim, stride_bytes, box);
}

// The tensors of a role (mlstm_records.h); dot_rows: what out is multiplied by.
struct Operands {
  MlstmRows<const bfloat16> read, upd, row, dot_rows;
};
template <MlstmRole kRole>
Operands OperandsOf(const MlstmFastScanArgs& a) {
  switch (kRole) {
    case MlstmRole::kH:
      return {.read = a.q, .upd = a.k, .row = a.v, .dot_rows = {}};
    case MlstmRole::kDQ:
      return {.read = a.dh, .upd = a.v, .row = a.k, .dot_rows = a.q};
    case MlstmRole::kDV:
      return {.read = a.k, .upd = a.q, .row = a.dh, .dot_rows = {}};
    default:
      static_assert(kRole != MlstmRole::kDelta && !IsState(kRole));
      return {.read = a.v, .upd = a.dh, .row = a.q, .dot_rows = a.k};
  }
}

// What a scan gives beside `out`: kGivesDV, kGivesDQ.
struct MoreOutputs {
  MlstmRows<bfloat16> dv, dq;
};
template <class C>
void LaunchConfig(Context& context, const MlstmFastScanArgs& args, const MoreOutputs& more,
                  const char* name) {
  const Operands x = OperandsOf<C::kRole>(args);
  const int64_t columns = args.NH * (C::kDots ? args.DHV : args.DHQK),
                rows = args.NH * (C::kDots ? args.DHQK : args.DHV),
                column_blocks = NumMlstmColumnBlocks(C::kRole, args.DHQK, args.DHV),
                slices = C::kSlices * NumMlstmBlocks(args.DHQK, args.DHV) / column_blocks;
  Sm90Maps maps = {.read = {},
                   .upd = MapOf(x.upd, columns, args, C::L),
                   .row = MapOf(x.row, rows, args, C::L),
                   .out = {},
                   .dot_rows = {},
                   .dv = {},
                   .dq = {}};
  if (!C::kStatesOnly) {
    maps.read = MapOf(x.read, columns, args, C::L);
    if (!C::kBlocked) maps.out = MapOf(args.out, rows, args, C::kStoreTokens);
    if (C::kDots) maps.dot_rows = MapOf(x.dot_rows, rows, args, C::kMyTokens);
  }
  if (C::kGivesDV) maps.dv = MapOf(more.dv, columns, args, C::kStoreTokens);
  if (C::kGivesDQ) maps.dq = MapOf(more.dq, rows, args, C::kStoreTokens);
  const auto kernel = [] {
    if constexpr (C::kStatesOnly) {
      return MlstmSm90SaveKernel<C>;
    } else {
      return MlstmSm90Kernel<C>;
    }
  }();
  context.Launch(kernel,
                 {.grid = dim3(GridExtent(slices * args.B * args.NH), GridExtent(args.num_segments),
                               GridExtent(column_blocks)),
                  .block = dim3(C::kThreads),
                  .smem = C::kSharedBytes,
                  .cluster = dim3(C::kSlices),
                  .name = name},
                 maps, args);
}

// False: no scan for these widths.
template <MlstmRole kRole>
bool LaunchRole(Context& context, const MlstmFastScanArgs& args, const char* name) {
  return ForWidths<kRole>(args.DHQK, args.DHV, false, [&]<class C>() {
    LaunchConfig<C>(context, args, /*more=*/{}, name);
    return true;
  });
}

// One file each.
bool LaunchH(Context& context, const MlstmFastScanArgs& args);
bool LaunchDQ(Context& context, const MlstmFastScanArgs& args);
bool LaunchDV(Context& context, const MlstmFastScanArgs& args);
bool LaunchDK(Context& context, const MlstmFastScanArgs& args);
bool LaunchDKV(Context& context, const MlstmFastScanArgs& args, const MlstmRows<bfloat16>& dv);
bool LaunchStates(Context& context, const MlstmFastScanArgs& args);
bool LaunchAll(Context& context, const MlstmFastScanArgs& args, const MoreOutputs& more);

}  // namespace carousel::CAROUSEL_DEVICE_NS::mlstm_sm90
