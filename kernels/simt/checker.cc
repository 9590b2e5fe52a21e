// The checker of kernel accesses: shadow memory, and the order that synchronisation makes (checker.h).
#include "kernels/simt/checker.h"

#ifdef CAROUSEL_SIMT_CHECK

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <unordered_map>

#include "kernels/simt/checker_hooks.h"

namespace carousel::emulator::check {

constinit thread_local bool inside_emulation = false;

namespace {

using Clock = std::vector<uint32_t>;

// An access. Times are those of its group; sequence 0: none.
struct Acc {
  uint32_t sequence, time, where;
  uint16_t thread;
  uint8_t atomic, async;
};
// Of two bytes: the last write, and reads that no later read is ordered after.
struct Cell {
  Acc write, reads[3];
};
struct Region {
  char* base = nullptr;
  size_t bytes = 0;
  State* state = nullptr;
  Cell* cells = nullptr;
  bool shared = false;

  bool Has(const char* p) const { return static_cast<size_t>(p - base) < bytes; }
  void Map(char* b, size_t n) {
    if (state) {
      munmap(state, bytes / 2);
      munmap(cells, bytes / 2 * sizeof(Cell));
    }
    const auto get = [](size_t size) {
      void* p =
          mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (p == MAP_FAILED) throw KernelError("the checker cannot map its shadow memory");
      return p;
    };
    base = b;
    bytes = n;
    state = static_cast<State*>(get(n / 2));
    cells = static_cast<Cell*>(get(n / 2 * sizeof(Cell)));
  }
};

Region device, shared{nullptr, 0, nullptr, nullptr, true};
std::vector<Loc> locs;  // of accesses that the emulation makes for a kernel
// Clocks that threads released at mbarriers and named barriers of the group, and at words of global memory,
// there by the group's sequence number.
struct Released {
  Clock clock, weak_clock;
};
std::unordered_map<const void*, Released> local_keys;
std::unordered_map<const void*, std::map<uint32_t, Clock>> global_keys;
std::vector<std::pair<char*, char*>> image;  // code and constants of the program
char* program_base = nullptr;

constexpr uint32_t kIsLoc =
    0x80000000u;  // `where` is an index into locs; otherwise an offset in the program, plus 1

std::string WhereName(uint32_t where) {
  if (where & kIsLoc) return LocName(locs[where & ~kIsLoc]).c_str();
  if (!options().name_lines) return "an unnamed line";
  char program[512], command[700];
  const ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
  program[n < 0 ? 0 : n] = 0;
  std::snprintf(command, sizeof command, "addr2line -i -e '%s' 0x%x 2>/dev/null", program, where - 1);
  std::string best = "an unknown line";
  if (FILE* f = popen(command, "r")) {
    char line[512];
    while (
        std::fgets(line, sizeof line, f)) {  // inlined frames from the inside out: the first that is not ours
      std::string s = line;
      s = s.substr(s.rfind('/') + 1);
      best = s.substr(0, s.find_first_of(" \n"));
      if (!std::strstr(line, "/kernels/simt/") && !std::strstr(line, "/include/")) break;
    }
    pclose(f);
  }
  return best;
}
std::string Place(const Region& r, const char* p) {
  char text[200];
  if (!r.shared) {
    std::snprintf(text, sizeof text, "global address %p", static_cast<const void*>(p));
    return text;
  }
  const size_t offset = static_cast<size_t>(p - r.base) % kSharedStride;
  for (const SharedVariable& v : group->blocks[static_cast<size_t>(p - r.base) / kSharedStride].variables) {
    if (offset + 64 >= v.offset && offset < v.offset + v.bytes + 64) {
      std::snprintf(text, sizeof text, "shared array %s, byte %td of %zu", v.name,
                    static_cast<ptrdiff_t>(offset) - static_cast<ptrdiff_t>(v.offset), v.bytes);
      return text;
    }
  }
  std::snprintf(text, sizeof text, "shared memory, byte %zu", offset);
  return text;
}

bool InForeign(const std::map<uint32_t, Clock>& foreign, const Acc& a) {
  const auto it = foreign.find(a.sequence);
  return it != foreign.end() && a.thread < it->second.size() && it->second[a.thread] >= a.time;
}
// Did access a happen before what t does now?
bool Ordered(const Acc& a, bool a_writes, const Thread& t) {
  if (a.sequence < group->launch_base) return true;  // none, or an earlier launch
  if (a.sequence != group->sequence) {               // another block of this launch
    return InForeign(t.foreign, a) || InForeign(t.block->foreign, a) || InForeign(group->foreign, a);
  }
  if (a.thread == t.index || a.time < group->base) return true;
  const unsigned in_block = a.thread - t.block->rank * t.block->num_threads;
  if (in_block < t.block->num_threads) {
    if (a.time < t.block->base) return true;
    if (in_block / 32 == t.warp && a.time < t.block->warp_base[t.warp]) return true;
  }
  if (t.clock.empty()) return false;
  if (!a.async) return (a_writes ? t.clock : t.weak_clock)[a.thread] >= a.time;
  const auto warp = t.weak_clock.begin() + (a.thread & ~31);  // done by the warp as a whole
  return std::any_of(warp, warp + std::min<ptrdiff_t>(32, t.weak_clock.end() - warp),
                     [&](uint32_t time) { return time >= a.time; });
}

[[noreturn]] void ReportRace(const Region& r, const char* p, const Acc& a, bool a_writes, const Acc& me,
                             bool write) {
  const std::string other = a.sequence == group->sequence ? ThreadName(group->threads[a.thread]).c_str()
                                                          : "a thread of another block";
  Fail("data race on %s: %s at %s and earlier %s by %s at %s, with no synchronisation between",
       Place(r, p).c_str(), write ? "write" : "read", WhereName(me.where).c_str(),
       a_writes ? "write" : "read", other.c_str(), WhereName(a.where).c_str());
}

// Memory that is neither shared nor global.
void TouchHost(const Thread& t, const char* p, size_t bytes, bool write, const Acc& me) {
  const auto in = [p](const void* begin, size_t n) {
    return static_cast<size_t>(p - static_cast<const char*>(begin)) < n;
  };
  const size_t stack_bytes = options().stack_bytes;
  if (in(t.stack, stack_bytes) || in(group->threads.data(), group->threads.size() * sizeof(Thread)) ||
      in(reinterpret_cast<const char*>(reinterpret_cast<uintptr_t>(&self) - 8192),
         16384)) {  // thread_local variables
    return;
  }
  for (const auto& [low, high] : image) {
    if (p >= low && p < high) return;
  }
  const char* action = write ? "write" : "read";
  if (in(group->threads[0].stack, stack_bytes * group->num_threads)) {
    Fail("%s of another thread's local memory at %s", action, WhereName(me.where).c_str());
  }
  Fail("%s of %zu bytes at host or wild address %p at %s", action, bytes, static_cast<const void*>(p),
       WhereName(me.where).c_str());
}

void RecordRead(Cell& c, const Acc& me, const Thread& t) {
  int slot = -1;
  for (int i = 0; i < 3; ++i) {
    Acc& a = c.reads[i];
    if (a.sequence == 0) {
      if (slot < 0) slot = i;
    } else if (a.thread == me.thread ? a.sequence == me.sequence : Ordered(a, false, t)) {
      // Whatever is ordered after the new read is ordered after this one.
      if (slot < 0) {
        slot = i;
      } else {
        a = Acc{};
      }
    }
  }
  // All slots hold reads at the same time as this one: 0 stays the first, 1 is of another warp, 2 of the same
  // warp.
  if (slot < 0) slot = (c.reads[0].thread ^ me.thread) >> 5 ? 1 : 2;
  c.reads[slot] = me;
}

void Touch(const Thread& t, const char* p, size_t bytes, bool read, bool write, const Acc& me) {
  Region& r = shared.Has(p) ? shared : device;
  if (!r.Has(p)) return TouchHost(t, p, bytes, write, me);
  const char* action = write ? "write" : "read";
  const size_t first = static_cast<size_t>(p - r.base) / 2,
               last = (static_cast<size_t>(p - r.base) + bytes + 1) / 2;
  for (size_t i = first; i < last; ++i) {
    State& state = r.state[i];
    const char* at = r.base + 2 * i;
    if (state != State::kInitialized) {
      if (state == State::kFree) {
        Fail("out-of-bounds %s of %zu bytes, %s, at %s", action, bytes, Place(r, at).c_str(),
             WhereName(me.where).c_str());
      }
      if (state == State::kInFlight || (state == State::kPinned && write)) {
        Fail("%s of %s at %s while an asynchronous copy %s it is in flight", action, Place(r, at).c_str(),
             WhereName(me.where).c_str(), state == State::kInFlight ? "into" : "from");
      }
      if (state == State::kAllocated && read) {
        Fail("read of uninitialised %s at %s", Place(r, at).c_str(), WhereName(me.where).c_str());
      }
    }
    Cell& c = r.cells[i];
    if (me.async && r.shared && !write && !c.write.async && c.write.sequence == group->sequence &&
        group->threads[c.write.thread].proxy_fence < c.write.time) {
      Fail("the async proxy reads %s at %s, written at %s with no fence_proxy_async by the writer",
           Place(r, at).c_str(), WhereName(me.where).c_str(), WhereName(c.write.where).c_str());
    }
    if (bytes > 1) {  // single bytes share a cell
      const auto clashes = [&](const Acc& a, bool a_writes) {
        return a.sequence != 0 && !(r.shared && a.sequence != me.sequence) && !(a.atomic && me.atomic) &&
               !Ordered(a, a_writes, t);
      };
      if (clashes(c.write, true)) ReportRace(r, at, c.write, true, me, write);
      if (write) {
        for (const Acc& a : c.reads) {
          if (clashes(a, false)) ReportRace(r, at, a, false, me, true);
        }
      }
    }
    if (write) {
      if (state == State::kAllocated) state = State::kInitialized;
      c.write = me;
      c.reads[0] = c.reads[1] = c.reads[2] = Acc{};
    } else {
      RecordRead(c, me, t);
    }
  }
}

// a = max(a, b) and a = max(a, x), elementwise: what a release or an acquire costs, for every thread of the
// group.
#define CAROUSEL_MAX_BODY \
  for (size_t i = 0; i < n; ++i) a[i] = std::max(a[i], b[i]);
#define CAROUSEL_AT_LEAST_BODY \
  for (size_t i = 0; i < n; ++i) a[i] = std::max(a[i], x);
void MaxBase(uint32_t* a, const uint32_t* b, size_t n) { CAROUSEL_MAX_BODY }
void AtLeastBase(uint32_t* a, uint32_t x, size_t n) { CAROUSEL_AT_LEAST_BODY }
#ifdef __x86_64__
__attribute__((target("avx2"))) void MaxAvx2(uint32_t* a, const uint32_t* b, size_t n) { CAROUSEL_MAX_BODY }
__attribute__((target("avx2"))) void AtLeastAvx2(uint32_t* a, uint32_t x, size_t n) { CAROUSEL_AT_LEAST_BODY }
const bool avx2 = __builtin_cpu_supports("avx2");
const auto max_into = avx2 ? MaxAvx2 : MaxBase;
const auto at_least = avx2 ? AtLeastAvx2 : AtLeastBase;
#else
const auto max_into = MaxBase;
const auto at_least = AtLeastBase;
#endif

void Join(Clock& a, const Clock& b) {
  if (a.size() < b.size()) a.resize(b.size());
  max_into(a.data(), b.data(), b.size());
}
// Joins what t knows now: clock, one of t's, and what barriers of all, of the block and of the warp say.
void JoinKnown(Clock& a, const Thread& t, const Clock& clock) {
  if (a.size() < group->num_threads) a.resize(group->num_threads);
  Join(a, clock);
  const Block& block = *t.block;
  uint32_t* const of_block = a.data() + block.rank * block.num_threads;
  if (group->base) at_least(a.data(), group->base - 1, group->num_threads);
  if (block.base) at_least(of_block, block.base - 1, block.num_threads);
  if (const uint32_t base = block.warp_base[t.warp])
    at_least(of_block + t.warp * 32, base - 1, std::min(32u, block.num_threads - t.warp * 32));
  a[t.index] = group->now;
}
void JoinForeign(std::map<uint32_t, Clock>& a, const std::map<uint32_t, Clock>& b) {
  for (const auto& [sequence, clock] : b) Join(a[sequence], clock);
}

[[gnu::constructor]] void FindImage() {
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void*) {
        if (!program_base) program_base = reinterpret_cast<char*>(info->dlpi_addr);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
          char* low = reinterpret_cast<char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
          image.emplace_back(low, low + info->dlpi_phdr[i].p_memsz);
        }
        return 0;
      },
      nullptr);
}
}  // namespace

