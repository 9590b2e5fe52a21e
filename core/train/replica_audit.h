// Whether weights that several ranks hold are the same on all of them, bit for bit. They must be: every rank
// computes the same update, or gets it from the one that does. A difference means a broken reduction, or a
// machine that computes wrongly.
#pragma once
#include "absl/status/status.h"
#include "core/comm/mesh.h"
#include "core/comm/param_sync.h"
#include "core/model/param_store.h"

namespace carousel {

// Collective over mesh.world. Compares digests of what is kept several times: along the replicas axis all
// weights that a rank keeps, along the tensor axis the parameters that are replicated on it. One exchange of
// 32 bytes per rank; where it shows a difference, others that find it. Every rank gets the same: OK, or
// DataLoss naming for each difference the parameter, the axis and the ranks of the world that are not as most
// are (with as many on either side: as the first one is).
// sync: the weights are read between its Acquire and Release; null: they are in place.
absl::Status AuditReplicas(const ParamStore& params, Device& device, ParamSync* sync, const Mesh& mesh);
}  // namespace carousel
