// From a RunSpec to the objects of a run.
#pragma once
#include "configs/run_spec.h"
#include "core/train/trainer.h"

namespace carousel {

TrainSpec MakeTrainSpec(const RunSpec& run);
}  // namespace carousel