void KernelAccess(const volatile void* p, size_t bytes, size_t alignment, bool read, bool write, bool atomic,
                  void* pc) {
  if (!self || inside_emulation) return;
  const Thread& t = *Current();
  const InEmulation inside;
  const uint32_t where = static_cast<uint32_t>(static_cast<char*>(pc) - program_base) & ~kIsLoc;
  const char* const begin = static_cast<const char*>(const_cast<const void*>(p));
  if (reinterpret_cast<uintptr_t>(begin) % alignment != 0 && (shared.Has(begin) || device.Has(begin))) {
    Fail("misaligned access of %zu bytes at %s: the address is not a multiple of %zu", bytes,
         WhereName(where).c_str(), alignment);
  }
  Touch(t, begin, bytes, read, write,
        {group->sequence, group->now, where, static_cast<uint16_t>(t.index), atomic, 0});
}

void SetState(const void* p, size_t bytes, State state) {
  const char* begin = static_cast<const char*>(p);
  if (!device.base && device_base) device.Map(device_base, kDeviceBytes);
  Region& r = shared.Has(begin) ? shared : device;
  if (bytes == 0 || !r.Has(begin)) return;
  const size_t first = static_cast<size_t>(begin - r.base) / 2;
  const size_t last = (static_cast<size_t>(begin - r.base) + bytes + 1) / 2;
  std::memset(static_cast<void*>(r.state + first), static_cast<int>(state), last - first);
}
bool IsInitialized(const void* p, size_t bytes) {
  const char* begin = static_cast<const char*>(p);
  if (bytes == 0 || !device.Has(begin)) return true;
  const size_t first = static_cast<size_t>(begin - device.base) / 2;
  const size_t last = (static_cast<size_t>(begin - device.base) + bytes + 1) / 2;
  return std::all_of(device.state + first, device.state + last,
                     [](State s) { return s == State::kInitialized; });
}
void Access(const void* p, size_t bytes, bool write, bool async_proxy, const Loc& loc) {
  const Thread& t = *Current();
  static thread_local size_t at = 0;  // of the last access: most often the next one's, too
  if (at >= locs.size() || !SameLoc(locs[at], loc)) {
    at = std::find_if(locs.begin(), locs.end(), [&](const Loc& x) { return SameLoc(x, loc); }) - locs.begin();
    if (at == locs.size()) locs.push_back(loc);
  }
  Touch(t, static_cast<const char*>(p), bytes, !write, write,
        {group->sequence, group->now, kIsLoc | static_cast<uint32_t>(at), static_cast<uint16_t>(t.index), 0,
         async_proxy});
}

