// Fibers take turns: who runs next, who waits, and what is said when nobody can run.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include "kernels/simt/checker.h"
#include "kernels/simt/emulator_internal.h"
#include "kernels/simt/fiber.h"

namespace carousel::emulator {

constinit thread_local ThreadView* self = nullptr;
constinit thread_local Group* group = nullptr;
constinit thread_local Worker* worker = nullptr;

namespace {

constexpr uint64_t kMaxSpins = 50'000'000;

// Continues `to`, or the worker if null.
void Jump(Thread* to) {
  Thread* me = Current();
  self = to;
  ++worker->counts.switches;
  void** save = me ? &me->stack_pointer : &worker->main_sp;
#ifdef CAROUSEL_SIMT_ASAN
  void** fake = me ? (me->state == Thread::kDone ? nullptr : &me->fake_stack) : &worker->main_fake_stack;
  BeforeSwitch(fake, to ? to->stack : worker->main_stack,
               to ? worker->stack_bytes : worker->main_stack_bytes);
#endif
  SwitchFiber(save, to ? to->stack_pointer : worker->main_sp);
#ifdef CAROUSEL_SIMT_ASAN
  AfterSwitch(me ? me->fake_stack : worker->main_fake_stack, nullptr, nullptr);
#endif
}

Thread* Pick() {
  ReadyRing& ready = worker->ready;
  while (!ready.size()) {
    if (group->loads.empty()) return nullptr;
    CompleteBulkLoad();  // asynchronous loads land as late as possible
  }
  if (options().order == Order::kRandom) {
    if (worker->Random() % 4096 == 0) std::swap(ready[0], ready[worker->Random() % ready.size()]);
    if (!group->loads.empty() && worker->Random() % 8 == 0) CompleteBulkLoad();
  }
  return ready.Pop();
}

FixedText<3000> WaitingThreads() {
  std::map<std::string, std::pair<unsigned, std::string>> places;
  for (unsigned i = 0; i < group->num_threads; ++i) {
    const Thread& t = group->threads[i];
    const bool exited = t.state == Thread::kDone;
    auto& place =
        places[exited ? "exited" : std::string("wait in ") + t.what + " at " + LocName(t.loc).c_str()];
    if (!place.first++) place.second = ThreadName(t).c_str();
  }
  std::string text;
  for (const auto& [name, place] : places) {
    text += "\n    " + std::to_string(place.first) + " threads " + name + " (first: " + place.second + ")";
  }
  FixedText<3000> result;
  std::snprintf(result.text, sizeof result.text, "%s", text.c_str());
  return result;
}
[[noreturn]] void ReportDeadlock() { Fail("deadlock: no thread can run%s\n   ", WaitingThreads().c_str()); }

[[noreturn]] void ExitThread() {
  const check::InEmulation inside;
  Thread& t = *Current();
  Block& b = *t.block;
  for (const Collective& c : b.pending[t.warp]) {
    if (c.mask >> t.lane & 1) {
      Fail("thread exits while other lanes wait for it in %s at %s", c.kind, LocName(c.loc).c_str());
    }
  }
  if (!t.copies.empty())
    Fail("thread exits with cp.async from %s never waited for", LocName(t.copies[0].loc).c_str());
  if (!t.wgmmas.empty())
    Fail("thread exits with wgmma from %s never waited for", LocName(t.wgmmas[0].loc).c_str());
  FinishStores(t);
  if (b.barrier[0].arrived) {
    Fail("thread exits while %u threads wait in __syncthreads at %s", b.barrier[0].arrived,
         LocName(b.barrier[0].loc).c_str());
  }
  t.state = Thread::kDone;
  --b.live;
  --group->live;
  if (b.live == 0) {
    for (const BulkLoadOp& op : group->loads) {
      if (op.dst >= b.shared && op.dst < b.shared + kSharedStride)
        Fail("the block exits while what %s copies into its shared memory is under way",
             LocName(op.loc).c_str());
    }
  }
  b.exited[t.warp] |= 1u << t.lane;
  const unsigned cluster = b.rank / group->cluster_size;
  --group->cluster_live[cluster];
  if (group->cluster_barriers[cluster].arrived) {
    Fail("thread exits while %u threads of its cluster wait in cluster_sync at %s",
         group->cluster_barriers[cluster].arrived, LocName(group->cluster_barriers[cluster].loc).c_str());
  }
  if (group->grid_barrier.arrived) {
    Fail("thread exits while %u threads wait in grid_sync at %s", group->grid_barrier.arrived,
         LocName(group->grid_barrier.loc).c_str());
  }
  Thread* next = Pick();
  if (!next && group->live) {
    t.state = Thread::kWaiting;
    t.what = "exit";
    ReportDeadlock();
  }
  Jump(next);
  __builtin_unreachable();
}
}  // namespace

FixedText<96> ThreadName(const Thread& t) {
  FixedText<96> name;
  std::snprintf(name.text, sizeof name.text, "block (%u,%u,%u) thread (%u,%u,%u)", t.block_idx.x,
                t.block_idx.y, t.block_idx.z, t.thread_idx.x, t.thread_idx.y, t.thread_idx.z);
  return name;
}
FixedText<128> LocName(const Loc& loc) {
  FixedText<128> name;
  const char* const slash = std::strrchr(loc.file, '/');
  std::snprintf(name.text, sizeof name.text, "%s:%u", slash ? slash + 1 : loc.file, loc.line);
  return name;
}
bool SameLoc(const Loc& a, const Loc& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

void Fail(const char* format, ...) {
  const check::InEmulation inside;
  {
    char text[4096];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!worker || !self) throw KernelError(text);
    worker->error =
        std::string(worker->config->name) + ": " + text + "  [" + ThreadName(*Current()).c_str() + "]";
  }
  Jump(nullptr);
  __builtin_unreachable();
}

// kLifo lets one warp run ahead as far as barriers allow, kFifo interleaves the warps; kRandom changes
// between the two in bursts and now and then runs any thread.
bool WakeToFront() {
  if (options().order != Order::kRandom) return options().order == Order::kLifo;
  if (worker->Random() % 256 == 0) worker->to_front = worker->Random() % 2;
  return worker->to_front;
}
void MakeReady(Thread* t, bool front) {
  t->state = Thread::kReady;
  if (front) {
    worker->ready.PushFront(t);
  } else {
    worker->ready.PushBack(t);
  }
}
void Wait(const char* what, const Loc& loc) {
  Thread* me = Current();
  me->state = Thread::kWaiting;
  me->what = what;
  me->loc = loc;
  Thread* next = Pick();
  if (!next) ReportDeadlock();
  if (next != me) Jump(next);
}
void SpinYield() {
  const check::InEmulation inside;
  Thread* me = Current();
  // A thread that polls keeps the others from running dry, which is when loads land.
  if (!group->loads.empty() && (!worker->ready.size() || worker->spins % 64 == 63)) CompleteBulkLoad();
  if (++worker->spins > kMaxSpins) Fail("threads have polled %llu times without an end", 0ull + kMaxSpins);
  worker->ready.PushBack(me);
  Thread* next = Pick();
  if (next != me) Jump(next);
}
void CompleteBarrier(Barrier& b) {
  b.arrived = 0;
  b.sum = 0;
  const bool front = WakeToFront();
  const size_t n = b.waiters.size();
  // kRandom: any warp first
  const bool rotate = options().order == Order::kRandom && worker->Random() % 2;
  const size_t start = rotate ? worker->Random() % (n + 1) : 0;
  for (size_t i = n; i-- > 0;) {
    Thread* t = b.waiters[(i + start) % n];
    if (t != self) MakeReady(t, front);
  }
  b.waiters.clear();
}

void FiberEntry() {
#ifdef CAROUSEL_SIMT_ASAN
  const void* low;
  size_t bytes;
  AfterSwitch(nullptr, &low, &bytes);
  if (!worker->main_stack) {
    worker->main_stack = low;
    worker->main_stack_bytes = bytes;
  }
#endif
  check::LeaveEmulation();
  worker->thunk(worker->pack);
  ExitThread();
}

void RunGroup(Worker& w) {
  worker = &w;
  group = &w.group;
  w.error.clear();
  w.counts = {};
  w.to_front = w.Random() % 4 != 0;
  w.main_stack = nullptr;
  Jump(Pick());
  self = nullptr;
  group = nullptr;
  worker = nullptr;
  w.counts.blocks = w.group.num_blocks;
  if (!w.error.empty()) throw KernelError(w.error);
}
}  // namespace carousel::emulator
