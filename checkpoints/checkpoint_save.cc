// SaveCheckpoint: the phases of a save one after the other, while the caller waits.
#include "absl/status/status.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/save_attempt.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {

absl::Status SaveCheckpoint(const SaveRequest& request, int64_t* num_bytes) {
  CAROUSEL_CHECK_MSG(request.copier == nullptr, "SaveCheckpoint reads the slices itself");
  SaveAttempt attempt(request);
  CAROUSEL_RETURN_IF_ERROR(attempt.Plan());
  if (num_bytes != nullptr) *num_bytes = attempt.num_bytes();
  CAROUSEL_RETURN_IF_ERROR(attempt.Begin(attempt.rank() == 0 ? attempt.Prepare() : std::string()));
  {
    DirectSource source(request.slices);
    attempt.Write(source);
  }
  const absl::Status voted = attempt.Vote();
  return attempt.Announce(attempt.rank() == 0 ? attempt.Complete(voted) : absl::OkStatus());
}
}  // namespace carousel
