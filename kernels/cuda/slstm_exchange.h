// slstm_exchange.h - how the blocks of a cluster hand one another what the next product of the sLSTM reads (y
// forward, draw backward): asynchronous stores whose bytes the receiver's mbarrier counts.
//
// Item i = 0, 1, .. of a call lies in tile i % 2 of every block. For each item every warp of every block
//     sends its part to all blocks, its own among them,
//     waits until all of the item has come (mbarrier of the tile),
//     reads it: its part of the product, which it adds up with the warps of its block that have the others,
//     and computes from these sums its part of the next item.
//
// Two tiles are enough, and no barrier of the cluster stands between two items:
// 1. A part of item i + 2 goes where item i is. The warp that sends it has all of item i + 1, so every warp
//    had sent its part of that, which is computed from sums over item i: all reads of item i are over. What a
//    warp sends depends on the values of every warp that shares its sums, so this holds for each of them.
// 2. So is every read of anything else that parts of item i + 1 are computed from: after the wait for it a
//    warp may write there, if the readers are warps of its own block. A lane that leaves sending to others is
//    in step with them (__syncwarp) before they send. Nothing but the item itself is read by others because
//    of the wait: an asynchronous store does not release its thread's other writes.
// 3. By the same argument no byte of item i + 2 comes before the tile's phase of item i has ended: each warp
//    of the receiver sends item i + 1 after it has waited for item i. The phase of item i + 2 ends only after
//    every warp of the block has sent its part of that item, hence left the wait for item i: none misses it.
// 4. Bytes may come before Expect of their phase. The phase does not end without that arrival, and the count
//    of bytes may be negative.
// 5. A block that has waited for the last item that is sent has got all that ever comes to it, and what it
//    has sent does not need it any more (the sources are registers): it may exit.
#pragma once
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kSlstmExchangeBytes = 16;  // of shared memory

// kBytes: of an item. The blocks have these objects at the same place of their shared memory.
template <int kBlocks, int kBytes>
class SlstmExchange {
 public:
  static_assert(kBytes < 1 << 20);  // what an mbarrier can count

  // memory: kSlstmExchangeBytes of shared memory, on a multiple of 8.
  __device__ explicit SlstmExchange(unsigned char* memory) : full_(reinterpret_cast<uint64_t*>(memory)) {}

  // Once, by all threads; a barrier of the cluster must follow before anything is sent.
  __device__ void Start() const {
    if (threadIdx.x != 0) return;
    for (int tile = 0; tile < 2; ++tile) gpu::mbar_init(full_ + tile, 1);
    gpu::fence_mbar_init();
    for (int tile = 0; tile < 2; ++tile) gpu::mbar_arrive_expect_tx(full_ + tile, kBytes);
  }
  // Writes to the same place of block `rank`. place: of the caller's tile of this item, on a multiple of 16.
  __device__ void Send(unsigned item, unsigned char* place, uint4 value, int rank) const {
    gpu::st_async(reinterpret_cast<uint4*>(place), value, full_ + item % 2, static_cast<unsigned>(rank));
  }
  // Waits until all of the item is in the block's tile. The bytes are in the block's own memory and come with
  // the phase, so the wait need not acquire from the cluster (which would empty the first cache).
  __device__ void Receive(unsigned item) const { gpu::mbar_wait(full_ + item % 2, item / 2 & 1); }
  // After Receive(item), once: gets the tile's barrier ready for item + 2.
  __device__ void Expect(unsigned item) const {
    if (threadIdx.x == 0) gpu::mbar_arrive_expect_tx(full_ + item % 2, kBytes);
  }

 private:
  uint64_t* const full_;  // of each tile
};
}  // namespace carousel::CAROUSEL_DEVICE_NS
