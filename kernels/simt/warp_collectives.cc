// What the lanes of a warp do together. Each lane leaves its argument; the last one to arrive computes for
// all.
#include <algorithm>
#include <cstring>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"

namespace carousel::emulator {

void RunCollective(unsigned mask, const char* kind, const Loc& loc, void* arg, CollectiveFn fn) {
  Thread& t = *Current();
  Block& b = *t.block;
  const unsigned first = t.warp * 32, lanes = std::min(32u, b.num_threads - first);
  if (lanes < 32) mask &= (1u << lanes) - 1;
  if (!(mask >> t.lane & 1)) {
    Fail("%s at %s: the calling lane %u is not in mask %08x", kind, LocName(loc).c_str(), t.lane, mask);
  }
  auto& pending = b.pending[t.warp];
  Collective* c = nullptr;
  for (Collective& p : pending) {
    if (p.mask & mask) {
      c = &p;
      break;
    }
  }
  if (!c) {
    if (b.exited[t.warp] & mask) {
      Fail("%s at %s: lanes %08x of mask %08x have exited", kind, LocName(loc).c_str(),
           b.exited[t.warp] & mask, mask);
    }
    c = &pending.emplace_back();
    c->mask = mask;
    c->arrived = 0;
    c->kind = kind;
    c->loc = loc;
  } else if (c->mask != mask || c->kind != kind || !SameLoc(c->loc, loc)) {
    Fail("divergent warp: this lane is in %s(%08x) at %s, other lanes wait in %s(%08x) at %s", kind, mask,
         LocName(loc).c_str(), c->kind, c->mask, LocName(c->loc).c_str());
  }
  c->arg[t.lane] = arg;
  c->arrived |= 1u << t.lane;
  if (c->arrived != mask) {
    Wait(kind, loc);
    return;
  }
  ++worker->counts.collectives;
  fn(c->arg, mask);
  const bool front = WakeToFront();
  for (unsigned m = mask & ~(1u << t.lane); m;) {
    const int lane = 31 - __builtin_clz(m);
    m &= ~(1u << lane);
    MakeReady(&b.threads[first + static_cast<unsigned>(lane)], front);
  }
  if (c != &pending.back()) *c = pending.back();
  pending.pop_back();
}

void WarpBarrier(unsigned mask, const Loc& loc) {
  const check::InEmulation inside;
  if (Removed("__syncwarp", loc)) return;
  RunCollective(mask, "__syncwarp", loc, Current(),
                [](void** args, unsigned m) { check::WarpBarrier(reinterpret_cast<Thread**>(args), m); });
}

uint64_t WarpShuffle(unsigned mask, uint64_t bits, int arg, int width, Shuffle mode, const Loc& loc) {
  const check::InEmulation inside;
  struct Argument {
    uint64_t in, out;
    int arg, width;
    Shuffle mode;
  } argument{bits, 0, arg, width, mode};
  if (width < 1 || width > 32 || (width & (width - 1)))
    Fail("__shfl_sync at %s: width %d", LocName(loc).c_str(), width);
  RunCollective(mask, "__shfl_sync", loc, &argument, [](void** args, unsigned m) {
    for (int lane = 0; lane < 32; ++lane) {
      if (!(m >> lane & 1)) continue;
      Argument& a = *static_cast<Argument*>(args[lane]);
      const int low = lane & ~(a.width - 1), high = low + a.width - 1;
      int source = lane;
      switch (a.mode) {
        case Shuffle::kIdx:
          source = low | (a.arg & (a.width - 1));
          break;
        case Shuffle::kUp:
          source = lane - a.arg < low ? lane : lane - a.arg;
          break;
        case Shuffle::kDown:
          source = lane + a.arg > high ? lane : lane + a.arg;
          break;
        case Shuffle::kXor:
          source = (lane ^ a.arg) > high ? lane : lane ^ a.arg;
          break;
      }
      if (!(m >> source & 1)) {
        Fail("__shfl_sync: lane %d reads lane %d, which is not in mask %08x", lane, source, m);
      }
      a.out = static_cast<Argument*>(args[source])->in;
    }
  });
  return argument.out;
}

unsigned WarpBallot(unsigned mask, bool pred, const Loc& loc) {
  const check::InEmulation inside;
  struct Argument {
    bool in;
    unsigned out;
  } argument{pred, 0};
  RunCollective(mask, "__ballot_sync", loc, &argument, [](void** args, unsigned m) {
    unsigned votes = 0;
    for (int l = 0; l < 32; ++l) {
      if (m >> l & 1) votes |= static_cast<unsigned>(static_cast<Argument*>(args[l])->in) << l;
    }
    for (int l = 0; l < 32; ++l) {
      if (m >> l & 1) static_cast<Argument*>(args[l])->out = votes;
    }
  });
  return argument.out;
}

unsigned WarpMatch(unsigned mask, uint64_t bits, const Loc& loc) {
  const check::InEmulation inside;
  struct Argument {
    uint64_t in;
    unsigned out;
  } argument{bits, 0};
  RunCollective(mask, "__match_any_sync", loc, &argument, [](void** args, unsigned m) {
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      Argument& a = *static_cast<Argument*>(args[l]);
      for (int k = 0; k < 32; ++k) {
        if (m >> k & 1 && static_cast<Argument*>(args[k])->in == a.in) a.out |= 1u << k;
      }
    }
  });
  return argument.out;
}

uint32_t WarpReduce(unsigned mask, uint32_t value, bool is_signed, Reduce op, const Loc& loc) {
  const check::InEmulation inside;
  struct Argument {
    uint32_t value;
    bool is_signed;
    Reduce op;
  } argument{value, is_signed, op};
  RunCollective(mask, "__reduce_sync", loc, &argument, [](void** args, unsigned m) {
    uint32_t result = 0;
    bool first = true;
    for (int l = 0; l < 32; ++l) {
      if (!(m >> l & 1)) continue;
      const Argument& a = *static_cast<Argument*>(args[l]);
      const uint32_t v = a.value;
      if (first) {
        result = v;
        first = false;
        continue;
      }
      const bool less = a.is_signed ? static_cast<int32_t>(v) < static_cast<int32_t>(result) : v < result;
      switch (a.op) {
        case Reduce::kAdd:
          result += v;
          break;
        case Reduce::kMin:
          result = less ? v : result;
          break;
        case Reduce::kMax:
          result = less ? result : v;
          break;
        case Reduce::kAnd:
          result &= v;
          break;
        case Reduce::kOr:
          result |= v;
          break;
        case Reduce::kXor:
          result ^= v;
          break;
      }
    }
    for (int l = 0; l < 32; ++l) {
      if (m >> l & 1) static_cast<Argument*>(args[l])->value = result;
    }
  });
  return argument.value;
}

bool WarpElect(unsigned mask, const Loc& loc) {
  const check::InEmulation inside;
  RunCollective(mask, "elect_one", loc, nullptr, [](void**, unsigned) {});
  return Current()->lane == static_cast<unsigned>(__builtin_ctz(mask));
}
}  // namespace carousel::emulator
