// The causal convolution on every path of the CPU backend, where op cases do not reach: the state carried
// over calls, documents that begin at chosen tokens, and what must not leak from one into another.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <optional>

#include "tests/op_testing.h"

namespace carousel::testing {
namespace {
using cpu::CpuDevice;

constexpr int64_t kFilterWidths[] = {1, 2, 4, 7};

// Tensors of one sequence (B = 1) or of several of equal length.
struct Conv {
  Conv(DType compute, int64_t B, int64_t T, int64_t C, int64_t K)
      : shape{.B = B, .T = T, .C = C, .K = K},
        x(compute, B * T, C),
        weight(compute, C, K),
        bias(WideOf(compute), 1, C),
        initial(WideOf(compute), B * (K - 1), C),
        last(WideOf(compute), B * (K - 1), C),
        y(compute, B * T, C),
        dy(compute, B * T, C),
        dlast(WideOf(compute), B * (K - 1), C),
        dx(compute, B * T, C),
        dinitial(WideOf(compute), B * (K - 1), C),
        dweight(WideOf(compute), C, K),
        dbias(WideOf(compute), 1, C),
        reset(static_cast<size_t>(B * T)) {
    x.FillRandom(1);
    weight.FillRandom(2);
    bias.FillRandom(3);
    initial.FillRandom(4);
    dy.FillRandom(5);
    dlast.FillRandom(6);
    dweight.Fill(0);
    dbias.Fill(0);
  }
  Tensor State(const Matrix& m) const {
    return Tensor(m.t().data, m.t().dtype, {shape.B, shape.K - 1, shape.C});
  }
  Tensor Resets() { return Tensor(reset.data(), DType::kU8, {shape.B * shape.T}); }
  void Forward(Ops& ops) {
    ops.CausalConvForward({.y = y.t(),
                           .last = State(last),
                           .x = x.t(),
                           .weight = weight.t(),
                           .bias = bias.As({shape.C}),
                           .reset = Resets(),
                           .initial = with_initial ? State(initial) : Tensor(),
                           .shape = shape});
  }
  void Backward(Ops& ops) {
    ops.CausalConvBackward({.dx = dx.t(),
                            .dweight = dweight.t(),
                            .dbias = dbias.As({shape.C}),
                            .dinitial = State(dinitial),
                            .dy = dy.t(),
                            .dlast = State(dlast),
                            .x = x.t(),
                            .weight = weight.t(),
                            .bias = bias.As({shape.C}),
                            .reset = Resets(),
                            .initial = with_initial ? State(initial) : Tensor(),
                            .shape = shape});
  }
  // Rows [begin, begin + count) of sequence 0 as a call of its own: the inputs of this one, other outputs.
  Conv Part(int64_t begin, int64_t count) const {
    Conv part(x.t().dtype, 1, count, shape.C, shape.K);
    for (int64_t t = 0; t < count; ++t) {
      part.reset[t] = reset[begin + t];
      for (int64_t c = 0; c < shape.C; ++c) {
        part.x.Set(t, c, x.Get(begin + t, c));
        part.dy.Set(t, c, dy.Get(begin + t, c));
      }
    }
    return part;
  }

