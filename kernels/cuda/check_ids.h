// Ids that come from outside: on a device they are checked there, because the host does not wait for them.
#pragma once
#include "kernels/cuda/context.h"

namespace carousel::CAROUSEL_DEVICE_NS {

enum class IdKind { kToken, kTarget };

// Enqueues a check of ids (N): 0 <= id < V for tokens, id < V for targets (negative: no target). A bad id is
// printed and ends the kernel with an error, so that nothing enqueued after it runs, and the next call that
// waits for the stream reports it. Works in graphs.
void CheckIds(Context& context, const int32_t* ids, int64_t N, int64_t V, IdKind kind);
}  // namespace carousel::CAROUSEL_DEVICE_NS
