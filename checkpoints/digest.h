// The digest of a tensor: 64 bits that depend on the value and the place of every element and on nothing
// else. Digests of disjoint parts add up (mod 2^64) to the digest of the whole, so that any layout over files
// and ranks gives the same number, and one sum over ranks compares what is in memory with what was saved.
//
//   digest = sum over i of (mix(i) | 1) * mix(bits_i ^ kDigestSalt)   mod 2^64
//
// i: index of the element in the row-major tensor; bits_i: its bytes as an unsigned little-endian integer;
// mix: the finaliser of SplitMix64 (Steele, Lea, Flood 2014; constants of Stafford's variant 13). The factor
// (mix(i) | 1) is odd, so that a change of a single element always changes the digest. It guards against
// accidents, not against forgery.
#pragma once
#include <cstdint>

#include "core/base/dtype.h"
#include "core/train/state_visitor.h"

namespace carousel {

constexpr uint64_t kDigestSalt = 0x9e3779b97f4a7c15u;

constexpr uint64_t DigestMix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The part of the digest that elements [begin, begin + count) contribute; `data` points to element `begin`
// and need not be aligned.
uint64_t DigestRange(const void* data, DType dtype, int64_t begin, int64_t count);
// That of a slice's elements.
uint64_t DigestSlice(const StateSlice& slice);
}  // namespace carousel
