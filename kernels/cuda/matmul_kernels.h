// What the library's matrix products leave to kernels of our own: sums of no terms, a bias that the library
// does not add, and products that it refuses. Every function enqueues on the stream and returns.
#pragma once
#include "kernels/cuda/matmul_engine.h"

namespace carousel::CAROUSEL_DEVICE_NS {

// c = (c if accumulate) + (bias if given), for every row of every batch.
void StartRows(const MatmulProduct& p, cudaStream_t stream);

// c = staged (+ c if accumulate) (+ bias), rounded once. `staged` is f32, (batch, M, N), contiguous; the
// product's sums are in it. c is f32 or bf16.
void FinishRows(const MatmulProduct& p, const float* staged, cudaStream_t stream);

// The whole product, any strides and alignments, by multiplications and additions in f32 (f64 for f64): slow,
// and never refused. M, N, batch > 0.
void PlainProduct(const MatmulProduct& p, cudaStream_t stream);
}  // namespace carousel::CAROUSEL_DEVICE_NS
