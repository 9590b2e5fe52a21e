#include "checkpoints/model_digests.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoints/digest.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr size_t kMaxReported = 20;

int64_t NumElems(const Param& param) {
  int64_t count = 1;
  for (const int64_t size : param.shape) count *= size;
  return count;
}

// The digest of a parameter converted to `dtype`, and that of the values before, as `stored`.
struct Digests {
  uint64_t converted = 0, stored = 0;
};
absl::StatusOr<Digests> ReadDigests(const WeightSource& source, const Param& param, DType stored, DType dtype,
                                    const std::function<void(int64_t bytes)>& progress) {
  Digests digests;
  const int64_t num_elems = NumElems(param), piece_elems = std::min(num_elems, kWeightPieceElems);
  std::vector<std::byte> values(static_cast<size_t>(piece_elems * SizeOf(stored)));
  std::vector<std::byte> converted(stored == dtype ? 0 : static_cast<size_t>(piece_elems * SizeOf(dtype)));
  for (int64_t begin = 0; begin < num_elems; begin += piece_elems) {
    const int64_t count = std::min(piece_elems, num_elems - begin);
    CAROUSEL_RETURN_IF_ERROR(source.Read(param.name, begin, count, stored, values.data()));
    digests.stored += DigestRange(values.data(), stored, begin, count);
    if (stored != dtype) {
      ConvertElems(dtype, converted.data(), stored, values.data(), count);
      digests.converted += DigestRange(converted.data(), dtype, begin, count);
    }
    if (progress) progress(count * SizeOf(dtype));
  }
  if (stored == dtype) digests.converted = digests.stored;
  return digests;
}

std::map<std::string, const Param*> ByName(const WeightSource& source, const std::set<std::string>& skip) {
  std::map<std::string, const Param*> params;
  for (const Param& param : source.params()) {
    if (skip.count(param.name) == 0) params[param.name] = &param;
  }
  return params;
}
}  // namespace

absl::StatusOr<int64_t> CompareDigests(const DigestComparison& comparison) {
  const DType dtype = comparison.dtype;
  const std::map<std::string, const Param*> written = ByName(*comparison.written, comparison.skip),
                                            expected = ByName(*comparison.expected, comparison.skip);
  std::vector<std::string> problems;
  for (const auto& [name, param] : expected) {
    if (written.count(name) == 0) {
      problems.push_back(absl::StrCat("\"", name, "\" is not in ", comparison.written_name));
    }
  }
  int64_t bytes = 0;
  const auto advance = [&](int64_t n) {
    bytes += n;
    if (comparison.progress) comparison.progress(bytes);
  };
  for (const auto& [name, param] : written) {
    const auto copy = comparison.copies.find(name);
    const auto found = expected.find(copy == comparison.copies.end() ? name : copy->second);
    if (found == expected.end()) {
      problems.push_back(absl::StrCat("\"", name, "\" is not in ", comparison.expected_name));
      continue;
    }
    const Param& original = *found->second;
    if (original.shape != param->shape) {
      problems.push_back(absl::StrCat("\"", name, "\" has shape ", ShapeText(param->shape), " and in ",
                                      comparison.expected_name, " ", ShapeText(original.shape)));
      continue;
    }
    CAROUSEL_ASSIGN_OR_RETURN(const Digests there,
                              ReadDigests(*comparison.written, *param, dtype, dtype, advance));
    const std::optional<StatedDigest> stated = comparison.expected->Stated(original.name);
    Digests wanted;
    if (stated.has_value() && stated->dtype == dtype) {
      wanted.converted = wanted.stored = stated->digest;
    } else {
      const DType stored = stated.has_value() ? stated->dtype : dtype;
      CAROUSEL_ASSIGN_OR_RETURN(wanted, ReadDigests(*comparison.expected, original, stored, dtype, nullptr));
    }
    if (stated.has_value() && wanted.stored != stated->digest) {
      problems.push_back(absl::StrFormat("\"%s\" of %s has digest %016x and was saved with %016x",
                                         original.name, comparison.expected_name, wanted.stored,
                                         stated->digest));
    } else if (there.converted != wanted.converted) {
      problems.push_back(absl::StrFormat("\"%s\" has digest %016x and in %s %016x", name, there.converted,
                                         comparison.expected_name, wanted.converted));
    }
  }
  if (problems.empty()) return static_cast<int64_t>(written.size());
  const size_t total = problems.size();
  if (total > kMaxReported) {
    problems.resize(kMaxReported);
    problems.push_back(absl::StrCat("... ", total - kMaxReported, " more"));
  }
  return absl::DataLossError(absl::StrCat(comparison.written_name, " and ", comparison.expected_name,
                                          " do not hold the same values; do not use what was written\n  ",
                                          absl::StrJoin(problems, "\n  ")));
}
}  // namespace carousel