  CausalConvShape shape;
  Matrix x, weight, bias, initial, last, y, dy, dlast, dx, dinitial, dweight, dbias;
  std::vector<uint8_t> reset;
  bool with_initial = true;
};
void Copy(Matrix& to, const Matrix& from) {
  for (int64_t r = 0; r < to.t().dim[0]; ++r) {
    for (int64_t c = 0; c < to.t().dim[1]; ++c) to.Set(r, c, from.Get(r, c));
  }
}
void ExpectEqualBits(const Matrix& got, int64_t got_row, const Matrix& want, int64_t want_row, int64_t rows,
                     const char* what) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < got.t().dim[1]; ++c) {
      ASSERT_EQ(got.Get(got_row + r, c), want.Get(want_row + r, c))
          << what << " row " << r << " column " << c;
    }
  }
}
// Equal but for the rounding of `terms` sums of values of the size of `magnitude`, and of the result.
void ExpectNear(const Matrix& got, int64_t got_row, const Matrix& want, int64_t want_row, int64_t rows,
                double terms, const std::string& what) {
  const DType dtype = got.t().dtype;
  const double rounding = dtype == DType::kBF16 ? 0x1p-8 : 0;
  const double epsilon = (dtype == DType::kF64 ? 0x1p-52 : 0x1p-23) * 4 * terms;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < got.t().dim[1]; ++c) {
      const double a = got.Get(got_row + r, c), b = want.Get(want_row + r, c);
      ASSERT_NEAR(a, b, epsilon + rounding * std::abs(b)) << what << " row " << r << " column " << c;
    }
  }
}
// Calls body(path, ops, K) for every path and every width of the filter.
template <class Body>
void ForEveryPath(Body body) {
  for (const OpPath& path : AllOpPaths()) {
    CpuDevice device(path.options);
    for (const int64_t K : kFilterWidths) {
      SCOPED_TRACE(path.name + ", K = " + std::to_string(K));
      body(path.compute, device.ops(), K);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

TEST(CausalConv, SegmentsThatCarryTheStateEqualOneCallBitForBit) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    for (const std::vector<int64_t>& lengths :
         {std::vector<int64_t>(29, 1), std::vector<int64_t>{3, 1, 2, 15, 1, 7}, {28, 1}, {2, 27}}) {
      Conv whole(compute, 1, 29, 37, K);
      for (const int64_t t : {4, 6, 20}) whole.reset[t] = 1;
      whole.Forward(ops);
      Matrix state = whole.initial;
      int64_t begin = 0;
      for (const int64_t length : lengths) {
        Conv part = whole.Part(begin, length);
        ops.CausalConvForward({.y = part.y.t(),
                               .last = part.State(state),  // in place
                               .x = part.x.t(),
                               .weight = part.weight.t(),
                               .bias = part.bias.As({37}),
                               .reset = part.Resets(),
                               .initial = part.State(state),
                               .shape = part.shape});
        ASSERT_NO_FATAL_FAILURE(ExpectEqualBits(part.y, 0, whole.y, begin, length, "y"));
        begin += length;
      }
      EXPECT_EQ(state, whole.last);
    }
  });
}

TEST(CausalConv, GradientsChainedOverSegmentsEqualThoseOfOneCall) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    Conv whole(compute, 1, 26, 19, K);
    whole.reset[21] = 1;
    whole.Backward(ops);
    for (const int64_t cut : {1, 3, 13, 25}) {
      Conv head = whole.Part(0, cut), tail = whole.Part(cut, 26 - cut);
      head.Forward(ops);
      Copy(tail.initial, head.last);
      tail.Backward(ops);
      Copy(head.dlast, tail.dinitial);
      Copy(head.dweight, tail.dweight);  // sums go on
      Copy(head.dbias, tail.dbias);
      head.Backward(ops);
      ASSERT_NO_FATAL_FAILURE(ExpectNear(head.dx, 0, whole.dx, 0, cut, 16, "dx"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(tail.dx, 0, whole.dx, cut, 26 - cut, 16, "dx of the tail"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(head.dinitial, 0, whole.dinitial, 0, K - 1, 16, "dinitial"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(head.dweight, 0, whole.dweight, 0, 19, 64, "dweight"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(head.dbias, 0, whole.dbias, 0, 1, 64, "dbias"));
    }
  });
}

TEST(CausalConv, PackedDocumentsEqualSeparateDocuments) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    // several documents within the filter's width, at the start, in the middle and at the end
    const std::vector<int64_t> lengths = {1, 2, 1, 5, 17, 1, 3, 9, 1, 1};
    Conv packed(compute, 1, 41, 33, K);
    int64_t begin = 0;
    for (const int64_t length : lengths) {
      packed.reset[begin] = 1;
      begin += length;
    }
    packed.Forward(ops);
    packed.Backward(ops);
    Matrix dweight(WideOf(compute), 33, K), dbias(WideOf(compute), 1, 33);
    dweight.Fill(0);
    dbias.Fill(0);
    begin = 0;
    for (const int64_t length : lengths) {
      Conv document = packed.Part(begin, length);
      document.with_initial = false;
      document.reset[0] = 0;
      const bool is_last = begin + length == 41;
      if (!is_last) document.dlast.Fill(0);
      document.Forward(ops);
      Copy(document.dweight, dweight);
      Copy(document.dbias, dbias);
      document.Backward(ops);
      Copy(dweight, document.dweight);
      Copy(dbias, document.dbias);
      ASSERT_NO_FATAL_FAILURE(ExpectEqualBits(document.y, 0, packed.y, begin, length, "y"));
      ASSERT_NO_FATAL_FAILURE(ExpectNear(document.dx, 0, packed.dx, begin, length, 16, "dx"));
      if (is_last) {
        EXPECT_EQ(document.last, packed.last);
      }
      begin += length;
    }
    ASSERT_NO_FATAL_FAILURE(ExpectNear(dweight, 0, packed.dweight, 0, 33, 64, "dweight"));
    ASSERT_NO_FATAL_FAILURE(ExpectNear(dbias, 0, packed.dbias, 0, 1, 64, "dbias"));
  });
}

