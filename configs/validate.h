// What values a run may have. Every check adds its own problem; none stops the others.
#pragma once
#include <set>
#include <string>

#include "configs/problems.h"
#include "configs/run.pb.h"

namespace carousel {

// Each given value by itself: finite, within its range, names not empty. Returns the paths of the fields that
// are wrong.
std::set<std::string> CheckRanges(const config::RunConfig& config, const Origins& origins,
                                  Problems* problems);

// Fields that must be given and are not.
void CheckRequired(const config::RunConfig& config, Problems* problems);

// Relations between fields: what must divide what, what must be smaller than what, sizes whose product must
// fit. Relations of fields in `wrong` are passed over, and so are those of fields that are unset.
// REQUIRES: the fields in `wrong` were cleared, and ResolveDefaults ran.
void CheckRelations(const config::RunConfig& config, const Origins& origins,
                    const std::set<std::string>& wrong, Problems* problems);

// What training needs and a plan does not: data. REQUIRES: ResolveDefaults ran.
void CheckForTraining(const config::RunConfig& config, const Origins& origins, Problems* problems);
}  // namespace carousel
