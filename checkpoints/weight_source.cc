#include "checkpoints/weight_source.h"

#include <cstring>
#include <map>
#include <type_traits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/hf_names.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
template <class To, class From>
To ConvertElem(From value) {
  if constexpr (std::is_same_v<To, From>) {
    return value;
  } else if constexpr (std::is_same_v<To, bfloat16>) {
    return bfloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<From, bfloat16>) {
    return static_cast<To>(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}
}  // namespace

void ConvertElems(DType to, void* out, DType from, const void* in, int64_t count) {
  DispatchFloat(to, [&]<class To>() {
    DispatchFloat(from, [&]<class From>() {
      const std::byte* source = static_cast<const std::byte*>(in);
      std::byte* target = static_cast<std::byte*>(out);
      // Neither side need be aligned: tensors of a file begin anywhere.
      for (int64_t i = 0; i < count; ++i) {
        From value;
        std::memcpy(&value, source + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
        const To converted = ConvertElem<To>(value);
        std::memcpy(target + i * static_cast<int64_t>(sizeof(To)), &converted, sizeof(To));
      }
    });
  });
}

absl::Status FillWeights(const WeightSource& source, const std::vector<StateSlice>& slices) {
  std::map<std::string, const Param*> params;
  for (const Param& param : source.params()) params[param.name] = &param;
  std::map<std::string, std::string> problems;  // by name: a parameter may have several slices
  for (const StateSlice& slice : slices) {
    const auto found = params.find(slice.name);
    if (found == params.end()) {
      problems[slice.name] = absl::StrCat("\"", slice.name, "\" ", ShapeText(slice.shape), " is not there");
    } else if (found->second->shape != slice.shape) {
      problems[slice.name] = absl::StrCat("\"", slice.name, "\" is ", ShapeText(found->second->shape),
                                          " there and ", ShapeText(slice.shape), " in this run");
    }
  }
  if (!problems.empty()) {
    std::vector<std::string> lines;
    for (const auto& [name, problem] : problems) lines.push_back(problem);
    return absl::FailedPreconditionError(absl::StrCat(
        "the initial weights do not fit the model; its section of the config must describe the same "
        "architecture\n  ",
        absl::StrJoin(lines, "\n  ")));
  }
  for (const StateSlice& slice : slices) {
    absl::Status status;
    ForEachRun(slice, [&](int64_t elem, char* data, int64_t count) {
      if (slice.kind != StateKind::kWeight) {
        std::memset(data, 0, static_cast<size_t>(count * SizeOf(slice.dtype)));
      } else if (status.ok()) {
        status = source.Read(slice.name, elem, count, slice.dtype, data);
      }
    });
    CAROUSEL_RETURN_IF_ERROR(status);
  }
  return absl::OkStatus();
}
}  // namespace carousel
