// Reads and writes of V neighbouring elements by one thread, as accesses of 16 bytes where their size allows,
// with conversion between the type in memory and the type of the arithmetic.
//
//   constexpr int V = kVecElems<T>;       // 8 for bf16, 4 for f32, 2 for f64
//   float x[V];
//   Load(x, from + i);                    // from: bfloat16*, float* or double*
//   Store(to + i, x);                     // rounds to nearest even
//
// REQUIRES: an address is a multiple of min(16, V * size of an element) bytes; with V = 1 every address is
// good. Vectorisable() says on the host whether V elements at a time may be used for a tensor; a kernel that
// takes V as a template argument has an instance with V = 1 for all other tensors.
#pragma once
#include "core/tensor.h"
#include "kernels/cuda/device.h"

namespace carousel::CAROUSEL_DEVICE_NS {

constexpr int kAccessBytes = 16;
// Elements of T in one access.
template <class T>
constexpr int kVecElems = kAccessBytes / static_cast<int>(sizeof(T));

namespace internal {
// One access of 4, 8 or 16 bytes, as CUDA's vector types, which compilers never split.
template <int kWords>
struct WordsOf;
template <>
struct WordsOf<1> {
  using type = uint32_t;
};
template <>
struct WordsOf<2> {
  using type = uint2;
};
template <>
struct WordsOf<4> {
  using type = uint4;
};
template <int kWords>
__device__ inline void LoadWords(uint32_t (&to)[kWords], const void* from) {
  constexpr int kStep = kWords % 4 == 0 ? 4 : kWords;
  static_assert(kWords % kStep == 0 && (kStep == 1 || kStep == 2 || kStep == 4));
  const auto* source = static_cast<const typename WordsOf<kStep>::type*>(from);
#pragma unroll
  for (int i = 0; i < kWords / kStep; ++i) {
    const auto words = source[i];
    memcpy(&to[i * kStep], &words, sizeof(words));
  }
}
template <int kWords>
__device__ inline void StoreWords(void* to, const uint32_t (&from)[kWords]) {
  constexpr int kStep = kWords % 4 == 0 ? 4 : kWords;
  static_assert(kWords % kStep == 0 && (kStep == 1 || kStep == 2 || kStep == 4));
  auto* target = static_cast<typename WordsOf<kStep>::type*>(to);
#pragma unroll
  for (int i = 0; i < kWords / kStep; ++i) {
    typename WordsOf<kStep>::type words;
    memcpy(&words, &from[i * kStep], sizeof(words));
    target[i] = words;
  }
}
}  // namespace internal

// to[i] = from[i], converted.
template <int V, class W, class T>
__device__ inline void Load(W (&to)[V], const T* from) {
  if constexpr (V * sizeof(T) < 4) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = gpu::convert<W>(from[i]);
  } else {
    uint32_t words[V * sizeof(T) / 4];
    internal::LoadWords(words, from);
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        const float2 pair = gpu::unpack_bf16(words[i]);
        to[2 * i] = gpu::convert<W>(pair.x);
        to[2 * i + 1] = gpu::convert<W>(pair.y);
      }
    } else {
      T values[V];
      memcpy(values, words, sizeof(values));
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = gpu::convert<W>(values[i]);
    }
  }
}
// to[i] = from[i], rounded to nearest even.
template <int V, class T, class W>
__device__ inline void Store(T* to, const W (&from)[V]) {
  if constexpr (V * sizeof(T) < 4) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = gpu::convert<T>(from[i]);
  } else {
    uint32_t words[V * sizeof(T) / 4];
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < V / 2; ++i) {
        words[i] = gpu::pack_bf16(static_cast<float>(from[2 * i]), static_cast<float>(from[2 * i + 1]));
      }
    } else {
      T values[V];
#pragma unroll
      for (int i = 0; i < V; ++i) values[i] = gpu::convert<T>(from[i]);
      memcpy(words, values, sizeof(words));
    }
    internal::StoreWords(to, words);
  }
}
// V elements as memory holds them, for values that wait in registers before they are used.
template <class T, int V>
struct Packed {
  static constexpr bool kOneElement = V * sizeof(T) < 4;
  static constexpr int kWords = kOneElement ? 1 : static_cast<int>(V * sizeof(T) / 4);
  static_assert(!kOneElement || (V == 1 && sizeof(T) == 2));

  __device__ void Read(const T* from) {
    if constexpr (kOneElement) {
      uint16_t bits;
      memcpy(&bits, from, sizeof(bits));
      words[0] = bits;
    } else {
      internal::LoadWords(words, from);
    }
  }
  template <class W>
  __device__ void Unpack(W (&to)[V]) const {
    if constexpr (sizeof(T) == 2) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        to[i] =
            gpu::convert<W>(gpu::bits_to_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u));
      }
    } else {
      T values[V];
      memcpy(values, words, sizeof(values));
#pragma unroll
      for (int i = 0; i < V; ++i) to[i] = gpu::convert<W>(values[i]);
    }
  }

  uint32_t words[kWords] = {};
};

// to[i] = from[at + i], converted; `otherwise` where `from` is null.
template <int V, class W, class T>
__device__ inline void LoadOr(W (&to)[V], const T* from, int64_t at, W otherwise) {
  if (from != nullptr) {
    Load(to, from + at);
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] = otherwise;
  }
}

// Whether every row of this tensor can be read V elements at a time from its start to its end.
inline bool Vectorisable(const Tensor& t, int64_t V) {
  const int64_t size = SizeOf(t.dtype), bytes = V * size < kAccessBytes ? V * size : kAccessBytes;
  if (reinterpret_cast<uintptr_t>(t.data) % static_cast<uintptr_t>(bytes) != 0) return false;
  if (t.rank != 2) return t.num_elems() % V == 0;
  return t.dim[1] % V == 0 && (t.dim[0] <= 1 || t.row_stride * size % bytes == 0);
}
// Of all of these; an optional tensor that was not given is no obstacle.
template <class... Tensors>
bool AllVectorisable(int64_t V, const Tensors&... tensors) {
  return ((!tensors.defined() || Vectorisable(tensors, V)) && ...);
}
}  // namespace carousel::CAROUSEL_DEVICE_NS
