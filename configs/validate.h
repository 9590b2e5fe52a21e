// What values a run may have. Every check adds its own problem; none stops the others.
#pragma once
#include "configs/problems.h"
#include "configs/run.pb.h"

namespace carousel {

// Each given value by itself: finite, within its range, names not empty. Returns false if it found something.
bool CheckRanges(const config::RunConfig& config, const Origins& origins, Problems* problems);

// Fields that must be given and are not.
void CheckRequired(const config::RunConfig& config, Problems* problems);

// Relations between fields: what must divide what, what must be smaller than what, sizes whose product must
// fit. REQUIRES: CheckRanges passed and ResolveDefaults ran; fields that are still unset are passed over.
void CheckRelations(const config::RunConfig& config, const Origins& origins, Problems* problems);

// What training needs and a plan does not: data. REQUIRES: ResolveDefaults ran.
void CheckForTraining(const config::RunConfig& config, const Origins& origins, Problems* problems);
}  // namespace carousel