void LaunchBegin() { global_keys.clear(); }
void GroupBegin(Group& g) {
  local_keys.clear();
  g.foreign.clear();
  if (shared.base != g.shared || shared.bytes < g.num_blocks * kSharedStride) {
    shared.Map(g.shared, g.num_blocks * kSharedStride);
  }
}

void BlockBarrier(Block& b) {
  Thread* const end = b.threads + b.num_threads;
  if (std::any_of(b.threads, end, [](const Thread& t) { return t.clock_dirty; })) {
    Clock all, weak;
    for (Thread* t = b.threads; t != end; ++t) {
      Join(all, t->clock);
      Join(weak, t->weak_clock);
    }
    for (Thread* t = b.threads; t != end; ++t) {
      JoinForeign(b.foreign, t->foreign);
      t->foreign.clear();
      t->clock = all;
      t->weak_clock = weak;
      t->clock_dirty = t->warp_dirty = false;
    }
  }
  b.base = ++group->now;
}
void GroupBarrier(Group& g) {
  for (unsigned i = 0; i < g.num_threads; ++i) {
    Thread& t = g.threads[i];
    JoinForeign(g.foreign, t.foreign);
    t.foreign.clear();
    t.clock.clear();
    t.weak_clock.clear();
    t.clock_dirty = t.warp_dirty = false;
  }
  for (unsigned i = 0; i < g.num_blocks; ++i) JoinForeign(g.foreign, g.blocks[i].foreign);
  g.base = ++g.now;
}
void WarpBarrier(Thread** lanes, unsigned mask) {
  Thread* any = lanes[__builtin_ctz(mask)];
  const unsigned in_warp = std::min(32u, any->block->num_threads - any->warp * 32);
  const bool full = static_cast<unsigned>(__builtin_popcount(mask)) == in_warp;
  bool dirty = false;
  for (unsigned l = 0; l < 32; ++l) {
    if (mask >> l & 1) dirty |= lanes[l]->warp_dirty;
  }
  if (!full || dirty) {
    Clock all, weak;
    std::map<uint32_t, Clock> foreign;
    for (unsigned l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      Thread& t = *lanes[l];
      full ? Join(all, t.clock) : JoinKnown(all, t, t.clock);
      full ? Join(weak, t.weak_clock) : JoinKnown(weak, t, t.weak_clock);
      JoinForeign(foreign, lanes[l]->foreign);
    }
    for (unsigned l = 0; l < 32; ++l) {
      if (!(mask >> l & 1)) continue;
      lanes[l]->clock = all;
      lanes[l]->weak_clock = weak;
      lanes[l]->foreign = foreign;
      lanes[l]->clock_dirty = true;
      lanes[l]->warp_dirty = !full;
    }
  }
  ++group->now;
  if (full) any->block->warp_base[any->warp] = group->now;
}
void ReleaseWeakly(Thread& t, const void* key) {
  JoinKnown(local_keys[key].weak_clock, t, t.weak_clock);
  ++group->now;
}
void Release(Thread& t, const void* key) {
  if (device.Has(static_cast<const char*>(key))) {
    std::map<uint32_t, Clock>& clocks = global_keys[key];
    JoinKnown(clocks[group->sequence], t, t.clock);
    JoinForeign(clocks, t.foreign);
    JoinForeign(clocks, t.block->foreign);
    JoinForeign(clocks, group->foreign);
  } else {
    Released& released = local_keys[key];
    JoinKnown(released.clock, t, t.clock);
    JoinKnown(released.weak_clock, t, t.weak_clock);
  }
  ++group->now;
}
void Acquire(Thread& t, const void* key) {
  if (device.Has(static_cast<const char*>(key))) {
    for (const auto& [sequence, clock] : global_keys[key]) {
      Join(sequence == group->sequence ? t.clock : t.foreign[sequence], clock);
      if (sequence == group->sequence) Join(t.weak_clock, clock);
    }
  } else {
    Join(t.clock, local_keys[key].clock);
    Join(t.weak_clock, local_keys[key].weak_clock);
  }
  t.clock.resize(group->num_threads);
  t.weak_clock.resize(group->num_threads);
  t.clock_dirty = t.warp_dirty = true;
}
}  // namespace carousel::emulator::check

#endif  // CAROUSEL_SIMT_CHECK