// What a rank of the sequence axis needs before and after its own work: only the ends of the sequences.
TEST(CausalConv, TheStateOrItsGradientAloneEqualsThatOfTheWholeCall) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    for (const int64_t T : {1, 2, 3, 29}) {
      for (const std::vector<int64_t>& resets :
           {std::vector<int64_t>{}, {0}, {1, 2}, {T - 1, 2 * T}, {T + 2, 3 * T - 2}}) {
        Conv whole(compute, 3, T, 37, K), alone(compute, 3, T, 37, K);
        for (const int64_t row : resets) {
          if (row >= 0 && row < 3 * T) whole.reset[row] = alone.reset[row] = 1;
        }
        whole.Forward(ops);
        ops.CausalConvForward({.y = {},
                               .last = alone.State(alone.last),
                               .x = alone.x.t(),
                               .weight = alone.weight.t(),
                               .bias = alone.bias.As({37}),
                               .reset = alone.Resets(),
                               .initial = alone.State(alone.initial),
                               .shape = alone.shape});
        EXPECT_EQ(alone.last, whole.last) << "T " << T;
        whole.Backward(ops);
        ops.CausalConvBackward({.dx = {},
                                .dweight = {},
                                .dinitial = alone.State(alone.dinitial),
                                .dy = alone.dy.t(),
                                .dlast = alone.State(alone.dlast),
                                .x = alone.x.t(),
                                .weight = alone.weight.t(),
                                .bias = alone.bias.As({37}),
                                .reset = alone.Resets(),
                                .initial = alone.State(alone.initial),
                                .shape = alone.shape});
        ASSERT_NO_FATAL_FAILURE(ExpectNear(alone.dinitial, 0, whole.dinitial, 0, 3 * (K - 1), 16,
                                           "dinitial, T " + std::to_string(T)));
      }
    }
  });
}

TEST(CausalConv, TheInitialStateIsNotReadPastAReset) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    // a document begins at token `start`: from there on, a state of NaN changes no bit
    for (const int64_t start : {0, 1, 2, 5}) {
      Conv plain(compute, 1, 12, 18, K);
      plain.reset[start] = 1;
      plain.with_initial = false;
      Conv poisoned = plain.Part(0, 12);
      poisoned.initial.Fill(std::numeric_limits<double>::quiet_NaN());
      plain.Forward(ops);
      poisoned.Forward(ops);
      ASSERT_NO_FATAL_FAILURE(ExpectEqualBits(poisoned.y, start, plain.y, start, 12 - start, "y"));
      EXPECT_EQ(poisoned.last, plain.last);
      if (K > 1 && start > 0) {
        EXPECT_TRUE(std::isnan(poisoned.y.Get(0, 0))) << "the state before it is read";
      }
      // with a state, what is before the reset has a gradient and nothing else has
      Conv with_state = plain.Part(0, 12);
      with_state.Backward(ops);
      for (int64_t i = 0; i < K - 1; ++i) {
        // entry i is read by tokens 0 .. i
        for (int64_t c = 0; c < 18; ++c) EXPECT_EQ(with_state.dinitial.Get(i, c) != 0, start > 0) << i;
      }
      plain.Backward(ops);
      ASSERT_NO_FATAL_FAILURE(ExpectNear(with_state.dx, start, plain.dx, start, 12 - start, 16, "dx"));
    }
  });
}

