// LayerState: what one block carries from one segment of a sequence to the next. All zero is the start.
#pragma once
#include <vector>

#include "core/ops.h"

namespace carousel {

struct LayerState {
  MlstmState mlstm = {};  // of a block with an mLSTM mixer
  SlstmState slstm = {};  // of a block with an sLSTM mixer
  Tensor conv = {};       // of a mixer with a convolution: (B, K-1, C) wide

  // The tensors that are defined and not empty.
  std::vector<Tensor> Tensors() const {
    std::vector<Tensor> result;
    for (const Tensor& t : {mlstm.C, mlstm.n, mlstm.m, slstm.y, slstm.c, slstm.n, slstm.m, conv}) {
      if (t.defined() && t.num_elems() > 0) result.push_back(t);
    }
    return result;
  }
};
}  // namespace carousel