TEST(CausalConv, AnOmittedInitialStateIsZeroAndHasAGradient) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    for (const int64_t T : {2, 15}) {
      Conv omitted(compute, 2, T, 21, K), zero(compute, 2, T, 21, K);
      omitted.with_initial = false;
      zero.initial.Fill(0);
      for (Conv* conv : {&omitted, &zero}) {
        conv->Forward(ops);
        conv->Backward(ops);
      }
      EXPECT_EQ(omitted.y, zero.y);
      EXPECT_EQ(omitted.last, zero.last);
      EXPECT_EQ(omitted.dx, zero.dx);
      EXPECT_EQ(omitted.dinitial, zero.dinitial);
      if (K > 1) {
        EXPECT_NE(omitted.dinitial.Get(K - 2, 0), 0);
      }
    }
  });
}

TEST(CausalConv, LastHoldsTheDocumentsInputsAndZerosBeforeThem) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    for (const int64_t T : {1, 3, 20}) {
      for (int64_t age = 0; age < std::min(T, K + 1); ++age) {  // the document has age + 1 tokens
        Conv conv(compute, 1, T, 11, K);
        conv.reset[T - 1 - age] = 1;
        conv.Forward(ops);
        for (int64_t i = 0; i < K - 1; ++i) {
          const int64_t back = K - 2 - i;  // before the last token
          for (int64_t c = 0; c < 11; ++c) {
            ASSERT_EQ(conv.last.Get(i, c), back <= age ? conv.x.Get(T - 1 - back, c) : 0)
                << "T = " << T << ", document of " << age + 1 << ", entry " << i;
          }
        }
        // and a gradient of the zeros goes nowhere: dx is that of a call whose dlast has zeros there
        Conv masked = conv.Part(0, T);
        for (int64_t i = 0; i < K - 2 - age; ++i) {
          for (int64_t c = 0; c < 11; ++c) masked.dlast.Set(i, c, 0);
        }
        conv.Backward(ops);
        masked.Backward(ops);
        EXPECT_EQ(conv.dx, masked.dx);
        EXPECT_EQ(conv.dinitial, masked.dinitial);
      }
    }
  });
}

TEST(CausalConv, SequencesOfABatchDoNotTouchEachOther) {
  ForEveryPath([](DType compute, Ops& ops, int64_t K) {
    Conv batch(compute, 3, 9, 13, K);
    batch.Forward(ops);
    batch.Backward(ops);
    // the middle one alone
    Conv alone = batch.Part(9, 9);
    for (int64_t i = 0; i < K - 1; ++i) {
      for (int64_t c = 0; c < 13; ++c) {
        alone.initial.Set(i, c, batch.initial.Get(K - 1 + i, c));
        alone.dlast.Set(i, c, batch.dlast.Get(K - 1 + i, c));
      }
    }
    alone.Forward(ops);
    alone.Backward(ops);
    ASSERT_NO_FATAL_FAILURE(ExpectEqualBits(alone.y, 0, batch.y, 9, 9, "y"));
    ASSERT_NO_FATAL_FAILURE(ExpectEqualBits(alone.last, 0, batch.last, K - 1, K - 1, "last"));
    ASSERT_NO_FATAL_FAILURE(ExpectNear(alone.dx, 0, batch.dx, 9, 9, 16, "dx"));
    ASSERT_NO_FATAL_FAILURE(ExpectNear(alone.dinitial, 0, batch.dinitial, K - 1, K - 1, 16, "dinitial"));
  });
}
}  // namespace
}  // namespace carousel::testing
